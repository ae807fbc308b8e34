"""What is added to any objective: information-bottleneck terms on its passes, and masks of channels (Xu et al. 2022).

A new one: a class with `problem` and `__call__(network, passes, images, labels) → scalar`, a place in `Regulariser`.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor
from torch.nn import functional as F

from robust_features.batches import as_float
from robust_features.dependence import HSIC
from robust_features.networks import Network, check_channels, frozen, logits_of
from robust_features.settings import Count, NonNegative, Pair, Share, nearest, settings

Fraction = Annotated[Share, Field(lt=1)]  # of the channels
Passes = tuple[dict[str, Tensor], ...]


@settings
class IBRAR:
    """α Σ_l I(X, T_l) − β Σ_l I(Y, T_l) over `layers` (Xu et al. 2022, Eqs. 1, 2), I estimated by HSIC over the batch.

    T_l is taken from the attacked images, or, for objectives with two passes, from both. X are the clean images, or,
    with `of: given`, those of each pass, X + δ. Every layer with weights 0.006 and 0.05 is HBaR (Wang et al. 2021).

    >>> from robust_features.networks import VGG16, build
    >>> network, images, labels = build(VGG16(width=1 / 16), 10, seed=0), torch.rand(8, 3, 32, 32), torch.arange(8)
    >>> inputs, outputs = IBRAR().dependence(network, (network.activations(images),), images, labels)
    >>> inputs.shape, bool((inputs > 0).all())  # a value for each of the five blocks
    (torch.Size([5]), True)
    """

    kind: Literal["ibrar"] = "ibrar"
    alpha: NonNegative = 0.008
    beta: NonNegative = 0.08
    layers: Literal["all"] | tuple[str, ...] = "all"
    of: Literal["clean", "given"] = "clean"
    hsic: HSIC = HSIC()

    def problem(self, network: Network, batch_size: int) -> str:
        """Why this network cannot be trained so; empty if it can."""
        if problem := self.hsic.problem(batch_size, "batch_size"):
            return problem
        absent = [name for name in self.layers if name not in network.stages] if self.layers != "all" else []
        near = nearest(absent[0], network.stages) if absent else ""
        return f"layers: no stage '{absent[0]}'{near}; there are {', '.join(network.stages)}" if absent else ""

    def __call__(
        self, network: Network, passes: Passes, images: Tensor, labels: Tensor, *, given: tuple[Tensor, ...]
    ) -> Tensor:
        of_images, of_labels = self.dependence(network, passes, images, labels, given=given)
        return self.alpha * of_images.sum() - self.beta * of_labels.sum()

    def dependence(
        self, network: Network, passes: Passes, images: Tensor, labels: Tensor, *, given: tuple[Tensor, ...] = ()
    ) -> tuple[Tensor, Tensor]:
        """I(X, T_l) and I(Y, T_l), each with one entry per pass and layer; `given` are the images of each pass.

        Raises ValueError for too few images.
        """
        layers = network.hidden if self.layers == "all" else self.layers
        kernels = torch.stack([self.hsic.of_features(outputs[layer]) for outputs in passes for layer in layers])
        seen = torch.stack([self.hsic.of_features(x) for x in (given if self.of == "given" else (images,))])
        if self.of == "given":
            seen = seen.repeat_interleave(len(layers), 0)
        right = self.hsic.of_labels(labels, logits_of(passes[0]).shape[1])
        of_images, of_labels = self.hsic(kernels, torch.stack([seen, right.expand_as(seen)]))
        return of_images, of_labels


@settings
class VIB:
    """β · D_KL[N(μ, σ²) ‖ N(0, I)] of the network's stage `encoding`, in nats (Alemi et al. 2017, Eq. 17)."""

    kind: Literal["vib"] = "vib"
    beta: NonNegative = 1e-3

    def problem(self, network: Network, batch_size: int) -> str:
        """Why this network cannot be trained so; empty if it can."""
        if "encoding" in network.stages:
            return ""
        return "vib needs the stage 'encoding': write `network: {kind: vgg16, encoding: 256}`"

    def __call__(
        self, network: Network, passes: Passes, images: Tensor, labels: Tensor, *, given: tuple[Tensor, ...]
    ) -> Tensor:
        mean, deviation = torch.cat([outputs["encoding"] for outputs in passes]).float().unbind(1)
        return self.beta * 0.5 * (mean**2 + deviation**2 - 2 * deviation.log() - 1).sum(1).mean()


Regulariser = Annotated[IBRAR | VIB, Field(discriminator="kind")]


@settings
class PersistentMask:
    """The `fraction` of channels of least I(f_c, Y) is removed, in training, attacks and tests (Xu et al. 2022, Eq. 3).

    They are chosen anew before every epoch but the first, from `images` training images, `batch` at a time.
    """

    kind: Literal["persistent"] = "persistent"
    fraction: Fraction = 0.05
    images: Count = 500
    batch: Pair = 100
    hsic: HSIC = HSIC()

    def problem(self, batch_size: int) -> str:
        """Why it cannot be found, whatever the batches of training; empty if it can."""
        return self.hsic.problem(*min((self.batch, "batch"), (self.images, "images")))

    def before_epoch(self, network: Network, images: Tensor, labels: Tensor, epoch: int, seed: int) -> None:
        """Renew the mask from the training set, uint8 images (M, 3, H, W) and labels (M,)."""
        if epoch == 1:
            return
        passing = network.mask.passing.fill_(1)
        chosen = torch.randperm(len(labels), generator=Generator().manual_seed(seed))[: self.images].to(labels.device)
        batches = [rows for rows in chosen.split(self.batch) if len(rows) == min(self.batch, len(chosen))]
        scores = (channel_scores(network, as_float(images[rows]), labels[rows], self.hsic) for rows in batches)
        passing[lowest(torch.stack([found["labels"] for found in scores]).mean(0), self.fraction)] = 0

    def before_batch(self, network: Network, images: Tensor, labels: Tensor, index: int) -> None:
        """The mask stays."""

    def after_epoch(self, network: Network) -> None:
        """The mask stays."""


@settings
class BatchMask:
    """What the code of Xu et al. 2022 does: a mask on every tenth batch of an epoch, for that batch and never in tests.

    The channels with the least I(f_c, Y) and those with the most I(f_c, X) are removed: 10 and 10 of 512
    (ResNet-18: 20 and 20).
    """

    kind: Literal["every-10"] = "every-10"
    every: Count = 10
    least_of_labels: Fraction = 10 / 512
    most_of_images: Fraction = 10 / 512
    hsic: HSIC = HSIC(labels="gaussian")

    def problem(self, batch_size: int) -> str:
        """Why it cannot be found in batches of this size; empty if it can."""
        return self.hsic.problem(batch_size, "batch_size")

    def before_epoch(self, network: Network, images: Tensor, labels: Tensor, epoch: int, seed: int) -> None:
        """Nothing lasts longer than a batch."""

    def before_batch(self, network: Network, images: Tensor, labels: Tensor, index: int) -> None:
        """Set the mask for this batch of (N, 3, H, W) images in [0, 1]; `index` counts within the epoch, from 0."""
        passing = network.mask.passing.fill_(1)
        if index == 0 or index % self.every:
            return
        scores = channel_scores(network, images, labels, self.hsic)
        passing[lowest(scores["labels"], self.least_of_labels)] = 0
        passing[lowest(-scores["images"], self.most_of_images)] = 0

    def after_epoch(self, network: Network) -> None:
        """Validation and tests see every channel."""
        network.mask.passing.fill_(1)


Mask = Annotated[PersistentMask | BatchMask, Field(discriminator="kind")]


def channel_scores(network: Network, images: Tensor, labels: Tensor, hsic: HSIC) -> dict[str, Tensor]:
    """(C,) dependence of every channel of the last convolution on `labels` and on `images` (Xu et al. 2022, Eq. 3).

    f_c is what the rest of the network sees of a channel: after its ReLU, and nothing if it is masked. In eval mode.
    """
    with frozen(network), torch.no_grad():
        features = network.features(images)
        check_channels(features)
        classes = network.head(features).shape[1]
        both = torch.stack([hsic.of_labels(labels, classes), hsic.of_features(images)])
        found = hsic.by_channel(F.relu(features), both)
    return dict(zip(("labels", "images"), found, strict=True))


def lowest(scores: Tensor, fraction: float) -> Tensor:
    """The indices of the lowest scores, a `fraction` of all (C,), rounded to a whole number: what a mask removes."""
    return scores.argsort()[: round(fraction * len(scores))]
