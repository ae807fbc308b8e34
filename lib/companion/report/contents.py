"""What a report contains, in reading order, and the frame in which every page of it stands."""

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from companion import paths
from robust_features.settings import UserError

TEMPLATE = Path(__file__).parent / "template"
TEMPLATES = Environment(loader=FileSystemLoader(TEMPLATE), autoescape=True, trim_blocks=True, lstrip_blocks=True)
GROUNDWORK = {  # stage: its notebook, the dictionary of run.yaml whose keys it runs over, what readers call it
    "dataset": ("01-datasets", "datasets", "Datasets"),
    "networks": ("02-networks", "networks", "Networks"),
    "construct": ("03-constructed", "constructed", "Constructed datasets"),
    "transfer": ("04-transfer", "transfers", "Transfer"),
}
QUICK = """Quick scale: handwritten digits and narrow networks on a CPU. It shows that everything works and what each
artefact looks like, not the paper's numbers."""


@dataclass(frozen=True)
class Page:
    """One page; `file` is relative to reports/<scale>/. A section has `companion`, groundwork has `stage` and `key`."""

    notebook: Path
    file: str
    title: str
    companion: dict[str, Any] = field(default_factory=dict)
    stage: str = ""
    key: str = ""

    @property
    def address(self) -> str:
        """`file` as links write it: a notebook's name may hold characters with a meaning in links."""
        return quote(self.file)

    @property
    def executed(self) -> Path:
        """Where the stage of a groundwork page leaves its executed notebook."""
        return paths.DATA / "runs" / self.stage / f"{self.key}.ipynb"

    @property
    def folder(self) -> str:
        """The page's folder, with its tables/ and figures/."""
        return self.file.rpartition("/")[0]


LIBRARY = Page(Path(), "library.html", "The library")  # made from docstrings, by `library`
PAPERS = YAML(typ="safe").load(Path(__file__).with_name("papers.yaml"))  # by the name that notebooks and claims use
PRINTED = re.compile("-(table|figure|equation|appendix|algorithm)-")  # in the id of an artefact that the paper has too
ACRONYMS = ("hsic", "svhn", "vgg", "wrn")


def load_run() -> dict[str, Any]:
    """run.yaml's `run`, not validated: `params.load` does that and imports torch. Raises UserError if there is none."""
    try:
        run = YAML(typ="safe").load(paths.RUN)["run"]
        if lacking := {"scale", "seed"} - {*run}:
            raise KeyError(*lacking)
        return run
    except (OSError, UnicodeDecodeError, YAMLError, KeyError, TypeError) as error:
        raise UserError(f"{paths.RUN} is not readable: run `make`, or `python -m companion params`") from error


def sections() -> list[Page]:
    """A page for every notebook that has `companion` in its metadata: paper, section, artefacts."""
    notebooks = {path: read(path) for path in sorted(paths.NOTEBOOKS.glob("[!.]*.ipynb"))}
    companions = {path: notebook["metadata"].get("companion") for path, notebook in notebooks.items()}
    for companion in filter(None, companions.values()):
        printed_first = sorted(companion["artefacts"].items(), key=lambda item: not PRINTED.search(item[0]))
        companion["artefacts"] = dict(printed_first)
    return [
        Page(path, f"{path.stem}/index.html", title(notebooks[path]["cells"]), companion)
        for path, companion in companions.items()
        if companion
    ]


def read(path: Path) -> dict[str, Any]:
    """A notebook as it is on disk. Raises UserError for what is not a notebook."""
    try:
        notebook = json.loads(path.read_text("utf-8"))
        return {**notebook, "cells": notebook["cells"], "metadata": notebook["metadata"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        remedy = "open and save it in JupyterLab, or take it from git again"
        raise UserError(f"{path} is not a readable notebook ({type(error).__name__}); {remedy}") from error


def groundwork(run: dict[str, Any]) -> list[Page]:
    """A page for every dataset, group of networks, constructed dataset and transfer of `run`."""
    return [
        Page(
            paths.NOTEBOOKS / f"{notebook}.ipynb",
            f"groundwork/{stage}/{key}.html",
            f"{name}: {key}",
            stage=stage,
            key=key,
        )
        for stage, (notebook, entries, name) in GROUNDWORK.items()
        for key in run[entries]
    ]


def title(cells: list[dict[str, Any]]) -> str:
    """The first heading of a notebook, without its markup."""
    lines = ("".join(cell["source"]).splitlines() for cell in cells if cell["cell_type"] == "markdown")
    heading = next((line[2:] for cell in lines for line in cell if line.startswith("# ")), "Untitled")
    return heading.translate({ord(mark): None for mark in "*`$"}).strip()


def called(artefact: str) -> str:
    """What readers call an artefact.

    >>> called("kim-appendix-d"), called("xu-hsic"), called("cross-1"), called("ilyas-figure-2a")
    ('Appendix D', 'HSIC', 'Cross 1', 'Figure 2a')
    """
    words = artefact.split("-")
    words = words[1:] if len(words) > 1 and not words[1].isdigit() else words
    return " ".join(word.upper() if word in ACRONYMS else word[:1].upper() + word[1:] for word in words)


def frame(body: str, target: Path, *, run: dict[str, Any] | None = None, page: Page | None = None, **more: Any) -> str:
    """A whole HTML page to be written to `target`: navigation around `page`, banner of the scale, `body`, footer.

    `more`: `title`, `toc` (anchors and headings), `provenance` (the footer)."""
    if run:
        more["root"] = Path(os.path.relpath(paths.REPORTS / run["scale"], target.parent)).as_posix()
        more["scale"] = run["scale"]
        more["banner"] = {"quick": QUICK, "paper": ""}.get(run["scale"], run["title"])
    if run and page:
        around = [None, *sections(), *groundwork(run), LIBRARY, None]
        place = around.index(page)
        more |= {"page": page, "previous": around[place - 1], "next": around[place + 1]}
    style = Markup((TEMPLATE / "style.css").read_text("utf-8"))
    if page and page.companion:
        more["reference"] = PAPERS.get(page.companion["paper"])
    return TEMPLATES.get_template("frame.html.j2").render(body=Markup(body), style=style, **more)
