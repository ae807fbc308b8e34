from dataclasses import replace

import pytest
import torch
from precise import precise
from sample_networks import CPU
from scipy.stats import chi2_contingency
from torch import Generator

from robust_features import construction
from robust_features.batches import ImageSet, as_float
from robust_features.construction import Null, Relabelled, Robustified, construct, others
from robust_features.networks import VGG16, build

pytestmark = pytest.mark.numeric

HALF_LEVEL = 0.5 / 255  # what rounding to uint8 moves a pixel by, at most


@pytest.fixture(scope="module")
def network():
    network = build(VGG16(width=0.0625), 10, seed=0)
    with torch.no_grad():  # batch norms that have seen images
        network.train()(torch.rand(64, 3, 32, 32, generator=Generator().manual_seed(1)))
    return network.eval()


@pytest.fixture(scope="module")
def images():
    draw = Generator().manual_seed(0)
    pixels = torch.randint(256, (23, 3, 32, 32), dtype=torch.uint8, generator=draw)
    return ImageSet(pixels, torch.arange(23) % 10, tuple("abcdefghij"), "noise")


def make(how, network, images, **options):
    return construct(how, network, images, hardware=CPU, seed=0, **options)


def test_robustification_brings_the_representation_nearer_and_keeps_the_label(network, images):
    made = make(Robustified(steps=40, step_size=0.1), network, images)
    assert (made.after < 0.5 * made.before).all()
    assert torch.equal(made.images.labels, images.labels) and (made.began != torch.arange(23)).all()
    with torch.no_grad():
        z = [network.features(as_float(x), network.representation) for x in (made.images.images, images.images)]
    torch.testing.assert_close((z[0] - z[1]).norm(dim=1), made.after, rtol=1e-3, atol=1e-4)
    start = as_float(images.images[made.began])
    torch.testing.assert_close((as_float(made.images.images) - start).flatten(1).norm(dim=1), made.l2)
    assert torch.equal(made.reached, made.after <= made.before / 10)


def test_lbfgs_comes_as_near_in_a_fifth_of_the_steps(network, images):
    usual = make(Robustified(steps=60, step_size=0.1), network, images)
    quick = make(Robustified(steps=12, method="lbfgs"), network, images)
    assert quick.after.mean() < usual.after.mean()


@pytest.mark.parametrize("targets", ["random", "next", "every"])
def test_relabelled_images_lie_within_their_bound_and_nearer_to_their_target(network, images, targets):
    construction = Relabelled(targets=targets, epsilon=0.5, step_size=0.1, steps=10)
    made = make(construction, network, images)
    assert (made.l2 <= 0.5 + HALF_LEVEL * (3 * 32 * 32) ** 0.5).all()
    assert made.after.mean() < made.before.mean()
    with torch.no_grad():
        predicted = network(as_float(made.images.images)).argmax(1)
    assert torch.equal(made.reached, predicted == made.images.labels)


def test_the_three_ways_to_choose_targets(network, images):
    short = dict(epsilon=0.1, step_size=0.1, steps=1)
    labels = make(Relabelled(targets="next", **short), network, images).images.labels
    assert torch.equal(labels, (images.labels + 1) % 10)
    every = make(Relabelled(targets="every", **short), network, images)
    assert torch.equal(every.images.labels, torch.arange(10).repeat(23)) and torch.equal(
        every.began, torch.arange(230) // 10
    )


def test_null_controls_keep_either_the_labels_or_the_perturbations(network, images):
    true = make(Relabelled(targets="random", steps=5), network, images)
    unmoved = make(Null(targets="random", control="unmoved"), network, images)
    assert torch.equal(unmoved.images.images, images.images) and not unmoved.l2.any()
    assert torch.equal(unmoved.images.labels, true.images.labels)
    noise = make(Null(targets="random", control="noise"), network, images)
    assert torch.equal(noise.images.labels, true.images.labels) and torch.equal(noise.began, true.began)
    assert (noise.l2 <= 0.5 + HALF_LEVEL * (3 * 32 * 32) ** 0.5).all() and (noise.l2 > 0.4).all()
    moved = (as_float(noise.images.images) - as_float(images.images)).flatten(1)
    alike = torch.nn.functional.cosine_similarity(moved[:, None], moved, dim=2) - torch.eye(23)
    assert alike.abs().max() < 0.1, "every image has a direction of its own"
    shuffled = make(Null(targets="random", control="shuffled", steps=5), network, images)
    assert torch.equal(shuffled.images.images, true.images.images) and torch.equal(shuffled.l2, true.l2)
    assert not torch.equal(shuffled.images.labels, true.images.labels)
    assert torch.equal(shuffled.images.labels.sort().values, true.images.labels.sort().values)


def test_random_targets_do_not_know_the_original_label(images):
    many = replace(images, images=images.images[:1].expand(5000, -1, -1, -1), labels=torch.arange(5000) % 10)
    _, targets = Relabelled(targets="random").plan(many, seed=0)
    table = torch.zeros(10, 10).index_put((many.labels, targets), torch.ones(5000), accumulate=True)
    assert table.sum(0).min() > 400 and chi2_contingency(table.numpy()).pvalue > 0.01


def test_images_begin_from_others_uniformly():
    began = torch.stack([others(5, seed) for seed in range(2000)])
    assert (began != torch.arange(5)).all() and began.min() == 0 and began.max() == 4
    shares = torch.stack([(began[:, i] == j).float().mean() for i in range(5) for j in range(5) if i != j])
    assert (shares - 0.25).abs().max() < 0.04
    with pytest.raises(ValueError, match="needs two, found 1"):
        others(1, 0)


@pytest.mark.parametrize(
    "construction",
    [
        Robustified(steps=5, step_size=0.3),
        Robustified(steps=5, method="lbfgs"),
        Relabelled(targets="random", steps=5),
        Null(targets="random", control="unmoved"),
        Null(targets="random", control="noise"),
        Null(targets="random", control="shuffled", steps=5),
    ],
    ids=["robustified", "lbfgs", "relabelled", "unmoved", "noise", "shuffled"],
)
def test_the_same_dataset_comes_out_again_and_in_any_batch(network, images, construction):
    network = precise(network)
    whole = make(construction, network, images)
    assert torch.equal(whole.images.images, make(construction, network, images).images.images)
    parts = make(construction, network, images, batch_size=5)
    assert torch.equal(whole.images.labels, parts.images.labels) and torch.equal(whole.began, parts.began)
    apart = (whole.images.images.int() - parts.images.images.int()).abs()
    assert apart.max() <= 1 and apart.float().mean() < 0.01, "but for the rounding to uint8"


def test_batches_that_are_kept_are_not_made_again_and_all_others_are(network, images, monkeypatch):
    how, kept, calls, move = Robustified(steps=3, step_size=0.2), {}, [], Robustified.move

    def once(first, make):
        return kept[first] if first in kept else kept.setdefault(first, make())

    whole = make(how, network, images, batch_size=6, once=once)
    assert sorted(kept) == [0, 6, 12, 18]
    del kept[12]
    monkeypatch.setattr(Robustified, "move", lambda *arguments: calls.append(1) or move(*arguments))
    again = make(how, network, images, batch_size=6, once=once)
    assert len(calls) == 1 and torch.equal(again.images.images, whole.images.images)
    assert all(torch.equal(getattr(again, name), getattr(whole, name)) for name in construction.MEASURES)
