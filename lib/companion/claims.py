"""Claims of the papers against the results on disk: verdicts are computed, never typed."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pandas as pd
from pydantic import TypeAdapter
from ruamel.yaml import YAML

from companion import paths
from companion.paths import page_folder
from robust_features.settings import Number, UserError, nearest, settings

OURS = "ours, on "
Words = Literal["holds", "partly", "does not hold", "undecided", "not run at this scale"]
BESIDES = ("value", "low", "high", "n", "unit", "paper", "difference", "reference")  # columns that are no dimensions


@settings
class Rule:
    """Along the dimension `compare`, `more` exceeds `less` wherever two rows agree on all else; or every row is `above` a constant.

    `where` and `unless` keep and leave out rows by the values of a dimension; two rows need not agree on what `ignore` lists."""

    compare: str = ""
    more: str = ""
    less: str = ""
    above: Number | None = None
    where: dict[str, list[str]] = field(default_factory=dict)
    unless: dict[str, list[str]] = field(default_factory=dict)
    ignore: tuple[str, ...] = ()


@settings
class Entry:
    """One entry of claims.yaml; `paper: ours, on …` makes it a control of ours, `about` the paper that it names."""

    paper: str
    place: str
    artefact: str | list[str]
    claim: str
    rule: Rule

    @property
    def ours(self) -> bool:
        return self.paper.startswith(OURS)

    @property
    def about(self) -> str:
        return self.paper.removeprefix(OURS)

    @property
    def artefacts(self) -> list[str]:
        return [self.artefact] if isinstance(self.artefact, str) else self.artefact


@dataclass(frozen=True)
class Verdict:
    """What the rows say of a claim: in how many comparisons the 95 % intervals part its way, the other way, or overlap."""

    entry: Entry
    confirmed: int
    reversed: int
    undecided: int

    @property
    def word(self) -> Words:
        if self.confirmed + self.reversed + self.undecided == 0:
            return "not run at this scale"
        if self.reversed + self.undecided == 0:
            return "holds"
        if self.confirmed:
            return "partly"
        return "does not hold" if self.reversed else "undecided"

    def _repr_markdown_(self) -> str:
        compared = "comparison" if self.confirmed == 1 else "comparisons"
        counts = f"{self.confirmed} {compared} for it, {self.reversed} against it, {self.undecided} with overlapping intervals"
        return f"> **{self.word}** — {self.entry.claim} ({self.entry.place}: {counts})"


def entries() -> dict[str, Entry]:
    """Every entry of claims.yaml, in its order. Raises ValidationError, which names the entry and the key that is wrong."""
    return TypeAdapter(dict[str, Entry]).validate_python(YAML(typ="safe").load(paths.CLAIMS))


def verdict(claim: str) -> Verdict:
    """Judge an entry of claims.yaml by the artefacts of this page. Raises UserError for an unknown claim."""
    known = entries()
    if claim not in known:
        raise UserError(f"claims.yaml has no '{claim}'{nearest(claim, known)}")
    return judge(known[claim], page_folder())


def judge(entry: Entry, folder: Path) -> Verdict:
    """Apply an entry's rule to the CSVs of its artefacts, anywhere in `folder`; one that is not there has no rows.

    A value without interval overlaps with every other. Raises UserError if the rule names a dimension that the rows lack."""
    rule, rows = entry.rule, pd.concat([measured(artefact, folder) for artefact in entry.artefacts])
    if rows.empty:
        return Verdict(entry, 0, 0, 0)
    if lacking := {*rule.where, *rule.unless, *rule.ignore, rule.compare} - {*rows, ""}:
        raise UserError(f"claims.yaml, {entry.claim!r}: {entry.artefact} has no column {', '.join(sorted(lacking))}")
    for dimension, values in rule.where.items():
        rows = rows[rows[dimension].isin(values)]
    for dimension, values in rule.unless.items():
        rows = rows[~rows[dimension].isin(values)]
    if rule.above is not None:
        pairs = rows.assign(low_less=rule.above, high_less=rule.above)
    else:
        same = [column for column in rows if column not in (*BESIDES, *rule.ignore)]
        sides = (rows[rows[rule.compare] == side].assign(**{rule.compare: ""}) for side in (rule.more, rule.less))
        pairs = pd.merge(*sides, on=same, suffixes=("", "_less"), validate="one_to_one")
    confirmed = int((pairs["low"] > pairs["high_less"]).sum())
    against = int((pairs["high"] < pairs["low_less"]).sum())
    return Verdict(entry, confirmed, against, len(pairs) - confirmed - against)


def measured(artefact: str, folder: Path) -> pd.DataFrame:
    """The measured rows of a table's or figure's CSV: dimensions as text; value, low, high as numbers, NaN where there is none."""
    path = next(folder.rglob(f"{artefact}.csv"), None)
    if path is None:
        return pd.DataFrame()
    rows = pd.read_csv(path, dtype=str, keep_default_na=False).rename(columns={"ours": "value"})
    numbers = rows.reindex(columns=["value", "low", "high"]).apply(pd.to_numeric)
    return rows.assign(**numbers)[numbers.notna().any(axis=1)]
