"""Random numbers that belong to an image, not to its batch.

A `torch.Generator` hands every image a key; all further draws are a hash of (key, draw, element), computed on the
tensors' own device. Image i therefore sees the same noise whatever the batch size, the device and the images beside it.
"""

import math

import torch
from torch import Generator, Tensor

MASK = 0xFFFFFFFF


def image_keys(count: int, generator: Generator) -> Tensor:
    """(count,) int64 keys below 2³²; splitting `count` over several calls gives the same keys."""
    return torch.randint(MASK + 1, (count,), generator=generator, device=generator.device)


def uniform(keys: Tensor, shape: torch.Size | tuple[int, ...], *, draw: int = 0) -> Tensor:
    """(N, *shape) float32, uniform on the open interval (0, 1); `draw` numbers the independent draws of one key."""
    elements = torch.arange(math.prod(shape), device=keys.device)
    streams = _mix(_mix(keys) ^ ((draw + 1) * 0x9E3779B1 & MASK))
    bits = _mix((_mix(elements ^ streams[:, None]) + streams[:, None]) & MASK)
    return ((bits >> 9).float() + 0.5).div_(1 << 23).view(-1, *shape)  # 24 bits of mantissa: exact


def normal(keys: Tensor, shape: torch.Size | tuple[int, ...], *, draw: int = 0) -> Tensor:
    """(N, *shape) float32, standard normal."""
    return torch.special.ndtri(uniform(keys, shape, draw=draw))


def _mix(x: Tensor) -> Tensor:
    """A bijection of 32-bit integers in which every input bit flips every output bit half of the time (Mueller's hash)."""
    x = ((x ^ (x >> 16)) * 0x45D9F3B) & MASK
    x = ((x ^ (x >> 16)) * 0x45D9F3B) & MASK
    return x ^ (x >> 16)
