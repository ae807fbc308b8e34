import pytest
import torch
from precise import precise
from sample_networks import CPU
from torch import Generator

from robust_features.attacks import PGD, CarliniWagner
from robust_features.batches import ImageSet
from robust_features.evaluation import attack_all, decide, features, predict
from robust_features.networks import VGG16, build

pytestmark = pytest.mark.numeric

ATTACKS = {"pgd": PGD(epsilon=0.05, step_size=0.02, steps=3), "cw": CarliniWagner(c=10.0, steps=4)}


@pytest.fixture(scope="module")
def network():
    return build(VGG16(width=0.0625), 10, seed=0)


@pytest.fixture(scope="module")
def images():
    pixels = torch.randint(256, (23, 3, 32, 32), generator=Generator().manual_seed(0)).byte()
    return ImageSet(pixels, torch.arange(23) % 10, tuple("0123456789"), "random")


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=lambda a: a.kind)
def test_results_do_not_depend_on_the_batch_size(network, images, attack):
    network = precise(network)
    whole, parts = (
        attack_all(attack, network, images, hardware=CPU, seed=0, batch_size=size, images_kept=23) for size in (23, 7)
    )
    torch.testing.assert_close(whole.images, parts.images, rtol=0, atol=1e-3)
    assert (whole.predictions == parts.predictions).all()


def test_threads_share_the_batches_and_change_nothing(network, images):
    threads = torch.get_num_threads()
    try:
        found = []
        for number in (1, 3):
            torch.set_num_threads(number)
            found.append(
                attack_all(ATTACKS["pgd"], network, images, hardware=CPU, seed=0, batch_size=5, images_kept=12)
            )
            assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(found[0].images, found[1].images, rtol=0, atol=1e-5)
    assert len(found[0].images) == 12 and torch.equal(found[0].predictions, found[1].predictions)


def test_the_seed_decides_the_random_start(network, images):
    one, again, other = (
        attack_all(ATTACKS["pgd"], network, images, hardware=CPU, seed=seed, images_kept=23).images
        for seed in (0, 0, 1)
    )
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_norms_are_those_of_the_kept_images(network, images):
    found = attack_all(ATTACKS["pgd"], network, images, hardware=CPU, seed=0, images_kept=23)
    delta = (found.images - images.images / 255).flatten(1)
    torch.testing.assert_close(found.l2, delta.norm(dim=1))
    torch.testing.assert_close(found.linf, delta.abs().amax(1))


def test_deciding_on_features_is_predicting_from_images(network, images):
    network, x = precise(network), images.images / 255
    with torch.no_grad():  # batch norms that have seen images, and several classes
        network.train()(x)
        network.eval().stages["logits"].bias -= network(x).mean(0)
    z, right = features(network, x, hardware=CPU), predict(network, x, hardware=CPU).argmax(1)
    assert len(right.unique()) > 5 and torch.equal(decide(network, z, hardware=CPU), right)
