"""A notebook as a page that needs no network: equations as MathML, code folded, images inside."""

import base64
import mimetypes
import os
import re
from collections.abc import Mapping
from functools import partial
from html import escape
from itertools import chain, count
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from latex2mathml.converter import convert
from nbconvert.exporters import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode
from traitlets.config import Config

from companion import paths
from companion.report.contents import TEMPLATE, TEMPLATES, Page, frame, title
from companion.report.landing import confidence, sentence
from companion.report.scales import Scale, scales
from companion.report.shown import chip, picture, write
from robust_features.settings import UserError

SHOWN = ["text/html", "text/markdown", "image/svg+xml", "image/png", "image/jpeg", "text/latex", "text/plain"]
MISSING = {r"{aligned}": "{align*}", r"\arg\max": r"\operatorname{arg}\max", r"\arg\min": r"\operatorname{arg}\min"}
MISSING |= {r"\mathbb{1}": "𝟙", r"\mathbb 1": "𝟙"}  # what latex2mathml does not know, written as its own table is
HEADING = re.compile(r'((?P<open><h1[^>]*>).*?(?P<anchor> <a [^>]*class="anchor".*?</h1>))')
SWITCH = '\n<p class="switches"><label><input type="checkbox" id="show-code"> Show all code</label></p>'
ANCHOR = re.compile(r'(?<=<h\d )id="([^"]*)">(.*?) <a ([^>]*)href="#\1"([^>]*)>#</a>')


def render(notebook: NotebookNode, target: Path, *, run: dict[str, Any], page: Page | None = None) -> None:
    """Write `notebook` as the HTML page `target`. `page` is its place in the report: None leaves out the navigation."""
    exporter = HTMLExporter(
        template_name=TEMPLATE.name,
        template_file="cells.html.j2",
        extra_template_basedirs=[str(TEMPLATE.parent)],
        filters={"markdown2html": partial(markdown, folder=page.notebook.parent if page else None)},
        config=Config({"NbConvertBase": {"display_data_priority": SHOWN}}),
    )
    body, _ = exporter.from_notebook_node(notebook)
    body = _own_anchors(body.replace("<pre>", '<pre tabindex="0">'))  # what may scroll must be reachable by keys
    body = _folded(body)
    if page and page.companion:
        body, more = _topped(body, target, run, page)
    else:
        body, more = HEADING.sub(rf"\1{SWITCH}", body, count=1), {}
    headings = re.findall(r'<h2 id="([^"]+)">(.*?) <a [^>]*class="anchor"', body)
    toc = [(anchor, re.sub("<[^>]+>", "", heading)) for anchor, heading in headings]
    footer = notebook.metadata.get("provenance")
    more |= dict(run=run, page=page, title=title(notebook.cells), toc=toc, provenance=footer)
    write(target, frame(body, target, **more))


def _topped(body: str, target: Path, run: dict[str, Any], page: Page) -> tuple[str, dict[str, Any]]:
    """The page with its top: the finding at this scale as heading, or the notebook's question while it is open."""
    from companion.claims import entries, judge  # imports pandas
    from companion.study import brought

    scale, about = Scale(run["scale"], target.parent, run), page.companion
    verdict = judge(entries()[about["key"]], target.parent, without=brought(run)) if "key" in about else None
    artefact, finding = about.get("figure", ""), ""
    side = {"does not hold": "against", "no effect": "none"}.get(verdict.word, "for") if verdict else ""
    if verdict and 2 * verdict.count(side) > len(verdict.comparisons):
        finding = verdict.finding.partition(";")[0]  # if it is that of most comparisons; else the question stays
    top = TEMPLATES.get_template("top.html.j2").render(
        finding=finding,
        question=page.title,
        verdict=verdict,
        doubt=about.get("doubt"),
        found=sentence(verdict) if verdict else "",
        confidence=confidence([verdict], scale, about.get("images", "")) if verdict else "",
        figure=picture(target.parent, artefact) if artefact else "",
        artefact=artefact,
        shows=about["artefacts"].get(artefact, ""),
        chip=chip,
    )
    heading = rf"\g<open>{escape(finding)}\g<anchor>" if finding else r"\1"
    elsewhere = [(other.name, other.page(page.notebook.stem)) for other in scales() if other.name != run["scale"]]
    back = Path(os.path.relpath(paths.REPORTS, target.parent)).as_posix()
    more = {"elsewhere": [(name, f"{back}/{address}") for name, address in elsewhere if address]}
    return HEADING.sub(lambda found: found.expand(heading) + top, body, count=1), more


def _folded(body: str) -> str:
    """The cells between the first prose and the next, in one fold: the set-up, which few readers want to see."""
    first, found, rest = body.partition("</div>\n<section")
    setup, prose, after = f"{found.removeprefix('</div>')}{rest}".partition('<div class="prose">')
    if not found or not prose or first.count('<div class="prose">') != 1:
        return body
    return f'{first}</div>\n<details class="setup"><summary>Set-up</summary>{setup}</details>\n{prose}{after}'


def markdown(
    source: str, attachments: Mapping[str, Mapping[str, str]] | None = None, *, folder: Path | None = None
) -> str:
    """Markdown as HTML; images that were pasted into it, or are in `folder`, go into the page.

    Raises UserError for an equation that cannot be shown, and for a pasted image that is missing."""
    return MarkdownWithMath(Renderer(attachments or {}, folder)).render(source)


def mathml(latex: str, *, display: bool) -> str:
    """An equation as MathML. Raises UserError for what the converter would pass through as text."""
    for unknown, known in MISSING.items():
        latex = latex.replace(unknown, known)
    if display:
        latex = re.sub(r"\\(max|min)_", r"\\\1\\limits_", latex)
    math = convert(latex, display="block" if display else "inline")
    if odd := re.search(r'\\\w*|&(?!#|\w+;)|mathvariant="(?!normal)[^"]*"', math):
        raise UserError(f"equation {latex.strip()!r}: neither latex2mathml nor browsers know {odd[0]!r}; reword it")
    return f'<span class="equation" tabindex="0">{math}</span>' if display else math


def _own_anchors(body: str) -> str:
    """Give each heading its own anchor: one that an artefact or earlier heading has, or an empty one, gets a number."""
    taken = {"main", "search", *re.findall(r'\bid="([^"]+)"', ANCHOR.sub("", body))}

    def own(found: re.Match[str]) -> str:
        wanted = found[1] or "section"
        anchor = next(name for name in chain([wanted], (f"{wanted}-{n}" for n in count(2))) if name not in taken)
        taken.add(anchor)
        return f'id="{anchor}">{found[2]} <a {found[3]}href="#{anchor}"{found[4]}>#</a>'

    return ANCHOR.sub(own, body)


class Renderer(IPythonRenderer):
    """nbconvert's Markdown, with equations as MathML, anchors of letters and hyphens, and images inside."""

    def __init__(self, attachments: Mapping[str, Mapping[str, str]], folder: Path | None) -> None:
        super().__init__(escape=False)
        self.pasted, self.folder = attachments, folder

    def heading(self, text: str, level: int, **attrs: Any) -> str:
        anchor = re.sub(r"\W+", "-", re.sub("<[^>]+>", "", text).lower()).strip("-")
        return f'<h{level} id="{anchor}">{text} <a class="anchor" href="#{anchor}" aria-label="link">#</a></h{level}>\n'

    def image(self, text: str, url: str, title: str | None = None) -> str:
        return super().image(text, self._inside(url), title)

    def block_html(self, html: str) -> str:
        return super().block_html(self._images_inside(html))

    def inline_html(self, html: str) -> str:
        return super().inline_html(self._images_inside(html))

    def block_math(self, body: str) -> str:
        return mathml(body, display=True)

    def inline_math(self, body: str) -> str:
        return mathml(body, display=False)

    def latex_environment(self, name: str, body: str) -> str:
        return mathml(rf"\begin{{{name}}}{body}\end{{{name}}}", display=True)

    def _images_inside(self, html: str) -> str:
        return re.sub(r'(<img\b[^>]*?\bsrc=")([^"]+)', lambda found: found[1] + self._inside(found[2]), html)

    def _inside(self, url: str) -> str:
        """The image itself, if it was pasted or is a file; else its address unchanged."""
        name = unquote(url.removeprefix("attachment:"))
        if url.startswith("attachment:"):
            if name not in self.pasted:
                raise UserError(f"a notebook shows the pasted image {name!r}, which it does not hold: paste it again")
            kind, data = next(iter(self.pasted[name].items()))
            return f"data:{kind};base64,{''.join(data.split())}"
        kind = mimetypes.guess_type(name)[0] or ""
        if self.folder and kind.startswith("image/") and (self.folder / name).is_file():
            return f"data:{kind};base64,{base64.b64encode((self.folder / name).read_bytes()).decode()}"
        return url
