"""VGG-16 with batch normalisation (Simonyan and Zisserman 2015), as Kim et al. 2021 and Xu et al. 2022 use it."""

from typing import Annotated, Literal

from pydantic import BeforeValidator
from torch import nn

from robust_features.networks.network import Encoding, GlobalAverage, Network, Normalize, Sample
from robust_features.settings import Deviation, Share, Whole, Width, no_boolean, settings

BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


@settings
class VGG16:
    """Thirteen convolutions in five blocks, global average pooling, `hidden` fully connected layers, logits.

    hidden = 0 is Kim et al.'s head (one linear layer); hidden = 2 is Xu et al.'s (two of 4096 units, batch-normalised).
    `encoding` puts as many Gaussian variables before the logits (the baseline VIB).
    The split `conv` is the batch norm's output after the 13th convolution, before its ReLU.
    """

    kind: Literal["vgg16"] = "vgg16"
    width: Width = 1.0
    hidden: Annotated[Literal[0, 1, 2], BeforeValidator(no_boolean)] = 0
    encoding: Whole = 0
    mean: Share = 0.5
    std: Deviation = 0.25

    def build(self, classes: int) -> Network:
        """The untrained network, for (N, 3, H, W) with H, W ≥ 32."""
        stages: dict[str, nn.Module] = {"normalize": Normalize(self.mean, self.std)}
        channels = 3
        for number, block in enumerate(BLOCKS, start=1):
            layers: list[nn.Module] = []
            for width in (max(4, round(width * self.width)) for width in block):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
            if number < len(BLOCKS):
                stages[f"block{number}"] = nn.Sequential(*layers, nn.MaxPool2d(2))
            else:
                stages["conv"], stages["relu"] = nn.Sequential(*layers[:-1]), layers[-1]
                stages["block5"], stages["pool"] = nn.MaxPool2d(2), GlobalAverage()
        hidden = {}
        for number in range(1, self.hidden + 1):
            width = max(8, round(4096 * self.width))
            hidden[f"fc{number}"] = nn.Sequential(nn.Linear(channels, width), nn.BatchNorm1d(width), nn.ReLU())
            channels = width
        stages |= hidden
        if self.encoding:
            stages |= {"encoding": Encoding(channels, self.encoding), "sample": Sample()}
            channels = self.encoding
        stages["logits"] = nn.Linear(channels, classes)
        layers_of_xu = (*(f"block{number}" for number in range(1, 6)), *hidden)
        return Network(
            stages, split="conv", full_channels=512, representation=(["pool", *hidden])[-1], hidden=layers_of_xu
        )
