"""An attack that knows a regulariser (Xu et al. 2022, App. A-B)."""

from typing import Annotated, Literal

from pydantic import BeforeValidator
from torch import Generator, Tensor
from torch.nn import functional as F

from robust_features import inputs
from robust_features.attacks.gradient import PGD, ascend
from robust_features.dependence import HSIC
from robust_features.networks import Network, logits_of
from robust_features.regularisers import IBRAR
from robust_features.settings import no_boolean, settings


@settings
class Adaptive:
    """PGD ascending CE ± [α Σ_l I(X, T_l(X + δ)) − β Σ_l I(Y, T_l(X + δ))], all layers, clean images X. Budget attack.

    The bracket is one number for the attacked batch: here, unlike in other attacks, the result depends on the batch.
    `sign` 1 is what the authors run; −1 instead lowers what training lowers.
    """

    kind: Literal["adaptive"] = "adaptive"
    pgd: PGD
    regulariser: IBRAR = IBRAR(hsic=HSIC(labels="gaussian"))
    sign: Annotated[Literal[1, -1], BeforeValidator(no_boolean)] = 1

    @property
    def epsilon(self) -> float:
        """The radius of the ball."""
        return self.pgd.epsilon

    __call__ = inputs.attack

    def perturb(self, model: Network, images: Tensor, labels: Tensor, *, generator: Generator | Tensor) -> Tensor:
        """Adversarial images, (N, C, H, W) in [0, 1], within epsilon. Raises ValueError for a batch of one image."""

        def loss(outputs: dict[str, Tensor], rows: Tensor) -> Tensor:
            shared = self.sign * self.regulariser(model, (outputs,), images, labels, given=(images,))
            entropy = F.cross_entropy(logits_of(outputs).float(), labels, reduction="none")
            return entropy + shared  # summed over the batch: N · (CE + shared)

        pgd = self.pgd
        start = pgd.ball.sample(images, generator) if pgd.random_start else None
        return ascend(
            model.activations, loss, images, ball=pgd.ball, step_size=pgd.step_size, steps=pgd.steps, start=start
        )
