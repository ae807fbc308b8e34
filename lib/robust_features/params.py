"""params.yaml → Run. Everything wrong with it is said at once, by key, before any stage runs."""

import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from robust_features import models
from robust_features.attacks import APGD, Attack, AutoAttack, FeatureGradient
from robust_features.bottleneck import Bottleneck
from robust_features.construction import EVERY, Constructions
from robust_features.datasets import DatasetSettings, Source
from robust_features.families import Family
from robust_features.files import atomic
from robust_features.hardware import HardwareSettings
from robust_features.inversion import Inversion
from robust_features.models import NetworkSettings
from robust_features.objectives import Standard
from robust_features.paths import PARAMS
from robust_features.settings import Count, NonNegative, Positive, Seed, UserError, nearest, settings
from robust_features.training import Training
from robust_features.transfer import Transfer


@settings
class TSNE:
    """Figures 2 and of App. D: so many test images, and the perplexity of van der Maaten and Hinton 2008."""

    images: Count
    perplexity: Positive

    @model_validator(mode="after")
    def _fewer_neighbours_than_images(self) -> "TSNE":
        if self.perplexity >= self.images:
            raise ValueError(f"perplexity {self.perplexity:g} must be less than images, {self.images}")
        return self


@settings
class Kim:
    """The choices of the notebooks on Kim et al. 2021."""

    distilled: tuple[str, ...] = ("fgsm", "pgd", "cw")  # the attacks of Tables 1 and 2, whose images are kept
    betas: tuple[NonNegative, ...]  # the horizontal axis of Fig. 5
    tsne: TSNE
    visualised: Count  # images of Fig. 3
    inversion: Inversion


@settings
class Xu:
    """The choices of the notebooks on Xu et al. 2022; members are of the family xu-plain."""

    tsne: TSNE
    channels: Count  # training images that the channels are scored on


@settings
class Study:
    """Springer et al. 2021 on one dataset; what they need is named springer-<dataset>-…, `robust` is a member of the sources."""

    dataset: str
    robust: str


@settings
class Springer:
    """What stands in for the two datasets of Springer et al. 2021."""

    cifar10: Study
    imagenet9: Study

    @property
    def studies(self) -> dict[str, Study]:
        """By the paper's dataset."""
        return {"cifar10": self.cifar10, "imagenet9": self.imagenet9}


@settings
class Run:
    """One scale: what is read, trained, attacked and shown."""

    scale: str
    title: str
    seed: Seed
    hardware: HardwareSettings
    datasets: dict[str, DatasetSettings]
    models: dict[str, Training]
    attacks: dict[str, dict[str, Attack]]  # by dataset
    bottleneck: Bottleneck
    kim: Kim
    families: dict[str, Family]
    constructed: dict[str, Constructions]
    descendants: dict[str, Family]  # families that are trained on constructed datasets
    transfers: dict[str, Transfer]
    xu: Xu
    springer: Springer

    def dimensions(self, *defences: str) -> dict[str, dict[str, str]]:
        """The models of these defences (of all, if none is named): id → its dataset, network and defence, as tables name them."""
        found = {}
        for name, model in self.models.items():
            network, defence = name[len(model.dataset) + 1 :].rsplit("-", 1)
            if not defences or defence in defences:
                found[name] = {"dataset": model.dataset, "network": network, "defence": defence}
        return found

    def attacks_on(self, model: str) -> dict[str, Attack]:
        """The attacks of a model's dataset by name; of a standard-trained network, which all of them fool, the distilled ones."""
        attacks = self.attacks[self.models[model].dataset]
        plain = isinstance(self.models[model].objective, Standard)
        return {name: attack for name, attack in attacks.items() if not plain or name in self.kim.distilled}

    def robustified(self, dataset: str) -> dict[str, str]:
        """The test sets R_ε of a dataset: ε, as tables name it → id (Springer et al. 2021, Sec. 3.3)."""
        sources = self.families[f"springer-{dataset}-sources"]
        return {epsilon: f"springer-{dataset}/r/{member}" for epsilon, member in sources.radii.items()}

    def stand_ins(self, families: str = "") -> str:
        """For captions: how the networks in the papers' rows differ from the published ones; empty where they do not.

        Of `models`, or of the families whose names begin with `families`.
        """
        if families:
            chosen = [family for name, family in self.families.items() if name.startswith(families)]
            networks = {model.network.kind: model.network for family in chosen for model in family.members.values()}
        else:
            networks = {parts["network"]: self.models[name].network for name, parts in self.dimensions().items()}
        changed = []
        for name, network in networks.items():
            full = type(network)()
            differ = [key for key in ("depth", "width") if getattr(network, key, None) != getattr(full, key, None)]
            if differ:
                changed.append(f"{name} has {', '.join(f'{key} {getattr(network, key):g}' for key in differ)}")
        return f" (narrow: {'; '.join(changed)})" if changed else ""


def load(path: Path = PARAMS) -> Run:
    """The `run` of params.yaml. Raises UserError listing every unknown key, wrong value and missing reference."""
    text = _read(path)
    try:
        run = TypeAdapter(Run).validate_python(text)
    except ValidationError as error:
        raise UserError("\n".join(f"{path.name}, {line}" for line in _explain(error, text))) from error
    if problems := list(_dangling(run)):
        raise UserError("\n".join(f"{path.name}, {problem}" for problem in problems))
    return run


def _read(path: Path) -> dict[str, Any]:
    try:
        text = YAML(typ="safe").load(path)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = "".join(path.read_text("utf-8").splitlines()[mark.line :][:1]).strip() if mark else ""  # none at the end
        raise UserError(f"{path.name} is not valid YAML: {error}: {line}") from error
    if not isinstance(text, dict) or not isinstance(text.get("run"), dict):
        raise UserError(f"{path.name}: needs `run: *quick`, where quick is one of the scales defined above it")
    return text["run"]


def _explain(error: ValidationError, data: Any) -> Iterator[str]:
    """One line a mistake: `run.models.x.epochs: what is wrong`."""
    for item in error.errors():
        place, node = ["run"], data
        for part in item["loc"]:
            known = part in node if isinstance(node, dict) else isinstance(part, int)
            absent = item["type"] == "missing" and part is item["loc"][-1]
            if known or absent:  # the other parts are names of union members
                place.append(str(part))
                node = node[part] if known else None
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "union_tag_invalid":
            expected = item["ctx"]["expected_tags"].replace("'", "").split(", ")
            place.append("kind")
            tag = item["ctx"]["tag"]
            message = f"'{tag}' is none of {', '.join(sorted(expected))}{nearest(tag, expected)}"
        elif item["type"] == "union_tag_not_found":
            place.append("kind")
            message = "Field required"
        elif item["type"] not in ("missing", "value_error"):
            message += f", found {item['input']!r}"
        yield f"{'.'.join(place)}: {message}"


def _dangling(run: Run) -> Iterator[str]:
    """Names that refer to nothing, ids that tables could not read, and entries that do not fit each other."""
    positions = cache(_positions)
    for name, data in run.datasets.items():
        if problem := data.problem():
            yield f"run.datasets.{name}.{problem}"
    yield from _void(run, "run")
    for name, model in run.models.items():
        place = f"run.models.{name}"
        if model.dataset not in run.datasets:
            near = nearest(model.dataset, run.datasets)
            yield f"{place}.dataset: no dataset '{model.dataset}'{near}; there are {', '.join(run.datasets)}"
        elif model.dataset not in run.attacks:
            yield f"run.attacks: no attacks for dataset '{model.dataset}', which {name} is trained on"
        attacks = run.attacks.get(model.dataset, {})
        yield from _unfit(model, place, run.datasets.get(model.dataset), positions, attacks, distilled=True)
        if not re.fullmatch(rf"{re.escape(model.dataset)}-[\w-]+-[a-z]+", name):
            yield f"{place}: a model's id reads <dataset>-<network>-<defence>, here {model.dataset}-…-…"
    sound = {name: entry for name, entry in run.constructed.items() if not entry.problem(run.families)}
    made = {id: entry.dataset for name, entry in sound.items() for id in entry.ids(name, run.families)}
    for kind, families, known in (("families", run.families, run.datasets), ("descendants", run.descendants, made)):
        for family, entry in families.items():
            for name, model in entry.members.items():
                place = f"run.{kind}.{family}.members.{name}"
                yield from _absent(f"{place}.dataset", "dataset", model.dataset, known)
                data = run.datasets.get(made.get(model.dataset, model.dataset))
                yield from _unfit(model, place, data, positions, entry.attacks)
                if model.seed:
                    yield f"{place}.seed: a family's members are trained with its `seeds`, {list(entry.seeds)}; leave it out"
            for name in entry.keep:
                yield from _absent(f"run.{kind}.{family}.keep", "attack", name, entry.attacks)
    for name, entry in run.constructed.items():
        yield from _absent(f"run.constructed.{name}.dataset", "dataset", entry.dataset, run.datasets)
        if problem := entry.problem(run.families):
            yield f"run.constructed.{name}.{problem}"
    for name, study in run.springer.studies.items():
        place, sources = f"run.springer.{name}", f"springer-{study.dataset}-sources"
        yield from _absent(f"{place}.dataset", "family", sources, run.families)
        if sources in run.families:
            yield from _absent(f"{place}.robust", "member", study.robust, run.families[sources].members)
        entry = run.constructed.get(f"springer-{study.dataset}")
        if (getattr(entry, "dataset", ""), getattr(entry, "family", "")) != (study.dataset, sources):
            yield f"{place}: needs run.constructed.springer-{study.dataset} with dataset {study.dataset} and family {sources}"
        elif "r" not in entry.sets or entry.sets["r"].member != EVERY:
            yield f"{place}: needs run.constructed.springer-{study.dataset}.sets.r with `member: {EVERY}`"
    for name, transfer in run.transfers.items():
        yield from _absent(f"run.transfers.{name}.dataset", "dataset", transfer.dataset, run.datasets)
        if problem := transfer.problem(run.families):
            yield f"run.transfers.{name}.{problem}"
    for dataset, attacks in run.attacks.items():
        for name in {*run.kim.distilled} - {*attacks}:
            yield f"run.attacks.{dataset}: no attack '{name}', which run.kim.distilled names{nearest(name, attacks)}"
    families = run.families | run.descendants
    inner = {name for entry in families.values() for name in entry.members}
    inner |= {name for entry in run.constructed.values() for name in entry.sets}
    for name in {*run.datasets, *run.models, *run.attacks, *families, *run.constructed, *run.transfers, *inner}:
        if not re.fullmatch(r"[a-z0-9-]+", name):
            yield f"run: the id '{name}' may hold lower-case letters, digits and hyphens only"


def _absent(place: str, what: str, name: str, known: Iterable[str]) -> Iterator[str]:
    if name not in known:
        yield f"{place}: no {what} '{name}'{nearest(name, known)}"


def _unfit(
    model: Training,
    place: str,
    data: Source | None,
    positions: Callable[[NetworkSettings, int], int],
    attacks: Mapping[str, Attack],
    *,
    distilled: bool = False,
) -> Iterator[str]:
    """What keeps a network from being trained so on these images, from being attacked, and if asked from being distilled."""
    if model.regulariser and (problem := model.regulariser.problem(_thin(model.network), model.batch_size)):
        yield f"{place}.regulariser.{problem}"
    if data is None:
        return
    distilled = distilled or any(isinstance(attack, FeatureGradient) for attack in attacks.values())
    kind, size, least = model.network.kind, data.size, 2 if distilled else 1
    if positions(model.network, size) < least:
        enough = next((more for more in (16, 32, 64, 128) if positions(model.network, more) >= least), None)
        remedy = f"take a dataset of {enough} pixels" if enough else "take another network"
        left = "one position at its split, a distillation needs two" if positions(model.network, size) else "nothing"
        yield f"{place}.network: {kind} leaves of images of {size} pixels {left}; {remedy}"
    if data.taught and model.batch_size > data.taught:
        yield f"{place}.batch_size: {model.batch_size} is more than the {data.taught} images of {model.dataset}"
    for name in attacks if data.class_count and data.class_count < 4 else ():
        if _compares_four_classes(attacks[name]):
            yield f"{place}: attack {name} compares four classes, {model.dataset} has {data.class_count}; leave it out"
    if model.augmentation.padding >= size:
        yield f"{place}.augmentation.padding: {model.augmentation.padding} pixels of black hide images of {size}"


def _compares_four_classes(attack: Attack) -> bool:
    return isinstance(attack, AutoAttack) or (isinstance(attack, APGD) and (attack.loss == "dlr" or attack.targets > 0))


def _thin(network: NetworkSettings) -> models.Network:
    """The network with few channels, quick to build: its stages, and the positions in each, are those of any width."""
    return models.build(replace(network, width=1 / 16), 2, seed=0)


def _positions(network: NetworkSettings, size: int) -> int:
    """How many positions the split has of images of `size` pixels; 0 if these are too small for the network."""
    if isinstance(network, models.Victim):  # three halvings; to import torchvision takes seconds
        return (size // 8 if network.kind == "densenet121" else math.ceil(size / 8)) ** 2
    thin, images = _thin(network), torch.zeros(2, 3, size, size)
    with models.frozen(thin), torch.no_grad():
        try:
            features = thin.features(images)
            thin.head(features)
        except RuntimeError:  # pooled below one pixel
            return 0
    return features[0, 0].numel()


def _void(value: Any, place: str) -> Iterator[str]:
    """Attacks that cannot change an image."""
    inner = {f.name: getattr(value, f.name) for f in fields(value)} if is_dataclass(value) else value
    for key, part in inner.items() if isinstance(inner, dict) else ():
        if key in ("epsilon", "step_size") and part == 0:
            yield f"{place}.{key}: 0 leaves every image as it is; write a size, such as 8/255, or leave the attack out"
        yield from _void(part, f"{place}.{key}")


def write(folder: Path, path: Path = PARAMS) -> None:
    """Every key of the `run` of params.yaml as <key>.json, or of those that are dictionaries as <key>/<key>.json.

    DVC would keep the values of parameters in dvc.lock, thousands of lines that it reads and writes after every stage; of a
    file it keeps the checksum.
    """
    with atomic(folder) as partial:
        for name, value in _read(path).items():
            inner = {f"{name}/{key}": part for key, part in value.items()} if isinstance(value, dict) else {name: value}
            for key, part in inner.items():
                target = partial / f"{key}.json"
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(json.dumps(part, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":  # [FOLDER]: also write the run there, which DVC's stages depend on
    try:
        checked = load()
    except UserError as mistake:
        raise SystemExit(str(mistake)) from None
    for target in map(Path, sys.argv[1:]):
        write(target)
    print(f"params.yaml is sound: scale {checked.scale}, {len(checked.models)} models")
