"""What a claim asks of the rows of an artefact, and every comparison of 95 % intervals that answers it."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import combinations
from typing import Literal

import pandas as pd
from pandas import DataFrame, Series
from pydantic import model_validator

from robust_features.settings import NonNegative, Number, settings

BESIDES = ("value", "low", "high", "n", "unit", "paper", "difference", "reference", "seeds")  # no dimensions
FORMS = ("above", "peak", "falls", "rises", "reverses", "correlates")
CHANCE = {"above": 0.05, "correlates": 0.05}  # how often an interval leaves out the true value
PARTING = 0.0056  # how often two intervals of one width do not overlap if nothing differs: P(|z| > 1.96 √2)


@settings
class Rule:
    """Exactly one of these, wherever rows agree on all other dimensions save those under `ignore`:

    - `compare`, `more`, `less`: along a dimension, `more` exceeds `less`; where one side is a list, each of the list;
    - `above`: every row exceeds a constant;
    - `peak`: along an ordered dimension, some value between the ends exceeds both ends;
    - `falls`, `rises`: along it, the last value lies below (above) the first, and none goes back;
    - `reverses` with `compare`, `more`, `less`: at its largest value `more` exceeds `less`, at a smaller the reverse;
    - `correlates`: the value rises with another column.

    A difference that lies within `negligible` points, with all of its interval, is no effect. `some`: the claim is
    about some networks, so that one comparison for it is enough. `unit` is that of the values. `where` and `unless`
    keep and leave out rows by the values of a dimension."""

    compare: str = ""
    more: str | tuple[str, ...] = ""
    less: str | tuple[str, ...] = ""
    above: Number | None = None
    peak: str = ""
    falls: str = ""
    rises: str = ""
    reverses: str = ""
    correlates: str = ""
    where: dict[str, list[str]] = field(default_factory=dict)
    unless: dict[str, list[str]] = field(default_factory=dict)
    ignore: tuple[str, ...] = ()
    negligible: NonNegative = 1.0
    some: bool = False
    unit: str = "points"

    @model_validator(mode="after")
    def _one_form(self) -> "Rule":
        sides = [bool(each) for each in (self.compare, self.more, self.less)]
        if any(sides) and not all(sides):
            raise ValueError("compare, more and less go together")
        if len(self._chosen()) > 1 or (self.reverses and not all(sides)) or not (self._chosen() or all(sides)):
            raise ValueError(f"a rule has compare, more and less, or one of {', '.join(FORMS)}; reverses has both")
        if any(sides) and self._chosen() not in ([], ["reverses"]):
            raise ValueError(f"{self._chosen()[0]} takes no compare, more or less")
        return self

    def _chosen(self) -> list[str]:
        return [form for form in FORMS if getattr(self, form) not in ("", None)]

    @property
    def form(self) -> str:
        """Which of the forms it takes."""
        return next(iter(self._chosen()), "compare")

    @property
    def named(self) -> set[str]:
        """The columns that it names, which rows must have."""
        along = {getattr(self, form) for form in FORMS if form != "above"}
        return {self.compare, *along, *self.where, *self.unless, *self.ignore} - {""}

    @property
    def chance(self) -> float:
        """How often one of its comparisons comes out, either way, if nothing differs."""
        return CHANCE.get(self.form, PARTING)


@dataclass(frozen=True)
class Comparison:
    """One answer to a claim: where, which way the intervals lie apart, by how much, the numbers, how many pairs.

    `none`: wherever they are in their intervals, they differ by less than is worth a word."""

    where: str
    outcome: Literal["for", "against", "open", "none"]
    margin: float  # between the intervals, positive for the claim; if they overlap, the difference of the values
    numbers: str
    looks: int = 1
    effect: float = float("nan")  # the difference of the values, positive for the claim, and what their intervals allow
    low: float = float("nan")
    high: float = float("nan")
    n: float = float("nan")  # the smaller of the two rows' n
    seeds: float = float("nan")


def compared(rule: Rule, rows: DataFrame) -> Iterator[Comparison]:
    """Every comparison that `rule` asks for among measured `rows`: dimensions as text, and numbers value, low, high.

    A value without interval overlaps with every other. Raises pandas' MergeError if two rows agree on everything."""
    along = {getattr(rule, rule.form)} if rule.form not in ("compare", "above", "correlates") else set()
    same = [name for name in rows if name not in {*BESIDES, *rule.ignore, *along, rule.compare}]
    if rule.form == "above":
        limit = Series({"value": rule.above, "low": rule.above, "high": rule.above})
        for _, row in rows.iterrows():
            found = _pair(row, limit, _name(row, same), f"{_said(row)} against {rule.above:g}")
            yield _unless_negligible(found, rule)
    elif rule.form == "correlates":
        yield from _correlated(rows, rule.correlates)
    else:
        judge = {"compare": _sides, "peak": _peak, "falls": _trend, "rises": _trend, "reverses": _reversal}[rule.form]
        for _, part in rows.groupby(same, sort=False, dropna=False) if same else [((), rows)]:
            yield from judge(rule, part, _name(part.iloc[0], same))


def most_against(found: Iterable[Comparison]) -> Comparison:
    """The comparison most against the claim; margins of those whose intervals overlap are another measure."""
    return min(found, key=lambda each: (("against", "open", "none", "for").index(each.outcome), each.margin))


def _sides(rule: Rule, part: DataFrame, where: str) -> Iterator[Comparison]:
    """`more` against `less`; in a list, the one that is most against the claim decides."""
    from companion.report.tables import label

    more, less = (part[part[rule.compare].isin(_listed(side))] for side in (rule.more, rule.less))
    _no_twins(pd.concat([more, less]), rule.compare)
    found = [
        _pair(a, b, where, f"{label(a[rule.compare])} {_said(a)} against {label(b[rule.compare])} {_said(b)}")
        for _, a in more.iterrows()
        for _, b in less.iterrows()
    ]
    if found:
        yield _unless_negligible(replace(most_against(found), looks=len(found)), rule)


def _unless_negligible(found: Comparison, rule: Rule) -> Comparison:
    """The comparison, or one without effect if all of the difference's interval is less than is worth a word."""
    small = -rule.negligible < found.low and found.high < rule.negligible
    return replace(found, outcome="none") if small and rule.negligible else found


def _peak(rule: Rule, part: DataFrame, where: str) -> Iterator[Comparison]:
    """The best value between the ends against the higher end; against the claim if an end exceeds all between."""
    line = _ordered(part, rule.peak)
    if len(line) < 3:
        return
    inner, ends = line.iloc[1:-1], line.iloc[[0, -1]]
    best, end = inner.loc[inner["value"].idxmax()], ends.loc[ends["value"].idxmax()]
    inside, outside = (f"{rule.peak} = {row[rule.peak]}" for row in (best, end))
    numbers = f"{_said(best)} at {inside} against {_said(end)} at the end {outside}"
    yield _pair(best, end, where, numbers, looks=2 * len(inner))


def _trend(rule: Rule, part: DataFrame, where: str) -> Iterator[Comparison]:
    """First against last; any later value on the wrong side of an earlier one is against the claim."""
    along = rule.falls or rule.rises
    line = [row for _, row in _ordered(part, along).iterrows()]
    found = {}
    for first, last in combinations(range(len(line)), 2):
        a, b = line[first], line[last]
        numbers = f"{_said(a)} at {a[along]}, {_said(b)} at {b[along]}"
        found[first, last] = _pair(*((a, b) if rule.falls else (b, a)), where, numbers)
    if found:
        worst = most_against(found.values())
        yield replace(worst if worst.outcome == "against" else found[0, len(line) - 1], looks=len(found))


def _reversal(rule: Rule, part: DataFrame, where: str) -> Iterator[Comparison]:
    """At the largest value `more` exceeds `less`, having been exceeded at some smaller one."""
    found = []
    for place, rows in _ordered(part, rule.reverses).groupby(rule.reverses, sort=False):
        found += _sides(rule, rows, f"{where}, {rule.reverses} = {place}".removeprefix(", "))
    if len(found) < 2:
        return
    last, before = found[-1], most_against(found[:-1])
    reverses = last.outcome == "against" or (last.outcome == "for" and before.outcome == "against")
    yield replace(last, outcome=last.outcome if reverses else "open", looks=len(found))


def _correlated(rows: DataFrame, column: str) -> Iterator[Comparison]:
    """Pearson's correlation with its 95 % interval by Fisher's transform; fewer than four points decide nothing."""
    from scipy.stats import pearsonr  # takes a second to import

    points = rows.assign(other=pd.to_numeric(rows[column])).dropna(subset=["other", "value"])
    if len(points) > 3:
        found = pearsonr(points["other"], points["value"])
        low, high = found.confidence_interval()
        row = Series({"value": found.statistic, "low": low, "high": high, "n": len(points)})
        zero = Series({"value": 0.0, "low": 0.0, "high": 0.0})
        numbers = f"correlation {found.statistic:.2f} [{low:.2f}, {high:.2f}] over {len(points)} points"
        yield _pair(row, zero, "", numbers)


def _pair(more: Series, less: Series, where: str, numbers: str, looks: int = 1) -> Comparison:
    """Which way two intervals lie apart, and the difference of their values."""
    effect, low, high = difference(more, less)
    n, seeds = (_least(name, more, less) for name in ("n", "seeds"))
    rest = dict(looks=looks, effect=effect, low=low, high=high, n=n, seeds=seeds)
    if more["low"] > less["high"]:
        return Comparison(where, "for", more["low"] - less["high"], numbers, **rest)
    if more["high"] < less["low"]:
        return Comparison(where, "against", more["high"] - less["low"], numbers, **rest)
    return Comparison(where, "open", more["value"] - less["value"], numbers, **rest)


def difference(more: Series, less: Series) -> tuple[float, float, float]:
    """The difference of two values, and the least and largest that their 95 % intervals allow; NaN without intervals.

    It leaves out zero if and only if the two intervals do not overlap, and holds the true difference in more than 99 of
    100 cases: 95 % intervals of independent values that are equally wide part by chance in 0.56 %."""
    return more["value"] - less["value"], more["low"] - less["high"], more["high"] - less["low"]


def _least(column: str, *rows: Series) -> float:
    """The smallest number that rows have in a column, NaN if none has one."""
    return pd.to_numeric(Series([row.get(column) for row in rows], dtype=object), errors="coerce").min()


def _said(row: Series) -> str:
    """A value with its interval, as the claims' table shows it: 49.5 [42.6, 56.4]."""
    whole = f"{row['value']:.1f}"
    return (
        whole if pd.isna(row["low"]) or row["low"] == row["high"] else f"{whole} [{row['low']:.1f}, {row['high']:.1f}]"
    )


def _name(row: Series, dimensions: list[str]) -> str:
    """Where a comparison is, in the words of tables."""
    from companion.report.tables import label

    return ", ".join(label(row[name]) for name in dimensions)


def _listed(side: str | tuple[str, ...]) -> list[str]:
    return [side] if isinstance(side, str) else [*side]


def _no_twins(rows: DataFrame, dimension: str) -> None:
    """Raise MergeError if two rows of one side agree on everything: the rule ignores what tells them apart."""
    if rows.duplicated([dimension]).any():
        raise pd.errors.MergeError(f"two rows have {dimension} {rows[dimension][rows.duplicated([dimension])].iloc[0]}")


def _ordered(rows: DataFrame, dimension: str) -> DataFrame:
    """Rows in the order of the number that a dimension's text ends with: R 0, R 1/4, R 1."""
    return rows.sort_values(dimension, key=lambda column: column.map(_number), kind="stable")


def _number(text: str) -> float:
    found = re.search(r"-?[\d.]+(/\d+)?(e-?\d+)?$", str(text))
    if not found:
        raise ValueError(f"{text!r} ends with no number, along which a curve could be followed")
    return float(Fraction(found[0]))
