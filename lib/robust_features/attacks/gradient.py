"""Projected gradient ascent: the one loop behind FGSM, BIM, PGD and all else that follows a gradient in a ball."""

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import model_validator
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from robust_features import inputs, noise
from robust_features.attacks.ball import Ball, LinfRadius, Norm, fits_norm, per_image
from robust_features.attacks.survivors import look
from robust_features.attacks.targets import each_target
from robust_features.settings import Count, NonNegative, Pixels, settings


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """(N,) logit of the label minus the largest other logit: positive where the label is predicted.

    >>> margin(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0]))
    tensor([1.])
    """
    own = logits.gather(1, labels[:, None]).squeeze(1)
    others = logits.scatter(1, labels[:, None], -torch.inf)  # not zero: with negative logits zero would win
    return own - others.amax(1)


def ascend(
    function: Callable[[Tensor], Tensor],
    loss: Callable[[Tensor, Tensor], Tensor],
    centre: Tensor,
    *,
    ball: Ball,
    step_size: float,
    steps: int,
    start: Tensor | None = None,
    stop: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """Raise loss(function(x), rows), one value per image, by projected steepest steps (Madry et al. 2018, Eq. 2).

    `rows` are the places in the batch of the images that are still moving. By default all move to the end, and the last
    iterate is returned; with `stop`, also called with (outputs, rows), an image stays at the first that stops it.

    >>> black, brightness = torch.zeros(1, 1, 1, 2), lambda images: images.sum((1, 2, 3))
    >>> ascend(brightness, lambda sums, rows: sums, black, ball=Ball("linf", 0.25), step_size=0.1, steps=3)
    tensor([[[[0.2500, 0.2500]]]])
    """
    images = (centre if start is None else start).detach()
    rows, rested = torch.arange(len(images), device=images.device), []
    done = torch.zeros_like(rows, dtype=torch.bool)
    for number in range(steps):
        with torch.enable_grad():
            images.requires_grad_(True)
            outputs = function(images)
            (gradient,) = torch.autograd.grad(loss(outputs, rows).sum(), images)
        images = images.detach()
        here = centre if len(rows) == len(centre) else centre[rows]
        moved = ball.project(images + step_size * ball.steepest(gradient), here)
        if stop is None:
            images = moved
            continue
        done = done | stop(outputs.detach(), rows)
        images = torch.where(per_image(done), images, moved)
        if look(images, number) and done.any():
            rested.append((rows[done], images[done]))
            rows, images, done = rows[~done], images[~done], done[~done]
            if not len(rows):
                break
    if rested:
        order = torch.cat([*(r for r, _ in rested), rows]).argsort()
        images = torch.cat([*(stopped for _, stopped in rested), images])[order]
    return images.detach()


@settings
class PGD:
    """Projected gradient descent on the cross-entropy (Madry et al. 2018). Budget attack.

    steps = 1, step_size = epsilon, no random start: FGSM (Goodfellow et al. 2015). No random start: BIM (Kurakin et al.
    2017). `until: end` returns the last iterate; `fooled` stops an image as soon as it is fooled, for evaluations that
    only count: fewer images remain at every step. `restarts` are further attempts at images that are not fooled yet.
    `loss: scaled-ce` divides the logits by their standard deviation over the classes, so that confidence does not
    flatten the softmax; `margin` is the largest other logit minus the label's (Carlini and Wagner 2017).

    >>> image, label = torch.tensor([[[[0.6, 0.5]]]]), torch.tensor([0])  # the brighter pixel is the class
    >>> attack = PGD(epsilon="51/255", step_size="51/255", steps=3)
    >>> attack(nn.Flatten(), image, label, generator=Generator().manual_seed(0))
    tensor([[[[0.4000, 0.7000]]]])
    """

    kind: Literal["pgd"] = "pgd"
    epsilon: Pixels
    step_size: Pixels
    steps: Count = 10
    norm: Norm = "linf"
    random_start: bool = True
    targeted: bool = False  # labels are then the classes to reach, not those to leave
    until: Literal["end", "fooled"] = "end"
    restarts: Count = 1
    loss: Literal["ce", "scaled-ce", "margin"] = "ce"
    _fits_norm = model_validator(mode="after")(fits_norm)

    @property
    def ball(self) -> Ball:
        return Ball(self.norm, self.epsilon)

    __call__ = inputs.attack

    def perturb(self, model: nn.Module, images: Tensor, labels: Tensor, *, generator: Generator | Tensor) -> Tensor:
        """Adversarial images, (N, C, H, W) in [0, 1], within epsilon of `images`."""
        keys = noise.image_keys(len(images), generator).to(images.device)
        found = self._once(model, images, labels, keys)
        if self.restarts == 1:
            return found

        def attempt(rows: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
            again = self._once(model, images[rows], labels[rows], noise.derived(keys[rows], numbers))
            return again, self._fooled(model(again), labels[rows])

        with torch.no_grad():
            return each_target(attempt, found, ~self._fooled(model(found), labels), self.restarts - 1)

    def _once(self, model: nn.Module, images: Tensor, labels: Tensor, keys: Tensor) -> Tensor:
        sign = -1 if self.targeted else 1
        return ascend(
            model,
            lambda logits, rows: sign * self._loss(logits, labels[rows]),
            images,
            ball=self.ball,
            step_size=self.step_size,
            steps=self.steps,
            start=self.ball.sample(images, keys) if self.random_start else None,
            stop=(lambda logits, rows: self._fooled(logits, labels[rows])) if self.until == "fooled" else None,
        )

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.loss == "margin":
            return -margin(logits, labels)
        if self.loss == "scaled-ce":
            logits = logits / logits.detach().std(1, keepdim=True).clamp_min(1e-12)
        return F.cross_entropy(logits, labels, reduction="none")

    def _fooled(self, logits: Tensor, labels: Tensor) -> Tensor:
        return (logits.argmax(1) == labels) == self.targeted


@settings
class NIFGSM:
    """Nesterov's look-ahead and momentum on the sign of the gradient (Lin et al. 2020, Eqs. 6 to 8). Budget attack."""

    kind: Literal["nifgsm"] = "nifgsm"
    epsilon: LinfRadius
    step_size: Pixels
    steps: Count = 10
    decay: NonNegative = 1.0

    __call__ = inputs.attack

    def perturb(self, model: nn.Module, images: Tensor, labels: Tensor, *, generator: Generator | Tensor) -> Tensor:
        """Adversarial images, (N, C, H, W) in [0, 1], within epsilon of `images` in L∞; nothing is drawn at random."""
        found, momentum, ball = images, torch.zeros_like(images), Ball("linf", self.epsilon)
        for _ in range(self.steps):
            ahead = (found + self.decay * self.step_size * momentum).requires_grad_(True)
            (gradient,) = torch.autograd.grad(F.cross_entropy(model(ahead), labels, reduction="sum"), ahead)
            size = gradient.abs().mean((1, 2, 3), keepdim=True).clamp_min(1e-12)
            momentum = self.decay * momentum + gradient / size
            found = ball.project(found + self.step_size * momentum.sign(), images)
        return found
