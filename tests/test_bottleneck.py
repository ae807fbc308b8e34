"""The bottleneck on heads whose answer is known."""

import pytest
import torch
from precise import precise
from torch import Generator, nn
from torch.distributions import Normal, kl_divergence

from robust_features import hardware
from robust_features.bottleneck import Bottleneck, Distillation, distil, information_loss, perturb
from robust_features.networks import VGG16, build
from robust_features.networks.network import GlobalAverage, Network

pytestmark = pytest.mark.numeric

CPU = hardware.choose(hardware.HardwareSettings(device="cpu", precision="fp32"))


def planted(channels=12, informative=4):
    """Logits read the first channels only: those before the pool, all others have weight zero."""
    linear = nn.Linear(channels, 2)
    weight = torch.zeros(2, channels)
    weight[0, :informative], weight[1, :informative] = 3.0, -3.0
    linear.weight, linear.bias = nn.Parameter(weight), nn.Parameter(torch.zeros(2))
    stages = {"z": nn.Identity(), "pool": GlobalAverage(), "logits": linear}
    return Network(stages, split="z", full_channels=channels, representation="pool", hidden=())


def features(count=20, channels=12):
    z = torch.randn(count, channels, 3, 3, generator=Generator().manual_seed(0))
    return z * 0.1 + torch.where(torch.arange(count) % 2 == 0, 0.3, -0.3).view(-1, 1, 1, 1)


def draws(seed=0):
    return Generator().manual_seed(seed)


def run(z, labels, settings, network=None, seed=0):
    return distil(network or planted(), z, labels, settings, hardware=CPU, generator=draws(seed))


def test_the_information_term_is_the_divergence_of_the_two_gaussians():
    variance, sigma = torch.rand(5, 7) + 0.1, torch.rand(5, 7) + 0.1
    exact = kl_divergence(Normal(0.0, variance.sqrt()), Normal(0.0, sigma)).mean(1)
    torch.testing.assert_close(information_loss(variance, sigma), exact)


def test_channels_that_the_prediction_reads_bear_less_noise():
    """Of channels of equal variation, those without weight end at σ_z, those that decide the label well below it."""
    signs = torch.where(torch.arange(20) % 2 == 0, 1.0, -1.0).view(-1, 1, 1, 1)
    pattern = 0.1 * torch.tensor([-1.0, 1.0, 0.0]).repeat(3).view(1, 1, 3, 3)
    z = (0.02 * signs + pattern).expand(20, 12, 3, 3)
    network = planted()
    network.stages["logits"].weight.data.mul_(10)
    found = run(z, (signs.flatten() < 0).long(), Bottleneck(beta=0.05, steps=400), network)
    torch.testing.assert_close(found.sigma[:, 4:], found.variance[:, 4:].sqrt(), rtol=0.02, atol=1e-3)
    assert (found.sigma[:, :4].mean(1) < 0.7 * found.sigma[:, 4:].mean(1)).all()


def test_with_a_large_beta_noise_equals_the_features_own_variation():
    z = features()
    found = run(z, torch.zeros(20, dtype=torch.long), Bottleneck(beta=1e6, steps=1000))
    torch.testing.assert_close(found.sigma.square(), found.variance, rtol=0.02, atol=1e-5)
    torch.testing.assert_close(found.variance, z.flatten(2).var(2))
    assert found.robust.float().mean() < 0.1


def test_sigma_starts_at_ln_two():
    sigma = run(features(), torch.zeros(20, dtype=torch.long), Bottleneck(steps=1, learning_rate=1e-12)).sigma
    torch.testing.assert_close(sigma, torch.full_like(sigma, 0.6931472))


def test_robust_and_nonrobust_features_add_up():
    z = features()
    found = run(z, torch.zeros(20, dtype=torch.long), Bottleneck(beta=0.1, steps=50))
    robust, nonrobust = found.split(z)
    torch.testing.assert_close(robust + nonrobust, z)
    assert (robust * nonrobust == 0).all() and 0 < found.robust.float().mean() < 1


def test_a_channel_is_robust_above_the_tolerance_and_not_at_it():
    found = Distillation(torch.tensor([[2.0, 3.0, 1.0]]), torch.ones(1, 3), torch.tensor([4.0]))
    assert found.robust.tolist() == [[False, True, False]]


@pytest.mark.parametrize("network, shape", [(None, (3, 3)), (VGG16(width=0.0625), (2, 2))], ids=["planted", "vgg16"])
def test_with_a_threshold_per_image_nothing_depends_on_the_batch(network, shape, monkeypatch):
    network = precise(build(network, 10, seed=0) if network else planted())
    z = torch.randn(10, 32 if shape == (2, 2) else 12, *shape, generator=draws(3))
    labels, settings = torch.arange(10) % 2, Bottleneck(steps=30)
    whole = run(z, labels, settings, network)
    for size in (1, 3, 10):
        monkeypatch.setattr("robust_features.hardware.BATCH", size)
        monkeypatch.setattr("robust_features.bottleneck.CHUNK", 1)
        parts = run(z, labels, settings, network)
        torch.testing.assert_close(parts.sigma, whole.sigma, rtol=1e-3, atol=1e-4)
        assert torch.equal(parts.robust, whole.robust)


def test_a_batch_threshold_is_the_largest_variance_of_each_batch():
    z = features()
    found = run(z, torch.zeros(20, dtype=torch.long), Bottleneck(steps=2, threshold="batch", batch_size=10))
    assert torch.equal(found.tolerance, found.variance.view(2, -1).amax(1).repeat_interleave(10))


def test_gradients_reach_the_noise_alone_and_the_network_is_left_as_it_was():
    network = build(VGG16(width=0.0625), 10, seed=0).train()
    z = network.features(torch.rand(4, 3, 32, 32)).detach().requires_grad_(True)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    run(z, torch.zeros(4, dtype=torch.long), Bottleneck(steps=3), network)
    assert z.grad is None and all(p.grad is None for p in network.parameters())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert network.training


def test_narrow_networks_get_beta_by_their_share_of_the_width():
    z, labels = features(), torch.zeros(20, dtype=torch.long)
    narrow = planted()
    narrow.full_channels = 24
    half = run(z, labels, Bottleneck(beta=0.6, steps=40), narrow)
    torch.testing.assert_close(half.sigma, run(z, labels, Bottleneck(beta=0.3, steps=40)).sigma)


def test_features_of_one_position_are_refused():
    with pytest.raises(ValueError, match="one position a channel"):
        run(torch.rand(2, 12, 1, 1), torch.zeros(2, dtype=torch.long), Bottleneck())


def test_perturbing_masked_channels_leaves_the_others():
    z, sigma = features(), torch.ones(20, 12)
    sigma[:, 5:] = 0
    noisy = perturb(z, sigma, generator=draws())
    assert torch.equal(noisy[:, 5:], z[:, 5:]) and not torch.equal(noisy[:, :5], z[:, :5])
    added = (noisy - z)[:, :5]
    torch.testing.assert_close(added, added[:, :, :1, :1].expand_as(added), rtol=0, atol=1e-5)
