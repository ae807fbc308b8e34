import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from itertools import cycle

import pytest
import torch
from sample_networks import CPU

from companion.datasets import Digits, read
from robust_features.attacks import PGD
from robust_features.batches import Augmentation
from robust_features.networks import VGG16, WideResNet
from robust_features.regularisers import IBRAR
from robust_features.settings import UserError
from robust_features.training import SGD, Adam, OneCycle, StepLR, Training, loop, train
from robust_features.training.objectives import Adversarial, Standard

pytestmark = pytest.mark.numeric
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
    return all(torch.equal(a, b) for a, b in weights) and one.history == two.history


def column(trained, name):
    return [row.get(name) for row in trained.history]


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
    monkeypatch.setattr(loop, "_validate", lambda *arguments: next(accuracy))
    settings, resume = (
        replace(SETTINGS, epochs=4, schedule=StepLR(every=9), keep="best", monitor=None),
        tmp_path / "s.pt",
    )
    best = quiet(splits, settings, resume=resume)
    short = quiet(splits, replace(settings, epochs=3, keep="last"))  # of two that are equally good the last
    assert all(map(torch.equal, best.network.state_dict().values(), short.network.state_dict().values()))
    assert same(best, quiet(splits, settings, resume=resume)), "which has nothing left to train"


def test_in_bfloat16_only_the_network_computes(splits, monkeypatch):
    where, term = [], IBRAR.__call__
    monkeypatch.setattr(
        IBRAR, "__call__", lambda *a, **k: where.append(torch.is_autocast_enabled("cpu")) or term(*a, **k)
    )
    settings = replace(SETTINGS, epochs=1, regulariser=IBRAR())
    half = train(splits, settings, hardware=replace(CPU, precision="bf16"), report=lambda line: None)
    assert half.precision == "bf16" and not any(where) and len(where) == 4
    assert {weight.dtype for weight in half.network.parameters()} == {torch.float32}
    whole = quiet(splits, settings)
    assert column(half, "loss") == pytest.approx(column(whole, "loss"), abs=0.05)
    assert not same(half, whole) and whole.precision == "fp32"


def test_without_a_monitor_the_network_is_the_same_and_the_history_knows_clean_accuracy_only(splits):
    lines, one = [], replace(SETTINGS, epochs=1)
    plain = train(splits, replace(one, monitor=None), hardware=CPU, report=lines.append)
    watched = quiet(splits, one)
    assert all(map(torch.equal, plain.network.state_dict().values(), watched.network.state_dict().values()))
    assert column(plain, "clean") == column(watched, "clean") and column(plain, "attacked") == [None]
    assert "validation" in lines[0] and "attacked" not in lines[0]


def test_the_radius_is_that_of_the_training_attack():
    assert SETTINGS.radius == 0.1 and replace(SETTINGS, objective=Standard()).radius == 0


def test_a_killed_run_resumes_and_ends_bit_identical(splits, tmp_path):
    resume = tmp_path / "state.pt"
    child = textwrap.dedent(f"""
        import sys, time; sys.path.insert(0, {os.path.dirname(__file__)!r})
        from pathlib import Path
        from test_training import *
        read_splits = read(Digits(train=128, validation=20, test=20, size=32), seed=0)
        def report(line):
            print(line, flush=True)
            if line.startswith("epoch 2/"):
                time.sleep(600)  # killed in the second epoch, or here: never at its end
        train(read_splits, SETTINGS, hardware=CPU, resume=Path({str(resume)!r}), report=report)
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


def test_nesterovs_step_needs_momentum():
    with pytest.raises(ValueError, match="nesterov needs momentum"):
        SGD(learning_rate=0.1, nesterov=True)


def test_training_lowers_the_loss_and_the_history_has_a_row_an_epoch(splits):
    found = quiet(splits, replace(SETTINGS, objective=Standard(), epochs=6))
    assert [*found.history[0]] == ["epoch", "loss", "clean", "attacked"] and column(found, "epoch") == [*range(1, 7)]
    loss = column(found, "loss")
    assert loss[-1] < 0.7 * loss[0]
    assert all(row["attacked"] <= row["clean"] for row in found.history)


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
