"""Trained networks as they are kept: weights, settings, history."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pandas as pd
from pydantic import TypeAdapter
from torch import Tensor

from companion import datasets, records
from robust_features.batches import ImageSet
from robust_features.hardware import Hardware
from robust_features.networks import Network
from robust_features.settings import describe
from robust_features.training import HISTORY, Trained, Training

TRUE = "validation-true"  # for datasets whose validation images a network made: those they were made from


def splits(settings: Training) -> dict[str, ImageSet]:
    """The images to train on, and those to watch: `validation`, for a constructed dataset constructed like the others.

    `keep: best-true` watches the images that these were made from, with their true labels, which a learner does not
    have. Of epochs that are equally good the last is kept: constructed images are soon all classified as constructed.
    """
    there = settings.keep == "best-true" and (datasets.folder(settings.dataset) / TRUE).exists()
    watched = datasets.load(settings.dataset, TRUE if there else "validation")
    return {"train": datasets.load(settings.dataset, "train"), "validation": watched}


def tensors(splits: Mapping[str, ImageSet]) -> Iterator[Tensor]:
    """All that a training sees."""
    return (tensor for part in splits.values() for tensor in (part.images, part.labels))


def save(folder: Path, trained: Trained, settings: Training, *, classes: tuple[str, ...], commit: str = "") -> None:
    """Write weights, card and history to a folder; `commit` is where a fetched network was trained."""
    card = {
        "settings": describe(settings),
        "classes": classes,
        "precision": trained.precision,
        "history": trained.history,
    }
    if trained.processes > 1:  # other bits than one process would have found
        card["processes"] = trained.processes
    if commit:
        card["fetched"] = commit
    records.save(folder, trained.network.state_dict(), card)


def load(member: str, *, hardware: Hardware) -> Network:
    """The network of a member <group>/<name>, in eval mode on the hardware."""
    folder = records.folder("model", member)
    record = records.load(folder)
    with records.of_this_version(folder):
        settings = TypeAdapter(Training).validate_python(record.card["settings"])
        network = settings.build(len(record.card["classes"]))
        network.load_state_dict(record.tensors)
    return hardware.place(network).eval()


def history(member: str) -> pd.DataFrame:
    """One row per epoch: loss, and accuracy on the validation images, clean and attacked, in percent."""
    return pd.DataFrame(records.load(records.folder("model", member)).card["history"], columns=HISTORY)
