"""Auto-PGD (Croce and Hein 2020a): projected ascent with momentum; an image's step halves when it no longer helps."""

from dataclasses import dataclass, fields
from typing import Literal

import torch
from pydantic import model_validator
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from robust_features import inputs, noise
from robust_features.attacks.ball import Ball, Norm, fits_norm, per_image
from robust_features.attacks.survivors import look
from robust_features.attacks.targets import each_target
from robust_features.settings import Count, Pixels, Whole, settings


@settings
class APGD:
    """Auto-PGD on cross-entropy or difference-of-logits ratio (Croce and Hein 2020a, Alg. 1, Eqs. 6, 7). Budget attack.

    With `targets`, that many runs on the targeted ratio, each towards the next likeliest wrong class. An image stops at
    its first misclassified iterate; one that is misclassified from the start, or never, is returned unchanged.
    """

    kind: Literal["apgd"] = "apgd"
    epsilon: Pixels
    steps: Count = 100
    loss: Literal["ce", "dlr"] = "ce"
    targets: Whole = 0
    norm: Norm = "linf"
    _fits_norm = model_validator(mode="after")(fits_norm)

    __call__ = inputs.attack

    def perturb(self, model: nn.Module, images: Tensor, labels: Tensor, *, generator: Generator | Tensor) -> Tensor:
        """Adversarial images, (N, C, H, W) in [0, 1], within epsilon. Raises ValueError if DLR has too few classes."""
        keys = noise.image_keys(len(images), generator).to(images.device)
        ball = Ball(self.norm, self.epsilon)
        with torch.no_grad():
            ranked = model(images).argsort(1, descending=True)
        classes = ranked.shape[1]
        needed = 4 if self.targets else 3 if self.loss == "dlr" else 2
        if classes < needed:
            kind = "targeted DLR" if self.targets else "DLR"
            raise ValueError(f"the {kind} loss compares {needed} logits, the network has {classes}: use loss: ce")

        def attempt(rows: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
            start = ball.sample(images[rows], noise.derived(keys[rows], numbers))
            targets = ranked[rows, numbers + 1]  # not used without `targets`
            return self._run(model, start, images[rows], labels[rows], targets, ball)

        return each_target(attempt, images, ranked[:, 0] == labels, max(1, min(self.targets, classes - 1)))

    def _run(
        self, model: nn.Module, start: Tensor, centre: Tensor, labels: Tensor, targets: Tensor, ball: Ball
    ) -> tuple[Tensor, Tensor]:
        """The first misclassified iterate of each image, or its centre, and which are misclassified."""
        found, fooled = centre.clone(), torch.zeros_like(labels, dtype=torch.bool)
        period, since = max(int(0.22 * self.steps), 1), 0
        shortest, shrink = max(int(0.06 * self.steps), 1), max(int(0.03 * self.steps), 1)
        s = _State.start(start, centre, labels, targets, step=2 * self.epsilon)
        for number in range(self.steps + 1):
            images = s.images.detach().requires_grad_(True)
            logits = model(images)
            loss = self._loss(logits, s.labels, s.targets)
            (s.gradient,) = torch.autograd.grad(loss.sum(), images)
            s.images, loss, logits = images.detach(), loss.detach(), logits.detach()
            s.note(logits.argmax(1) != s.labels)
            if (look(images, number) or number == self.steps) and s.done.any():
                found[s.rows[s.done]], fooled[s.rows[s.done]] = s.first[s.done], True
                s, loss = s.select(~s.done), loss[~s.done]
            if number == self.steps or not len(s.rows):
                break
            s.remember(loss)
            since += number > 0
            if since == period:
                s.check(period)
                period, since = max(period - shrink, shortest), 0
            share = 0.75 if number else 1.0
            ahead = ball.project(s.images + s.step * ball.steepest(s.gradient), s.centre)
            moved = s.images + share * (ahead - s.images) + (1 - share) * (s.images - s.previous)
            s.previous, s.images = s.images, ball.project(moved, s.centre)
        return found, fooled

    def _loss(self, logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
        if self.targets:
            return targeted_dlr(logits.float(), labels, targets)
        if self.loss == "dlr":
            return dlr(logits.float(), labels)
        return F.cross_entropy(logits.float(), labels, reduction="none")


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """(N,) −(z_y − max_{i≠y} z_i) / (z_π1 − z_π3), unchanged as logits shift or scale (Croce and Hein 2020a, Eq. 6)."""
    ordered = logits.sort(1, descending=True).values
    own = logits.gather(1, labels[:, None]).squeeze(1)
    other = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    return (other - own) / (ordered[:, 0] - ordered[:, 2] + 1e-12)


def targeted_dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """(N,) −(z_y − z_t) / (z_π1 − (z_π3 + z_π4)/2) (Croce and Hein 2020a, Eq. 7)."""
    ordered = logits.sort(1, descending=True).values
    own, wanted = (logits.gather(1, classes[:, None]).squeeze(1) for classes in (labels, targets))
    return (wanted - own) / (ordered[:, 0] - (ordered[:, 2] + ordered[:, 3]) / 2 + 1e-12)


@dataclass
class _State:
    """The state of the images that still climb: (n, …) tensors, all in the same order."""

    rows: Tensor
    centre: Tensor
    labels: Tensor
    targets: Tensor
    images: Tensor
    previous: Tensor
    gradient: Tensor
    step: Tensor
    loss: Tensor
    best: Tensor  # the iterate of greatest loss, with its gradient and loss
    best_gradient: Tensor
    best_loss: Tensor
    rises: Tensor  # steps since the last check that raised the loss
    checked_loss: Tensor  # best_loss at the last check
    halved: Tensor  # whether the last check halved the step
    first: Tensor  # the first misclassified iterate, where it is `done`
    done: Tensor

    @classmethod
    def start(cls, start: Tensor, centre: Tensor, labels: Tensor, targets: Tensor, *, step: float) -> "_State":
        lowest = torch.full_like(start[:, 0, 0, 0], -torch.inf)
        return cls(
            rows=torch.arange(len(start), device=start.device),
            centre=centre,
            labels=labels,
            targets=targets,
            images=start,
            previous=start,
            gradient=start,
            step=per_image(torch.full_like(lowest, step)),
            loss=lowest,
            best=start,
            best_gradient=start,
            best_loss=lowest,
            rises=torch.zeros_like(labels),
            checked_loss=lowest,
            halved=torch.ones_like(labels, dtype=torch.bool),
            first=start,
            done=torch.zeros_like(labels, dtype=torch.bool),
        )

    def select(self, going: Tensor) -> "_State":
        return _State(*(getattr(self, field.name)[going] for field in fields(self)))

    def note(self, fooled: Tensor) -> None:
        """Keep the iterates of images that are misclassified for the first time."""
        self.first = torch.where(per_image(fooled & ~self.done), self.images, self.first)
        self.done = self.done | fooled

    def remember(self, loss: Tensor) -> None:
        """Note an iterate's loss, and the iterate itself where it is the best so far."""
        first = self.checked_loss.isneginf()
        self.checked_loss = torch.where(first, loss, self.checked_loss)
        self.rises = self.rises + ((loss > self.loss) & ~first)
        better = loss > self.best_loss
        self.loss, self.best_loss = loss, torch.where(better, loss, self.best_loss)
        self.best = torch.where(per_image(better), self.images, self.best)
        self.best_gradient = torch.where(per_image(better), self.gradient, self.best_gradient)

    def check(self, period: int) -> None:
        """Halve the step and return to the best iterate, where under 3/4 of steps helped or the best has not moved."""
        stuck = (self.rises <= 0.75 * period) | (~self.halved & (self.checked_loss >= self.best_loss))
        self.step = torch.where(per_image(stuck), self.step / 2, self.step)
        self.images = torch.where(per_image(stuck), self.best, self.images)
        self.gradient = torch.where(per_image(stuck), self.best_gradient, self.gradient)
        self.halved, self.checked_loss, self.rises = stuck, self.best_loss, torch.zeros_like(self.rises)
