"""Whatever comes, every attack, evaluation, distillation and construction takes it alike or refuses it in one line."""

import copy
import warnings

import pytest
import torch
from torch import Generator, nn

from companion.distillations import distil_examples, halves
from companion.evaluations import attack_each
from robust_features import hardware, inputs
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
)
from robust_features.batches import ImageSet
from robust_features.bottleneck import Bottleneck, distil
from robust_features.construction import Relabelled, Robustified, construct
from robust_features.evaluation import attack_all, decide, features, predict
from robust_features.networks import Network
from robust_features.regularisers import IBRAR
from robust_features.training.objectives import Adversarial, Mart, TradesKim

pytestmark = pytest.mark.numeric

CPU = hardware.choose(hardware.HardwareSettings(device="cpu", precision="fp32"))
PGD5 = PGD(epsilon=0.1, step_size=0.03, steps=5)
ATTACKS = [
    PGD5,
    PGD(epsilon=0.5, step_size=0.1, steps=5, norm="l2", until="fooled", restarts=2),
    PGD(epsilon=0.1, step_size=0.1, steps=1, random_start=False),
    NIFGSM(epsilon=0.1, step_size=0.03, steps=5),
    APGD(epsilon=0.1, steps=8),
    APGD(epsilon=0.1, steps=8, loss="dlr", targets=2),
    FAB(epsilon=0.1, steps=5),
    Square(epsilon=0.1, queries=20),
    AutoAttack(epsilon=0.05, steps=5, targets=2, queries=20),
    CarliniWagner(c=10.0, steps=10),
    CarliniWagner(c=10.0, steps=10, epsilon=0.1),
    FeatureGradient(c=10.0, steps=10, bottleneck=Bottleneck(steps=5)),
    Adaptive(pgd=PGD5, regulariser=IBRAR(layers=("conv",))),
]
MAKES = [Relabelled(targets="next", steps=3), Robustified(steps=3), Robustified(steps=3, method="lbfgs")]


@pytest.fixture
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pool, logits = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten()), nn.Linear(32, 10)
        stages = {"conv": nn.Conv2d(3, 8, 3, padding=1), "relu": nn.ReLU(), "pool": pool, "logits": logits}
    network = Network(stages, split="conv").eval().requires_grad_(False)
    for weight in network.parameters():
        weight.mul_(4)
    return network


@pytest.fixture
def batch(network):
    colours, noise = torch.rand(6, 3, 1, 1, generator=draws()), torch.rand(6, 3, 12, 12, generator=draws())
    x = 0.6 * colours + 0.4 * noise
    return x, network(x).argmax(1)


@pytest.fixture
def images(batch):
    x, y = batch
    return ImageSet((255 * x).byte(), y, tuple("abcdefghij"), "mine")


def draws():
    return Generator().manual_seed(0)


def run(attack, network, x, y):
    return attack(network, x, y, generator=draws())


def poisoned(network):
    network.stages["logits"].weight[3, 0] = torch.nan
    return network


every_attack = pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.kind)

WRONG = {
    "bytes as floats": (
        lambda x, y: (255 * x, y),
        r"in \[0, 1\], found \[.*, 2\d\d\..*\]: networks normalise themselves",
    ),
    "normalised": (lambda x, y: (4 * x - 2, y), r"in \[0, 1\], found \[-1\.9.*\]: networks normalise themselves"),
    "NaN": (lambda x, y: (x.where(x < x.amax(), torch.nan), y), r"in \[0, 1\], found NaN in 1 of 6"),
    "bytes": (lambda x, y: ((255 * x).byte(), y), "float32 or float64, found uint8: bytes are divided by 255"),
    "bfloat16": (lambda x, y: (x.bfloat16(), y), r"float32 or float64, found bfloat16: take .float\(\)"),
    "one image": (
        lambda x, y: (x[0], y[0]),
        r"must be \(N, C, H, W\), found \(3, 12, 12\): one image is images\[None\]",
    ),
    "elsewhere": (lambda x, y: (x.to("meta"), y), "the network is on cpu, the images on meta"),
    "negative label": (lambda x, y: (x, y - 10), "labels must be 0 to 9, found -"),
    "label too large": (lambda x, y: (x, y + 10), "labels must be 0 to 9, found 1"),
    "one-hot": (lambda x, y: (x, nn.functional.one_hot(y, 10)), r"int64 \(6,\), found int64 \(6, 10\): of one-hot"),
    "too few labels": (lambda x, y: (x, y[:3]), r"labels must be int64 \(6,\), found int64 \(3,\)"),
    "float labels": (lambda x, y: (x, y.float()), "labels must be int64"),
}


@every_attack
@pytest.mark.parametrize("wrong", WRONG)
def test_every_attack_refuses_it_in_the_same_words(network, batch, attack, wrong):
    bring, said = WRONG[wrong]
    with pytest.raises(ValueError, match=said) as error:
        run(attack, network, *bring(*batch))
    assert "\n" not in str(error.value)


@every_attack
def test_a_network_that_is_not_what_it_must_be_is_refused(network, batch, attack):
    x, y = batch
    for changed, said in {
        copy.deepcopy(network).half(): "the network must be float32 or float64, found float16",
        copy.deepcopy(network).to("meta"): "the network is on meta, the images on cpu",
        poisoned(copy.deepcopy(network)): "the network gives NaN for 6 of 6 images",
    }.items():
        with pytest.raises(ValueError, match=said):
            run(attack, changed, x, y)
    with torch.inference_mode():
        network = copy.deepcopy(network)
    with pytest.raises(ValueError, match=r"made in torch.inference_mode\(\)"):
        run(attack, network, x, y)


@every_attack
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_callers_mode_changes_nothing(network, batch, attack, mode):
    with mode():
        x, y = (tensor.clone() for tensor in batch)
        found = run(attack, network, x, y)
    assert torch.equal(found, run(attack, network, *batch)) and not found.is_inference()


@every_attack
def test_neither_precision_nor_layout_matters_and_the_result_has_the_images_type(network, batch, attack):
    (x, y), wide = batch, torch.rand(6, 3, 12, 24)
    wide[..., ::2] = x
    right = run(attack, network, x, y)
    double = copy.deepcopy(network).double()
    for changed, given, labels in [
        (network, x.double(), y),
        (double, x, y),
        (double, x.double(), y),
        (network, x.contiguous(memory_format=torch.channels_last), y.int()),
        (network, wide[..., ::2], y.byte()),
    ]:
        found = run(attack, changed, given, labels)
        assert found.dtype == given.dtype
        torch.testing.assert_close(found.float(), right, rtol=0, atol=1e-4)
    same = x[:1].expand(6, -1, -1, -1), y[:1].expand(6)
    assert torch.equal(run(attack, network, *same), run(attack, network, *(tensor.clone() for tensor in same)))


@every_attack
def test_no_result_carries_a_graph_and_what_was_given_is_untouched(network, batch, attack):
    (x, y), network = batch, network.requires_grad_(True)
    leaf = x.clone().requires_grad_(True)
    for given in (leaf, 1 * leaf):
        found = run(attack, network, given, y)
        assert not found.requires_grad and torch.equal(given, x)
    assert leaf.grad is None and all(weight.grad is None for weight in network.parameters())


@every_attack
def test_of_an_empty_batch_the_result_is_empty(network, batch, attack):
    x, y = batch
    found = run(attack, network, x[:0].double(), y[:0])
    assert found.shape == (0, 3, 12, 12) and found.dtype == torch.float64


@every_attack
def test_probabilities_for_logits_are_warned_of_once(network, batch, attack):
    network.stages["logits"] = nn.Sequential(network.stages["logits"], nn.Softmax(1))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(attack, network, *batch)
    assert ["probabilities, not logits" in str(warning.message) for warning in caught] == [True]


def test_what_resizing_leaves_outside_of_the_range_is_clipped(network, batch):
    x, y = batch
    x[0] = 1 + 1e-7
    found = run(CarliniWagner(c=1e-9, steps=2), network, x, y)
    torch.testing.assert_close(found, x.clamp(0, 1), rtol=0, atol=0)


class NoGradient(nn.Module):
    """Adds zero, of which the gradient is NaN."""

    def forward(self, x):
        return x + (0 * x).sqrt()


@pytest.mark.parametrize("attack", [a for a in ATTACKS if a.kind != "square"], ids=lambda attack: attack.kind)
def test_gradients_of_nan_never_count_as_robustness(network, batch, attack):
    network.stages["conv"] = nn.Sequential(NoGradient(), network.stages["conv"])
    with pytest.raises(ValueError, match="the network's gradients give NaN for 6 of 6"):
        run(attack, network, *batch)


class NaNWhereBright(nn.Module):
    def forward(self, x):
        return x + torch.where(x.mean((1, 2, 3), keepdim=True) > 0.7, torch.nan, 0.0)


def test_outputs_of_nan_are_counted_in_images(network, batch, images):
    x, y = batch
    x[1:3] = 0.9
    bright = ImageSet((255 * x).byte(), images.labels, images.classes, "some bright")
    network.stages["conv"] = nn.Sequential(NaNWhereBright(), network.stages["conv"])
    how = dict(hardware=CPU)
    for call in (
        lambda: run(PGD5, network, x, y),
        lambda: predict(network, x, **how),
        lambda: features(network, x, **how),
        lambda: attack_all(Square(epsilon=0.1, queries=2), network, bright, seed=0, **how),
        lambda: attack_each({}, network, bright, seed=0, **how),
        lambda: halves(network, x, Bottleneck(steps=1), seed=0, **how),
        lambda: construct(MAKES[0], network, bright, seed=0, **how),
    ):
        with pytest.raises(ValueError, match="NaN for 2 of 6 images"):
            call()


def test_an_attacked_image_that_gives_nan_is_not_still_right(network, images):
    network.stages["conv"] = nn.Sequential(NaNWhereBright(), network.stages["conv"])
    white = lambda network, images, labels, generator: torch.ones_like(images)  # noqa: E731
    with pytest.raises(ValueError, match="the network gives NaN for 6 of 6"):
        attack_all(white, network, images, hardware=CPU, seed=0)


class Dark(nn.Module):
    """Class 0 up to a mean of 0.75; above 0.7 the `logits` are NaN, or their `gradient` is."""

    def __init__(self, broken):
        super().__init__()
        self.broken = broken

    def forward(self, images):
        mean = images.mean((1, 2, 3))
        room = 0.7 - mean  # and the gradient of room + |room| is ∞ − ∞ behind a root where it is negative
        zero = torch.where(room < 0, torch.nan, 0.0) if self.broken == "logits" else 0 * (room + room.abs()).sqrt()
        return torch.stack([0.75 - mean, mean - 0.75 + zero], 1)


@pytest.mark.parametrize("attack", [PGD5, *ATTACKS[3:5], FAB(epsilon=0.1, steps=5)], ids=lambda attack: attack.kind)
def test_an_attack_that_ends_in_nan_does_not_say_that_it_found_nothing(attack):
    x, y = torch.full((4, 3, 12, 12), 0.65), torch.zeros(4, dtype=torch.long)
    with pytest.raises(ValueError, match="NaN for 4 of 4 images"):
        run(attack, Dark("logits"), x, y)


class Gap(nn.Module):
    """Class 0 of a grey below 0.62; from there to 0.68, which steps cross, the `logits` or their `gradient` are NaN."""

    def __init__(self, broken):
        super().__init__()
        self.broken = broken

    def forward(self, images):
        mean = images.mean((1, 2, 3))
        room = (mean - 0.65).abs() - 0.03
        zero = torch.where(room < 0, torch.nan, 0.0) if self.broken == "logits" else 0 * (room + room.abs()).sqrt()
        return torch.stack([0.9 - mean, mean - 0.9 + zero], 1)


class ThreeGreys:
    """An attack whose second step is in the gap, and whose first and last are not."""

    def perturb(self, network, images, labels, *, generator):
        for grey in (0.6, 0.65, 0.7):
            x = torch.full_like(images, grey).requires_grad_()
            network(x).sum().backward()
        return x.detach()


@pytest.mark.parametrize("broken, word", [("logits", "outputs"), ("gradient", "gradients")])
def test_nan_on_the_way_is_said_though_beginning_and_end_are_finite(broken, word):
    x, y = torch.full((4, 3, 12, 12), 0.6), torch.zeros(4, dtype=torch.long)
    with pytest.raises(ValueError, match=f"the network's {word} were NaN or infinite in 1 of the attack's passes"):
        inputs.attack(ThreeGreys(), Gap(broken), x, y, generator=draws())


def test_no_attack_returns_images_of_nan():
    x, y = torch.full((4, 3, 12, 12), 0.65), torch.zeros(4, dtype=torch.long)
    attack = PGD(epsilon=5.0, step_size=2.0, steps=2, norm="l2", random_start=False)
    with pytest.raises(ValueError, match="the network's gradients give NaN for 4 of 4 images"):
        run(attack, Dark("gradient"), x, y)


@pytest.mark.parametrize("broken, steps", [("logits", 1), ("gradient", 2)])
def test_nan_in_the_last_step_is_neither_an_image_nor_a_dataset(broken, steps):
    x, y = torch.full((4, 3, 12, 12), 166, dtype=torch.uint8), torch.zeros(4, dtype=torch.long)
    grey = ImageSet(x, y, ("dark", "light"), "grey")
    network = Network({"pixels": nn.Identity(), "logits": Dark(broken)}, split="pixels")
    far = dict(epsilon=5.0, step_size=2.0, steps=steps)
    with pytest.raises(ValueError, match="give.* NaN for 4 of 4 images"):
        attack_all(PGD(**far, norm="l2", random_start=False), network, grey, hardware=CPU, seed=0)
    with pytest.raises(ValueError, match="give.* NaN for 4 of 4 images"):
        construct(Relabelled(targets="next", **far), network, grey, hardware=CPU, seed=0)


def test_evaluations_refuse_the_same_images_in_the_same_words(network, batch):
    (x, _), z = batch, features(network, batch[0], hardware=CPU)
    for name in ("bytes as floats", "normalised", "NaN", "bytes", "bfloat16"):
        bring, said = WRONG[name]
        for evaluate in (predict, features):
            with pytest.raises(ValueError, match=said):
                evaluate(network, bring(x, None)[0], hardware=CPU)
    with pytest.raises(ValueError, match="features must be float32 or float64, found bfloat16"):
        decide(network, z.bfloat16(), hardware=CPU)
    assert torch.equal(decide(network, z.double(), hardware=CPU), decide(network, z, hardware=CPU))
    torch.testing.assert_close(predict(copy.deepcopy(network).double(), x, hardware=CPU), network(x))


def test_a_distillation_is_held_to_the_same(network, batch):
    (x, y), z = batch, features(network, batch[0], hardware=CPU)
    settings, how = Bottleneck(steps=3), dict(hardware=CPU)
    right = distil(network, z, y, settings, generator=draws(), **how)
    with torch.inference_mode():
        inside = distil(network, network.features(x), y.int(), settings, generator=draws(), **how)
    assert torch.equal(inside.sigma, right.sigma) and not inside.sigma.is_inference()
    double = distil(copy.deepcopy(network).double(), z.double(), y, settings, generator=draws(), **how)
    torch.testing.assert_close(double.sigma, right.sigma.double(), rtol=1e-4, atol=1e-5)
    for changed, given, labels, said in [
        (network, z, y + 10, "labels must be 0 to 9, found 1"),
        (network, z, y[:3], r"labels must be int64 \(6,\)"),
        (network, z.bfloat16(), y, "features must be float32 or float64"),
        (poisoned(copy.deepcopy(network)), z, y, "the network gives NaN for 6 of 6"),
    ]:
        with pytest.raises(ValueError, match=said):
            distil(changed, given, labels, settings, generator=draws(), **how)


@pytest.mark.parametrize("make", MAKES, ids=lambda make: make.kind)
def test_a_construction_is_held_to_the_same(network, images, make):
    right = construct(make, network, images, hardware=CPU, seed=0)
    with torch.inference_mode():
        inside = construct(make, copy.deepcopy(network), images, hardware=CPU, seed=0)
    assert torch.equal(inside.images.images, right.images.images)
    double = construct(make, copy.deepcopy(network).double(), images, hardware=CPU, seed=0)
    assert (double.images.images.int() - right.images.images.int()).abs().max() <= 1
    network.stages["conv"].weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="the network gives NaN for 6 of 6 images"):
        construct(make, network, images, hardware=CPU, seed=0)


def test_a_target_that_the_network_has_no_logit_for_is_refused(network, images):
    more = ImageSet(images.images, images.labels, (*"abcdefghijklmnop",), "more classes")
    with pytest.raises(ValueError, match="labels must be 0 to 9, found 0 to 15"):
        construct(Relabelled(targets="every", steps=1), network, more, hardware=CPU, seed=0)


def test_of_an_empty_set_every_result_is_empty(network, batch, images):
    (x, y), none, how = (tensor[:0] for tensor in batch), images.take(slice(0)), dict(hardware=CPU, seed=0)
    attacked = attack_all(PGD5, network, none, images_kept=3, **how)
    assert attacked.predictions.shape == attacked.l2.shape == (0,) and attacked.images.shape == (0, 3, 12, 12)
    assert list(attack_each({"pgd": PGD5}, network, none, report=str, **how)) == ["clean", "pgd"]
    assert predict(network, x, hardware=CPU).shape == (0, 10)
    z = features(network, x, hardware=CPU)
    for threshold in ("image", "batch"):
        found = distil(network, z, y, Bottleneck(threshold=threshold), hardware=CPU, generator=draws())
        assert found.robust.shape == (0, 8) and found.split(z)[0].shape == z.shape
    assert (
        len(distil_examples(network, {"clean": x}, y, Bottleneck(), report=str, **how).tensors["sigma/clean/true"]) == 0
    )
    assert len(construct(MAKES[0], network, none, **how).images) == 0


def test_training_pays_for_no_check(network, batch, monkeypatch):
    for name in ("pixels", "numbers", "classes", "logits", "finite"):
        monkeypatch.delattr(inputs, name)
    for objective in (Adversarial, TradesKim, Mart):
        assert objective(attack=PGD5)(network, *batch, generator=draws()).loss.isfinite()


@pytest.mark.parametrize(("value", "word"), [(-torch.inf, "infinity"), (torch.inf, "infinity"), (torch.nan, "NaN")])
def test_one_output_that_is_not_finite_is_enough(value, word):
    outputs = torch.zeros(3, 4)
    outputs[1, 2] = value
    with pytest.raises(ValueError, match=f"the network gives {word} for 1 of 3 images"):
        inputs.finite(outputs)
