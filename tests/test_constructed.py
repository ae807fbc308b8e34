from dataclasses import replace

import pytest
import torch
from pydantic import TypeAdapter
from sample_networks import CE, CPU, GROUP, make_group, quick, save_digits

from companion import constructed, datasets, records, trained
from companion.constructed import Constructions, Recipe
from companion.mismatches import mismatches
from robust_features.construction import Relabelled, Robustified, construct
from robust_features.settings import UserError

SOURCES = replace(GROUP, members={"robust": CE, "other": GROUP.members["ibrar"]}, attacks={}, seeds=(1,))
SHORT = Robustified(steps=2)


@pytest.fixture
def sources(data, monkeypatch):
    save_digits()
    make_group("p/sources", SOURCES, monkeypatch)
    return data


def entry(**sets):
    return Constructions(dataset="digits", networks="p/sources", sets=sets)


def cook(by, how, splits=("train",), name="new/c/it"):
    constructed.make("new/c", entry(it=Recipe(by=by, make=how, splits=splits)), hardware=CPU, seed=3, report=str)
    return {split: constructed.load(name, split) for split in splits}


def test_a_constructed_dataset_is_a_dataset_like_any_other(sources):
    made = cook("robust", Relabelled(targets="next", steps=2))["train"]
    assert torch.equal(datasets.load("new/c/it", "train").images, made.images.images)
    assert torch.equal(made.images.labels, (datasets.load("digits", "train").labels + 1) % 10)
    for split in ("validation", "test"):
        assert torch.equal(datasets.load("new/c/it", split).images, datasets.load("digits", split).images)


def test_distances_are_the_means_of_what_was_made(sources):
    made = cook("robust", SHORT, ("test",))["test"]
    row = constructed.distances({"it": "new/c/it"}, "test").loc["it"]
    assert row["before / after"] == pytest.approx((made.before.mean() / made.after.mean()).item())
    assert row["n"] == 20 and row["L2 moved"] == pytest.approx(made.l2.mean().item())


def test_a_set_made_for_tests_has_no_training_images(sources):
    cook("robust", SHORT, ("test",))
    assert [part.name for part in (sources / "constructed/new/c/it").iterdir()] == ["test"]


def test_of_every_member_one_set_is_made_the_same_as_by_itself(sources):
    expected = cook("other", SHORT, ("test",))["test"]
    together = cook("every", SHORT, ("test",), "new/c/it/other")["test"]
    assert torch.equal(together.images.images, expected.images.images)
    cards = [records.load(sources / "constructed/new/c/it" / name / "test").card for name in ("robust", "other")]
    assert [card["network"] for card in cards] == ["p/sources/robust", "p/sources/other"]
    assert cards[0]["mean"] != cards[1]["mean"]
    assert not list((sources / "interrupted").iterdir())


def test_a_dataset_rebuilt_from_its_card_is_identical(sources):
    cook("robust", Robustified(steps=3, step_size=0.2), ("train", "test"))
    card = records.load(sources / "constructed/new/c/it/test").card
    recipe = TypeAdapter(Recipe).validate_python(card["recipe"] | {"by": "robust"})
    network, images = trained.load(card["network"], hardware=CPU), datasets.load(card["dataset"], "test")
    rebuilt = construct(recipe.make, network, images, hardware=CPU, seed=card["seed"])
    assert torch.equal(rebuilt.images.images, datasets.load("new/c/it", "test").images)
    assert card["size"] == 20 and card["mean"]["after"] == pytest.approx(rebuilt.after.mean().item())
    assert card["source_sha256"] == records.load(records.folder("model", "p/sources/robust")).card["sha256"]


@pytest.mark.parametrize("damaged", [False, True])
def test_an_interrupted_construction_goes_on_with_what_is_missing_or_damaged(sources, monkeypatch, damaged):
    recipe = Recipe(by="robust", make=SHORT, splits=("test",), batch_size=10)
    both = entry(a=recipe, b=replace(recipe, by="other"))
    constructed.make("new/c", both, hardware=CPU, seed=3, report=str)
    whole, calls, move = constructed.load("new/c/b", "test"), [], Robustified.move

    def breaks(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return move(*arguments)

    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # batch after batch
    monkeypatch.setattr(Robustified, "move", breaks)
    with pytest.raises(KeyboardInterrupt):
        constructed.make("new/c", both, hardware=CPU, seed=3, report=str)
    kept = [*(sources / "interrupted").glob("construction-*/test-*/card.json")]
    assert len(kept) == 3, "of the finished dataset too"
    kept[0].write_text("{" if damaged else kept[0].read_text())
    constructed.make("new/c", both, hardware=CPU, seed=3, report=str)
    assert len(calls) == 4 + 1 + damaged and not list((sources / "interrupted").iterdir())
    assert torch.equal(constructed.load("new/c/b", "test").images.images, whole.images.images)


def test_an_entrys_datasets_are_called_by_entry_set_and_of_every_member_by_that(sources):
    ids = entry(r=Recipe(by="every", make=SHORT), zero=Recipe(by="other", make=SHORT)).ids("new/c")
    assert {id: member for id, (_, member) in ids.items()} == {
        "new/c/r/robust": "robust",
        "new/c/r/other": "other",
        "new/c/zero": "other",
    }
    assert list(entry(r=Recipe(by="every", make=SHORT)).ids("new/c", ["one"])) == ["new/c/r/one"]


@pytest.mark.parametrize(
    "wrong, place, said",
    [
        ({"networks": "springer/source"}, "networks", "no group of networks 'springer/source'; did you mean 'springer/sources'"),
        ({"dataset": "digit-16"}, "dataset", "no dataset 'digit-16'; did you mean 'digits-16'"),
        ({"sets": {"r": Recipe(by="robust", make=SHORT)}}, "by", "no member 'robust'; there are every, eps-"),
    ],
)  # fmt: skip
def test_what_an_entry_refers_to_and_is_not_there_is_named(wrong, place, said):
    run = quick()
    broken = replace(run.constructed["springer/main"], **wrong)
    found = dict(mismatches(replace(run, constructed={**run.constructed, "springer/main": broken})))
    assert any(
        at[:2] == ("constructed", "springer/main") and at[-1] == place and said in why for at, why in found.items()
    )
    assert not dict(mismatches(run))


def test_a_dataset_that_was_not_made_is_named_with_its_stage(sources):
    with pytest.raises(UserError, match="new/c/none/train: there is none yet; run `dvc repro construct@new/c`"):
        constructed.load("new/c/none", "train")
