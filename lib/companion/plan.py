"""What a scale costs, before it runs: `python -m companion plan [SCALE]`.

It counts passes, one image forward and back through a network, and times one pass of each network on this machine. For
attacks that stop once an image is fooled, only a share of the images is counted, `surviving`. Regularisers and the
sections, which mostly read what is there, are not counted. For the scale `gpu` nothing is timed: `companion.roofline`
says what one GPU would take.
"""

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter

import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F

from companion import roofline
from companion.constructed import Recipe
from companion.datasets import Source
from companion.groups import Group
from companion.params import Run, check
from companion.resolve import written
from companion.roofline import Kind
from robust_features import evaluation, hardware
from robust_features.attacks import Attack
from robust_features.bottleneck import CHUNK, Bottleneck
from robust_features.hardware import BATCH_ON_A_GPU, Hardware, Precision
from robust_features.networks import NetworkSettings, build, label
from robust_features.training import Training

COUNTED = "gpu"  # the scale whose minutes are counted, on whatever machine
About = tuple[str, str, NetworkSettings, int]  # the first four of Work
ABOUT = 17_000, 1_700  # training and test images if only reading them tells: nine groups of Tiny-ImageNet
FORWARD = 1 / 3  # of a pass, for one without gradients
CLASSES, BATCH, ROUNDS = 10, 100, 3  # of the networks and the batches that are timed


@dataclass(frozen=True)
class Work:
    """Equal calls of one network, or of its head alone, in a stage: the number of batches, and of images in all."""

    stage: str
    record: str  # what is trained, attacked or made by it
    network: NetworkSettings
    size: int  # pixels of an image's side
    kind: Kind
    images: float
    calls: float
    does: str = "pgd"  # what surrounds the network, an entry of BESIDE in companion.roofline
    precision: Precision = "bf16"  # on a GPU
    recorded: bool = False  # there

    @property
    def passes(self) -> float:
        """Passes of an image, forward and back."""
        return self.images * (FORWARD if self.kind == "forward" else 1)


def passes(attack: Attack, surviving: float = 1.0, classes: int = CLASSES) -> float:
    """Mean passes of an attack on an image, if this share of the images is never fooled.

    >>> from robust_features.attacks import PGD
    >>> passes(PGD(epsilon=0.03, step_size=0.01, steps=20, restarts=5), surviving=0.5)
    60.0
    """
    match attack.kind:
        case "pgd":
            first = attack.steps * (surviving if attack.until == "fooled" else 1)
            return first + attack.steps * (attack.restarts - 1) * surviving
        case "apgd":
            return attack.steps * max(1, attack.targets) * surviving
        case "fab":
            return attack.steps * (attack.targets or classes - 1) * surviving
        case "square":
            return attack.queries * FORWARD * surviving
        case "autoattack":
            return sum(passes(part, surviving, classes) for part in attack.parts)
        case "adaptive":
            return float(attack.pgd.steps)
        case _:
            return float(attack.steps)


def attacked(about: About, attack: Attack, images: int, surviving: float) -> Iterator[Work]:
    """An attack on this many images; a batch goes on to the last step as long as one of its images is not fooled."""
    precision = evaluation.crafted_in(attack, nn.Identity(), Hardware(torch.device("cuda"), "bf16"))
    for part in attack.parts if attack.kind == "autoattack" else (attack,):
        if part.kind == "square":
            queries = images * part.queries * surviving
            yield Work(*about, "forward", queries, _batches(images) * part.queries, "square", precision)
            continue
        each, steps = passes(part, surviving), part.pgd.steps if part.kind == "adaptive" else part.steps
        yield Work(*about, "attack", images * each, _batches(images) * max(steps, each), part.kind, precision)


def trained(about: About, model: Training, images: int, validation: int) -> Iterator[Work]:
    """A whole training on this many images, and what is watched."""
    inner = 0 if model.objective.kind == "standard" else model.objective.attack.steps
    outer = 2 if model.objective.kind in ("trades", "trades-kim", "mart") else 1
    seen, watched = model.epochs * images, model.epochs * validation
    batches = model.epochs * (images // model.batch_size)
    does = "regularised" if model.regulariser else "training"
    recorded = not model.regulariser  # what a regulariser inverts cannot be
    yield Work(*about, "training", seen * outer, batches * outer, does, recorded=recorded)
    yield Work(*about, "attack", seen * inner, batches * inner, recorded=recorded)
    yield Work(*about, "forward", watched, model.epochs * _batches(validation))
    if model.monitor:
        yield from attacked(about, model.monitor, watched, 1.0)
        yield Work(*about, "forward", watched, model.epochs * _batches(validation))


def distilled(how: Bottleneck, sets: int, images: int) -> float:
    """Passes through the head: clean images with three labels, each attacked set with two."""
    return float(how.steps * images * (3 + 2 * sets))


def surviving(model: Training) -> float:
    """The share of images that attacks within ε do not fool, roughly."""
    return 0.05 if model.objective.kind == "standard" else 0.5


def works(run: Run) -> Iterator[Work]:
    """The work of every heavy stage of a scale, network by network."""
    for name, group in run.networks.items():
        for member, model in group.trainings.items():
            yield from _member(f"networks@{name}", run, group, member, model)
    for key, entry in run.constructed.items():
        data, members = run.datasets[entry.dataset], run.networks[entry.networks].trainings
        for id, (recipe, member) in entry.ids(key, [*members]).items():
            count = _each(recipe) * sum(_count(data)[split] for split in recipe.splits)
            steps = 0 if getattr(recipe.make, "control", "") in ("noise", "unmoved") else recipe.make.steps
            about = f"construct@{key}", id, members[member].network, data.size
            yield Work(*about, "attack", count * steps, _batches(count, recipe.batch_size) * steps, recipe.make.kind)
    for key, transfer in run.transfers.items():
        data, victims = run.datasets[transfer.dataset], len(run.networks[transfer.victims].trainings)
        count = _count(data)["test"]
        for source, model in run.networks[transfer.sources].trainings.items():
            about = f"transfer@{key}", source, model.network, data.size
            for attack in transfer.attacks.values():
                yield from attacked(about, attack, count, 1.0)
                yield Work(*about, "forward", count * victims, _batches(count) * victims)


def counts(run: Run) -> dict[str, float]:
    """Passes of every heavy stage of a scale."""
    found: dict[str, float] = {}
    for work in works(run):
        found[work.stage] = found.get(work.stage, 0.0) + work.passes
    return found


def timed(network: NetworkSettings, size: int, chosen: Hardware) -> tuple[float, float]:
    """Seconds of one image's pass through a network, and through its head, in the precision that it is trained in."""
    built = chosen.place(build(network, CLASSES, seed=0)).train()
    images = torch.rand(BATCH, 3, size, size).to(chosen.device, memory_format=torch.channels_last)
    labels = torch.zeros(BATCH, dtype=torch.int64, device=chosen.device)
    with torch.no_grad():
        z = built.features(images)
    seconds = []
    for run, given in ((built, images), (built.head, z.detach().requires_grad_())):
        rounds = []
        for _ in range(ROUNDS):
            begun = perf_counter()
            with chosen.autocast(chosen.precision_of(built)):
                loss = F.cross_entropy(run(given), labels)
            loss.backward()
            loss.item()  # waits for a GPU
            rounds.append(perf_counter() - begun)
        seconds.append(min(rounds) / BATCH)
    return seconds[0], seconds[1]


def plan(run: Run) -> pd.DataFrame:
    """One row per heavy stage: networks, million passes, hours on one core (or GPU), the longest first."""
    chosen = hardware.choose(run.hardware)
    found, speeds = [*works(run)], {}
    for work in found:
        key = label(work.network), work.size
        if key not in speeds:
            speeds[key] = timed(work.network, work.size, chosen)
    rows = pd.DataFrame(
        {
            "stage": work.stage,
            "networks": work.record,
            "million passes": work.passes / 1e6,
            "hours": work.passes * speeds[label(work.network), work.size][work.kind == "head"] / 3600,
        }
        for work in found
    )
    return _by_stage(rows).sort_values("hours", ascending=False)


def counted(run: Run) -> pd.DataFrame:
    """One row per heavy stage, in params.yaml's order: networks, million passes, TFLOP, counted minutes on one GPU."""
    costs: dict[tuple[str, int, Kind], roofline.Cost] = {}
    rows = []
    for work in works(run):
        key = label(work.network), work.size, work.kind
        if key not in costs:
            costs[key] = roofline.cost(work.network, work.size, work.kind)
        how = work.does, work.precision
        seconds = roofline.seconds(costs[key], work.images, work.calls, *how, recorded=work.recorded)
        row = {"stage": work.stage, "networks": work.record, "million passes": work.passes / 1e6}
        rows.append(row | {"TFLOP": work.images * costs[key].flops / 1e12, "minutes": seconds / 60})
    return _by_stage(pd.DataFrame(rows))


def needs(run: Run, paper: str) -> tuple[list[str], list[str]]:
    """The heavy stages that a paper's pages need, and the datasets that those read."""
    entries = {f"construct@{key}": [entry.networks] for key, entry in run.constructed.items()}
    entries |= {f"transfer@{key}": [each.sources, each.victims] for key, each in run.transfers.items()}
    own = [stage for stage in entries if _paper(stage) == paper]
    groups = {name for name in run.networks if _paper(name) == paper} | {
        name for stage in own for name in entries[stage]
    }
    used = {model.dataset for name in groups for model in run.networks[name].members.values()}
    return [*(f"networks@{name}" for name in run.networks if name in groups), *own], sorted(used & run.datasets.keys())


def subtotals(run: Run, rows: pd.DataFrame) -> pd.DataFrame:
    """One row per paper, from `counted`: stages, TFLOP, and minutes: of work, to start and read, of sections, all."""
    found = {}
    for paper in dict.fromkeys(_paper(name) for name in run.networks):
        stages, data = needs(run, paper)
        own = rows.loc[stages]
        waits = (len(stages) * roofline.START + len(data) * roofline.READING) / 60
        total = own["minutes"].sum() + waits + roofline.SECTIONS / 60
        found[paper] = {"stages": len(stages), "TFLOP": own["TFLOP"].sum(), "work": own["minutes"].sum()}
        found[paper] |= {"starts": waits, "sections": roofline.SECTIONS / 60, "minutes": total}
    return pd.DataFrame.from_dict(found, orient="index")


def _by_stage(rows: pd.DataFrame) -> pd.DataFrame:
    """Sums per stage; for networks, how many."""
    sums = {name: "nunique" if name == "networks" else "sum" for name in rows.columns[1:]}
    return rows.groupby("stage", sort=False).agg(sums)


def _member(stage: str, run: Run, group: Group, name: str, model: Training) -> Iterator[Work]:
    """Its training, its attacks, its distillation."""
    data, copies = _read(run, model.dataset)
    about, count = (stage, name, model.network, data.size), _count(data)
    yield from trained(about, model, copies * count["train"], copies * count["validation"])
    test, attacks = count["test"], group.attacks_on(name)
    yield Work(*about, "forward", test, _batches(test))
    for attack in attacks.values():
        yield from attacked(about, attack, test, surviving(model))
    if group.bottleneck:
        heads = distilled(group.bottleneck, len({*group.distil} & {*attacks}), test)
        yield Work(*about, "head", heads, heads / min(CHUNK * BATCH_ON_A_GPU, test), "distilled", "fp32")


def _batches(count: int, size: int | None = None) -> int:
    return math.ceil(count / (size or BATCH_ON_A_GPU))


def _each(recipe: Recipe) -> int:
    """How many images are made from one."""
    return CLASSES if getattr(recipe.make, "targets", "") == "every" else 1


def _read(run: Run, name: str) -> tuple[Source, int]:
    """The dataset that a constructed one is made from, and how many images from one; for others itself, and 1."""
    for key, entry in run.constructed.items():
        for set_name, recipe in entry.sets.items():
            if f"{name}/".startswith(f"{key}/{set_name}/"):
                return run.datasets[entry.dataset], _each(recipe)
    return run.datasets[name], 1


def _paper(name: str) -> str:
    """The paper of a group, an entry or its stage: networks@kim/vgg16 belongs to kim."""
    return name.rpartition("@")[2].partition("/")[0]


def _count(data: Source) -> dict[str, int]:
    """Images of each split."""
    train, test = data.available or ABOUT
    return {"train": data.train or train - data.validation, "validation": data.validation, "test": data.test or test}


def main() -> None:
    """Print the plan of a scale, by default the one that params.yaml names."""
    text = written()
    _, run = check(text, *(sys.argv[1:2] or [str(text["scale"])]))
    if run.scale == COUNTED:
        return _print_counted(run)
    rows, slots = plan(run), max(1, torch.cuda.device_count() or hardware.cores())
    print(rows.round({"million passes": 2, "hours": 2}).to_string())
    hours = rows["hours"].sum()
    print(
        f"\n{run.scale}: {len(rows)} stages, {rows['million passes'].sum():.1f} million passes,"
        f" {hours:.1f} hours one by one;"
    )
    print(f"at best {max(hours / slots, rows['hours'].max()):.1f} hours on {slots} cores or GPUs.")


def _print_counted(run: Run) -> None:
    rows = counted(run)
    print(rows.round({"million passes": 2, "TFLOP": 0, "minutes": 2}).to_string())
    print(
        f"\n{run.scale}, a paper with all that it needs, minutes: of its stages, to start them and to read datasets,"
        " of its pages"
    )
    print(subtotals(run, rows).round({"TFLOP": 0, "work": 1, "starts": 1, "sections": 1, "minutes": 1}).to_string())
    print(
        f"counted, not measured: one H100 at {roofline.RATE['bf16'] / 1e12:.0f} TFLOP/s in bf16,"
        f" {roofline.RATE['fp32'] / 1e12:.0f} in TF32, {roofline.BANDWIDTH / 1e12:.1f} TB/s,"
        f" and {1e6 * roofline.LAUNCH:.0f} µs an operation; one stage after another"
    )
