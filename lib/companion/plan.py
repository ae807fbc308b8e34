"""What a scale costs, before it runs: `python -m companion.plan [SCALE]`.

Counted are passes, one image forward and back through a network; timed is one of each network on this machine. Of attacks that
leave an image once it is fooled, a part of the images is counted, SURVIVORS. Regularisers and the sections, which mostly read
what is there, are not counted.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter

import pandas as pd
import torch
from torch.nn import functional as F

from companion import paths
from companion.datasets import Source
from companion.groups import Group
from companion.params import Run, check, read
from robust_features import hardware
from robust_features.attacks import Attack
from robust_features.bottleneck import Bottleneck
from robust_features.hardware import Hardware
from robust_features.networks import NetworkSettings, build, label
from robust_features.settings import UserError
from robust_features.training import Training

ABOUT = 17_000, 1_700  # training and test images where they are known once they are read: nine groups of Tiny-ImageNet
SURVIVORS = {
    False: 0.5,
    True: 0.05,
}  # shares of images that attacks within ε do not fool, of networks trained so or not
FORWARD = 1 / 3  # of a pass, for one without gradients
CLASSES, BATCH, ROUNDS = 10, 100, 3  # of the networks and the batches that are timed


@dataclass(frozen=True)
class Work:
    """Passes that a stage makes through one network: of whole networks, and of heads alone, where features are distilled."""

    stage: str
    network: NetworkSettings
    size: int  # pixels of an image's side
    whole: float
    head: float = 0.0


def passes(attack: Attack, surviving: float = 1.0, classes: int = CLASSES) -> float:
    """Mean passes of an attack on an image, if so large a share of the images is never fooled.

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


def epochs(model: Training, images: int, validation: int) -> float:
    """Passes of a whole training on so many images, and of what is watched."""
    inner = 0 if model.objective.kind == "standard" else model.objective.attack.steps
    outer = 2 if model.objective.kind in ("trades", "trades-kim", "mart") else 1
    watched = FORWARD + (passes(model.monitor) + FORWARD if model.monitor else 0)
    return model.epochs * (images * (inner + outer) + validation * watched)


def distilled(how: Bottleneck, sets: int, images: int) -> float:
    """Passes through the head: clean images with three labels, each attacked set with two."""
    return float(how.steps * images * (3 + 2 * sets))


def works(run: Run) -> Iterator[Work]:
    """What every heavy stage of a scale does, network by network."""
    bases = {f"{key}/{name}": entry.dataset for key, entry in run.constructed.items() for name in entry.sets}
    for name, group in run.networks.items():
        for member, model in group.trainings.items():
            yield _member(f"networks@{name}", run, group, member, model, run.datasets[_base(bases, model.dataset)])
    for key, entry in run.constructed.items():
        data, members = run.datasets[entry.dataset], run.networks[entry.networks].trainings
        for recipe, member in entry.ids(key, [*members]).values():
            count = sum(_count(data)[split] for split in recipe.splits)
            yield Work(f"construct@{key}", members[member].network, data.size, float(count * recipe.make.steps))
    for key, transfer in run.transfers.items():
        data, victims = run.datasets[transfer.dataset], len(run.networks[transfer.victims].trainings)
        for model in run.networks[transfer.sources].trainings.values():
            each = sum(passes(attack) + FORWARD * victims for attack in transfer.attacks.values())
            yield Work(f"transfer@{key}", model.network, data.size, _count(data)["test"] * each)


def timed(network: NetworkSettings, size: int, chosen: Hardware) -> tuple[float, float]:
    """Seconds of a pass through a network, and through its head, an image, in the precision that it is trained in."""
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
    """A row a heavy stage: networks, million passes, hours on one core (or GPU), the longest first."""
    chosen = hardware.choose(run.hardware)
    found, speeds = [*works(run)], {}
    for work in found:
        key = label(work.network), work.size
        if key not in speeds:
            speeds[key] = timed(work.network, work.size, chosen)
    rows = pd.DataFrame(
        {
            "stage": work.stage,
            "networks": 1,
            "million passes": (work.whole + work.head) / 1e6,
            "hours": (work.whole * whole + work.head * head) / 3600,
        }
        for work in found
        for whole, head in [speeds[label(work.network), work.size]]
    )
    return rows.groupby("stage", sort=False).sum().sort_values("hours", ascending=False)


def _member(stage: str, run: Run, group: Group, name: str, model: Training, data: Source) -> Work:
    count, attacks = _count(data), group.attacks_on(name)
    whole = epochs(model, count["train"], count["validation"])
    surviving = SURVIVORS[model.objective.kind == "standard"]
    whole += count["test"] * (FORWARD + sum(passes(attack, surviving) for attack in attacks.values()))
    sets = len({*group.distil} & {*attacks})
    head = distilled(group.bottleneck, sets, count["test"]) if group.bottleneck else 0.0
    return Work(stage, model.network, data.size, whole, head)


def _count(data: Source) -> dict[str, int]:
    """Images of each split."""
    train, test = data.available or ABOUT
    return {"train": data.train or train - data.validation, "validation": data.validation, "test": data.test or test}


def _base(bases: dict[str, str], name: str) -> str:
    """The dataset that a constructed one is made of; of others itself."""
    return next((base for key, base in bases.items() if f"{name}/".startswith(f"{key}/")), name)


def main(scale: str = "") -> None:
    """Print the plan of a scale, by default the one that params.yaml names."""
    text = read(paths.PARAMS)
    _, run = check(text, scale or str(text["scale"]))
    rows, slots = plan(run), max(1, torch.cuda.device_count() or hardware.cores())
    print(rows.round({"million passes": 2, "hours": 2}).to_string())
    hours = rows["hours"].sum()
    print(
        f"\n{run.scale}: {len(rows)} stages, {rows['million passes'].sum():.1f} million passes, {hours:.1f} hours one by one;"
    )
    print(f"at best {max(hours / slots, rows['hours'].max()):.1f} hours on {slots} cores or GPUs.")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:2])
    except UserError as error:
        raise SystemExit(str(error)) from None
