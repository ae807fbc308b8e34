"""Families: networks that a table or a figure compares, trained and attacked by one stage, on a CPU side by side."""

import os
import shutil
import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, field, replace
from fractions import Fraction
from functools import partial
from multiprocessing import get_all_start_methods, get_context, parent_process
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
from pydantic import AfterValidator, Field

from robust_features import datasets, evaluation, hardware, store, training
from robust_features.attacks import Attack
from robust_features.hardware import HardwareSettings
from robust_features.paths import DATA
from robust_features.settings import Seed, describe, settings
from robust_features.statistics import over_seeds
from robust_features.training import Training

KINDS = ("models", "evaluations")  # of a member's records


def _once_each(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len({*seeds}) < len(seeds):
        raise ValueError(f"every seed once, found {list(seeds)}")
    return seeds


@settings
class Family:
    """Members by name, the seeds each is trained with, the attacks on it, and the attacks whose images are all kept."""

    members: Annotated[dict[str, Training], Field(min_length=1)]
    attacks: dict[str, Attack] = field(default_factory=dict)
    keep: tuple[str, ...] = ()
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1), AfterValidator(_once_each)] = (0,)

    def runs(self, member: str) -> dict[str, Training]:
        """What a member's records are called, and what they are of: one of the first seed, `<member>-seed<n>` of others."""
        model, (first, *others) = self.members[member], self.seeds
        return {member: replace(model, seed=first)} | {f"{member}-seed{n}": replace(model, seed=n) for n in others}

    @property
    def radii(self) -> dict[str, str]:
        """Members by the ε they are trained against, as tables name it: 1/4 → eps-1-4."""
        return {str(Fraction(model.radius).limit_denominator(1024)): name for name, model in self.members.items()}

    @property
    def trainings(self) -> dict[str, Training]:
        """Every record's settings, by name."""
        return {name: model for member in self.members for name, model in self.runs(member).items()}


def make(
    name: str, family: Family, *, machine: HardwareSettings, seed: int, report: Callable[[str], None] = print
) -> None:
    """Train and attack every member; write data/families/<name>/{models,evaluations}/<member>/.

    On a CPU as many members at once as it has cores for `machine.threads` each. A run that was interrupted goes on with the
    members that are not finished, and those with the epoch and the attack they were in.
    """
    place = _interrupted(family, seed)
    todo = [run for run in family.trainings if not all(store.kept(place / kind / run) for kind in KINDS)]
    if finished := len(family.trainings) - len(todo):
        report(f"{finished} of {len(family.trainings)} were finished before")
    cores = os.cpu_count() or 1
    workers = 1 if torch.cuda.is_available() else min(len(todo), cores // (machine.threads or cores))
    one = partial(_one, place, family, machine, seed, report if workers < 2 else _silent)
    for line in map(one, todo) if workers < 2 else _side_by_side(one, todo, workers):
        report(line)
    target = DATA / "families" / name
    for kind in KINDS:  # without what a killed process left half-written
        for partial_record in (place / kind).glob(".*.partial"):
            shutil.rmtree(partial_record)
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    place.rename(target)


def accuracies(name: str, family: Family, *, only: Collection[str] = ()) -> pd.DataFrame:
    """A row a member and attack (of all, or of `only`), `clean` among them: dataset, member, example, value, low, high, n.

    Percent; of one seed with Wilson's interval over the n images, of several with Student's over the n seeds.
    """
    rows = []
    for member, model in family.members.items():
        labels = datasets.load(model.dataset, "test").labels
        found = [evaluation.load(f"{name}/{run}") for run in family.runs(member)]
        for example in ["clean", *family.attacks]:
            values = [evaluation.accuracy_of(seed[example].predictions, labels) for seed in found]
            interval = values[0] if len(values) == 1 else over_seeds([value.value for value in values])
            if not only or example in only:
                rows.append({"dataset": model.dataset, "member": member, "example": example, **asdict(interval)})
    return pd.DataFrame(rows)


def _one(
    place: Path, family: Family, machine: HardwareSettings, seed: int, report: Callable[[str], None], name: str
) -> str:
    """Train and attack one member with one seed; what it is worth in one line."""

    def say(line: str) -> None:
        report(f"{name}: {line}")

    chosen, model = hardware.choose(machine), family.trainings[name]
    learnt, test = training.splits(model), datasets.load(model.dataset, "test")
    resume = training.resume_file(model, learnt)
    trained = training.train(learnt, model, hardware=chosen, resume=resume, report=say)
    training.save(place / "models" / name, trained, model, classes=test.classes)
    half = evaluation.resume_folder(family.attacks, trained.network, test, seed=seed)
    options = dict(hardware=chosen, seed=seed, whole=family.keep, resume=half, report=say)
    attacked = evaluation.attack_each(family.attacks, trained.network, test, **options)
    how = {key: evaluation.crafted_in(attack, trained.network, chosen) for key, attack in family.attacks.items()}
    evaluation.save(place / "evaluations" / name, attacked, family.attacks, precision=how)
    resume.unlink(missing_ok=True)
    shutil.rmtree(half, ignore_errors=True)
    right = {key: (found.predictions == test.labels).float().mean() for key, found in attacked.items()}
    return f"{name}: " + ", ".join(f"{key} {share:.1%}" for key, share in right.items())


def _side_by_side(function: Callable[[str], str], names: list[str], workers: int) -> Iterator[str]:
    """function(name) of every name, in processes of their own: training draws from a process's global generator."""
    context = get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn")
    context.set_forkserver_preload([__name__, "torch._dynamo"])  # torch and what its optimisers import, once for all
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_follow) as pool:
        yield from pool.map(function, names)


def _follow() -> None:
    """Let this process end with the one that started it, even if that is killed."""

    def wait() -> None:
        parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _interrupted(family: Family, seed: int) -> Path:
    """Where the finished members of an interrupted run of these settings on these images are kept."""
    datasets_used = sorted({model.dataset for model in family.members.values()})
    cards = [
        datasets.folder(name) / split / store.CARD
        for name in datasets_used
        for split in ("train", "validation", "test")
    ]
    return store.interrupted("family", [seed, describe(family), *(card.read_text() for card in cards)], [])


def _silent(line: str) -> None:
    """Lines of several members at once would mix."""
