"""The architectures. A new one needs a settings class with `build`, and a place in `NetworkSettings`."""

from fractions import Fraction
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from robust_features.networks.folding import COMPARED, folded
from robust_features.networks.network import (
    ChannelMask,
    Network,
    Normalize,
    check_channels,
    frozen,
    initialise,
    logits_of,
)
from robust_features.networks.resnet import ResNet18, ResNetV2
from robust_features.networks.vgg import VGG16
from robust_features.networks.victims import Victim
from robust_features.networks.wide_resnet import WideResNet

NetworkSettings = Annotated[VGG16 | WideResNet | ResNet18 | ResNetV2 | Victim, Field(discriminator="kind")]


NAMES = {"vgg16": "VGG-16", "resnet18": "ResNet-18", "resnet50": "ResNet-50", "densenet121": "DenseNet-121"}
NAMES |= {"googlenet": "GoogLeNet", "mobilenet-v2": "MobileNetV2", "shufflenet-v2": "ShuffleNet v2"}


def label(settings: NetworkSettings) -> str:
    """The name of a network with these settings.

    >>> label(VGG16(width=1 / 8)), label(WideResNet(depth=10, width=1)), label(ResNetV2(depth=20))
    ('VGG-16, width 1/8', 'WRN-10-1', 'ResNet-20 v2')
    """
    match settings:
        case WideResNet():
            return f"WRN-{settings.depth}-{settings.width:g}"
        case ResNetV2():
            name = f"ResNet-{settings.depth} v2"
        case _:
            name = NAMES[settings.kind]
    return name if settings.width == 1 else f"{name}, width {Fraction(settings.width).limit_denominator(64)}"


def build(settings: NetworkSettings, classes: int, *, seed: int, masked: bool = False) -> Network:
    """The network with its initial weights, which depend on `seed` alone; `masked`: a channel mask behind its split.

    >>> network = build(VGG16(width=1 / 16), 10, seed=0)
    >>> network(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    >>> network.features(torch.zeros(2, 3, 32, 32)).shape, network.split
    (torch.Size([2, 32, 2, 2]), 'conv')
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = settings.build(classes)
        initialise(network)
    if masked:
        with frozen(network), torch.no_grad():
            channels = network.features(torch.zeros(1, 3, 32, 32)).shape[1]
        network.stages[network.split] = nn.Sequential(network.stages[network.split], ChannelMask(channels))
    return network


__all__ = [
    "COMPARED",
    "VGG16",
    "Network",
    "NetworkSettings",
    "Normalize",
    "ResNet18",
    "ResNetV2",
    "Victim",
    "WideResNet",
    "build",
    "check_channels",
    "folded",
    "frozen",
    "label",
    "logits_of",
]
