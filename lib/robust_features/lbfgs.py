"""Limited-memory BFGS (Nocedal 1980) for a batch of images, a curvature for each; torch.optim.LBFGS has one for all."""

from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from robust_features.attacks.ball import dot

MEMORY = 6  # steps whose curvature is remembered
TINY = 1e-20

# A step s and the gradient's change y, (N, D); 1 / s·y, (N,), or zero where s·y is not positive.
Pair = tuple[Tensor, Tensor, Tensor]


def approach(
    outputs: Callable[[Tensor], Tensor], distance: Callable[[Tensor], Tensor], start: Tensor, *, steps: int
) -> Tensor:
    """Images in [0, 1] at a lower distance(outputs(images)), (N,), than `start`'s; there is no step size to choose.

    The objective is f = d²/2; a step goes at most half of the way to d = 0, estimated as if outputs were linear.
    Pixels at the end of their range that the gradient pushes outwards do not count.
    """
    images, pairs, last = start, deque[Pair](maxlen=MEMORY), None
    for _ in range(steps):
        with torch.enable_grad():
            images = images.detach().requires_grad_(True)
            objective = distance(outputs(images)).square() / 2
            (gradient,) = torch.autograd.grad(objective.sum(), images)
        images, objective = images.detach(), objective.detach()
        outwards = ((images <= 0) & (gradient > 0)) | ((images >= 1) & (gradient < 0))
        here = images.flatten(1), gradient.masked_fill(outwards, 0).flatten(1)
        if last:
            pairs.append(_pair(here[0] - last[0], here[1] - last[1]))
        last, direction = here, _direction(here[1], objective, pairs)
        half = objective / dot(here[1], direction).clamp_min(TINY)  # the whole way is 2f at this slope
        images = (images - (half.clamp_max(1)[:, None] * direction).view_as(images)).clamp(0, 1)
    return images


def _direction(gradient: Tensor, objective: Tensor, pairs: Sequence[Pair]) -> Tensor:
    """The inverse Hessian, as far as it is known, times the gradient: (N, D)."""
    direction, shares = gradient, []
    for s, y, inverse in reversed(pairs):
        shares.append(inverse * dot(s, direction))
        direction = direction - shares[-1][:, None] * y
    direction = _scale(gradient, objective, pairs)[:, None] * direction
    for (s, y, inverse), share in zip(pairs, reversed(shares), strict=True):
        direction = direction + (share - inverse * dot(y, direction))[:, None] * s
    return direction


def _scale(gradient: Tensor, objective: Tensor, pairs: Sequence[Pair]) -> Tensor:
    """The inverse Hessian where nothing is known about it: a factor for each image, (N,).

    Polyak's long 2f / ‖g‖² (1987); once there is a pair, its geometric mean with the usual short s·y / ‖y‖².
    """
    long = 2 * objective / dot(gradient, gradient).clamp_min(TINY)
    if not pairs:
        return long
    _, y, inverse = pairs[-1]
    return torch.where(inverse > 0, (long / (inverse * dot(y, y)).clamp_min(TINY)).sqrt(), long)


def _pair(s: Tensor, y: Tensor) -> Pair:
    curvature = dot(s, y)
    positive = curvature > 1e-6 * (dot(s, s) * dot(y, y)).sqrt()
    return s, y, torch.where(positive, 1 / curvature.clamp_min(TINY), 0)
