from dataclasses import replace

import pytest
import torch
from test_families import CE, MACHINE, data  # noqa: F401

from robust_features import datasets, evaluation, families, hardware, training, transfer
from robust_features.attacks import PGD
from robust_features.families import Family
from robust_features.transfer import Transfer, make, successes, wrong_classes

pytestmark = pytest.mark.numeric

STEP = PGD(epsilon=2.0, step_size=1.0, steps=2, norm="l2", random_start=False)
ENTRY = Transfer(
    dataset="digits",
    sources="sources",
    victims="victims",
    attacks={"untargeted": STEP, "targeted": replace(STEP, targeted=True)},
)
CPU = hardware.choose(hardware.HardwareSettings(device="cpu", precision="fp32"))


@pytest.fixture
def both(data, monkeypatch):  # noqa: F811
    monkeypatch.setattr(transfer, "DATA", data)
    monkeypatch.setattr("os.cpu_count", lambda: 1)  # in this process, which alone has the patched folders
    found = {
        "sources": Family(members={"one": CE}, attacks={}),
        "victims": Family(members={"two": CE}, attacks={}, seeds=(7,)),
    }
    for name, family in found.items():
        families.make(name, family, machine=MACHINE, seed=0, report=lambda line: None)
    return found


def run(both):
    make("t", ENTRY, both, hardware=CPU, seed=0, report=lambda line: None)
    return transfer.load("t")


def test_victims_are_shown_what_the_attack_makes_of_the_source(both, data):  # noqa: F811
    found, images = run(both), datasets.load("digits", "test")
    networks = {name: training.load(name, hardware=CPU)[0] for name in ("sources/one", "victims/two")}
    for attack, goal in (("untargeted", found["labels"]), ("targeted", found["targets"])):
        aimed = replace(images, labels=goal)
        made = evaluation.attack_all(
            ENTRY.attacks[attack], networks["sources/one"], aimed, hardware=CPU, seed=0, keep=20
        )
        shown = evaluation.predict(networks["victims/two"], made.images, hardware=CPU).argmax(1)
        assert torch.equal(found[f"one/{attack}/itself"], made.predictions)
        assert torch.equal(found[f"one/{attack}/two"], shown)
        assert torch.equal(found[f"one/{attack}/images"], made.images[: evaluation.GALLERY])
    assert not torch.equal(found["one/untargeted/images"], found["one/targeted/images"])
    assert not list((data / "interrupted").iterdir())


def test_rows_count_mistakes_or_hits_of_the_target(both):
    found = run(both)
    rows = successes("t", ENTRY).set_index(["attack", "victim"])["value"]
    assert rows["untargeted", "two"] == pytest.approx(
        100 * (found["one/untargeted/two"] != found["labels"]).float().mean()
    )
    assert rows["targeted", "two"] == pytest.approx(
        100 * (found["one/targeted/two"] == found["targets"]).float().mean()
    )
    assert len(rows) == 4


@pytest.mark.parametrize("damaged, attacked", [(False, [False, True, True]), (True, [False, True, False, True])])
def test_an_interrupted_transfer_goes_on_with_what_is_missing_or_damaged(both, monkeypatch, data, damaged, attacked):  # noqa: F811
    whole, real, calls = run(both), transfer.attack_all, []

    def breaks(attack, *rest, **options):
        calls.append(attack)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(attack, *rest, **options)

    monkeypatch.setattr(transfer, "attack_all", breaks)
    with pytest.raises(KeyboardInterrupt):
        run(both)
    (kept,) = (data / "interrupted").glob("transfer-*/one-untargeted/tensors.safetensors")
    kept.write_bytes(b"cut off" if damaged else kept.read_bytes())
    again = run(both)
    assert [attack.targeted for attack in calls] == attacked
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())


def test_targets_are_wrong_classes_uniformly():
    labels = torch.arange(9000) % 10
    targets = wrong_classes(labels, 10, seed=0)
    assert (targets != labels).all() and targets.min() == 0 and targets.max() == 9
    shift = torch.bincount((targets - labels) % 10, minlength=10)
    assert shift[0] == 0 and (shift[1:] - 1000).abs().max() < 150


def test_a_transfer_names_families_that_are_there():
    assert ENTRY.problem({"sources": 1, "victims": 1}) == ""
    assert ENTRY.problem({"source": 1, "victims": 1}).startswith("sources: no family 'sources'; did you mean 'source'")
