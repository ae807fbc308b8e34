"""What the search on a scale's contents finds: pages, their headings, and artefacts by name and by what they show."""

import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from companion.report.contents import LIBRARY, Page, called, groundwork, sections
from companion.report.shown import anchors

HEADING = re.compile(r'<h[23] id="([^"]+)">(.*?)(?: <a [^>]*class="anchor"|</h)')


def entries(run: dict[str, Any], folder: Path) -> list[tuple[str, str, str, str]]:
    """(name, what it shows, where it is, address) for everything on the pages made in `folder`."""
    found = [*_sections(folder), *_page(LIBRARY, "", folder)]
    found += [(page.title, "", "Groundwork", page.address) for page in groundwork(run)]
    return [entry for entry in found if (folder / unquote(entry[-1].partition("#")[0])).exists()]


def _sections(folder: Path) -> Iterator[tuple[str, str, str, str]]:
    for page in sections():
        place = f"{page.companion['paper']}, {page.companion['section']}"
        yield from _page(page, place, folder)
        there = anchors(folder / page.file)
        for artefact, shows in page.companion["artefacts"].items():
            if artefact in there:
                yield called(artefact), shows, f"{place}, {artefact}", f"{page.address}#{artefact}"


def _page(page: Page, place: str, folder: Path) -> Iterator[tuple[str, str, str, str]]:
    yield page.title, page.companion.get("topics", ""), place, page.address
    html = (folder / page.file).read_text("utf-8") if (folder / page.file).exists() else ""
    for anchor, heading in HEADING.findall(html):
        yield unescape(re.sub("<[^>]+>", "", heading)), "", f"{place} {page.title}".strip(), f"{page.address}#{anchor}"
