"""A feature's worth: useful, robustly useful, non-robust (Ilyas et al. 2019, Sec. 2; Springer et al. 2021, Sec. 2).

A feature f maps an image to a number. Both papers define it for two classes, y = ±1, and f of mean 0 and variance 1.
With more classes, each makes a task of its own: y_k = 1 for class k and −1 for all others, half the weight on either
side. f is standardised under that weight, so E[y_k f] is its correlation with y_k. −f is a feature wherever f is one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from robust_features import inputs
from robust_features.attacks import Ball, ascend
from robust_features.networks import Network

Features = Callable[[Tensor], Tensor]  # (N, C, H, W) images in [0, 1] → (N, d)
Kind = Literal["robust", "non-robust", "not useful"]
Type = Literal["A", "B", "C", "not useful"]


@dataclass(frozen=True)
class Units:
    """Some units of a network's penultimate layer: what Springer et al. 2021, Sec. 2, call its features."""

    network: Network
    chosen: Tensor  # (d,) int64

    def __call__(self, images: Tensor) -> Tensor:
        return self.network.features(images, self.network.representation).flatten(1)[:, self.chosen.to(images.device)]


@dataclass(frozen=True)
class Worth:
    """The worth of d features, each for the class and the sign that it goes best with."""

    useful: Tensor  # (d,) E[y f(x)], in [0, 1]: the largest ρ for which f is ρ-useful
    robust: Tensor  # (d,) E[min y f(x + δ)], at most `useful`: the largest γ for which f is γ-robustly useful
    best: Tensor  # (d,) int64, the class k of y_k
    sign: Tensor  # (d,) 1 for f, −1 for −f

    def kinds(self, *, rho: float, gamma: float) -> list[Kind]:
        """The kind of each feature: useful from ρ on; useful ones are robust from γ on, else non-robust.

        >>> zeros, ones = torch.zeros(3).long(), torch.ones(3)
        >>> Worth(torch.tensor([0.9, 0.9, 0.1]), torch.tensor([0.5, -0.5, 0.1]), zeros, ones).kinds(rho=0.2, gamma=0.1)
        ['robust', 'non-robust', 'not useful']
        """
        pairs = zip(self.useful.tolist(), self.robust.tolist(), strict=True)
        return ["not useful" if u < rho else "robust" if r >= gamma else "non-robust" for u, r in pairs]

    def elsewhere(self, values: Tensor, labels: Tensor, classes: int) -> Tensor:
        """(d,) E[y f(x)] in [−1, 1] on other (N, d) values and (N,) labels: f standardised there, k and sign kept."""
        return self.sign * usefulness(values, labels, classes)[torch.arange(len(self.best)), self.best]


def types(kinds: list[Kind], elsewhere: Tensor, *, rho: float) -> list[Type]:
    """Springer et al.'s types (their Fig. 1): robust is A; non-robust is B if entangled with what is robust, else C.

    The paper draws B and C and tests them: a feature is entangled if it is useful on images whose robust features alone
    go with the label. `elsewhere` is E[y f(x)] there (`Worth.elsewhere`).

    >>> types(["robust", "non-robust", "non-robust"], torch.tensor([0.8, 0.4, 0.0]), rho=0.2)
    ['A', 'B', 'C']
    """

    def of(kind: Kind, value: float) -> Type:
        if kind == "non-robust":
            return "B" if value >= rho else "C"
        return "A" if kind == "robust" else kind

    return [of(*each) for each in zip(kinds, elsewhere.tolist(), strict=True)]


def usefulness(values: Tensor, labels: Tensor, classes: int) -> Tensor:
    """(d, K) E[y_k f(x)] in [−1, 1] of (N, d) feature values; 0 where f is constant.

    Raises ValueError unless, for each class, some images have it and some do not.

    >>> values, labels = torch.tensor([[1.0, 2.0], [1.0, 2.0], [-1.0, 2.0]]), torch.tensor([0, 0, 1])
    >>> usefulness(values, labels, 2)
    tensor([[ 1., -1.],
            [ 0.,  0.]])
    """
    signed = signs(labels, classes).to(values)
    return values.T @ (signed * _weights(signed)) / _deviation(values, signed)


def extremes(features: Features, images: Tensor, *, ball: Ball, step_size: float, steps: int) -> tuple[Tensor, Tensor]:
    """min and max of f over the ball around each image, each (N, d): the lowest and highest f(x + δ) that PGD finds.

    Every feature is lowered and raised separately; both serve all classes. What is found bounds the true extremes from
    within. Raises ValueError for images outside of [0, 1].
    """
    x = inputs.pixels(features, images)
    with torch.no_grad():
        found = [features(x)]
    for feature in range(found[0].shape[1]):
        for sign in (-1, 1):
            moved = ascend(
                features,
                lambda values, rows, sign=sign, feature=feature: sign * values[:, feature],
                x,
                ball=ball,
                step_size=step_size,
                steps=steps,
            )
            with torch.no_grad():
                found.append(features(moved))  # of the other features, too, these are points of the ball
    both = torch.stack(found)
    return both.amin(0), both.amax(0)


def worth(values: Tensor, low: Tensor, high: Tensor, labels: Tensor, classes: int) -> Worth:
    """The worth of features, from their (N, d) values and their extremes over the ball (`extremes`).

    The adversary of y f lowers f where y is 1 and raises it where y is −1; f stays standardised as on clean images.
    """
    useful, signed = usefulness(values, labels, classes), signs(labels, classes).to(values)
    best, every = useful.abs().argmax(1), torch.arange(len(useful))
    sign = torch.where(useful[every, best] < 0, -1.0, 1.0)
    y = sign * signed[:, best]  # (N, d), of each feature's class
    lowest = torch.where(y > 0, low, -high)
    robust = (_weights(signed)[:, best] * lowest).sum(0) / _deviation(values, signed)[every, best]
    return Worth(useful.abs()[every, best], robust, best, sign)


def signs(labels: Tensor, classes: int) -> Tensor:
    """(N, K) y_k: 1 where the label is k, else −1. Raises ValueError unless every class has images, and not all."""
    signed = 2.0 * torch.nn.functional.one_hot(labels, classes) - 1
    if lacking := [k for k, column in enumerate(signed.T) if column.unique().numel() < 2]:
        raise ValueError(f"usefulness compares a class with the others: class {lacking[0]} has no images, or all")
    return signed


def of_linear_gaussian(weight: Tensor, mean: Tensor, covariance: Tensor, ball: Ball) -> tuple[float, float]:
    """(E[y f], E[min y f(x + δ)]), exact, of f(x) = wᵀx, standardised, for x ~ N(y μ, Σ) and y = ±1 with equal chance.

    (wᵀμ − ε ‖w‖*) / sqrt(wᵀΣw + (wᵀμ)²), where ‖·‖* is L2 for an L2 ball and L1 for L∞: the worst δ is the same for
    every x. The ball's pixel range is not considered.

    >>> one, spread = torch.tensor([1.0, 0.0]), torch.eye(2)
    >>> of_linear_gaussian(one, torch.tensor([0.0, 5.0]), spread, Ball("l2", 0.5))  # it sees nothing of the mean
    (0.0, -0.5)
    """
    w, mu = weight.double(), mean.double()
    reach = w @ mu
    deviation = (w @ covariance.double() @ w + reach**2).sqrt()
    dual = w.norm() if ball.norm == "l2" else w.abs().sum()
    return (reach / deviation).item(), ((reach - ball.epsilon * dual) / deviation).item()


def _weights(signed: Tensor) -> Tensor:
    """(N, K): a half over the images of class k, a half over the others."""
    positive = signed > 0
    count = positive.sum(0).to(signed)
    return torch.where(positive, 0.5 / count, 0.5 / (len(signed) - count))


def _deviation(values: Tensor, signed: Tensor) -> Tensor:
    """(d, K) standard deviation of each feature under each class's weights; infinite for a constant, worth nothing."""
    weights, centred = _weights(signed), values - values.mean(0)
    variance = centred.square().T @ weights - (centred.T @ weights).square()
    return variance.clamp_min(0).sqrt().where(variance > 1e-10 * values.square().mean(0)[:, None], torch.inf)
