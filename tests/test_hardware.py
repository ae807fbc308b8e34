import ctypes
import os
import subprocess
import sys

import pytest
import torch
from torch import Generator, nn

from companion.datasets import ImageSet
from robust_features import hardware
from robust_features.attacks import NIFGSM, PGD, CarliniWagner
from robust_features.evaluation import attack_all, crafted_in
from robust_features.hardware import Hardware, HardwareSettings, choose
from robust_features.networks import VGG16, Victim, build

pytestmark = pytest.mark.numeric
GLIBC = sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt")
CPU = torch.device("cpu")
BF16 = Hardware(CPU, "bf16")


# In a process of its own, whose heap no other test has used before
FAULTS = """
import resource, torch
from robust_features.hardware import HardwareSettings, choose
choose(HardwareSettings(device="cpu"))
torch.ones(1 << 24)  # 64 MiB, which malloc by itself gives back: each page is a fault again
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(1 << 24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not GLIBC, reason="only glibc's malloc is told to keep memory")
def test_memory_that_tensors_free_is_used_again_without_asking_the_system_for_it():
    import resource

    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    pages = 20 * (1 << 26) // resource.getpagesize()  # malloc by itself faults on every one
    assert int(done.stdout) < pages // 2


@pytest.mark.parametrize("told, expected", [("1", 1), ("7", 7)])
def test_a_process_uses_as_many_cores_as_it_is_told_to(monkeypatch, told, expected):
    monkeypatch.setenv("OMP_NUM_THREADS", told)
    assert hardware.cores() == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to cores")
@pytest.mark.parametrize("told", ["", "0", "4,2"])
def test_a_process_that_is_told_nothing_uses_the_cores_that_the_system_gives_it(monkeypatch, told):
    monkeypatch.setenv("OMP_NUM_THREADS", told)
    own = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(own)})
        assert hardware.cores() == 1
    finally:
        os.sched_setaffinity(0, own)


@pytest.mark.parametrize("limit, units, expected", [("", True, "bf16"), ("AVX2", True, "fp32"), ("", False, "fp32"),
                                                    ("avx512_core_amx", True, "bf16")])  # fmt: skip
def test_a_cpu_takes_bfloat16_by_itself_if_it_has_matrix_units_that_may_be_used(monkeypatch, limit, units, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True, "amx_bf16": units})
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if limit:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    vgg = build(VGG16(width=1 / 16), 10, seed=0)
    assert choose(HardwareSettings(device="cpu")).precision_of(vgg) == expected
    assert choose(HardwareSettings(device="cpu", precision="fp32")).precision_of(vgg) == "fp32"


def test_depthwise_convolutions_stay_in_float32_unless_told(monkeypatch):
    monkeypatch.setattr(hardware, "_matrix_units", lambda: True)
    mobile = build(Victim(kind="mobilenet-v2", width=0.25), 10, seed=0)
    assert Hardware(CPU, "auto").precision_of(mobile) == "fp32" and BF16.precision_of(mobile) == "bf16"


def test_an_attack_that_decides_by_outputs_is_crafted_in_float32():
    step = dict(epsilon=0.1, step_size=0.1)
    followers = PGD(**step), PGD(**step, targeted=True), NIFGSM(**step)
    deciders = PGD(**step, until="fooled"), PGD(**step, restarts=2), CarliniWagner()
    assert {crafted_in(attack, nn.Flatten(), BF16) for attack in followers} == {"bf16"}
    assert {crafted_in(attack, nn.Flatten(), BF16) for attack in deciders} == {"fp32"}


class Watched(nn.Flatten):
    """Notes whether it ran under autocast, and says of an image which pixel is the brightest."""

    seen: list[tuple[bool, bool]] = []

    def forward(self, images):
        self.seen.append((torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
        return super().forward(images)


def test_an_attack_in_bfloat16_returns_float32_images_that_are_judged_in_float32():
    draw, network = Generator().manual_seed(0), Watched()
    pixels = torch.randint(256, (4, 3, 2, 2), dtype=torch.uint8, generator=draw)
    images = ImageSet(pixels, torch.arange(4), tuple("abcdefghijkl"), "noise")
    network.seen.clear()
    found = attack_all(PGD(epsilon=0.1, step_size=0.1, steps=1), network, images, hardware=BF16, seed=0, images_kept=4)
    assert network.seen == [(True, True), (False, False)], "of the step, and of the prediction"
    assert found.images.dtype == found.linf.dtype == torch.float32
    assert torch.equal(found.predictions, found.images.flatten(1).argmax(1))


def test_long_work_says_how_much_is_left_and_short_work_nothing(monkeypatch):
    clock, lines = iter(range(0, 1000, 20)), []
    monkeypatch.setattr("robust_features.hardware.time.perf_counter", lambda: next(clock))
    starts = [0, 10, 20, 30]
    assert hardware.side_by_side(lambda start: start, starts, torch.device("meta"), report=lines.append) == starts
    assert lines == ["2 of 4 batches, 40 s left"], "at 20 s each: not after the first, nor at the end"
