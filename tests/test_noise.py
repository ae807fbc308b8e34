import pytest
import torch
from scipy import stats
from torch import Generator

from robust_features.noise import derived, image_keys, normal, uniform

pytestmark = pytest.mark.numeric


def keys(count=500, seed=0):
    return image_keys(count, Generator().manual_seed(seed))


def test_keys_are_the_same_however_they_are_split_into_batches():
    generator = Generator().manual_seed(0)
    split = torch.cat([image_keys(n, generator) for n in (33, 1, 66)])
    assert torch.equal(split, keys(100))


def test_an_image_draws_the_same_noise_whoever_shares_its_batch():
    assert torch.equal(normal(keys(), (3, 8, 8))[7:9], normal(keys()[7:9], (3, 8, 8)))


def test_uniform_and_normal_draws_follow_their_distributions():
    assert stats.kstest(uniform(keys(), (400,)).flatten().double(), "uniform").pvalue > 0.01
    assert stats.kstest(normal(keys(), (400,)).flatten().double(), "norm").pvalue > 0.01


def test_draws_images_and_elements_are_uncorrelated():
    first, second = normal(keys(), (400,)), normal(keys(), (400,), draw=1)
    bound = 5 / (500 * 400) ** 0.5  # five standard errors
    for a, b in ((first, second), (first[1:], first[:-1]), (first[:, 1:], first[:, :-1])):
        assert (a * b).mean().abs() < bound * (a.numel() / b.numel())


def test_uniform_draws_never_reach_zero_or_one():
    draws = uniform(keys(64), (50_000,))
    assert 0 < draws.min() and draws.max() < 1
    assert normal(keys(64), (50_000,)).isfinite().all()


def test_derived_keys_are_others_and_belong_to_the_image():
    drawn = keys(50)
    assert torch.equal(image_keys(50, drawn), drawn), "keys drawn before are handed on"
    streams = torch.stack([drawn, *(derived(drawn, number) for number in range(20))])
    assert len(streams.unique()) == streams.numel()
    assert torch.equal(derived(drawn, 3)[7:9], derived(drawn[7:9], 3))
