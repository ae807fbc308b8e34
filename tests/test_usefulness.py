"""Usefulness against the closed form of linear features of Gaussians, and against features made for the purpose."""

import pytest
import torch
from torch import Generator

from robust_features.attacks import Ball
from robust_features.usefulness import (
    Worth,
    extremes,
    of_linear_gaussian,
    signs,
    types,
    usefulness,
    worth,
)

pytestmark = pytest.mark.numeric

COUNT, SIZE = 20_000, 12  # 12 pixels: (3, 2, 2)


def draw(seed=0, count=COUNT):
    """Images 0.5 + x, x ~ N(y μ, Σ), well within [0, 1], as float64; labels 0 for y = 1; μ and Σ."""
    generator = Generator().manual_seed(seed)
    mean = 0.05 * torch.randn(SIZE, generator=generator, dtype=torch.float64)
    root = 0.03 * torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64) / SIZE**0.5
    labels = torch.randint(2, (count,), generator=generator)
    noise = torch.randn(count, SIZE, generator=generator, dtype=torch.float64) @ root.T
    x = (1 - 2.0 * labels[:, None]) * mean + noise
    return (0.5 + x).view(-1, 3, 2, 2), labels, mean, root @ root.T


WEIGHTS = torch.randn(SIZE, 4, generator=Generator().manual_seed(9), dtype=torch.float64)


def linear(images):
    return images.flatten(1) @ WEIGHTS.to(images)


@pytest.mark.parametrize("ball", [Ball("l2", 0.04), Ball("linf", 0.02)], ids=str)
def test_of_linear_features_of_gaussians_it_is_the_closed_form_within_two_percent(ball):
    images, labels, mean, covariance = draw()
    low, high = extremes(linear, images, ball=ball, step_size=ball.epsilon, steps=2)
    found = worth(linear(images), low, high, labels, 2)
    for weight, useful, robust in zip(WEIGHTS.T, found.useful, found.robust, strict=True):
        weight = weight if weight @ mean > 0 else -weight
        exact = of_linear_gaussian(weight, mean, covariance, ball)
        assert useful.item() == pytest.approx(exact[0], abs=0.02)
        assert robust.item() == pytest.approx(exact[1], abs=0.02)


def test_an_adversary_costs_a_linear_feature_epsilon_times_the_dual_norm():
    images, labels, *_ = draw(count=500)
    values, share = linear(images), labels.double().mean()
    weighting = torch.where(labels == 1, 0.5 / share, 0.5 / (1 - share)) / len(labels)
    deviation = ((weighting @ values.square()) - (weighting @ values).square()).sqrt()
    for ball, dual in ((Ball("l2", 0.04), WEIGHTS.norm(dim=0)), (Ball("linf", 0.02), WEIGHTS.abs().sum(0))):
        low, high = extremes(linear, images, ball=ball, step_size=ball.epsilon, steps=1)
        found = worth(values, low, high, labels, 2)
        torch.testing.assert_close(found.useful - found.robust, ball.epsilon * dual / deviation)


def test_usefulness_is_the_correlation_with_one_class_against_the_rest_at_equal_weight():
    labels = torch.tensor([0, 0, 1, 2, 2, 2])
    values = torch.randn(6, 5, generator=Generator().manual_seed(0), dtype=torch.float64)
    even = torch.cat([torch.tensor([2]).repeat(5), torch.tensor([0, 1, 3, 4, 5])])  # class 1 as often as all others
    y = torch.where(labels[even] == 1, 1.0, -1.0).double()
    for column, found in zip(values.T, usefulness(values, labels, 3)[:, 1], strict=True):
        assert found.item() == pytest.approx(torch.corrcoef(torch.stack([column[even], y]))[0, 1].item())


def test_scale_shift_and_sign_of_a_feature_do_not_matter():
    images, labels, *_ = draw(count=300)
    ball = Ball("l2", 0.04)
    options = dict(ball=ball, step_size=0.04, steps=2)
    values, (low, high) = linear(images), extremes(linear, images, **options)
    one = worth(values, low, high, labels, 2)
    other = worth(7 - 3 * values, 7 - 3 * high, 7 - 3 * low, labels, 2)
    torch.testing.assert_close(other.useful, one.useful)
    torch.testing.assert_close(other.robust, one.robust)


def test_robust_usefulness_never_exceeds_usefulness_and_is_it_at_epsilon_zero():
    images, labels, *_ = draw(count=200)
    for features in (linear, lambda x: linear(x).relu()):
        same = worth(features(images), features(images), features(images), labels, 2)
        torch.testing.assert_close(same.robust, same.useful)
        low, high = extremes(features, images, ball=Ball("l2", 0.03), step_size=0.02, steps=3)
        assert (low <= features(images)).all() and (features(images) <= high).all()
        assert (worth(features(images), low, high, labels, 2).robust <= same.useful + 1e-9).all()


def test_a_large_a_small_entangled_and_a_small_independent_feature_are_a_b_and_c():
    labels = torch.arange(400) % 2
    y = 1 - 2.0 * labels
    values = torch.stack([y, 0.1 * y, 0.1 * y, torch.randn(400, generator=Generator().manual_seed(0))], 1)
    values = values + 0.01 * torch.randn(400, 4, generator=Generator().manual_seed(1))
    reach = torch.tensor([0.3, 0.3, 0.3, 0.3])
    found = worth(values, values - reach, values + reach, labels, 2)
    there = values * torch.tensor([1.0, 1.0, 0.0, 1.0])  # where robust features alone go with the label
    kinds = found.kinds(rho=0.2, gamma=0.1)
    elsewhere = found.elsewhere(there, labels, 2)
    assert types(kinds, elsewhere, rho=0.2) == ["A", "B", "C", "not useful"]
    torch.testing.assert_close(found.elsewhere(-values, labels, 2), -found.useful)


def test_a_constant_feature_is_worth_nothing():
    values = torch.full((10, 1), 3.0)
    found = worth(values, values, values, torch.arange(10) % 2, 2)
    assert found.useful.item() == found.robust.item() == 0 and found.kinds(rho=0.1, gamma=0.1) == ["not useful"]


def test_a_class_without_images_is_refused_by_its_number():
    with pytest.raises(ValueError, match="class 1 has no images"):
        signs(torch.tensor([0, 2, 0]), 3)


def test_thresholds_are_met_by_equality():
    found = Worth(torch.tensor([0.5]), torch.tensor([0.25]), torch.tensor([0]), torch.tensor([1.0]))
    assert found.kinds(rho=0.5, gamma=0.25) == ["robust"]
