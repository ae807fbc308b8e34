"""The settings that one groundwork notebook reads: only the files under data/params/ that its stage depends on."""

import json
from typing import Any, TypeVar

from pydantic import TypeAdapter

from companion import paths
from robust_features.hardware import HardwareSettings
from robust_features.settings import UserError, nearest

T = TypeVar("T")


def entry(kind: str, key: str, of: type[T]) -> T:
    """An entry of run.yaml as settings: `entry("networks", "kim/vgg16", Group)`. Raises UserError if there is none."""
    return TypeAdapter(of).validate_python(_read(f"{kind}/{key}"))


def seed() -> int:
    """The seed of the run."""
    return _read("seed")


def hardware() -> HardwareSettings:
    """Where the run computes."""
    return TypeAdapter(HardwareSettings).validate_python(_read("hardware"))


def _read(name: str) -> Any:
    folder = paths.DATA / "params"
    path = folder / f"{name}.json"
    if path.exists():
        return json.loads(path.read_text("utf-8"))
    kind, _, key = name.partition("/")
    known = [file.relative_to(folder / kind) for file in sorted((folder / kind).rglob("*.json"))] if key else []
    if not known:
        raise UserError(f"{path}: there is none yet; run `make status`, or `dvc repro params`")
    known = [file.with_suffix("").as_posix() for file in known]
    raise UserError(f"run.yaml has no '{key}' among its {kind}{nearest(key, known)}; there are {', '.join(known)}")
