"""A network is a chain of named stages: its features and its head are slices of one list."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class GlobalAverage(nn.Module):
    """(N, C, h, w) → (N, C): the mean over positions.

    It divides the sum, so no gradient of (N, C, h, w): `AdaptiveAvgPool2d` takes three to ten times as long on a CPU.
    """

    def forward(self, features: Tensor) -> Tensor:
        positions = features.shape[2] * features.shape[3]
        return features.flatten(1) if positions == 1 else features.sum((2, 3)) / positions


class Normalize(nn.Module):
    """(x − mean) / std with one scalar each: networks normalise their inputs, so attacks act on pixels in [0, 1]."""

    def __init__(self, mean: float, std: float):
        super().__init__()
        self.mean, self.std = mean, std

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


class ChannelMask(nn.Module):
    """Channels times 0 or 1 (Xu et al. 2022, Eq. 3); kept with the weights, so that every attack sees it."""

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("passing", torch.ones(channels))

    def forward(self, features: Tensor) -> Tensor:
        return features * self.passing.view(-1, *[1] * (features.ndim - 2))


class Encoding(nn.Module):
    """`units` independent Gaussians: (N, d) → (N, 2, units), means and standard deviations (Alemi et al. 2017)."""

    def __init__(self, inputs: int, units: int):
        super().__init__()
        self.statistics = nn.Linear(inputs, 2 * units)

    def forward(self, features: Tensor) -> Tensor:
        mean, rho = self.statistics(features).chunk(2, dim=1)
        return torch.stack([mean, F.softplus(rho - 5)], dim=1)


class Sample(nn.Module):
    """A draw of an encoding's variables in training, from the global generator like dropout; means in eval mode."""

    def forward(self, encoding: Tensor) -> Tensor:
        mean, deviation = encoding.unbind(1)
        return mean + deviation * torch.randn_like(mean) if self.training else mean


class Network(nn.Module):
    """Named stages applied in order: (N, 3, H, W) in [0, 1] → (N, classes) logits.

    `split` names the stage whose output is Z = f_l(X) (Kim et al. 2021, Sec. 2): the last convolution before its ReLU.
    `full_channels` is the number of channels of Z in the published architecture, by which narrower versions are
    measured. `representation` names the penultimate stage, rep(x) of Springer et al. 2021; `hidden` the T_l of Xu et
    al. 2022, Eq. 1. Layers' `inplace` is switched off, in the modules given, so features may be kept. A trunk that
    branches fits as one stage; a branching head does not. Raises ValueError for a chain without a head, and for a stage
    that is not there.

    One's own chain needs only its stages, in order, and the name of the split; `from_module` checks it:

    >>> mine = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    >>> images = torch.rand(2, 3, 8, 8)
    >>> network = Network.from_module(mine, split="0", example=images)
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
        if len(stages) < 2:
            raise ValueError(
                f"a network is a trunk and a head, two stages or more; found {[*stages]}: divide the module"
            )
        try:
            self.stages = nn.ModuleDict(stages)
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"stages are modules by name, such as {{'trunk': …, 'head': …}}: {error.args[0]}"
            ) from error
        self.split, self.full_channels = split, full_channels
        self.representation = representation or [*stages][-2]
        self.hidden = tuple(stages)[:-1] if hidden is None else hidden
        for name in (split, self.representation, *self.hidden):
            self._check(name)
        *earlier, last = stages
        if split == last:
            raise ValueError(
                f"no head follows the split {split!r}, the last stage; split at one of {', '.join(earlier)}"
            )
        for module in self.modules():
            if getattr(module, "inplace", False):
                module.inplace = False

    @classmethod
    def from_module(
        cls,
        module: nn.Module,
        *,
        split: str,
        example: Tensor,
        stages: dict[str, nn.Module] | None = None,
        **names: Any,
    ) -> "Network":
        """The chain of `stages`, by default the module's children, if in eval mode it computes what the module does.

        `example` is a few images, (N, 3, H, W) in [0, 1]; `names` are the arguments of `Network`. Raises ValueError if
        the outputs differ: what the module's forward does besides calling its children has to be a stage, too, such as
        Normalize, or torchvision.transforms.Normalize for one mean per channel.
        """
        children = {name: child for name, child in module._modules.items() if child is not None}  # a shared one twice
        example = example.to(next(module.parameters(), example).device)
        in_place = [layer for layer in module.modules() if getattr(layer, "inplace", False)]
        wanted = _logits(module, example.contiguous())
        network = cls(children if stages is None else stages, split=split, **names)
        try:  # channels last in memory, as attacks give images: a view of those fails where a reshape does not
            different = apart(wanted, _logits(network, example.contiguous(memory_format=torch.channels_last)))
            problem = "" if different <= rounding(example) else f"their logits differ by {different:.2g} of their norm"
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        if problem:
            for layer in in_place:
                layer.inplace = True
            chain = " → ".join(network.stages)
            raise ValueError(
                f"the chain {chain} does not compute what the module does ({problem}). What its forward does besides"
                " calling these has to be a stage in its place: pass `stages` with, for example, Normalize(mean, std),"
                " nn.ReLU() or nn.Flatten() among them"
            )
        return network

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
    modes = [(module, module.training) for module in network.modules()]
    wanted = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    network.eval().requires_grad_(False)
    try:
        yield
    finally:
        for module, training in modes:  # one by one: batch norms may be in eval mode in a network that trains
            module.training = training
        for parameter, requires_grad in wanted:
            parameter.requires_grad_(requires_grad)


def logits_of(activations: dict[str, Tensor]) -> Tensor:
    """(N, classes): the last stage's output, whatever that is called in a network of one's own."""
    return activations[next(reversed(activations))]


def check_channels(features: Tensor) -> None:
    """Raises ValueError if features are not (N, C, h, w), such as tokens, (N, T, D), or pooled ones, (N, C)."""
    if features.ndim != 4:
        raise ValueError(
            f"features of shape {tuple(features.shape)} are no (N, C, h, w); split the network where there are channels"
            " and positions, or let the stage give tokens this shape: tokens.transpose(1, 2).unflatten(2, (h, w))"
        )


def _logits(module: nn.Module, images: Tensor) -> Tensor:
    """Eval mode's (N, classes), with nothing taken from the global generator. Raises ValueError for any other shape."""
    with frozen(module), torch.no_grad(), torch.random.fork_rng([images.device] if images.is_cuda else []):
        logits = module(images)
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"a network returns logits, (N, classes), found {found}")
    return logits


def apart(one: Tensor, other: Tensor) -> float:
    """‖one − other‖ / ‖one‖ over all elements, where NaN equals NaN; inf if their shapes differ."""
    if one.shape != other.shape:
        return torch.inf
    one, other = one.float().nan_to_num(), other.float().nan_to_num()
    return (torch.linalg.vector_norm(one - other) / torch.linalg.vector_norm(one).clamp_min(1e-30)).item()


def rounding(images: Tensor) -> float:
    """How large `apart` may be for one function computed two ways on this device: GPUs convolve in TF32, of 10 bits."""
    return 1e-2 if images.is_cuda else 1e-4
