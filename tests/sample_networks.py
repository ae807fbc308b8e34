"""A few digits, and settings with which a network is trained and attacked within a second."""

from dataclasses import replace

from pydantic import TypeAdapter

from companion import datasets, groups, params
from companion.datasets import Digits
from companion.groups import Group
from companion.resolve import resolve, written
from robust_features import hardware
from robust_features.attacks import PGD
from robust_features.batches import Augmentation
from robust_features.networks import VGG16
from robust_features.regularisers import IBRAR
from robust_features.training import SGD, Training
from robust_features.training.objectives import Standard

PGD2 = PGD(epsilon=0.1, step_size=0.05, steps=2)
CE = Training(dataset="digits", network=VGG16(width=0.0625), objective=Standard(), optimiser=SGD(learning_rate=0.05), epochs=1,
              batch_size=32, augmentation=Augmentation(padding=0, flip=False), monitor=PGD2)  # fmt: skip
GROUP = Group(
    members={"ce": CE, "ibrar": replace(CE, regulariser=IBRAR())}, attacks={"pgd": PGD2}, reads="datasets/digits"
)
MACHINE = hardware.HardwareSettings(device="cpu", precision="fp32", threads=1)
CPU = hardware.choose(hardware.HardwareSettings(device="cpu", precision="fp32"))


def quick() -> params.Run:
    """The quick scale of params.yaml."""
    return at_scale("quick")


def at_scale(name: str) -> params.Run:
    """A scale of params.yaml."""
    return TypeAdapter(params.Run).validate_python(resolve(written(), name))


def save_digits() -> None:
    """data/datasets/digits: 64 images to train on, 20 to watch, 20 to test on."""
    digits = Digits(train=64, validation=20, test=20, size=32)
    datasets.save("digits", datasets.read(digits, seed=0), digits)


def make_group(name: str, group: Group, monkeypatch) -> list[str]:
    """data/networks/<name>, made in this process, which alone has the test's folders; the lines that are reported."""
    monkeypatch.setattr(hardware, "cores", lambda: 1)
    lines = []
    groups.make(name, group, machine=MACHINE, seed=0, report=lines.append)
    return lines
