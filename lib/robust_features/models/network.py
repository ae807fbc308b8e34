"""A network is a chain of named stages: its features and its head are slices of one list."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval


class Normalize(nn.Module):
    """(x − mean) / std with one scalar each: networks normalise their own inputs, so that attacks act on pixels in [0, 1]."""

    def __init__(self, mean: float, std: float):
        super().__init__()
        self.mean, self.std = mean, std

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


class ChannelMask(nn.Module):
    """Channels times 0 or 1 (Xu et al. 2022, Eq. 3); kept with the weights, so that every attack sees it."""

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("keep", torch.ones(channels))

    def forward(self, features: Tensor) -> Tensor:
        return features * self.keep.view(-1, *[1] * (features.ndim - 2))


class Encoding(nn.Module):
    """A Gaussian of `units` independent variables: (N, d) → (N, 2, units), means and standard deviations (Alemi et al. 2017)."""

    def __init__(self, inputs: int, units: int):
        super().__init__()
        self.statistics = nn.Linear(inputs, 2 * units)

    def forward(self, features: Tensor) -> Tensor:
        mean, rho = self.statistics(features).chunk(2, dim=1)
        return torch.stack([mean, F.softplus(rho - 5)], dim=1)


class Sample(nn.Module):
    """A draw of an encoding's variables in training, from the global generator like dropout; their means in eval mode."""

    def forward(self, encoding: Tensor) -> Tensor:
        mean, deviation = encoding.unbind(1)
        return mean + deviation * torch.randn_like(mean) if self.training else mean


class Network(nn.Module):
    """Named stages applied in order: (N, 3, H, W) in [0, 1] → (N, classes) logits.

    `split` names the stage whose output is Z = f_l(X) (Kim et al. 2021, Sec. 2): the last convolution before its ReLU.
    `full_channels` is the number of channels of Z in the published architecture, by which narrower versions are measured.
    `representation` names the penultimate stage, rep(x) of Springer et al. 2021; `hidden` the T_l of Xu et al. 2022, Eq. 1.
    Nothing works in place, so features may be kept. A trunk that branches fits as one stage; a branching head does not.

    One's own chain needs no more than its stages, in order, and which of them is the split:

    >>> mine = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    >>> network, images = Network(dict(mine.named_children()), split="0"), torch.rand(2, 3, 8, 8)
    >>> torch.equal(network.head(network.features(images)), mine(images)), network.representation
    (True, '2')
    """

    def __init__(
        self,
        stages: dict[str, nn.Module],
        *,
        split: str,
        full_channels: int | None = None,
        representation: str | None = None,
        hidden: tuple[str, ...] | None = None,
    ):
        super().__init__()
        self.stages = nn.ModuleDict(stages)
        self.split, self.full_channels = split, full_channels
        self.representation = representation or [*stages][-2]
        self.hidden = tuple(stages)[:-1] if hidden is None else hidden
        for name in (split, self.representation, *self.hidden):
            self._check(name)
        for module in self.modules():
            if getattr(module, "inplace", False):
                module.inplace = False

    def forward(self, images: Tensor) -> Tensor:
        for stage in self.stages.values():
            images = stage(images)
        return images

    @property
    def mask(self) -> ChannelMask:
        """The channel mask behind the split. Raises ValueError if this network has none."""
        for module in self.stages[self.split].modules():
            if isinstance(module, ChannelMask):
                return module
        raise ValueError("the network has no channel mask; build it with masked=True")

    def features(self, images: Tensor, at: str | None = None) -> Tensor:
        """f_l: the output of stage `at`, by default `split`."""
        at = self._check(at or self.split)
        for name, stage in self.stages.items():
            images = stage(images)
            if name == at:
                break
        return images

    def head(self, features: Tensor, at: str | None = None) -> Tensor:
        """f_l+: the logits that follow from the output of stage `at`, by default `split`."""
        names = list(self.stages)
        for name in names[names.index(self._check(at or self.split)) + 1 :]:
            features = self.stages[name](features)
        return features

    def activations(self, images: Tensor) -> dict[str, Tensor]:
        """The output of every stage by name, from one pass."""
        outputs = {}
        for name, stage in self.stages.items():
            outputs[name] = images = stage(images)
        return outputs

    def _check(self, name: str) -> str:
        if name not in self.stages:
            raise ValueError(f"the network has no stage {name!r}; it has {', '.join(self.stages)}")
        return name


def initialise(network: nn.Module) -> None:
    """He's initialisation (fan out) of convolutions, N(0, 0.01) for linear layers, as in the papers' code."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def pooled() -> nn.Sequential:
    """Global average over positions: (N, C, h, w) → (N, C)."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Eval mode and no parameter gradients, as attacks and distillation need; both are restored afterwards.

    >>> layer = nn.Linear(2, 2)
    >>> with frozen(layer):
    ...     layer.training, layer.weight.requires_grad
    (False, False)
    >>> layer.training, layer.weight.requires_grad
    (True, True)
    """
    training = network.training
    wanted = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    network.eval().requires_grad_(False)
    try:
        yield
    finally:
        network.train(training)
        for parameter, requires_grad in wanted:
            parameter.requires_grad_(requires_grad)


def folded(network: nn.Module) -> nn.Module:
    """A copy for eval mode in which every batch norm behind a convolution is part of it, and inner ReLUs work in place.

    The same function, up to rounding, with less memory to move: what an attack calls hundreds of times.

    >>> layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    >>> folded(layers)
    Sequential(
      (0): Conv2d(3, 4, kernel_size=(3, 3), stride=(1, 1))
      (1): ReLU(inplace=True)
    )
    """
    network = copy.deepcopy(network).eval().requires_grad_(False)
    for parent in list(network.modules()):
        if isinstance(parent, nn.Sequential):
            _fold(parent)
    return network


def _fold(layers: nn.Sequential) -> None:
    kept: list[nn.Module] = []
    for layer in layers:
        if isinstance(layer, nn.BatchNorm2d) and kept and isinstance(kept[-1], nn.Conv2d):
            kept[-1] = fuse_conv_bn_eval(kept[-1], layer)
        elif isinstance(layer, nn.ReLU) and kept:  # not a stage's first: its input may be kept as features
            kept.append(nn.ReLU(inplace=True))
        else:
            kept.append(layer)
    del layers[:]
    layers.extend(kept)
