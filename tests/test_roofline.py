import pytest
import torch
from torch import nn

from companion import roofline
from companion.roofline import BANDWIDTH, LAUNCH, RATE, Cost, cost, seconds
from robust_features.networks import VGG16, Network


class OneProduct:
    """A network of one product of 48 numbers with 48 × 10 weights."""

    def build(self, classes):
        stages = {"flat": nn.Flatten(), "logits": nn.Linear(48, classes, bias=False)}
        return Network(stages, split="flat", full_channels=None, representation="flat", hidden=("flat",))


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(roofline, "build", lambda network, classes, seed: network.build(classes))
    monkeypatch.setattr(roofline, "BATCH", 1)
    return OneProduct()


@pytest.mark.parametrize("kind, products", [("forward", 1), ("attack", 2), ("training", 2), ("head", 2)])
def test_a_product_is_counted_by_hand(small, kind, products):
    # forward; back to the images, or to the weights, not to both: the images of a training need no gradient
    assert cost(small, 4, kind).flops == products * 2 * 48 * 10


def test_vgg16_is_what_its_layers_add_up_to():
    areas = [1024, 1024, 256, 256, 64, 64, 64, 16, 16, 16, 4, 4, 4]
    ends = [(3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 256), (256, 512), *5 * [(512, 512)]]
    products = sum(area * one * other * 9 for area, (one, other) in zip(areas, ends, strict=True)) + 512 * 10
    assert cost(VGG16(), 32, "forward").flops == 2 * products
    assert cost(VGG16(), 32, "attack").flops == 4 * products


def test_the_slower_of_device_and_host_is_taken():
    of = Cost(flops=1e9, numbers=1e6, operations=70)
    device = 1e9 / RATE["bf16"] + 2e6 / BANDWIDTH
    assert seconds(of, images=1e6, calls=1, does="pgd", precision="bf16") == pytest.approx(1e6 * device)
    assert seconds(of, images=1, calls=1000, does="pgd", precision="bf16") == pytest.approx(1000 * (70 + 30) * LAUNCH)
    assert seconds(of, 1e6, 1, "pgd", "fp32") > 1.9e6 * device, "TF32: half the rate, twice the memory"


def test_what_is_recorded_is_launched_at_once_but_for_what_surrounds_it():
    of = Cost(flops=1.0, numbers=1.0, operations=70)
    assert seconds(of, 1, 1000, "pgd", "bf16", recorded=True) < 1e-6
    assert seconds(of, 1, 1000, "training", "bf16", recorded=True) == pytest.approx(1000 * 50 * LAUNCH)


def test_counting_leaves_torch_as_it_was():
    before = torch.is_grad_enabled(), torch.get_rng_state()
    cost(VGG16(width=1 / 16), 32, "forward")
    assert torch.is_grad_enabled() == before[0] and torch.equal(torch.get_rng_state(), before[1])
