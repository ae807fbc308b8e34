from dataclasses import replace

import pytest
import torch
from sample_networks import CE, CPU, GROUP, make_group, quick, save_digits

from companion import datasets, paths, trained, transfer
from companion.evaluations import GALLERY
from companion.mismatches import mismatches
from companion.transfer import Transfer, make, successes, wrong_classes
from robust_features.attacks import PGD
from robust_features.evaluation import attack_all, predict

pytestmark = pytest.mark.numeric

STEP = PGD(epsilon=2.0, step_size=1.0, steps=2, norm="l2", random_start=False)
ENTRY = Transfer(
    dataset="digits",
    sources="p/sources",
    victims="p/victims",
    attacks={"untargeted": STEP, "targeted": replace(STEP, targeted=True)},
)


@pytest.fixture
def both(data, monkeypatch):
    save_digits()
    make_group("p/sources", replace(GROUP, members={"one": CE}, attacks={}), monkeypatch)
    make_group("p/victims", replace(GROUP, members={"two": CE}, attacks={}, seeds=(7,)), monkeypatch)
    return data


def run():
    make("p/t", ENTRY, hardware=CPU, seed=0, report=str)
    return transfer.rows("p/t")


def of(rows, attack, victim, column="prediction"):
    return torch.tensor(rows.query(f"attack == '{attack}' and victim == '{victim}'")[column].to_numpy())


def test_victims_are_shown_what_the_attack_makes_of_the_source(both):
    rows, images = run(), datasets.load("digits", "test")
    source, victim = (trained.load(name, hardware=CPU) for name in ("p/sources/one", "p/victims/two"))
    for attack, goal in (("untargeted", "label"), ("targeted", "target")):
        aimed = replace(images, labels=of(rows, attack, "two", goal))
        expected = attack_all(ENTRY.attacks[attack], source, aimed, hardware=CPU, seed=0, images_kept=20)
        shown = predict(victim, expected.images, hardware=CPU).argmax(1)
        assert torch.equal(of(rows, attack, "itself"), expected.predictions)
        assert torch.equal(of(rows, attack, "two"), shown)
        assert torch.equal(transfer.images("p/t", "one", attack), expected.images[:GALLERY])
    assert not torch.equal(transfer.images("p/t", "one", "targeted"), transfer.images("p/t", "one", "untargeted"))
    assert not list((both / "interrupted").iterdir())


def test_the_rows_are_one_a_source_attack_victim_and_image(both):
    rows, images = run(), datasets.load("digits", "test")
    assert list(rows) == ["source", "attack", "victim", "image", "label", "target", "prediction"]
    keys = rows[["source", "attack", "victim", "image"]]
    assert len(rows) == 2 * 2 * 20 and not keys.duplicated().any()
    assert rows["label"].tolist() == images.labels.tolist() * 4
    assert rows["target"].tolist() == wrong_classes(images.labels, 10, seed=0).tolist() * 4


def test_successes_count_mistakes_or_hits_of_the_target(both):
    rows, shares = run(), successes("p/t", ENTRY).set_index(["attack", "victim"])["value"]
    wrong = of(rows, "untargeted", "two") != of(rows, "untargeted", "two", "label")
    hit = of(rows, "targeted", "two") == of(rows, "targeted", "two", "target")
    assert shares["untargeted", "two"] == pytest.approx(100 * wrong.float().mean().item())
    assert shares["targeted", "two"] == pytest.approx(100 * hit.float().mean().item())
    assert len(shares) == 4


def test_a_transfer_made_by_hand_is_read_before_the_pipelines(both, monkeypatch):
    pipelines = run()
    monkeypatch.delenv(paths.PAGE)
    assert transfer.rows("p/t").equals(pipelines), "where there is no other"
    make("p/t", replace(ENTRY, attacks={"mine": STEP}), hardware=CPU, seed=0, report=str)
    assert {*transfer.rows("p/t")["attack"]} == {"mine"} and (both / "explored/transfers/p/t").exists()
    monkeypatch.setenv(paths.PAGE, str(both))
    assert transfer.rows("p/t").equals(pipelines)


@pytest.mark.parametrize("damaged, attacked", [(False, [False, True, True]), (True, [False, True, False, True])])
def test_an_interrupted_transfer_goes_on_with_what_is_missing_or_damaged(both, monkeypatch, damaged, attacked):
    whole, images, calls = run(), transfer.images("p/t", "one", "targeted"), []

    def breaks(attack, *rest, **options):
        calls.append(attack.targeted)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return attack_all(attack, *rest, **options)

    monkeypatch.setattr(transfer, "attack_all", breaks)
    with pytest.raises(KeyboardInterrupt):
        run()
    (kept,) = (both / "interrupted").glob("transfer-*/one-untargeted/tensors.safetensors")
    kept.write_bytes(b"cut off" if damaged else kept.read_bytes())
    assert run().equals(whole) and calls == attacked
    assert torch.equal(transfer.images("p/t", "one", "targeted"), images)


def test_targets_are_wrong_classes_uniformly():
    labels = torch.arange(9000) % 10
    targets = wrong_classes(labels, 10, seed=0)
    assert (targets != labels).all() and targets.min() == 0 and targets.max() == 9
    shift = torch.bincount((targets - labels) % 10, minlength=10)
    assert shift[0] == 0 and (shift[1:] - 1000).abs().max() < 150


@pytest.mark.parametrize("field, name", [("sources", "springer/source"), ("victims", "springer/victim")])
def test_a_transfer_names_groups_that_are_there(field, name):
    run = quick()
    broken = replace(run.transfers["springer/main"], **{field: name})
    ((place, said),) = mismatches(replace(run, transfers={**run.transfers, "springer/main": broken}))
    assert place == ("transfers", "springer/main", field)
    assert said.startswith(f"no group of networks '{name}'; did you mean '{name}s'?")
