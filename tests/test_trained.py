import json
from dataclasses import replace

import pytest
import torch
from sample_networks import CE, CPU, GROUP, PGD2, make_group, save_digits

from companion import constructed, datasets, records, trained
from companion.constructed import Constructions, Recipe
from robust_features.construction import Relabelled
from robust_features.settings import UserError
from robust_features.training import HISTORY, Trained, train

CLASSES = tuple("0123456789")


@pytest.fixture
def digits(data):
    save_digits()
    return {split: datasets.load("digits", split) for split in ("train", "validation", "test")}


def test_a_saved_model_comes_back_as_it_was(digits, data):
    settings = replace(CE, epochs=2)
    found = train(digits, settings, hardware=CPU, report=str)
    trained.save(records.folder("model", "p/g/m"), found, settings, classes=CLASSES)
    network = trained.load("p/g/m", hardware=CPU)
    images = digits["test"].images / 255
    assert torch.equal(network(images), found.network(images)) and not network.training
    history = trained.history("p/g/m")
    assert list(history) == HISTORY and history.to_dict("records") == found.history
    card = records.load(data / "networks/p/g/m/model").card
    assert (card["precision"], card["settings"]["epochs"], card["classes"]) == ("fp32", 2, [*CLASSES])


def test_without_a_monitor_the_history_has_no_attacked_accuracy(digits, data):
    found = train(digits, replace(CE, monitor=None), hardware=CPU, report=str)
    trained.save(records.folder("model", "p/g/m"), found, CE, classes=CLASSES)
    history = trained.history("p/g/m")
    assert list(history) == HISTORY and history["attacked"].isna().all() and history["clean"].notna().all()
    assert "NaN" not in (data / "networks/p/g/m/model" / records.CARD).read_text("utf-8"), "which is no JSON"


def test_early_stopping_watches_constructed_validation_images_or_if_asked_the_true_ones(digits, monkeypatch):
    make_group("p/g", replace(GROUP, members={"it": CE}, attacks={}), monkeypatch)
    recipe = Recipe(by="it", make=Relabelled(targets="next", steps=1), splits=("train", "validation"))
    entry = Constructions(dataset="digits", networks="p/g", sets={"next": recipe})
    constructed.make("new/c", entry, hardware=CPU, seed=0, report=str)
    made, true = (
        trained.splits(replace(CE, dataset="new/c/next", keep=keep))["validation"] for keep in ("best", "best-true")
    )
    original = digits["validation"]
    assert torch.equal(true.images, original.images) and torch.equal(true.labels, original.labels)
    assert torch.equal(made.labels, (original.labels + 1) % 10) and not torch.equal(made.images, original.images)
    again = trained.splits(replace(CE, keep="best-true"))["validation"]
    assert torch.equal(again.labels, original.labels), "of a dataset that no network made"


def test_interrupted_state_belongs_to_settings_and_images(digits):
    def place(settings, splits):
        return records.interrupted("training", trained.describe(settings), trained.tensors(splits))

    fewer = digits | {"train": digits["train"].take(slice(50))}
    watched = digits | {"validation": digits["validation"].take(slice(9))}
    places = [place(CE, digits), place(replace(CE, seed=1), digits), place(CE, fewer), place(CE, watched)]
    assert len({*places}) == 4 and places[0] == place(replace(CE, monitor=PGD2), {**digits})


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda card: card.pop("classes"), "no 'classes', so another version wrote it"),
        (lambda card: card.pop("settings"), "no 'settings', so another version wrote it"),
        (lambda card: card["settings"].update(colour=1), "another version wrote it .unknown key 'colour'"),
        (lambda card: card["settings"]["network"].update(hidden=2), "another version wrote it .RuntimeError: Error"),
    ],
)
def test_a_model_of_another_version_is_refused_with_the_stage_to_run(data, change, said):
    trained.save(records.folder("model", "p/g/m"), Trained(CE.build(10), []), CE, classes=CLASSES)
    path = data / "networks/p/g/m/model" / records.CARD
    card = json.loads(path.read_text("utf-8"))
    change(card)
    path.write_text(json.dumps(card), "utf-8")
    with pytest.raises(
        UserError, match=f"p/g/m/model: {said}.*; delete .*/p/g and run `dvc repro networks@p/g`"
    ) as error:
        trained.load("p/g/m", hardware=CPU)
    assert "\n" not in str(error.value)


def test_a_history_of_another_version_is_refused(data):
    records.save(records.folder("model", "p/g/m"), {}, {})
    with pytest.raises(UserError, match="no 'history', so another version wrote it; delete .*networks@p/g`"):
        trained.history("p/g/m")
