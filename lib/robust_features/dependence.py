"""How much sets of variables depend on each other: the Hilbert-Schmidt Independence Criterion (Gretton et al. 2005)."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from robust_features.hardware import side_by_side
from robust_features.settings import Positive, settings

CHANNELS = 32  # whose kernels are made at once: they fit into a CPU's cache
Bandwidth = Positive | Literal["median"]


def gaussian_kernel(x: Tensor, bandwidth: Bandwidth = 5.0) -> Tensor:
    """(…, N, d) → (…, N, N): exp(−‖a − b‖² / (2 σ² d)) for a bandwidth σ, or with the median distance as σ² d.

    float32 whatever the network computes in; dividing by d lets one σ serve layers of any size (Wang et al. 2021).
    """
    distances = linear_kernel(x)  # computed in place below: fresh memory costs more than the arithmetic
    squares = distances.diagonal(dim1=-2, dim2=-1).clone()
    distances.mul_(-2).add_(squares[..., :, None]).add_(squares[..., None, :]).clamp_min_(0)
    if bandwidth != "median":
        return distances.mul_(-0.5 / (bandwidth**2 * x.shape[-1])).exp_()
    count = _count(distances, 2)
    pairs = distances.detach()[..., *torch.triu_indices(count, count, 1, device=x.device)]
    return (-distances / (2 * pairs.median(-1).values.clamp_min(1e-12)[..., None, None])).exp()


def linear_kernel(x: Tensor) -> Tensor:
    """(…, N, d) → (…, N, N): inner products, in float32 or better."""
    x = x if x.dtype == torch.float64 else x.float()
    with torch.autocast(x.device.type, enabled=False):
        return x @ x.mT


def hsic(first: Tensor, second: Tensor) -> Tensor:
    """(…,) tr(K H L H) / (N − 1)² of (…, N, N) kernels, H = I − 1/N (Gretton et al. 2005, Def. 2): biased, ≥ 0."""
    return (centred(first) * second).sum((-2, -1)) / (_count(first, 2) - 1) ** 2


def unbiased_hsic(first: Tensor, second: Tensor) -> Tensor:
    """(…,) the estimate whose expectation is 0 under independence (Song et al. 2012, Eq. 5); needs four images."""
    n = _count(first, 4)
    first, second = (kernel - torch.diag_embed(kernel.diagonal(dim1=-2, dim2=-1)) for kernel in (first, second))
    rows, columns = first.sum(-1), second.sum(-1)
    crossed = (rows * columns).sum(-1) / (n - 2)
    whole = rows.sum(-1) * columns.sum(-1) / ((n - 1) * (n - 2))
    return ((first * second).sum((-2, -1)) + whole - 2 * crossed) / (n * (n - 3))


def normalised_hsic(first: Tensor, second: Tensor, epsilon: float = 1e-5) -> Tensor:
    """(…,) tr(R_K R_L) of the kernels' hat matrices: 0 to N − 1 (Fukumizu et al. 2007; Ma et al. 2020).

    Kernels of several layers or channels may be stacked in front; the other's R is then computed once.
    """
    _count(first, 2)
    return torch.einsum("...ij,...ji->...", hat_matrix(first, epsilon), hat_matrix(second, epsilon))


def hat_matrix(kernel: Tensor, epsilon: float = 1e-5) -> Tensor:
    """(…, N, N) R = K_c (K_c + ρ I)⁻¹ of the centred kernel, ρ = ε N: every eigenvalue λ becomes λ / (λ + ρ).

    Computed as I − ρ (K_c + ρ I)⁻¹ by a Cholesky factor, half the work of a solve; NaN where that fails.
    """
    shifted, ridge = centred(kernel), epsilon * kernel.shape[-1]
    shifted.diagonal(dim1=-2, dim2=-1).add_(ridge)
    factor, failed = torch.linalg.cholesky_ex(shifted, upper=True)  # unlike cholesky it does not wait for the device
    scale = torch.full_like(shifted[..., :1, :1], ridge).where(failed[..., None, None] == 0, torch.nan)
    one = torch.eye(kernel.shape[-1], dtype=kernel.dtype, device=kernel.device)
    return torch.addcmul(one, scale, torch.cholesky_inverse(factor, upper=True).mT, value=-1)


def centred(kernel: Tensor) -> Tensor:
    """(…, N, N) H K H of a symmetric kernel, H = I − 1/N: its rows and columns without their means."""
    means = kernel.mean(-1)
    rows = kernel - means[..., :, None]
    return rows.sub_((means - means.mean(-1, keepdim=True))[..., None, :])


@settings
class HSIC:
    """The dependence of two batches: an estimator, and the bandwidth of the Gaussian kernels it is given.

    Xu et al. 2022 use the normalised one with σ = 5 for images and features, and a linear kernel of one-hot labels.
    """

    estimator: Literal["normalised", "biased", "unbiased"] = "normalised"
    bandwidth: Bandwidth = 5.0
    epsilon: Positive = 1e-5  # of the normalised estimator
    labels: Literal["linear", "gaussian"] = "linear"  # kernel of the one-hot labels

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        """(…,) from (…, N, N) kernels. Raises ValueError for too few images."""
        if self.estimator == "normalised":
            return normalised_hsic(first, second, self.epsilon)
        return {"biased": hsic, "unbiased": unbiased_hsic}[self.estimator](first, second)

    def problem(self, count: int, key: str) -> str:
        """What is wrong with batches of `count` images, set by the setting `key`; empty if nothing."""
        least = 4 if self.estimator == "unbiased" else 2
        short = f"hsic.estimator: {self.estimator} needs batches of {least} images or more, {key} is {count}"
        return short if count < least else ""

    def of_features(self, x: Tensor) -> Tensor:
        """(N, N) kernel of images or of a layer's outputs, (N, …)."""
        return gaussian_kernel(x.flatten(1), self.bandwidth)

    def of_channels(self, x: Tensor) -> Tensor:
        """(C, N, N): one kernel per channel of (N, C, …) features."""
        return gaussian_kernel(x.flatten(2).transpose(0, 1), self.bandwidth)

    def by_channel(self, features: Tensor, kernels: Tensor) -> Tensor:
        """(R, C) dependence of every channel of (N, C, …) features on each of (R, N, N) kernels; without gradients."""

        def some(start: int) -> Tensor:
            with torch.no_grad():  # which every thread must set for itself
                return self(self.of_channels(features[:, start : start + CHANNELS]), kernels[:, None])

        return torch.cat(side_by_side(some, range(0, features.shape[1], CHANNELS), features.device), 1)

    def of_labels(self, labels: Tensor, classes: int) -> Tensor:
        """(N, N) kernel of (N,) class indices."""
        one_hot = F.one_hot(labels, classes).float()
        return linear_kernel(one_hot) if self.labels == "linear" else gaussian_kernel(one_hot, self.bandwidth)


def _count(kernel: Tensor, least: int) -> int:
    if kernel.shape[-1] < least:
        raise ValueError(f"this estimate of dependence needs at least {least} images, found {kernel.shape[-1]}")
    return kernel.shape[-1]
