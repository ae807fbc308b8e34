"""Two Gaussians and an L2 adversary, exactly (Ilyas et al. 2019, Sec. 4): x ~ N(y μ, Σ), y = ±1 with equal chance.

All in float64 and in the eigenbasis of Σ: (d,) variances, and means as coordinates along the eigenvectors.
"""

from dataclasses import dataclass
from math import inf

import torch
from scipy.optimize import brentq
from torch import Tensor

NORMAL = torch.distributions.Normal(torch.tensor(0.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64))


@dataclass(frozen=True)
class Learned:
    """What maximum likelihood learns when x is moved by δ with E‖δ‖² = ε²: the true means, and these variances."""

    epsilon: float
    variances: Tensor  # (d,) eigenvalues of Σ_r, along the eigenvectors of Σ
    multiplier: float  # λ, the adversary's price of ‖δ‖²; infinite for ε = 0


def learn(variances: Tensor, epsilon: float) -> Learned:
    """Σ_r = Σ/2 + 1/λ + sqrt(Σ/λ + Σ²/4), where λ makes the worst δ cost ε (Ilyas et al. 2019, Theorem 2).

    The worst δ is (λ Σ_r − 1)⁻¹ (x − y μ); at the optimum its mean square is Σ_i 1 / (λ² σ_i), σ the eigenvalues of
    Σ_r, which falls as λ grows. Raises ValueError for a negative ε or variances that are not positive.

    >>> learn(torch.tensor([4.0, 0.16]), epsilon=1.0).variances.round(decimals=2)
    tensor([6.0700, 1.6500], dtype=torch.float64)
    """
    s = variances.double()
    if epsilon < 0 or not (s > 0).all():
        raise ValueError(f"epsilon must be at least 0 and variances positive, found {epsilon} and {s.min().item():g}")
    if epsilon == 0:
        return Learned(0.0, s, inf)

    def excess(log_multiplier: float) -> float:  # log E‖δ‖² − log ε²
        multiplier = torch.tensor(log_multiplier, dtype=torch.float64).exp()
        spent = (1 / (multiplier**2 * robust_variances(s, multiplier))).sum()
        return spent.log().item() - 2 * torch.tensor(epsilon).log().item()

    multiplier = torch.tensor(brentq(excess, -80, 80, xtol=1e-13), dtype=torch.float64).exp()
    return Learned(epsilon, robust_variances(s, multiplier), float(multiplier))


def robust_variances(variances: Tensor, multiplier: Tensor) -> Tensor:
    """(d,) eigenvalues of Σ_r = Σ/2 + 1/λ + sqrt(Σ/λ + Σ²/4) for the price λ of the adversary's ‖δ‖²."""
    return variances / 2 + 1 / multiplier + (variances / multiplier + variances.square() / 4).sqrt()


def accuracy(mean: Tensor, variances: Tensor, learned: Tensor, radius: float = 0.0) -> float:
    """Accuracy (percent) of sign(μᵀ Σ_r⁻¹ x) on the true distribution, every x moved by up to `radius` in L2."""
    weight = mean.double() / learned.double()
    reach = mean.double() @ weight - radius * weight.norm()
    return 100 * NORMAL.cdf(reach / (weight.square() @ variances.double()).sqrt()).item()


def alignment(mean: Tensor, learned: Tensor) -> float:
    """Cosine between the loss's gradient with respect to x, along Σ_r⁻¹ μ, and the line μ between the classes."""
    mean = mean.double()
    return torch.cosine_similarity(mean / learned.double(), mean, dim=0).item()
