from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from sample_networks import CPU, PGD2
from torch import Generator

from companion import datasets, evaluations, records
from companion.evaluations import GALLERY, Evaluation, across, along_norm, attack_each, load, measures, row, save
from robust_features.attacks import CarliniWagner
from robust_features.batches import ImageSet, as_float
from robust_features.evaluation import Attacked, attack_all, predict
from robust_features.networks import VGG16, build
from robust_features.settings import UserError

ATTACKS = {"pgd": PGD2, "cw": CarliniWagner(c=10.0, steps=4)}
QUIET = dict(hardware=CPU, seed=0, report=str)


@pytest.fixture(scope="module")
def network():
    return build(VGG16(width=0.0625), 10, seed=0)


@pytest.fixture(scope="module")
def images():
    pixels = torch.randint(256, (23, 3, 32, 32), generator=Generator().manual_seed(0)).byte()
    return ImageSet(pixels, torch.arange(23) % 10, tuple("0123456789"), "random")


def keep(found, labels, member="p/g/m"):
    save(records.folder("evaluation", member), Evaluation(found), ATTACKS, labels, {"pgd": "fp32"})


def attacked(predictions, sizes=0.0):
    sizes = torch.as_tensor(sizes).expand(len(predictions)).float()
    return Attacked(torch.tensor(predictions), sizes, sizes)


def test_every_attack_is_made_and_of_some_all_images_are_kept(network, images, data):
    found = attack_each(ATTACKS, network, images, whole=["pgd"], **QUIET)
    whole = attack_all(PGD2, network, images, hardware=CPU, seed=0, images_kept=23)
    assert list(found) == ["clean", "pgd", "cw"] and len(found["cw"].images) == GALLERY
    assert torch.equal(found["pgd"].images, whole.images) and torch.equal(found["pgd"].l2, whole.l2)
    clean = found["clean"]
    assert torch.equal(clean.predictions, predict(network, as_float(images.images), hardware=CPU).argmax(1))
    assert clean.images is None and not clean.l2.any() and not clean.linf.any()
    assert not list((data / "interrupted").iterdir())


def test_what_is_saved_comes_back_in_its_order(network, images, data):
    found = attack_each({"pgd": PGD2, "cw": ATTACKS["cw"]}, network, images, **QUIET)
    keep(found, images.labels)
    again = load("p/g/m")
    assert list(again) == ["clean", "pgd", "cw"] and again["clean"].images is None
    for name in found:
        for part in ("predictions", "l2", "linf"):
            assert torch.equal(getattr(again[name], part), getattr(found[name], part)), (name, part)
    assert torch.equal(again["pgd"].images, found["pgd"].images)
    card = records.load(records.folder("evaluation", "p/g/m")).card
    assert card["precision"] == {"pgd": "fp32"} and card["attacks"]["pgd"]["epsilon"] == 0.1


def test_norms_are_read_back_to_the_same_float32_bits(data):
    bits = np.random.default_rng(0).integers(0, 0x7F800000, 50_000, dtype=np.uint32)  # every finite one may come up
    norms = torch.from_numpy(bits.view(np.float32))
    zeros = torch.zeros(50_000).long()
    keep({"pgd": Attacked(zeros, norms, norms.flip(0))}, zeros)
    found = load("p/g/m")["pgd"]
    assert found.l2.dtype == torch.float32 and torch.equal(found.l2.view(torch.int32), norms.view(torch.int32))
    assert torch.equal(found.linf.view(torch.int32), norms.flip(0).view(torch.int32))


def test_the_rows_are_one_an_image_and_attack_and_anyone_can_read_them(data):
    keep({"clean": attacked([4, 7]), "pgd": attacked([4, 2], 0.5)}, torch.tensor([4, 7]))
    rows = pd.read_csv(data / "networks/p/g/m/evaluation" / records.ROWS)
    assert list(rows) == ["example", "image", "label", "prediction", "l2", "linf"]
    expected = [["clean", 0, 4, 4], ["clean", 1, 7, 7], ["pgd", 0, 4, 4], ["pgd", 1, 7, 2]]
    assert rows.iloc[:, :4].to_numpy().tolist() == expected and rows["l2"].tolist() == [0, 0, 0.5, 0.5]


def test_a_missing_attack_is_named_with_its_network_and_those_there_are(data):
    keep({"clean": attacked([0]), "pgd": attacked([1])}, torch.tensor([0]))
    with pytest.raises(UserError, match="p/g/m: no attack 'pdg'; did you mean 'pgd'.; there are clean, pgd"):
        load("p/g/m")["pdg"]


def test_rows_of_another_version_are_refused_with_the_stage_to_run(data):
    folder = records.folder("evaluation", "p/g/m")
    records.save(folder, {}, {}, rows=pd.DataFrame({"example": ["clean"], "guess": [1]}))
    with pytest.raises(UserError, match="another version wrote it .*; delete .*/p/g and run `dvc repro networks@p/g`"):
        load("p/g/m")


def test_an_interrupted_evaluation_goes_on_with_the_attack_it_was_in(network, images, data, monkeypatch):
    whole = attack_each(ATTACKS, network, images, **QUIET)
    calls = interrupted_in_the_second(monkeypatch, network, images)
    again = attack_each(ATTACKS, network, images, **QUIET)
    assert calls == [PGD2, ATTACKS["cw"], ATTACKS["cw"]] and not list((data / "interrupted").iterdir())
    assert all(torch.equal(again[name].l2, whole[name].l2) for name in whole)
    assert torch.equal(again["pgd"].images, whole["pgd"].images)


def test_an_attack_whose_kept_result_is_damaged_is_made_again(network, images, data, monkeypatch, capsys):
    calls = interrupted_in_the_second(monkeypatch, network, images)
    (kept,) = (data / "interrupted").glob("attacks-*/pgd")
    (kept / records.TENSORS).write_bytes(b"cut off")
    attack_each(ATTACKS, network, images, **QUIET)
    assert calls[2:] == [PGD2, ATTACKS["cw"]] and "pgd: no whole record" in capsys.readouterr().err


def interrupted_in_the_second(monkeypatch, network, images):
    """The attacks that are made from now on: of a run that breaks off in its second, and of those after it."""
    calls = []

    def breaks(attack, *rest, **options):
        calls.append(attack)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return attack_all(attack, *rest, **options)

    monkeypatch.setattr(evaluations, "attack_all", breaks)
    with pytest.raises(KeyboardInterrupt):
        attack_each(ATTACKS, network, images, **QUIET)
    return calls


def test_what_is_resumed_belongs_to_these_weights_images_attacks_and_seed(network, images, data, monkeypatch):
    places, other = [], build(VGG16(width=0.0625), 10, seed=1)
    real = records.unfinished
    monkeypatch.setattr(records, "unfinished", lambda *key: places.append(records.interrupted(*key)) or real(*key))
    few, none = images.take(slice(2)), {}
    relabelled = replace(few, labels=few.labels.flip(0))
    for attacks, net, part, seed in (
        (none, network, few, 0),
        (none, network, few, 1),
        (none, other, few, 0),
        (none, network, relabelled, 0),
        ({"pgd": replace(PGD2, steps=1)}, network, few, 0),
        (none, network, few, 0),
    ):
        attack_each(attacks, net, part, hardware=CPU, seed=seed, report=str)
    assert len({*places}) == 5 and places[0] == places[-1]


def test_a_row_has_the_accuracy_and_the_mean_norms_over_the_images_that_were_fooled():
    labels = torch.zeros(4, dtype=torch.long)
    sizes = torch.tensor([9.0, 0.1, 0.3, 9.0])  # one wrong already, two fooled, one still right
    found = row(attacked([1, 1, 1, 0], sizes), attacked([1, 0, 0, 0]), labels)
    assert found["value"] == 25 and found["n"] == 4 and found["low"] < 25 < found["high"]
    assert found["l2"] == pytest.approx(0.2) and found["linf"] == pytest.approx(0.2)


def test_measures_have_accuracy_and_norms_of_every_member_and_attack(data):
    labels = torch.zeros(4, dtype=torch.long)
    few = ImageSet(torch.zeros(4, 3, 2, 2).byte(), labels, ("a", "b"), "few")
    datasets.save("few", {"test": few}, datasets.Digits(validation=1))
    sizes = torch.tensor([9.0, 0.1, 0.3, 9.0])
    keep({"clean": attacked([1, 0, 0, 0]), "pgd": attacked([1, 1, 1, 0], sizes)}, labels)
    rows = measures({"p/g/m": {"dataset": "few", "defence": "trades"}}, ["pgd", "autoattack"])  # which was not made
    assert rows[["dataset", "defence", "example"]].drop_duplicates().to_numpy().tolist() == [["few", "trades", "pgd"]]
    assert rows["measure"].tolist() == ["accuracy (%)", "L2", "L∞ · 255"]
    assert rows["value"].tolist() == pytest.approx([25, 0.2, 51])


def test_accuracy_along_the_norm_counts_the_perturbations_up_to_it():
    labels, sizes = torch.zeros(4, dtype=torch.long), torch.tensor([0.0, 0.1, 0.3, 0.2])
    found = {"clean": attacked([1, 0, 0, 0]), "a": attacked([1, 1, 1, 0], sizes)}
    rows = along_norm(found, labels, norm="l2", radii=torch.tensor([0.0, 0.2, 0.4]))
    assert rows[rows["example"] == "a"]["value"].tolist() == [75.0, 50.0, 25.0]
    assert rows[rows["example"] == "clean"]["value"].tolist() == [75.0, 75.0, 75.0]


def test_every_network_is_shown_every_set(network, images):
    rows = across({"one": network}, {"all": images, "few": images.take(slice(5))}, hardware=CPU)
    right = predict(network, as_float(images.images), hardware=CPU).argmax(1) == images.labels
    shares = [100 * part.float().mean().item() for part in (right, right[:5])]
    assert rows["value"].tolist() == pytest.approx(shares)
    assert rows[["classifier", "test set", "n"]].values.tolist() == [["one", "all", len(images)], ["one", "few", 5]]
