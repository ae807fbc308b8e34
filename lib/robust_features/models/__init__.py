"""The architectures. A new one: a settings class with `build`, and its place in `NetworkSettings`."""

from typing import Annotated

import torch
from pydantic import Field

from robust_features.models.network import Network, folded, frozen, initialise
from robust_features.models.resnet import ResNet18, ResNetV2
from robust_features.models.vgg import VGG16
from robust_features.models.wide_resnet import WideResNet

NetworkSettings = Annotated[VGG16 | WideResNet | ResNet18 | ResNetV2, Field(discriminator="kind")]


def build(settings: NetworkSettings, classes: int, *, seed: int) -> Network:
    """The network with its first weights, which depend on `seed` alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = settings.build(classes)
        initialise(network)
    return network


__all__ = ["VGG16", "Network", "NetworkSettings", "ResNet18", "ResNetV2", "WideResNet", "build", "folded", "frozen"]
