"""Tables: what we measured beside what the paper prints, as CSV, HTML and LaTeX."""

import re
import unicodedata
from collections.abc import Callable
from fractions import Fraction
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
from pandas import DataFrame, Series
from ruamel.yaml import YAML

from companion import paths
from companion.paths import page_folder
from companion.report.contents import load_run
from companion.report.shown import Conditions, Shown, write
from companion.study import brought
from robust_features.settings import UserError

LABELS = YAML(typ="safe").load(Path(__file__).with_name("labels.yaml"))  # in the order of tables
MEASURED = ("value", "low", "high", "n", "unit")
EVIDENCE = {  # what the tags in published.yaml mean
    "P": "printed in the paper",
    "C": "from the authors' public code or data",
    "C2": "from others' public code",
    "I": "from a public discussion",
    "M": "our arithmetic on what is printed",
    "mem": "from memory of the paper, unverified",
    "?": "not in our text of the paper",
}
MATH = {"±": "pm", "†": "dagger", "↑": "uparrow", "↓": "downarrow", "‖": "Vert", "·": "cdot", "×": "times"}
MATH |= {"∞": "infty", "≤": "le", "≥": "ge", "→": "to", "~": "sim", "\\": "backslash"}
GREEK = dict(
    zip(
        "αβγδεζηθικλμνξπρστυφχψω",
        "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho "
        "sigma tau upsilon phi chi psi omega".split(),
        strict=True,
    )
)
LATEX = {sign: rf"$\{name}$" for sign, name in (MATH | GREEK).items()}
LATEX |= {sign: rf"\{sign}" for sign in "&%$#_{}"} | {sign: f"${sign}$" for sign in "<>|"} | {"−": "$-$", "–": "--"}
LATEX |= {"^": r"\textasciicircum{}", "[": "{[}", "*": "{*}"}  # after the end of a row, [ and * would belong to it
GLOSSARY = YAML(typ="safe").load(Path(__file__).with_name("landing.yaml"))["glossary"]
NAMED = re.compile(r"<th([^>]*)>(Int|R|NR|Z_r|Z_nr)</th>")  # what tables define when pointed at
SCROLL = '<div class="scroll" tabindex="0" style="overflow-x: auto">\n'  # a wide table scrolls, by keys too


def label(value: object) -> str:
    """What readers call an id: cifar10 → CIFAR-10; an id without a label stays as it is."""
    return LABELS.get(str(value), str(value))


def published(artefact: str) -> DataFrame:
    """The paper's values: dimensions, `value`, `approximate` (read off a plot). Empty if the artefact is unknown.

    `.attrs` says `where` they stand, their `unit` and `evidence`."""
    return values_of(entries().get(artefact, {}))


def values_of(entry: dict[str, Any]) -> DataFrame:
    """The paper's values in an entry of published.yaml, as `published` has them."""
    if "values" not in entry:
        return DataFrame({"value": Series(dtype=float), "approximate": Series(dtype=bool)})
    ((dimension, names),) = entry["values"].items()
    wide = DataFrame(entry["rows"], columns=[*entry["index"], *names]).set_index(entry["index"])
    rows = wide.rename_axis(columns=dimension).stack().dropna().astype(str).rename("text").reset_index()
    rows = rows.assign(**entry.get("constants", {}), value=rows["text"].str.removeprefix("~").astype(float))
    rows["approximate"] = rows.pop("text").str.startswith("~")
    rows.attrs = {key: entry[key] for key in ("where", "unit", "evidence")}
    return rows


def printed(artefact: str) -> DataFrame:
    """What the paper prints as words, such as settings: the row's dimensions, the column's, `paper`; all text.

    `.attrs` says `where` it stands. Raises UserError if published.yaml has no such artefact."""
    entry = entries().get(artefact, {})
    if "values" not in entry:
        raise UserError(f"published.yaml has no values of '{artefact}'")
    ((dimension, names),) = entry["values"].items()
    wide = DataFrame(entry["rows"], columns=[*entry["index"], *names], dtype=str).set_index(entry["index"])
    rows = wide.rename_axis(columns=dimension).stack().rename("paper").reset_index()
    rows.attrs = {"where": entry["where"], "dimension": dimension, "index": entry["index"]}
    return rows


def faults(artefact: str) -> str:
    """What the paper leaves out or contradicts in this artefact, as HTML, each with its evidence; often nothing."""
    found = [
        f"{html_text(each['said'])} <i>({evidence(each['evidence'])})</i>"
        for each in entries().get(artefact, {}).get("faults", [])
    ]
    items = "".join(f"\n<li>{each}</li>" for each in found)
    return f'\n<div class="faults"><b>About the paper itself</b><ul>{items}\n</ul></div>' if found else ""


def entries() -> dict[str, dict[str, Any]]:
    """What published.yaml says about each artefact."""
    return YAML(typ="safe").load(paths.PUBLISHED)


def evidence(tags: str) -> str:
    """What tags of published.yaml mean: P, M → printed in the paper; our arithmetic on what is printed."""
    return "; ".join(EVIDENCE[tag] for tag in tags.split(", "))


def table(
    rows: DataFrame,
    *,
    artefact: str,
    index: list[str],
    columns: list[str],
    caption: str,
    conditions: Conditions | None = None,
    reference: dict[str, str] | None = None,
    stands_for: dict[str, dict[str, str]] | None = None,
    decimals: int = 1,
) -> Shown:
    """Lay out `rows` (dimensions, value, low, high, n, perhaps unit) as `index` by `columns`, beside the paper's.

    `reference` names another dataset of the paper, whose values are shown once, separately, if there are none on one of
    the study: {"dataset": "cifar10"}. `stands_for` tells for a dimension what the paper calls a value of ours, as in
    {"network": {"WRN-10-1": "wrn28-10"}}; one whose label begins with the paper's keeps it. `conditions` under which
    the rows were measured follow the caption, and their number of seeds goes into the CSV. Writes
    tables/<artefact>.csv, .html and .tex into the page's folder. Raises ValueError if two rows fall into one cell."""
    paper = published(artefact)
    tidy, not_run = _compare(rows, paper, reference or {}, stands_for or {})
    for dimension, names in (stands_for or {}).items():
        if dimension in rows and not paper.empty:
            shown = {ours: _shown(ours, label(theirs)) for ours, theirs in names.items()}
            tidy[dimension] = tidy[dimension].replace(shown)
    if conditions:
        tidy["seeds"] = conditions.seeds_of(tidy["n"][: len(rows)])
    ours = tidy[: len(rows)]
    digits = max((len(f"{value:.12g}".partition(".")[2]) for value in paper["value"]), default=decimals)
    measured = "<b>{}</b>" if paper["value"].notna().any() else "{}"  # if all is ours, nothing needs to stand out
    about = "~" if paper["approximate"].any() else ""
    units = ours["unit"].unique() if "unit" in ours else ["%"]

    def cell(row: Series, measured: str, spread: str, printed: str, plain: Callable[[str], str]) -> str:
        value, half = row["ours"], (row["high"] - row["low"]) / 2
        counted = row.get("unit", "%") == "%" and pd.notna(row["n"]) and row["n"] <= 1000
        rough = half > 0.1 if pd.notna(half) else counted
        places = min(decimals, 1) if rough else decimals  # not more decimals than so few images allow
        text = measured.format(plain("–" if pd.isna(value) else f"{value:.{places}f}"))
        exact = pd.isna(row["n"]) and half == 0
        text += "" if pd.isna(half) or pd.isna(value) or exact else spread.format(plain(f"±{half:.{places}f}"))
        text += plain(f" {row['unit']}" if len(units) > 1 else "")
        if pd.notna(row["paper"]):
            change = "" if pd.isna(value) else f" ({row['difference']:+.{places}f})".replace("-", "−")
            text += printed.format(plain(f"{about}{row['paper']:.{digits}f}{change}"))
        return text

    def grid(measured: str, spread: str, printed: str, plain: Callable[[str], str]) -> DataFrame:
        labelled = ours[[*index, *columns]].map(label)
        known = [*LABELS.values()]

        def placed(names: Series) -> pd.Categorical:
            """In the paper's order of this dimension: PGD is a way of training and an attack."""
            theirs = [label(name) for name in _printed(paper, names.name)]

            def rank(name: str) -> tuple[int, int, float]:
                printed = theirs.index(name) if name in theirs else len(theirs)
                return printed, known.index(name) if name in known else -1, _number(name)

            return pd.Categorical(names, sorted(names.unique(), key=rank))

        ordered = labelled.apply(placed)
        ordered["cell"] = [cell(row, measured, spread, printed, plain) for _, row in ours.iterrows()]
        if ordered.duplicated([*index, *columns]).any():
            raise ValueError(f"{artefact}: two rows fall into one cell; index and columns must tell all rows apart")
        wide = (
            ordered.pivot(index=index, columns=columns, values="cell")
            .sort_index()
            .sort_index(axis=1)
            .astype(object)
            .fillna("")
        )
        wide = wide.rename_axis(index=lambda name: plain(name.capitalize()), columns=lambda name: None)
        return wide.rename(index=plain, columns=plain)

    here = {label(name) for name in ours.get("dataset", [])} | {
        *map(label, (stands_for or {}).get("dataset", {}).values())
    }
    notes = _notes(ours, paper, not_run, units, reference or {}, conditions, columns, here)
    write(
        page_folder() / "tables" / f"{artefact}.tex",
        latex_table(grid("{}", " {}", r" {{\footnotesize {}}}", latex), artefact, caption, conditions),
    )
    html = grid(measured, " <i>{}</i>", "<small>{}</small>", html_text)
    return lay_out(html, tidy, artefact=artefact, caption=caption, conditions=conditions, notes=notes)


def lay_out(
    cells: DataFrame, rows: DataFrame, *, artefact: str, caption: str, conditions: Conditions | None, notes: str
) -> Shown:
    """Write `rows` as tables/<artefact>.csv and a grid of HTML `cells` as .html, and show it; .tex is the caller's."""
    folder = page_folder() / "tables"
    write(folder / f"{artefact}.csv", rows)
    body = cells.to_html(escape=False, border=0).replace("<th></th>", "<td></td>")
    body = NAMED.sub(
        lambda found: f'<th{found[1]}><abbr title="{escape(GLOSSARY[found[2]])}">{found[2]}</abbr></th>', body
    )
    body = body.replace("<table ", f'<table aria-labelledby="{artefact}-caption" ', 1)
    under = f". <small>{html_text(conditions.text)}</small>" if conditions else ""
    said = f'<a href="#{artefact}">{artefact}</a> {escape(caption)}{under}'
    title = f'<figcaption id="{artefact}-caption">{said}</figcaption>'
    html = f"{title}\n{SCROLL}{body}</div>\n{notes}{faults(artefact)}"
    head = f'<!DOCTYPE html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{artefact}</title>\n'
    write(folder / f"{artefact}.html", f'{head}<figure id="{artefact}">\n{html}\n</figure>\n')
    files = " · ".join(f'<a href="tables/{artefact}.{end}">{end.upper()}</a>' for end in ("csv", "tex"))
    return Shown(f'<figure class="table" id="{artefact}">\n{html}\n<p>{files}</p>\n</figure>', rows)


def _printed(paper: DataFrame, dimension: str) -> list[str]:
    """The values of a dimension in the order in which the paper's table has them."""
    return [*paper[dimension].unique()] if dimension in paper else []


def _number(name: object) -> float:
    """The number in a dimension's value, 1/8 before 1/4; 0 if there is none: such names keep the order they come in."""
    try:
        return float(Fraction(str(name)))
    except ValueError:
        return 0.0


def _shown(ours: str, paper: str) -> str:
    """What we have, and what it stands for if readers call that otherwise: WRN-10-1 (for WRN-28-10)."""
    return ours if label(ours).startswith(paper) else f"{ours} (for {paper})"


def _compare(
    rows: DataFrame, paper: DataFrame, reference: dict[str, str], stands_for: dict[str, dict[str, str]]
) -> tuple[DataFrame, Series]:
    """The CSV's rows, ours first and then the paper's that were not run; and the latter as a series over dimensions."""
    dimensions = [name for name in rows if name not in MEASURED]
    shared = [name for name in dimensions if name in paper]
    lacking = [name for name in paper.columns[:-2].difference(shared) if paper[name].nunique() > 1]
    if lacking:
        raise ValueError(f"the rows need the column {lacking[0]}, along which the paper's values differ")
    tidy = rows.rename(columns={"value": "ours"}).assign(n=rows["n"].astype("Int64"), paper=float("nan"))
    tidy["reference"], not_run = float("nan"), paper["value"]
    if shared:
        values = paper.set_index(pd.MultiIndex.from_frame(paper[shared]))["value"]
        named = rows[shared].apply(lambda names: names.replace(stands_for.get(names.name, {})))
        keys = pd.MultiIndex.from_frame(named)
        tidy["paper"] = values.reindex(keys).to_numpy()
        if reference:
            elsewhere = values.reindex(pd.MultiIndex.from_frame(named.assign(**reference))).to_numpy()
            tidy["reference"] = Series(elsewhere, tidy.index).where(
                tidy["paper"].isna() & ~brought(load_run()).among(rows)
            )
        not_run = values[~values.index.isin(keys)]
        tidy = pd.concat([tidy, not_run.rename("paper").reset_index()], ignore_index=True)
    tidy["difference"] = tidy["ours"] - tidy["paper"]
    measured = ["paper", "ours", "low", "high", "n", "difference", "reference", *(["unit"] if "unit" in rows else [])]
    return tidy[[*dimensions, *measured]], not_run


def _notes(
    ours: DataFrame,
    paper: DataFrame,
    not_run: Series,
    units: list[str],
    reference: dict[str, str],
    conditions: Conditions | None,
    columns: list[str],
    here: set[str],
) -> str:
    """The notes under the table: how to read a cell, whose the small values are, what was not run of datasets `here`."""
    few, many = ours["n"].min(), ours["n"].max()
    over = f" {conditions.over}" if conditions else ""
    wide = (ours["high"] > ours["low"]) | ours["n"].notna() & ours["high"].notna()
    half = (
        f", ±half of the 95 % interval{over}" if wide.any() else "; exact values" if ours["high"].notna().any() else ""
    )
    unit = f", in {html_text(units[0])}" if len(units) == 1 and units[0] else ""
    count = "" if pd.isna(few) else f"; n = {few}" + (f" to {many}" if few < many else "")
    if paper.empty:
        return f"<p>All values are ours{unit}{half}{count}.</p>"
    notes = f"<b>Ours</b>{unit}{half}{count}."
    if ours["paper"].notna().any():
        notes += f" <small>Small print: {escape(paper.attrs['where'])}"
        notes += " (difference)" if ours["difference"].notna().any() else ""
        notes += f", {evidence(paper.attrs['evidence'])}.</small>"
    notes = f"<p>{notes}</p>"
    if ours["reference"].notna().any():
        (dimension, name), *_ = reference.items()
        of = not_run.index.get_level_values(dimension) == name
        notes += f"\n<p>The paper's values on <b>{html_text(label(name))}</b>, which are other images than ours, so no "
        notes += f"difference is computed ({escape(paper.attrs['where'])}, {evidence(paper.attrs['evidence'])}):</p>"
        notes += f"\n{SCROLL}{_listing(not_run[of].droplevel(dimension), columns)}</div>"
        not_run = not_run[~of]
    if not_run.empty:
        return notes
    lacking = [label(each) for each in not_run.index.unique("dataset")] if "dataset" in not_run.index.names else []
    lacking = [each for each in lacking if each not in here]
    why = f"it has no networks on {either(lacking)}" if lacking else "it has no such networks or attacks"
    other = "other " if len(not_run) < len(paper) else ""
    summary = f"The paper's {other}values ({len(not_run)} of {len(paper)}) have no counterpart at this scale: {why}"
    return f"{notes}\n<details><summary>{summary}</summary>\n{SCROLL}{_listing(not_run, columns)}</div>\n</details>"


def _listing(values: Series, columns: list[str]) -> str:
    """The paper's values alone, laid out like ours as far as they have the same dimensions."""
    flat = values.rename(index=label).rename("paper").rename_axis(index=lambda name: str(name).capitalize())
    across = [name.capitalize() for name in columns if name.capitalize() in flat.index.names]
    across = across if len(across) < flat.index.nlevels else across[1:]
    if not across:
        return flat.to_frame().to_html(border=0, na_rep="")
    wide = flat.unstack(across, sort=False).rename_axis(columns=[None] * len(across))
    return wide.to_html(border=0, na_rep="")


def either(names: list[str]) -> str:
    """Names as alternatives: a, b or c."""
    return " or ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def html_text(text: str) -> str:
    """Text as HTML shows it letter by letter."""
    return escape(text, quote=False)


def latex(text: str) -> str:
    r"""Text as LaTeX prints it letter by letter; a letter that its fonts lack is printed as its number.

    >>> latex("5 % of [a_b]"), latex("~猫")
    ('5 \\% of {[}a\\_b]', '$\\sim${[}U+732B]')
    """
    letters = re.sub(r"\s+", " ", text)
    return "".join(LATEX.get(each, each if _typeset(each) else f"{{[}}U+{ord(each):04X}]") for each in letters)


def _typeset(letter: str) -> bool:
    """ASCII, and what else LaTeX's basic fonts have: letters with an accent, and a few more."""
    if letter.isascii():
        return letter.isprintable()
    return letter in "ßæœøÆŒØ" or letter <= "ſ" and unicodedata.normalize("NFD", letter)[0].isascii()


def latex_table(grid: DataFrame, artefact: str, caption: str, conditions: Conditions | None = None) -> str:
    """A grid whose cells and names are LaTeX, as a table with its caption and label."""
    whole = f"{caption}. {conditions.text}" if conditions else caption
    return grid.style.to_latex(hrules=True, multicol_align="c", caption=latex(whole), label=artefact)
