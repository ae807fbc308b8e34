"""Residual networks for small images: ResNet-18 (He et al. 2016a) and pre-activation ResNet v2 (He et al. 2016b)."""

from typing import Annotated, Literal

from pydantic import AfterValidator
from torch import Tensor, nn

from robust_features.networks.network import GlobalAverage, Network, Normalize
from robust_features.settings import Depth, Deviation, Share, Width, settings


@settings
class ResNet18:
    """Eight basic blocks behind a 3×3 stem (Xu et al. 2022); `width` scales the 64 channels of the first blocks."""

    kind: Literal["resnet18"] = "resnet18"
    width: Width = 1.0
    mean: Share = 0.5
    std: Deviation = 0.25

    def build(self, classes: int) -> Network:
        """The untrained network for (N, 3, H, W), split at the last block's output: no batch norm stands alone here."""
        channels = max(4, round(64 * self.width))
        stages: dict[str, nn.Module] = {
            "normalize": Normalize(self.mean, self.std),
            "stem": nn.Sequential(*_convolution(3, channels, 3), nn.ReLU()),
        }
        for number in range(1, 9):
            first_of_later_group = number in (3, 5, 7)
            outputs = channels * 2 if first_of_later_group else channels
            stages[f"block{number}"] = BasicBlock(channels, outputs, stride=2 if first_of_later_group else 1)
            channels = outputs
        stages |= {"pool": GlobalAverage(), "logits": nn.Linear(channels, classes)}
        hidden = ("stem", *(f"block{number}" for number in range(1, 9)), "pool")
        return Network(stages, split="block8", full_channels=512, representation="pool", hidden=hidden)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with batch norm, added to the input (1×1 and batch norm where shapes differ), then ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.residual = nn.Sequential(
            *_convolution(inputs, outputs, 3, stride), nn.ReLU(), *_convolution(outputs, outputs, 3)
        )
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Sequential(*_convolution(inputs, outputs, 1, stride))
        self.activate = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.activate(self.residual(x) + self.shortcut(x))


def _nine_n_plus_two(depth: int) -> int:
    if depth < 11 or (depth - 2) % 9:
        raise ValueError(f"the depth of a ResNet v2 is 9n + 2 (11, 20, 29, 38, 47, 56, …), found {depth}")
    return depth


@settings
class ResNetV2:
    """Pre-activation bottlenecks in three groups, as in Keras' CIFAR example: ResNet-56 v2 of Springer et al. 2021."""

    kind: Literal["resnet-v2"] = "resnet-v2"
    depth: Annotated[Depth, AfterValidator(_nine_n_plus_two)] = 56
    width: Width = 1.0
    mean: Share = 0.5
    std: Deviation = 0.25

    def build(self, classes: int) -> Network:
        """The untrained network, for (N, 3, H, W). The split is the output of the final batch norm, before its ReLU."""
        inner = channels = max(4, round(16 * self.width))
        stages: dict[str, nn.Module] = {
            "normalize": Normalize(self.mean, self.std),
            "stem": nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU()),
        }
        for number in range(1, 4):
            outputs = inner * 4 if number == 1 else channels * 2
            blocks: list[nn.Module] = []
            for position in range((self.depth - 2) // 9):
                stride = 2 if number > 1 and position == 0 else 1
                activated = number == 1 and position == 0  # by the stem
                blocks.append(BottleneckBlock(channels, inner, outputs, stride, activated))
                channels = outputs
            stages[f"block{number}"] = nn.Sequential(*blocks)
            inner = outputs
        stages |= {"norm": nn.BatchNorm2d(channels), "relu": nn.ReLU(), "pool": GlobalAverage()}
        stages["logits"] = nn.Linear(channels, classes)
        return Network(
            stages,
            split="norm",
            full_channels=256,
            representation="pool",
            hidden=("block1", "block2", "block3", "pool"),
        )


class BottleneckBlock(nn.Module):
    """BN-ReLU-1×1, BN-ReLU-3×3, BN-ReLU-1×1, added to the input; the first block's input is activated already."""

    def __init__(self, inputs: int, inner: int, outputs: int, stride: int, activated: bool):
        super().__init__()
        self.residual = nn.Sequential(
            *([] if activated else [nn.BatchNorm2d(inputs), nn.ReLU()]),
            nn.Conv2d(inputs, inner, 1, stride),
            *(nn.BatchNorm2d(inner), nn.ReLU(), nn.Conv2d(inner, inner, 3, padding=1)),
            *(nn.BatchNorm2d(inner), nn.ReLU(), nn.Conv2d(inner, outputs, 1)),
        )
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.residual(x) + self.shortcut(x)


def _convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False), nn.BatchNorm2d(outputs)]
