"""What a GPU asks of the code, on a machine without one: few waits for the device, and no tensor left on the CPU."""

from collections import Counter

import pytest
import torch
from torch import Generator
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from robust_features.attacks import (
    APGD,
    FAB,
    NIFGSM,
    PGD,
    Adaptive,
    CarliniWagner,
    FeatureGradient,
    Square,
    apgd,
    fab,
    gradient,
    square,
)
from robust_features.attacks.survivors import PASSES, look
from robust_features.batches import ImageSet
from robust_features.dependence import HSIC
from robust_features.evaluation import attack_all
from robust_features.hardware import BATCH, BATCH_ON_A_GPU, Hardware
from robust_features.networks import VGG16, build
from robust_features.training.objectives import Adversarial

WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::_unique2"}
FEW, SMALL = (20, 40), 0.002
PGD_1 = PGD(epsilon=SMALL, step_size=SMALL, steps=1)


class Waits(TorchDispatchMode):
    """Counts the operations for whose result a program waits, if it is on a GPU."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name
        by_mask = "index" in name and any(getattr(each, "dtype", None) is torch.bool for each in _indices(args))
        if name in WAITS or by_mask:
            self.found[name] += 1
        return function(*args, **(kwargs or {}))


def _indices(args):
    return args[1] if len(args) > 1 and isinstance(args[1], (list, tuple)) else ()


def as_on_a_gpu(images, number):
    return number % PASSES == PASSES - 1


@pytest.fixture
def network():
    return build(VGG16(width=0.0625), 10, seed=0).eval()


@pytest.fixture
def batch(network):
    images = torch.rand(6, 3, 32, 32, generator=Generator().manual_seed(0))
    return images, network(images).argmax(1)


def attacks(steps, epsilon=SMALL):
    """Attacks of so many passes; within a small ε most images are never fooled."""
    ball = dict(epsilon=epsilon, step_size=epsilon / 4)
    return {
        "pgd": PGD(**ball, steps=steps),
        "pgd, until fooled": PGD(**ball, steps=steps, until="fooled"),
        "nifgsm": NIFGSM(**ball, steps=steps),
        "cw": CarliniWagner(c=0.1, steps=steps),
        "nrf": FeatureGradient(c=0.1, steps=steps),
        "apgd": APGD(epsilon=epsilon, steps=steps),
        "fab": FAB(epsilon=epsilon, steps=steps, targets=1),
        "square": Square(epsilon=epsilon, queries=steps),
    }


@pytest.mark.parametrize("name", attacks(1))
def test_an_attack_waits_for_the_device_at_most_every_ten_passes(network, batch, monkeypatch, name):
    monkeypatch.setattr(square, "AHEAD", 1)  # so that a query is a pass
    for module in (gradient, apgd, fab, square):
        monkeypatch.setattr(module, "look", as_on_a_gpu)
    waits = []
    for steps in FEW:
        with Waits() as counted:
            attacks(steps)[name](network, *batch, generator=Generator().manual_seed(0))
        waits.append(sum(counted.found.values()))
    assert waits[1] - waits[0] <= 4 * (FEW[1] - FEW[0]) / PASSES, "a look, and four index by its answer"


@pytest.mark.numeric
@pytest.mark.parametrize("name", ["pgd, until fooled", "apgd", "fab", "square"])
@pytest.mark.parametrize("epsilon", [SMALL, 0.05])
def test_to_look_seldom_changes_no_result(network, batch, monkeypatch, name, epsilon):
    attack = attacks(25, epsilon)[name]
    always = attack(network, *batch, generator=Generator().manual_seed(0))
    for module in (gradient, apgd, fab, square):
        monkeypatch.setattr(module, "look", as_on_a_gpu)
    torch.testing.assert_close(attack(network, *batch, generator=Generator().manual_seed(0)), always, rtol=0, atol=1e-5)


def test_on_a_cpu_what_is_done_leaves_at_once():
    assert all(look(torch.zeros(1), number) for number in range(2 * PASSES))


class Roomy(Hardware):
    """A CPU that takes as many images at once as a GPU."""

    batch = BATCH_ON_A_GPU


@pytest.mark.parametrize("attack, batch", [(PGD_1, BATCH_ON_A_GPU), (Adaptive(pgd=PGD_1), BATCH)])
def test_an_objective_of_the_whole_batch_has_the_same_batch_on_every_machine(network, monkeypatch, attack, batch):
    sizes = []
    monkeypatch.setattr(type(attack), "perturb", lambda self, model, x, y, **options: sizes.append(len(x)) or x)
    black = torch.zeros(BATCH_ON_A_GPU, 3, 32, 32, dtype=torch.uint8), torch.zeros(BATCH_ON_A_GPU, dtype=torch.int64)
    images = ImageSet(*black, tuple("0123456789"), "black")
    attack_all(attack, network, images, hardware=Roomy(torch.device("cpu"), "fp32"), seed=0)
    assert {*sizes} == {batch}


@pytest.fixture
def cuda(monkeypatch):
    """Tensors that say they are on a GPU, and hold nothing: operations check devices and shapes."""
    monkeypatch.setattr(
        FakeTensorMode, "__deepcopy__", lambda mode, memo: mode, raising=False
    )  # of a network, of one mode
    slopes = lambda of, at, **options: (torch.zeros_like(at),)  # noqa: E731  # autograd's engine asks the device itself
    monkeypatch.setattr(torch.autograd, "grad", slopes)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    with FakeTensorMode() as mode:
        try:
            torch.zeros(1, device="cuda") + 1
        except (RuntimeError, AssertionError) as error:
            pytest.skip(f"this build of torch cannot pretend to have a GPU: {error}")
        yield mode


def moved(network):
    """The network on the GPU there is not; Module.to swaps tensors, which those that hold nothing do not allow."""
    for module in network.modules():
        for kept in (module._parameters, module._buffers):
            for name, tensor in kept.items():
                there = tensor.detach().to("cuda")
                kept[name] = torch.nn.Parameter(there) if kept is module._parameters else there
    return network


def test_nothing_is_left_on_the_cpu(cuda):
    network = moved(build(VGG16(width=0.0625), 10, seed=0))
    images, labels = torch.rand(4, 3, 32, 32, device="cuda"), torch.zeros(4, dtype=torch.int64, device="cuda")
    keys = torch.zeros(4, dtype=torch.int64, device="cuda")
    pgd = PGD(epsilon=0.03, step_size=0.01, steps=2)
    outcome = Adversarial(attack=pgd)(network, images, labels, generator=Generator())
    assert outcome.loss.device.type == "cuda"
    hsic = HSIC()
    assert hsic(hsic.of_features(images), hsic.of_labels(labels, 10)).device.type == "cuda"
    assert pgd.perturb(network, images, labels, generator=keys).device.type == "cuda"
