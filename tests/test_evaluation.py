import pytest
import torch
from torch import Generator

from robust_features import distillations, hardware
from robust_features.attacks import PGD, CarliniWagner
from robust_features.bottleneck import Bottleneck
from robust_features.datasets import ImageSet
from robust_features.evaluation import accuracy_of, attack_all, decide, features, load, predict, row, save
from robust_features.models import VGG16, build

CPU = hardware.choose(hardware.HardwareSettings(device="cpu"))
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
    whole, parts = (
        attack_all(attack, network, images, hardware=CPU, seed=0, batch_size=size, keep_images=True) for size in (23, 7)
    )
    torch.testing.assert_close(whole.images, parts.images, rtol=0, atol=1e-3)
    assert (whole.predictions == parts.predictions).all()


def test_the_seed_decides_the_random_start(network, images):
    one, again, other = (
        attack_all(ATTACKS["pgd"], network, images, hardware=CPU, seed=seed, keep_images=True).images
        for seed in (0, 0, 1)
    )
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_norms_are_those_of_the_kept_images(network, images):
    found = attack_all(ATTACKS["pgd"], network, images, hardware=CPU, seed=0, keep_images=True)
    delta = (found.images - images.images / 255).flatten(1)
    torch.testing.assert_close(found.l2, delta.norm(dim=1))
    torch.testing.assert_close(found.linf, delta.abs().amax(1))
    assert row(found, images.labels)["l2"] == pytest.approx(delta.norm(dim=1).mean().item(), rel=1e-5)


def test_what_is_saved_comes_back(network, images, tmp_path, monkeypatch):
    monkeypatch.setattr("robust_features.evaluation.DATA", tmp_path)
    attacked = {name: attack_all(attack, network, images, hardware=CPU, seed=0) for name, attack in ATTACKS.items()}
    save("m", attacked, ATTACKS)
    found = load("m")
    assert found.keys() == attacked.keys() and found["pgd"].images is None
    assert all(torch.equal(found[name].l2, attacked[name].l2) for name in found)


def test_deciding_on_features_is_predicting_from_images(network, images):
    x = images.images / 255
    z = features(network, x, hardware=CPU, batch_size=5)
    assert torch.equal(decide(network, z, hardware=CPU, batch_size=4), predict(network, x, hardware=CPU).argmax(1))


def test_distilled_examples_hold_every_row_of_tables_1_and_2(network, images, tmp_path, monkeypatch):
    monkeypatch.setattr("robust_features.distillations.DATA", tmp_path)
    x = images.images / 255
    settings = Bottleneck(steps=2)
    tensors = distillations.distil_examples(
        network, {"clean": x, "pgd": x}, images.labels, settings, hardware=CPU, seed=0
    )
    distillations.save("m", tensors, settings)
    table_1 = distillations.accuracies({"m": {"network": "v"}}).set_index(["example", "given", "features"])
    clean = accuracy_of(predict(network, x, hardware=CPU).argmax(1), images.labels)
    assert len(table_1) == 2 * (1 + 4 * 2) and table_1.loc[("clean", "true", "Int"), "value"] == clean.value
    table_2 = distillations.agreement({"m": {"network": "v"}})
    assert set(table_2["given"]) == {"true", "predicted", "shuffled"} and set(table_2["example"]) == {"pgd"}
    sizes = [tensors[f"robust/clean/{given}"].sum(1) for given in ("true", "predicted", "random")]
    assert all(size.shape == (23,) for size in sizes)
