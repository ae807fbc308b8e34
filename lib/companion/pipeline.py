"""Running notebooks: `python -m companion pipeline run | code | pages | index | publish`. Imports no torch."""

import argparse
import ast
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from companion import closure, paths
from companion.paths import PAGE
from companion.report.contents import GROUNDWORK, Page, groundwork, load_run, read, sections
from companion.report.index import index as write_contents
from companion.report.publish import locked
from companion.report.publish import publish as copy_with_manifest
from companion.report.shown import write
from companion.report.surroundings import apart, channel
from robust_features.settings import UserError, nearest

PACKAGES = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "pandas", "matplotlib", "papermill", "dvc")
COMMIT = "COMMIT"  # in a bundle, the file that names its commit
PARAMETERS, INJECTED, MARKER = "parameters", "injected-parameters", "papermill-error-cell-tag"  # papermill's cell tags


def run(path: Path, *, key: str = "") -> Path:
    """Run a notebook in this environment's kernel: groundwork for an entry of run.yaml, a section with its parameters.

    A section's page is written to reports/<scale>/<section>/; groundwork is kept executed under data/runs/, for
    `pages`. Raises UserError before any work for a notebook or key that is not there, and if a cell fails or the kernel
    dies; the notebook, as far as it came, is then in data/failed/."""
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]  # optional to jsonschema, 2 s to import
    import nbformat
    import papermill
    from nbclient.exceptions import DeadKernelError
    from traitlets.config import Config

    settings, start, clock = load_run(), datetime.now(UTC), time.monotonic()
    path = _found(path)
    _check_key(path, key, settings)
    name = f"{path.stem}-{key.replace('/', '-')}" if key else path.stem
    stage = next((stage for stage, (notebook, *_) in GROUNDWORK.items() if notebook == path.stem), "")
    data, report = paths.DATA, paths.REPORTS / settings["scale"]
    target = data / "runs" / stage / f"{key}.ipynb" if key else report / path.stem / "index.html"
    partial = data / "failed" / f"{name}.ipynb"
    if data.is_symlink() and not data.exists():
        raise UserError(f"{data} leads to {data.readlink()}, which is not there: mount that disk, or remove the link")
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        with apart(data / "matplotlib") as folder:
            os.environ[PAGE] = str(target.parent)  # what the notebook writes is no reader's trial
            _check_kernel()
            notebook = papermill.execute_notebook(
                _literal(path),
                _literal(partial),
                {"key": key} if key else settings["sections"].get(path.stem, {}),
                kernel_name="python3",
                language="python",
                cwd=path.parent,
                progress_bar=False,
                stdout_file=sys.stdout,
                stderr_file=sys.stderr,
                coalesce_streams=True,
                record_timing=False,
                config=Config({"KernelManager": channel(folder)}),
            )
    except (papermill.PapermillExecutionError, DeadKernelError) as error:
        notebook = normalise(nbformat.read(partial, as_version=4))
        write(partial, nbformat.writes(notebook))
        _render(notebook, partial.with_suffix(".html"), settings)
        raise UserError(_failure(name, notebook, partial.with_suffix(".html"))) from error
    normalise(notebook).metadata["provenance"] = provenance(settings, start, time.monotonic() - clock)
    if key:
        write(target, nbformat.writes(notebook))
    else:
        page = {page.notebook.resolve(): page for page in sections()}.get(path.resolve())
        _render(notebook, target, settings, page)
    for leftover in (partial, partial.with_suffix(".html")):
        leftover.unlink(missing_ok=True)
    return target


def code(folder: Path) -> Path:
    """Write checksums of the code behind every notebook to `folder`: what stages depend on."""
    run = load_run()
    return closure.write(folder, {notebook: run[entries] for notebook, entries, _ in GROUNDWORK.values()})


def pages() -> Path:
    """Render the groundwork: outputs of the executed notebooks in data/runs/, prose of the current notebooks."""
    settings = load_run()
    merged = [(page, merge(page)) for page in groundwork(settings)]
    for stranger in sorted({*(paths.DATA / "runs").rglob("*.ipynb")} - {page.executed for page, _ in merged}):
        print(f"ignored {stranger}: not in run.yaml")
    for page, notebook in merged:
        _render(notebook, paths.REPORTS / settings["scale"] / page.file, settings, page)
    return paths.REPORTS / settings["scale"] / "groundwork"


def publish() -> Path:
    """Copy this scale's report to reports/published/, with a manifest and what dvc.lock says of it, to be committed."""
    settings = load_run()
    if (paths.REPORTS / settings["scale"]).exists():
        index()  # contents of what is there, even if papers are published one by one
    made = provenance(settings, datetime.now(UTC), 0)
    return copy_with_manifest(
        settings, made, lock=locked(paths.ROOT), more=_networks if settings.get("fetch") else None
    )


def _networks(target: Path) -> None:
    """Write the networks that `make fetch` brings to a folder of published pages."""
    from companion import fetched, params  # import torch, which pages do not need

    run = params.load()
    fetched.keep(target / fetched.NETWORKS, run.networks, run.fetch)


def index() -> Path:
    """Write the contents of this scale, reports/index.html, and the numbers that experiments are compared by."""
    from companion import metrics  # imports pandas, which running a notebook does not need

    target = write_contents()
    metrics.write(load_run())
    return target


def merge(page: Page) -> Any:
    """The current notebook of a groundwork page, with the outputs and parameters of the executed one.

    Raises UserError naming the stage to run if the latter is missing, is damaged or was made by other code."""
    import nbformat

    remedy = f"run `dvc repro {page.stage}@{page.key}`"
    if not page.executed.exists():
        raise UserError(f"{page.executed} is missing: {remedy}")
    try:
        executed = nbformat.read(page.executed, as_version=4)
        origin = executed.metadata["provenance"]
    except Exception as error:  # what a truncated file raises depends on where it ends
        raise UserError(f"{page.executed} is damaged ({type(error).__name__}): delete it and {remedy}") from error
    notebook = nbformat.read(page.notebook, as_version=4)
    old, new = ([cell for cell in each.cells if cell.cell_type == "code"] for each in (executed, notebook))
    first, second = ([PARAMETERS in _tags(cell) or cell.source for cell in cells] for cells in (old, new))
    if first != second:
        raise UserError(f"{page.executed} was made by other code than {page.notebook.name} has now: {remedy}")
    for before, now in zip(old, new, strict=True):
        now.update(source=before.source, outputs=before.outputs)
    notebook.metadata["provenance"] = origin
    return notebook


def normalise(notebook: Any) -> Any:
    """The executed notebook, in place, without what differs between two runs: times, counts, random ids, addresses."""
    injected = [cell.source for cell in notebook.cells if INJECTED in _tags(cell)]
    notebook.cells = [cell for cell in notebook.cells if not {INJECTED, MARKER} & {*_tags(cell)}]
    for name in {*notebook.metadata} - {"companion"}:
        del notebook.metadata[name]
    for number, cell in enumerate(notebook.cells, start=1):
        cell.update(id=f"cell-{number}", metadata={"tags": _tags(cell)})
        if injected and PARAMETERS in _tags(cell):
            cell.source = _given(cell.source, injected[0])
        for part in (cell, *cell.get("outputs", [])):
            if "execution_count" in part:
                part.execution_count = None
            if "text/html" in part.get("data", {}):
                part.data.pop("text/plain", None)
    return notebook


def provenance(settings: dict[str, Any], start: datetime, seconds: float) -> dict[str, Any]:
    """Where a result comes from, for the footer of its page."""
    cpuinfo = Path("/proc/cpuinfo")
    cpu = re.findall(r"model name\s*: (.*)", cpuinfo.read_text("utf-8", "replace") if cpuinfo.exists() else "")
    gpus = _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").replace("\n", ", ")
    found = {name: package.version for name in PACKAGES for package in [*distributions(name=name)][:1]}
    return {
        "commit": commit(),
        "command": f"python -m companion pipeline {shlex.join(map(_from_root, sys.argv[1:]))}",
        "scale": settings["scale"],
        "seed": settings["seed"],
        "started": f"{start:%Y-%m-%d %H:%M} UTC",
        "run time": f"{seconds:.0f} s",
        "hardware": f"{(cpu or [platform.processor()])[0]}, {os.cpu_count()} cores; {gpus or 'no GPU'}",
        "versions": {"python": platform.python_version()} | found,
    }


def commit() -> str:
    """The commit of this checkout, and whether it was changed; without git, as it was when a bundle was packed."""
    noted = paths.ROOT / COMMIT
    if noted.exists():
        return noted.read_text("utf-8")
    return (_git("rev-parse", "HEAD") or "none") + (" + uncommitted changes" if _changed() else "")


def _changed() -> bool:
    """Whether files differ from the commit, except the scale asked for and what a run writes: run.yaml, dvc.lock."""
    if _git("status", "--porcelain", "--", ".", ":!dvc.lock", ":!run.yaml", ":!params.yaml"):
        return True
    lines = _git("diff", "--unified=0", "HEAD", "--", "params.yaml").splitlines()
    return any(re.match(r"[+-](?!scale:|\+\+ |-- )", line) for line in lines)


def _render(notebook: Any, target: Path, settings: dict[str, Any], page: Page | None = None) -> None:
    from companion.report.page import render  # imports nbconvert, 2 s

    with apart(paths.DATA / "matplotlib"):
        render(notebook, target, run=settings, page=page)


def _failure(name: str, notebook: Any, partial: Path) -> str:
    """One line on what went wrong; a UserError in a cell says it itself."""
    outputs = [(number, output) for number, cell in enumerate(notebook.cells, 1) for output in cell.get("outputs", [])]
    errors = [(number, output) for number, output in outputs if output.output_type == "error"]
    if not errors:
        return f"{name}: the kernel died, most often for want of memory; as far as it came: {partial}"
    number, error = errors[-1]
    said = next((line.strip() for line in error.evalue.splitlines() if line.strip()), "")
    where = f"{name}, cell {number}"
    if error.ename == "UserError":
        return f"{error.evalue}\n({where}; see {partial})"
    return f"{where}: {error.ename}: {said}; see {partial}"


def _given(source: str, injected: str) -> str:
    """A `parameters` cell with the values that papermill injected; its comments, and parameters not given, stay."""
    values = {ast.unparse(node.targets[0]): node.value for node in ast.parse(injected).body}
    lines = source.splitlines()
    for node in reversed(ast.parse(source).body):
        if isinstance(node, ast.Assign) and (value := values.get(ast.unparse(node.targets[0]))):
            first, last = node.value.lineno - 1, node.value.end_lineno - 1
            before, after = lines[first][: node.value.col_offset], lines[last][node.value.end_col_offset :]
            lines[first : last + 1] = [f"{before}{ast.get_source_segment(injected, value)}{after}"]
    return "\n".join(lines)


def _tags(cell: Any) -> list[str]:
    return cell["metadata"].get("tags", [])


def _found(path: Path) -> Path:
    """A notebook named as seen from here or the project's folder, or by its name. Raises UserError if there is none."""
    for place in (path, paths.ROOT / path, paths.NOTEBOOKS / f"{path}.ipynb"):
        if place.is_file() and read(place):
            return Path(os.path.abspath(place))
    near = nearest(path.stem, [each.stem for each in paths.NOTEBOOKS.glob("*.ipynb")])
    raise UserError(f"there is no notebook {path}{near}; they are in {paths.NOTEBOOKS}")


def _check_key(path: Path, key: str, settings: dict[str, Any]) -> None:
    """Raise UserError for a key that run.yaml has no entry for, under what this notebook runs over."""
    kinds = [entries for notebook, entries, _ in GROUNDWORK.values() if notebook == path.stem]
    known = [name for kind in kinds for name in settings[kind]]
    if key and not kinds:
        raise UserError(f"{path.name} runs once, not for an entry of params.yaml: leave out --key {key}")
    if key and key not in known:
        raise UserError(f"run.yaml, {kinds[0]}: no entry '{key}'{nearest(key, known)}; there are {', '.join(known)}")
    if kinds and not key:
        raise UserError(f"{path.name} runs for an entry of run.yaml: say which, --key {known[0]}")


def _literal(path: Path) -> str:
    """A path for papermill, which reads braces in it as a parameter."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _from_root(word: str) -> str:
    """A word of the command line; notebooks relative to the project's folder, wherever it was given."""
    path = Path(word).resolve()
    return (
        path.relative_to(paths.ROOT).as_posix() if word.endswith(".ipynb") and path.is_relative_to(paths.ROOT) else word
    )


def _git(*arguments: str) -> str:
    """What git says about this checkout, whoever owns it: not about one around it, nor one that a hook runs for."""
    return _output("git", f"--git-dir={paths.ROOT / '.git'}", f"--work-tree={paths.ROOT}", *arguments)


def _output(*command: str) -> str:
    """What a command prints; empty if it is not installed or fails."""
    if not shutil.which(command[0]):
        return ""
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(command, cwd=paths.ROOT, env=own, capture_output=True, text=True, errors="replace")
    return "" if done.returncode else done.stdout.strip()


def _check_kernel() -> None:
    """Raise UserError if kernel python3 belongs to another environment: the machine's kernel may hide this one's."""
    from jupyter_client.kernelspec import KernelSpecManager

    spec = KernelSpecManager().get_kernel_spec("python3")
    python = Path(spec.argv[0])  # a bare "python" is started as sys.executable
    if python.is_absolute() and python.parent != Path(sys.executable).parent:
        raise UserError(f"the Jupyter kernel python3 is {python}, not {sys.executable}; delete {spec.resource_dir}")


def _stop(number: int, frame: object) -> None:
    print(f"stopped by {signal.Signals(number).name}: shutting the kernel down", file=sys.stderr)
    raise SystemExit(128 + number)  # unlike a signal's default this unwinds, which does that


def _follow(parent: int) -> None:
    """Stop when the process that started this one is gone: a killed `dvc repro` does not pass the signal on."""
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m companion pipeline")
    commands = parser.add_subparsers(required=True)
    for function in (run, code, pages, index, publish):
        command = commands.add_parser(function.__name__, description=function.__doc__)
        command.set_defaults(function=function)
        if function is code:
            command.add_argument("folder", type=Path, metavar="FOLDER")
        if function is run:
            command.add_argument("path", type=Path, metavar="NOTEBOOK")
            command.add_argument("--key", default="", help="the entry of run.yaml that groundwork is run for")
    options = vars(parser.parse_args(arguments))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    threading.Thread(target=_follow, args=[os.getppid()], daemon=True).start()
    print(options.pop("function")(**options))
