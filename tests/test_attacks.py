"""Oracles: a linear classifier, whose worst perturbation has a closed form, and foolbox on a small network."""

import foolbox
import pytest
import torch
from torch import Generator, nn

from robust_features.attacks import PGD, Ball, CarliniWagner, l2, linf, margin
from robust_features.models import VGG16, build, frozen


class Linear(nn.Module):
    """Two classes, logits ± (w·x + b)."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.weight = scale * torch.randn(3 * 8 * 8, generator=Generator().manual_seed(1), dtype=torch.float64)

    def forward(self, images):
        score = (images.flatten(1) - 0.5) @ self.weight
        return torch.stack([score, -score], 1)


def images(count=16, dtype=torch.float64):
    return 0.5 + 0.2 * (torch.rand(count, 3, 8, 8, generator=Generator().manual_seed(0)).to(dtype) - 0.5)


def draws():
    return Generator().manual_seed(0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("epsilon", [0.0, 0.01, 0.05, 0.2])
def test_pgd_on_a_linear_classifier_reaches_the_dual_norm_optimum(norm, epsilon):
    model, x = Linear(), images()
    y = model(x).argmax(1)
    attack = PGD(norm=norm, epsilon=epsilon, step_size=epsilon / 4, steps=10, random_start=False)
    fall = margin(model(x), y) - margin(model(attack(model, x, y, generator=draws())), y)
    dual = model.weight.abs().sum() if norm == "linf" else model.weight.norm()
    torch.testing.assert_close(fall, (2 * epsilon * dual).expand_as(fall), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("norm, size", [("linf", linf), ("l2", l2)])
@pytest.mark.parametrize("epsilon", [0.0, 8 / 255, 0.5, 1.0])
@pytest.mark.parametrize("random_start", [True, False])
def test_pgd_stays_in_the_ball_and_in_the_pixel_range(norm, size, epsilon, random_start):
    x = torch.rand(8, 3, 8, 8, generator=draws())
    attack = PGD(norm=norm, epsilon=epsilon, step_size=0.3 * epsilon, steps=5, random_start=random_start)
    found = attack(Linear().float(), x.double(), torch.zeros(8, dtype=torch.long), generator=draws())
    assert size(found - x).max() <= epsilon + 1e-6
    assert found.min() >= 0 and found.max() <= 1


def test_a_zero_gradient_moves_nothing():
    x = images()
    attack = PGD(epsilon=0.1, step_size=0.1, steps=3, random_start=False, norm="l2")
    assert torch.equal(attack(Linear(scale=0.0), x, torch.zeros(16, dtype=torch.long), generator=draws()), x)


def test_a_targeted_attack_reaches_its_target():
    model, x = Linear(), images()
    targets = 1 - model(x).argmax(1)
    attack = PGD(epsilon=0.2, step_size=0.05, targeted=True)
    assert (model(attack(model, x, targets, generator=draws())).argmax(1) == targets).all()


@pytest.fixture(scope="module")
def network():
    network = build(VGG16(width=0.0625), 10, seed=0)
    with torch.no_grad():  # batch statistics of these inputs, so that the untrained network is not constant
        for _ in range(20):
            network(torch.rand(32, 3, 32, 32, generator=Generator().manual_seed(2)))
        network.stages["logits"].weight.mul_(100)
    return network


@pytest.mark.parametrize("epsilon", [0.0, 0.01, 8 / 255, 0.1])
@pytest.mark.parametrize(
    "norm, peer, steps",
    [
        ("linf", foolbox.attacks.FGSM(random_start=False), 1),
        ("linf", foolbox.attacks.LinfPGD(abs_stepsize=0.01, steps=7, random_start=False), 7),
        ("l2", foolbox.attacks.L2PGD(abs_stepsize=0.01, steps=7, random_start=False), 7),
    ],
    ids=["fgsm", "linf", "l2"],
)
def test_fgsm_bim_and_pgd_agree_with_foolbox(network, norm, peer, steps, epsilon):
    x = torch.rand(8, 3, 32, 32, generator=Generator().manual_seed(3))
    with frozen(network):
        y = network(x).argmax(1)
        bounded = foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")
        theirs, _, _ = peer(bounded, x, foolbox.criteria.Misclassification(y), epsilons=epsilon)
        step = epsilon if steps == 1 else 0.01
        attack = PGD(norm=norm, epsilon=epsilon, step_size=step, steps=steps, random_start=False)
        ours = attack(network, x, y, generator=draws())
    assert (ours - theirs).abs().max() < 1e-4
    assert torch.equal(network.eval()(ours).argmax(1), network(theirs).argmax(1))


def test_carlini_wagner_on_a_linear_classifier_finds_the_hyperplane():
    model, x = Linear(), images(32)
    y = model(x).argmax(1)
    distance = (margin(model(x), y) / 2 / model.weight.norm()).abs()
    found = CarliniWagner(c=1.0, steps=400, learning_rate=0.002)(model, x, y, generator=draws())
    assert (model(found).argmax(1) != y).all()
    ratio = l2(found - x) / distance
    assert ratio.min() >= 0.999 and ratio.median() < 1.05


def test_carlini_wagner_returns_what_it_cannot_fool_bit_for_bit_and_bears_black_and_white():
    x = torch.rand(8, 3, 8, 8, generator=draws()).round().double()
    y = Linear()(x).argmax(1)
    weak = CarliniWagner(c=1e-9, steps=3)(Linear(), x, y, generator=draws())
    strong = CarliniWagner(c=100.0, steps=30)(Linear(), x, y, generator=draws())
    assert torch.equal(weak, x)
    assert strong.isfinite().all() and strong.min() >= 0 and strong.max() <= 1


def test_the_margin_is_right_when_all_logits_are_negative():
    logits = torch.tensor([[-1.0, -3.0, -2.0]]).log_softmax(1)
    torch.testing.assert_close(margin(logits, torch.tensor([0])), torch.tensor([1.0]))
    torch.testing.assert_close(margin(logits, torch.tensor([1])), torch.tensor([-2.0]))


def test_the_starting_noise_fills_the_ball():
    x = torch.full((2000, 3, 2, 2), 0.5)
    radius = l2(Ball("l2", 0.1).sample(x, draws()) - x) / 0.1
    assert ((radius**12).mean() - 0.5).abs() < 0.03, "radius^dimension is uniform for a uniform point of a ball"
    offset = (Ball("linf", 0.1).sample(x, draws()) - x) / 0.1
    assert offset.abs().max() <= 1 + 1e-5 and (offset.var() - 1 / 3).abs() < 0.02


def test_an_infinite_ball_leaves_only_the_pixel_range():
    far = torch.tensor([-3.0, 0.4, 7.0]).view(1, 3, 1, 1)
    for norm in ("l2", "linf"):
        projected = Ball(norm, float("inf")).project(far, torch.zeros(1, 3, 1, 1))
        torch.testing.assert_close(projected, far.clamp(0, 1))
