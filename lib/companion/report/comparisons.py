"""Settings and steps in words: what the paper prints beside what we have, as CSV, HTML and LaTeX."""

from collections.abc import Callable

import pandas as pd
from pandas import DataFrame

from companion.paths import page_folder
from companion.report.shown import Shown, write
from companion.report.tables import html_text, latex, latex_table, lay_out, printed


def compared(ours: DataFrame, *, artefact: str, caption: str) -> Shown:
    """The paper's table of settings, rows and columns as printed: ours in every cell, and the paper's if it differs.

    `ours` has the paper's rows as index and its columns, all text; what is absent shows a dash. Writes
    tables/<artefact>.csv, .html and .tex to the page's folder. Raises UserError if published.yaml has no such table."""
    rows = printed(artefact)
    (index,), dimension, where = rows.attrs["index"], rows.attrs["dimension"], rows.attrs["where"]
    mine = [ours[row[dimension]].get(row[index], "–") if row[dimension] in ours else "–" for _, row in rows.iterrows()]
    rows = rows.assign(ours=mine, differs=[a != b for a, b in zip(mine, rows["paper"], strict=True)])

    def grid(same: str, other: str, plain: Callable[[str], str]) -> DataFrame:
        cells = [(other if r.differs else same).format(plain(r.ours), plain(r.paper)) for r in rows.itertuples()]
        wide = rows.assign(cell=cells).pivot(index=index, columns=dimension, values="cell")
        wide = wide.loc[[*rows[index].unique()], [*rows[dimension].unique()]].rename(index=plain, columns=plain)
        return wide.rename_axis(index=str.capitalize, columns=lambda name: None)

    write(
        page_folder() / "tables" / f"{artefact}.tex",
        latex_table(grid("{0}", r"{0} {{\footnotesize ({1})}}", latex), artefact, caption),
    )
    notes = f"<p><b>Ours</b> are the settings of this run. In {rows['differs'].sum()} of {len(rows)} cells "
    notes += f"they differ from the paper's <small>(small print: {html_text(where)})</small>.</p>"
    html = grid("<b>{0}</b>", '<b class="differs">{0}</b><small>{1}</small>', html_text)
    return lay_out(html, rows, artefact=artefact, caption=caption, conditions=None, notes=notes)


def steps(lines: DataFrame, *, artefact: str, caption: str) -> Shown:
    """A table of words as given, one row per step or thing: columns of text, of which `our source`, if any, is code.

    Writes tables/<artefact>.csv, .html and .tex into the page's folder."""
    first = lines.columns[0]
    named = lines.set_index(first).rename_axis(index=str.capitalize)
    write(
        page_folder() / "tables" / f"{artefact}.tex",
        latex_table(named.map(latex).rename(index=latex, columns=latex), artefact, caption),
    )
    shown = named.map(html_text).rename(index=html_text)
    if "our source" in shown:
        shown["our source"] = [f"<code>{text}</code>" for text in shown["our source"]]
    found = lay_out(shown, lines, artefact=artefact, caption=caption, conditions=None, notes="")
    return Shown(found.html.replace('class="table"', 'class="table words"', 1), pd.DataFrame(lines))
