import pytest
import torch
from torch import Generator
from torch.nn import functional as F

from robust_features.batches import Augmentation, as_float, shuffled

pytestmark = pytest.mark.numeric


def draws():
    return Generator().manual_seed(0)


def test_every_crop_is_a_window_of_the_padded_image_or_of_its_mirror():
    images = torch.rand(50, 3, 6, 6)
    augmented = Augmentation(padding=2, flip=True)(images, draws())
    for image, found in zip(images, augmented, strict=True):
        padded = F.pad(image, [2] * 4)
        windows = [padded[:, r : r + 6, c : c + 6] for r in range(5) for c in range(5)]
        assert any(torch.equal(found, w) or torch.equal(found, w.flip(2)) for w in windows)


def test_without_padding_and_flips_images_stay_as_they_are():
    images = torch.rand(5, 3, 6, 6)
    assert torch.equal(Augmentation(padding=0, flip=False)(images, draws()), images)


def test_half_of_the_images_are_mirrored():
    images = torch.rand(400, 3, 4, 4)
    mirrored = (Augmentation(padding=0, flip=True)(images, draws()) == images.flip(3)).flatten(1).all(1)
    assert 0.4 < mirrored.float().mean() < 0.6


def test_pixels_are_scaled_to_the_unit_interval():
    values = as_float(torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)).flatten()
    torch.testing.assert_close(values, torch.tensor([0, 0.2, 1]))


def test_an_epoch_shows_every_image_at_most_once_in_full_batches():
    images, labels = torch.zeros(10, 3, 2, 2, dtype=torch.uint8), torch.arange(10)
    seen = [batch for _, batch in shuffled(images, labels, 3, draws())]
    assert [len(batch) for batch in seen] == [3, 3, 3] and len(torch.cat(seen).unique()) == 9
    assert len(next(shuffled(images, labels, 100, draws()))[1]) == 10, "a batch larger than the data holds all of it"
