"""The one place that decides device, precision, memory format and threads."""

import ctypes
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from robust_features.settings import Count, UserError, settings

T = TypeVar("T")
Precision = Literal["fp32", "bf16"]
BATCH, BATCH_ON_A_GPU = 250, 1000  # images; on a GPU so many that their arithmetic takes longer than to launch it
PAUSE = 30  # seconds between lines on progress
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # options of glibc's mallopt


@settings
class HardwareSettings:
    """`auto` takes a CUDA device if there is one, and bfloat16 where the processor multiplies its matrices in hardware.

    On a GPU, convolutions of float32 are PyTorch's: in TF32, which keeps 10 of 23 bits of what is multiplied.
    Only a network's training, and attacks that follow the gradient to the end, are ever in bfloat16.
    `threads` limits the CPU threads: narrow networks are too small to be shared, and waiting for each other is slower.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    threads: Count | None = None


@dataclass(frozen=True)
class Hardware:
    """Where tensors live, and the precision of training and attacks; predictions, losses, σ and norms are float32."""

    device: torch.device
    precision: Literal["auto", "fp32", "bf16"]

    @property
    def batch(self) -> int:
        """How many images are predicted or attacked at once, unless told; no image's result depends on it."""
        return BATCH if self.device.type == "cpu" else BATCH_ON_A_GPU

    def place(self, network: nn.Module) -> nn.Module:
        """Move a network to the device, channels last."""
        return network.to(self.device, memory_format=torch.channels_last)

    def precision_of(self, network: nn.Module) -> Precision:
        """The precision to train and attack this network in: `auto` is bf16 if there are matrix units that it gains by.

        On one thread of an Intel with AMX it takes 0.9 of float32's time for a VGG-16 of width 1/16, 0.7 for 1/8, 0.5
        for 1/4, and 0.7 for narrow WideResNets and DenseNets, but 1.2 to 1.8 where convolutions are depthwise.
        """
        if self.precision != "auto":
            return self.precision
        if self.device.type == "cuda":
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
        depthwise = any(isinstance(layer, nn.Conv2d) and layer.groups > 1 for layer in network.modules())
        return "bf16" if _matrix_units() and not depthwise else "fp32"

    def autocast(self, precision: Precision) -> torch.autocast:
        """The context in which a network computes in this precision, its weights and inputs staying float32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16")

    def recorded(self, function: Callable[..., Tensor], *, keeps: Iterable[Tensor] = ()) -> Callable[..., Tensor]:
        """A function of tensors that a GPU runs as a whole, where launching its operations one by one takes longer.

        It must not wait for the device, and whatever other tensors it reads or writes must stay where they are; those
        that it changes by being called are to be named, as `keeps`. A result lasts until the next call. On a CPU it is
        the function itself. PGD-10 training of a VGG-16 on an H200, batches of 128: 14 ms each, 45 ms one operation
        after the other.
        """
        return _Recorded(function, keeps) if self.device.type == "cuda" else function


def choose(settings: HardwareSettings) -> Hardware:
    """The hardware of this machine. Raises UserError if params.yaml asks for a GPU and there is none."""
    _keep_freed_memory()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    cuda = torch.cuda.is_available()
    if settings.device == "cuda" and not cuda:
        raise UserError(
            "params.yaml, hardware.device: cuda is asked for, but torch sees no CUDA device; write auto or cpu"
        )
    device = torch.device("cuda" if cuda and settings.device != "cpu" else "cpu")
    return Hardware(device, settings.precision)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on its way to the device; neither waits for the other."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def cores() -> int:
    """How many cores this process may use: as OMP_NUM_THREADS says, else those that the system gives it."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    if told.isdecimal() and int(told):
        return int(told)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Recorded:
    """A CUDA graph of a function for every shape of its arguments, captured when that is seen first."""

    def __init__(self, function: Callable[..., Tensor], keeps: Iterable[Tensor]):
        self._function, self._keeps = function, [*keeps]
        self._captured: dict[tuple[torch.Size, ...], tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor]] = {}

    def __call__(self, *given: Tensor) -> Tensor:
        shapes = tuple(tensor.shape for tensor in given)
        if shapes not in self._captured:
            self._captured[shapes] = self._capture([tensor.clone() for tensor in given])
        graph, arguments, result = self._captured[shapes]
        for argument, tensor in zip(arguments, given, strict=True):
            argument.copy_(tensor)
        graph.replay()
        return result

    def _capture(self, arguments: list[Tensor]) -> tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor]:
        before, stream = [tensor.clone() for tensor in self._keeps], torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # a call in which libraries choose their algorithms: that is not to be captured
            self._function(*arguments)
        torch.cuda.current_stream().wait_stream(stream)
        for tensor, value in zip(self._keeps, before, strict=True):
            tensor.copy_(value)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = self._function(*arguments)
        return graph, arguments, result


def _matrix_units() -> bool:
    """Whether this CPU has AMX and oneDNN may use it; AVX-512's own bfloat16 has no matrix units."""
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "DEFAULT").upper()
    return (limit == "DEFAULT" or "AMX" in limit) and bool(torch.cpu.get_capabilities().get("amx_bf16"))


def _keep_freed_memory() -> None:
    """Have glibc keep up to 1 GiB that tensors free: returning it and asking again took a fifth of an attack's time."""
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
    """[function(start) …]; on a CPU as many at once as there are threads, one thread each: none waits for another.

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
