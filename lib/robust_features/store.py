"""Records on disk: a folder of tensors and a card, written whole or not at all, and checked when read."""

import hashlib
import json
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from robust_features.files import atomic
from robust_features.paths import DATA
from robust_features.settings import UserError

TENSORS, CARD = "tensors.safetensors", "card.json"
STAGES = {
    "datasets": "dataset",
    "constructed": "construct",
    "models": "train",
    "evaluations": "attack",
    "distillations": "distil",
    "families": "family",
    "transfers": "transfer",
}


class Contents(dict[str, Any]):
    """What a record holds by name. A name that it does not hold is a UserError: another version wrote it."""

    def __init__(self, found: Mapping[str, Any], folder: Path):
        super().__init__(found)
        self.folder = folder

    def __missing__(self, name: str) -> Any:
        raise UserError(f"{self.folder}: no '{name}', so another version wrote it; {_remedy(self.folder)}")


@dataclass(frozen=True)
class Record:
    """What a folder holds: named tensors, and the card that says where they come from."""

    tensors: dict[str, Tensor]
    card: dict[str, Any]


def folder(kind: str, model_id: str) -> Path:
    """data/<kind>/<id>, or of a member <family>/<name> of a family data/families/<family>/<kind>/<name>."""
    family, _, name = model_id.rpartition("/")
    return DATA / "families" / family / kind / name if family else DATA / kind / name


def interrupted(kind: str, settings: Any, tensors: Iterable[Tensor]) -> Path:
    """data/interrupted/<kind>-<hash of all it depends on>: unfinished work is kept outside DVC's outputs, which it deletes."""
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for tensor in tensors:
        key.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return DATA / "interrupted" / f"{kind}-{key.hexdigest()[:16]}"


def save(folder: Path, tensors: dict[str, Tensor], card: dict[str, Any]) -> None:
    """Write `tensors` and `card` as one record; the card gains the SHA-256 of the tensors' file."""
    with atomic(folder) as partial:
        partial.mkdir()
        owned = {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
        }
        save_file(owned, partial / TENSORS)  # it refuses tensors that share memory
        card = {**card, "sha256": _sha256(partial / TENSORS)}
        (partial / CARD).write_text(json.dumps(card, indent=2, sort_keys=True) + "\n")


def load(folder: Path) -> Record:
    """Read a record back. Raises UserError if it is missing, not whole, or not what was written."""
    if not folder.exists():
        raise UserError(f"{folder}: there is none yet; {_remedy(folder, delete=False)}")
    try:
        card = json.loads((folder / CARD).read_text("utf-8"))
        found, expected = _sha256(folder / TENSORS), str(card["sha256"])
        if found != expected:
            raise ValueError(f"sha256 of {TENSORS} is {found[:8]}…, expected {expected[:8]}…")
        return Record(Contents(load_file(folder / TENSORS), folder), Contents(card, folder))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(f"{folder}: no whole record ({_one_line(error)}); {_remedy(folder)}") from error


def kept(place: Path) -> dict[str, Tensor] | None:
    """What an interrupted run kept in `place`; None if there is nothing, or nothing whole, which is said and removed."""
    if not place.exists():
        return None
    try:
        return load(place).tensors
    except UserError as error:
        print(f"{error.args[0].rpartition(';')[0]}: made anew", file=sys.stderr)
        shutil.rmtree(place) if place.is_dir() else place.unlink()
        return None


@contextmanager
def of_this_version(folder: Path) -> Iterator[None]:
    """Where a whole record is put to use: what does not fit is a UserError, for another version wrote it."""
    try:
        yield
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{folder}: another version wrote it ({_one_line(error)}); {_remedy(folder)}") from error


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{Path(error.filename or '').name}: {error.strerror}"
    if isinstance(error, ValidationError):
        return error.errors()[0]["msg"].removeprefix("Value error, ")
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def _remedy(folder: Path, *, delete: bool = True) -> str:
    """What to do: a record is DVC's output data/<kind>/<id>, or within it: a dataset has one a split, a family several a member."""
    kind, id, *_ = [*folder.relative_to(DATA).parts, "", ""] if folder.is_relative_to(DATA) else ["", ""]
    if kind not in STAGES or not id:
        return f"delete {folder} and make it again" if delete else "make it first"
    stage = "descend" if (DATA / "params" / "descendants" / f"{id}.json").exists() else STAGES[kind]
    run = f"run `dvc repro {stage}@{id}`"
    return f"delete {DATA / kind / id} and {run}" if delete else run


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
