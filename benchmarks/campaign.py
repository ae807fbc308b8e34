"""Kills `make reproduce` at random times and compares what it makes in the end with an undisturbed run, byte for byte.

python -m benchmarks.campaign [--kills 20] [--seed 0] [--only STAGE …]
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from companion import paths
from robust_features.files import sha256

KEPT = ("data/datasets", "data/networks", "data/constructed", "data/transfers", "reports/quick")
DATED = {".html", ".ipynb"}  # pages and executed notebooks hold the date they were made
LONGEST = 45  # seconds before a kill


def main(kills: int, seed: int, only: Sequence[str]) -> None:
    """Two clones of this checkout, one of them disturbed. Raises SystemExit if they differ, or a process stays."""
    generator = random.Random(seed)
    command = [sys.executable, "-m", "companion", "engine", *(["--only", *only] if only else [])]
    with TemporaryDirectory() as folder:
        alone, disturbed = Path(folder) / "alone", Path(folder) / "disturbed"
        for clone in (alone, disturbed):
            subprocess.run(["git", "clone", "--quiet", str(paths.ROOT), str(clone)], check=True)
        subprocess.run(command, cwd=alone, env=of(alone), check=True)
        disturb(lambda: subprocess.Popen(command, cwd=disturbed, env=of(disturbed)), disturbed, kills, generator)
        subprocess.run(command, cwd=disturbed, env=of(disturbed), check=True)
        expected, found = made(alone), made(disturbed)
        different = sorted(name for name in expected | found if expected.get(name) != found.get(name))
        if different:
            raise SystemExit(f"{len(different)} of {len(expected)} files differ: {', '.join(different[:20])}")
        print(f"all {len(expected)} files are as those of the undisturbed run")


def disturb(start: Callable[[], subprocess.Popen], clone: Path, kills: int, generator: random.Random) -> None:
    """Kill the engine or a process that works for it, again and again; a run that has ended in failure starts anew.

    Raises SystemExit if a process outlives the engine."""
    process, killed = start(), 0
    while killed < kills:
        time.sleep(generator.uniform(1, LONGEST))
        if process.poll() == 0:
            print(f"it was through after {killed} kills", flush=True)
            return
        if process.poll() is not None:
            process = start()
            continue
        victim, number = generator.choice(working(clone)), generator.choice([signal.SIGKILL, signal.SIGTERM])
        try:
            called = " ".join(victim.cmdline())[:100]
            victim.send_signal(number)
        except psutil.NoSuchProcess:  # it has just ended
            continue
        killed += 1
        print(f"kill {killed} of {kills}: {called}", flush=True)
        if victim.pid == process.pid:
            process.wait()
            time.sleep(15)  # as long as those that were asked to end may take
            if left := working(clone):
                raise SystemExit(f"these stayed: {[each.cmdline() for each in left]}")
            process = start()
    process.wait()


def of(clone: Path) -> dict[str, str]:
    """The environment in which a clone runs its own code, not that of the checkout which this environment is of."""
    return {**os.environ, "PYTHONPATH": str(clone / "lib")}


def working(folder: Path) -> list[psutil.Process]:
    """The processes whose working directory is in `folder`."""
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(folder):
                found.append(process)
        except psutil.Error:
            continue
    return found


def made(clone: Path) -> dict[str, str]:
    """Checksums of what a run made, by path, but for what holds its date."""
    files = [
        path for place in KEPT for path in (clone / place).rglob("*") if path.is_file() and path.suffix not in DATED
    ]
    return {str(path.relative_to(clone)): sha256(path) for path in files}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.campaign", description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[])
    main(**vars(parser.parse_args()))
