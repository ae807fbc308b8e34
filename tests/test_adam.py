import torch
from torch import Generator

from robust_features.adam import Adam


def test_it_is_torchs_adam():
    generator = Generator().manual_seed(0)
    ours = torch.randn(5, 7, generator=generator, dtype=torch.float64)
    theirs = ours.clone().requires_grad_(True)
    adam, peer = Adam(ours, 0.1), torch.optim.Adam([theirs], lr=0.1)
    for _ in range(50):
        gradient = torch.randn(5, 7, generator=generator, dtype=torch.float64) * 10 ** torch.randint(-9, 3, (1,)).item()
        adam.step(gradient)
        theirs.grad = gradient
        peer.step()
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-10, atol=1e-12)
