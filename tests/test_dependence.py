import pytest
import torch
from torch import Generator
from torch.autograd import gradcheck

from robust_features.dependence import HSIC, gaussian_kernel, hsic, linear_kernel, normalised_hsic, unbiased_hsic

pytestmark = pytest.mark.numeric

ESTIMATORS = [hsic, unbiased_hsic, normalised_hsic]


def sample(count=40, size=6, seed=0):
    return torch.randn(count, size, generator=Generator().manual_seed(seed), dtype=torch.float64)


def textbook(estimator, k, l):  # noqa: E741
    """With an explicit H, sums over indices, and an inverse."""
    n, one = len(k), torch.ones(len(k), dtype=k.dtype)
    h = torch.eye(n, dtype=k.dtype) - 1 / n
    if estimator is hsic:
        return torch.trace(k @ h @ l @ h) / (n - 1) ** 2
    if estimator is normalised_hsic:
        r = [(a @ h) @ torch.linalg.inv(a @ h + 1e-5 * n * torch.eye(n, dtype=k.dtype)) for a in (k, l)]
        return (r[0] * r[1].T).sum()
    k, l = k.clone().fill_diagonal_(0), l.clone().fill_diagonal_(0)  # noqa: E741
    whole = (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2))
    return (torch.trace(k @ l) + whole - 2 / (n - 2) * (one @ k @ l @ one)) / (n * (n - 3))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_it_is_the_textbook_formula_in_float64_and_nearly_so_in_float32(estimator):
    x, y = sample(), sample(seed=1)
    k, l = gaussian_kernel(x), linear_kernel(y)  # noqa: E741
    expected = textbook(estimator, k, l)
    torch.testing.assert_close(estimator(k, l), expected)
    single = estimator(gaussian_kernel(x.float()), linear_kernel(y.float()))
    torch.testing.assert_close(single.double(), expected, rtol=5e-3, atol=1e-6)


def test_the_gaussian_kernel_is_that_of_the_pairwise_distances_by_size_or_by_their_median():
    x = sample(9, 5)
    distances = torch.cdist(x, x).square()
    torch.testing.assert_close(gaussian_kernel(x, 2.0), (-distances / (2 * 4 * 5)).exp())
    median = distances[distances > 1e-9].median()
    torch.testing.assert_close(gaussian_kernel(x, "median"), (-distances / (2 * median)).exp())


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_relabelling_the_images_of_both_changes_nothing_of_one_it_does(estimator):
    k = gaussian_kernel(sample(), 1.0)
    order = torch.randperm(len(k), generator=Generator().manual_seed(1))
    shuffled = k[order][:, order]
    torch.testing.assert_close(estimator(shuffled, shuffled), estimator(k, k))
    assert estimator(k, k) > estimator(k, shuffled)
    assert estimator(k, k) > 0


def test_independent_samples_have_unbiased_dependence_zero_on_average():
    values = [
        unbiased_hsic(gaussian_kernel(sample(20, 3, seed), 1.0), gaussian_kernel(sample(20, 3, 1000 + seed), 1.0))
        for seed in range(400)
    ]
    values = torch.stack(values)
    assert values.mean().abs() < 3 * values.std() / len(values) ** 0.5
    assert (hsic(gaussian_kernel(sample(400), 1.0), gaussian_kernel(sample(400, seed=1), 1.0))) < 0.01


@pytest.mark.parametrize("estimator", ["biased", "unbiased", "normalised"])
def test_gradients_are_those_of_finite_differences(estimator):
    settings, labels = HSIC(estimator=estimator, bandwidth=1.0), linear_kernel(sample(8, 3, seed=1))
    x = sample(8, 4).requires_grad_(True)
    assert gradcheck(lambda x: settings(settings.of_features(x), labels), (x,))


@pytest.mark.parametrize("settings", [HSIC(), HSIC(estimator="biased", bandwidth="median")], ids=repr)
def test_channels_at_once_are_the_channels_one_by_one(settings):
    features = torch.randn(20, 40, 2, 2, generator=Generator().manual_seed(0))
    images, labels = sample(20).float(), torch.arange(20) % 4
    both = torch.stack([settings.of_features(images), settings.of_labels(labels, 4)])
    together = settings.by_channel(features, both)
    alone = [[settings(settings.of_features(features[:, c]), kernel) for c in range(40)] for kernel in both]
    torch.testing.assert_close(together, torch.tensor(alone), rtol=1e-3, atol=1e-4)


def test_what_is_no_kernel_has_no_dependence_rather_than_a_wrong_one():
    kernels = torch.stack([torch.eye(5), -torch.eye(5), torch.full((5, 5), torch.nan)])
    assert normalised_hsic(kernels, torch.eye(5)).isnan().tolist() == [False, True, True]


@pytest.mark.parametrize("estimator, count", [("biased", 1), ("normalised", 1), ("unbiased", 3)])
def test_too_few_images_are_refused(estimator, count):
    kernel = torch.ones(count, count)
    with pytest.raises(ValueError, match=f"at least {count + 1} images, found {count}"):
        HSIC(estimator=estimator)(kernel, kernel)
