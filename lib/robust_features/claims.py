"""Claims of the papers against measured rows: verdicts are computed, never typed."""

from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
from ruamel.yaml import YAML

from robust_features.paths import CLAIMS


@dataclass(frozen=True)
class Verdict:
    """What the rows say of a claim: in how many comparisons the 95 % intervals part its way, the other way, or overlap."""

    claim: str
    place: str
    confirmed: int
    reversed: int
    undecided: int

    @property
    def word(self) -> Literal["holds", "partly", "does not hold", "undecided", "not run at this scale"]:
        if self.confirmed + self.reversed + self.undecided == 0:
            return "not run at this scale"
        if self.reversed + self.undecided == 0:
            return "holds"
        if self.confirmed:
            return "partly"
        return "does not hold" if self.reversed else "undecided"

    def _repr_markdown_(self) -> str:
        counts = f"{self.confirmed} comparisons for it, {self.reversed} against it, {self.undecided} with overlapping intervals"
        return f"> **{self.word}** — {self.claim} ({self.place}: {counts})"


def verdict(claim: str, rows: pd.DataFrame) -> Verdict:
    """Judge an entry of claims.yaml by its rule: `more` exceeds `less` in every group of rows that agree on all else.

    Rows are tidy: dimensions, value, low, high. A rule is {compare: a dimension, more, less, where: {dimension: [values]}}.
    Raises KeyError for an unknown claim.
    """
    entry: dict[str, Any] = YAML(typ="safe").load(CLAIMS)[claim]
    rule = entry["rule"]
    for dimension, allowed in rule.get("where", {}).items():
        rows = rows[rows[dimension].isin(allowed)]
    same = [c for c in rows.columns if c not in (rule["compare"], "value", "low", "high", "n", "unit")]
    sides = [rows[rows[rule["compare"]] == rule[side]].set_index(same) for side in ("more", "less")]
    more, less = (side.loc[sides[0].index.intersection(sides[1].index)] for side in sides)
    confirmed, reverse = int((more["low"] > less["high"]).sum()), int((more["high"] < less["low"]).sum())
    return Verdict(entry["claim"], entry["place"], confirmed, reverse, len(more) - confirmed - reverse)
