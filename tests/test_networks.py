import pytest
import torch
from torch import Generator, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from companion.datasets import ImageSet
from robust_features import bottleneck, hardware
from robust_features.attacks import PGD
from robust_features.evaluation import attack_all
from robust_features.networks import (
    VGG16,
    Network,
    Normalize,
    ResNet18,
    ResNetV2,
    Victim,
    WideResNet,
    build,
    folded,
    frozen,
)
from robust_features.networks.network import GlobalAverage
from robust_features.training.objectives import Standard

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


@pytest.mark.parametrize("size", [1, 2, 8])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_the_average_over_positions_is_torchs_and_so_is_its_gradient(size, layout):
    features = torch.randn(5, 3, size, size, generator=Generator().manual_seed(0)).contiguous(memory_format=layout)
    found = []
    for pool in (GlobalAverage(), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())):
        given = features.detach().requires_grad_()
        pooled = pool(given)
        pooled.square().sum().backward()
        found.append((pooled.detach(), given.grad))
    torch.testing.assert_close(found[0], found[1])


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


class Standardised(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, (self.weight - self.weight.mean()) / self.weight.std(), self.bias, padding=1)


class NormAndActivation(nn.BatchNorm2d):
    def forward(self, x):
        return F.leaky_relu(super().forward(x), 0.5)


class Clipped(nn.ReLU):
    def forward(self, x):
        return x.clamp(0, 0.3)


class Residual(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


class Stub(nn.Module):
    """Returns what it is given, as those that quantisation replaces later."""

    def forward(self, x):
        return x


class Around(nn.Module):
    """x + body(x): a ReLU in place on the body's input is seen."""

    def __init__(self, *body):
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, x):
        return x + self.body(x)


class TrainsForEver(nn.BatchNorm2d):
    def train(self, mode=True):
        return super().train(True)


class OneByOne(Around):
    """Uses the layers of its Sequential one by one: what is between them is part of the output."""

    def forward(self, x):
        between = self.body[0](x)
        return between + self.body[2](self.body[1](between))


class Squares(Around):
    """The square is taken before a ReLU in place changes it: only its gradient is lost."""

    def forward(self, x):
        between = self.body[0](x)
        square = between * between
        return square + self.body[1](between)


class Reads(Around):
    """Reads a layer's parameters, which a folded one has no more."""

    def forward(self, x):
        return self.body(x) * self.body[1].weight.abs().mean()


def conv(kind=nn.Conv2d):
    return kind(8, 8, 3, padding=1)


def hooked(layer, change=lambda module, given, output: output.clamp(-0.1, 0.1)):
    layer.register_forward_hook(change)
    return layer


def patched(layer):
    layer.forward = lambda x: x.abs().sqrt()
    return layer


def softened(layer):
    parametrize.register_parametrization(layer, "weight", nn.Softsign())
    return layer


def twice(layer):
    return [layer, nn.BatchNorm2d(8), nn.ReLU(), layer, nn.BatchNorm2d(8), nn.ReLU()]


NORM, RELU = nn.BatchNorm2d, nn.ReLU
UNUSUAL = {
    "subclass of a convolution": lambda: [conv(Standardised), NORM(8), RELU()],
    "subclass of batch norm": lambda: [conv(), NormAndActivation(8)],
    "subclass of ReLU": lambda: [conv(), NORM(8), Clipped()],
    "subclass of Sequential": lambda: [Residual(conv(), NORM(8), RELU())],
    "nested in a Sequential": lambda: [nn.Sequential(nn.Sequential(conv(), NORM(8)), RELU()), Residual(RELU(), conv())],
    "ReLU behind Identity": lambda: [Around(nn.Identity(), RELU(), conv())],
    "ReLU behind dropout": lambda: [Around(nn.Dropout(0.3), RELU(), conv())],
    "ReLU behind a view": lambda: [Around(nn.Flatten(0, 1), RELU(), nn.Unflatten(0, (-1, 8)), conv())],
    "ReLU behind a nested view": lambda: [Around(nn.Sequential(nn.Identity()), RELU(), conv())],
    "ReLU behind a hooked layer": lambda: [
        Around(hooked(conv(), lambda module, given, output: given[0]), RELU(), conv())
    ],
    "ReLU6": lambda: [conv(), NORM(8), nn.ReLU6()],
    "hooked convolution": lambda: [hooked(conv()), NORM(8), RELU()],
    "hooked batch norm": lambda: [conv(), hooked(NORM(8)), RELU()],
    "hooked ReLU": lambda: [conv(), NORM(8), hooked(RELU())],
    "hooked Sequential": lambda: [hooked(nn.Sequential(conv(), NORM(8), RELU()))],
    "patched": lambda: [conv(), patched(NORM(8)), RELU(), patched(conv()), NORM(8)],
    "batch norm without statistics": lambda: [conv(), NORM(8, track_running_stats=False), RELU()],
    "batch norm without weights": lambda: [conv(), NORM(8, affine=False), RELU()],
    "batch norm without momentum": lambda: [conv(), NORM(8, momentum=None), RELU()],
    "batch norm that trains": lambda: [conv(), TrainsForEver(8, momentum=0), RELU()],
    "two batch norms": lambda: [conv(), NORM(8), NORM(8), RELU()],
    "weight norm": lambda: [weight_norm(conv()), NORM(8), RELU()],
    "spectral norm": lambda: [spectral_norm(conv()), NORM(8), RELU()],
    "parametrised weight norm": lambda: [parametrizations.weight_norm(conv()), NORM(8), RELU()],
    "parametrised spectral norm": lambda: [parametrizations.spectral_norm(conv()), NORM(8), RELU()],
    "parametrised": lambda: [softened(conv()), NORM(8), RELU(), conv(), softened(NORM(8))],
    "pruned": lambda: [prune.l1_unstructured(conv(), "weight", 0.5), NORM(8), RELU()],
    "convolution used twice": lambda: twice(conv()),
    "ReLU behind a stub": lambda: [Around(Stub(), RELU(), conv())],
}


def unusual(layers):
    """A network around these layers, (N, 8, h, w) → (N, 8, h, w), with statistics that are not 0 and 1."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        block = nn.Sequential(*layers())
        stages = {"stem": nn.Conv2d(3, 8, 3, padding=1), "block": block, "pool": nn.AdaptiveAvgPool2d(2)}
        stages |= {"flat": nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(32, 10))}
        network, images = Network(stages, split="block"), torch.rand(8, 3, 12, 12)
        for norm in (module for module in network.modules() if isinstance(module, nn.BatchNorm2d) and module.affine):
            nn.init.uniform_(norm.weight, 0.2, 3)
        for _ in range(3):
            network(torch.rand(8, 3, 12, 12))
    return network.eval(), images


def gradient(network, images):
    images = images.clone().requires_grad_()
    return torch.autograd.grad(network(images)[:, 3].sum(), images)[0]


@pytest.mark.parametrize("layers", UNUSUAL.values(), ids=UNUSUAL)
@pytest.mark.filterwarnings("error::RuntimeWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_folded_copy_computes_what_the_network_does_whatever_its_layers(layers):
    network, images = unusual(layers)
    for quick in (folded(network), folded(network, images)):
        for name, wanted in network.activations(images).items():
            torch.testing.assert_close(quick.activations(images)[name], wanted, rtol=1e-3, atol=1e-4)
        kept = quick.features(images).clone()
        assert torch.equal(kept, quick.activations(images)["block"]), "the head works in place on nothing that is kept"
        difference = gradient(network, images) - gradient(quick, images)
        assert difference.norm() < 1e-2 * gradient(network, images).norm()


ASTRAY = {
    "used one by one": lambda: [OneByOne(conv(), NORM(8), RELU())],
    "overwritten before the gradient": lambda: [Squares(conv(), RELU())],
    "read": lambda: [Reads(conv(), NORM(8), RELU())],
}


@pytest.mark.parametrize("layers", ASTRAY.values(), ids=ASTRAY)
def test_a_copy_that_is_not_its_network_is_replaced_by_one_with_nothing_folded_and_said(layers):
    network, images = unusual(layers)
    with pytest.warns(RuntimeWarning, match="batch norms are not folded"):
        quick = folded(network, images)
    assert torch.equal(quick(images), network(images)) and torch.equal(
        gradient(quick, images), gradient(network, images)
    )
    assert not quick.training and not any(parameter.requires_grad for parameter in quick.parameters())


@pytest.mark.parametrize("layers", [UNUSUAL["subclass of batch norm"], *ASTRAY.values()])
@pytest.mark.filterwarnings("ignore:batch norms are not folded")
def test_an_attack_of_radius_zero_finds_what_the_network_predicts(layers):
    network, images = unusual(layers)
    pixels = (255 * images).byte()
    with torch.no_grad():  # several classes
        network.stages["flat"][-1].bias -= network(pixels / 255).mean(0)
    predicted = network(pixels / 255).argmax(1)
    data = ImageSet(pixels, predicted, tuple("0123456789"), "random")
    machine = hardware.choose(hardware.HardwareSettings(device="cpu", precision="fp32"))
    none = PGD(epsilon=0.0, step_size=0.0, steps=1)
    assert len(predicted.unique()) > 3
    assert torch.equal(attack_all(none, network, data, hardware=machine, seed=0).predictions, predicted)


def test_comparing_draws_no_random_numbers_and_leaves_the_network_as_it_is():
    network, images = unusual(lambda: [conv(), NORM(8), RELU(), nn.Dropout(), Around(NORM(8), RELU())])
    network.stages["noise"] = hooked(nn.Identity(), lambda module, given, output: output + torch.rand_like(output))
    network.train()
    state, before = torch.get_rng_state(), {name: tensor.clone() for name, tensor in network.state_dict().items()}
    folded(network, images)
    assert torch.equal(torch.get_rng_state(), state) and all(module.training for module in network.modules())
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in before.items())


def test_half_precision_is_not_folded_for_its_rounding_is_coarse():
    network, images = unusual(lambda: [conv(), NORM(8), RELU()])
    network, images = network.half(), images.half()
    assert torch.equal(folded(network)(images), network(images))


def test_a_network_that_cannot_be_copied_is_refused():
    network, _ = unusual(lambda: [conv()])
    network.stages["block"].generator = (number for number in range(3))
    with pytest.raises(TypeError, match="attacks work on a copy of the network"):
        folded(network)


def test_frozen_restores_the_mode_of_every_layer():
    network = build(VGG16(width=0.125), 10, seed=0).train()
    network.stages["conv"].eval()
    with frozen(network):
        pass
    assert network.training and not network.stages["conv"][1].training


class Normalises(nn.Module):
    """What is often met: the children, and in forward what is no child."""

    def __init__(self, act=True):
        super().__init__()
        self.conv, self.out, self.act = nn.Conv2d(3, 4, 3), nn.Linear(144, 10), nn.ReLU(inplace=True)

    def forward(self, x):
        return self.out(self.act(self.conv((x - 0.5) / 0.25)).flatten(1))


IMAGES = torch.rand(4, 3, 8, 8, generator=Generator().manual_seed(0))


def test_a_chain_of_ones_own_works_nowhere_in_place_and_needs_no_published_width():
    mine = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(144, 10))
    network = Network.from_module(mine, split="0", example=IMAGES)
    kept = network.features(IMAGES).clone()
    z = network.features(IMAGES)
    network.head(z)
    assert torch.equal(z, kept) and network.full_channels is None
    assert network.representation == "2" and network.hidden == ("0", "1", "2")


def test_what_forward_does_besides_its_children_is_asked_for_as_a_stage():
    mine = Normalises().train()
    wanted, children = mine(IMAGES), dict(mine.named_children())
    with pytest.raises(ValueError, match=r"chain conv → out → act does not compute.*Normalize\(mean, std\)"):
        Network.from_module(mine, split="conv", example=IMAGES)
    unnormalised = {"conv": mine.conv, "act": mine.act, "flat": nn.Flatten(), "out": mine.out}
    with pytest.raises(ValueError, match="their logits differ by"):
        Network.from_module(mine, stages=unnormalised, split="conv", example=IMAGES)
    assert mine.act.inplace and mine.training and torch.equal(mine(IMAGES), wanted), "a refusal changes nothing"
    whole = {"normalize": Normalize(0.5, 0.25)} | unnormalised
    network = Network.from_module(mine, stages=whole, split="conv", example=IMAGES, hidden=("act",))
    assert torch.equal(network(IMAGES), wanted) and network.hidden == ("act",) and children["act"].inplace is False


def test_a_module_whose_function_needs_its_relu_in_place_is_refused():
    mine = nn.Sequential(nn.Conv2d(3, 8, 3), Around(nn.ReLU(inplace=True), conv()), nn.Flatten(), nn.Linear(288, 10))
    with pytest.raises(ValueError, match="does not compute what the module does"):
        Network.from_module(mine, split="0", example=IMAGES)


def test_a_layer_that_a_module_has_twice_is_two_stages():
    relu = nn.ReLU()
    mine = nn.Sequential(nn.Conv2d(3, 8, 3), relu, conv(), relu, nn.Flatten(), nn.Linear(288, 10))
    assert torch.equal(Network.from_module(mine, split="2", example=IMAGES)(IMAGES), mine(IMAGES))


@pytest.mark.parametrize(
    "found, last", [(r"\(4, 4, 6, 6\)", nn.Identity()), ("dict", hooked(nn.Identity(), lambda *a: {}))]
)
def test_a_module_that_returns_no_logits_is_refused(found, last):
    with pytest.raises(ValueError, match=f"returns logits, .*found {found}"):
        Network.from_module(nn.Sequential(nn.Conv2d(3, 4, 3), last), split="0", example=IMAGES)


@pytest.mark.parametrize(
    "stages, split, said",
    [
        ({"all": nn.ReLU()}, "all", "two stages or more; found \\['all'\\]"),
        ({}, "all", "two stages or more"),
        ({"a": nn.ReLU(), "b": nn.ReLU(), "c": nn.ReLU()}, "c", "no head follows the split 'c'.*split at one of a, b$"),
        ({"a": nn.ReLU(), "b": torch.relu}, "a", "stages are modules by name.*not a Module"),
        ({"a.b": nn.ReLU(), "b": nn.ReLU()}, "b", "stages are modules by name.*can't contain"),
    ],
)
def test_a_chain_that_cannot_be_cut_is_refused_when_it_is_made(stages, split, said):
    with pytest.raises(ValueError, match=said):
        Network(stages, split=split)


def own(classes=10, tokens=False):
    patches = [nn.Conv2d(3, 4, 3), *([nn.Flatten(2)] if tokens else [])]
    pool = nn.Sequential(nn.Flatten(2), nn.AdaptiveAvgPool1d(4), nn.Flatten())
    return Network({"z": nn.Sequential(*patches), "pool": pool, "fc": nn.Linear(16, classes)}, split="z").eval()


def test_networks_of_ones_own_are_distilled_attacked_and_trained_whatever_the_shape_and_names():
    network, images, labels = own(), torch.rand(3, 3, 8, 14), torch.arange(3)
    machine, draws = hardware.choose(hardware.HardwareSettings(device="cpu")), Generator().manual_seed(0)
    found = bottleneck.distil(
        network, network.features(images), labels, bottleneck.Bottleneck(steps=2), hardware=machine, generator=draws
    )
    assert found.sigma.shape == (3, 4)
    data = ImageSet((255 * images).byte(), labels, tuple("abc"), "wide")
    attack = PGD(epsilon=0.1, step_size=0.1, steps=1)
    assert attack_all(attack, network, data, hardware=machine, seed=0, images_kept=3).images.shape == images.shape
    assert torch.equal(
        Standard()(network, images, labels, generator=draws).loss, F.cross_entropy(network(images), labels)
    )


def test_what_a_network_of_ones_own_cannot_do_is_said_with_the_remedy():
    machine, draws = hardware.choose(hardware.HardwareSettings(device="cpu")), Generator().manual_seed(0)
    how = dict(hardware=machine, generator=draws)
    labels, data = torch.arange(4), ImageSet((255 * IMAGES).byte(), torch.arange(4), tuple("abcd"), "random")
    few, tokens = own(classes=3), own(tokens=True)
    with pytest.raises(ValueError, match="labels must be 0 to 2, found 0 to 3: the network has 3 outputs"):
        attack_all(PGD(epsilon=0.1, step_size=0.1, steps=1), few, data, hardware=machine, seed=0)
    with pytest.raises(ValueError, match="3 outputs"):
        bottleneck.distil(few, few.features(IMAGES).detach(), labels, bottleneck.Bottleneck(steps=1), **how)
    with pytest.raises(ValueError, match=r"shape \(4, 4, 36\) are no \(N, C, h, w\); split"):
        bottleneck.distil(tokens, tokens.features(IMAGES).detach(), labels, bottleneck.Bottleneck(steps=1), **how)
