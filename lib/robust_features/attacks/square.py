"""Square attack (Andriushchenko et al. 2020): random squares, kept where the margin falls; no gradient."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from robust_features import inputs, noise
from robust_features.attacks.ball import Ball, LinfRadius, per_image
from robust_features.attacks.gradient import margin
from robust_features.attacks.survivors import look
from robust_features.settings import Count, Share, settings

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # queries after which the share p halves


@settings
class Square:
    """Square attack in L∞ (Andriushchenko et al. 2020, Algs. 1 and 2). Budget attack; black-box.

    Every image draws its own squares. It stops at its first misclassified iterate; one that is misclassified from the
    start, or never, is returned unchanged.
    """

    kind: Literal["square"] = "square"
    epsilon: LinfRadius
    queries: Count = 5000
    first_share: Annotated[Share, Field(gt=0)] = 0.8  # of the pixels, covered by the first square

    __call__ = inputs.attack

    def perturb(self, model: nn.Module, images: Tensor, labels: Tensor, *, generator: Generator | Tensor) -> Tensor:
        """Adversarial images, (N, C, H, W) in [0, 1], within epsilon of `images` in L∞."""
        with torch.no_grad():
            return self._search(model, images, labels, noise.image_keys(len(images), generator).to(images.device))

    def _search(self, model: nn.Module, images: Tensor, labels: Tensor, keys: Tensor) -> Tensor:
        ball, (channels, height, width) = Ball("linf", self.epsilon), images.shape[1:]
        found = images.clone()
        rows = (margin(model(images).float(), labels) > 0).nonzero().squeeze(1)
        centre, labels, keys = images[rows], labels[rows], keys[rows]
        stripes = noise.uniform(keys, (channels, 1, width)) < 0.5
        best = ball.project(centre + self.epsilon * _signs(stripes), centre)
        least = margin(model(best).float(), labels) if len(rows) else centre.new_zeros(0)
        down, across = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
        for query in range(1, self.queries):
            if look(images, query - 1) and (fooled := least <= 0).any():
                found[rows[fooled]] = best[fooled]
                rows, centre, labels, keys, best, least = (
                    t[~fooled] for t in (rows, centre, labels, keys, best, least)
                )
            if not len(rows):
                break
            side = self._side(query, min(height, width))
            draw = noise.uniform(keys, (2 + channels,), draw=query)
            top, left = (draw[:, 0] * (height - side + 1)).long(), (draw[:, 1] * (width - side + 1)).long()
            inside = _within(down, top, side)[:, :, None] & _within(across, left, side)[:, None, :]
            change = 2 * self.epsilon * _signs(draw[:, 2:] < 0.5)[:, :, None, None] * inside[:, None]
            candidates = ball.project(best + change, centre)
            value = margin(model(candidates).float(), labels)
            better = (value < least) & (least > 0)  # a fooled image stays, even if it has not left the batch
            least = torch.where(better, value, least)
            best = torch.where(per_image(better), candidates, best)
        fooled = least <= 0
        found[rows[fooled]] = best[fooled]
        return found

    def _side(self, query: int, size: int) -> int:
        """The side of the square: its share p of the pixels halves along AutoAttack's schedule, whatever the budget."""
        passed = sum(query > mark for mark in HALVINGS)
        return max(1, round((self.first_share / 2**passed) ** 0.5 * size))


def _signs(positive: Tensor) -> Tensor:
    return 2.0 * positive - 1


def _within(places: Tensor, first: Tensor, side: int) -> Tensor:
    return (places >= first[:, None]) & (places < first[:, None] + side)
