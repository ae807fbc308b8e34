"""The settings of a run. params.yaml and scales/, which people write, are resolved to run.yaml, which everything reads.

    python -m companion params [SCALE]        check them and write run.yaml; with SCALE, choose that scale first
    python -m companion params split FOLDER   write run.yaml as small files, which DVC's stages depend on

All errors are reported at once, by file and key as written, before any stage runs.
"""

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from ruamel.yaml import YAML

from companion import checkout, paths
from companion.constructed import Constructions
from companion.datasets import DatasetSettings, Source, fingerprint
from companion.groups import Group
from companion.mismatches import mismatches
from companion.resolve import Written, place_of, read, resolve, written
from companion.study import Study
from companion.transfer import Transfer
from robust_features.attacks import Attack
from robust_features.bottleneck import Bottleneck
from robust_features.files import atomic
from robust_features.hardware import HardwareSettings
from robust_features.networks import label
from robust_features.settings import Seed, UserError, nearest, settings
from robust_features.training import Training

HEAD = "# Made of params.yaml and scales/ by `make`, for the scale that params.yaml names: edit those, not this.\n"
DIVIDED = ("datasets", "networks", "constructed", "transfers", "sections")  # one file per entry
PAPERS_NAMES = {"wide-resnet": "wrn28-10", "resnet-v2": "resnet56-v2"}  # kinds that published.yaml names differently
STALE = (
    "run.yaml was made of another params.yaml, or scales/, than there is now: run `make`,"
    " or `python -m companion params`"
)


@settings
class Run:
    """One scale: what is read, trained, attacked, constructed and shown."""

    scale: str
    title: str
    seed: Seed
    study: Study
    hardware: HardwareSettings
    bottleneck: Bottleneck
    datasets: dict[str, DatasetSettings]
    networks: dict[str, Group]
    constructed: dict[str, Constructions]
    transfers: dict[str, Transfer]
    sections: dict[str, dict[str, Any]]  # what a notebook's `parameters` cell is given
    fetch: tuple[str, ...] = ()  # groups whose networks are published with the pages, for `make fetch`

    def members(self, groups: str) -> dict[str, Training]:
        """The trainings of the groups whose names begin with `groups`, by id <group>/<member>."""
        chosen = {name: group for name, group in self.networks.items() if name.startswith(groups)}
        return {f"{name}/{member}": model for name, group in chosen.items() for member, model in group.members.items()}

    def dimensions(self, groups: str, *defences: str) -> dict[str, dict[str, str]]:
        """What tables call the members of these defences (all if none is named): dataset, network as it is, defence."""
        called = {
            id: {
                "dataset": model.dataset,
                "network": self.study.called(label(model.network), id.rpartition("/")[0]),
                "defence": model.defence,
            }
            for id, model in self.members(groups).items()
        }
        return {id: names for id, names in called.items() if not defences or names["defence"] in defences}

    def attack(self, member: str, name: str) -> Attack:
        """The attack of this name on a member <group>/<member>. Raises UserError that names both if there is none."""
        attacks = self.networks[member.rpartition("/")[0]].attacks
        if name not in attacks:
            there = ", ".join(attacks) or "none"
            raise UserError(f"{member}: no attack '{name}'{nearest(name, attacks)}; there are {there}")
        return attacks[name]

    def labels(self, group: str) -> dict[str, str]:
        """The networks of a group as they are, by member."""
        return {name: label(model.network) for name, model in self.networks[group].members.items()}

    @property
    def stands_for(self) -> dict[str, dict[str, str]]:
        """For tables: the papers' names of networks, and of datasets that are a part of CIFAR by another id."""
        networks = [model.network for model in self.members("").values()]
        cifar = {id: data.kind for id, data in self.datasets.items() if data.kind in ("cifar10", "cifar100")}
        return {
            "network": {label(each): PAPERS_NAMES.get(each.kind, each.kind) for each in networks},
            "dataset": {id: kind for id, kind in cifar.items() if id != kind and id in self.study.datasets},
        }


def load(path: Path | None = None) -> Run:
    """The settings in run.yaml. Raises UserError if there is none, or if it is not what this version reads."""
    checkout.check()
    path = path or paths.RUN
    if not path.exists():
        raise UserError(f"{path}: there is none yet: run `make`, or `python -m companion params`")
    try:
        return TypeAdapter(Run).validate_python(read(path)["run"])
    except (ValidationError, KeyError) as error:
        raise UserError(f"{path} is not of this version: run `make`, or `python -m companion params`") from error


def check(text: dict[str, Any], scale: str) -> tuple[Written, Run]:
    """A scale of what is `written`, resolved and validated. Raises UserError listing everything that is wrong."""
    resolved = resolve(text, scale)
    try:
        run = TypeAdapter(Run).validate_python(resolved)
    except ValidationError as error:
        lines = dict.fromkeys(_explain(error, resolved))
        raise UserError("\n".join(lines)) from error
    if problems := list(dict.fromkeys(f"{place_of(resolved, place)}: {said}" for place, said in mismatches(run))):
        raise UserError("\n".join(problems))
    return resolved, run


def make(scale: str = "") -> Path:
    """Check what is written and write run.yaml; a `scale`, if it exists, is written into params.yaml first."""
    text = written()
    if "scale" not in text:
        raise UserError(f"params.yaml: needs `scale:`, one of {', '.join(text['scales'])}")
    resolved, run = check(text, scale or str(text["scale"]))
    if scale and scale != text["scale"]:
        changed = re.sub(r"(?m)^scale:.*$", f"scale: {scale}", paths.PARAMS.read_text("utf-8"))
        with atomic(paths.PARAMS) as partial:
            partial.write_text(changed, "utf-8")
        text = written()
    _notice_what_datasets_read(run)
    yaml = YAML()
    yaml.width = 150
    with atomic(paths.RUN) as partial, partial.open("w", encoding="utf-8") as file:
        file.write(HEAD)
        yaml.dump(json.loads(json.dumps({"made_of": _checksum(text), "run": resolved})), file)
    return paths.RUN


def split(folder: Path) -> Path:
    """Every entry of run.yaml as a file of its own, <key>.json or <key>/<entry>.json: what stages depend on.

    DVC would keep the values of parameters in dvc.lock, thousands of lines that it reads and writes after every stage;
    of files it keeps only checksums. Raises UserError if run.yaml was made from other ones than there are now.
    """
    found = read(paths.RUN)
    if found.get("made_of") != _checksum(written()):
        raise UserError(STALE)
    run = load()
    with atomic(folder) as partial:
        for name, part in _files(found["run"], run.datasets):
            target = partial / f"{name}.json"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(json.dumps(part, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return folder


def _files(run: dict[str, Any], datasets: Mapping[str, Source]) -> Iterator[tuple[str, Any]]:
    """Names and contents of these files. How features are distilled is stated once, and read by groups that distil."""
    for key, value in run.items():
        for name, part in value.items() if key in DIVIDED else ():
            distils = key == "networks" and part.get("distil")
            yield f"{key}/{name}", part | {"bottleneck": run["bottleneck"]} if distils else part
        if key not in DIVIDED:
            yield key, value
    for path in paths.NOTEBOOKS.glob("*.ipynb"):
        yield f"sections/{path.stem}", run["sections"].get(path.stem, {})
    for name, data in datasets.items():
        yield f"outside/{name}", fingerprint(data)


def _notice_what_datasets_read(run: Run) -> None:
    """Let DVC rewrite the settings' files if images outside the project change: their fingerprints are among them."""
    folder = paths.DATA / "params"
    for name, data in run.datasets.items():
        known = folder / "outside" / f"{name}.json"
        if known.exists() and json.loads(known.read_text("utf-8")) != fingerprint(data):
            shutil.rmtree(folder)
            return


def _explain(error: ValidationError, resolved: Written) -> Iterator[str]:
    """One line per mistake: `recipes.kim.epochs: what is wrong`."""
    for item in error.errors():
        location, node = [], resolved
        for part in item["loc"]:
            known = part in node if isinstance(node, dict) else isinstance(part, int)
            absent = item["type"] == "missing" and part is item["loc"][-1]
            if known or absent:  # the other parts are names of union members
                location.append(part)
                node = node[part] if known else None
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "union_tag_invalid":
            expected = item["ctx"]["expected_tags"].replace("'", "").split(", ")
            location.append("kind")
            tag = item["ctx"]["tag"]
            message = f"'{tag}' is none of {', '.join(sorted(expected))}{nearest(tag, expected)}"
        elif unknown := re.match(r"unknown key '(.*?)'", message):
            location.append(unknown[1])
        elif item["type"] not in ("missing", "value_error"):
            message += f", found {item['input']!r}"
        yield f"{place_of(resolved, tuple(location))}: {message}"


def _checksum(text: dict[str, Any]) -> str:
    """The checksum of what is written; comments and layout do not count."""
    return hashlib.sha256(json.dumps(text, sort_keys=True, default=str).encode()).hexdigest()


def main() -> None:
    """The command line."""
    arguments = sys.argv[1:]
    print(split(Path(arguments[1])) if arguments[:1] == ["split"] and len(arguments) == 2 else make(*arguments[:1]))
