import ctypes
import sys

import pytest
import torch

from robust_features.hardware import HardwareSettings, choose

GLIBC = sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt")


@pytest.mark.skipif(not GLIBC, reason="only glibc's malloc is told to keep memory")
def test_memory_that_tensors_free_is_used_again_without_asking_the_system_for_it():
    import resource

    choose(HardwareSettings(device="cpu"))
    torch.ones(1 << 22)  # 16 MiB: 4,096 pages, each a fault where it is given back
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(1 << 22)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 3 * 4_096
