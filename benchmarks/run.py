"""Time every work on both sides, in one run on one machine, and write benchmarks/results/<machine>.json."""

import argparse
import gc
import importlib.metadata
import json
import os
import platform
import re
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks import peers
from benchmarks.works import BATCH, EPSILON, STEP, Bench, Outcome, Work, prepare, works
from companion import pipeline
from companion.datasets import ImageSet
from robust_features.attacks import PGD
from robust_features.batches import as_float
from robust_features.evaluation import attack_all
from robust_features.files import atomic
from robust_features.hardware import Hardware, HardwareSettings, choose
from robust_features.networks import VGG16, Network, build, folded

RESULTS = Path(__file__).parent / "results"
TOLERANCE = 0.3  # percentage points between the two sides' accuracies
KINDS = {  # of operations in a profile; of several that match, the last
    "convolution forward": r"aten::(mkldnn_|cudnn_|thnn_|_slow_|slow_)?conv",
    "batch norm": r"aten::.*batch_norm",
    "convolution backward": r"aten::convolution_backward",
}
GROWTH = {"images": (100, 200, 400, 800), "steps": (10, 20, 40, 80), "width": (0.125, 0.25, 0.5, 1.0)}


def measure(
    work: Work, *, gpu: bool, rate: float | None = None, clock: Callable[[], float] = perf_counter
) -> dict[str, object]:
    """One row: after a warm-up on a few images the sides take turns; medians, extremes, their ratio, what they found.

    With the `rate` of the network's convolutions also the seconds that our side's operations would take at it.
    """
    few = work.images.take(slice(work.warm))
    sides = {"ours": work.ours, "peer": work.theirs}
    for function in sides.values():
        function(few)
    shares = {f"{side}_profile": profiled(f, few) if work.profiled else {} for side, f in sides.items()}
    seconds, found = {"ours": [], "peer": []}, {}
    for _ in range(work.rounds):
        for side, function in sides.items():
            gc.collect()
            begun = clock()
            found[side] = function(work.images)  # ends with numbers on the CPU: nothing is still under way
            seconds[side].append(clock() - begun)
    row = {"work": work.name, "peer": work.peer, "images": len(work.images), "rounds": work.rounds}
    row |= {f"{side}_s": median(times) for side, times in seconds.items()}
    row |= {f"{side}_min_s": min(times) for side, times in seconds.items()}
    row |= {f"{side}_max_s": max(times) for side, times in seconds.items()}
    row |= {"ratio": row["peer_s"] / row["ours_s"], "target": work.target[gpu], "note": work.note}
    row |= {f"{side}_{name}": value for side, outcome in found.items() for name, value in outcome.items()}
    if rate:
        with _Flops() as counted:
            for batch in torch.arange(len(work.images)).split(BATCH):  # one at a time: several are shared among threads
                work.ours(work.images.take(batch))
        row |= {"counted_s": counted.total / rate}
    return row | {"stated": compared(found["ours"], found["peer"], len(work.images))} | shares


def compared(ours: Outcome, theirs: Outcome, images: int) -> str:
    """What must be said about the two sides' accuracies: nothing where they are within the tolerance."""
    gaps = {name: ours[name] - theirs[name] for name in ours if name != "loss"}
    said = [
        f"{name.replace('_', ' ')} {gap:+.1f} points"
        + (f", or {abs(gap) * images / 100:.0f} of {images} images" if "accuracy" in name else "")
        for name, gap in gaps.items()
        if abs(gap) > TOLERANCE
    ]
    return "; ".join(said)


def profiled(function: Callable[[ImageSet], Outcome], few: ImageSet) -> dict[str, float]:
    """Percent of the time of a call on a few images: convolutions, batch norm, and the five longest operations else."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
    with profile(activities=activities) as record:
        function(few)
    spent: dict[str, float] = {}
    for event in record.key_averages():
        if event.device_type != DeviceType.CPU:  # a GPU's kernel, whose time its operation has too
            continue
        kind = next((kind for kind in reversed(KINDS) if re.match(KINDS[kind], event.key)), event.key)
        here = event.self_device_time_total if torch.cuda.is_available() else event.self_cpu_time_total
        spent[kind] = spent.get(kind, 0.0) + here
    everything, longest = sum(spent.values()), sorted(spent.keys() - KINDS.keys(), key=lambda kind: -spent[kind])
    return {kind: round(100 * spent.get(kind, 0.0) / everything, 1) for kind in (*KINDS, *longest[:5]) if everything}


class _Flops(TorchDispatchMode):
    """Of the convolutions and matrix products of all calls in it; torch's FlopCounterMode cannot bear autograd.grad."""

    total = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if formula := flop_registry.get(function._overloadpacket):
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result


def convolution_rate(network: Network, images: ImageSet, hardware: Hardware) -> float:
    """FLOP/s that the network's convolutions reach, forward and back to the images, all of which are one batch.

    Images of 32 pixels in batches of 100, one after another, do not reach it: it bounds what a loop around them could.
    """
    given = as_float(images.images.to(hardware.device)).contiguous(memory_format=torch.channels_last)
    precision = hardware.precision_of(network)

    def call() -> None:
        x = given.clone().requires_grad_()
        with hardware.autocast(precision):
            logits = network(x)
        torch.autograd.grad(logits.sum(), x)

    network = folded(network.eval().requires_grad_(False))
    call()
    with _Flops() as counted:
        call()
    with profile(activities=[ProfilerActivity.CPU]) as record:
        for _ in range(5):
            call()
    kinds = [KINDS["convolution forward"], KINDS["convolution backward"]]
    spent = sum(e.self_cpu_time_total for e in record.key_averages() if any(re.match(kind, e.key) for kind in kinds))
    return counted.total / (spent / 5 / 1e6)


def growth(bench: Bench, clock: Callable[[], float] = perf_counter) -> list[dict[str, object]]:
    """Seconds of PGD, the same steps for each image, as one of images, steps and width grows from the least of each."""
    rows = []
    for grows, values in GROWTH.items():
        for value in values:
            case = {name: least[0] for name, least in GROWTH.items()} | {grows: value}
            network = bench.hardware.place(build(VGG16(width=case["width"]), 10, seed=0)).eval()
            attack = PGD(epsilon=EPSILON, step_size=STEP, steps=case["steps"])
            seconds = []
            for _ in range(4):  # the first warms up
                begun = clock()
                images = bench.test.take(slice(case["images"]))
                attack_all(attack, network, images, hardware=bench.hardware, seed=0, batch_size=bench.batch)
                seconds.append(clock() - begun)
            rows.append({"grows": grows, "value": value, "seconds": median(seconds[1:])})
    return rows


def machine(hardware: Hardware) -> dict[str, object]:
    """What the times depend on besides the code."""
    if hardware.device.type == "cuda":
        name, memory = torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory
        return {"name": name, "device": "cuda", "precision": hardware.precision, "memory_gb": round(memory / 2**30)}
    listed = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", listed.read_text()) if listed.exists() else []
    name = names[0] if names else platform.processor() or platform.machine()
    return {"name": name, "device": "cpu", "precision": hardware.precision, "threads": torch.get_num_threads()}


def versions() -> dict[str, str]:
    """Of Python, the packages, and the checkouts (commit)."""
    found = {"python": platform.python_version()}
    for name in ("torch", "torchattacks", "foolbox"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    checkouts = {name: peers.FOLDER / name for name in peers.REPOSITORIES}
    return found | {name: commit(folder) for name, folder in checkouts.items() if folder.is_dir()}


def commit(folder: Path) -> str:
    """The commit of a checkout, marked where its files differ from it."""
    git = ["git", "-C", str(folder)]
    try:
        said = subprocess.run([*git, "describe", "--always", "--dirty", "--exclude=*"], capture_output=True, text=True)
    except FileNotFoundError:  # on a machine without git
        return ""
    return said.stdout.strip()


def write(found: dict[str, object]) -> None:
    """benchmarks/results/<machine, device, threads, precision>.json, written after every work.

    An interrupted run leaves what it has.
    """
    name = " ".join(str(found["hardware"].get(key, "")) for key in ("name", "device", "threads", "precision")).lower()
    with atomic(RESULTS / f"{re.sub(r'[^a-z0-9]+', '-', name).strip('-')}.json") as partial:
        partial.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.run")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of both sides (2)")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="of our side (auto)")
    parser.add_argument("--width", type=float, help="of the VGG-16: 1/8 on a CPU, 1 on a GPU, unless told")
    parser.add_argument(
        "--only", default="", help="works whose name has this in it; nothing is written then, but with --keep"
    )
    parser.add_argument("--keep", action="store_true", help="write what --only measured")
    options = parser.parse_args()
    hardware = choose(HardwareSettings(device=options.device, threads=options.threads, precision=options.precision))
    gpu = hardware.device.type == "cuda"
    width = options.width or (1.0 if gpu else 0.125)
    facts = {"hardware": machine(hardware), "versions": versions(), "commit": pipeline.commit(), "width": width}
    facts |= {"date": f"{datetime.now(UTC):%Y-%m-%d}", "load_before": round(os.getloadavg()[0], 1)}
    begun, bench, rows = perf_counter(), prepare(hardware, width), []
    facts["hardware"]["precision"] = hardware.precision_of(bench.network)
    rate = None if gpu else convolution_rate(bench.network, bench.test, hardware)
    facts |= {"convolutions_gflops": rate and round(rate / 1e9, 1)}
    for work in works(bench):
        if options.only.lower() not in work.name.lower():
            continue
        try:
            row = measure(work, gpu=gpu, rate=rate)
        except peers.Absent as absent:
            print(f"not measured: {work.name} against {work.peer}: {absent}")
            continue
        rows.append(row)
        if options.keep or not options.only:
            facts["minutes"] = round((perf_counter() - begun) / 60, 1)
            write(facts | {"results": rows})
        print(
            f"{work.name} against {work.peer}: {row['ours_s']:.2f} s, theirs {row['peer_s']:.2f} s: {row['ratio']:.1f}"
            f" times as fast (to reach: {row['target']})  {row['stated']}"
        )
    if options.keep or not options.only:
        write(facts | {"results": rows, "growth": growth(bench)})


if __name__ == "__main__":
    main()
