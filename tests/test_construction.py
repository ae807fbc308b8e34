import shutil
from dataclasses import replace

import pandas as pd
import pytest
import torch
from precise import precise
from pydantic import TypeAdapter
from scipy.stats import chi2_contingency
from torch import Generator

from robust_features import construction, datasets, hardware, store, training
from robust_features.attacks import PGD
from robust_features.batches import as_float
from robust_features.construction import Constructions, Recipe, Relabelled, Robustified, construct, others
from robust_features.datasets import Digits, ImageSet
from robust_features.families import Family
from robust_features.models import VGG16, build
from robust_features.objectives import Standard
from robust_features.training import SGD, Trained, Training

pytestmark = pytest.mark.numeric

CPU = hardware.choose(hardware.HardwareSettings(device="cpu", precision="fp32"))
SETTINGS = Training(dataset="digits", network=VGG16(width=0.0625), objective=Standard(), epochs=1,
                    optimiser=SGD(learning_rate=0.1), monitor=PGD(epsilon=0.1, step_size=0.1))  # fmt: skip
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
    quick = make(Robustified(steps=12, step_size="lbfgs"), network, images)
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
        Robustified(steps=5, step_size="lbfgs"),
        Relabelled(targets="random", steps=5),
    ],
    ids=["robustified", "lbfgs", "relabelled"],
)
def test_the_same_dataset_comes_out_again_and_in_any_batch(network, images, construction):
    network = precise(network)
    whole = make(construction, network, images)
    assert torch.equal(whole.images.images, make(construction, network, images).images.images)
    parts = make(construction, network, images, batch_size=5)
    assert torch.equal(whole.images.labels, parts.images.labels) and torch.equal(whole.began, parts.began)
    apart = (whole.images.images.int() - parts.images.images.int()).abs()
    assert apart.max() <= 1 and apart.float().mean() < 0.01, "but for the rounding to uint8"


@pytest.fixture
def data(tmp_path, monkeypatch, network):
    for module in (datasets, store, construction):
        monkeypatch.setattr(module, "DATA", tmp_path)
    digits = Digits(train=20, validation=5, test=10, size=32)
    datasets.save("digits", datasets.read(digits, seed=0), digits)
    trained = Trained(network, pd.DataFrame(columns=training.HISTORY))
    training.save(store.folder("models", "sources/robust"), trained, SETTINGS, classes=tuple("0123456789"))
    other = Trained(replace(SETTINGS, seed=1).build(10).eval(), trained.history)
    training.save(store.folder("models", "sources/other"), other, SETTINGS, classes=tuple("0123456789"))
    return tmp_path


SOURCES = {"sources": Family(members={"robust": SETTINGS, "other": SETTINGS}, attacks={})}


def cook(member, how, splits=("train",), id="new/it"):
    entry = Constructions(
        dataset="digits", family="sources", sets={"it": Recipe(member=member, make=how, splits=splits)}
    )
    construction.make("new", entry, SOURCES, hardware=CPU, seed=3, report=lambda line: None)
    return {split: construction.load(id, split) for split in splits}


def test_a_constructed_dataset_is_a_dataset_like_any_other(data, network):
    made = cook("robust", Relabelled(targets="next", steps=2))["train"]
    assert torch.equal(datasets.load("new/it", "train").images, made.images.images)
    assert torch.equal(datasets.load("new/it", "test").images, datasets.load("digits", "test").images)
    again = construction.load("new/it", "train")
    assert torch.equal(again.began, made.began) and torch.equal(again.reached, made.reached)


def test_distances_are_the_means_of_what_was_made(data):
    made = cook("robust", Robustified(steps=2), ("test",))
    row = construction.distances({"it": "new/it"}, "test").loc["it"]
    assert row["before / after"] == pytest.approx((made["test"].before.mean() / made["test"].after.mean()).item())
    assert row["n"] == 10 and row["L2 moved"] == pytest.approx(made["test"].l2.mean().item())


def test_a_set_made_for_tests_has_no_training_images(data):
    cook("robust", Robustified(steps=1), ("test",))
    assert [part.name for part in (data / "constructed" / "new" / "it").iterdir()] == ["test"]


def test_of_every_member_one_set_is_made_the_same_as_by_itself(data):
    expected = cook("other", Robustified(steps=2), ("test",))["test"]
    together = cook("every", Robustified(steps=2), ("test",), "new/it/other")["test"]
    assert torch.equal(together.images.images, expected.images.images)
    cards = {name: store.load(data / "constructed/new/it" / name / "test").card for name in ("robust", "other")}
    assert [card["network"] for card in cards.values()] == ["sources/robust", "sources/other"]
    assert cards["robust"]["mean"] != cards["other"]["mean"]
    assert not list((data / "interrupted").iterdir())


def test_an_interrupted_construction_goes_on_with_the_batches_that_are_missing(network, images, tmp_path, monkeypatch):
    how, calls = Robustified(steps=3, step_size=0.2), []
    whole = make(how, network, images, batch_size=6, resume=tmp_path)
    shutil.rmtree(tmp_path / "12")
    ascend = construction.ascend
    monkeypatch.setattr(construction, "ascend", lambda *a, **k: calls.append(1) or ascend(*a, **k))
    again = make(how, network, images, batch_size=6, resume=tmp_path)
    assert len(calls) == 1 and torch.equal(again.images.images, whole.images.images)
    assert torch.equal(again.after, whole.after) and torch.equal(again.reached, whole.reached)


def test_a_damaged_batch_of_an_interrupted_construction_is_made_again(network, images, tmp_path):
    how = Robustified(steps=3, step_size=0.2)
    whole = make(how, network, images, batch_size=6, resume=tmp_path)
    (tmp_path / "12" / store.CARD).write_text("{")
    assert torch.equal(make(how, network, images, batch_size=6, resume=tmp_path).images.images, whole.images.images)


def test_a_dataset_rebuilt_from_its_card_is_identical(data, network):
    cook("robust", Robustified(steps=3, step_size=0.2), ("train", "test"))
    card = store.load(data / "constructed" / "new" / "it" / "test").card
    recipe = TypeAdapter(Recipe).validate_python(card["recipe"])
    network, _ = training.load(card["network"], hardware=CPU)
    images = datasets.load(card["dataset"], "test")
    rebuilt = construct(recipe.make, network, images, hardware=CPU, seed=card["seed"])
    assert torch.equal(rebuilt.images.images, datasets.load("new/it", "test").images)
    assert card["size"] == 10 and card["mean"]["after"] == pytest.approx(rebuilt.after.mean().item())
    assert card["source_sha256"] == store.load(store.folder("models", "sources/robust")).card["sha256"]


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"family": "source"}, "family: no family 'source'; did you mean 'sources'"),
        (
            {"sets": {"it": Recipe(member="robus", make=Robustified())}},
            "sets.it.member: no member 'robus'; did you mean 'robust'",
        ),
    ],
)
def test_an_entry_names_what_it_refers_to(wrong, said):
    entry = Constructions(**{"dataset": "digits", "family": "sources", "sets": {}} | wrong)
    assert entry.problem(SOURCES).startswith(said)


def test_an_entry_s_datasets_are_called_by_entry_set_and_of_every_member_by_that():
    sets = {"r": Recipe(member="every", make=Robustified()), "zero": Recipe(member="other", make=Robustified())}
    ids = Constructions(dataset="digits", family="sources", sets=sets).ids("new", SOURCES)
    assert {id: member for id, (_, member) in ids.items()} == {
        "new/r/robust": "robust",
        "new/r/other": "other",
        "new/zero": "other",
    }
