"""The threat model: which images count as close, and how to move among them."""

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator
from torch import Generator, Tensor

from robust_features import noise
from robust_features.settings import Pixels

Norm = Literal["linf", "l2"]


def _within_pixels(epsilon: float) -> float:
    if epsilon > 1:
        raise ValueError(f"{epsilon:g} is more than pixels in [0, 1] can change; write {epsilon:g}/255")
    return epsilon


LinfRadius = Annotated[Pixels, AfterValidator(_within_pixels)]  # of an attack that knows no other norm


def fits_norm(attack: Any) -> Any:
    """Validator for attacks with a norm and an epsilon: images must be able to differ by epsilon in that norm."""
    if attack.norm == "linf":
        _within_pixels(attack.epsilon)
    return attack


@dataclass(frozen=True)
class Ball:
    """Images within `epsilon` of a centre and within [0, 1]; an infinite epsilon leaves only the latter."""

    norm: Norm
    epsilon: float

    def size(self, delta: Tensor) -> Tensor:
        """(N,) norm of each image of `delta`."""
        return linf(delta) if self.norm == "linf" else l2(delta)

    def project(self, images: Tensor, centre: Tensor) -> Tensor:
        """The point of the ball nearest to `images` (L∞), or nearest and then clipped to [0, 1] (L2).

        >>> images, centre = torch.tensor([[[[0.9, 0.45]]]]), torch.full((1, 1, 1, 2), 0.5)
        >>> Ball("linf", 0.1).project(images, centre)
        tensor([[[[0.6000, 0.4500]]]])
        """
        if self.norm == "linf":
            low, high = (centre - self.epsilon).clamp_min(0), (centre + self.epsilon).clamp_max(1)
            return torch.clamp(images, low, high)
        delta = images - centre
        shrink = (self.epsilon / l2(delta).clamp_min(1e-12)).clamp_max(1)
        return (centre + delta * per_image(shrink)).clamp(0, 1)

    def steepest(self, gradient: Tensor) -> Tensor:
        """The step of unit norm along which a linear function with this gradient rises most; zero where it is zero."""
        if self.norm == "linf":
            return gradient.sign()
        return gradient / per_image(l2(gradient).clamp_min(1e-12))

    def sample(self, centre: Tensor, generator: Generator | Tensor) -> Tensor:
        """A uniform point of the ball (L∞), or one of uniform direction and uniform volume (L2), clipped to [0, 1]."""
        keys = noise.image_keys(len(centre), generator).to(centre.device)
        if self.norm == "linf":
            return (centre + self.epsilon * (2 * noise.uniform(keys, centre.shape[1:]) - 1)).clamp(0, 1)
        direction = self.steepest(noise.normal(keys, centre.shape[1:]))
        radius = self.epsilon * noise.uniform(keys, (1,), draw=1).flatten() ** (1 / math.prod(centre.shape[1:]))
        return (centre + direction * per_image(radius)).clamp(0, 1)


def l2(delta: Tensor) -> Tensor:
    """(N,) Euclidean norm of each image of `delta`."""
    return torch.linalg.vector_norm(delta.flatten(1), dim=1)


def linf(delta: Tensor) -> Tensor:
    """(N,) largest absolute pixel change of each image of `delta`."""
    return delta.flatten(1).abs().amax(1)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """(N,) inner product of each image of `a` with that of `b`."""
    return (a * b).flatten(1).sum(1)


def per_image(values: Tensor) -> Tensor:
    """(N, 1, 1, 1): one value per image, to be combined with (N, C, H, W)."""
    return values.view(-1, 1, 1, 1)
