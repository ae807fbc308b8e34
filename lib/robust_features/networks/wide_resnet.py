"""Wide residual networks (Zagoruyko and Komodakis 2016)."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from torch import Tensor, nn

from robust_features.networks.network import GlobalAverage, Network, Normalize
from robust_features.settings import Depth, Deviation, Share, Width, settings


def _six_n_plus_four(depth: int) -> int:
    if depth < 10 or (depth - 4) % 6:
        raise ValueError(f"the depth of a wide ResNet is 6n + 4 (10, 16, 22, 28, …), found {depth}")
    return depth


@settings
class WideResNet:
    """Pre-activation residual blocks in three groups; depth 28, width 10, dropout 0.3 is the papers' WRN-28-10.

    The split `norm` is the output of the final batch norm, before its ReLU.
    """

    kind: Literal["wide-resnet"] = "wide-resnet"
    depth: Annotated[Depth, AfterValidator(_six_n_plus_four)] = 28
    width: Width = 10
    dropout: Annotated[Share, Field(lt=1)] = 0.3
    mean: Share = 0.5
    std: Deviation = 0.25

    def build(self, classes: int) -> Network:
        """The untrained network, for (N, 3, H, W)."""
        stages: dict[str, nn.Module] = {
            "normalize": Normalize(self.mean, self.std),
            "stem": nn.Conv2d(3, 16, 3, padding=1, bias=False),
        }
        channels = 16
        for number, (base, stride) in enumerate(((16, 1), (32, 2), (64, 2)), start=1):
            width = round(base * self.width)
            blocks = []
            for _ in range((self.depth - 4) // 6):
                blocks.append(Block(channels, width, stride, self.dropout))
                channels, stride = width, 1
            stages[f"block{number}"] = nn.Sequential(*blocks)
        stages |= {"norm": nn.BatchNorm2d(channels), "relu": nn.ReLU(), "pool": GlobalAverage()}
        stages["logits"] = nn.Linear(channels, classes)
        return Network(
            stages,
            split="norm",
            full_channels=640,
            representation="pool",
            hidden=("block1", "block2", "block3", "pool"),
        )


class Block(nn.Module):
    """BN, ReLU, 3×3, BN, ReLU, dropout, 3×3, added to the input; a 1×1 of the pre-activation where shapes differ."""

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float):
        super().__init__()
        self.activate = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU())
        self.residual = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        )
        same = stride == 1 and inputs == outputs
        self.shortcut = None if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = self.activate(x)
        return self.residual(activated) + (x if self.shortcut is None else self.shortcut(activated))
