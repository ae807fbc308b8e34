"""The same results on a GPU as on a CPU, compared in float32 without TF32; and no wait inside a training epoch."""

from dataclasses import replace

import pytest
import torch
from sample_networks import CPU
from torch import Generator

from companion.datasets import Digits, read
from robust_features import noise
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
from robust_features.batches import Augmentation, as_float
from robust_features.bottleneck import Bottleneck, distil
from robust_features.construction import Null, Relabelled, Robustified, construct
from robust_features.dependence import HSIC
from robust_features.evaluation import attack_all, features, predict
from robust_features.hardware import Hardware
from robust_features.inversion import Inversion, invert
from robust_features.networks import VGG16, ResNet18, ResNetV2, Victim, WideResNet, build, folded
from robust_features.regularisers import IBRAR, VIB, BatchMask, PersistentMask
from robust_features.training import SGD, OneCycle, Training, loop, train
from robust_features.training.objectives import Adversarial, Mart, Standard, Trades, TradesKim

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

GPU = Hardware(torch.device("cuda"), "fp32")
BF16 = Hardware(torch.device("cuda"), "bf16")
EPSILON = 0.2
PGD_5 = PGD(epsilon=EPSILON, step_size=0.06, steps=5)
WEAK = PGD(epsilon=0.02, step_size=0.02, steps=1)  # what so few images can be learnt under
HOW = Training(
    dataset="digits",
    network=VGG16(width=0.125),
    objective=Adversarial(attack=replace(PGD_5, steps=3, step_size=0.1)),
    optimiser=SGD(learning_rate=0.05, momentum=0.9),
    schedule=OneCycle(),
    epochs=4,
    batch_size=32,
    augmentation=Augmentation(padding=2, flip=True),
    monitor=PGD_5,
)
BALLS = {
    "pgd": PGD_5,
    "pgd, l2": PGD(epsilon=1.0, step_size=0.3, steps=5, norm="l2"),
    "pgd, until fooled": PGD(epsilon=EPSILON, step_size=0.06, steps=12, until="fooled", restarts=2),
    "nifgsm": NIFGSM(epsilon=EPSILON, step_size=0.05, steps=5),
    "apgd": APGD(epsilon=EPSILON, steps=15),
    "apgd, dlr": APGD(epsilon=EPSILON, steps=10, loss="dlr", targets=3),
    "fab": FAB(epsilon=EPSILON, steps=8),
    "square": Square(epsilon=EPSILON, queries=60),
    "adaptive": Adaptive(pgd=PGD_5),
    "autoattack": AutoAttack(epsilon=EPSILON, steps=6, targets=2, queries=20),
}
FREE = {
    "cw": CarliniWagner(c=10.0, steps=30),
    "nrf": FeatureGradient(c=10.0, steps=30, bottleneck=Bottleneck(steps=20)),
    "rf2": FeatureGradient(c=10.0, steps=30, units="robust", direction="lower", bottleneck=Bottleneck(steps=20)),
}


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    """Convolutions in float32 as IEEE has it, not TF32, and the same ones in every run."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)


@pytest.fixture(scope="module")
def splits():
    return read(Digits(train=320, validation=40, test=60, size=32), seed=0)


@pytest.fixture(scope="module")
def trained(splits):
    return train(splits, HOW, hardware=CPU, report=lambda line: None).network


@pytest.mark.parametrize("attack", [*BALLS.values(), *FREE.values()], ids=[*BALLS, *FREE])
def test_an_attack_is_as_strong_as_on_a_cpu(trained, splits, attack):
    test = splits["test"]
    there, here = (attack_all(attack, trained, test, hardware=where, seed=0, images_kept=60) for where in (GPU, CPU))
    trained.to("cpu")
    assert not there.images.is_cuda and 0 <= there.images.min() and there.images.max() <= 1
    right = [(found.predictions == test.labels).double().mean() for found in (there, here)]
    assert abs(right[0] - right[1]) <= 2 / len(test), "rounding may turn an image or two"
    assert abs(there.l2.mean() - here.l2.mean()) <= 0.05 * here.l2.mean() + 1e-3


@pytest.mark.parametrize(
    "settings",
    [VGG16(width=0.125), VGG16(width=0.125, hidden=2, encoding=16), WideResNet(depth=10, width=1), ResNet18(width=0.125),
     ResNetV2(depth=11, width=0.25),
     *(Victim(kind=kind, width=0.25) for kind in ("densenet121", "googlenet", "mobilenet-v2", "shufflenet-v2"))],
    ids=lambda settings: settings.kind,
)  # fmt: skip
def test_every_architecture_computes_the_same(settings):
    network, images = build(settings, 10, seed=0).eval(), torch.rand(4, 3, 32, 32, generator=Generator().manual_seed(0))
    here = predict(network, images, hardware=CPU)
    torch.testing.assert_close(predict(network, images, hardware=GPU), here, rtol=1e-3, atol=1e-4)


class Plain(Hardware):
    """A GPU that is given one operation after the other."""

    def recorded(self, function, *, keeps=()):
        return function


@pytest.mark.parametrize(
    "changed",
    [
        dict(objective=Standard()),
        dict(objective=Adversarial(attack=PGD_5)),
        dict(objective=Trades(attack=PGD_5)),
        dict(objective=TradesKim(attack=PGD_5)),
        dict(objective=Mart(attack=PGD_5)),
    ],
    ids=lambda changed: changed["objective"].kind,
)
def test_recorded_steps_of_training_follow_the_weights_and_the_images_as_plain_ones_do(changed):
    how, draws, sides = replace(HOW, **changed), Generator("cuda").manual_seed(0), []
    for hardware in (GPU, Plain(GPU.device, "fp32")):
        network = hardware.place(build(HOW.network, 10, seed=0)).train()
        optimiser = how.optimiser.build(network)
        sides.append((network, optimiser, loop._gradients(network, how, optimiser, hardware)))
    for _ in range(4):
        images = torch.rand(16, 3, 32, 32, generator=draws, device="cuda").to(memory_format=torch.channels_last)
        labels = torch.randint(10, (16,), generator=draws, device="cuda")
        keys = torch.randint(2**32, (16,), generator=draws, device="cuda")
        given = (images, labels) if isinstance(how.objective, Standard) else (images, labels, keys)
        losses = []
        for network, optimiser, learn in sides:
            losses.append(learn(*given).item())
            gradient = torch.cat([weight.grad.flatten() for weight in network.parameters()])
            losses.append(gradient.norm().item())
            optimiser.step()
        assert losses[:2] == pytest.approx(losses[2:], rel=0.02)
    for one, other in zip(sides[0][0].buffers(), sides[1][0].buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.02)


def test_no_step_of_training_waits_for_the_device(splits, monkeypatch):
    whole = loop._one_epoch
    epochs = []

    def watched(*given):
        epochs.append(given)
        if len(epochs) == 1:  # captures
            return whole(*given)
        torch.cuda.set_sync_debug_mode("error")
        try:
            return whole(*given)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(loop, "_one_epoch", watched)
    train(splits, HOW, hardware=BF16, report=lambda line: None)
    assert len(epochs) == HOW.epochs


@pytest.mark.parametrize(
    "changed",
    [
        dict(objective=Adversarial(attack=WEAK)),
        dict(objective=Standard(), monitor=None, keep="best"),
        dict(objective=TradesKim(attack=WEAK, weight=0.5)),
        dict(objective=Mart(attack=WEAK, weight=0.5), mask=PersistentMask(fraction=0.1, images=64, batch=32)),
        dict(
            objective=Adversarial(attack=WEAK),
            network=VGG16(width=0.125, hidden=2),
            regulariser=IBRAR(layers=("block5", "fc1")),
            mask=BatchMask(),
        ),
        dict(network=VGG16(width=0.125, encoding=16), objective=Standard(), regulariser=VIB()),
        dict(objective=Adversarial(attack=WEAK), network=WideResNet(depth=10, width=1, dropout=0.3)),
    ],
    ids=["adversarial", "standard", "trades", "mart, mask", "ib-rar", "vib", "dropout"],
)
def test_what_is_trained_on_a_gpu_learns_and_goes_on_after_an_interruption(splits, tmp_path, changed):
    how, lines = replace(HOW, **changed), []
    first = train(splits, how, hardware=BF16, resume=tmp_path / "state.pt", report=lines.append)
    losses = [row["loss"] for row in first.history]
    assert losses[-1] < losses[0] and first.precision == "bf16"
    train(splits, how, hardware=BF16, resume=tmp_path / "state.pt", report=lines.append)
    assert lines[-1].startswith("resumed after epoch 4")


def test_a_training_without_attack_is_that_of_a_cpu(splits):
    how = replace(HOW, objective=Standard(), epochs=1, network=VGG16(width=0.0625))
    there, here = (train(splits, how, hardware=where, report=lambda line: None) for where in (GPU, CPU))
    assert there.history[0]["loss"] == pytest.approx(here.history[0]["loss"], rel=1e-2)


def test_channels_tolerate_the_same_noise(trained, splits):
    test, found = splits["test"], []
    for where in (GPU, CPU):
        z = features(trained, as_float(test.images), hardware=where)
        settings, draws = Bottleneck(steps=60), Generator().manual_seed(0)
        found.append(distil(trained, z, test.labels, settings, hardware=where, generator=draws))
    torch.testing.assert_close(found[0].sigma, found[1].sigma, rtol=0.02, atol=1e-3)
    assert (found[0].robust == found[1].robust).float().mean() > 0.999


@pytest.mark.parametrize(
    "how",
    [Robustified(steps=10), Robustified(steps=6, method="lbfgs"), Relabelled(targets="random", epsilon=2.0, step_size=0.5, steps=5),
     Null(control="noise", targets="random"), Null(control="shuffled", targets="random", steps=5)],
    ids=["gradient", "lbfgs", "relabelled", "noise", "shuffled"],
)  # fmt: skip
def test_datasets_are_constructed_as_on_a_cpu(trained, splits, how):
    there, here = (construct(how, trained, splits["test"], hardware=where, seed=0) for where in (GPU, CPU))
    assert not there.images.images.is_cuda and torch.equal(there.began, here.began)
    assert there.after.mean() == pytest.approx(here.after.mean().item(), rel=0.05)
    assert (there.images.images.int() - here.images.images.int()).abs().float().mean() < 0.5, "of 255"


@pytest.mark.parametrize("estimator", ["normalised", "biased", "unbiased"])
def test_dependence_is_that_of_a_cpu(estimator):
    draws, hsic = Generator().manual_seed(0), HSIC(estimator=estimator)
    images, labels = torch.rand(40, 3, 8, 8, generator=draws), torch.randint(10, (40,), generator=draws)
    here = hsic(hsic.of_features(images), hsic.of_labels(labels, 10))
    there = hsic(hsic.of_features(images.cuda()), hsic.of_labels(labels.cuda(), 10))
    torch.testing.assert_close(there.cpu(), here, rtol=1e-2, atol=1e-5)


def test_random_numbers_are_those_of_a_cpu():
    keys = noise.image_keys(50, Generator().manual_seed(0))
    assert torch.equal(noise.uniform(keys.cuda(), (3, 4)).cpu(), noise.uniform(keys, (3, 4)))
    torch.testing.assert_close(noise.normal(keys.cuda(), (3, 4)).cpu(), noise.normal(keys, (3, 4)))


def test_images_are_found_from_features(trained, splits):
    network = folded(trained).cuda()
    z = network.features(as_float(splits["test"].images[:4]).cuda())
    found = invert(network.features, z, Inversion(steps=5), size=32, generator=Generator().manual_seed(0))
    assert found.shape == (4, 3, 32, 32) and found.isfinite().all()
