"""What belongs to the study and what a reader has brought: only `study` in params.yaml names the former."""

from dataclasses import dataclass
from typing import Any

from pandas import DataFrame, Series

from robust_features.settings import settings


@settings
class Study:
    """Datasets and groups of networks, of all scales, that claims are judged by and papers' numbers stand beside."""

    datasets: tuple[str, ...]
    networks: tuple[str, ...]

    def called(self, network: str, group: str) -> str:
        """What tables call a network of `group`; for a reader's group with its name, by which `Brought` knows it."""
        return network if group in self.networks else f"{network}{_mark(group)}"


@dataclass(frozen=True)
class Brought:
    """What a run has besides the study: run and shown like all else, without a vote or a paper's value beside it."""

    datasets: frozenset[str] = frozenset()  # and entries of `constructed` made from them
    marks: tuple[str, ...] = ()

    def among(self, rows: DataFrame) -> Series:
        """Which rows are a reader's, by their columns `dataset` and `network`."""
        found = Series(False, rows.index)
        if "dataset" in rows:
            found |= rows["dataset"].astype(str).str.split("/").str[:2].str.join("/").isin(self.datasets)
        if "network" in rows and self.marks:
            found |= rows["network"].astype(str).str.endswith(self.marks)
        return found


NOTHING = Brought()


def brought(run: dict[str, Any]) -> Brought:
    """What a reader has brought to a run, by run.yaml; nothing for one that names no study, such as a published one."""
    if "study" not in run:
        return NOTHING
    known = run["study"]
    datasets = {*run["datasets"]} - {*known["datasets"]}
    made = {name for name, entry in run["constructed"].items() if entry.get("dataset") in datasets}
    groups = [name for name in run["networks"] if name not in known["networks"]]
    return Brought(frozenset(datasets | made), tuple(map(_mark, groups)))


def _mark(group: str) -> str:
    """kim/mine-vgg16 → ", of mine-vgg16"."""
    return f", of {group.rpartition('/')[2]}"
