"""Other architectures, to which adversarial images are transferred (Springer et al. 2021, Sec. 5.2).

They are torchvision's, with stems for small images. Their first convolution has stride 1 and nothing is pooled behind
it: 32 pixels end as 4 × 4.

Springer et al. have DenseNet121, InceptionV3, MobileNetV2, VGG16, ResNet50V2 and Xception. VGG-16 and ResNet v2 are the
library's own. InceptionV3 needs 75 pixels: GoogLeNet's modules, which do not, stand in. torchvision has no Xception:
ShuffleNet v2, which has depthwise separable convolutions in two branches, stands in, beside MobileNetV2. ResNet-50 is
the network of Ilyas et al. 2019.
"""

from typing import Literal

from torch import nn

from robust_features.networks.network import GlobalAverage, Network, Normalize
from robust_features.settings import Deviation, Share, Width, settings

INCEPTION = (  # 1×1, 3×3 reduced, 3×3, 5×5 reduced, 5×5, pooled: Szegedy et al. 2015, Table 1; None: max-pool
    *((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64), None),
    *((192, 96, 208, 16, 48, 64), (160, 112, 224, 24, 64, 64), (128, 128, 256, 24, 64, 64)),
    *((112, 144, 288, 32, 64, 64), (256, 160, 320, 32, 128, 128), None),
    *((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
)


@settings
class Victim:
    """An architecture of torchvision for small images; `width` scales its channels and DenseNet's layers in a block."""

    kind: Literal["densenet121", "mobilenet-v2", "googlenet", "shufflenet-v2", "resnet50"]
    width: Width = 1.0
    mean: Share = 0.5
    std: Deviation = 0.25

    def build(self, classes: int) -> Network:
        """The untrained network, for (N, 3, H, W). The split is the trunk's output."""
        trunk, channels = {
            "densenet121": _densenet,
            "mobilenet-v2": _mobilenet,
            "googlenet": _googlenet,
            "shufflenet-v2": _shufflenet,
            "resnet50": _resnet50,
        }[self.kind](self.width)
        stages = {"normalize": Normalize(self.mean, self.std), "trunk": trunk, "pool": GlobalAverage()}
        stages["logits"] = nn.Linear(channels, classes)
        return Network(stages, split="trunk", full_channels=1024, representation="pool", hidden=("trunk", "pool"))


def _densenet(width: float) -> tuple[nn.Module, int]:
    from torchvision.models import DenseNet  # takes a second to import, and few networks need it

    growth = max(4, round(32 * width))
    network = DenseNet(growth, tuple(max(1, round(n * width)) for n in (6, 12, 24, 16)), 2 * growth)
    trunk, channels = network.features, network.classifier.in_features
    trunk.conv0, trunk.pool0 = nn.Conv2d(3, 2 * growth, 3, padding=1, bias=False), nn.Identity()
    return nn.Sequential(trunk, nn.ReLU()), channels


def _mobilenet(width: float) -> tuple[nn.Module, int]:
    from torchvision.models import MobileNetV2

    trunk = MobileNetV2(width_mult=width).features
    for convolution in (trunk[0][0], trunk[2].conv[1][0]):
        convolution.stride = (1, 1)
    return trunk, trunk[-1].out_channels


def _googlenet(width: float) -> tuple[nn.Module, int]:
    from torchvision.models.googlenet import BasicConv2d, Inception

    channels = max(8, round(192 * width))
    layers: list[nn.Module] = [BasicConv2d(3, channels, kernel_size=3, padding=1)]
    for widths in INCEPTION:
        if widths is None:
            layers.append(nn.MaxPool2d(3, 2, padding=1))
            continue
        one, three_in, three, five_in, five, pool = (max(2, round(n * width)) for n in widths)
        layers.append(Inception(channels, one, three_in, three, five_in, five, pool))
        channels = one + three + five + pool
    return nn.Sequential(*layers, nn.MaxPool2d(3, 2, padding=1)), channels


def _shufflenet(width: float) -> tuple[nn.Module, int]:
    from torchvision.models import ShuffleNetV2

    inner = [2 * max(4, round(n * width / 2)) for n in (24, 116, 232, 464)]
    channels = max(16, round(1024 * width))
    network = ShuffleNetV2([4, 8, 4], [*inner, channels])
    network.conv1[0].stride = (1, 1)
    return nn.Sequential(network.conv1, network.stage2, network.stage3, network.stage4, network.conv5), channels


def _resnet50(width: float) -> tuple[nn.Module, int]:
    from torchvision.models import ResNet
    from torchvision.models.resnet import Bottleneck

    network = ResNet(Bottleneck, [3, 4, 6, 3], width_per_group=max(8, round(64 * width)))
    stem = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1, bias=False), network.bn1, network.relu)
    return nn.Sequential(stem, network.layer1, network.layer2, network.layer3, network.layer4), network.fc.in_features
