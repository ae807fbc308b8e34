"""Networks without training: `make publish` keeps some with the pages, `make fetch SCALE=photographs` lays them ready.

They are kept in half precision, a network a record, under reports/published/<scale>/networks/, with the checksum of the
settings and images that they were trained with. A stage whose training has that checksum takes the network that is laid
ready under data/fetched/; one whose settings or images were changed trains its own.
"""

import argparse
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from companion import paths, records, trained
from robust_features.batches import ImageSet
from robust_features.files import atomic
from robust_features.hardware import Hardware
from robust_features.settings import UserError, describe
from robust_features.training import Trained, Training

if TYPE_CHECKING:
    from companion.groups import Group

NETWORKS = "networks"  # the folder beside the published pages


def keep(target: Path, groups: Mapping[str, "Group"], chosen: Iterable[str]) -> None:
    """Write the networks of the chosen groups to target/<group>/<member>/, in half precision."""
    for name in chosen:
        for member, settings in groups[name].trainings.items():
            found = records.load(records.folder("model", f"{name}/{member}"))
            half = {key: value.half() if value.is_floating_point() else value for key, value in found.tensors.items()}
            training = _training(settings, trained.splits(settings))
            records.save(target / name / member, half, {**found.card, "training": training})


def fetch(scale: str) -> list[str]:
    """Lay the networks published for a scale ready under data/fetched/; returns <group>/<member> of each.

    Raises UserError if none are published for the scale, or if one is damaged."""
    published = paths.REPORTS / "published"
    source = published / scale / NETWORKS
    found = sorted(card.parent for card in source.glob(f"*/*/*/{records.CARD}"))
    if not found:
        there = ", ".join(sorted(folder.parent.name for folder in published.glob(f"*/{NETWORKS}"))) or "none"
        raise UserError(f"SCALE={scale}: no networks are published for this scale; scales that have some: {there}")
    commit = json.loads((published / scale / "manifest.json").read_text("utf-8"))["provenance"].get("commit", "")
    for folder in found:
        record = records.load(folder)
        target = paths.DATA / "fetched" / record.card["training"]
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic(target) as partial:
            shutil.copytree(folder, partial)
            card = {**record.card, "commit": commit}
            (partial / records.CARD).write_text(json.dumps(card, indent=2, sort_keys=True) + "\n", "utf-8")
    return [folder.relative_to(source).as_posix() for folder in found]


def take(settings: Training, splits: Mapping[str, ImageSet], *, hardware: Hardware) -> tuple[Trained | None, str]:
    """The network laid ready for this training, None if there is none; and the commit that it is from."""
    folder = paths.DATA / "fetched" / _training(settings, splits)
    if not folder.exists():
        return None, ""
    record = records.load(folder)
    with records.of_this_version(folder):
        network = hardware.place(settings.build(len(record.card["classes"])))
        network.load_state_dict(record.tensors)
        found = Trained(network.eval(), record.card["history"], record.card["precision"])
    return found, record.card["commit"]


def _training(settings: Training, splits: Mapping[str, ImageSet]) -> str:
    """The name of a training: of its settings and images, not of the code, since a reader's may be newer."""
    return f"training-{records.digest(describe(settings), trained.tensors(splits))}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m companion fetched", description=__doc__.partition("\n")[0])
    parser.add_argument("scale", help="one that has published networks, such as photographs")
    scale = parser.parse_args().scale
    print(
        f"{', '.join(fetch(scale))}: `make reproduce SCALE={scale}` does not train these; attacks and pages are made anew"
    )
