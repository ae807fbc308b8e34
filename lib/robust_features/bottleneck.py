"""The Information Bottleneck (Kim et al. 2021, Sec. 2): how much noise a channel tolerates, and what follows for it."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from robust_features import inputs, noise
from robust_features.adam import RowAdam
from robust_features.hardware import Hardware
from robust_features.networks import Network, check_channels, frozen
from robust_features.settings import Count, NonNegative, Positive, settings

CHUNK = 4  # times the hardware's batch is distilled at once: a head has little to do; no result depends on it


@settings
class Bottleneck:
    """How σ is sought (Eq. 4) and judged (Eq. 5).

    The information term is the mean over channels, as the authors ran it. `beta` is stated for the published width: a
    network with fewer channels gets it scaled by C / full C, so that its weight per channel, and with it the balance
    against the cross-entropy, stays the same. `threshold: image` takes T over the channels of one image, as the paper
    writes; `batch` over all of each batch of `batch_size` images, as the authors' code does.
    """

    beta: NonNegative = 0.3
    steps: Count = 200
    learning_rate: Positive = 0.1
    threshold: Literal["image", "batch"] = "image"
    batch_size: Count = 100


@dataclass(frozen=True)
class Distillation:
    """The bottleneck's verdict on each channel of each image."""

    sigma: Tensor  # (N, C) noise variation σ
    variance: Tensor  # (N, C) feature variation σ_z²: variance of Z over its positions
    tolerance: Tensor  # (N,) T = max σ_z²

    @property
    def robust(self) -> Tensor:
        """(N, C) bool, the robust channel index i_r (Eq. 5)."""
        return self.sigma.square() > self.tolerance[:, None]

    def split(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(Z_r, Z_nr) of (N, C, h, w) features, adding up to Z."""
        robust = features * self.robust.to(features)[:, :, None, None]
        return robust, features - robust


@inputs.gradients()
def distil(
    network: Network,
    features: Tensor,
    labels: Tensor,
    settings: Bottleneck,
    *,
    hardware: Hardware,
    generator: Generator | Tensor,
    at: str | None = None,
) -> Distillation:
    """Find σ of (N, C, h, w) features at stage `at`, minimising CE of f_l+(Z + σ·ε) plus β times the information loss.

    Losses are summed over images, so that no image's σ depends on its batch. Raises ValueError for features of one
    position, which have no variance, for features that are not (N, C, h, w), and for what `inputs` refuses.

    >>> from robust_features.hardware import HardwareSettings, choose
    >>> from robust_features.networks import VGG16, build
    >>> network, images = build(VGG16(width=1 / 16), 10, seed=0), torch.rand(2, 3, 32, 32)
    >>> z, hardware = network.eval().features(images), choose(HardwareSettings(device="cpu"))
    >>> settings, draws = Bottleneck(steps=5), Generator().manual_seed(0)
    >>> found = distil(network, z, torch.tensor([3, 8]), settings, hardware=hardware, generator=draws)
    >>> found.sigma.shape, found.robust.dtype
    (torch.Size([2, 32]), torch.bool)
    >>> robust, nonrobust = found.split(z)
    >>> torch.equal(robust + nonrobust, z)
    True
    """
    check_channels(features)
    labels = inputs.classes(labels, features)
    if math.prod(features.shape[2:]) < 2:
        raise ValueError(
            f"features of shape {tuple(features.shape)} have one position a channel, hence no σ_z; use larger images"
        )
    if not len(features):
        none = features.new_zeros(features.shape[:2])
        return Distillation(none, none, none[:, 0])
    keys, device, parts = noise.image_keys(len(features), generator), hardware.device, []
    size = CHUNK * hardware.batch
    with frozen(network), torch.autocast(device.type, enabled=False):  # σ is float32, or float64 if Z is
        for z, y, k in zip(features.split(size), labels.split(size), keys.split(size), strict=True):
            z, y = inputs.numbers(network, z.to(device), "features"), y.to(device)
            inputs.logits(network.head(z, at), y)
            parts.append(noise_variation(network, z, y, settings, k.to(device), at, hardware=hardware))
    sigma, variance = (torch.cat(column).to(features) for column in zip(*parts, strict=True))
    tolerance = variance.amax(1)
    if settings.threshold == "batch":
        tolerance = torch.cat([batch.amax().expand(len(batch)) for batch in tolerance.split(settings.batch_size)])
    return Distillation(sigma, variance, tolerance)


def information_loss(variance: Tensor, sigma: Tensor) -> Tensor:
    """(N,) mean over channels of D_KL[N(z, σ_z²) ‖ N(z, σ²)], in nats (Eq. 4, the authors' mean for the paper's sum).

    >>> information_loss(variance=torch.tensor([[1.0, 4.0]]), sigma=torch.tensor([[1.0, 2.0]]))
    tensor([0.])
    """
    ratio = (variance + 1e-10) / (sigma.square() + 1e-10)
    return 0.5 * (ratio - ratio.log() - 1).mean(1)


def noise_variation(
    network: Network,
    z: Tensor,
    labels: Tensor,
    settings: Bottleneck,
    keys: Tensor,
    at: str | None = None,
    *,
    hardware: Hardware,
) -> tuple[Tensor, Tensor]:
    """σ and σ_z², each (n, C), of (n, C, h, w) features: Adam lowers Eq. 4 over ρ, where σ = softplus(ρ).

    The images' `keys` draw ε: one per channel and step, shared by all positions (Eq. 3; authors' code).
    """
    channels, variance = z.shape[1], z.flatten(2).var(2)
    beta = settings.beta * channels / (network.full_channels or channels)
    z = z.contiguous(memory_format=torch.channels_last)
    adam = RowAdam(torch.zeros_like(variance), settings.learning_rate)  # σ = ln 2 at first

    def gradient(rho: Tensor, draw: Tensor) -> Tensor:
        rho = rho.detach().requires_grad_()
        sigma = F.softplus(rho)
        epsilon = noise.normal(keys, (channels,), draw=draw)
        informative = z + (sigma * epsilon)[:, :, None, None]
        task = F.cross_entropy(network.head(informative, at), labels, reduction="none")
        loss = task + beta * information_loss(variance, sigma)
        return torch.autograd.grad(loss.sum(), rho)[0]

    gradient = hardware.recorded(gradient)
    for draw in torch.arange(settings.steps, device=z.device):
        adam.step(gradient(adam.value, draw))
    return F.softplus(adam.value), variance


def perturb(features: Tensor, sigma: Tensor, *, generator: Generator) -> Tensor:
    """Z + σ·ε (Eq. 3): (N, C, h, w) features with one draw per channel, of size (N, C) σ; zero where σ is masked."""
    keys = noise.image_keys(len(features), generator)
    return features + (sigma * noise.normal(keys, sigma.shape[1:]))[:, :, None, None]


def votes(network: Network, given: Tensor) -> Tensor:
    """(N, C): by how much the last layer's weight of each channel for the given class exceeds its mean over classes."""
    weights = [*network.stages.values()][-1].weight.detach().float().cpu()
    return (weights - weights.mean(0))[given]
