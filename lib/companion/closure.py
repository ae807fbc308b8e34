"""What a notebook's results depend on in this repository: its code, and every module it imports, directly or not."""

import ast
import hashlib
import io
import json
import tokenize
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from companion import paths
from robust_features.files import atomic

PACKAGES = ("robust_features", "companion")
REPORT = ("companion.pipeline", "companion.report.page", "companion.report.index")  # what renders pages
ATTACKS = "robust_features.attacks"


def write(folder: Path, entries: Mapping[str, Mapping[str, Any]]) -> Path:
    """Write <notebook>.json, for groundwork <notebook>/<entry>.json, and report.json: checksums that stages depend on.

    `entries` has what each notebook of groundwork runs for, by name, as run.yaml has it. Prose, comments and docstrings
    do not count: changing them makes nothing stale. For groundwork, neither does the code that draws its page, nor an
    attack that its entry does not name: a figure's look, or a new attack, does not retrain networks.
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
            own = {path.name: _checksum(code)}
            if path.stem not in entries:
                _dump(partial / f"{path.stem}.json", own | checksums(code))
                continue
            for key, entry in entries[path.stem].items():
                named = checksums(code, without="companion.report", kinds={*_kinds(entry)})
                _dump(partial / path.stem / f"{key}.json", own | named)
        _dump(partial / "report.json", shown | checksums("\n".join(f"import {name}" for name in REPORT)))
    return folder


def checksums(source: str, *, without: str = "", kinds: Collection[str] | None = None) -> dict[str, str]:
    """Checksums of the modules of `closure`."""
    modules = closure(source, without=without, kinds=kinds)
    return {name: _checksum(bare(path.read_text("utf-8"))) for name, path in sorted(modules.items())}


def closure(source: str, *, without: str = "", kinds: Collection[str] | None = None) -> dict[str, Path]:
    """Our modules that `source` imports, directly or not, by name; not the package `without`, nor what only it imports.

    With `kinds`, attacks count one by one: those of these kinds, and what is imported by its name.
    """
    found: dict[str, Path] = {}
    waiting = [*imported(source), *(_attacks(kinds) if kinds is not None else ())]
    while waiting:
        name, path = waiting.pop()
        if kinds is not None and name == ATTACKS:
            continue
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
            handed = _handed(node.module)
            names += [handed[alias.name] for alias in node.names if alias.name in handed]
        else:
            continue
        for name in names:
            path = paths.LIBRARY.joinpath(*name.split("."))
            if name.split(".")[0] in PACKAGES:
                yield from ((name, file) for file in (path.with_suffix(".py"), path / "__init__.py") if file.exists())


@cache
def _handed(package: str) -> dict[str, str]:
    """The names that the package of attacks hands on, and the modules that they come from."""
    if package != ATTACKS:
        return {}
    tree = ast.parse(paths.LIBRARY.joinpath(*package.split("."), "__init__.py").read_text("utf-8"))
    return {
        alias.name: node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names
    }


def _attacks(kinds: Collection[str]) -> Iterator[tuple[str, Path]]:
    """The modules whose classes are attacks of these kinds."""
    for path in sorted(paths.LIBRARY.joinpath(*ATTACKS.split(".")).glob("*.py")):
        fields = (node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.AnnAssign))
        said = [node.value.value for node in fields if ast.unparse(node.target) == "kind"]
        if {*said} & {*kinds}:
            yield f"{ATTACKS}.{path.stem}", path


def _kinds(entry: Any) -> Iterator[str]:
    """Every `kind` in an entry of run.yaml, at any depth."""
    if isinstance(entry, Mapping):
        if isinstance(entry.get("kind"), str):
            yield entry["kind"]
        entry = [*entry.values()]
    if isinstance(entry, list):
        for value in entry:
            yield from _kinds(value)


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
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", "utf-8")


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
