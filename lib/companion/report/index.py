"""The contents of one scale, reports/<scale>/index.html; the first page, of all scales, is `landing`'s."""

from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from companion import paths
from companion.report import landing, library, search
from companion.report.contents import (
    GROUNDWORK,
    LIBRARY,
    PAPERS,
    TEMPLATES,
    called,
    frame,
    groundwork,
    load_run,
    sections,
)
from companion.report.shown import WORDS, anchors, chip, picture, write

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
    """Write one scale's contents: claims, each paper's artefacts, groundwork. What is not made yet has no link."""
    target = paths.REPORTS / run["scale"] / "index.html"
    papers = groupby(pages := sections(), key=lambda page: page.companion["paper"])
    stages = groupby(groundwork(run), key=lambda page: page.stage)
    from companion.report.gaps import known_faults, not_run  # imports pandas, which running a notebook does without

    judged = ledger(run)
    verdicts = [each for found in judged.values() for each in found]
    home = {artefact: page for page in pages for artefact in page.companion["artefacts"]}
    body = TEMPLATES.get_template("contents.html.j2").render(
        name=NAME,
        run=run,
        ledger=judged,
        looks=sum(found.looks for each in verdicts for found in each.comparisons),
        chance=sum(each.by_chance for each in verdicts),
        seeds=seeds(run),
        absent=[each for each in not_run(run) if each["artefact"] in home],
        faults=[each for each in known_faults() if each["artefact"] in home],
        references=PAPERS,
        home=home,
        papers={paper: list(pages) for paper, pages in papers},
        groundwork={GROUNDWORK[stage][2]: list(pages) for stage, pages in stages},
        chip=chip,
        words=WORDS,
        picture=lambda page, artefact: picture(target.parent / page.folder, artefact),
        made=lambda file: (target.parent / file).exists(),
        anchors={page.file: anchors(target.parent / page.file) for page in pages},
        called=called,
        entries=search.entries(run, target.parent),
        library=LIBRARY,
    )
    write(target, frame(body, target, title=f"{NAME}: {run['scale']}", run=run))
    return target


def ledger(run: dict[str, Any]) -> dict[str, list["Verdict"]]:
    """The verdict on every claim, by paper; a control of ours is listed with the paper that it controls."""
    from companion.claims import entries, judge  # imports pandas, which running a notebook does without
    from companion.study import brought

    papers: dict[str, list[Verdict]] = {}
    without = brought(run)
    for entry in entries().values():
        papers.setdefault(entry.about, []).append(judge(entry, paths.REPORTS / run["scale"], without=without))
    return papers


def seeds(run: dict[str, Any]) -> str:
    """How many networks are behind each row, in a sentence."""
    counts = [len(group.get("seeds", [0])) for group in run["networks"].values()]
    several = sum(count > 1 for count in counts)
    if not several:
        return (
            "Every network was trained with one seed: intervals are over test images;"
            " another seed may change a value by more."
        )
    were = f"{several} of {len(counts)} groups of networks {'was' if several == 1 else 'were'}"
    return f"{were} trained with several seeds, and the intervals there are over these seeds."


def all_tables(run: dict[str, Any]) -> Path:
    """Write tables.tex: one LaTeX document with every table that has been made, in the order of the contents."""
    target = paths.REPORTS / run["scale"] / "tables.tex"
    names = [f"{page.folder}/tables/{artefact}" for page in sections() for artefact in page.companion["artefacts"]]
    inputs = [f"\\input{{{name}}}\n\\clearpage" for name in names if (target.parent / f"{name}.tex").exists()]
    write(target, "\n".join([*PREAMBLE, *inputs, "\\end{document}\n"]))
    return target


def index() -> Path:
    """Write the contents of run.yaml's scale and the first page, after what they list: the library and the tables."""
    run = load_run()
    library.render(run)
    all_tables(run)
    target = scale_index(run)
    landing.render()
    return target
