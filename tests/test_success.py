"""Success flags, and an attack within several radii."""

import pytest
import torch
from torch import Generator, nn

from robust_features.attacks import (
    APGD,
    FAB,
    NIFGSM,
    PGD,
    Adaptive,
    AutoAttack,
    CarliniWagner,
    FeatureGradient,
    Square,
    fooled,
    linf,
    scaled,
)
from robust_features.networks import VGG16, build

pytestmark = pytest.mark.numeric
PGD_4 = PGD(epsilon=0.1, step_size=0.05, steps=4)
BALLS = [PGD_4, NIFGSM(epsilon=0.1, step_size=0.05, steps=3), APGD(epsilon=0.1, steps=5), FAB(epsilon=0.1, steps=3, targets=1),
         Square(epsilon=0.1, queries=5), Adaptive(pgd=PGD_4), AutoAttack(epsilon=0.1, steps=2, targets=1, queries=3)]  # fmt: skip


@pytest.fixture
def batch():
    network = build(VGG16(width=0.0625), 10, seed=0).eval()
    images = torch.rand(6, 3, 32, 32, generator=Generator().manual_seed(0))
    return network, images, network(images).argmax(1)


@pytest.mark.parametrize("attack", BALLS, ids=lambda attack: attack.kind)
@pytest.mark.parametrize("epsilon", [0.02, 0.3])
def test_an_attack_stays_within_the_epsilon_it_is_scaled_to(batch, attack, epsilon):
    network, images, labels = batch
    found = scaled(attack, epsilon)(network, images, labels)
    assert scaled(attack, epsilon).epsilon == epsilon
    assert linf(found - images).max() <= epsilon + 1e-6


def test_steps_keep_their_length_in_units_of_epsilon():
    assert scaled(PGD_4, 0.4).step_size == pytest.approx(0.2)
    assert scaled(Adaptive(pgd=PGD_4), 0.4).pgd.step_size == pytest.approx(0.2)


@pytest.mark.parametrize("attack", [CarliniWagner(), FeatureGradient(), PGD(epsilon=0.0, step_size=0.0)])
def test_an_attack_without_epsilon_is_refused(attack):
    with pytest.raises(ValueError, match="no epsilon"):
        scaled(attack, 0.1)


def test_the_flags_are_what_the_network_says_of_each_image(batch):
    network, images, labels = batch
    assert not fooled(network, images, labels).any()
    assert fooled(network, images, (labels + 1) % 10).all()
    with pytest.raises(ValueError, match="NaN"):
        fooled(
            nn.Sequential(nn.Flatten(), nn.Linear(3072, 10).apply(lambda layer: layer.weight.data.fill_(torch.nan))),
            images,
            labels,
        )
