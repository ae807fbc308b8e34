import pytest
import torch
from torch import nn

from robust_features.models import VGG16, Network, ResNet18, ResNetV2, Victim, WideResNet, build, folded, frozen

pytestmark = pytest.mark.numeric

NARROW = [
    VGG16(width=0.125),
    VGG16(width=0.125, hidden=2),
    WideResNet(depth=10, width=1),
    ResNet18(width=0.125),
    ResNetV2(depth=11, width=0.5),
    *(
        Victim(kind=kind, width=0.25)
        for kind in ("densenet121", "mobilenet-v2", "googlenet", "shufflenet-v2", "resnet50")
    ),
]
PUBLISHED = [  # parameters for 10 classes, as the architectures' public implementations count them
    (VGG16(), 14_728_266),
    (WideResNet(), 36_479_194),
    (ResNet18(), 11_173_962),
    (ResNetV2(depth=29), 843_786),
    (ResNetV2(depth=56), 1_663_338),
    # torchvision's for 1,000 classes less the other 990, and less what the stem of 7 × 7 has more than one of 3 × 3
    (Victim(kind="densenet121"), 7_978_856 - 990 * 1025 - 40 * 3 * 64),
    (Victim(kind="mobilenet-v2"), 3_504_872 - 990 * 1281),
    (Victim(kind="shufflenet-v2"), 2_278_604 - 990 * 1025),
    (Victim(kind="resnet50"), 25_557_032 - 990 * 2049 - 40 * 3 * 64),
]


@pytest.mark.parametrize("settings", NARROW, ids=lambda s: s.kind)
def test_head_of_features_is_the_network_to_the_bit_at_every_stage(settings):
    network = build(settings, classes=10, seed=0).eval()
    images = torch.rand(3, 3, 32, 32)
    for stage in network.stages:
        features = network.features(images, stage)
        before = features.clone()
        assert torch.equal(network.head(features, stage), network(images)), stage
        assert torch.equal(features, before), f"{stage}: the head changed its input in place"


@pytest.mark.parametrize("settings", NARROW, ids=lambda s: s.kind)
def test_activations_name_the_output_of_every_stage(settings):
    network = build(settings, classes=10, seed=0).eval()
    images = torch.rand(2, 3, 32, 32)
    activations = network.activations(images)
    assert list(activations) == list(network.stages)
    assert all(torch.equal(value, network.features(images, name)) for name, value in activations.items())
    assert {*network.hidden, network.split, network.representation} <= activations.keys()


@pytest.mark.parametrize("settings, count", PUBLISHED, ids=lambda value: getattr(value, "kind", value))
def test_full_versions_have_the_published_number_of_parameters(settings, count):
    with torch.device("meta"):
        network = settings.build(10)
    assert sum(parameter.numel() for parameter in network.parameters()) == count


@pytest.mark.parametrize("size, positions", [(32, 2), (64, 4)])
def test_vgg_is_split_at_the_batch_norm_of_its_thirteenth_convolution(size, positions):
    network = build(VGG16(width=0.125), classes=10, seed=0).eval()
    z = network.features(torch.rand(2, 3, size, size))
    assert z.shape == (2, 64, positions, positions)
    assert z.min() < 0, "the split lies before the ReLU"
    assert sum(isinstance(m, nn.Conv2d) for s in list(network.stages.values())[:6] for m in s.modules()) == 13


def test_weights_depend_on_the_seed_alone():
    torch.manual_seed(7)
    one = build(VGG16(width=0.125), 10, seed=3).state_dict()
    torch.rand(5)
    two, other = (build(VGG16(width=0.125), 10, seed=seed).state_dict() for seed in (3, 4))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not torch.equal(one["stages.logits.weight"], other["stages.logits.weight"])


def test_an_unknown_stage_is_named_with_those_there_are():
    network = build(VGG16(width=0.125), 10, seed=0)
    with pytest.raises(ValueError, match="no stage 'conv6'; it has normalize, block1"):
        network.features(torch.rand(1, 3, 32, 32), "conv6")


@pytest.mark.parametrize("kind, depth, message", [(WideResNet, 27, "6n \\+ 4"), (ResNetV2, 50, "9n \\+ 2")])
def test_impossible_depths_are_refused(kind, depth, message):
    with pytest.raises(ValueError, match=message):
        kind(depth=depth)


def test_frozen_sets_eval_mode_without_gradients_and_restores_both():
    network = build(VGG16(width=0.125), 10, seed=0).train()
    network.stages["logits"].weight.requires_grad_(False)
    with frozen(network):
        assert not network.training and not any(p.requires_grad for p in network.parameters())
    assert network.training and not network.stages["logits"].weight.requires_grad
    assert network.stages["logits"].bias.requires_grad


@pytest.mark.parametrize("settings", NARROW, ids=lambda s: s.kind)
def test_folding_changes_neither_the_function_nor_the_original_nor_any_stage(settings):
    network = build(settings, 10, seed=0)
    for _ in range(3):  # statistics that are not 0 and 1
        network(torch.rand(8, 3, 32, 32))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.eval()
    images, quick = torch.rand(4, 3, 32, 32), folded(network)
    norms = [sum(isinstance(m, torch.nn.BatchNorm2d) for m in n.modules()) for n in (network, quick)]
    unfolded = settings.kind == "googlenet"  # whose convolutions are no chains
    assert (norms[1] < norms[0] or unfolded) and not any(p.requires_grad for p in quick.parameters())
    with torch.no_grad():
        for name, activation in network.activations(images).items():
            torch.testing.assert_close(quick.features(images, name), activation, rtol=1e-3, atol=1e-4)
        kept = quick.features(images).clone()
        z = quick.features(images)
        quick.head(z)
        assert torch.equal(z, kept), "the head works in place on nothing that is kept"
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in before.items())


def test_a_chain_of_ones_own_works_nowhere_in_place_and_needs_no_published_width():
    mine = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(144, 10))
    network, images = Network(dict(mine.named_children()), split="0"), torch.rand(2, 3, 8, 8)
    kept = network.features(images).clone()
    z = network.features(images)
    network.head(z)
    assert torch.equal(z, kept) and network.full_channels is None
    assert network.representation == "2" and network.hidden == ("0", "1", "2")
