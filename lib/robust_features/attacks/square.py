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
TOGETHER = (
    64  # candidates in a pass of few images: each image's next ones, of which those after the first kept are void
)
AHEAD = 16  # of one image at most


@settings
class Square:
    """Square attack in L∞ (Andriushchenko et al. 2020, Algs. 1 and 2). Budget attack; black-box.

    Every image draws its own squares, most of which are refused: where few images are left, several are tried in one
    pass. It stops at its first misclassified iterate; one that is misclassified from the start, or never, is returned
    unchanged.
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
        found, sides = images.clone(), self._sides(min(height, width)).to(images.device)
        rows = (margin(model(images).float(), labels) > 0).nonzero().squeeze(1)
        centre, labels, keys = images[rows], labels[rows], keys[rows]
        stripes = noise.uniform(keys, (channels, 1, width)) < 0.5
        best = ball.project(centre + self.epsilon * _signs(stripes), centre)
        least = margin(model(best).float(), labels) if len(rows) else centre.new_zeros(0)
        asked, passes = torch.ones_like(rows), 0  # queries of each image so far
        while True:
            done = (least <= 0) | (asked >= self.queries)
            if look(images, passes) and done.any():
                found[rows[done]] = torch.where(per_image(least <= 0), best, centre)[done]
                rows, centre, labels, keys, best, least, asked, done = (
                    t[~done] for t in (rows, centre, labels, keys, best, least, asked, done)
                )
            if not len(rows):
                return found
            together = max(1, min(AHEAD, TOGETHER // len(rows)))
            query = asked[:, None] + torch.arange(together, device=images.device)
            squares = self._squares(images.shape[1:], keys, query.clamp_max(self.queries - 1), sides)
            candidates = ball.project(best[:, None] + squares, centre[:, None])
            margins = margin(model(candidates.flatten(0, 1)).float(), labels.repeat_interleave(together)).view_as(query)
            lower = (margins < least[:, None]) & (query < self.queries) & ~done[:, None]
            improved, first = (
                lower.any(1),
                lower.int().argmax(1),
            )  # later candidates began from what is no longer the best
            chosen = torch.arange(len(rows), device=images.device), first
            best = torch.where(per_image(improved), candidates[chosen], best)
            least = torch.where(improved, margins[chosen], least)
            asked, passes = asked + torch.where(improved, first + 1, together), passes + 1

    def _squares(self, shape: torch.Size, keys: Tensor, query: Tensor, sides: Tensor) -> Tensor:
        """(n, k, C, H, W): what each of its (n, k) queries changes in an image of this shape."""
        channels, height, width = shape
        draw = noise.uniform(keys.repeat_interleave(query.shape[1]), (2 + channels,), draw=query.flatten())
        draw, side = draw.view(*query.shape, -1), sides[query]
        top, left = ((draw[..., i] * (size - side + 1)).long() for i, size in enumerate((height, width)))
        inside = _within(height, top, side)[..., :, None] & _within(width, left, side)[..., None, :]
        return 2 * self.epsilon * _signs(draw[..., 2:] < 0.5)[..., None, None] * inside[..., None, :, :]

    def _sides(self, size: int) -> Tensor:
        """(queries,) the squares' sides: their share p of pixels halves on AutoAttack's schedule, for any budget."""
        passed = [sum(query > mark for mark in HALVINGS) for query in range(self.queries)]
        return torch.tensor([max(1, round((self.first_share / 2**halved) ** 0.5 * size)) for halved in passed])


def _signs(positive: Tensor) -> Tensor:
    return 2.0 * positive - 1


def _within(size: int, first: Tensor, side: Tensor) -> Tensor:
    places = torch.arange(size, device=first.device)
    return (places >= first[..., None]) & (places < (first + side)[..., None])
