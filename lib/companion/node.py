"""Runs a bundle where there is no network, DVC or git: `python run.py --minutes 9`, again and again until all is done.

companion.bundle copies this file into a bundle as run.py, so it uses only the standard library, and takes back what it
packs.
"""

import argparse
import fcntl
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

MANIFEST, BUNDLE, DONE, WHEELS = "manifest.json", "bundle.json", "done.json", "wheels"
PART = 15_000_000  # bytes of results at most
PATIENCE = 10  # seconds between asking a process to end and ending it
PACKING = 0.1, 30  # share of the time reserved for stopping and packing, and at most these seconds
WEIGHTS = "tensors.safetensors"  # of networks; for datasets and attacks, the images
# settings of the node that stages must not see
THEIRS = (
    "COMPANION",
    "GIT",
    "PYTHONHOME",
    "PYTHONSTARTUP",
    "ROBUST_FEATURES",
)


@dataclass(frozen=True, eq=False)
class Stage:
    """A command, the stages that it needs, what it makes, and how many seconds it takes, if that is known."""

    name: str
    command: str
    needs: Sequence[str]
    outs: Sequence[str]
    seconds: float | None


def write_parts(folder: Path, files: Mapping[str, Path], size: int, **about: Any) -> None:
    """Write files, by the names they get, as parts of an archive of at most `size` bytes, and their SHA-256 last."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)  # without it, nothing half-written is taken for whole
    for old in folder.glob("part-*"):
        old.unlink()
    sums = {}
    with tempfile.TemporaryFile(dir=folder) as archive:
        with tarfile.open(fileobj=archive, mode="w:gz", compresslevel=1) as tar:
            for name, path in files.items():
                with path.open("rb") as file:
                    tar.addfile(tar.gettarinfo(path.resolve(), name), file)
        archive.seek(0)
        for number, block in enumerate(iter(lambda: archive.read(size), b"")):
            name = f"part-{number:03}"
            (folder / name).write_bytes(block)
            sums[name] = hashlib.sha256(block).hexdigest()
    _write(folder / MANIFEST, {**about, "parts": sums})


def read_parts(folder: Path, target: Path) -> dict[str, Any]:
    """Check and unpack a folder's parts to `target`; what the manifest says. Raises ValueError naming damaged parts."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
    except (OSError, ValueError):
        raise ValueError(f"{folder}: {MANIFEST} is missing or damaged; copy the folder again") from None
    if not hasattr(tarfile, "data_filter"):
        raise ValueError("unpacking it safely needs Python 3.11.4 or newer")
    target.mkdir(parents=True, exist_ok=True)
    bad = []
    with tempfile.TemporaryFile(dir=target) as archive:
        for name, expected in manifest["parts"].items():
            block = (folder / name).read_bytes() if (folder / name).exists() else b""
            if hashlib.sha256(block).hexdigest() != expected:
                bad.append(name)
            archive.write(block)
        if bad:
            raise ValueError(f"{folder}: missing or damaged: {', '.join(bad)}; copy them again")
        archive.seek(0)
        with tarfile.open(fileobj=archive, mode="r:gz") as tar:
            tar.extractall(target, filter="data")
    return manifest


def prepare(bundle: Path, work: Path) -> Path:
    """Check a bundle, unpack it to work/project, install its wheels, unless done; raises ValueError if it cannot be."""
    project, mark = work / "project", work / "prepared"
    try:
        known = hashlib.sha256((bundle / MANIFEST).read_bytes()).hexdigest()
    except OSError:
        raise ValueError(f"{bundle}: no {MANIFEST}; copy the folder again") from None
    if mark.exists() and mark.read_text() != known:
        raise ValueError(f"{work} is of another bundle: name another folder, --work FOLDER")
    if not mark.exists():
        read_parts(bundle, project)
        if wheels := sorted((project / WHEELS).glob("*.whl")):
            # beside the project's own packages: the pipeline gives kernels that one folder as PYTHONPATH
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--upgrade"]
            if subprocess.run([*pip, "--target", project / "lib", *wheels], env=_environment(project, 1)).returncode:
                raise ValueError("the wheels cannot be installed: see above")
        mark.write_text(known)
    return project


def run(
    stages: Sequence[Stage], project: Path, lock: IO[str], stop: threading.Event, *, at_once: int, deadline: float
) -> dict[str, str]:
    """Run what is not done, in order, until `stop` or `deadline` (monotonic clock); returns what is left, and why."""
    running: dict[Stage, tuple[subprocess.Popen[bytes], float]] = {}
    left: dict[str, str] = {}
    done = finished(stages, project)
    print(f"{len(done)} of {len(stages)} stages are done", flush=True)
    while not stop.wait(0.05) and time.monotonic() < deadline:
        for stage, (process, since) in [*running.items()]:
            if process.poll() is None:
                continue
            del running[stage]
            seconds = time.monotonic() - since
            if process.returncode or not _there(project, stage):
                left[stage.name] = f"failed, exit status {process.returncode}: see {_log(project, stage)}"
                print(f"{stage.name}: {left[stage.name]}", flush=True)
            else:
                done[stage.name] = round(seconds, 1)
                _write(project / DONE, done)
                print(f"{stage.name}: done, {seconds:.1f} s", flush=True)
        for stage in stages:
            begun = stage.name in done or stage.name in left or stage in running
            if begun or len(running) == at_once or any(name not in done for name in stage.needs):
                continue
            if (stage.seconds or 0) > deadline - time.monotonic():
                left[stage.name] = f"not started: about {stage.seconds:.0f} s no longer fit"
                continue
            print(f"{stage.name}: started", flush=True)
            running[stage] = _start(stage, project, lock, at_once), time.monotonic()
        if not running:
            break
    _end([process for process, _ in running.values()])
    left |= {stage.name: "interrupted: goes on where it was" for stage in running}
    for stage in stages:
        if stage.name not in done and stage.name not in left:
            missing = [name for name in stage.needs if name not in done]
            left[stage.name] = f"needs {', '.join(missing)}" if missing else "not started: no time was left"
    return left


def finished(stages: Iterable[Stage], project: Path) -> dict[str, float]:
    """The stages that are done and whose results are there, and their seconds."""
    done = json.loads((project / DONE).read_text("utf-8")) if (project / DONE).exists() else {}
    return {stage.name: done[stage.name] for stage in stages if stage.name in done and _there(project, stage)}


def results(stages: Iterable[Stage], project: Path, *, weights: bool) -> dict[str, Path]:
    """What comes back from finished stages, and all logs: sections, cards with histories, rows; weights if asked."""
    done = finished(stages, project)
    outs = [project / out for stage in stages if stage.name in done for out in stage.outs]
    found = [path for out in outs for path in (sorted(out.rglob("*")) if out.is_dir() else [out]) if path.is_file()]
    kept = [path for path in found if path.name != WEIGHTS or (weights and path.parent.name == "model")]
    about = [path for path in (project / DONE, project / BUNDLE, project / "run.yaml") if path.exists()]
    paths = [*about, *kept, *sorted((project / "logs").glob("*.log"))]
    return {path.relative_to(project).as_posix(): path for path in paths}


def _start(stage: Stage, project: Path, lock: IO[str], at_once: int) -> subprocess.Popen[bytes]:
    for out in stage.outs:  # as DVC does; what the library resumes from is elsewhere
        path = project / out
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    words = shlex.split(stage.command)
    words = [sys.executable, *words[1:]] if words[0] == "python" else ["/bin/sh", "-c", stage.command]
    _log(project, stage).parent.mkdir(exist_ok=True)
    with _log(project, stage).open("ab") as log:
        return subprocess.Popen(
            words,
            cwd=project,
            env=_environment(project, at_once),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=[lock.fileno()],  # held until the last stage has ended, even if this process is killed
        )


def _environment(project: Path, at_once: int) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(THEIRS)}
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // at_once))}
    return threads | kept | {"PYTHONPATH": str(project / "lib"), "PYTHONUNBUFFERED": "1"}


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End processes and what they started: they are asked first, so that kernels close."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        alive = [process for process in processes if process.poll() is None]
        for process in alive:
            os.killpg(process.pid, number)
        end = time.monotonic() + PATIENCE
        while any(process.poll() is None for process in alive) and time.monotonic() < end:
            time.sleep(0.05)


def _there(project: Path, stage: Stage) -> bool:
    return all((project / out).exists() for out in stage.outs)


def _log(project: Path, stage: Stage) -> Path:
    return project / "logs" / f"{stage.name.replace('/', '-')}.log"


def _write(path: Path, content: Any) -> None:
    """JSON, whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    os.replace(partial, path)


def _alone(lock: IO[str]) -> None:
    """Wait until nobody else works here; raises ValueError if that takes longer than stages need to end."""
    end = time.monotonic() + 2 * PATIENCE
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise ValueError(f"another run, or a stage that one began, works in {Path(lock.name).parent}") from None
            time.sleep(0.1)


def _describe(command: str, project: Path) -> dict[str, Any]:
    """The results' provenance, as the project itself states it; empty if it cannot."""
    words = [sys.executable, *shlex.split(command)[1:]]
    said = subprocess.run(words, cwd=project, env=_environment(project, 1), capture_output=True, text=True)
    return {} if said.returncode else json.loads(said.stdout)


def main() -> None:
    """The command line."""
    start, started, here = time.monotonic(), time.gmtime(), Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(prog="python run.py", description=__doc__)
    parser.add_argument("--minutes", type=float, required=True, help="stop, and pack what there is, within these")
    parser.add_argument("--at-once", type=int, default=1, help="stages side by side (1)")
    parser.add_argument("--weights", action="store_true", help="bring back the networks' weights too")
    parser.add_argument(
        "--work", type=Path, default=here / "work", help="where to unpack and to compute (beside run.py)"
    )
    parser.add_argument("--results", type=Path, default=here / "results", help="where to pack results (beside run.py)")
    options = parser.parse_args()
    whole = 60 * options.minutes
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("w") as lock:
        try:
            _alone(lock)
            project = prepare(here, work)
        except ValueError as error:
            raise SystemExit(str(error)) from None
        about = json.loads((project / BUNDLE).read_text("utf-8"))
        stages = [Stage(**entry) for entry in about.pop("stages")]
        deadline = start + whole - min(PACKING[0] * whole, PACKING[1])
        left = run(stages, project, lock, stop, at_once=options.at_once, deadline=deadline)
        about["provenance"] = _describe(about.pop("describe"), project) | {
            "command": f"python run.py {shlex.join(sys.argv[1:])}",
            "started": time.strftime("%Y-%m-%d %H:%M UTC", started),
            "run time": f"{time.monotonic() - start:.0f} s",
        }
        found = results(stages, project, weights=options.weights)
        write_parts(options.results, found, PART, **about, left=left)
    print(f"packed to {options.results}: {len(found)} files, {len(finished(stages, project))} of {len(stages)} stages")
    for name, why in left.items():
        print(f"left: {name}: {why}")
    sys.exit(bool(left))


if __name__ == "__main__":
    main()
