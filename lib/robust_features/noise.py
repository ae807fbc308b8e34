"""Random numbers that belong to an image, not to its batch.

A `torch.Generator` hands every image a key; all further draws are a hash of (key, draw, element), computed on the
tensors' own device. Image i therefore sees the same noise whatever the batch size, the device and the images beside it.
"""

import math

import torch
from torch import Generator, Tensor


def image_keys(count: int, generator: Generator | Tensor) -> Tensor:
    """(count,) int32 keys; splitting `count` over several calls gives the same keys.

    Keys that were drawn before are passed on unchanged: an attack made of attacks keeps each image's own.

    >>> all_at_once = uniform(image_keys(4, Generator().manual_seed(0)), (3,))
    >>> generator = Generator().manual_seed(0)
    >>> torch.equal(torch.cat([uniform(image_keys(2, generator), (3,)) for _ in range(2)]), all_at_once)
    True
    """
    if isinstance(generator, Tensor):
        return generator
    return _wrapped(torch.randint(2**32, (count,), generator=generator, device=generator.device))


def derived(keys: Tensor, number: int | Tensor) -> Tensor:
    """(N,) other keys, independent of `keys` and of those of another `number` (one for all, or one per key)."""
    return _mix(_mix(keys) ^ _wrapped((number + 1) * 0x85EBCA6B))


def uniform(keys: Tensor, shape: torch.Size | tuple[int, ...], *, draw: int | Tensor = 0) -> Tensor:
    """(N, *shape) float32, uniform on the open interval (0, 1); `draw` numbers the independent draws of one key."""
    elements = torch.arange(math.prod(shape), dtype=torch.int32, device=keys.device)
    streams = _mix(_mix(keys) ^ _wrapped((draw + 1) * 0x9E3779B1))[:, None]
    bits = _mix(_mix(elements ^ streams) + streams)
    return ((bits >> 9 & 0x7FFFFF).float() + 0.5).div_(1 << 23).view(-1, *shape)  # 24 bits of mantissa: exact


def below(bound: int, keys: Tensor) -> Tensor:
    """(N,) int64, uniform from 0 to bound − 1."""
    return (uniform(keys, (1,)).squeeze(1) * bound).long()


def normal(keys: Tensor, shape: torch.Size | tuple[int, ...], *, draw: int | Tensor = 0) -> Tensor:
    """(N, *shape) float32, standard normal."""
    half = -(-math.prod(shape) // 2)
    first, second = uniform(keys, (2, half), draw=draw).unbind(1)  # Box and Muller 1958: two normal numbers from these
    radius, angle = (-2 * first.log()).sqrt_(), 2 * math.pi * second
    both = torch.cat([radius * angle.cos(), radius * angle.sin()], 1)
    return both[:, : math.prod(shape)].view(-1, *shape)


def _mix(x: Tensor) -> Tensor:
    """A bijection of int32 in which every input bit flips every output bit half of the time (Mueller's hash).

    Products wrap modulo 2³²; shifts keep the sign, whose copies are masked out. Processors multiply twice as many and
    more integers of 32 bits at once than of 64.
    """
    x = (x ^ (x >> 16 & 0xFFFF)) * 0x45D9F3B
    x = (x ^ (x >> 16 & 0xFFFF)) * 0x45D9F3B
    return x ^ (x >> 16 & 0xFFFF)


def _wrapped(x: int | Tensor) -> int | Tensor:
    """Modulo 2³², as the int32 of these bits."""
    x = (x + 2**31) % 2**32 - 2**31
    return x.int() if isinstance(x, Tensor) else x
