from dataclasses import replace

import pytest
import torch

from robust_features import datasets, evaluation, families, store, training
from robust_features.attacks import PGD
from robust_features.batches import Augmentation
from robust_features.datasets import Digits
from robust_features.families import Family, accuracies, make
from robust_features.hardware import HardwareSettings
from robust_features.models import VGG16
from robust_features.objectives import Adversarial, Standard
from robust_features.regularisers import IBRAR
from robust_features.statistics import over_seeds
from robust_features.training import SGD, Training

pytestmark = pytest.mark.numeric

PGD2 = PGD(epsilon=0.1, step_size=0.05, steps=2)
CE = Training(dataset="digits", network=VGG16(width=0.0625), objective=Standard(), optimiser=SGD(learning_rate=0.05), epochs=1,
              batch_size=32, augmentation=Augmentation(padding=0, flip=False), monitor=PGD2)  # fmt: skip
FAMILY = Family(members={"ce": CE, "ibrar": replace(CE, regulariser=IBRAR())}, attacks={"pgd": PGD2}, keep=("pgd",))
MACHINE = HardwareSettings(device="cpu", precision="fp32", threads=1)


@pytest.fixture
def data(tmp_path, monkeypatch):
    for module in (datasets, families, store):
        monkeypatch.setattr(module, "DATA", tmp_path)
    digits = Digits(train=64, validation=20, test=20, size=32)
    datasets.save("digits", datasets.read(digits, seed=0), digits)
    return tmp_path


def quiet(name, family, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 1)  # in this process, which alone has the patched folders
    lines = []
    make(name, family, machine=MACHINE, seed=0, report=lines.append)
    return lines


def test_a_familys_members_are_what_training_and_attacking_one_by_one_gives(data, monkeypatch):
    quiet("f", FAMILY, monkeypatch)
    splits = {split: datasets.load("digits", split) for split in ("train", "validation", "test")}
    chosen = families.hardware.choose(MACHINE)
    alone = training.train(splits, FAMILY.members["ibrar"], hardware=chosen, report=lambda line: None).network
    network, history = training.load("f/ibrar", hardware=chosen)
    assert all(
        torch.equal(a, b) for a, b in zip(alone.state_dict().values(), network.state_dict().values(), strict=True)
    )
    attacked = evaluation.attack_each(
        FAMILY.attacks, alone, splits["test"], hardware=chosen, seed=0, report=lambda line: None
    )
    found = evaluation.load("f/ibrar")
    assert torch.equal(found["pgd"].predictions, attacked["pgd"].predictions) and len(found["pgd"].images) == 20
    assert len(history) == 1 and not list((data / "interrupted").iterdir())


def test_an_interrupted_family_goes_on_with_what_is_missing(data, monkeypatch):
    broken = replace(FAMILY, members=FAMILY.members | {"ibrar": replace(CE, regulariser=IBRAR(layers=("none",)))})
    with pytest.raises(Exception, match="no stage 'none'"):
        quiet("f", broken, monkeypatch)
    (half,) = (data / "interrupted").glob("family-*")
    assert [path.name for path in (half / "evaluations").iterdir()] == ["ce"]
    monkeypatch.setattr(families, "_interrupted", lambda family, seed: half)
    lines = quiet("f", FAMILY, monkeypatch)
    assert lines[0] == "1 of 2 were finished before" and not any(line.startswith("ce: ") for line in lines)
    assert lines[-1].startswith("ibrar: clean ")


def test_a_member_whose_half_finished_records_are_damaged_is_made_again(data, monkeypatch, capsys):
    quiet("f", FAMILY, monkeypatch)
    half = data / "half"
    (data / "families" / "f").rename(half)
    (half / "models" / "ce" / store.TENSORS).write_bytes(b"cut off")
    (half / "models" / ".ce.7.partial").mkdir()
    monkeypatch.setattr(families, "_interrupted", lambda family, seed: half)
    lines = quiet("f", FAMILY, monkeypatch)
    assert "models/ce: no whole record" in capsys.readouterr().err and lines[0] == "1 of 2 were finished before"
    assert {path.name for path in (data / "families" / "f" / "models").iterdir()} == {"ce", "ibrar"}


def test_every_seed_is_named_once():
    with pytest.raises(ValueError, match=r"every seed once, found \[0, 0\]"):
        replace(FAMILY, seeds=(0, 0))


def test_rows_of_one_seed_have_wilsons_interval_of_several_students(data, monkeypatch):
    quiet("one", FAMILY, monkeypatch)
    quiet("two", replace(FAMILY, seeds=(0, 1)), monkeypatch)
    one, two = (
        accuracies(name, f, only=["pgd"]).set_index("member")
        for name, f in (("one", FAMILY), ("two", replace(FAMILY, seeds=(0, 1))))
    )
    assert one.loc["ce", "n"] == 20 and two.loc["ce", "n"] == 2
    labels = datasets.load("digits", "test").labels
    values = [
        evaluation.accuracy_of(evaluation.load(f"two/{run}")["pgd"].predictions, labels).value
        for run in ("ce", "ce-seed1")
    ]
    assert two.loc["ce", "value"] == over_seeds(values).value and one.loc["ce", "value"] == values[0]


def test_processes_side_by_side_answer_in_order():
    names = list(FAMILY.trainings)
    assert list(families._side_by_side(str.upper, names, 2)) == [name.upper() for name in names]


def test_members_are_found_by_the_radius_they_are_trained_against():
    against = {
        f"m{n}": replace(CE, objective=Adversarial(attack=replace(PGD2, epsilon=e, norm="l2")))
        for n, e in enumerate(("1/256", 2))
    }
    family = Family(members={"plain": CE} | against, attacks={})
    assert family.radii == {"0": "plain", "1/256": "m0", "2": "m1"}
