"""Claims of the papers against the results on disk: verdicts are computed, never typed."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pandas as pd
from pydantic import TypeAdapter
from ruamel.yaml import YAML

from companion import paths
from companion.paths import page_folder
from companion.report.contents import load_run
from companion.report.shown import chip
from companion.rules import Comparison, Rule, compared
from companion.study import NOTHING, Brought, brought
from robust_features.settings import UserError, nearest, settings

OURS = "ours, on "
EXACT = "exact values, without intervals"
HOLDING = ("holds", "holds, for another reason", "mostly holds")


@settings
class Entry:
    """One entry of claims.yaml; `paper: ours, on …` makes it a control of ours, `about` the paper that it names.

    `another_reason` names a control: where both hold, the claim holds for another reason than the paper's. `found` are
    the sentences that say so in plain words: if it `holds`, if it `fails`, if there is no effect (`none`), and if it
    holds for that other `reason`."""

    paper: str
    place: str
    artefact: str | list[str]
    claim: str
    rule: Rule
    another_reason: str = ""
    found: dict[Literal["holds", "fails", "none", "reason"], str] = field(default_factory=dict)

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
    """What the rows say about a claim: every comparison, and what its intervals are over; or why there is none.

    `missing`: its artefacts have no values at this scale; `unmatched`: they have some, but the rule asks for others."""

    entry: Entry
    comparisons: tuple[Comparison, ...] = ()
    over: str = ""
    missing: str = ""
    control: "Verdict | None" = None  # on the entry's `another_reason`
    unmatched: str = ""

    def count(self, outcome: str) -> int:
        """How many comparisons are `for` the claim, `against` it, `open`, or show no effect (`none`)."""
        return sum(each.outcome == outcome for each in self.comparisons)

    @property
    def word(self) -> str:
        """The verdict, a key of `shown.WORDS`; one comparison against the claim is enough for *mixed*, or worse."""
        confirmed, against, undecided, without = map(self.count, ("for", "against", "open", "none"))
        if not self.comparisons:
            return "no such row" if self.unmatched else "not run"
        if self.entry.rule.some and (confirmed or undecided or without):
            return "holds" if confirmed else "open" if undecided else "no effect"
        if against:
            return "mixed" if confirmed else "does not hold"
        if not confirmed and without > undecided:
            return "no effect"
        if confirmed <= undecided + without:
            return "open"
        if self.control and self.control.word in HOLDING:
            return "holds, for another reason"
        return "mostly holds" if undecided or without else "holds"

    @property
    def finding(self) -> str:
        """What was found: the entry's sentence for this verdict, with counts where comparisons disagree; else empty."""
        confirmed, against, undecided, without = map(self.count, ("for", "against", "open", "none"))
        total, unsure = len(self.comparisons), f", and {undecided} {'is' if undecided == 1 else 'are'} undecided"
        left = (unsure if undecided else "") + (f", {without} without effect" if without else "")
        match self.word:
            case "open" | "not run" | "no such row":
                return ""
            case "no effect":
                kind, agree, rest = "none", without, unsure
            case "does not hold":
                kind, agree, rest = "fails", against, left
            case word:
                kind = "reason" if word == "holds, for another reason" else "holds"
                agree, rest = confirmed, f"; the reverse holds in {against}{left}" if against else ""
        said = self.entry.found.get(kind, "")
        return said if not said or agree == total else f"{said} in {agree} of {total} comparisons{rest}"

    @property
    def deciding(self) -> Comparison | None:
        """What decides the word: the comparison most against the claim, else the weakest open, else of no effect."""
        order = ("none", "open", "for") if self.word == "no effect" else ("against", "open", "none", "for")
        for outcome in order:
            found = [each for each in self.comparisons if each.outcome == outcome]
            if found:
                return min(found, key=lambda each: each.margin)
        return None

    @property
    def by_chance(self) -> float:
        """How many comparisons would come out for or against by chance if nothing differed anywhere."""
        if self.over == EXACT:
            return 0.0
        return self.entry.rule.chance * sum(each.looks for each in self.comparisons)

    @property
    def counts(self) -> str:
        """The counts, and what to compare them with."""
        total, looks = len(self.comparisons), sum(each.looks for each in self.comparisons)
        many = f" ({looks} pairs of intervals)" if looks > total else ""
        said = f"{self.count('for')} for, {self.count('against')} against, {self.count('open')} open{many}"
        if self.over == EXACT:
            return f"{said}; {EXACT}"
        said += f", {self.count('none')} without effect" if self.count("none") else ""
        chance = f"if nothing differed, {self.by_chance:.2g} of {looks} would be decided by chance"
        return f"{said}; {chance}; 95 % intervals {self.over}"

    @property
    def decided_by(self) -> str:
        """The numbers of the deciding comparison and where it is, or why there is none."""
        found = self.deciding
        return self.missing or self.unmatched if found is None else f"{found.where}: {found.numbers}".removeprefix(": ")

    def _repr_markdown_(self) -> str:
        claim = self.entry.claim[:1].upper() + self.entry.claim[1:]
        if not self.comparisons:
            return f"> {chip(self.word)} {claim} ({self.entry.place}): {self.decided_by}."
        reason = f" {self.control.finding}." if self.word == "holds, for another reason" else ""
        said = f"{claim} ({self.entry.place}).{reason} {self.counts}. Deciding comparison: {self.decided_by}."
        return f"> {chip(self.word)} {said}"


def entries() -> dict[str, Entry]:
    """Every entry of claims.yaml, in its order. Raises ValidationError, which names the entry and the wrong key."""
    return TypeAdapter(dict[str, Entry]).validate_python(YAML(typ="safe").load(paths.CLAIMS))


def verdict(claim: str) -> Verdict:
    """Judge an entry of claims.yaml by the artefacts of this page. Raises UserError for an unknown claim."""
    known = entries()
    if claim not in known:
        raise UserError(f"claims.yaml has no '{claim}'{nearest(claim, known)}")
    return judge(known[claim], page_folder(), without=brought(load_run()))


def judge(entry: Entry, folder: Path, *, without: Brought = NOTHING) -> Verdict:
    """Apply an entry's rule to the CSVs of its artefacts, anywhere in `folder`, without the rows that a reader brought.

    Raises UserError if the rule names a dimension that the rows lack."""
    rule, rows = entry.rule, pd.concat([measured(artefact, folder) for artefact in entry.artefacts])
    rows = rows[~without.among(rows)]
    if rows.empty:
        return Verdict(entry, missing=f"this scale has no values of {' or '.join(entry.artefacts)}")
    if lacking := rule.named - {*rows}:
        raise UserError(f"claims.yaml, {entry.claim!r}: {entry.artefact} has no column {', '.join(sorted(lacking))}")
    for dimension, values in rule.where.items():
        there, rows = [*rows[dimension].unique()], rows[rows[dimension].isin(values)]
        if rows.empty:
            return Verdict(entry, unmatched=_none(dimension, values, there))
    for dimension, values in rule.unless.items():
        there, rows = [*rows[dimension].unique()], rows[~rows[dimension].isin(values)]
        if rows.empty:
            return Verdict(
                entry, unmatched=f"every row has {dimension} = {' or '.join(there)}, which the rule leaves out"
            )
    found = tuple(compared(rule, rows))
    if not found:
        return Verdict(entry, unmatched=_unmatched(rule, rows))
    control = judge(entries()[entry.another_reason], folder, without=without) if entry.another_reason else None
    return Verdict(entry, found, _over(rows), control=control)


def measured(artefact: str, folder: Path) -> pd.DataFrame:
    """Measured rows of a table's or figure's CSV: dimensions as text; value, low, high as numbers, NaN where absent."""
    path = next(folder.rglob(f"{artefact}.csv"), None)
    if path is None:
        return pd.DataFrame()
    rows = pd.read_csv(path, dtype=str, keep_default_na=False).rename(columns={"ours": "value"})
    numbers = rows.reindex(columns=["value", "low", "high"]).apply(pd.to_numeric)
    return rows.assign(**numbers)[numbers.notna().any(axis=1)]


def _none(dimension: str, asked: list[str], there: list[str]) -> str:
    """What a rule asks for and the rows lack, and what they have."""
    return f"no row has {dimension} = {' or '.join(asked)}; the rows have {', '.join(there) or 'none'}"


def _unmatched(rule: Rule, rows: pd.DataFrame) -> str:
    """Why rows that a rule's `where` and `unless` let through have nothing to compare."""
    if rule.compare:
        asked = [side for each in (rule.more, rule.less) for side in ([each] if isinstance(each, str) else each)]
        there = [*rows[rule.compare].unique()]
        if absent := [name for name in asked if name not in there]:
            return _none(rule.compare, absent, there)
        return f"no two rows differ in {rule.compare} alone"
    along = getattr(rule, rule.form)
    there = ", ".join(rows[along].unique())
    return f"the rule needs more rows along {along}; the rows have {there}"


def _over(rows: pd.DataFrame) -> str:
    """What the intervals are over, by the number of seeds that the rows' captions state."""
    counted = pd.to_numeric(rows["n"], errors="coerce").notna().any() if "n" in rows else False
    if (rows["low"] == rows["high"]).all() and not counted:  # an accuracy of zero in every seed has no width, either
        return EXACT
    seeds = sorted({*pd.to_numeric(rows["seeds"], errors="coerce").dropna().astype(int)}) if "seeds" in rows else []
    if not seeds:
        return "over what its table says"
    if seeds[-1] == 1:
        return "over test images, one seed per network"
    return f"over {' or '.join(map(str, seeds))} seeds per network"
