"""The reports that there are, by scale, run here or published: where each keeps its rows, pages and verdicts."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from html import unescape
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from companion import paths
from companion.report.contents import load_run
from companion.resolve import resolve, written
from robust_features.settings import UserError

if TYPE_CHECKING:
    from pandas import DataFrame

    from companion.claims import Verdict

ORDER = ("paper", "gpu", "photographs")  # larger scales first, which say more; digits, and a reader's scales, come last
TOYS = ("digits",)  # kinds of datasets that say nothing about photographs
FOOTER = re.compile(r"<dt>([^<]+)</dt><dd>([^<]*)</dd>")


@dataclass(frozen=True)
class Scale:
    """The report of one scale in `folder`, made with the settings `run`."""

    name: str
    folder: Path
    run: dict[str, Any]
    published: bool = False

    @property
    def place(self) -> str:
        """Its folder as links in reports/index.html write it."""
        return self.folder.relative_to(paths.REPORTS).as_posix()

    @property
    def index(self) -> str:
        """The address of its contents; empty if single sections were published."""
        return f"{self.place}/index.html" if (self.folder / "index.html").exists() else ""

    @property
    def toy(self) -> bool:
        """Whether no photograph is among its images."""
        kinds = {data.get("kind") for data in self.run.get("datasets", {}).values()}
        return bool(kinds) and kinds <= {*TOYS}

    @property
    def images(self) -> str:
        """Its images, in two words."""
        return "handwritten digits" if self.toy else "photographs"

    def find(self, name: str) -> Path | None:
        """A file in some page's tables/ or figures/."""
        return next(self.folder.rglob(name), None)

    def rows(self, artefact: str) -> "DataFrame":
        """The measured rows of an artefact; none if it was not made."""
        from companion.claims import measured

        return measured(artefact, self.folder)

    def page(self, section: str) -> str:
        """The address of a section's page, as links in reports/index.html write it; empty if it was not made."""
        names = (f"{section}/index.html", f"{section}.html")  # the latter in what was published earlier
        return next((f"{self.place}/{quote(name)}" for name in names if (self.folder / name).exists()), "")

    def address(self, section: str, artefact: str) -> str:
        """The address of an artefact on its page, or of the page if it has no such anchor; empty without a page."""
        page = self.page(section)
        return f"{page}#{artefact}" if page and f'id="{artefact}"' in self._text(page) else page

    def _text(self, page: str) -> str:
        return (paths.REPORTS / page).read_text("utf-8")

    @cached_property
    def verdicts(self) -> dict[str, "Verdict"]:
        """The verdict on every claim; none on one that has asked for other columns since the report was published."""
        import pandas as pd

        from companion.claims import Verdict, entries, judge
        from companion.study import brought

        without, found = brought(self.run), {}
        for id, entry in entries().items():
            try:
                found[id] = judge(entry, self.folder, without=without)
            except (UserError, pd.errors.MergeError):
                if not self.published:
                    raise
                found[id] = Verdict(entry, missing="published with other columns")
        return found

    @cached_property
    def provenance(self) -> dict[str, str]:
        """Commit, date, hardware: for a published report from its manifest, else from the footer of its newest page."""
        manifest = self.folder / "manifest.json"
        if manifest.exists():
            return json.loads(manifest.read_text("utf-8"))["provenance"]
        pages = [page for page in self.folder.glob("*/index.html") if re.match(r"\d", page.parent.name)]
        texts = (page.read_text("utf-8").rpartition("<footer>")[2] for page in pages)
        footers = [{name: unescape(value) for name, value in FOOTER.findall(text)} for text in texts]
        return max(footers, key=lambda each: each.get("started", ""), default={})


def scales() -> list[Scale]:
    """Every scale that has a report, the most telling first; for one both run here and published, the former."""
    found = {scale.name: scale for scale in (*_found(published=True), *_found(published=False))}
    rank = {name: place for place, name in enumerate(ORDER)}
    return sorted(found.values(), key=lambda scale: (rank.get(scale.name, len(ORDER)), scale.name))


def _found(*, published: bool) -> Iterator[Scale]:
    place = paths.REPORTS / "published" if published else paths.REPORTS
    for folder in sorted({path.parent for name in ("index.html", "manifest.json") for path in place.glob(f"*/{name}")}):
        current = load_run()
        manifest = folder / "manifest.json"
        if manifest.exists():
            run = json.loads(manifest.read_text("utf-8"))["params"]
        else:
            run = current if current["scale"] == folder.name else _resolved(folder.name)
        yield Scale(folder.name, folder, _behind(run, folder), published)


def _behind(run: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Settings without networks and images of papers that have no page in the folder: scales are published by paper."""
    papers = {path.name.split("-")[1] for path in folder.glob("[0-9]*-*")}
    networks = {name: group for name, group in run.get("networks", {}).items() if name.partition("/")[0] in papers}
    if not networks:
        return run
    used = {member["dataset"] for group in networks.values() for member in group["members"].values()}
    made = {"/".join(name.split("/")[:2]) for name in used if "/" in name}
    used |= {run["constructed"][name]["dataset"] for name in made if name in run["constructed"]}
    return run | {
        "networks": networks,
        "datasets": {name: data for name, data in run["datasets"].items() if name in used},
    }


def _resolved(name: str) -> dict[str, Any]:
    """The settings, as they are written now, of a scale that is not in run.yaml; only its name if there are none."""
    try:
        return resolve(written(), name)
    except (UserError, AttributeError, KeyError, TypeError):  # the scale, or the file, no longer exists
        return {"scale": name, "title": name}
