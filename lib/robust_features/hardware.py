"""The one place that decides device, precision, memory format and threads."""

import ctypes
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from typing import Literal, TypeVar

import torch
from torch import nn

from robust_features.settings import Count, UserError, settings

T = TypeVar("T")
PAUSE = 30  # seconds between lines on how far it is
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # options of glibc's mallopt


@settings
class HardwareSettings:
    """`auto` takes a CUDA device where there is one, and there bfloat16 autocast; a CPU computes in float32.

    `threads` limits the CPU threads: narrow networks are too small to share, and threads that wait for each other are slower.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    threads: Count | None = None


@dataclass(frozen=True)
class Hardware:
    """Where tensors live and how networks compute; losses, σ and norms are float32 everywhere."""

    device: torch.device
    precision: Literal["fp32", "bf16"]

    def place(self, network: nn.Module) -> nn.Module:
        """Move a network to the device, channels last."""
        return network.to(self.device, memory_format=torch.channels_last)

    def autocast(self) -> torch.autocast:
        """The context in which networks are run."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")


def choose(settings: HardwareSettings) -> Hardware:
    """The hardware of this machine. Raises UserError if params.yaml asks for a GPU and there is none."""
    _keep_freed_memory()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    cuda = torch.cuda.is_available()
    if settings.device == "cuda" and not cuda:
        raise UserError(
            "params.yaml, run.hardware.device: cuda is asked for, but torch sees no CUDA device; write auto or cpu"
        )
    device = torch.device("cuda" if cuda and settings.device != "cpu" else "cpu")
    automatic = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    return Hardware(device, automatic if settings.precision == "auto" else settings.precision)


def _keep_freed_memory() -> None:
    """Have glibc keep up to 1 GiB that tensors free: giving it back and getting it again took a fifth of an attack's time."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "mallopt"):
        for option in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            libc.mallopt(option, 1 << 30)


def side_by_side(
    function: Callable[[int], T],
    starts: Sequence[int],
    device: torch.device,
    *,
    report: Callable[[str], None] | None = None,
) -> list[T]:
    """[function(start) …]; on a CPU as many at once as there are threads, one thread each: they need not wait for one another.

    `report` is given a line with the time left, about twice a minute.
    """
    done, begun = count(1), time.perf_counter()
    said = begun

    def one(start: int) -> T:
        nonlocal said
        result, number, now = function(start), next(done), time.perf_counter()
        if report and now - said > PAUSE and number < len(starts):
            said, left = now, (now - begun) / number * (len(starts) - number)
            report(f"{number} of {len(starts)} batches, {left:.0f} s left")
        return result

    threads = torch.get_num_threads()
    if device.type != "cpu" or min(threads, len(starts)) < 2:
        return [one(start) for start in starts]
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            return list(pool.map(one, starts))
        finally:
            torch.set_num_threads(threads)
