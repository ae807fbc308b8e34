"""Batches of images, made and augmented on the device that holds the data."""

from collections.abc import Iterator

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from robust_features.settings import Whole, settings


@settings
class Augmentation:
    """Random crops after padding with black, and horizontal flips of half of the images."""

    padding: Whole = 4
    flip: bool = True

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        """Augmented (N, C, H, W) images; every image draws its own crop and flip."""
        count, _, height, width = images.shape
        shift = torch.randint(2 * self.padding + 1, (2, count, 1), generator=generator).to(images.device)
        rows = shift[0] + torch.arange(height, device=images.device)
        columns = shift[1] + torch.arange(width, device=images.device)
        if self.flip:
            flipped = torch.randint(2, (count, 1), generator=generator, dtype=torch.bool).to(images.device)
            columns = torch.where(flipped, columns.flip(1), columns)
        padded = F.pad(images, [self.padding] * 4)
        image = torch.arange(count, device=images.device)[:, None, None]
        return padded.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def as_float(images: Tensor) -> Tensor:
    """uint8 images as float32 in [0, 1], channels last in memory."""
    return images.float().div_(255).contiguous(memory_format=torch.channels_last)


def shuffled(images: Tensor, labels: Tensor, size: int, generator: Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of `size` in random order for one epoch, uint8 → float; an incomplete last batch is left out."""
    order = torch.randperm(len(images), generator=generator).to(images.device)
    size = min(size, len(images))
    for batch in order[: len(order) // size * size].split(size):
        yield as_float(images[batch]), labels[batch]
