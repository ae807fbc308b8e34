"""Planted worlds hold what they say, so that a score on them means something."""

import pytest
import torch

from robust_features import hardware
from robust_features.batches import as_float
from robust_features.bottleneck import Distillation
from robust_features.dependence import HSIC
from robust_features.planted import (
    CLASSES,
    Channels,
    World,
    patterns,
    precision_recall,
    ranked,
    readings,
    score_dependence,
    score_index,
)
from robust_features.recovery import Study, course, fit, network, nudged, recover
from robust_features.regularisers import IBRAR
from robust_features.training.objectives import Standard

pytestmark = pytest.mark.numeric

CPU = hardware.choose(hardware.HardwareSettings(device="cpu", precision="fp32"))
KNOWN = patterns(seed=3)


def told(parts, world=None, count=800):
    """The share of images whose class each of the three readings tells, by the parts that they show."""
    drawn = (world or World()).draw(KNOWN, count, parts=parts, seed=5)
    seen = readings(KNOWN, as_float(drawn.images)).unflatten(1, (3, CLASSES)).argmax(2)
    return (seen == drawn.labels[:, None]).float().mean(0).tolist()


def test_the_patterns_lie_where_they_should_and_tell_all_classes_apart():
    body, nose, texture = KNOWN.body != 0, KNOWN.nose != 0, KNOWN.texture != 0
    assert not (body & nose).any() and not ((body | nose) & texture).any()
    assert (body | nose)[:, :, :9].all() and texture[:, :, 9:].all()
    for part in (KNOWN.body, KNOWN.nose):
        differs = (part[:, None] != part).flatten(2).sum(2) / part[0].count_nonzero()
        torch.testing.assert_close(differs, 2 / 3 * (1 - torch.eye(CLASSES)))
    angles = torch.nn.functional.normalize(KNOWN.texture.flatten(1), dim=1)
    torch.testing.assert_close(angles @ angles.T, torch.eye(CLASSES), atol=1e-5, rtol=0)


def test_a_part_is_told_where_it_is_shown_and_only_there():
    body, nose, texture = told("A")
    assert 0.65 < body < 0.98 and abs(nose - 0.25) < 0.06 and abs(texture - 0.25) < 0.06
    body, nose, texture = told("BC")
    assert abs(body - 0.25) < 0.06 and nose > 0.93 and texture > 0.93
    assert all(abs(share - 0.25) < 0.06 for share in told(""))


def test_small_parts_are_right_as_often_as_they_are_reliable():
    _, nose, texture = told("ABC", World(reliable=0.6, grain=0.005), count=4000)
    assert nose == pytest.approx(0.6 + 0.4 / 4, abs=0.03) and texture == pytest.approx(0.6 + 0.4 / 4, abs=0.03)


def test_no_linear_feature_sees_the_texture():
    drawn = World(shade=0, grain=0, reliable=1).draw(KNOWN, 4000, parts="C", seed=1)
    means = torch.stack([as_float(drawn.images)[drawn.labels == k].mean(0) for k in range(CLASSES)])
    assert (means - means.mean(0)).abs().max() < 0.2 * 0.02 * KNOWN.texture.abs().max()


def test_only_the_body_moves_the_image_further_than_the_adversary_may():
    world, epsilon = World(), Study().epsilon
    half = {
        name: size * (part[0] - part[1]).norm() / 2
        for name, size, part in (("A", world.body, KNOWN.body), ("B", world.nose, KNOWN.nose))
    }
    assert half["A"] > 2 * epsilon and half["B"] < epsilon and world.texture * KNOWN.texture[0].norm() < epsilon


def test_robust_and_brittle_channels_say_the_same_and_brittle_ones_bear_a_tenth_of_the_noise():
    layer = Channels()
    z, labels = layer.draw(400, seed=0)
    head = layer.network()
    weight = head.stages["logits"].weight.detach()
    shares = [weight[:, layer.kinds == kind] @ z.mean((2, 3))[:, layer.kinds == kind].T for kind in range(3)]
    right = [(share.argmax(0) == labels).float().mean().item() for share in shares]
    assert right[0] == pytest.approx(right[1], abs=0.06) and right[0] > 0.8 and not weight[:, layer.kinds == 2].any()
    torch.testing.assert_close(weight[:, layer.kinds == 1].norm(), 10 * weight[:, layer.kinds == 0].norm())
    torch.testing.assert_close(head.head(z), sum(shares).T)


def test_an_index_that_is_right_scores_full_marks_and_one_that_calls_all_nonrobust_a_third():
    layer = Channels(each=4)
    sigma = torch.where(layer.kinds == 1, 0.1, 1.0).expand(5, -1)
    right = score_index(layer, Distillation(sigma, sigma, torch.full((5,), 0.5)))
    assert right == {"precision": 100, "recall": 100, "AUC": 100, "robust called robust": 100,
                     "brittle called robust": 0, "irrelevant called robust": 100}  # fmt: skip
    none = score_index(layer, Distillation(sigma, sigma, torch.full((5,), 9.0)))
    assert (
        none["precision"] == pytest.approx(100 / 3) and none["recall"] == 100 and none["irrelevant called robust"] == 0
    )


def test_scores_that_rank_noise_last_or_first_are_told_apart():
    layer = Channels(each=3)
    last = score_dependence(layer, torch.tensor([5.0, 6, 7, 3, 4, 5, 0, 1, 2]))
    assert last["noise below robust"] == last["noise below brittle"] == last["noise among removed"] == 100
    assert last["noise over robust"] == pytest.approx(100 / 6)
    first = score_dependence(layer, torch.tensor([5.0, 6, 7, 0, 1, 2, 3, 4, 5]))
    assert first["noise below brittle"] == first["noise among removed"] == 0 and first["noise below robust"] > 90


def test_ranks_and_precision_are_what_counting_gives():
    scores = torch.randn(40, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    wanted = torch.rand(40, generator=torch.Generator().manual_seed(1)) < 0.3
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[wanted].tolist() for b in scores[~wanted].tolist()]
    assert ranked(scores, wanted) == pytest.approx(sum(pairs) / len(pairs))
    found = {n for n in range(40) if scores[n] > 0.2}
    there = {n for n in range(40) if wanted[n]}
    both = len(found & there)
    assert precision_recall(scores > 0.2, wanted) == pytest.approx((both / len(found), both / len(there)))


def test_the_null_controls_perturbations_are_as_long_and_have_no_direction():
    one, other = (World().draw(KNOWN, 50, seed=seed) for seed in (1, 2))
    near = as_float(one.images) + 0.1 * (as_float(other.images) - as_float(one.images))
    moved = World().draw(KNOWN, 50, seed=1)
    moved.images.copy_((255 * near).round().byte())
    found = as_float(nudged(one, moved, 0)) - as_float(one.images)
    size = (as_float(moved.images) - as_float(one.images)).flatten(1).norm(dim=1)
    torch.testing.assert_close(found.flatten(1).norm(dim=1), size, rtol=0.05, atol=0.01)


def test_a_study_is_the_same_twice_and_its_shuffled_labels_are_the_same_labels():
    tiny = Study(sources=200, images=40, tests=40)
    first, second = (recover(tiny, "AC", seed=1, hardware=CPU, taught=("d-rand", "shuffled")) for _ in range(2))
    assert [*first.networks] == ["standard", "robust", "d-rand", "shuffled"]
    assert [*first.tests] == ["AC", "A", "C", "R", "R body", "R texture"]
    for name, one in first.networks.items():
        same = zip(one.parameters(), second.networks[name].parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in same)
    assert not torch.equal(network(0).stages["logits"].weight, network(1).stages["logits"].weight)
    body, texture, whole = (first.tests[name].images for name in ("R body", "R texture", "R"))
    assert torch.equal(body[:, :, :9], whole[:, :, :9]) and torch.equal(texture[:, :, 9:], whole[:, :, 9:])


def test_the_course_of_training_begins_where_networks_do_and_follows_the_weight_that_the_loss_has():
    trace = HSIC(estimator="biased", bandwidth="median")
    world, how = World(), dict(seed=1, epochs=3, estimates={"trace": trace})
    images, tests = (world.draw(KNOWN, count, seed=seed) for count, seed in ((400, 5), (100, 6)))
    none, *pulled = (
        course(images, tests, loss, **how)
        for loss in (None, IBRAR(alpha=10.0, beta=0.0, hsic=trace), IBRAR(alpha=0.0, beta=10.0, hsic=trace))
    )
    assert [row["epoch"] for row in none] == [0, 0, 1, 1, 2, 2, 3, 3]
    for rows in pulled:
        assert rows[:2] == none[:2], "before training all are one network"
    (images_less, _), (_, labels_more) = ([row["value"] for row in rows[-2:]] for rows in pulled)
    assert images_less < none[-2]["value"] and labels_more > none[-1]["value"]
    zero = fit(images, Standard(), seed=1, epochs=2, regulariser=IBRAR(alpha=0.0, beta=0.0)).state_dict()
    assert all(
        torch.equal(zero[name], value) for name, value in fit(images, Standard(), seed=1, epochs=2).state_dict().items()
    )
