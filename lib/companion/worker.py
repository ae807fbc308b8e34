"""What a worker does: it runs the command of one stage at a time. It knows nothing about DVC."""

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from companion.report.surroundings import WARM
from companion.warm import PATIENCE, PYTHON, Process

RUNNING: dict[str, subprocess.Popen | Process] = {}  # by stage, for `stop`: a worker cannot interrupt what it runs


def execute(name: str, commands: Sequence[str], folder: Path, env: Mapping[str, str], log: Path) -> int:
    """Run a stage's commands in `folder` one by one, output to `log`; the exit status of the first that fails, or 0."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        for command in commands:
            RUNNING[name] = process = _start(command, folder, {**os.environ, **env}, output.fileno())
            status = process.wait()
            del RUNNING[name]
            if status:
                return status
    return 0


def stop() -> None:
    """End what this worker runs: it is asked first, so that kernels close."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in [*RUNNING.values()]:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
        end = time.monotonic() + PATIENCE
        while RUNNING and time.monotonic() < end:  # `execute` notices, in another thread
            time.sleep(0.05)


def _start(command: str, folder: Path, env: Mapping[str, str], output: int) -> subprocess.Popen | Process:
    """Start a command: forked from a warm process if there is one; by a shell if it is no plain call of our modules."""
    words = shlex.split(command)
    if words[:3] != [*PYTHON, "companion"]:
        words = [os.environ.get("SHELL", "/bin/sh"), "-c", command]
    with suppress(KeyError, OSError):
        return Process(env[WARM], words, cwd=folder, env=env, output=output)
    return subprocess.Popen(
        words, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
    )
