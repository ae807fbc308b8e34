"""Adam on one tensor, for searches whose only state is that tensor."""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class RowAdam:
    """Adam (Kingma and Ba 2015, Algorithm 1) with its default decay rates, elementwise: no row influences another.

    torch.optim.Adam does the same, but making one imports torch's compiler, which takes longer than many searches here.
    """

    value: Tensor
    learning_rate: float
    step_count: int = 0
    mean: Tensor = field(init=False)
    square: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.mean, self.square = torch.zeros_like(self.value), torch.zeros_like(self.value)

    @torch.no_grad()
    def step(self, gradient: Tensor) -> None:
        """Move `value` in place against `gradient`."""
        self.step_count += 1
        self.mean.lerp_(gradient, 1 - 0.9)
        self.square.mul_(0.999).addcmul_(gradient, gradient, value=1 - 0.999)
        scale = (self.square / (1 - 0.999**self.step_count)).sqrt_().add_(1e-8)
        self.value.addcdiv_(self.mean, scale, value=-self.learning_rate / (1 - 0.9**self.step_count))

    def select(self, rows: Tensor) -> None:
        """Continue with these rows of `value` only."""
        self.value, self.mean, self.square = self.value[rows], self.mean[rows], self.square[rows]
