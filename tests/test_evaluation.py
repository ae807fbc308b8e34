import pytest
import torch
from precise import precise
from torch import Generator

from robust_features import distillations, hardware, store
from robust_features.attacks import PGD, CarliniWagner
from robust_features.batches import as_float
from robust_features.bottleneck import Bottleneck
from robust_features.datasets import ImageSet
from robust_features.distillations import distil_examples, halves
from robust_features.evaluation import (
    GALLERY,
    Attacked,
    accuracy_of,
    across,
    along_norm,
    attack_all,
    attack_each,
    decide,
    features,
    load,
    predict,
    resume_folder,
    row,
    save,
)
from robust_features.hardware import side_by_side
from robust_features.models import VGG16, build

pytestmark = pytest.mark.numeric

CPU = hardware.choose(hardware.HardwareSettings(device="cpu", precision="fp32"))
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
        attack_all(attack, network, images, hardware=CPU, seed=0, batch_size=size, keep=23) for size in (23, 7)
    )
    torch.testing.assert_close(whole.images, parts.images, rtol=0, atol=1e-3)
    assert (whole.predictions == parts.predictions).all()


def test_threads_share_the_batches_and_change_nothing(network, images):
    threads = torch.get_num_threads()
    try:
        found = []
        for number in (1, 3):
            torch.set_num_threads(number)
            found.append(attack_all(ATTACKS["pgd"], network, images, hardware=CPU, seed=0, batch_size=5, keep=12))
            assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(found[0].images, found[1].images, rtol=0, atol=1e-5)
    assert len(found[0].images) == 12 and torch.equal(found[0].predictions, found[1].predictions)


def test_the_seed_decides_the_random_start(network, images):
    one, again, other = (
        attack_all(ATTACKS["pgd"], network, images, hardware=CPU, seed=seed, keep=23).images for seed in (0, 0, 1)
    )
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_norms_are_those_of_the_kept_images(network, images):
    found = attack_all(ATTACKS["pgd"], network, images, hardware=CPU, seed=0, keep=23)
    delta = (found.images - images.images / 255).flatten(1)
    torch.testing.assert_close(found.l2, delta.norm(dim=1))
    torch.testing.assert_close(found.linf, delta.abs().amax(1))
    clean = Attacked(images.labels, torch.zeros(23), torch.zeros(23))
    fooled = found.predictions != images.labels
    measured = row(found, clean, images.labels)
    assert measured["l2"] == pytest.approx(delta.norm(dim=1)[fooled].mean().item(), rel=1e-5)
    assert measured["value"] == pytest.approx(100 * (~fooled).float().mean().item())


def test_what_is_saved_comes_back(network, images, tmp_path, monkeypatch):
    monkeypatch.setattr("robust_features.store.DATA", tmp_path)
    attacked = {name: attack_all(attack, network, images, hardware=CPU, seed=0) for name, attack in ATTACKS.items()}
    save(store.folder("evaluations", "m"), attacked, ATTACKS)
    found = load("m")
    assert found.keys() == attacked.keys() and found["pgd"].images is None
    assert all(torch.equal(found[name].l2, attacked[name].l2) for name in found)


def test_deciding_on_features_is_predicting_from_images(network, images):
    x = images.images / 255
    z = features(network, x, hardware=CPU, batch_size=5)
    assert torch.equal(decide(network, z, hardware=CPU, batch_size=4), predict(network, x, hardware=CPU).argmax(1))


def test_distilled_examples_hold_every_row_of_tables_1_and_2(network, images, tmp_path, monkeypatch):
    monkeypatch.setattr("robust_features.store.DATA", tmp_path)
    x = images.images / 255
    settings = Bottleneck(steps=2)
    tensors = distillations.distil_examples(
        network, {"clean": x, "pgd": x}, images.labels, settings, hardware=CPU, seed=0
    )
    distillations.save(store.folder("distillations", "m"), tensors, settings)
    table_1 = distillations.accuracies({"m": {"network": "v"}}).set_index(["example", "given", "features"])
    clean = accuracy_of(predict(network, x, hardware=CPU).argmax(1), images.labels)
    assert len(table_1) == 2 * (1 + 4 * 2) and table_1.loc[("clean", "true", "Int"), "value"] == clean.value
    table_2 = distillations.agreement({"m": {"network": "v"}})
    assert set(table_2["given"]) == {"true", "predicted", "shuffled"} and set(table_2["example"]) == {"pgd"}
    sizes = [tensors[f"robust/clean/{given}"].sum(1) for given in ("true", "predicted", "random")]
    assert all(size.shape == (23,) for size in sizes)


def test_an_interrupted_evaluation_goes_on_with_the_attack_it_was_in(network, images, tmp_path):
    options = dict(hardware=CPU, seed=0, whole=["pgd"], resume=tmp_path, report=lambda line: None)
    attack_each({"pgd": ATTACKS["pgd"]}, network, images, **options)

    def fails(*arguments, **keywords):
        raise AssertionError("attacked again")

    found = attack_each({"pgd": fails, "cw": ATTACKS["cw"]}, network, images, **options)
    assert list(found) == ["clean", "pgd", "cw"] and (tmp_path / "cw").exists()
    assert len(found["pgd"].images) == 23 and len(found["cw"].images) == GALLERY
    whole = attack_all(ATTACKS["pgd"], network, images, hardware=CPU, seed=0, keep=23)
    assert torch.equal(found["pgd"].images, whole.images) and torch.equal(found["pgd"].l2, whole.l2)


def test_an_attack_whose_kept_result_is_damaged_is_made_again(network, images, tmp_path, capsys):
    options = dict(hardware=CPU, seed=0, resume=tmp_path, report=lambda line: None)
    whole = attack_each({"pgd": ATTACKS["pgd"]}, network, images, **options)["pgd"]
    (tmp_path / "pgd" / store.TENSORS).write_bytes(b"cut off")
    again = attack_each({"pgd": ATTACKS["pgd"]}, network, images, **options)["pgd"]
    assert torch.equal(again.images, whole.images) and "pgd: no whole record" in capsys.readouterr().err


def test_what_is_resumed_belongs_to_these_weights_images_attacks_and_seed(network, images):
    other = build(VGG16(width=0.0625), 10, seed=1)
    keys = [
        resume_folder(ATTACKS, network, images, seed=0),
        resume_folder(ATTACKS, network, images, seed=1),
        resume_folder(ATTACKS, other, images, seed=0),
        resume_folder({"pgd": ATTACKS["pgd"]}, network, images, seed=0),
    ]
    assert len(set(keys)) == 4 and keys[0] == resume_folder(ATTACKS, network, images, seed=0)


def test_accuracy_along_the_norm_counts_the_perturbations_up_to_it():
    labels, sizes = torch.zeros(4, dtype=torch.long), torch.tensor([0.0, 0.1, 0.3, 0.2])
    clean = Attacked(torch.tensor([1, 0, 0, 0]), torch.zeros(4), torch.zeros(4))
    attacked = Attacked(torch.tensor([1, 1, 1, 0]), sizes, sizes)  # one wrong already, two fooled, one still right
    found = {"clean": clean, "a": attacked}
    rows = along_norm(found, labels, norm="l2", radii=torch.tensor([0.0, 0.2, 0.4]))
    assert rows[rows["example"] == "a"]["value"].tolist() == [75.0, 50.0, 25.0]
    assert rows[rows["example"] == "clean"]["value"].tolist() == [75.0, 75.0, 75.0]


def test_every_network_is_shown_every_set(network, images):
    rows = across({"one": network}, {"all": images, "few": images.take(slice(5))}, hardware=CPU)
    right = predict(network, as_float(images.images), hardware=CPU).argmax(1) == images.labels
    assert rows["value"].tolist() == pytest.approx(
        [100 * right.float().mean().item(), 100 * right[:5].float().mean().item()]
    )
    assert rows[["classifier", "test set", "n"]].values.tolist() == [["one", "all", len(images)], ["one", "few", 5]]


def test_halves_are_judged_with_the_networks_own_prediction_unless_another_label_is_given(network, images):
    x, settings = as_float(images.images), Bottleneck(steps=5)
    found = halves(network, x, settings, hardware=CPU, seed=0)
    own = predict(network, x, hardware=CPU).argmax(1)
    assert torch.equal(found["Int"], own)
    again = halves(network, x, settings, hardware=CPU, seed=0, given=own)
    assert all(torch.equal(found[name], again[name]) for name in ("Int", "R", "NR", "random"))
    stored = distil_examples(network, {"clean": x}, images.labels, settings, hardware=CPU, seed=0)
    true = halves(network, x, settings, hardware=CPU, seed=0, given=images.labels)
    assert torch.equal(true["NR"], stored["prediction/clean/clean-true/NR"])
    assert torch.equal(true["random"], stored["prediction/clean/clean-shuffled/R"])


def test_long_work_says_how_much_is_left_and_short_work_nothing(monkeypatch):
    clock, lines = iter(range(0, 1000, 20)), []
    monkeypatch.setattr("robust_features.hardware.time.perf_counter", lambda: next(clock))
    starts = [0, 10, 20, 30]
    assert side_by_side(lambda start: start, starts, torch.device("meta"), report=lines.append) == starts
    assert lines == ["2 of 4 batches, 40 s left"], "at 20 s each: not after the first, nor at the end"
