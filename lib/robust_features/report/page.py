"""A notebook as a page that needs no network: equations as MathML, code folded, images inside."""

import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from nbconvert.exporters import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode
from traitlets.config import Config

from robust_features.report.contents import TEMPLATE, Page, frame, title
from robust_features.report.files import write
from robust_features.settings import UserError

SHOWN = ["text/html", "text/markdown", "image/svg+xml", "image/png", "image/jpeg", "text/latex", "text/plain"]
MISSING = {r"{aligned}": "{align*}", r"\arg\max": r"\operatorname{arg}\max", r"\arg\min": r"\operatorname{arg}\min"}
MISSING |= {r"\mathbb{1}": "𝟙", r"\mathbb 1": "𝟙"}  # what latex2mathml does not know, written as it does


def render(notebook: NotebookNode, target: Path, *, run: dict[str, Any], page: Page | None = None) -> None:
    """Write `notebook` as the HTML page `target`. `page` is its place in the report: None leaves out the navigation."""
    exporter = HTMLExporter(
        template_name=TEMPLATE.name,
        template_file="cells.html.j2",
        extra_template_basedirs=[str(TEMPLATE.parent)],
        filters={"markdown2html": markdown},
        config=Config({"NbConvertBase": {"display_data_priority": SHOWN}}),
    )
    body, _ = exporter.from_notebook_node(notebook)
    body = body.replace("<pre>", '<pre tabindex="0">')  # what may scroll can be reached by keys
    headings = re.findall(r'<h2 id="([^"]+)">(.*?) <a ', body)
    toc = [(anchor, re.sub("<[^>]+>", "", heading)) for anchor, heading in headings]
    footer = notebook.metadata.get("provenance")
    write(target, frame(body, target, run=run, page=page, title=title(notebook.cells), toc=toc, provenance=footer))


def markdown(source: str) -> str:
    """Markdown as HTML. Raises UserError for an equation that cannot be shown."""
    return MarkdownWithMath(Renderer(escape=False)).render(source)


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


class Renderer(IPythonRenderer):
    """nbconvert's Markdown, with equations as MathML and anchors of letters and hyphens."""

    def heading(self, text: str, level: int, **attrs: Any) -> str:
        anchor = re.sub(r"\W+", "-", re.sub("<[^>]+>", "", text).lower()).strip("-")
        return f'<h{level} id="{anchor}">{text} <a class="anchor" href="#{anchor}" aria-label="link">#</a></h{level}>\n'

    def block_math(self, body: str) -> str:
        return mathml(body, display=True)

    def inline_math(self, body: str) -> str:
        return mathml(body, display=False)

    def latex_environment(self, name: str, body: str) -> str:
        return mathml(rf"\begin{{{name}}}{body}\end{{{name}}}", display=True)
