"""The library's public interface as a page: its docstrings, read from the source without importing it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from companion import paths
from companion.report.contents import LIBRARY, TEMPLATES, frame
from companion.report.shown import write

SOURCE = paths.LIBRARY / "robust_features"


def render(run: dict[str, Any]) -> Path:
    """Write reports/<scale>/library.html: every module with its public classes and functions."""
    target = paths.REPORTS / run["scale"] / LIBRARY.file
    trees = {module(path): ast.parse(path.read_text("utf-8")) for path in sorted(SOURCE.rglob("*.py"))}
    documented = {name: tree for name, tree in trees.items() if ast.get_docstring(tree)}
    modules = {name: (ast.get_docstring(tree), [*public(tree)]) for name, tree in documented.items()}
    options = {"signature": signature, "docstring": docstring, "public": public, "get": ast.get_docstring}
    body = TEMPLATES.get_template("library.html.j2").render(title=LIBRARY.title, modules=modules, **options)
    toc = [(name, name.removeprefix("robust_features.")) for name in modules]
    write(target, frame(body, target, run=run, page=LIBRARY, title=LIBRARY.title, toc=toc))
    return target


def module(path: Path) -> str:
    """The name under which a file is imported."""
    return ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")


def public(tree: ast.Module | ast.ClassDef) -> Iterator[ast.ClassDef | ast.FunctionDef]:
    """Its classes and functions that have a docstring and no underscore, and `__call__`."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            if not node.name.startswith("_") or node.name == "__call__":
                yield node


def signature(node: ast.ClassDef | ast.FunctionDef) -> str:
    """A function's parameters, or those of its constructor, or a class's fields with their defaults."""
    if isinstance(node, ast.ClassDef):
        fields = ", ".join(ast.unparse(field) for field in node.body if isinstance(field, ast.AnnAssign))
        made = [part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__"]
        return f"{node.name}({_parameters(made[0]) if made else fields})"
    result = f" → {ast.unparse(node.returns)}" if node.returns else ""
    attribute = "property" in map(ast.unparse, node.decorator_list)
    return node.name + ("" if attribute else f"({_parameters(node)})") + result


def docstring(text: str) -> Markup:
    """Paragraphs, `code` and examples as HTML."""
    blocks = ((">>>" in block, escape(block.strip())) for block in text.split("\n\n"))
    return Markup("\n".join(f'<pre tabindex="0">{b}</pre>' if code else f"<p>{_marked(b)}</p>" for code, b in blocks))


def _marked(text: Markup) -> str:
    return re.sub(r"\*(\w+)\*", r"<em>\1</em>", re.sub("`([^`]+)`", r"<code>\1</code>", str(text)))


def _parameters(node: ast.FunctionDef) -> str:
    return ast.unparse(node.args).removeprefix("self").removeprefix(", ")
