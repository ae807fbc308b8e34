"""One paper for a machine that has neither network nor DVC nor git, and its results back.

    python -m companion bundle pack PAPER --scale gpu [--have FILE] [--to FOLDER]   a folder to copy there; run run.py
    python -m companion bundle take FOLDER                                          publish what run.py packed there

Packing changes nothing in this project: settings are resolved, and DVC is asked for the graph, in a separate folder.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import chdir
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ruamel.yaml import YAML

from companion import node, paths, pipeline
from companion.report.contents import load_run
from companion.report.publish import publish
from robust_features.settings import UserError

PART = 60_000_000  # bytes at most
HAVE = paths.ROOT / "benchmarks" / "node.txt"
OWN = ("data", "dvc.lock", "logs", "params.yaml", "reports", "run.yaml")  # of this project, not of the separate one
FILES = {  # what kinds of datasets read, an archive first
    "digits": [],
    "cifar10": [("cifar-10-python.tar.gz", "cifar-10-batches-py")],
    "cifar100": [("cifar-100-python.tar.gz", "cifar-100-python")],
    "svhn": [("train_32x32.mat",), ("test_32x32.mat",)],
    "svhn-first-10000": [("svhn-first-10000.npz", "test_32x32.mat")],
    "tiny-imagenet": [("tiny-imagenet-200.zip", "tiny-imagenet-200")],
    "imagenet9-tiny-imagenet": [("tiny-imagenet-200.zip", "tiny-imagenet-200")],
    "imagenet9-downsampled": [("Imagenet64",)],
}
NOT_THERE = ("dask", "distributed", "dvc", "jupyter", "rich")  # of pyproject.toml; of jupyter, stages need the kernel
SYSTEMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux_2_5_x86_64")


def pack(paper: str, *, scale: str, have: Path, to: Path) -> Path:
    """Write a bundle of a paper's sections at a scale, and all that they need, to a new folder.

    Raises UserError if the folder holds anything else, the scale is wrong, or a dataset's files are not on disk."""
    from companion.engine import usual  # imports DVC, which the node that describes its results lacks

    if to.exists() and any(to.iterdir()) and not (to / node.MANIFEST).exists():
        raise UserError(f"{to} holds something else: name another folder, --to FOLDER")
    with TemporaryDirectory() as temporary:
        project = stage(Path(temporary) / "project", scale)
        stages, reads = graph(project, paper, usual(scale, {}))
        (project / pipeline.COMMIT).write_text(pipeline.commit())
        files = listed(project, [*reads, "dvc.yaml", pipeline.COMMIT])
        datasets = _run(project)["datasets"]
        for name in [each.name.partition("@")[2] for each in stages if each.name.startswith("dataset@")]:
            for path in packed(name, datasets[name]):
                found = listed(path.parent, [path.name])
                files |= {f"data/downloads/{inner}": file for inner, file in found.items()}
        files |= listed(Path(temporary), [wheels(have, Path(temporary) / node.WHEELS).name])
        return write(to, files, stages, paper=paper, scale=scale, commit=pipeline.commit())


def write(to: Path, files: dict[str, Path], stages: Sequence[node.Stage], **about: Any) -> Path:
    """Write a bundle: run.py, a manifest, and parts with the files and, as JSON, the stages and what it is about."""
    describe = "python -m companion bundle describe"
    with TemporaryDirectory() as temporary:
        content = Path(temporary) / node.BUNDLE
        told = about | {"describe": describe, "stages": [asdict(each) for each in stages]}
        content.write_text(json.dumps(told, indent=1) + "\n", "utf-8")
        node.write_parts(to, {node.BUNDLE: content} | files, PART, **about)
    shutil.copyfile(node.__file__, to / "run.py")
    return to


def take(folder: Path) -> Path:
    """Publish the sections that run.py packed, beside the published ones of that scale; the rest goes to data/taken/.

    Raises UserError if a part is missing or damaged, or if nothing has come back yet."""
    with TemporaryDirectory() as temporary:
        came = Path(temporary)
        try:
            about = node.read_parts(folder, came)
        except ValueError as error:
            raise UserError(str(error)) from error
        scale, report = about["scale"], came / "reports" / about["scale"]
        rest = paths.DATA / "taken" / f"{scale}-{about['paper']}"
        shutil.rmtree(rest, ignore_errors=True)
        shutil.copytree(came, rest, ignore=lambda place, names: ["reports"] if Path(place) == came else [])
        for name, why in about["left"].items():
            print(f"left: {name}: {why}")
        if not report.exists():
            raise UserError(f"{folder}: no section was finished; cards, rows and logs are in {rest}")
        sections = sorted(path.name for path in report.iterdir())
        provenance = about["provenance"] | {"commit": about["commit"], "sections": sections}
        for old in sorted((paths.REPORTS / "published" / scale).glob("*")):
            if old.name == "manifest.json":
                before = json.loads(old.read_text("utf-8"))["provenance"]
                others = [before, *before.pop("others", [])]  # of sections that came at other times
                provenance["others"] = [each for each in others if not {*each.get("sections", [""])} <= {*sections}]
            elif old.name not in sections:
                (shutil.copytree if old.is_dir() else shutil.copyfile)(old, report / old.name)
        return publish(_run(came), provenance, report)


def describe() -> str:
    """The provenance of this project's results on this machine, as JSON."""
    return json.dumps(pipeline.provenance(load_run(), datetime.now(UTC), 0))


def stage(project: Path, scale: str) -> Path:
    """A project like this one, in a folder of its own, with the run.yaml of `scale`; this one keeps its settings."""
    project.mkdir(parents=True)
    for path in sorted(paths.ROOT.glob("[!.]*")):
        if path.name not in OWN:
            (project / path.name).symlink_to(path)
    shutil.copyfile(paths.PARAMS, project / "params.yaml")
    _output(["companion", "params", scale], cwd=project)
    return project


def graph(project: Path, paper: str, seconds: Mapping[str, float]) -> tuple[list[node.Stage], list[str]]:
    """The stages of a paper's sections and what they need, in an order to run them, and the files that no stage makes.

    Networks come in the order of params.yaml, which is the paper's, each after its own dataset. A dataset that only
    sections would read, because each depends on all there are, is left out: they show what networks did."""
    import networkx as nx
    from dvc.repo import Repo
    from dvc.repo.reproduce import collect_stages, get_active_graph, plan_repro

    from companion import engine

    with chdir(project):  # DVC calls stages as seen from here
        repo = Repo(str(project), uninitialized=True)
        whole = get_active_graph(repo.index.graph)  # from a stage to what it needs
        chosen = collect_stages(repo, engine.targets(repo, paper))
        plan = plan_repro(whole, chosen)
        place = {each: number for number, each in enumerate(repo.index.stages)}
        for each in [each for each in plan if each.addressing.startswith("dataset@")]:
            place[each] = min((place[by] for by in {*whole.predecessors(each)} & {*plan} - {*chosen}), default=None)
        needed = whole.subgraph(each for each in plan if place[each] is not None)
        kept = [*nx.lexicographical_topological_sort(needed.reverse(), key=place.get)]
        made = {_inside(project, out) for each in whole for out in each.outs}
        reads = {_inside(project, dep) for each in kept for dep in each.deps}
        loose = [path for path in sorted(reads) if not any(_overlap(path, other) for other in made)]
        found = [
            node.Stage(
                name=each.addressing,
                command=" && ".join(each.cmd if isinstance(each.cmd, list) else each.cmd.splitlines()),
                needs=sorted(need.addressing for need in {*whole.successors(each)} & {*kept}),
                outs=[_inside(project, out) for out in each.outs],
                seconds=seconds.get(each.addressing),
            )
            for each in kept
        ]
    return found, loose


def listed(root: Path, names: Iterable[str]) -> dict[str, Path]:
    """Files, and all in folders, by name under `root`; no hidden files, nothing that Python makes from sources."""
    places = [path for name in names for path in (root / name, *(root / name).rglob("*"))]
    kept = {path.relative_to(root).as_posix(): path for path in sorted(places) if path.is_file()}
    return {name: path for name, path in kept.items() if not re.search(r"(^|/)\.|__pycache__|\.egg-info", name)}


def packed(name: str, settings: Mapping[str, Any]) -> list[Path]:
    """The archives that a dataset is read from, or else unpacked folders. Raises UserError for what is missing."""
    kind = "-".join(filter(None, (settings["kind"], settings.get("source"))))
    if kind not in FILES:
        raise UserError(f"datasets.{name}: of kind {kind}, which no bundle holds yet")
    named = os.environ.get("ROBUST_FEATURES_DATA")
    places = [*([paths.ROOT / Path(named).expanduser()] if named else []), paths.DATA / "downloads"]
    found = []
    for names in FILES[kind]:
        there = [path for each in names for place in places if (path := place / each).exists()]
        if not there:
            where = f"the folder that ROBUST_FEATURES_DATA names ({named or 'none yet'}), or into data/downloads"
            raise UserError(f"datasets.{name}: put {' or '.join(names)} into {where}")
        found.append(there[0])
    return found


def wheels(have: Path, folder: Path) -> Path:
    """Fetch the pinned wheels that stages need and a Python lacks; `have` lists its packages and names its version."""
    try:
        there = dict(re.findall(r"(?m)^([\w.-]+)(?:==(\S+))?", have.read_text("utf-8")))
    except OSError as error:
        raise UserError(f"{have}: {error.strerror}; it is to list what the machine has") from error
    if not there.get("python"):
        raise UserError(f"{have}: needs a line such as python==3.12")
    project = tomllib.loads((paths.ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    asked = project["dependencies"] + project["optional-dependencies"]["project"]
    needs = [re.match(r"[\w.-]+", need)[0] for need in asked]
    needs = ["ipykernel", *(name for name in needs if name not in (*NOT_THERE, *there))]
    lock = paths.ROOT / "requirements.txt"
    resolve = ["uv", "pip", "compile", "-", "--quiet", "--no-header", "--no-annotate", "--constraint", str(lock)]
    resolve += ["--python-version", there["python"], "--python-platform", "x86_64-manylinux_2_28"]
    resolve += [word for name in there for word in ("--no-emit-package", name)]
    folder.mkdir()
    pins = folder / "requirements.txt"
    pins.write_text(_output(resolve, input="\n".join(needs)), "utf-8")
    fetch = ["pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--python-version", there["python"]]
    fetch += [word for system in SYSTEMS for word in ("--platform", system)]
    _output([*fetch, "--dest", str(folder), "--requirement", str(pins)])
    return folder


def _output(module: Sequence[str], **options: Any) -> str:
    """What a module of this environment prints. If it fails, raises UserError with its message."""
    done = subprocess.run([sys.executable, "-m", *module], capture_output=True, text=True, **options)
    if done.returncode:
        raise UserError(done.stderr.strip())
    return done.stdout


def _run(project: Path) -> dict[str, Any]:
    return YAML(typ="safe").load(project / "run.yaml")["run"]


def _inside(project: Path, part: Any) -> str:
    return Path(part.fs_path).relative_to(project).as_posix()


def _overlap(one: str, other: str) -> bool:
    """Whether one of two paths equals or contains the other."""
    return f"{one}/".startswith(f"{other}/") or f"{other}/".startswith(f"{one}/")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m companion bundle", description=__doc__)
    commands = parser.add_subparsers(required=True)
    for function in (pack, take, describe):
        command = commands.add_parser(function.__name__, description=function.__doc__)
        command.set_defaults(function=function)
        if function is pack:
            command.add_argument("paper", metavar="PAPER", help="kim, xu, springer, ilyas, theory, …")
            command.add_argument("--scale", required=True)
            command.add_argument("--have", type=Path, default=HAVE, help=f"packages of the machine ({HAVE.name})")
            command.add_argument("--to", type=Path, help="a new folder (data/bundles/<scale>-<paper>)")
        if function is take:
            command.add_argument("folder", type=Path, metavar="FOLDER")
    options = vars(parser.parse_args())
    if "to" in options:
        options["to"] = options["to"] or paths.DATA / "bundles" / f"{options['scale']}-{options['paper']}"
    print(options.pop("function")(**options))
