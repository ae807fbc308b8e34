"""Several attempts at each image, one towards each of its likeliest wrong classes."""

from collections.abc import Callable

import torch
from torch import Tensor


def each_target(
    attempt: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], images: Tensor, right: Tensor, count: int
) -> Tensor:
    """`images` with those that are `right`, (N,) bool, replaced by their first successful attempt of `count`, if any.

    `attempt` maps rows of the batch and the number of the attempt, each (n,), to candidates and which of them are
    fooled. Only images that no attempt has fooled go on, and if these are few, several attempts are made at once:
    memory stays that of the batch, and the result is the same as one after the other.
    """
    found, rows, number = images.clone(), right.nonzero().squeeze(1), 0
    while number < count and len(rows):
        together = min(count - number, len(images) // len(rows))
        numbers = torch.arange(number, number + together, device=rows.device).repeat_interleave(len(rows))
        candidates, fooled = attempt(rows.repeat(together), numbers)
        candidates, fooled = candidates.unflatten(0, (together, -1)), fooled.view(together, -1)
        first, success = fooled.int().argmax(0), fooled.any(0)
        chosen = candidates[first, torch.arange(len(rows), device=rows.device)]
        found[rows[success]] = chosen[success]
        rows, number = rows[~success], number + together
    return found
