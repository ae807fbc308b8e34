import math

import pytest
import torch
from scipy import optimize

from robust_features.gaussians import accuracy, alignment, learn

pytestmark = pytest.mark.numeric

VARIANCES = torch.tensor([4.0, 1.0, 0.25], dtype=torch.float64)
MEAN = torch.tensor([1.0, 0.5, 1.0], dtype=torch.float64)


def worst_likelihood(learned, variances, epsilon):
    """max over linear δ = B (x − μ) with E‖δ‖² = ε² of −E log N(x + δ; μ, Σ_r), coordinate by coordinate, by search."""

    def dual(log_price):  # the price at which the adversary spends ε, from above the largest 1 / σ
        price = math.exp(log_price) + (1 / learned).max()
        moved = (variances / (price * learned - 1) ** 2).sum()
        return math.log(moved) - 2 * math.log(epsilon)

    price = math.exp(optimize.brentq(dual, -40, 40)) + (1 / learned).max()
    second = variances * (price * learned / (price * learned - 1)) ** 2
    return 0.5 * (learned.log() + second / learned).sum().item()


@pytest.mark.parametrize("epsilon", [0.1, 0.5, 2.0])
def test_the_learned_variances_withstand_the_worst_perturbation_best(epsilon):
    found = learn(VARIANCES, epsilon).variances
    least = worst_likelihood(found, VARIANCES, epsilon)

    def objective(logs):
        return worst_likelihood(torch.tensor(logs, dtype=torch.float64).exp(), VARIANCES, epsilon)

    precise = {"xatol": 1e-8, "fatol": 1e-12, "maxiter": 4000}
    other = optimize.minimize(objective, VARIANCES.log().numpy(), method="Nelder-Mead", options=precise)
    assert least == pytest.approx(other.fun, abs=1e-7)
    torch.testing.assert_close(found, torch.tensor(other.x, dtype=torch.float64).exp(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("epsilon", [0.01, 0.3, 3.0])
def test_the_worst_perturbation_of_the_solution_costs_epsilon(epsilon):
    found = learn(VARIANCES, epsilon)
    spent = (VARIANCES / (found.multiplier * found.variances - 1) ** 2).sum()
    assert spent.sqrt() == pytest.approx(epsilon, rel=1e-6)


def test_without_an_adversary_the_true_covariance_is_learned_with_a_strong_one_the_identity():
    assert torch.equal(learn(VARIANCES, 0.0).variances, VARIANCES)
    strong = learn(VARIANCES, 100.0).variances
    assert strong.max() / strong.min() < 1.1
    angles = [alignment(MEAN, learn(VARIANCES, epsilon).variances) for epsilon in (0.0, 0.2, 1.0, 5.0, 100.0)]
    assert angles == sorted(angles) and angles[-1] > 0.999


@pytest.mark.parametrize("radius", [0.0, 0.4])
def test_accuracy_is_that_of_drawn_points_moved_by_their_worst_perturbation(radius):
    learned = learn(VARIANCES, 0.5).variances
    draws = MEAN + VARIANCES.sqrt() * torch.randn(
        200_000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    weight = MEAN / learned
    moved = draws - radius * weight / weight.norm()
    share = 100 * (moved @ weight > 0).double().mean().item()
    assert accuracy(MEAN, VARIANCES, learned, radius) == pytest.approx(share, abs=0.3)


def test_the_true_covariance_is_best_without_an_adversary():
    best = accuracy(MEAN, VARIANCES, VARIANCES)
    assert all(best > accuracy(MEAN, VARIANCES, learn(VARIANCES, epsilon).variances) for epsilon in (0.5, 2.0))


@pytest.mark.parametrize("epsilon, variances", [(-1.0, VARIANCES), (1.0, torch.zeros(2))])
def test_impossible_distributions_are_refused(epsilon, variances):
    with pytest.raises(ValueError, match="epsilon must be at least 0 and variances positive"):
        learn(variances, epsilon)
