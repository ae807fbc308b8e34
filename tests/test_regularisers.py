import re

import pytest
import torch
from torch import Generator, nn
from torch.distributions import Independent, Normal, kl_divergence

from robust_features.attacks import PGD
from robust_features.dependence import HSIC, gaussian_kernel, linear_kernel, normalised_hsic
from robust_features.networks import VGG16, ResNet18, WideResNet, build, folded
from robust_features.regularisers import IBRAR, VIB, BatchMask, PersistentMask, channel_scores
from robust_features.training.objectives import Adversarial, Mart, Standard, Trades

pytestmark = pytest.mark.numeric

ATTACK = PGD(epsilon=0.03, step_size=0.01, steps=2)
IMAGES = torch.rand(20, 3, 32, 32, generator=Generator().manual_seed(0))
LABELS = torch.arange(20) % 10


@pytest.fixture
def network():
    return build(VGG16(width=0.0625, hidden=2), 10, seed=0)


def test_the_regulariser_is_the_sum_of_equation_1(network):
    outcome = Standard()(network, IMAGES, LABELS, generator=Generator())
    layers = ("block5", "fc1")
    value = IBRAR(alpha=0.3, beta=0.7, layers=layers)(network, outcome.passes, IMAGES, LABELS, given=outcome.images)
    x, y = gaussian_kernel(IMAGES.flatten(1)), linear_kernel(nn.functional.one_hot(LABELS, 10).float())
    t = [gaussian_kernel(outcome.passes[0][layer].flatten(1)) for layer in layers]
    expected = sum(0.3 * normalised_hsic(k, x) - 0.7 * normalised_hsic(k, y) for k in t)
    torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("objective, passes", [(Standard(), 1), (Adversarial(attack=ATTACK), 1), (Trades(attack=ATTACK), 2), (Mart(attack=ATTACK), 2)], ids=lambda v: getattr(v, "kind", v))  # fmt: skip  # noqa: E501
def test_it_composes_with_every_objective_without_another_pass(network, objective, passes):
    calls, own = [], network.stages["block1"]  # a folded copy, which images are crafted on, takes the hook along
    own.register_forward_hook(lambda module, *_: calls.append(1) if module is own else None)
    outcome = objective(network, IMAGES, LABELS, generator=Generator().manual_seed(0))
    inputs, labels = IBRAR().dependence(network, outcome.passes, IMAGES, LABELS)
    assert inputs.shape == labels.shape == (passes * len(network.hidden),)
    (outcome.loss + inputs.sum() - labels.sum()).backward()
    assert len(calls) == passes
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


@pytest.mark.parametrize("objective", [Adversarial(attack=ATTACK), Trades(attack=ATTACK)], ids=lambda each: each.kind)
def test_the_images_may_be_those_that_each_pass_was_given(network, objective):
    outcome, layers = objective(network, IMAGES, LABELS, generator=Generator().manual_seed(0)), ("block5", "fc1")
    options = dict(given=outcome.images)
    clean, labels = IBRAR(layers=layers).dependence(network, outcome.passes, IMAGES, LABELS, **options)
    found, same = IBRAR(layers=layers, of="given").dependence(network, outcome.passes, IMAGES, LABELS, **options)
    expected = [
        normalised_hsic(gaussian_kernel(outputs[layer].flatten(1)), gaussian_kernel(seen.flatten(1)))
        for seen, outputs in zip(outcome.images, outcome.passes, strict=True)
        for layer in layers
    ]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(same, labels)
    own = torch.tensor([bool((seen != IMAGES).any()) for seen in outcome.images for _ in layers])
    assert own.any() and not torch.isclose(found, clean, rtol=1e-6)[own].any()
    torch.testing.assert_close(found[~own], clean[~own], rtol=1e-4, atol=1e-5)


def test_vib_is_the_divergence_from_a_standard_normal():
    network = build(VGG16(width=0.0625, encoding=8), 10, seed=0).eval()
    passes = (network.activations(IMAGES),)
    mean, deviation = passes[0]["encoding"].unbind(1)
    found, prior = Normal(mean, deviation), Normal(torch.zeros(8), torch.ones(8))
    expected = kl_divergence(Independent(found, 1), Independent(prior.expand(mean.shape), 1)).mean()
    torch.testing.assert_close(VIB(beta=0.5)(network, passes, IMAGES, LABELS, given=(IMAGES,)), 0.5 * expected)


def test_the_encoding_is_drawn_in_training_and_its_mean_in_tests():
    network = build(VGG16(width=0.0625, encoding=8), 10, seed=0)
    statistics = torch.randn(4000, 2, 8).exp()
    sample = network.stages["sample"].train()(statistics)
    assert abs(((sample - statistics[:, 0]) / statistics[:, 1]).std() - 1) < 0.02
    assert torch.equal(network.stages["sample"].eval()(statistics), statistics[:, 0])


@pytest.mark.parametrize(
    "regulariser, size, said",
    [
        (IBRAR(layers=("block6",)), 100, r"layers: no stage 'block6'; did you mean 'block\d'\?; there are normalize, block1"),
        (IBRAR(hsic=HSIC(estimator="unbiased")), 3, "unbiased needs batches of 4 images or more, batch_size is 3"),
        (VIB(), 100, "needs the stage 'encoding'"),
        (IBRAR(), 2, "^$"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_network_is_said_before_training(network, regulariser, size, said):
    assert re.search(said, regulariser.problem(network, size))


UNBIASED = HSIC(estimator="unbiased")


@pytest.mark.parametrize(
    "mask, size, said",
    [
        (PersistentMask(hsic=UNBIASED, batch=3), 100, "unbiased needs batches of 4 images or more, batch is 3"),
        (PersistentMask(images=1), 100, "normalised needs batches of 2 images or more, images is 1"),
        (BatchMask(hsic=UNBIASED), 3, "unbiased needs batches of 4 images or more, batch_size is 3"),
        (PersistentMask(hsic=UNBIASED, batch=4), 2, "^$"),
        (BatchMask(), 2, "^$"),
    ],
)
def test_a_mask_of_too_few_images_for_its_estimate_is_said_before_training(mask, size, said):
    assert re.search(said, mask.problem(size))


@pytest.mark.parametrize("wrong", [{"alpha": -0.1}, {"beta": -0.1}])
def test_negative_weights_are_refused(wrong):
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        IBRAR(**wrong)


@pytest.mark.parametrize("fraction", [-0.1, 1.0])
def test_a_mask_of_everything_or_less_than_nothing_is_refused(fraction):
    with pytest.raises(ValueError, match="fraction"):
        PersistentMask(fraction=fraction)


@pytest.mark.parametrize(
    "settings", [VGG16(width=0.0625), ResNet18(width=0.0625), WideResNet(depth=10, width=1)], ids=lambda s: s.kind
)
def test_a_masked_channel_reaches_nothing_and_attacks_see_the_mask(settings):
    plain, masked = (build(settings, 10, seed=0, masked=masked).eval() for masked in (False, True))
    assert torch.equal(plain(IMAGES[:4]), masked(IMAGES[:4])), "an empty mask changes nothing"
    masked.mask.passing[0] = 0
    z = plain.features(IMAGES[:4])
    z[:, 0] = 0
    torch.testing.assert_close(masked(IMAGES[:4]), plain.head(z))
    torch.testing.assert_close(folded(masked)(IMAGES[:4]), plain.head(z), rtol=1e-3, atol=1e-4)
    assert "mask" not in str(plain.state_dict().keys()) and any("passing" in key for key in masked.state_dict())


def test_channel_scores_are_the_dependence_of_one_channel_at_a_time(network):
    hsic = HSIC()
    scores = channel_scores(network, IMAGES, LABELS, hsic)
    f = network.eval().features(IMAGES).relu().detach()
    for c in (0, 5):
        alone = hsic(hsic.of_features(f[:, c]), hsic.of_labels(LABELS, 10))
        torch.testing.assert_close(scores["labels"][c], alone, rtol=1e-2, atol=1e-3)
    assert scores["labels"].shape == scores["images"].shape == (32,)


def test_the_persistent_mask_removes_the_channels_that_say_least_of_the_labels():
    network = build(VGG16(width=0.0625), 10, seed=0, masked=True)
    mask = PersistentMask(fraction=0.25, images=20, batch=20)
    images = (255 * IMAGES).byte()
    mask.before_epoch(network, images, LABELS, epoch=1, seed=0)
    assert network.mask.passing.all()
    scores = channel_scores(network, images / 255, LABELS, mask.hsic)["labels"]
    for _ in range(2):  # the second time as the first: removed channels are looked at again
        mask.before_epoch(network, images, LABELS, epoch=2, seed=0)
        removed = network.mask.passing == 0
        assert removed.sum() == 8 and scores[removed].max() <= scores[~removed].min()


def test_the_batch_mask_lasts_a_batch():
    network = build(VGG16(width=0.0625), 10, seed=0, masked=True)
    mask = BatchMask(least_of_labels=0.125, most_of_images=0.125)
    removed = []
    for index in range(21):
        mask.before_batch(network, IMAGES, LABELS, index)
        removed.append(int((network.mask.passing == 0).sum()))
    assert [index for index, count in enumerate(removed) if count] == [10, 20] and 4 <= removed[10] <= 8
    mask.after_epoch(network)
    assert network.mask.passing.all()


def test_a_network_without_a_mask_says_so(network):
    with pytest.raises(ValueError, match="no channel mask; build it with masked=True"):
        _ = network.mask
