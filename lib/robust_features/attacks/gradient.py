"""Projected gradient ascent: the one loop behind FGSM, BIM, PGD and everything else that follows a gradient in a ball."""

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from robust_features.attacks.ball import Ball, Norm
from robust_features.settings import Pixels, settings


def ascend(
    loss: Callable[[Tensor], Tensor],
    centre: Tensor,
    *,
    ball: Ball,
    step_size: float,
    steps: int,
    start: Tensor | None = None,
) -> Tensor:
    """Raise `loss`, (N, C, H, W) → (N,), by projected steepest steps (Madry et al. 2018, Eq. 2); the last iterate, in [0, 1]."""
    images = (centre if start is None else start).detach()
    for _ in range(steps):
        images.requires_grad_(True)
        (gradient,) = torch.autograd.grad(loss(images).sum(), images)
        images = ball.project(images.detach() + step_size * ball.steepest(gradient), centre)
    return images.detach()


@settings
class PGD:
    """Projected gradient descent on the cross-entropy (Madry et al. 2018). Budget attack.

    steps = 1, step_size = epsilon, no random start: FGSM (Goodfellow et al. 2015). No random start: BIM (Kurakin et al. 2017).
    """

    kind: Literal["pgd"] = "pgd"
    epsilon: Pixels
    step_size: Pixels
    steps: PositiveInt = 10
    norm: Norm = "linf"
    random_start: bool = True
    targeted: bool = False  # labels are then the classes to reach, not those to leave

    @property
    def ball(self) -> Ball:
        return Ball(self.norm, self.epsilon)

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, *, generator: Generator) -> Tensor:
        """Adversarial images, (N, C, H, W) in [0, 1], within epsilon of `images`."""
        sign = -1 if self.targeted else 1
        return ascend(
            lambda x: sign * F.cross_entropy(model(x), labels, reduction="none"),
            images,
            ball=self.ball,
            step_size=self.step_size,
            steps=self.steps,
            start=self.ball.sample(images, generator) if self.random_start else None,
        )
