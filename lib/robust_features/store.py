"""Records on disk: a folder of tensors and a card, written whole or not at all, and checked when read."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
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
    """Read a record back. Raises UserError if it is missing or is not what was written."""
    try:
        card = json.loads((folder / CARD).read_text())
        found = _sha256(folder / TENSORS)
        if found != card["sha256"]:
            raise UserError(
                f"{folder / TENSORS}: sha256 is {found[:8]}…, expected {card['sha256'][:8]}…; {_remedy(folder)}"
            )
        return Record(load_file(folder / TENSORS), card)
    except (OSError, json.JSONDecodeError, KeyError, SafetensorError) as error:
        raise UserError(f"{folder}: no readable record ({type(error).__name__}); {_remedy(folder)}") from error


def _remedy(folder: Path) -> str:
    for item in (*reversed(folder.parents), folder):  # a dataset has a record a split, a family several a member
        if stage := STAGES.get(item.parent.name):
            return f"delete {item} and run `dvc repro {stage}@{item.name}`"
    return "delete it and make it again"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
