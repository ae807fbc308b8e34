"""The search through tanh for a near adversarial image: Carlini and Wagner's attack, and Kim et al.'s four upon it."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Generator, Tensor, nn

from robust_features import inputs, noise
from robust_features.adam import RowAdam
from robust_features.attacks.ball import Ball, LinfRadius, dot, l2, per_image
from robust_features.attacks.gradient import margin
from robust_features.bottleneck import Bottleneck, distil
from robust_features.hardware import Hardware
from robust_features.networks import Network
from robust_features.settings import Count, NonNegative, Positive, settings

Objective = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def search(
    objective: Objective,
    images: Tensor,
    labels: Tensor,
    *,
    steps: int,
    learning_rate: float,
    checks: int,
    epsilon: float | None = None,
    confidence: float = 0.0,
) -> Tensor:
    """Lower `objective` by Adam over w with x' = (tanh w + 1)/2, and keep each image's nearest misclassified iterate.

    With `confidence`, an image counts as misclassified if another logit exceeds the label's by that much.

    `objective` maps candidates and their rows in the batch to (logits (n, K), loss (n,)); the squared L2 distance is
    added to the loss here. `checks` times along the way, the images whose cost has risen since the last check are
    stopped, as the authors' code does for a whole batch at once. With `epsilon`, every iterate is projected to that L∞
    ball. An image that is misclassified from the start, or never, is returned unchanged, to the bit.
    """
    best, nearest = images.clone(), torch.full_like(images[:, 0, 0, 0], torch.inf)
    rows, here, labels_here = torch.arange(len(images), device=images.device), images, labels
    last = torch.full_like(nearest, torch.inf)
    adam = RowAdam(_unbounded(images), learning_rate)
    for step in range(steps):
        w = adam.value.requires_grad_(True)
        candidates = (torch.tanh(w) + 1) / 2
        logits, loss = objective(candidates, rows)
        moved = candidates - here
        cost = loss + dot(moved, moved)
        (gradient,) = torch.autograd.grad(cost.sum(), w)
        candidates, adam.value = candidates.detach(), w.detach()
        fooled, distance = logits.argmax(1) != labels_here, l2(moved.detach())
        if confidence:
            fooled &= margin(logits.detach(), labels_here) <= -confidence
        if step == 0:  # the clean images
            going = ~fooled
        else:
            better = fooled & (distance < nearest[rows])
            nearest[rows] = torch.where(better, distance, nearest[rows])
            best[rows] = torch.where(per_image(better), candidates, best[rows])
            going = None
        if step % max(1, steps // checks) == 0:
            going = (cost.detach() <= last) if going is None else going
            last = cost.detach()
        if going is not None and not going.all():
            adam.select(going)
            rows, here, labels_here, last = rows[going], here[going], labels_here[going], last[going]
            gradient = gradient[going]
            if not len(rows):
                break
        adam.step(gradient)
        if epsilon is not None:
            adam.value = _unbounded(Ball("linf", epsilon).project((torch.tanh(adam.value) + 1) / 2, here))
    return best if epsilon is None else Ball("linf", epsilon).project(best, images)  # tanh rounds


@settings
class CarliniWagner:
    """min ‖x' − x‖₂² + c · max(margin + confidence, 0) via tanh (Carlini and Wagner 2017). Minimal attack: no bound.

    With `confidence`, an image is found once another logit exceeds the label's by that much; one for which this holds
    from the start, or never, is returned unchanged. With `epsilon`, a Budget attack: the search is projected to the L∞
    ball of that radius.
    """

    kind: Literal["carlini-wagner"] = "carlini-wagner"
    c: Positive = 0.1
    steps: Count = 200
    learning_rate: Positive = 0.1
    confidence: NonNegative = 0.0
    checks: Count = 10
    epsilon: LinfRadius | None = None

    __call__ = inputs.attack

    def perturb(self, model: nn.Module, images: Tensor, labels: Tensor, *, generator: Generator | Tensor) -> Tensor:
        """The nearest misclassified images found, (N, C, H, W) in [0, 1]; the search draws nothing at random."""

        def objective(candidates: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            logits = model(candidates).to(images.dtype)
            return logits, self.c * (margin(logits, labels[rows]) + self.confidence).clamp_min(0)

        how = dict(steps=self.steps, learning_rate=self.learning_rate, checks=self.checks, epsilon=self.epsilon)
        return search(objective, images, labels, confidence=self.confidence, **how)


@settings
class FeatureGradient:
    """Carlini and Wagner's search with ‖i·G‖₂ raised or lowered, G = −∂max(margin, 0)/∂Z (Kim et al. 2021, Eqs. 7, 8).

    Minimal attack; with `epsilon`, projected to the L∞ ball. NRF: (nonrobust, raise), NRF2: (nonrobust, lower), RF:
    (robust, raise), RF2: (robust, lower), the columns of Table 4. The channel index i comes from one distillation of
    the clean image with its true label. `order: first` is what the authors run: the gradient with respect to Z of their
    term is the unit vector i·G/‖i·G‖, a push of the features along it; `second` differentiates ‖i·G‖ itself, as Eq. 8
    is written. `unit` takes that norm over each image, or over the `batch`, as the authors do: the push then shrinks
    with the batch.
    """

    kind: Literal["feature-gradient"] = "feature-gradient"
    units: Literal["robust", "nonrobust"] = "nonrobust"
    direction: Literal["raise", "lower"] = "raise"
    order: Literal["first", "second"] = "first"
    unit: Literal["image", "batch"] = "image"
    c: Positive = 0.1
    weight: NonNegative = 1.0  # of ‖i·G‖; the paper has none, which means 1
    steps: Count = 200
    learning_rate: Positive = 0.1
    checks: Count = 3
    epsilon: LinfRadius | None = None
    bottleneck: Bottleneck = Bottleneck()

    __call__ = inputs.attack

    def perturb(self, model: Network, images: Tensor, labels: Tensor, *, generator: Generator | Tensor) -> Tensor:
        """The nearest misclassified images found, (N, C, H, W) in [0, 1]; the distillation draws from `generator`."""
        keys = noise.image_keys(len(images), generator)
        with torch.no_grad():
            z = model.features(images).to(images.dtype)
        where = Hardware(images.device, "fp32")
        robust = distil(model, z, labels, self.bottleneck, hardware=where, generator=keys).robust
        channels = (robust if self.units == "robust" else ~robust).to(images)[:, :, None, None]
        weight = -self.weight if self.direction == "raise" else self.weight

        def objective(candidates: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            features = model.features(candidates)
            logits = model.head(features).to(images.dtype)
            loss = margin(logits, labels[rows]).clamp_min(0)
            term = feature_term(loss, features, channels[rows], order=self.order, unit=self.unit)
            return logits, self.c * loss + weight * term

        how = dict(steps=self.steps, learning_rate=self.learning_rate, checks=self.checks, epsilon=self.epsilon)
        return search(objective, images, labels, **how)


def feature_term(
    loss: Tensor,
    features: Tensor,
    channels: Tensor,
    *,
    order: Literal["first", "second"] = "first",
    unit: Literal["image", "batch"] = "image",
) -> Tensor:
    """(n,) term of Eq. 8 for (n,) losses of (n, C, h, w) features Z: ‖i·G‖₂, G = −∂loss/∂Z, (n, C, 1, 1) channels i.

    `second` is that norm; `first` Z·u, whose gradient with respect to Z is u = i·G/‖i·G‖, the norm over image or batch.
    """
    (gradient,) = torch.autograd.grad(-loss.sum(), features, retain_graph=True, create_graph=order == "second")
    push = channels * gradient.to(channels.dtype)
    size = torch.linalg.vector_norm(push.flatten(1), dim=1)
    if order == "second":
        return size
    whole = torch.linalg.vector_norm(size) if unit == "batch" else size
    direction = push / per_image(whole.clamp_min(1e-12))
    return dot(features.to(push.dtype), direction)


def _unbounded(images: Tensor) -> Tensor:
    """w with (tanh w + 1)/2 = images, black and white moved inside by 5e-7."""
    return torch.atanh((2 * images - 1).clamp(-1 + 1e-6, 1 - 1e-6))
