import pytest
import torch
from torch import Generator

from robust_features.adam import RowAdam

pytestmark = pytest.mark.numeric


def test_it_is_torchs_adam():
    generator = Generator().manual_seed(0)
    ours = torch.randn(5, 7, generator=generator, dtype=torch.float64)
    theirs = ours.clone().requires_grad_(True)
    adam, peer = RowAdam(ours, 0.1), torch.optim.Adam([theirs], lr=0.1)
    for _ in range(50):
        scale = 10 ** torch.randint(-9, 3, (1,), generator=generator).item()
        gradient = torch.randn(5, 7, generator=generator, dtype=torch.float64) * scale
        adam.step(gradient)
        theirs.grad = gradient
        peer.step()
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-10, atol=1e-12)


def test_rows_that_go_on_are_moved_as_if_alone():
    gradients = torch.randn(10, 5, 7, generator=Generator().manual_seed(0))
    together, alone = RowAdam(torch.zeros(5, 7), 0.1), RowAdam(torch.zeros(2, 7), 0.1)
    going = torch.tensor([False, True, False, False, True])
    for number, gradient in enumerate(gradients):
        if number == 4:
            together.select(going)
        together.step(gradient if number < 4 else gradient[going])
        alone.step(gradient[going])
    assert torch.equal(together.value, alone.value)
