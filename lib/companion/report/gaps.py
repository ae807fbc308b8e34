"""What the contents list beside the claims: printed numbers without one of ours, and the papers' contradictions."""

from pathlib import Path
from typing import Any

import pandas as pd

from companion import paths
from companion.report.tables import either, entries, evidence, label, values_of


def not_run(run: dict[str, Any]) -> list[dict[str, Any]]:
    """The papers' numbers without one of ours, by artefact: how many of how many, and why, as far as the files tell."""
    found, here = [], {*run["datasets"], *(data.get("kind") for data in run["datasets"].values())}
    for artefact, entry in entries().items():
        if entry.get("unit") is None:
            continue  # settings, which are all there
        paper, path = values_of(entry), _csv(run, artefact)
        if path is None:
            found.append(_absent(artefact, entry, len(paper), len(paper), "its page has not been made at this scale"))
            continue
        rows = pd.read_csv(path, keep_default_na=False, na_values=[""], dtype={"ours": float, "paper": float})
        alone = rows[rows["ours"].isna() & rows["paper"].notna()]
        if alone.empty:
            continue
        asked = [*alone["dataset"].unique()] if "dataset" in alone else []
        lacking = [label(name) for name in asked if name not in here]
        why = f"no {either(lacking)} at this scale" if lacking else "no such networks or attacks at this scale"
        found.append(_absent(artefact, entry, len(alone), len(paper), why))
    return found


def known_faults() -> list[dict[str, str]]:
    """What published.yaml says about each paper's gaps and contradictions: artefact, paper, said, evidence in words.

    `unseen`: it is no fault of the paper, but a part of it that this project has not seen."""
    return [
        {
            "artefact": artefact,
            "paper": _paper(entry),
            "said": each["said"],
            "evidence": evidence(each["evidence"]),
            "unseen": not {"?", "mem"}.isdisjoint(each["evidence"].split(", ")),
        }
        for artefact, entry in entries().items()
        for each in entry.get("faults", [])
    ]


def _paper(entry: dict[str, Any]) -> str:
    """Kim et al. 2021, Table 1 → Kim et al. 2021."""
    return entry["where"].partition(",")[0]


def _absent(artefact: str, entry: dict[str, Any], count: int, total: int, why: str) -> dict[str, Any]:
    return {"artefact": artefact, "paper": _paper(entry), "count": count, "total": total, "why": why}


def _csv(run: dict[str, Any], artefact: str) -> Path | None:
    """The file in which this scale keeps the rows of a table."""
    return next((paths.REPORTS / run["scale"]).rglob(f"tables/{artefact}.csv"), None)
