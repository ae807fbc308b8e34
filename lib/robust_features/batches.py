"""Batches of images, made and augmented on the device that holds the data."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from robust_features.hardware import sent
from robust_features.settings import UserError, Whole, settings


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images: uint8 (N, 3, H, W) and int64 (N,) that index `classes`; `notes` say what readers should know."""

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    name: str
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        x, y, last = self.images, self.labels, len(self.classes) - 1
        if x.dtype != torch.uint8 or x.ndim != 4 or x.shape[1] != 3:
            raise UserError(f"{self.name}: images must be uint8 (N, 3, H, W), found {x.dtype} {(*x.shape,)}")
        if y.dtype != torch.int64 or y.shape != x.shape[:1]:
            raise UserError(f"{self.name}: labels must be int64 ({len(x)},), found {y.dtype} {(*y.shape,)}")
        if len(y) and not 0 <= y.min() <= y.max() <= last:
            raise UserError(f"{self.name}: labels must be 0 to {last}, found {y.min()} to {y.max()}")

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor | slice) -> "ImageSet":
        """The images at `indices`, in that order."""
        return replace(self, images=self.images[indices], labels=self.labels[indices])


@settings
class Augmentation:
    """Random crops after padding with black, and horizontal flips of half of the images."""

    padding: Whole = 4
    flip: bool = True

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        """Augmented (N, C, H, W) images; every image draws its own crop and flip."""
        count, _, height, width = images.shape
        shift = sent(torch.randint(2 * self.padding + 1, (2, count, 1), generator=generator), images.device)
        rows = shift[0] + torch.arange(height, device=images.device)
        columns = shift[1] + torch.arange(width, device=images.device)
        if self.flip:
            flipped = sent(torch.randint(2, (count, 1), generator=generator, dtype=torch.bool), images.device)
            columns = torch.where(flipped, columns.flip(1), columns)
        padded = F.pad(images, [self.padding] * 4)
        image = torch.arange(count, device=images.device)[:, None, None]
        return padded.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def as_float(images: Tensor) -> Tensor:
    """uint8 images as float32 in [0, 1], channels last in memory."""
    return images.float().div_(255).contiguous(memory_format=torch.channels_last)


def shuffled(images: Tensor, labels: Tensor, size: int, generator: Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of `size` in random order for one epoch, uint8 → float; an incomplete last batch is left out."""
    order = sent(torch.randperm(len(images), generator=generator), images.device)
    size = min(size, len(images))
    for batch in order[: len(order) // size * size].split(size):
        yield as_float(images[batch]), labels[batch]
