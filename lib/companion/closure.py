"""What a notebook's results depend on in this repository: its code, and every module that it imports, directly or not."""

import ast
import hashlib
import io
import json
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from companion import paths
from robust_features.files import atomic

PACKAGES = ("robust_features", "companion")
REPORT = ("companion.pipeline", "companion.report.page", "companion.report.index")  # what renders pages


def write(folder: Path) -> Path:
    """Write <notebook>.json for every notebook, and report.json: checksums by module, which stages depend on.

    Prose, comments and docstrings do not count: changing them makes nothing stale. For groundwork, neither does the code that
    draws its page: a figure's look does not retrain networks.
    """
    files = sorted(
        path
        for path in (paths.LIBRARY / "companion").rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    )
    shown = {path.relative_to(paths.LIBRARY).as_posix(): _checksum(path.read_text("utf-8")) for path in files}
    with atomic(folder) as partial:
        partial.mkdir()
        for path in sorted(paths.NOTEBOOKS.glob("*.ipynb")):
            code = notebook_code(path)
            modules = checksums(code, without="companion.report" if path.stem.startswith("0") else "")
            _dump(partial / f"{path.stem}.json", {path.name: _checksum(code)} | modules)
        _dump(partial / "report.json", shown | checksums("\n".join(f"import {name}" for name in REPORT)))
    return folder


def checksums(source: str, *, without: str = "") -> dict[str, str]:
    """Checksums of our modules that `source` imports, directly or not, except through the package `without`."""
    modules = closure(source, without=without)
    return {name: _checksum(bare(path.read_text("utf-8"))) for name, path in sorted(modules.items())}


def closure(source: str, *, without: str = "") -> dict[str, Path]:
    """Modules of ours that `source` imports, directly or not, by name; not the package `without`, nor what it alone imports."""
    found: dict[str, Path] = {}
    waiting = [*imported(source)]
    while waiting:
        name, path = waiting.pop()
        if name not in found and not (without and f"{name}.".startswith(f"{without}.")):
            found[name] = path
            waiting += imported(path.read_text("utf-8"))
    return found


@cache  # a module is read for every notebook
def imported(source: str) -> tuple[tuple[str, Path], ...]:
    """Modules of ours that `source` names in its import statements, wherever these stand."""
    return tuple(_imported(source))


def _imported(source: str) -> Iterator[tuple[str, Path]]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            path = paths.LIBRARY.joinpath(*name.split("."))
            if name.split(".")[0] in PACKAGES:
                yield from ((name, file) for file in (path.with_suffix(".py"), path / "__init__.py") if file.exists())


def notebook_code(path: Path) -> str:
    """The code cells of a notebook, each after a line with its tags."""
    cells = [cell for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
    parts = (
        f"# %% {' '.join(cell['metadata'].get('tags', []))}".rstrip() + f"\n{''.join(cell['source'])}\n"
        for cell in cells
    )
    return "\n".join(parts)


@cache
def bare(source: str) -> str:
    """`source` without docstrings, comments and empty lines.

    >>> bare("def f():\\n    '''One.'''\\n    return 1  # two\\n")
    'def f():\\n    return 1'
    """
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and ast.get_docstring(node, clean=False) is not None
        ):
            text = node.body[0]
            lines[text.lineno - 1 : text.end_lineno] = [""] * (text.end_lineno - text.lineno + 1)
    return "\n".join(line.rstrip() for line in lines if line.strip())


def _dump(path: Path, content: dict[str, str]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", "utf-8")


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
