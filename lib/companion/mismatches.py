"""What does not fit together in a run, though each entry is valid: names that refer to nothing, networks and images."""

import ast
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, is_dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

from companion import paths
from companion.constructed import EVERY
from companion.datasets import Source
from robust_features import networks
from robust_features.attacks import FeatureGradient
from robust_features.networks import NetworkSettings
from robust_features.settings import nearest
from robust_features.training import Training

if TYPE_CHECKING:
    from companion.params import Run

Mismatch = tuple[tuple[Any, ...], str]  # where in the resolved run, and what is wrong


def mismatches(run: "Run") -> Iterator[Mismatch]:
    """Everything in a run that would fail later, or mean nothing."""
    for name, data in run.datasets.items():
        if problem := data.problem():
            yield ("datasets", name), problem
    yield from _void(vars(run), ())
    yield from _boundless(run)
    yield from _networks(run)
    yield from _constructed(run)
    yield from _of_one_origin(run)
    for name, transfer in run.transfers.items():
        yield from _absent(("transfers", name, "dataset"), "dataset", transfer.dataset, run.datasets)
        for role in ("sources", "victims"):
            yield from _absent(("transfers", name, role), "group of networks", getattr(transfer, role), run.networks)
    yield from _sections(run)
    for position, name in enumerate(run.fetch):
        yield from _absent(("fetch", position), "group of networks", name, run.networks)
    for kind in ("networks", "constructed", "transfers"):
        for name in getattr(run, kind):
            if not re.fullmatch(r"[a-z0-9-]+/[a-z0-9-]+", name):
                yield (kind, name), "its name reads <paper>/<role>, in lower-case letters, digits and hyphens"
    inner = {("networks", name, "members", key) for name, group in run.networks.items() for key in group.members}
    inner |= {("constructed", name, "sets", key) for name, entry in run.constructed.items() for key in entry.sets}
    inner |= {("datasets", name) for name in run.datasets}
    for place in sorted(inner):
        if not re.fullmatch(r"[a-z0-9-]+", place[-1]):
            yield place, f"the name '{place[-1]}' may hold lower-case letters, digits and hyphens only"


def _networks(run: "Run") -> Iterator[Mismatch]:
    positions, made = cache(_positions), _made(run)
    for name, group in run.networks.items():
        for member, model in group.members.items():
            place = ("networks", name, "members", member)
            yield from _absent((*place, "dataset"), "dataset", model.dataset, {**run.datasets, **made})
            data = run.datasets.get(made.get(model.dataset, model.dataset))
            distilled = group.distil or any(isinstance(attack, FeatureGradient) for attack in group.attacks.values())
            yield from _unfit(model, place, data, positions, distilled=bool(distilled))
            if model.seed:
                yield (
                    (*place, "seed"),
                    f"a group's members are trained with its `seeds`, {list(group.seeds)}; leave it out",
                )
        for key in ("images", "distil"):
            for attack in getattr(group, key):
                yield from _absent(("networks", name, key), "attack", attack, group.attacks)
        for member, attacks in group.only.items():
            yield from _absent(("networks", name, "only"), "member", member, group.members)
            for attack in attacks:
                yield from _absent(("networks", name, "only", member), "attack", attack, group.attacks)


def _constructed(run: "Run") -> Iterator[Mismatch]:
    for name, entry in run.constructed.items():
        yield from _absent(("constructed", name, "dataset"), "dataset", entry.dataset, run.datasets)
        yield from _absent(("constructed", name, "networks"), "group of networks", entry.networks, run.networks)
        if entry.networks in run.networks:
            known = [EVERY, *run.networks[entry.networks].trainings]
            for key, recipe in entry.sets.items():
                yield from _absent(("constructed", name, "sets", key, "by"), "member", recipe.by, known)


def _of_one_origin(run: "Run") -> Iterator[Mismatch]:
    """Networks that begin with the very weights of their images' maker: these tell them more than they tell others.

    A VGG-16 of its maker's seed learnt 41 % of CIFAR-10's test images from D_rand, others 10 to 18 %."""
    makers = {
        id: (f"{entry.networks}/{member}", run.networks[entry.networks].trainings.get(member))
        for name, entry in run.constructed.items()
        if entry.networks in run.networks
        for id, (_, member) in entry.ids(name, [*run.networks[entry.networks].trainings]).items()
    }
    pairs = [
        (name, run_name, model, *makers[model.dataset])
        for name, group in run.networks.items()
        for run_name, model in group.trainings.items()
        if model.dataset in makers
    ]
    pairs += [
        (transfer.victims, run_name, model, f"{transfer.sources}/{member}", source)
        for transfer in run.transfers.values()
        if {transfer.sources, transfer.victims} <= {*run.networks}
        for run_name, model in run.networks[transfer.victims].trainings.items()
        for member, source in run.networks[transfer.sources].trainings.items()
    ]
    for group, name, model, maker, source in pairs:
        if source and (model.network, model.seed) == (source.network, source.seed):
            said = (
                f"{name} begins with the weights that {maker} began with, which makes its images; choose another seed"
            )
            yield ("networks", group, "seeds"), said


def _made(run: "Run") -> dict[str, str]:
    """The constructed datasets: id → the dataset they are made from."""
    entries = {name: entry for name, entry in run.constructed.items() if entry.networks in run.networks}
    return {
        id: entry.dataset
        for name, entry in entries.items()
        for id in entry.ids(name, [*run.networks[entry.networks].trainings])
    }


def _sections(run: "Run") -> Iterator[Mismatch]:
    """Parameters that a notebook does not have."""
    for name, given in run.sections.items():
        path = paths.NOTEBOOKS / f"{name}.ipynb"
        if not path.exists():
            known = [other.stem for other in sorted(paths.NOTEBOOKS.glob("*.ipynb"))]
            yield ("sections", name), f"no notebook '{name}'{nearest(name, known)}"
            continue
        cells = json.loads(path.read_text("utf-8"))["cells"]
        cell = next(("".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", [])), "")
        known = [
            node.id
            for node in ast.walk(ast.parse(cell))
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        ]
        for key in given:
            yield from _absent(("sections", name, key), "parameter", key, known)


def _absent(place: tuple[Any, ...], what: str, name: str, known: Iterable[str]) -> Iterator[Mismatch]:
    if name not in (known := [*known]):
        yield place, f"no {what} '{name}'{nearest(name, known)}; there are {', '.join(known)}"


def _unfit(
    model: Training,
    place: tuple[Any, ...],
    data: Source | None,
    positions: Callable[[NetworkSettings, int], int],
    *,
    distilled: bool,
) -> Iterator[Mismatch]:
    """Why a network cannot be trained so, or on these images; `distilled`: or cannot be distilled."""
    if model.regulariser and (problem := model.regulariser.problem(_thin(model.network), model.batch_size)):
        yield (*place, "regulariser"), problem
    if model.mask and (problem := model.mask.problem(model.batch_size)):
        yield (*place, "mask"), problem
    if data is None:
        return
    kind, size, least = model.network.kind, data.size, 2 if distilled else 1
    if positions(model.network, size) < least:
        enough = next((more for more in (16, 32, 64, 128) if positions(model.network, more) >= least), None)
        remedy = f"take a dataset of {enough} pixels" if enough else "take another network"
        left = "one position at its split, a distillation needs two" if positions(model.network, size) else "nothing"
        yield (*place, "network"), f"{kind} leaves of images of {size} pixels {left}; {remedy}"
    if data.taught and model.batch_size > data.taught:
        yield (*place, "batch_size"), f"{model.batch_size} is more than the {data.taught} images of {model.dataset}"
    if model.augmentation.padding >= size:
        yield (*place, "augmentation", "padding"), f"{model.augmentation.padding} pixels of black hide images of {size}"


def _thin(network: NetworkSettings) -> networks.Network:
    """The network with few channels, quick to build: its stages, and the positions in each, are those of any width."""
    return networks.build(replace(network, width=1 / 16), 2, seed=0)


def _positions(network: NetworkSettings, size: int) -> int:
    """How many positions the split has for images of `size` pixels; 0 if these are too small for the network."""
    if isinstance(network, networks.Victim):  # three halvings; importing torchvision takes seconds
        return (size // 8 if network.kind == "densenet121" else math.ceil(size / 8)) ** 2
    thin, images = _thin(network), torch.zeros(2, 3, size, size)
    with networks.frozen(thin), torch.no_grad():
        try:
            features = thin.features(images)
            thin.head(features)
        except RuntimeError:  # pooled below one pixel
            return 0
    return features[0, 0].numel()


def _tables(value: Any, place: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], dict[Any, Any]]]:
    """Settings and what is inside of them, as mappings, each with its place."""
    inner = {f.name: getattr(value, f.name) for f in fields(value)} if is_dataclass(value) else value
    if isinstance(inner, dict):
        yield place, inner
        for key, part in inner.items():
            yield from _tables(part, (*place, key))


def _void(value: Any, place: tuple[Any, ...]) -> Iterator[Mismatch]:
    """Attacks that cannot change an image."""
    for at, inner in _tables(value, place):
        for key in ("epsilon", "step_size"):
            if inner.get(key) == 0:
                yield (*at, key), "0 leaves every image as it is; write a size, such as 8/255, or leave the attack out"


def _boundless(run: "Run") -> Iterator[Mismatch]:
    """L2 radii within which every image lies, whatever its pixels: most likely an ε in bytes."""
    made = _made(run)

    def size(dataset: str) -> float:
        data = run.datasets.get(made.get(dataset, dataset))
        return data.size if data else math.inf

    for name, group in run.networks.items():
        for member, model in group.members.items():
            yield from _beyond(model, ("networks", name, "members", member), size(model.dataset))
        largest = max(size(model.dataset) for model in group.members.values())
        yield from _beyond(group.attacks, ("networks", name, "attacks"), largest)
    for kind, key in (("constructed", "sets"), ("transfers", "attacks")):
        for name, entry in getattr(run, kind).items():
            yield from _beyond(getattr(entry, key), (kind, name, key), size(entry.dataset))


def _beyond(value: Any, place: tuple[Any, ...], size: float) -> Iterator[Mismatch]:
    most = math.sqrt(3) * size
    for at, inner in _tables(value, place):
        radius = inner.get("epsilon")
        if radius and inner.get("norm", "l2") == "l2" and radius > most:
            far = f"{radius:g} in L2 is more than two images of {size} pixels can differ, {most:.1f}"
            yield (*at, "epsilon"), f"{far}; write {radius:g}/255"
