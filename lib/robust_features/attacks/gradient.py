"""Projected gradient ascent: the one loop behind FGSM, BIM, PGD and everything else that follows a gradient in a ball."""

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from robust_features.attacks.ball import Ball, Norm
from robust_features.settings import Pixels, settings


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
    """Raise loss(function(x), rows), one value an image, by projected steepest steps (Madry et al. 2018, Eq. 2).

    `rows` are the places in the batch of the images that are still moving. All of them move to the end, and the last
    iterate is returned; with `stop`, also called with (outputs, rows), an image rests at its first iterate that stops it.
    """
    images = (centre if start is None else start).detach()
    rows, rested = torch.arange(len(images), device=images.device), []
    for _ in range(steps):
        images.requires_grad_(True)
        outputs = function(images)
        (gradient,) = torch.autograd.grad(loss(outputs, rows).sum(), images)
        images = images.detach()
        if stop is not None and (at_rest := stop(outputs.detach(), rows)).any():
            rested.append((rows[at_rest], images[at_rest]))
            rows, images, gradient = rows[~at_rest], images[~at_rest], gradient[~at_rest]
            if not len(rows):
                break
        here = centre if len(rows) == len(centre) else centre[rows]
        images = ball.project(images + step_size * ball.steepest(gradient), here)
    if rested:
        order = torch.cat([*(r for r, _ in rested), rows]).argsort()
        images = torch.cat([*(stopped for _, stopped in rested), images])[order]
    return images.detach()


@settings
class PGD:
    """Projected gradient descent on the cross-entropy (Madry et al. 2018). Budget attack.

    steps = 1, step_size = epsilon, no random start: FGSM (Goodfellow et al. 2015). No random start: BIM (Kurakin et al. 2017).
    `keep: last` returns the last iterate; `first` lets an image rest as soon as it is fooled, for evaluations that only
    count: the others are fewer at every step.
    """

    kind: Literal["pgd"] = "pgd"
    epsilon: Pixels
    step_size: Pixels
    steps: PositiveInt = 10
    norm: Norm = "linf"
    random_start: bool = True
    targeted: bool = False  # labels are then the classes to reach, not those to leave
    keep: Literal["last", "first"] = "last"

    @property
    def ball(self) -> Ball:
        return Ball(self.norm, self.epsilon)

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, *, generator: Generator | Tensor) -> Tensor:
        """Adversarial images, (N, C, H, W) in [0, 1], within epsilon of `images`."""
        sign = -1 if self.targeted else 1
        return ascend(
            model,
            lambda logits, rows: sign * F.cross_entropy(logits, labels[rows], reduction="none"),
            images,
            ball=self.ball,
            step_size=self.step_size,
            steps=self.steps,
            start=self.ball.sample(images, generator) if self.random_start else None,
            stop=(lambda logits, rows: (logits.argmax(1) == labels[rows]) == self.targeted)
            if self.keep == "first"
            else None,
        )


@settings
class NIFGSM:
    """Nesterov's look-ahead and momentum on the sign of the gradient (Lin et al. 2020, Eqs. 6 to 8). Budget attack."""

    kind: Literal["nifgsm"] = "nifgsm"
    epsilon: Pixels
    step_size: Pixels
    steps: PositiveInt = 10
    decay: NonNegativeFloat = 1.0

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, *, generator: Generator | Tensor) -> Tensor:
        """Adversarial images, (N, C, H, W) in [0, 1], within epsilon of `images` in L∞; nothing is drawn at random."""
        found, momentum, ball = images, torch.zeros_like(images), Ball("linf", self.epsilon)
        for _ in range(self.steps):
            ahead = (found + self.decay * self.step_size * momentum).requires_grad_(True)
            (gradient,) = torch.autograd.grad(F.cross_entropy(model(ahead), labels, reduction="sum"), ahead)
            size = gradient.abs().mean((1, 2, 3), keepdim=True).clamp_min(1e-12)
            momentum = self.decay * momentum + gradient / size
            found = ball.project(found + self.step_size * momentum.sign(), images)
        return found
