"""Time a whole `make reproduce` after its install: when each stage ran, and how busy the cores were.

python -m benchmarks.stages  in a clone of its own, on an idle machine; writes benchmarks/results/stages/<machine>.json
"""

import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import psutil

from benchmarks.run import RESULTS, commit, machine
from companion.paths import ROOT
from robust_features.files import atomic
from robust_features.hardware import HardwareSettings, choose


def main() -> None:
    """Run every stage of a fresh clone of this commit. Raises CalledProcessError if one fails."""
    facts = {"hardware": machine(choose(HardwareSettings())) | {"cores": os.cpu_count()}, "commit": commit(ROOT)}
    facts |= {"date": f"{datetime.now(UTC):%Y-%m-%d}", "load_before": round(os.getloadavg()[0], 1)}
    with TemporaryDirectory() as folder:
        subprocess.run(["git", "clone", "--quiet", str(ROOT), folder], check=True)
        before, begun = worked(), perf_counter()
        subprocess.run([sys.executable, "-m", "companion", "engine"], cwd=folder, check=True)
        seconds = perf_counter() - begun
        facts |= {"seconds": round(seconds, 1), "busy": round((worked() - before) / seconds, 2)}
        facts["stages"] = json.loads((Path(folder) / "logs" / "durations.json").read_text("utf-8"))
    name = re.sub(r"[^a-z0-9]+", "-", f"{facts['hardware']['name']} {facts['hardware']['cores']}".lower()).strip("-")
    with atomic(RESULTS / "stages" / f"{name}.json") as partial:
        partial.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", "utf-8")


def worked() -> float:
    """Seconds that all cores have worked; what runs at a low priority does not count."""
    times = psutil.cpu_times()
    return times.user + times.system


if __name__ == "__main__":
    main()
