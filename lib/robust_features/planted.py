"""Worlds in which it is known what is robust, brittle and useless, so that what a method finds there can be scored.

`World` makes images of Springer et al.'s types A, B and C (2021, Fig. 1), `Channels` a layer with a head that reads
some of its channels at a high gain, some at a low one and some not at all.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from robust_features.batches import ImageSet
from robust_features.bottleneck import Distillation
from robust_features.networks import Network
from robust_features.networks.network import GlobalAverage
from robust_features.regularisers import lowest
from robust_features.settings import Count, NonNegative, Positive, Share, settings

CLASSES = 4
NAMES = tuple(enumerate(("robust", "brittle", "irrelevant")))
HALVES = torch.tensor([[1.0, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]])  # any two classes differ in two of the three
SIZE, BODY, CELL = 12, 9, 3  # pixels: of an image's side, of the body's height, of a cell's side


@dataclass(frozen=True)
class Patterns:
    """How each class looks, each (4, 3, 12, 12) with pixels of −1, 0 and 1, or of mean square 1 where it is not 0."""

    body: Tensor  # A: 33 cells of 3 × 3 pixels, half of the classes bright and half dark in each
    nose: Tensor  # B: three more cells, in the middle of the body
    texture: Tensor  # C: what looks like noise, in the three rows below


@settings
class World:
    """Images of four classes: a large noisy pattern A, a small clean one B, a part of it, and a texture C beside it.

    An image's class is seen in A, whose cells have noise that hides it in some images, and in B and C, which are clean
    but show a random class in a share of images. C is bright or dark at random, so that no linear feature sees it.
    """

    body: NonNegative = 0.06  # amplitudes, pixels in [0, 1] around 0.5
    nose: NonNegative = 0.035
    texture: NonNegative = 0.02
    shade: NonNegative = 0.2  # standard deviation of the noise of the body's cells
    grain: NonNegative = 0.02  # and of every pixel
    reliable: Share = 0.95  # the share of images whose B (and likewise C) certainly shows the label's class

    def draw(self, patterns: Patterns, count: int, *, parts: str = "ABC", seed: int) -> ImageSet:
        """`count` images, their labels 0 to 3 in turn, that show these parts of the patterns; without parts, noise.

        >>> images = World().draw(patterns(seed=0), 8, parts="AB", seed=1)
        >>> images.images.shape, images.labels.tolist()
        (torch.Size([8, 3, 12, 12]), [0, 1, 2, 3, 0, 1, 2, 3])
        """
        draws, labels = Generator().manual_seed(seed), torch.arange(count) % CLASSES
        x = 0.5 + self.grain * torch.randn(count, 3, SIZE, SIZE, generator=draws)
        shades = self.shade * torch.randn(count, 3, BODY // CELL, SIZE // CELL, generator=draws)
        x[:, :, :BODY] += _pixels(shades) * patterns.body[0, :, :BODY].abs()
        seen = [labels]
        for _ in "BC":
            astray = torch.rand(count, generator=draws) >= self.reliable
            seen.append(torch.where(astray, torch.randint(CLASSES, (count,), generator=draws), labels))
        sign = 2.0 * torch.randint(2, (count, 1, 1, 1), generator=draws) - 1
        shown = {"A": self.body * patterns.body[seen[0]], "B": self.nose * patterns.nose[seen[1]]}
        shown["C"] = self.texture * sign * patterns.texture[seen[2]]
        x = x + sum(shown[part] for part in parts)
        classes = tuple(map(str, range(CLASSES)))
        return ImageSet((255 * x.clamp(0, 1)).round().byte(), labels, classes, f"planted {parts or 'noise'}")


def patterns(seed: int) -> Patterns:
    """The patterns of a world, whose cells' brightness and texture are drawn from `seed`."""
    draws, shape = Generator().manual_seed(seed), (3, BODY // CELL, SIZE // CELL)
    nose = torch.zeros(shape)
    nose[:, 1, 1] = 1
    half = torch.zeros(shape, dtype=torch.int64)
    half[nose == 1] = torch.arange(3)  # the nose, which has one cell a channel, tells all classes apart
    half[nose == 0] = torch.randperm(half.numel() - 3, generator=draws) % 3
    cells = HALVES[half].permute(3, 0, 1, 2) * (2.0 * torch.randint(2, shape, generator=draws) - 1)
    body, part, texture = (torch.zeros(CLASSES, 3, SIZE, SIZE) for _ in range(3))
    body[:, :, :BODY], part[:, :, :BODY] = _pixels(cells * (1 - nose)), _pixels(cells * nose)
    rows = texture[:, :, BODY:]
    orthogonal = torch.linalg.qr(torch.randn(rows[0].numel(), CLASSES, generator=draws)).Q.T
    rows.copy_((orthogonal * rows[0].numel() ** 0.5).view_as(rows))
    return Patterns(body, part, texture)


def readings(known: Patterns, images: Tensor) -> Tensor:
    """(N, 12) features that are known: A, B and C of each class, read off (N, 3, 12, 12) images by its pattern.

    A and B linearly; for C the magnitude, as its sign says nothing.
    """
    x = (images - 0.5).flatten(1)
    of_a, of_b, of_c = (
        x @ (p.flatten(1) / p.flatten(1).norm(dim=1, keepdim=True)).T for p in (known.body, known.nose, known.texture)
    )
    return torch.cat([of_a, of_b, of_c.abs()], 1)


@settings
class Channels:
    """A layer of robust, brittle and irrelevant channels, as many of each, and a head that averages and reads them.

    A robust channel of a class is on in its images, and read at gain 1; a brittle one is `small` times as large, in
    signal and in noise, and read at a gain of 1 / small: both say as much, but one unit of noise harms the latter
    1 / small times as much. An irrelevant one is on at random, and not read.
    """

    each: Count = 16  # channels of each kind
    side: Count = 4  # positions: side × side
    size: Positive = 0.3  # of a robust channel that is on
    small: Positive = 0.1  # of a brittle one, in units of that
    spread: NonNegative = 1.0  # of the signal over images, and, half as large, over positions

    @property
    def kinds(self) -> Tensor:
        """(3 · each,) int64: 0 robust, 1 brittle, 2 irrelevant."""
        return torch.arange(3).repeat_interleave(self.each)

    def network(self) -> Network:
        """The head that reads the layer; its trunk leaves it as it is."""
        scale = self.size * torch.tensor([1, self.small, 1])[self.kinds]
        linear = nn.Linear(3 * self.each, CLASSES)
        read = (torch.arange(3 * self.each) % CLASSES == torch.arange(CLASSES)[:, None]) & (self.kinds < 2)
        linear.weight = nn.Parameter(read / scale)
        linear.bias = nn.Parameter(torch.zeros(CLASSES))
        stages = {"z": nn.Identity(), "pool": GlobalAverage(), "logits": linear}
        return Network(
            stages, split="z", full_channels=3 * self.each, representation="pool", hidden=()
        ).eval()  # full_channels: β as it is stated

    def draw(self, count: int, *, seed: int) -> tuple[Tensor, Tensor]:
        """(N, 3 · each, side, side) features and (N,) labels, 0 to 3 in turn."""
        draws, labels, channels = Generator().manual_seed(seed), torch.arange(count) % CLASSES, 3 * self.each
        own = (torch.arange(channels) % CLASSES == labels[:, None]).float()
        chance = torch.randint(2, (count, channels), generator=draws).float()
        signal = torch.where(self.kinds == 2, chance, own) + self.spread * torch.randn(count, channels, generator=draws)
        varied = signal[:, :, None, None] + self.spread / 2 * torch.randn(
            count, channels, self.side, self.side, generator=draws
        )
        scale = self.size * torch.tensor([1, self.small, 1])[self.kinds]
        return scale[:, None, None] * varied, labels


def score_index(layer: Channels, index: Distillation) -> dict[str, float]:
    """How well the channels that the bottleneck calls non-robust are the brittle ones, in percent.

    Precision and recall over all images; AUC of a small σ, image by image; and for each kind, how many are called
    robust.
    """
    precision, recall = precision_recall(~index.robust, layer.kinds == 1)
    auc = sum(ranked(-sigma, layer.kinds == 1) for sigma in index.sigma) / len(index.sigma)
    shares = {f"{kind} called robust": index.robust[:, layer.kinds == n].float().mean().item() for n, kind in NAMES}
    return {
        name: 100 * share for name, share in {"precision": precision, "recall": recall, "AUC": auc, **shares}.items()
    }


def score_dependence(layer: Channels, scores: Tensor) -> dict[str, float]:
    """How well (3 · each,) scores of dependence on the labels identify the irrelevant channels, in percent.

    How often an irrelevant channel scores less than a robust one, and than a brittle one; how many of the lowest third,
    which a mask would remove, are irrelevant; and the score of an irrelevant channel, relative to a robust one's.
    """
    kinds, robust, noise = layer.kinds, scores[layer.kinds == 0].mean(), scores[layer.kinds == 2].mean()
    below = {}
    for n, kind in NAMES[:2]:
        compared = (kinds == n) | (kinds == 2)
        below[f"noise below {kind}"] = ranked(-scores[compared], kinds[compared] == 2)
    removed = (kinds[lowest(scores, 1 / 3)] == 2).float().mean().item()
    shares = {**below, "noise among removed": removed, "noise over robust": (noise / robust).item()}
    return {name: 100 * share for name, share in shares.items()}


def ranked(scores: Tensor, wanted: Tensor) -> float:
    """The share of pairs, one wanted and one not, in which the wanted one scores more (ties half): 1/2 is chance (AUC).

    >>> ranked(torch.tensor([3.0, 2.0, 1.0]), torch.tensor([True, False, True]))
    0.5
    """
    gap = scores[wanted][:, None] - scores[~wanted]
    return ((gap > 0).float() + 0.5 * (gap == 0)).mean().item()


def precision_recall(found: Tensor, wanted: Tensor) -> tuple[float, float]:
    """Shares (of found that are wanted, of wanted that are found) of (…, n) booleans; the first NaN if none is found.

    >>> precision_recall(torch.tensor([True, True, False]), torch.tensor([True, False, False]))
    (0.5, 1.0)
    """
    both = (found & wanted).sum()
    return (both / found.sum()).item(), (both / wanted.expand_as(found).sum()).item()


def _pixels(cells: Tensor) -> Tensor:
    """(…, h, w) → (…, 3 h, 3 w): every cell as a square of pixels."""
    return cells.repeat_interleave(CELL, -2).repeat_interleave(CELL, -1)
