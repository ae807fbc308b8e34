"""Writing a report's files, and showing them in a notebook."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from robust_features.files import atomic

if TYPE_CHECKING:
    from pandas import DataFrame, Series


HEAVY = 400_000  # bytes of SVG above which a page shows the PNG


WORDS = {  # of verdicts: the mark, and what is said of one claim and of several
    "holds": ("✓", "holds", "hold"),
    "holds, for another reason": ("✓", "holds for another reason", "hold for another reason"),
    "mostly holds": ("✓", "mostly holds", "mostly hold"),
    "mixed": ("◐", "is mixed", "are mixed"),
    "does not hold": ("✗", "does not hold", "do not hold"),
    "no effect": ("=", "shows no effect", "show no effect"),
    "open": ("≈", "is open", "are open"),
    "no such row": ("?", "asks for rows that do not exist", "ask for rows that do not exist"),
    "not run": ("–", "was not run at this scale", "were not run at this scale"),
}


def picture(folder: Path, artefact: str) -> str:
    """A figure's path from `folder`: the SVG, which follows the reader's theme, unless heavy; empty without one."""
    found = {end: next(folder.rglob(f"{artefact}.{end}"), None) for end in ("svg", "png")}
    drawn = found["svg"] if found["svg"] and found["svg"].stat().st_size < HEAVY else found["png"]
    return drawn.relative_to(folder).as_posix() if drawn else ""


def anchors(page: Path) -> set[str]:
    """What links to a page may end in: a scale may lack an artefact, such as one of a dataset it has no networks on."""
    return {*re.findall(r' id="([^"]+)"', page.read_text("utf-8"))} if page.exists() else set()


def chip(word: str, count: int = 0) -> Markup:
    """A verdict as HTML, the same on every page; with a `count`, for that many."""
    kind = word.replace(",", "").replace(" ", "-")
    said = f"{word}: {count}" if count else word
    return Markup(f'<span class="chip {kind}"><b aria-hidden="true">{WORDS[word][0]}</b> {said}</span>')


@dataclass(frozen=True)
class Shown:
    """A table or figure: HTML that a notebook displays, and the `rows` of its CSV."""

    html: str
    rows: "DataFrame | None" = None

    def _repr_html_(self) -> str:
        return self.html


@dataclass(frozen=True)
class Conditions:
    """What results were measured with, in sentences, and the numbers of seeds of the networks; see `conditions`."""

    text: str
    seeds: tuple[int, ...]

    @property
    def over(self) -> str:
        """What a 95 % interval is over."""
        several = [count for count in self.seeds if count > 1]
        if not several:
            return "over test images of one training (another seed may change a value by more)"
        said = f"over {' or '.join(map(str, several))} seeds"
        mixed = len(several) < len(self.seeds)
        return f"{said} where n says so, otherwise over test images of one training" if mixed else said

    def seeds_of(self, n: "Series") -> "Series":
        """The seeds behind each row, by its n, which is their number if an interval is over seeds."""
        return n.where(n.isin([count for count in self.seeds if count > 1]), 1).astype("Int64")


def write(path: Path, content: "str | bytes | DataFrame") -> None:
    """Write `content` whole or not at all, with the same bytes on every system."""
    if not isinstance(content, str | bytes):
        content = content.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    with atomic(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
