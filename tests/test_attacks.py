"""Oracles: a linear classifier, whose worst perturbation has a closed form, and foolbox on a small network."""

from dataclasses import replace

import foolbox
import numpy as np
import pytest
import torch
from precise import precise
from scipy import optimize
from torch import Generator, nn

from robust_features.attacks import (
    APGD,
    FAB,
    NIFGSM,
    PGD,
    Adaptive,
    AutoAttack,
    Ball,
    CarliniWagner,
    FeatureGradient,
    Square,
    l2,
    linf,
    margin,
    square,  # the module
)
from robust_features.attacks.apgd import dlr, targeted_dlr
from robust_features.attacks.fab import to_hyperplane
from robust_features.attacks.tanh import feature_term
from robust_features.attacks.targets import each_target
from robust_features.bottleneck import Bottleneck
from robust_features.networks import VGG16, build, folded, frozen
from robust_features.regularisers import IBRAR

pytestmark = pytest.mark.numeric


class Linear(nn.Module):
    """Two classes, logits ± (w·x + b)."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.weight = scale * torch.randn(3 * 8 * 8, generator=Generator().manual_seed(1), dtype=torch.float64)

    def forward(self, images):
        score = (images.flatten(1) - 0.5) @ self.weight
        return torch.stack([score, -score], 1)


class FourClasses(Linear):
    """The same two, and two classes that are never likely."""

    def forward(self, images):
        score = (images.flatten(1) - 0.5) @ self.weight
        return torch.stack([score, -score, score - 1000, -score - 1000], 1)


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


@pytest.mark.parametrize("loss", ["ce", "scaled-ce", "margin"])
def test_only_the_cross_entropy_is_blinded_by_confident_logits(loss):
    model, x = Linear(scale=1e4), images()
    y = model(x).argmax(1)
    attack = PGD(epsilon=0.2, step_size=0.05, random_start=False, loss=loss)
    fooled = model(attack(model, x, y, generator=draws())).argmax(1) != y
    assert fooled.float().mean() < 0.5 if loss == "ce" else fooled.all()


def test_restarts_take_up_only_what_is_not_fooled_yet():
    model, x = Linear(), images()
    y = model(x).argmax(1)
    distance = margin(model(x), y).abs() / (2 * model.weight.abs().sum())
    attack = PGD(epsilon=float(distance.quantile(0.6)), step_size=0.002, steps=1)  # one step from a random start: luck
    counts = []
    for restarts in (1, 3, 30):
        found = replace(attack, restarts=restarts)(model, x, y, generator=draws())
        counts.append(model(found).argmax(1) != y)
    assert (counts[0] <= counts[1]).all() and (counts[1] <= counts[2]).all() and counts[2].sum() > counts[0].sum()


def test_the_adaptive_attack_without_weights_is_pgd_and_with_them_it_follows_their_sign(network, photographs):
    x, y = photographs
    pgd = PGD(epsilon=0.05, step_size=0.01, steps=5)
    with frozen(network):
        still = Adaptive(pgd=pgd, regulariser=IBRAR(alpha=0, beta=0))(network, x, y, generator=draws())
        assert torch.equal(still, pgd(network, x, y, generator=draws()))
        values = []
        for sign in (1, -1):
            attack = Adaptive(pgd=pgd, regulariser=IBRAR(alpha=100.0, beta=100.0), sign=sign)
            found = attack(network, x, y, generator=draws())
            assert linf(found - x).max() <= 0.05 + 1e-6 and found.min() >= 0 and found.max() <= 1
            values.append(attack.regulariser(network, (network.activations(found),), x, y, given=(x,)))
    assert values[0] > values[1]


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


BOUNDED = [
    PGD(epsilon=0.05, step_size=0.02, until="fooled"),
    PGD(epsilon=0.05, step_size=0.02, until="fooled", loss="margin", restarts=3),
    NIFGSM(epsilon=0.05, step_size=0.02),
    APGD(epsilon=0.05, steps=10),
    APGD(epsilon=0.05, steps=10, loss="dlr"),
    APGD(epsilon=0.05, steps=5, targets=3),
    APGD(epsilon=0.5, steps=10, norm="l2"),
    FAB(epsilon=0.05, steps=5),
    FAB(epsilon=0.05, steps=5, targets=2),
    FAB(epsilon=0.5, steps=5, targets=2, norm="l2"),
    Square(epsilon=0.05, queries=20),
    AutoAttack(epsilon=0.05, steps=4, targets=2, queries=10),
    CarliniWagner(c=10.0, steps=10, epsilon=0.05),
    FeatureGradient(c=10.0, steps=10, epsilon=0.05, bottleneck=Bottleneck(steps=5)),
]
UNBOUNDED = [
    CarliniWagner(c=10.0, steps=10),
    *(
        FeatureGradient(c=1.0, steps=8, units=units, direction=direction, bottleneck=Bottleneck(steps=5))
        for units in ("robust", "nonrobust")
        for direction in ("raise", "lower")
    ),
]


def brief(attack):
    changed = {k: v for k, v in vars(attack).items() if k in ("loss", "norm", "targets", "units", "direction") and v}
    return "-".join(map(str, (attack.kind, *changed.values())))


@pytest.fixture(scope="module")
def photographs(network):
    x = torch.rand(12, 3, 32, 32, generator=Generator().manual_seed(3))
    with torch.no_grad():
        y = network.eval()(x).argmax(1)
    y[:2] = (y[:2] + 1) % 10  # two that are misclassified as they are
    return x, y


@pytest.mark.parametrize("attack", BOUNDED, ids=brief)
def test_budget_attacks_stay_in_the_ball_and_in_the_pixel_range(network, photographs, attack):
    x, y = photographs
    found = attack(folded(network), x, y, generator=draws())
    size = l2 if getattr(attack, "norm", "linf") == "l2" else linf
    assert size(found - x).max() <= attack.epsilon + 1e-6
    assert found.min() >= 0 and found.max() <= 1


@pytest.mark.parametrize("attack", [a for a in (*BOUNDED, *UNBOUNDED) if a.kind not in ("pgd", "nifgsm")], ids=brief)
def test_what_is_changed_is_fooled_and_what_is_wrong_already_is_left_alone(network, photographs, attack):
    x, y = photographs
    network = precise(network)
    found = attack(folded(network), x, y, generator=draws())
    changed = linf(found - x) > 0
    assert not changed[:2].any()
    assert changed.any() or attack.kind == "feature-gradient" and attack.direction == "lower"
    assert (network.eval()(found[changed]).argmax(1) != y[changed]).all()


@pytest.mark.parametrize("attack", [*BOUNDED, *UNBOUNDED], ids=brief)
def test_an_image_is_attacked_alike_in_any_batch(network, photographs, attack):
    x, y = photographs
    model, generator = folded(precise(network)), draws()
    whole = attack(model, x, y, generator=draws())
    parts = [attack(model, a, b, generator=generator) for a, b in zip(x.split(5), y.split(5), strict=True)]
    torch.testing.assert_close(whole, torch.cat(parts), rtol=0, atol=1e-4)


@pytest.mark.parametrize("attack", [BOUNDED[0], UNBOUNDED[-1]], ids=brief)
def test_an_attack_that_is_given_no_generator_draws_as_with_the_seed_0_each_time(network, photographs, attack):
    x, y = photographs
    model, seeded = folded(network), attack(folded(network), x, y, generator=Generator().manual_seed(0))
    assert all(torch.equal(attack(model, x, y), seeded) for _ in range(2))
    if getattr(attack, "random_start", False):
        assert not torch.equal(attack(model, x, y, generator=Generator().manual_seed(1)), seeded)


def test_an_image_rests_at_its_first_misclassified_iterate(network, photographs):
    (x, y), network = photographs, precise(network).eval()
    attack = PGD(epsilon=0.1, step_size=0.01, steps=10, random_start=False, until="fooled")
    rested = attack(folded(network), x, y, generator=draws())
    for number, image in enumerate(rested):
        for steps in range(1, 11):
            shorter = replace(attack, until="end", steps=steps)
            iterate = shorter(folded(network), x[number : number + 1], y[number : number + 1], generator=draws())
            if network(iterate).argmax(1) != y[number] or network(x[number : number + 1]).argmax(1) != y[number]:
                break
        first = x[number] if number < 2 else iterate[0]
        torch.testing.assert_close(image, first, rtol=0, atol=1e-5)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_apgd_on_a_linear_classifier_stops_at_the_epsilon_that_suffices(norm):
    model, x = FourClasses(), images(32)
    y = model(x).argmax(1)
    dual = model.weight.norm() if norm == "l2" else model.weight.abs().sum()
    distance = (margin(model(x), y) / 2 / dual).max().item()
    enough, little = (
        APGD(epsilon=share * distance, steps=40, norm=norm)(model, x, y, generator=draws()) for share in (1.05, 0.0)
    )
    assert (model(enough).argmax(1) != y).all() and torch.equal(little, x)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("targets", [0, 3])
def test_fab_finds_the_hyperplane_of_a_linear_classifier(norm, targets):
    model, x = FourClasses(), images(16)
    y = model(x).argmax(1)
    dual = model.weight.norm() if norm == "l2" else model.weight.abs().sum()
    distance = margin(model(x), y) / 2 / dual
    for row in range(16):
        one, label = x[row : row + 1], y[row : row + 1]
        just, short = (
            FAB(epsilon=share * distance[row].item(), steps=5, targets=targets, norm=norm)(
                model, one, label, generator=draws()
            )
            for share in (1.06, 0.99)
        )
        assert (model(just).argmax(1) != label).all() and torch.equal(short, one)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_projection_on_a_hyperplane_is_the_nearest_point_of_the_box(norm):
    generator = Generator().manual_seed(4)
    x = torch.rand(6, 1, 1, 5, generator=generator, dtype=torch.float64)
    g = torch.randn(6, 1, 1, 5, generator=generator, dtype=torch.float64)
    for scale in (0.1, 0.5):
        corner = torch.where(g > 0, 1 - x, -x)
        residual = scale * (g * corner).flatten(1).sum(1)
        found = to_hyperplane(x, g, residual, norm).flatten(1)
        assert ((x.flatten(1) + found) > -1e-9).all() and ((x.flatten(1) + found) < 1 + 1e-9).all()
        torch.testing.assert_close((g.flatten(1) * found).sum(1), residual)
        for row in range(6):  # an oracle: scipy's linear and quadratic programmes
            best = nearest_by_scipy(x[row].flatten(), g[row].flatten(), residual[row].item(), norm)
            size = found[row].abs().max() if norm == "linf" else found[row].norm()
            assert size.item() == pytest.approx(best, rel=1e-3, abs=1e-6)


def nearest_by_scipy(x, g, residual, norm):
    x, g, n = x.numpy(), g.numpy(), len(x)
    if norm == "linf":  # minimise t with |δ| ≤ t
        rows = np.block([[np.eye(n), -np.ones((n, 1))], [-np.eye(n), -np.ones((n, 1))]])
        bounds = [*zip(-x, 1 - x, strict=True), (0, None)]
        costs = np.r_[np.zeros(n), 1]
        return optimize.linprog(costs, rows, np.zeros(2 * n), [[*g, 0]], [residual], bounds).fun
    constraint = {"type": "eq", "fun": lambda d: g @ d - residual}
    found = optimize.minimize(
        lambda d: d @ d, np.zeros(n), bounds=[*zip(-x, 1 - x, strict=True)], constraints=[constraint]
    )
    return np.linalg.norm(found.x)


def test_the_dlr_loss_does_not_change_when_logits_are_scaled_and_shifted():
    logits = torch.randn(6, 10, generator=draws(), dtype=torch.float64)
    labels, targets = torch.arange(6), torch.arange(6) + 2
    other = 37 * logits - 5
    torch.testing.assert_close(dlr(logits, labels), dlr(other, labels))
    torch.testing.assert_close(targeted_dlr(logits, labels, targets), targeted_dlr(other, labels, targets))
    first = dlr(torch.tensor([[4.0, 3.0, 1.0, 0.0]]), torch.tensor([0]))
    torch.testing.assert_close(first, torch.tensor([-1 / 3]))


def test_autoattack_is_at_least_as_strong_as_each_of_its_parts(network, photographs):
    x, y = photographs
    whole = AutoAttack(epsilon=0.02, steps=4, targets=2, queries=10)
    model = folded(network)
    left = (model(whole(model, x, y, generator=draws())).argmax(1) == y).sum()
    for part in whole.parts:
        assert left <= (model(part(model, x, y, generator=draws())).argmax(1) == y).sum() + 1


class FewClasses(Linear):
    """The same two, and with `classes` = 3 one whose logit is always zero: a rival where the two others nearly tie."""

    def __init__(self, classes):
        super().__init__()
        self.classes = classes

    def forward(self, images):
        logits = super().forward(images)
        return torch.cat([logits, torch.zeros_like(logits[:, : self.classes - 2])], 1)


@pytest.mark.parametrize("classes", [2, 3])
def test_autoattack_on_few_classes_finds_what_the_epsilon_suffices_for_and_nothing_else(classes):
    model, x = FewClasses(classes), images(16)
    y = model(x).argmax(1)
    nearest = margin(model(x), y) / model.weight.abs().sum() / (2 if classes == 2 else 1)
    for row in range(16):
        one, label = x[row : row + 1], y[row : row + 1]
        for share in (1.06, 0.99):
            attack = AutoAttack(epsilon=share * nearest[row].item(), steps=20, targets=1, queries=20)
            assert (model(attack(model, one, label, generator=draws())).argmax(1) != label) == (share > 1)


@pytest.mark.parametrize("classes, loss", [(2, []), (3, [("dlr", 0)]), (4, [("dlr", 5)])])
def test_autoattack_takes_the_ratio_that_the_classes_allow(monkeypatch, classes, loss):
    seen, x = [], images(2)
    monkeypatch.setattr(APGD, "perturb", lambda self, m, x, y, generator: seen.append((self.loss, self.targets)) or x)
    model = FourClasses() if classes == 4 else FewClasses(classes)
    AutoAttack(epsilon=0.0, targets=5, steps=1, queries=1)(model, x, model(x).argmax(1), generator=draws())
    assert seen == [("ce", 0), *loss]


@pytest.mark.parametrize("epsilon", [0.0, 0.01, 0.9])
@pytest.mark.parametrize("targets, needed", [(0, 3), (9, 4)])
def test_the_dlr_loss_refuses_too_few_logits_at_once_whatever_the_epsilon(epsilon, targets, needed):
    attack, x = APGD(epsilon=epsilon, loss="dlr", targets=targets, steps=5), images(4)
    for classes in (2, 3):
        model = FewClasses(classes)
        y = 1 - model(x)[:, :2].argmax(1)  # all misclassified as they are
        if classes < needed:
            with pytest.raises(ValueError, match=f"compares {needed} logits, the network has {classes}: use loss: ce"):
                attack(model, x, y, generator=draws())
        else:
            assert torch.equal(attack(model, x, y, generator=draws()), x)


@pytest.mark.parametrize("epsilon", [None, 0.3])
@pytest.mark.parametrize("confidence", [0.0, 0.5, 2.0])
def test_carlini_wagner_finds_images_that_are_misclassified_with_confidence(confidence, epsilon):
    model, x = Linear(), images(32)
    y = model(x).argmax(1)
    y[:4] = 1 - y[:4]  # misclassified as they are, some by less than the confidence
    distance = (margin(model(x), y) + confidence).clamp_min(0) / 2 / model.weight.norm()
    attack = CarliniWagner(c=1.0, steps=400, learning_rate=0.002, confidence=confidence, epsilon=epsilon)
    found = attack(model, x, y, generator=draws())
    assert (-margin(model(found), y) >= confidence - 1e-4).all()
    still = distance == 0
    assert torch.equal(found[still], x[still]) and still.any() == (-margin(model(x), y) >= confidence).any()
    assert (l2(found - x)[~still] / distance[~still]).median() < 1.05


def test_nifgsm_without_momentum_is_bim(network, photographs):
    x, y = photographs
    how = dict(epsilon=0.05, step_size=0.02, steps=4)
    ours = NIFGSM(**how, decay=0.0)(folded(network), x, y, generator=draws())
    bim = PGD(**how, random_start=False)(folded(network), x, y, generator=draws())
    torch.testing.assert_close(ours, bim)


def test_the_feature_term_written_out_has_no_gradient_behind_a_piecewise_linear_head(network, photographs):
    x, y = photographs
    how = dict(c=10.0, steps=10, checks=3)
    nrf = FeatureGradient(**how, order="second", bottleneck=Bottleneck(steps=5))(
        folded(network), x, y, generator=draws()
    )
    cw = CarliniWagner(**how)(folded(network), x, y, generator=draws())
    torch.testing.assert_close(nrf, cw, rtol=0, atol=1e-4)


@pytest.mark.parametrize("unit, length", [("image", 3**0.5), ("batch", 1.0)])
def test_the_feature_term_as_it_is_run_pushes_along_a_unit_vector_on_the_given_channels(unit, length):
    z = torch.rand(3, 4, 2, 2, generator=draws()).requires_grad_(True)
    channels = torch.tensor([1.0, 1.0, 0.0, 0.0]).view(1, 4, 1, 1).expand(3, 4, 1, 1)
    term = feature_term(z.square().flatten(1).sum(1), z, channels, order="first", unit=unit)
    (push,) = torch.autograd.grad(term.sum(), z)
    assert (push[:, 2:] == 0).all() and push.norm().item() == pytest.approx(length, rel=1e-5)
    torch.testing.assert_close(push[0, :2] / push[0].norm(), -(z / z[:, :2].flatten(1).norm(dim=1)[0])[0, :2].detach())


@pytest.mark.parametrize("units", ["robust", "nonrobust"])
def test_without_weight_the_feature_gradient_is_carlini_wagner(network, photographs, units):
    x, y = photographs
    how = dict(c=10.0, steps=10, checks=3)
    feature = FeatureGradient(**how, units=units, weight=0.0, bottleneck=Bottleneck(steps=5))
    same = feature(folded(network), x, y, generator=draws())
    torch.testing.assert_close(same, CarliniWagner(**how)(folded(network), x, y, generator=draws()), rtol=0, atol=1e-4)


def test_raising_the_gradient_of_the_nonrobust_features_fools_more_than_lowering_it(network, photographs):
    x, y = photographs
    how = dict(c=1.0, weight=100.0, steps=15, bottleneck=Bottleneck(steps=20))
    raised, lowered = (
        folded(network)(FeatureGradient(**how, direction=direction)(folded(network), x, y, generator=draws())).argmax(1)
        for direction in ("raise", "lower")
    )
    assert (raised == y).sum() < (lowered == y).sum()


def test_square_lowers_the_margin_only(network, photographs):
    x, y = photographs
    left = [
        (folded(network)(Square(epsilon=0.1, queries=q)(folded(network), x, y, generator=draws())).argmax(1) == y).sum()
        for q in (1, 20, 100)
    ]
    assert left[0] >= left[1] >= left[2] and left[0] > left[2]


@pytest.mark.parametrize("together", [7, 64])
def test_squares_tried_at_once_end_as_one_after_the_other(network, photographs, monkeypatch, together):
    x, y = photographs
    precise = folded(network).double()

    def found(at_once):
        monkeypatch.setattr(square, "TOGETHER", at_once)
        return Square(epsilon=0.05, queries=60)(precise, x.double(), y, generator=draws())

    assert torch.equal(found(together), found(1)) and not torch.equal(found(1), x.double())


def test_attempts_made_at_once_end_as_one_after_the_other():
    seen = []

    def attempt(rows, numbers):  # image i falls to attempt i, except for image 4, which falls to none
        seen.append((rows.tolist(), numbers.tolist()))
        fooled = (rows == numbers) & (rows != 4)
        return (100 + 10 * numbers + rows).float().view(-1, 1, 1, 1), fooled

    found = each_target(attempt, torch.zeros(6, 1, 1, 1), torch.tensor([True, True, True, False, True, False]), 5)
    assert found.flatten().tolist() == [100, 111, 122, 0, 0, 0]
    assert seen[0] == ([0, 1, 2, 4], [0, 0, 0, 0]) and max(len(rows) for rows, _ in seen) <= 6
    assert seen[1] == ([1, 2, 4] * 2, [1] * 3 + [2] * 3), "three images go on: two attempts fit the batch"
