"""The contents: reports/<scale>/index.html, and reports/index.html, which leads to whichever scales there are."""

from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from companion import paths
from companion.report import library, search
from companion.report.contents import (
    GROUNDWORK,
    LIBRARY,
    TEMPLATES,
    called,
    frame,
    groundwork,
    load_run,
    sections,
)
from companion.report.shown import write

if TYPE_CHECKING:
    from companion.claims import Verdict

NAME = "Robust and non-robust features"
PREAMBLE = (
    r"\documentclass[8pt]{extarticle}",
    r"\usepackage[a4paper, landscape, margin=1cm]{geometry}",
    r"\usepackage{booktabs, multirow}",
    r"\begin{document}",
)


def scale_index(run: dict[str, Any]) -> Path:
    """Write the contents of one scale: the claims, per paper its artefacts, then the groundwork. What is not made has no link."""
    target = paths.REPORTS / run["scale"] / "index.html"
    papers = groupby(pages := sections(), key=lambda page: page.companion["paper"])
    stages = groupby(groundwork(run), key=lambda page: page.stage)
    body = TEMPLATES.get_template("contents.html.j2").render(
        name=NAME,
        run=run,
        ledger=ledger(run),
        home={artefact: page for page in pages for artefact in page.companion["artefacts"]},
        papers={paper: list(pages) for paper, pages in papers},
        groundwork={GROUNDWORK[stage][2]: list(pages) for stage, pages in stages},
        made=lambda file: (target.parent / file).exists(),
        called=called,
        entries=search.entries(run, target.parent),
        library=LIBRARY,
    )
    write(target, frame(body, target, title=f"{NAME}: {run['scale']}", run=run))
    return target


def ledger(run: dict[str, Any]) -> dict[str, list["Verdict"]]:
    """The verdict on every claim, by paper; a control of ours stands with the paper that it controls."""
    from companion.claims import entries, judge  # imports pandas, a second that running a notebook does without

    papers: dict[str, list[Verdict]] = {}
    for entry in entries().values():
        papers.setdefault(entry.about, []).append(judge(entry, paths.REPORTS / run["scale"]))
    return papers


def all_scales() -> Path:
    """Write reports/index.html: a link to every scale that has been run here or is published."""
    target = paths.REPORTS / "index.html"
    found = [*sorted(paths.REPORTS.glob("*/index.html")), *sorted(paths.REPORTS.glob("published/*/index.html"))]
    scales = [index.parent.relative_to(paths.REPORTS).as_posix() for index in found]
    body = TEMPLATES.get_template("scales.html.j2").render(name=NAME, scales=scales)
    write(target, frame(body, target, title=NAME))
    return target


def all_tables(run: dict[str, Any]) -> Path:
    """Write tables.tex: one LaTeX document of every table that is made, in the order of the contents."""
    target = paths.REPORTS / run["scale"] / "tables.tex"
    names = [f"{page.folder}/tables/{artefact}" for page in sections() for artefact in page.companion["artefacts"]]
    inputs = [f"\\input{{{name}}}\n\\clearpage" for name in names if (target.parent / f"{name}.tex").exists()]
    write(target, "\n".join([*PREAMBLE, *inputs, "\\end{document}\n"]))
    return target


def index() -> Path:
    """Write both, for params.yaml's run, and before them what they list: the library's page and the tables in LaTeX."""
    run = load_run()
    library.render(run)
    all_tables(run)
    target = scale_index(run)
    all_scales()
    return target
