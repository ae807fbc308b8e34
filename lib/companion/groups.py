"""Networks that a table or a figure compares, trained, attacked and distilled by one stage; on a CPU, side by side."""

import json
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
from pydantic import AfterValidator, Field, model_validator

from companion import datasets, distillations, evaluations, fetched, records, trained
from companion.paths import outputs
from robust_features import hardware
from robust_features.attacks import Attack
from robust_features.batches import as_float
from robust_features.bottleneck import Bottleneck
from robust_features.evaluation import accuracy_of, crafted_in
from robust_features.hardware import HardwareSettings
from robust_features.settings import Seed, describe, settings
from robust_features.statistics import of_runs
from robust_features.training import Training, train


def _once_each(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len({*seeds}) < len(seeds):
        raise ValueError(f"every seed once, found {list(seeds)}")
    return seeds


@settings
class Group:
    """Members by name, the seeds each is trained with, the attacks on it, and whether its features are distilled."""

    members: Annotated[dict[str, Training], Field(min_length=1)]
    attacks: dict[str, Attack] = field(default_factory=dict)
    only: dict[str, tuple[str, ...]] = field(default_factory=dict)  # for some members, which attacks are made on them
    images: tuple[str, ...] = ()  # attacks whose images are all kept
    distil: tuple[str, ...] = ()  # attacks whose images are distilled, besides the clean ones
    bottleneck: Bottleneck | None = None  # how
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1), AfterValidator(_once_each)] = (0,)
    reads: str  # the folder under data/ that its members learn from

    @model_validator(mode="after")
    def _one_record_each(self) -> "Group":
        taken = {name for member in self.members for name in self.runs(member) if name != member} & {*self.members}
        if taken:
            raise ValueError(f"the member {min(taken)} has the name of another one's seed; call it otherwise")
        return self

    def runs(self, member: str) -> dict[str, Training]:
        """The names of a member's records, and of what: its own for the first seed, `<member>-seed<n>` for others."""
        model, (first, *others) = self.members[member], self.seeds
        return {member: replace(model, seed=first)} | {f"{member}-seed{n}": replace(model, seed=n) for n in others}

    @property
    def trainings(self) -> dict[str, Training]:
        """Every record's settings, by name."""
        return {name: model for member in self.members for name, model in self.runs(member).items()}

    @property
    def radii(self) -> dict[str, str]:
        """Members by the ε they are trained against, smallest first, as tables name it: 1/4 → eps-1-4."""
        ordered = sorted(self.members.items(), key=lambda item: item[1].radius)
        return {str(Fraction(model.radius).limit_denominator(1024)): name for name, model in ordered}

    def attacks_on(self, run: str) -> dict[str, Attack]:
        """The attacks on a record, by name."""
        member = next(member for member in self.members if run in self.runs(member))
        return {name: self.attacks[name] for name in self.only.get(member, self.attacks)}


def make(
    name: str, group: Group, *, machine: HardwareSettings, seed: int, report: Callable[[str], None] = print
) -> None:
    """Train, attack and distil every member; write data/networks/<name>/<member>/{model,evaluation,distillation}/.

    On a CPU, as many members at once as it has cores for `machine.threads` each. An interrupted run goes on with the
    members that are not finished, at the epoch and the attack they were in.
    """
    place = _interrupted(group, seed)
    todo = [run for run in group.trainings if not (place / run).exists()]
    if finished := len(group.trainings) - len(todo):
        report(f"{finished} of {len(group.trainings)} were finished before")
    cores = hardware.cores()
    workers = 1 if torch.cuda.is_available() else min(len(todo), cores // (machine.threads or cores))
    one = partial(_one, place, group, machine, seed, report if workers < 2 else _silent)
    for line in map(one, todo) if workers < 2 else _side_by_side(one, todo, workers):
        report(line)
    (place / records.MEMBERS).write_text(json.dumps([*group.trainings]), "utf-8")
    target = outputs() / "networks" / name
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(place, target)


def accuracies(name: str, group: Group, *, only: Collection[str] = ()) -> pd.DataFrame:
    """One row per member and attack (all, or `only`), with `clean`: dataset, member, example, value, low, high, n.

    Percent; for one seed with Wilson's interval over the n images, for several with Student's over the n seeds.
    """
    rows = []
    for member, model in group.members.items():
        labels = datasets.load(model.dataset, "test").labels
        found = [evaluations.load(f"{name}/{run}") for run in group.runs(member)]
        for example in [example for example in found[0] if not only or example in only]:
            values = [accuracy_of(seed[example].predictions, labels) for seed in found]
            row = {"dataset": model.dataset, "member": member, "example": example}
            rows.append({**row, **asdict(of_runs(values))})
    return pd.DataFrame(rows)


def history(name: str, group: Group, *, seeds: Collection[int] = ()) -> pd.DataFrame:
    """One row per member and epoch: member, seed, epoch, loss, validation accuracy clean and attacked (percent).

    Of each member's runs the first alone, or those with one of `seeds`."""
    rows = [
        trained.history(f"{name}/{run}").assign(member=member, seed=model.seed)
        for member in group.members
        for run, model in group.runs(member).items()
        if model.seed in (seeds or group.seeds[:1])
    ]
    return pd.concat(rows, ignore_index=True)


def _one(
    place: Path, group: Group, machine: HardwareSettings, seed: int, report: Callable[[str], None], name: str
) -> str:
    """Train, attack and distil one member with one seed; returns its accuracies in one line."""

    def say(line: str) -> None:
        report(f"{name}: {line}")

    chosen, model, attacks = hardware.choose(machine), group.trainings[name], group.attacks_on(name)
    learnt, test = trained.splits(model), datasets.load(model.dataset, "test")
    half = place.with_name(f"{place.name}-{name}")
    shutil.rmtree(half, ignore_errors=True)  # what a killed process left half-written
    with records.unfinished("training", describe(model), trained.tensors(learnt)) as once:
        found, commit = fetched.take(model, learnt, hardware=chosen)
        if found:
            say(f"fetched, in half precision, as trained at commit {commit}")
        else:
            found = train(learnt, model, hardware=chosen, resume=once.folder / "state.pt", report=say)
        trained.save(half / "model", found, model, classes=test.classes, commit=commit)
        options = dict(hardware=chosen, seed=seed, report=say)
        whole = {*group.images, *group.distil}
        attacked = evaluations.attack_each(attacks, found.network, test, whole=whole, **options)
        how = {key: crafted_in(attack, found.network, chosen) for key, attack in attacks.items()}
        evaluations.save(half / "evaluation", attacked, attacks, test.labels, how)
        if group.bottleneck:
            kept = {key: attacked[key].images for key in group.distil if key in attacked}
            examples = {"clean": as_float(test.images)} | kept
            distilled = distillations.distil_examples(found.network, examples, test.labels, group.bottleneck, **options)
            distillations.save(half / "distillation", distilled, group.bottleneck)
        place.mkdir(parents=True, exist_ok=True)
        half.rename(place / name)
    right = {key: (each.predictions == test.labels).float().mean() for key, each in attacked.items()}
    return f"{name}: " + ", ".join(f"{key} {share:.1%}" for key, share in right.items())


def _side_by_side(function: Callable[[str], str], names: list[str], workers: int) -> Iterator[str]:
    """function(name) of every name, each in its own process: training draws from a process's global generator."""
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


def _interrupted(group: Group, seed: int) -> Path:
    """Where the finished members of an interrupted run of these settings on these images are kept."""
    used = sorted({model.dataset for model in group.members.values()})
    cards = [datasets.folder(name) / split / records.CARD for name in used for split in ("train", "validation", "test")]
    return records.interrupted("group", [seed, describe(group), *(card.read_text("utf-8") for card in cards)], [])


def _silent(line: str) -> None:
    """Lines of several members at once would mix."""
