"""Inversion: the parameterisation and the views have closed forms; the search is checked on a small random network."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Generator, nn

from robust_features.inversion import COLOURS, Inversion, alignment, invert, look, random_views, roughness, to_images

pytestmark = pytest.mark.numeric

SIZE = 16
SHORT = Inversion(steps=20, learning_rate=0.1, jitter=1)
STILL = replace(SHORT, jitter=0, rotation=0, scales=(1,))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tensors this small gain nothing from a second thread, and on a busy machine they wait for it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def features():
    """A random network without biases, blind to grey; double precision makes equal what should be, rounding aside."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1, bias=False)
        network = nn.Sequential(*layers).double().eval().requires_grad_(False)
    return lambda images: network(images - 0.5)


@pytest.fixture(scope="module")
def targets(features):
    """Of a white square on black, and of a green lower half."""
    images = torch.zeros(2, 3, SIZE, SIZE).double()
    images[0, :, 4:12, 2:10] = 1
    images[1, 1, 6:, :] = 1
    return features(images)


def found(features, targets, settings=SHORT, seed=0):
    return invert(features, targets, settings, size=SIZE, generator=Generator().manual_seed(seed))


def cosine(features, images, targets):
    return torch.cosine_similarity(features(images).flatten(1), targets.flatten(1))


@pytest.mark.parametrize("settings", [SHORT, STILL, replace(SHORT, similarity="kim")], ids=["views", "still", "kim"])
def test_features_come_closer_to_their_targets(features, targets, settings):
    start = found(features, torch.zeros_like(targets), replace(settings, blur=0))
    step = found(features, targets, replace(settings, steps=1))
    end = found(features, targets, settings)
    start, step, end = (cosine(features, images, targets) for images in (start, step, end))
    assert (step > start).all() and (end > start + 0.4).all()


def test_each_image_resembles_its_own_target_most(features, targets):
    images = found(features, targets, STILL)
    assert (cosine(features, images, targets) > cosine(features, images, targets.flip(0)) + 0.2).all()


def test_images_are_finite_and_in_the_unit_interval(features, targets):
    images = found(features, targets)
    assert images.shape == (2, 3, SIZE, SIZE) and not images.requires_grad
    assert images.isfinite().all() and images.min() >= 0 and images.max() <= 1


def test_the_seed_decides_the_images(features, targets):
    assert torch.equal(found(features, targets), found(features, targets))
    assert not torch.allclose(found(features, targets), found(features, targets, seed=1), atol=0.01)


def test_an_image_does_not_depend_on_who_shares_its_batch(features, targets):
    together = found(features, targets)
    torch.testing.assert_close(found(features, targets[:1]), together[:1], rtol=0, atol=1e-6)
    torch.testing.assert_close(found(features, targets[1:]), together[1:], rtol=0, atol=1e-6)


def test_a_target_of_zeros_leaves_its_image_almost_grey(features, targets):
    image = found(features, torch.zeros_like(targets), replace(SHORT, blur=0))
    torch.testing.assert_close(image, torch.full_like(image, 0.5), rtol=0, atol=0.1)


def test_gradients_of_the_network_are_left_alone(targets):
    network = nn.Conv2d(3, 12, 4, 4).double()
    found(network, targets, replace(SHORT, steps=1))
    assert network.weight.grad is None


def test_targets_of_another_size_are_refused(features, targets):
    with pytest.raises(ValueError, match="is `size` that of"):
        found(features, targets[:, :, :2])


@pytest.mark.parametrize("size", [8, 9])
def test_images_are_the_inverse_fourier_transform_of_numpy(size):
    spectrum = torch.randn(2, 3, size, size // 2 + 1, 2, generator=Generator().manual_seed(0))
    down, right = np.abs(np.fft.fftfreq(size)), np.fft.rfftfreq(size)
    frequency = np.maximum(np.sqrt(down[:, None] ** 2 + right**2), 1 / size)
    pixels = np.fft.irfft2(spectrum.numpy() @ [1, 1j] / frequency, s=(size, size), norm="ortho") / 4
    colours = np.array(COLOURS) / np.linalg.norm(COLOURS, axis=0).max()
    expected = 1 / (1 + np.exp(-np.moveaxis(colours @ np.moveaxis(pixels, 1, -2), -2, 1)))
    np.testing.assert_allclose(to_images(spectrum, size).numpy(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("cycles", [1, 2, 4])
def test_a_coefficient_is_a_wave_whose_height_falls_with_its_frequency(cycles):
    spectrum = torch.zeros(1, 3, SIZE, SIZE // 2 + 1, 2)
    spectrum[0, 0, 0, cycles, 0] = 1
    red = to_images(spectrum, SIZE).logit()[0, 0]
    wave = torch.cos(2 * math.pi * cycles * torch.arange(SIZE) / SIZE) / cycles / 2  # 2 · SIZE/cycles · 1/SIZE · 1/4
    largest = math.hypot(0.26, 0.27, 0.27)
    torch.testing.assert_close(red, (0.26 / largest * wave).expand(SIZE, SIZE), rtol=0, atol=1e-5)


def test_a_still_view_shows_the_image_itself():
    images = torch.rand(2, 3, SIZE, SIZE, generator=Generator().manual_seed(0))
    (view,) = random_views(replace(STILL, steps=1), SIZE, Generator())
    torch.testing.assert_close(look(images, view), images, rtol=0, atol=1e-5)


def test_a_shifted_view_shows_grey_beyond_the_border():
    images = torch.rand(1, 3, SIZE, SIZE, generator=Generator().manual_seed(0))
    seen = look(images, torch.tensor([[1, 0, 2 * 3 / SIZE], [0, 1, 0]]))
    torch.testing.assert_close(seen[..., :-3], images[..., 3:], rtol=0, atol=1e-5)
    assert torch.equal(seen[..., -2:], torch.full((1, 3, SIZE, 2), 0.5))


def test_views_stay_within_their_settings():
    settings = Inversion(steps=200, jitter=3, rotation=10, scales=(0.5, 2))
    linear, shift = random_views(settings, SIZE, Generator().manual_seed(0)).split([2, 1], dim=2)
    angle = torch.atan2(linear[:, 1, 0], linear[:, 0, 0]).rad2deg().abs()
    assert 9 < angle.max() <= 10 and 2.9 < shift.abs().max() * SIZE / 2 <= 3
    determinants = torch.linalg.det(linear)  # 1 / scale²
    assert ((determinants - 4).abs().minimum((determinants - 1 / 4).abs()) < 1e-4).all()
    assert 50 < (determinants > 1).sum() < 150


@pytest.mark.parametrize(
    "similarity, expected", [("kim", [4 * 2.0**2, 2 * 1.0**2]), ("cosine", [4 * 1.0**2, 2 * 0.5**2])]
)
def test_alignment_with_the_target_itself_and_at_sixty_degrees(similarity, expected):
    targets = torch.tensor([[2.0, 0.0], [2.0, 0.0]])[..., None, None]
    features = torch.tensor([[2.0, 0.0], [1.0, math.sqrt(3)]])[..., None, None]
    torch.testing.assert_close(alignment(features, targets, similarity), torch.tensor(expected))


def test_roughness_of_a_checkerboard():
    board = (torch.arange(4)[:, None] + torch.arange(4)) % 2 * torch.ones(1, 3, 1, 1)
    inside, border = (0.9 * 4 / 9) ** 2, (0.9 * 3 / 6) ** 2  # four of nine, three of six neighbours differ in mean
    assert roughness(board).item() == pytest.approx(3 * (4 * inside + 12 * border))
    assert roughness(torch.full((1, 3, 4, 4), 0.3)).item() == pytest.approx(0, abs=1e-9)


def test_blur_makes_images_smoother(features, targets):
    rough, smooth = (found(features, targets, replace(SHORT, blur=blur)) for blur in (0, 10))
    assert (roughness(smooth) < roughness(rough)).all()


WRONG = [{"steps": 0}, {"scales": ()}, {"scales": (0.0,)}, {"similarity": "dot"}, {"stepps": 1}]


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Inversion(**wrong)
