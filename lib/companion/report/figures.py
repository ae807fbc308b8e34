"""Figures: SVG that follows the reader's light or dark theme, PNG, and the plotted data as CSV."""

import base64
import io
from collections.abc import Mapping
from html import escape

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pandas import DataFrame

from companion.paths import page_folder
from companion.report.shown import HEAVY, Conditions, Shown, write
from companion.report.tables import faults

INK = "#1f2328"  # whatever is drawn in this colour takes the reader's text colour in the SVG
THEME = "<style>svg{color:#1f2328}@media(prefers-color-scheme:dark){svg{color:#d8dee4}}</style>"
DPI = 150
READABLE = 7  # labels that fit side by side under a small panel
FINDINGS = 2  # in a caption; the verdicts below the figure have all


def style(*, plots: bool = True) -> None:
    """Set the look of all figures: colour-blind-safe palette, transparent ground. Without `plots`, for images only.

    Settings of a user's matplotlibrc or of a cell above are undone first. Seaborn takes a second to import,
    which notebooks that only show images are spared."""
    matplotlib.rcdefaults()
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor", "xtick.color", "ytick.color")
    grounds = ("figure.facecolor", "axes.facecolor", "savefig.facecolor", "legend.facecolor")
    look = dict.fromkeys(inked, INK) | dict.fromkeys(grounds, "none") | {"figure.constrained_layout.use": True}
    if plots:
        import seaborn

        look |= {"grid.color": "#8888884d", "image.interpolation": "none", "legend.frameon": False}
        seaborn.set_theme(context="notebook", style="whitegrid", palette="colorblind", rc=look)
    else:
        plt.rcParams.update(look)


def figure(
    fig: Figure,
    *,
    alt: str,
    artefact: str | None = None,
    data: DataFrame | None = None,
    conditions: Conditions | None = None,
    finding: str = "",
) -> Shown:
    """Write figures/<artefact>.svg, .png and (of the plotted `data`) .csv into the page's folder; close and show it.

    `alt` says in words what the figure shows, `finding` what was found, in a sentence of the rows. The caption begins
    with what claims of the papers that are judged by the figure have come to, and with the finding; then come `alt`,
    the `conditions` under which `data` were measured, n, and what their intervals are over. Without an artefact, the
    figure is only shown."""
    with plt.rc_context({"svg.hashsalt": artefact or "figure"}):
        svg = _save(fig, "svg", metadata={"Date": None, "Creator": None}).decode()
    svg = svg.replace(INK, "currentColor").replace("<defs>", f"{THEME}<defs>", 1)
    png = _save(fig, "png", facecolor="white", metadata={"Software": None})
    plt.close(fig)
    kind, shown = ("svg+xml", svg.encode()) if len(svg) < HEAVY else ("png", png)
    source = f"data:image/{kind};base64,{base64.b64encode(shown).decode()}"
    width = int.from_bytes(png[16:20]) * 96 // DPI  # in CSS pixels, 96 per inch
    image = f'<img src="{source}" alt="{escape(alt)}" width="{width}" style="max-width: 100%">'
    image = f'<div class="scroll" tabindex="0">{image}</div>'
    if artefact is None:
        return Shown(f"<figure>\n{image}\n</figure>", data)
    if data is not None and conditions:
        data = data.assign(seeds=conditions.seeds_of(data["n"]) if "n" in data else max(conditions.seeds))
    files = {"svg": svg, "png": png} | ({} if data is None else {"csv": data})
    for end, content in files.items():
        write(page_folder() / "figures" / f"{artefact}.{end}", content)
    links = " · ".join(f'<a href="figures/{artefact}.{end}">{end.upper()}</a>' for end in files)
    under = f" <small>{escape(_under(data, conditions))}</small>" if data is not None or conditions else ""
    said = " ".join(filter(None, [_found(artefact) if data is not None else "", finding]))
    found = f"<b>{escape(said)}</b> " if said else ""
    title = f'<figcaption><a href="#{artefact}">{artefact}</a> {found}{escape(alt.rstrip("."))}.{under}</figcaption>'
    title += f"{faults(artefact)}\n<p>{links}</p>"
    return Shown(f'<figure id="{artefact}">\n{image}\n{title}\n</figure>', data)


def _found(artefact: str) -> str:
    """What the papers' claims that this figure alone judges have come to, at most FINDINGS of them, in sentences."""
    from companion.claims import entries, verdict  # which imports this package
    from companion.report.landing import sentence

    judged = [id for id, entry in entries().items() if entry.artefacts == [artefact] and not entry.ours]
    return " ".join(sentence(verdict(id)) for id in judged[:FINDINGS])


def _under(data: DataFrame | None, conditions: Conditions | None) -> str:
    """What the plotted rows were measured with, on how many images or seeds, and what the intervals are over."""
    said = [conditions.text] if conditions else []
    if data is not None and "n" in data and data["n"].notna().any():
        few, many = int(data["n"].min()), int(data["n"].max())
        said.append(f"n = {few}." if few == many else f"n = {few} to {many}.")
        if conditions and {"low", "high"} <= {*data} and data["low"].notna().any():
            said.append(f"95 % intervals {conditions.over}.")
    return " ".join(said)


def plain(text: object) -> str:
    r"""`text` as matplotlib draws it letter by letter: `$` would begin an equation, a first `_` hide it from legends.

    >>> plain("_a$b$")
    '$\\_$a\\$b\\$'
    """
    escaped = str(text).replace("$", r"\$")
    return rf"$\_${escaped[1:]}" if escaped.startswith("_") else escaped


def curves(axis: Axes, rows: DataFrame, *, x: str, hue: str) -> None:
    """Lines of `value` along `x`, one for each `hue` in the order met, with the band from `low` to `high`."""
    for number, (name, part) in enumerate(rows.groupby(hue, sort=False)):
        colour = f"C{number}"
        axis.plot(part[x], part["value"], marker="o", label=plain(name), color=colour)
        axis.fill_between(part[x], part["low"], part["high"], alpha=0.2, facecolor=colour, linewidth=0)


def multiples(
    rows: DataFrame,
    *,
    x: str,
    panel: str,
    group: str,
    xlabel: str,
    ylabel: str,
    across: int = 4,
    floors: Mapping[tuple[str, str], float] | None = None,
) -> Figure:
    """A small panel for each `panel` of a `group`: its `value` along `x` with its band, the others' lines in grey.

    Many lines in one panel cannot be told apart; all panels share the vertical axis. `floors` by (group, panel) are
    drawn as dashed lines: what is reached without what the curve is about, such as errors on clean images."""
    from companion.report.tables import label

    panels = {name: [*part.groupby(panel, sort=False)] for name, part in rows.groupby(group, sort=False)}
    deep = [-(-len(parts) // across) for parts in panels.values()]
    drawing, axes = plt.subplots(sum(deep), across, figsize=(10, 2.3 * sum(deep)), sharey=True, squeeze=False)
    for axis in axes.flat:
        axis.set_visible(False)
    for (name, parts), grid in zip(panels.items(), np.split(axes, np.cumsum(deep)[:-1]), strict=True):
        for axis, (which, part) in zip(grid.flat, parts, strict=False):
            for other, line in parts:
                if other != which:
                    axis.plot(line[x], line["value"], color="#88888880", lw=0.8)
            axis.plot(part[x], part["value"], color="C0", marker="o", ms=4)
            axis.fill_between(part[x], part["low"], part["high"], alpha=0.25, facecolor="C0", linewidth=0)
            if (name, which) in (floors or {}):
                axis.axhline(floors[name, which], color="C1", ls="--", lw=1)
            axis.set_visible(True)
            axis.set_title(plain(f"{label(name)}\n{label(which)}"), fontsize=9)
            axis.tick_params(labelsize=8)
            axis.tick_params(axis="x", rotation=90 if part[x].nunique() > READABLE else 0)
    drawing.supxlabel(xlabel, fontsize=10)
    drawing.supylabel(ylabel, fontsize=10)
    return drawing


def _save(fig: Figure, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    fig.savefig(buffer, format=kind, dpi=DPI, bbox_inches="tight", **options)
    return buffer.getvalue()
