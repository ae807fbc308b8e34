"""Records on disk: a folder of tensors, rows and a card, written whole or not at all, and checked when read."""

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from companion import closure, paths
from companion.paths import made
from robust_features.files import atomic, sha256
from robust_features.settings import UserError

if TYPE_CHECKING:
    from pandas import DataFrame

TENSORS, ROWS, CARD, MEMBERS = "tensors.safetensors", "rows.csv", "card.json", "members.json"
STAGES = {"datasets": "dataset", "networks": "networks", "constructed": "construct", "transfers": "transfer"}
Tensors = dict[str, Tensor]


class Contents(dict[str, Any]):
    """What a record holds, by name. A name that it does not hold raises UserError: another version wrote it."""

    def __init__(self, found: Mapping[str, Any], folder: Path):
        super().__init__(found)
        self.folder = folder

    def __missing__(self, name: str) -> Any:
        raise UserError(f"{self.folder}: no '{name}', so another version wrote it; {_remedy(self.folder)}")


@dataclass(frozen=True)
class Record:
    """What a folder holds: named tensors, and the card that says where they come from."""

    tensors: Tensors
    card: dict[str, Any]


@dataclass(frozen=True)
class Unfinished:
    """Parts of long work: what an interrupted run made is kept in `folder` and not made again."""

    folder: Path

    def __call__(self, name: str, make: Callable[[], Tensors]) -> Tensors:
        """What `make` makes, or made in an interrupted run."""
        found = _kept(self.folder / name)
        if found is None:
            found = {key: tensor for key, tensor in make().items() if tensor is not None}
            save(self.folder / name, found, {})
        return found


def folder(kind: str, member: str) -> Path:
    """data/networks/<group>/<name>/<kind> of a member <group>/<name>; the kinds are model, evaluation, distillation."""
    return made(f"networks/{member}/{kind}")


def members(group: str) -> list[str]:
    """The records that a group has on disk, in the order of params.yaml. Raises UserError if there are none."""
    path = made(f"networks/{group}/{MEMBERS}")
    if not path.exists():
        raise UserError(f"{path.parent}: there is none yet; {_remedy(path.parent, delete=False)}")
    return json.loads(path.read_text("utf-8"))


def interrupted(kind: str, settings: Any, tensors: Iterable[Tensor]) -> Path:
    """data/interrupted/<kind>-<digest of all it depends on>: unfinished work, outside DVC's outputs, which it deletes.

    All that the method's code says is part of it: what an older one began is not finished by another."""
    return paths.DATA / "interrupted" / f"{kind}-{digest([settings, _method()], tensors)}"


def digest(settings: Any, tensors: Iterable[Tensor]) -> str:
    """16 hexadecimal digits, others as soon as the settings or a tensor change."""
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for tensor in tensors:
        key.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return key.hexdigest()[:16]


@cache
def _method() -> dict[str, str]:
    """Checksums of the code that unfinished work may have been made by."""
    return closure.checksums("from robust_features import attacks, bottleneck, construction, training")


@contextmanager
def unfinished(kind: str, settings: Any, tensors: Iterable[Tensor]) -> Iterator[Unfinished]:
    """Work in parts that can be interrupted; once all is done, what was kept of it is removed."""
    place = interrupted(kind, settings, tensors)
    yield Unfinished(place)
    shutil.rmtree(place, ignore_errors=True)


def save(folder: Path, tensors: Tensors, card: dict[str, Any], *, rows: "DataFrame | None" = None) -> None:
    """Write `tensors`, `rows` and `card` as one record; the card gains the files' SHA-256."""
    with atomic(folder) as partial:
        partial.mkdir()
        owned = {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
        }
        save_file(owned, partial / TENSORS)  # it refuses tensors that share memory
        card = {**card, "sha256": sha256(partial / TENSORS)}
        if rows is not None:
            rows.to_csv(partial / ROWS, index=False, float_format="%.9g", lineterminator="\n")  # float32 to the bit
            card["rows_sha256"] = sha256(partial / ROWS)
        (partial / CARD).write_text(json.dumps(card, indent=2, sort_keys=True) + "\n", "utf-8")


def load(folder: Path) -> Record:
    """Read a record back. Raises UserError if it is missing, not whole, or not what was written."""
    card = _card(folder, TENSORS, "sha256")
    try:
        return Record(Contents(load_file(folder / TENSORS), folder), Contents(card, folder))
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder}: no whole record ({_one_line(error)}); {_remedy(folder)}") from error


def rows(folder: Path, *, floats: Iterable[str] = ()) -> "DataFrame":
    """A record's rows, checked; text stays text, the columns `floats` are float32. Raises UserError as `load` does."""
    import pandas as pd

    _card(folder, ROWS, "rows_sha256")
    return pd.read_csv(folder / ROWS, keep_default_na=False, dtype=dict.fromkeys(floats, "float32"))


@contextmanager
def of_this_version(folder: Path) -> Iterator[None]:
    """For using a whole record: what does not fit raises UserError, since another version wrote it."""
    try:
        yield
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{folder}: another version wrote it ({_one_line(error)}); {_remedy(folder)}") from error


def _card(folder: Path, name: str, key: str) -> dict[str, Any]:
    """The card of a record whose file `name` is what was written."""
    if not folder.exists():
        raise UserError(f"{folder}: there is none yet; {_remedy(folder, delete=False)}")
    try:
        card = json.loads((folder / CARD).read_text("utf-8"))
        found, expected = sha256(folder / name), str(card[key])
        if found != expected:
            raise ValueError(f"sha256 of {name} is {found[:8]}…, expected {expected[:8]}…")
        return card
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: no whole record ({_one_line(error)}); {_remedy(folder)}") from error


def _kept(place: Path) -> Tensors | None:
    """What an interrupted run kept in `place`; None if there is nothing, or nothing whole (reported and removed)."""
    if not place.exists():
        return None
    try:
        return load(place).tensors
    except UserError as error:
        print(f"{error.args[0].rpartition(';')[0]}: made anew", file=sys.stderr)
        shutil.rmtree(place) if place.is_dir() else place.unlink()
        return None


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{Path(error.filename or '').name}: {error.strerror}"
    if isinstance(error, ValidationError):
        return error.errors()[0]["msg"].removeprefix("Value error, ")
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def _remedy(folder: Path, *, delete: bool = True) -> str:
    """What to do: a record lies in DVC's output data/<kind>/<id>, where an id has a slash unless it is a dataset's."""
    kind, *parts = folder.relative_to(paths.DATA).parts if folder.is_relative_to(paths.DATA) else [""]
    id = "/".join(parts[: 1 if kind == "datasets" else 2])
    if kind not in STAGES or not id:
        return f"delete {folder} and make it again" if delete else "make it first"
    run = f"run `dvc repro {STAGES[kind]}@{id}`"
    return f"delete {paths.DATA / kind / id} and {run}" if delete else run
