import pytest
import torch
from sample_networks import CPU
from torch import Generator

from companion import distillations, records
from companion.distillations import distil_examples, halves, shuffled
from robust_features.batches import as_float
from robust_features.bottleneck import Bottleneck, distil
from robust_features.evaluation import accuracy_of, decide, features, predict
from robust_features.networks import VGG16, build

pytestmark = pytest.mark.numeric

LABELS, SHORT = torch.arange(23) % 10, Bottleneck(steps=5)


@pytest.fixture(scope="module")
def examples():
    draw = Generator().manual_seed(0)
    x = as_float(torch.randint(256, (23, 3, 32, 32), generator=draw).byte())
    return {"clean": x, "pgd": (x + 0.3 * torch.rand(x.shape, generator=draw)).clamp(0, 1)}


@pytest.fixture(scope="module")
def network(examples):
    """One that takes the images for several classes, and other ones if they are attacked."""
    network = build(VGG16(width=0.0625), 10, seed=0)
    both = torch.cat([*examples.values()])
    with torch.no_grad():
        network.train()(both)  # batch norms that have seen images
        [*network.stages.values()][-1].bias -= network.eval()(both).mean(0)
    return network


@pytest.fixture(scope="module")
def found(network, examples):
    return distil_examples(network, examples, LABELS, SHORT, hardware=CPU, seed=0, report=str)


def test_sigma_and_indices_are_those_of_the_bottleneck_for_each_given_label(network, examples, found):
    seen = {name: predict(network, x, hardware=CPU).argmax(1) for name, x in examples.items()}
    assert not torch.equal(seen["clean"], seen["pgd"])
    given = {"clean/true": LABELS, "clean/predicted": seen["clean"], "pgd/true": LABELS, "pgd/predicted": seen["pgd"]}
    for name, target in given.items():
        z, draws = features(network, examples[name.split("/")[0]], hardware=CPU), Generator().manual_seed(0)
        alone = distil(network, z, target, SHORT, hardware=CPU, generator=draws)
        assert torch.equal(found.tensors[f"sigma/{name}"], alone.sigma)
        assert torch.equal(found.tensors[f"robust/{name}"], alone.robust)
    random = {name for name in found.tensors if name.startswith("sigma/")} - {f"sigma/{name}" for name in given}
    assert random == {"sigma/clean/random"} and torch.equal(found.tensors["given/predicted"], seen["clean"])


def test_a_row_says_what_the_kept_channels_of_an_image_are_taken_for(network, examples, found):
    z, robust = features(network, examples["pgd"], hardware=CPU), found.tensors["robust/clean/true"]
    for part, kept in (("R", robust), ("NR", ~robust)):
        query = f"example == 'pgd' and distilled == 'clean' and given == 'true' and features == '{part}'"
        rows = found.rows.query(query)
        assert rows["image"].tolist() == list(range(23))
        assert rows["prediction"].tolist() == decide(network, z * kept[:, :, None, None], hardware=CPU).tolist()
    plain = found.rows.query("example == 'pgd' and features == 'Int'")
    assert plain["prediction"].tolist() == predict(network, examples["pgd"], hardware=CPU).argmax(1).tolist()


def test_what_is_saved_comes_back(found, data):
    distillations.save(records.folder("distillation", "p/g/m"), found, SHORT)
    again = distillations.load("p/g/m")
    assert again.rows.equals(found.rows) and "" in again.rows["distilled"].unique()
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in found.tensors.items())
    assert records.load(data / "networks/p/g/m/distillation").card["bottleneck"]["steps"] == 5


def test_stored_distillations_hold_every_row_of_tables_1_and_2(network, examples, found, data):
    distillations.save(records.folder("distillation", "p/g/m"), found, SHORT)
    members = {"p/g/m": {"network": "v"}}
    table_1 = distillations.accuracies(members).set_index(["example", "given", "features"])
    clean = accuracy_of(predict(network, examples["clean"], hardware=CPU).argmax(1), LABELS)
    assert len(table_1) == 2 * (1 + 4 * 2) and table_1.loc[("clean", "true", "Int"), "value"] == clean.value
    table_2 = distillations.agreement(members)
    assert set(table_2["given"]) == {"true", "predicted", "shuffled"} and set(table_2["example"]) == {"pgd"}
    control = distillations.given_predicted(members)
    assert len(control) == 3 * 2 and set(control["given"]) == {"true", "predicted", "random"}


def test_agreement_counts_the_images_that_the_attack_fooled(network, examples, found, data):
    distillations.save(records.folder("distillation", "p/g/m"), found, SHORT)
    rows = distillations.agreement({"p/g/m": {}}).set_index(["given", "features"])
    z, robust = features(network, examples["pgd"], hardware=CPU), found.tensors["robust/pgd/true"][:, :, None, None]
    seen = decide(network, z, hardware=CPU)
    fooled = seen != LABELS
    for part, kept in (("R", robust), ("NR", ~robust)):
        same = (decide(network, z * kept, hardware=CPU) == seen)[fooled].float().mean().item()
        assert rows.loc[("true", part), "n"] == fooled.sum() > 0
        assert rows.loc[("true", part), "value"] == pytest.approx(100 * same)


def test_halves_are_judged_with_the_networks_own_prediction_unless_another_label_is_given(network, examples, found):
    x = examples["clean"]
    mine = halves(network, x, SHORT, hardware=CPU, seed=0)
    own = predict(network, x, hardware=CPU).argmax(1)
    assert torch.equal(mine["Int"], own)
    again = halves(network, x, SHORT, hardware=CPU, seed=0, given=own)
    assert all(torch.equal(mine[name], again[name]) for name in ("Int", "R", "NR", "random"))
    true, clean = halves(network, x, SHORT, hardware=CPU, seed=0, given=LABELS), "example == distilled == 'clean'"
    for half, given, part in (("NR", "true", "NR"), ("random", "shuffled", "R")):
        stored = found.rows.query(f"{clean} and given == '{given}' and features == '{part}'")
        assert true[half].tolist() == stored["prediction"].tolist()


def test_shuffled_indices_keep_their_number_in_every_image():
    robust = torch.rand(50, 40, generator=Generator().manual_seed(0)) < 0.3
    again = shuffled(robust, 0)
    assert torch.equal(again.sum(1), robust.sum(1)) and not torch.equal(again, robust)
    assert torch.equal(again, shuffled(robust, 0)) and not torch.equal(again, shuffled(robust, 1))
