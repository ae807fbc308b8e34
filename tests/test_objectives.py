import pytest
import torch
from torch import Generator
from torch.distributions import Categorical, kl_divergence
from torch.nn import functional as F

from robust_features.attacks import PGD, linf
from robust_features.networks import VGG16, build
from robust_features.training import objectives
from robust_features.training.objectives import Adversarial, Mart, Standard, Trades, TradesKim, divergence

pytestmark = pytest.mark.numeric

ATTACK = PGD(epsilon=0.03, step_size=0.01, steps=2)
STILL = PGD(epsilon=0.0, step_size=0.0, steps=1)


@pytest.fixture
def batch():
    network = build(VGG16(width=0.0625), 10, seed=0).eval()
    return network, torch.rand(6, 3, 32, 32, generator=Generator().manual_seed(0)), torch.arange(6)


def loss(objective, batch):
    network, images, labels = batch
    return objective(network, images, labels, generator=Generator().manual_seed(0)).loss


@pytest.mark.parametrize("objective", [Trades(attack=ATTACK, weight=0.0), Adversarial(attack=STILL)], ids=repr)
def test_without_weight_or_epsilon_nothing_but_standard_training_is_left(objective, batch):
    torch.testing.assert_close(loss(objective, batch), loss(Standard(), batch))


def test_trades_kim_without_weight_is_adversarial_training(batch):
    torch.testing.assert_close(loss(TradesKim(attack=ATTACK, weight=0), batch), loss(Adversarial(attack=ATTACK), batch))


def test_divergence_is_that_of_the_two_categorical_distributions():
    a, b = torch.randn(5, 10), torch.randn(5, 10)
    exact = kl_divergence(Categorical(logits=a), Categorical(logits=b))
    torch.testing.assert_close(divergence(a, b), exact)


def test_mart_on_clean_images_is_its_boosted_cross_entropy(batch):
    network, images, labels = batch
    p = network(images).softmax(1)
    others = torch.stack([torch.cat([row[:y], row[y + 1 :]]).max() for row, y in zip(p, labels, strict=True)])
    expected = F.nll_loss(p.log(), labels) - (1.0001 - others).log().mean()
    torch.testing.assert_close(loss(Mart(attack=STILL), batch), expected)


def test_the_inner_problem_of_trades_raises_the_divergence_within_the_ball(batch, monkeypatch):
    network, images, _ = batch
    ascend, ended = objectives.ascend, []
    monkeypatch.setattr(objectives, "ascend", lambda *a, **options: ended.append(ascend(*a, **options)) or ended[-1])
    loss(Trades(attack=PGD(epsilon=0.03, step_size=0.01, steps=8)), batch)
    assert linf(ended[0] - images).max() <= 0.03 + 1e-6
    sign = torch.randn(images.shape, generator=Generator().manual_seed(1)).sign()
    corner = (images + 0.03 * sign).clamp(0, 1)  # as far away, but anywhere
    found, chance = (divergence(network(images), network(x)).sum() for x in (ended[0], corner))
    assert found > 20 * chance.abs()


@pytest.mark.parametrize("objective", [Adversarial, Trades, TradesKim, Mart])
def test_crafting_leaves_training_mode_and_reaches_the_weights(objective, batch):
    network, _, _ = batch
    network.train()
    loss(objective(attack=ATTACK), batch).backward()
    assert network.training
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())
