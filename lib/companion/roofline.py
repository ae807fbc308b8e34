"""How long a GPU that is not at hand would take: counted from a network's operations.

A call of a network on a batch takes the longer of two times: the device's, for its arithmetic and for the memory that
it reads and writes, and the host's, to launch its operations one after the other; recorded operations are launched at
once. What narrow and depthwise layers lack in arithmetic they spend on memory, so that their low rates need no number
of their own.

Compared with one H200, on random images of 32 pixels: PGD-10 training of a VGG-16 took 14.0 ms a batch of 128 (counted:
13.3) and 22 ms a batch of 256 (26.5); with the attack alone recorded, of a WRN-28-10 113 ms a batch of 128 (192), and
PGD-3 training of a ResNet-18 10 ms (10.5).
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from robust_features.hardware import Precision
from robust_features.networks import NetworkSettings, build, folded

Kind = Literal["training", "attack", "forward", "head"]

# One H100 SXM, by its data sheet: 989 dense TFLOP/s in bf16, half of it in TF32, in which convolutions of float32 run;
# 3.35 TB/s. A quarter of the former and half of the latter are taken for reached: images of 32 pixels come in batches
# of 100 to 250.
SHARE = 0.25
RATE = {"bf16": SHARE * 989e12, "fp32": SHARE * 495e12}  # FLOP/s
BANDWIDTH = 0.5 * 3.35e12  # bytes/s
BYTES = {"bf16": 2, "fp32": 4}  # of a number
# Seconds of the host an operation, with its layer's call in Python, casts of its weights and its node for autograd:
# what a batch took on the H200's host while nothing was recorded, 37 µs an operation of PGD-10 training and 47 µs of
# standard training.
LAUNCH = 40e-6

# Operations of a step beside those of the network, counted by a dispatch mode on narrow networks: augmentation,
# optimiser and schedule; two or three layers' or all layers' HSIC; what an attack does with its gradient; noise and
# Adam of a distillation.
BESIDE = {
    "training": 50,
    "regularised": 250,
    "pgd": 30,
    "nifgsm": 30,
    "apgd": 50,
    "fab": 140,
    "square": 95,
    "carlini-wagner": 35,
    "feature-gradient": 75,
    "adaptive": 230,
    "robustified": 120,
    "relabelled": 30,
    "null": 30,
    "distilled": 100,
}

START = 8.0  # seconds until a stage's kernel has imported torch and has a device
READING = 20.0  # seconds to read a dataset, on its CPU; CIFAR-10 took 16
SECTIONS = 80.0  # seconds for a paper's pages side by side; Kim et al.'s took 78, the embeddings longest

CLASSES, BATCH = 10, 100  # of the batch that is counted


@dataclass(frozen=True)
class Cost:
    """Of a call of a network on a batch: FLOP and numbers read and written an image, and operations the whole batch."""

    flops: float
    numbers: float
    operations: int


class _Counter(TorchDispatchMode):
    """Operations that compute or move anything, and the numbers that they read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.operations, self.numbers = 0, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if not function.is_view:
            self.operations += 1
            touched = [each for each in tree_leaves([args, kwargs, result]) if isinstance(each, Tensor)]
            self.numbers += sum(each.numel() for each in touched)
        return result


def cost(network: NetworkSettings, size: int, kind: Kind) -> Cost:
    """Of images of `size` pixels: `training` forward and back to the weights, `attack` folded and back to the images,
    `forward` folded without gradients, `head` f_l+ forward and back to the features. Nothing is computed: tensors have
    shapes only.
    """
    built = build(network, CLASSES, seed=0)
    run: nn.Module = (built.train() if kind == "training" else folded(built.eval())).to("meta")
    images = torch.empty(BATCH, 3, size, size, device="meta")
    labels = torch.empty(BATCH, dtype=torch.int64, device="meta")
    given = run.features(images).detach() if kind == "head" else images
    with FlopCounterMode(display=False) as counted, _Counter() as counter, torch.set_grad_enabled(kind != "forward"):
        if kind in ("attack", "head"):
            given.requires_grad_()
        loss = F.cross_entropy(run.head(given) if kind == "head" else run(given), labels)
        if kind != "forward":
            loss.backward()
    return Cost(counted.get_total_flops() / BATCH, counter.numbers / BATCH, counter.operations)


def seconds(of: Cost, images: float, calls: float, does: str, precision: Precision, *, recorded: bool = False) -> float:
    """Of one H100, for so many images in so many calls, each with something beside the network, an entry of BESIDE.

    `recorded`: of a step of training only that something is launched one by one, and of an attack in it, nothing.

    >>> nothing_but_launches = Cost(flops=0, numbers=0, operations=70)
    >>> seconds(nothing_but_launches, images=1e6, calls=1000, does="pgd", precision="bf16")
    4.0
    """
    device = images * (of.flops / RATE[precision] + of.numbers * BYTES[precision] / BANDWIDTH)
    launched = of.operations + BESIDE[does]
    if recorded:
        launched = BESIDE[does] if does == "training" else 0
    return max(device, math.ceil(calls) * launched * LAUNCH)
