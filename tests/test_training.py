import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from itertools import cycle

import pandas as pd
import pytest
import torch

from robust_features import construction, datasets, hardware, store, training
from robust_features.attacks import PGD
from robust_features.batches import Augmentation
from robust_features.construction import Constructions, Recipe, Relabelled
from robust_features.datasets import Digits, read
from robust_features.families import Family
from robust_features.models import VGG16, WideResNet
from robust_features.objectives import Adversarial, Standard
from robust_features.regularisers import IBRAR
from robust_features.settings import UserError
from robust_features.training import (
    HISTORY,
    SGD,
    Adam,
    OneCycle,
    StepLR,
    Trained,
    Training,
    load,
    resume_file,
    save,
    train,
)

pytestmark = pytest.mark.numeric
CPU = hardware.choose(hardware.HardwareSettings(device="cpu", precision="fp32"))
ATTACK = PGD(epsilon=0.1, step_size=0.05, steps=2)
SETTINGS = Training(
    dataset="digits",
    network=VGG16(width=0.0625),
    objective=Adversarial(attack=ATTACK),
    optimiser=SGD(learning_rate=0.1, momentum=0.9),
    schedule=OneCycle(),
    epochs=3,
    batch_size=32,
    augmentation=Augmentation(padding=2, flip=False),
    monitor=ATTACK,
)


@pytest.fixture(scope="module")
def splits():
    return read(Digits(train=128, validation=20, test=20, size=32), seed=0)


def quiet(splits, settings=SETTINGS, **options):
    return train(splits, settings, hardware=CPU, report=lambda line: None, **options)


def same(one, two):
    weights = zip(one.network.state_dict().values(), two.network.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in weights) and one.history.equals(two.history)


@pytest.mark.parametrize(
    "settings",
    [
        SETTINGS,
        replace(
            SETTINGS,
            network=WideResNet(depth=10, width=0.5, dropout=0.3),
            optimiser=Adam(learning_rate=1e-3),
            schedule=StepLR(every=1),
        ),
    ],
    ids=["vgg16-sgd", "dropout-adam"],
)
def test_two_runs_with_one_seed_are_identical_and_the_seed_matters(splits, settings):
    settings = replace(settings, epochs=1)
    torch.manual_seed(1)
    first = quiet(splits, settings)
    torch.manual_seed(2)
    assert same(first, quiet(splits, settings))
    assert not same(first, quiet(splits, replace(settings, seed=1)))


def test_keeping_the_best_epoch_gives_the_weights_it_ended_with_also_when_resumed(splits, tmp_path, monkeypatch):
    accuracy = cycle([{"clean": value} for value in (50.0, 70.0, 70.0, 60.0)])
    monkeypatch.setattr(training, "_validate", lambda *arguments: next(accuracy))
    settings, resume = (
        replace(SETTINGS, epochs=4, schedule=StepLR(every=9), keep="best", monitor=None),
        tmp_path / "s.pt",
    )
    best = quiet(splits, settings, resume=resume)
    short = quiet(splits, replace(settings, epochs=3, keep="last"))  # of two that are equally good the last
    assert all(map(torch.equal, best.network.state_dict().values(), short.network.state_dict().values()))
    assert same(best, quiet(splits, settings, resume=resume)), "which has nothing left to train"


def test_early_stopping_watches_constructed_validation_images_or_if_asked_the_true_ones(tmp_path, monkeypatch, splits):
    for module in (datasets, store, construction):
        monkeypatch.setattr(module, "DATA", tmp_path)
    datasets.save("digits", splits, SETTINGS)
    one = quiet(splits, replace(SETTINGS, epochs=1))
    save(store.folder("models", "sources/it"), one, SETTINGS, classes=splits["train"].classes)
    recipe = Recipe(member="it", make=Relabelled(targets="next", steps=1), splits=("train", "validation"))
    entry = Constructions(dataset="digits", family="sources", sets={"next": recipe})
    construction.make("made", entry, {"sources": Family(members={"it": SETTINGS})}, hardware=CPU, seed=0, report=str)
    made, true = (
        training.splits(replace(SETTINGS, dataset="made/next", keep=k))["validation"] for k in ("best", "best-true")
    )
    original = splits["validation"]
    assert torch.equal(true.images, original.images) and torch.equal(true.labels, original.labels)
    assert torch.equal(made.labels, (original.labels + 1) % 10) and not torch.equal(made.images, original.images)
    read_again = training.splits(replace(SETTINGS, keep="best-true"))["validation"]
    assert torch.equal(read_again.labels, original.labels), "of a dataset that no network made"


def test_in_bfloat16_only_the_network_computes(splits, monkeypatch):
    where, term = [], IBRAR.__call__
    monkeypatch.setattr(IBRAR, "__call__", lambda *a: where.append(torch.is_autocast_enabled("cpu")) or term(*a))
    settings = replace(SETTINGS, epochs=1, regulariser=IBRAR())
    half = train(splits, settings, hardware=replace(CPU, precision="bf16"), report=lambda line: None)
    assert half.precision == "bf16" and not any(where) and len(where) == 4
    assert {weight.dtype for weight in half.network.parameters()} == {torch.float32}
    whole = quiet(splits, settings)
    assert half.history["loss"].item() == pytest.approx(whole.history["loss"].item(), rel=0.05)
    assert not same(half, whole) and whole.precision == "fp32"


def test_without_a_monitor_the_network_is_the_same_and_the_history_knows_clean_accuracy_only(splits, tmp_path):
    lines, one = [], replace(SETTINGS, epochs=1)
    plain = train(splits, replace(one, monitor=None), hardware=CPU, report=lines.append)
    watched = quiet(splits, one)
    assert all(map(torch.equal, plain.network.state_dict().values(), watched.network.state_dict().values()))
    assert plain.history["clean"].equals(watched.history["clean"]) and plain.history["attacked"].isna().all()
    assert "validation" in lines[0] and "attacked" not in lines[0]
    save(tmp_path / "plain", plain, one, classes=splits["train"].classes)
    assert "NaN" not in (tmp_path / "plain" / store.CARD).read_text("utf-8"), "which is no JSON"


def test_the_radius_is_that_of_the_training_attack():
    assert SETTINGS.radius == 0.1 and replace(SETTINGS, objective=Standard()).radius == 0


def test_a_killed_run_resumes_and_ends_bit_identical(splits, tmp_path):
    resume = tmp_path / "state.pt"
    child = textwrap.dedent(f"""
        import sys; sys.path.insert(0, {os.path.dirname(__file__)!r})
        from pathlib import Path
        from test_training import *
        read_splits = read(Digits(train=128, validation=20, test=20, size=32), seed=0)
        train(read_splits, SETTINGS, hardware=CPU, resume=Path({str(resume)!r}), report=lambda line: print(line, flush=True))
    """)
    process = subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().startswith("epoch 1/3")
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and resume.exists()
    lines = []
    resumed = train(splits, SETTINGS, hardware=CPU, resume=resume, report=lines.append)
    assert lines[0].startswith("resumed after epoch")
    assert same(resumed, quiet(splits))


@pytest.mark.parametrize(
    "damage", [lambda state: state[: len(state) // 2], lambda state: b"garbage", lambda state: b""]
)
def test_a_damaged_resume_file_is_said_and_training_starts_anew(splits, tmp_path, damage):
    settings, resume, lines = replace(SETTINGS, objective=Standard(), epochs=1), tmp_path / "state.pt", []
    whole = quiet(splits, settings, resume=resume)
    resume.write_bytes(damage(resume.read_bytes()))
    again = train(splits, settings, hardware=CPU, resume=resume, report=lines.append)
    assert "state.pt: damaged" in lines[0] and "starts anew" in lines[0] and lines[1].startswith("epoch 1/1")
    assert same(again, whole) and same(quiet(splits, settings, resume=resume), whole)


def test_a_resume_file_of_another_network_leaves_no_trace(splits, tmp_path):
    settings, lines = replace(SETTINGS, objective=Standard(), epochs=1), []
    state = {"network": settings.build(10).state_dict(), "optimiser": {}, "schedule": {}, "history": [], "best": {}}
    for weights in state["network"].values():
        weights.zero_()
    torch.save(state, tmp_path / "state.pt")
    again = train(splits, settings, hardware=CPU, resume=tmp_path / "state.pt", report=lines.append)
    assert "starts anew" in lines[0] and same(again, quiet(splits, settings))


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda card: card.pop("classes"), "no 'classes', so another version wrote it"),
        (lambda card: card.pop("history"), "no 'history', so another version wrote it"),
        (lambda card: card["settings"].update(colour=1), "another version wrote it .unknown key 'colour'"),
        (lambda card: card["settings"]["network"].update(hidden=2), "another version wrote it .RuntimeError: Error"),
    ],
)
def test_a_model_of_another_version_is_refused_with_the_stage_to_run(splits, tmp_path, monkeypatch, change, said):
    monkeypatch.setattr("robust_features.store.DATA", tmp_path)
    trained = Trained(SETTINGS.build(10), pd.DataFrame(columns=HISTORY))
    save(tmp_path / "models" / "m", trained, SETTINGS, classes=splits["train"].classes)
    path = tmp_path / "models" / "m" / store.CARD
    card = json.loads(path.read_text("utf-8"))
    change(card)
    path.write_text(json.dumps(card), "utf-8")
    with pytest.raises(UserError, match=f"models/m: {said}.*; delete .*models/m and run `dvc repro train@m`") as error:
        load("m", hardware=CPU)
    assert "\n" not in str(error.value)


def test_nesterovs_step_needs_momentum():
    with pytest.raises(ValueError, match="nesterov needs momentum"):
        SGD(learning_rate=0.1, nesterov=True)


def test_training_lowers_the_loss_and_the_history_has_a_row_an_epoch(splits):
    history = quiet(splits, replace(SETTINGS, objective=Standard(), epochs=6)).history
    assert list(history.columns) == ["epoch", "loss", "clean", "attacked"] and list(history["epoch"]) == [*range(1, 7)]
    assert history["loss"].iloc[-1] < 0.7 * history["loss"].iloc[0]
    assert (history["attacked"] <= history["clean"]).all()


def test_a_diverging_run_stops_and_names_the_learning_rate(splits):
    settings = replace(SETTINGS, optimiser=SGD(learning_rate=1e18))
    with pytest.raises(UserError, match="diverged.*optimiser.learning_rate"):
        quiet(splits, settings)


@pytest.mark.parametrize("schedule, last", [(StepLR(every=1, gamma=0.2), 0.1 * 0.2**2), (OneCycle(), 0.0)])
def test_the_last_step_has_the_schedules_last_rate(schedule, last):
    parameter = torch.nn.Linear(1, 1)
    optimiser = SGD(learning_rate=0.1).build(parameter)
    steps = schedule.build(optimiser, 3, 4)
    for _ in range(3 * 4):
        optimiser.step()
        rate = optimiser.param_groups[0]["lr"]
        steps.step()
    assert rate == pytest.approx(last, abs=1e-6)


def test_interrupted_state_belongs_to_settings_and_images(splits):
    changed = replace(SETTINGS, epochs=4)
    fewer = splits | {"train": splits["train"].take(slice(100))}
    assert len({resume_file(SETTINGS, splits), resume_file(changed, splits), resume_file(SETTINGS, fewer)}) == 3


def test_a_saved_model_comes_back_as_it_was(splits, tmp_path, monkeypatch):
    monkeypatch.setattr("robust_features.store.DATA", tmp_path)
    trained = quiet(splits, replace(SETTINGS, epochs=1))
    save(store.folder("models", "digits-vgg16-test"), trained, SETTINGS, classes=splits["train"].classes)
    network, history = load("digits-vgg16-test", hardware=CPU)
    images = splits["test"].images.float() / 255
    assert torch.equal(network(images), trained.network(images)) and not network.training
    assert history.equals(trained.history)
