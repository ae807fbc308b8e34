"""The search through tanh for a near adversarial image: Carlini and Wagner's attack, and those built on it."""

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Generator, Tensor, nn

from robust_features.adam import Adam
from robust_features.attacks.ball import l2
from robust_features.settings import settings


def search(
    objective: Callable[[Tensor], tuple[Tensor, Tensor]],
    images: Tensor,
    labels: Tensor,
    *,
    steps: int,
    learning_rate: float,
) -> Tensor:
    """Lower `objective` by Adam over w with x' = (tanh w + 1)/2, and keep each image's nearest misclassified iterate.

    `objective` maps (N, C, H, W) candidates to (logits (N, K), loss (N,)); the squared L2 distance is added to the loss
    here. An image that is never misclassified is returned as it came, to the bit.
    """
    w = torch.atanh((2 * images - 1).clamp(-1 + 1e-6, 1 - 1e-6)).requires_grad_(True)
    adam = Adam(w, learning_rate)
    best, nearest = images.clone(), torch.full_like(images[:, 0, 0, 0], torch.inf)
    for _ in range(steps):
        candidates = (torch.tanh(w) + 1) / 2
        logits, loss = objective(candidates)
        squared = (candidates - images).square().flatten(1).sum(1)
        (gradient,) = torch.autograd.grad((loss + squared).sum(), w)
        adam.step(gradient)
        distance = l2(candidates.detach() - images)
        better = (logits.argmax(1) != labels) & (distance < nearest)
        nearest = torch.where(better, distance, nearest)
        best = torch.where(better.view(-1, 1, 1, 1), candidates.detach(), best)
    return best


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """(N,) logit of the label minus the largest other logit: positive where the label is predicted."""
    own = logits.gather(1, labels[:, None]).squeeze(1)
    others = logits.scatter(1, labels[:, None], -torch.inf)  # not zero: with negative logits zero would win
    return own - others.amax(1)


@settings
class CarliniWagner:
    """min ‖x' − x‖₂² + c · max(margin + confidence, 0) through tanh (Carlini and Wagner 2017). Minimal attack: no bound."""

    kind: Literal["carlini-wagner"] = "carlini-wagner"
    c: PositiveFloat = 0.1
    steps: PositiveInt = 200
    learning_rate: PositiveFloat = 0.1
    confidence: NonNegativeFloat = 0.0

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, *, generator: Generator) -> Tensor:
        """The nearest misclassified images found, (N, C, H, W) in [0, 1]; the search draws nothing at random."""

        def objective(candidates: Tensor) -> tuple[Tensor, Tensor]:
            logits = model(candidates)
            return logits, self.c * (margin(logits, labels) + self.confidence).clamp_min(0)

        return search(objective, images, labels, steps=self.steps, learning_rate=self.learning_rate)
