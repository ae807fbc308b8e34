"""What training minimises: values called as (network, images, labels, *, generator) → loss and the passes it came from.

For `generator` they take the images' keys, too: see `noise`.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor
from torch.nn import functional as F

from robust_features import noise
from robust_features.attacks import PGD, ascend
from robust_features.networks import Network, folded, logits_of
from robust_features.settings import NonNegative, settings


@dataclass(frozen=True)
class Outcome:
    """A scalar loss, and for each pass of the batch through the network its images and every stage's output.

    Regularisers need no other pass.
    """

    loss: Tensor
    passes: tuple[dict[str, Tensor], ...]
    images: tuple[Tensor, ...]


@settings
class Standard:
    """Cross-entropy on clean images."""

    kind: Literal["standard"] = "standard"

    def __call__(self, network: Network, images: Tensor, labels: Tensor, *, generator: Generator | Tensor) -> Outcome:
        return _cross_entropy(network, images, labels)


@settings
class Adversarial:
    """Cross-entropy on adversarial images (Madry et al. 2018; Kim et al. 2021, Eq. 1)."""

    kind: Literal["adversarial"] = "adversarial"
    attack: PGD

    def __call__(self, network: Network, images: Tensor, labels: Tensor, *, generator: Generator | Tensor) -> Outcome:
        return _cross_entropy(network, _craft(self.attack, network, images, labels, generator), labels)


@settings
class Trades:
    """CE(clean) + weight · KL(clean ‖ adversarial), the inner problem ascending the KL (Zhang et al. 2019, Eq. 5)."""

    kind: Literal["trades"] = "trades"
    attack: PGD
    weight: NonNegative = 6.0

    def __call__(self, network: Network, images: Tensor, labels: Tensor, *, generator: Generator | Tensor) -> Outcome:
        fixed = folded(network)
        with torch.no_grad():
            clean = fixed(images)
        keys = noise.image_keys(len(images), generator).to(images.device)
        adversarial = ascend(
            fixed,
            lambda logits, rows: divergence(clean, logits),
            images,
            ball=self.attack.ball,
            step_size=self.attack.step_size,
            steps=self.attack.steps,
            start=(images + 0.001 * noise.normal(keys, images.shape[1:])).clamp(0, 1),
        )
        clean, attacked = network.activations(images), network.activations(adversarial)
        apart = divergence(logits_of(clean), logits_of(attacked)).mean()
        loss = F.cross_entropy(logits_of(clean), labels) + self.weight * apart
        return Outcome(loss, (clean, attacked), (images, adversarial))


@settings
class TradesKim:
    """CE(adversarial) + weight · KL(clean ‖ adversarial) on PGD's images.

    This is what Kim et al. 2021 and Xu et al. 2022 ran as TRADES.
    """

    kind: Literal["trades-kim"] = "trades-kim"
    attack: PGD
    weight: NonNegative = 0.5

    def __call__(self, network: Network, images: Tensor, labels: Tensor, *, generator: Generator | Tensor) -> Outcome:
        adversarial = _craft(self.attack, network, images, labels, generator)
        attacked, clean = network.activations(adversarial), network.activations(images)
        apart = divergence(logits_of(clean), logits_of(attacked)).mean()
        loss = F.cross_entropy(logits_of(attacked), labels) + self.weight * apart
        return Outcome(loss, (clean, attacked), (images, adversarial))


@settings
class Mart:
    """BCE(adversarial) + weight · E[KL(clean ‖ adversarial) · (1 − p_clean[y])] (Wang et al. 2020, Eq. 11).

    Kim et al. 2021 and Xu et al. 2022 ran weight 0.5.
    """

    kind: Literal["mart"] = "mart"
    attack: PGD
    weight: NonNegative = 5.0

    def __call__(self, network: Network, images: Tensor, labels: Tensor, *, generator: Generator | Tensor) -> Outcome:
        adversarial = _craft(self.attack, network, images, labels, generator)
        passes = network.activations(images), network.activations(adversarial)
        clean, attacked = (logits_of(outputs).float() for outputs in passes)
        own, others = labels[:, None], attacked.softmax(1).scatter(1, labels[:, None], 0).amax(1)
        boosted = F.cross_entropy(attacked, labels) - (1.0001 - others).log().mean()
        unsure = 1 - clean.softmax(1).gather(1, own).squeeze(1)
        loss = boosted + self.weight * (divergence(clean, attacked) * unsure).mean()
        return Outcome(loss, passes, (images, adversarial))


Objective = Annotated[Standard | Adversarial | Trades | TradesKim | Mart, Field(discriminator="kind")]


def divergence(clean: Tensor, attacked: Tensor) -> Tensor:
    """(N,) KL(softmax clean ‖ softmax attacked) of (N, K) logits, in nats."""
    clean, attacked = clean.float().log_softmax(1), attacked.float().log_softmax(1)
    return F.kl_div(attacked, clean, reduction="none", log_target=True).sum(1)


def _cross_entropy(network: Network, images: Tensor, labels: Tensor) -> Outcome:
    outputs = network.activations(images)
    return Outcome(F.cross_entropy(logits_of(outputs), labels), (outputs,), (images,))


def _craft(attack: PGD, network: Network, images: Tensor, labels: Tensor, generator: Generator | Tensor) -> Tensor:
    return attack.perturb(folded(network), images, labels, generator=generator)
