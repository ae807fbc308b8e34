import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from sample_networks import CPU, GROUP, at_scale, make_group, quick, save_digits

from companion import datasets, fetched, groups, mismatches, paths, records, trained
from companion.datasets import archives
from robust_features.batches import as_float
from robust_features.evaluation import predict
from robust_features.settings import UserError

REAL = os.environ.get(archives.ELSEWHERE, "")
PUBLISHED = paths.ROOT / "reports/published/photographs"


@pytest.fixture
def published(data, tmp_path, monkeypatch):
    """A group's networks, published and fetched; the group itself is gone."""
    save_digits()
    make_group("p/g", GROUP, monkeypatch)
    folder = tmp_path / "reports/published/gpu"
    monkeypatch.setattr(paths, "REPORTS", tmp_path / "reports")
    fetched.keep(folder / fetched.NETWORKS, {"p/g": GROUP}, ["p/g"])
    (folder / "manifest.json").write_text(json.dumps({"provenance": {"commit": "abc"}}))
    shutil.move(data / "networks/p/g", tmp_path / "trained")
    return folder


def untrained(*_, **__):
    raise AssertionError("trained although it was fetched")


def test_a_fetched_group_is_not_trained_and_is_the_published_one_to_half_precision(published, tmp_path, monkeypatch):
    assert fetched.fetch("gpu") == ["p/g/ce", "p/g/ibrar"]
    monkeypatch.setattr(groups, "train", untrained)
    lines = make_group("p/g", GROUP, monkeypatch)
    assert sum("fetched, in half precision, as trained at commit abc" in line for line in lines) == 2
    for member in ("ce", "ibrar"):
        network = trained.load(f"p/g/{member}", hardware=CPU)
        before, card = records.load(tmp_path / "trained" / member / "model"), trained.history(f"p/g/{member}")
        assert all(value.dtype == before.tensors[name].dtype for name, value in network.state_dict().items())
        for name, value in network.state_dict().items():
            assert torch.allclose(value, before.tensors[name], rtol=2**-10, atol=2**-24)
        assert card["loss"].tolist() == [row["loss"] for row in before.card["history"]]
        assert records.load(records.folder("model", f"p/g/{member}")).card["fetched"] == "abc"


def test_a_fetched_network_is_taken_by_code_that_is_newer_than_it(published, monkeypatch):
    fetched.fetch("gpu")
    monkeypatch.setattr(records, "_method", lambda: {"robust_features.training": "another"})
    monkeypatch.setattr(groups, "train", untrained)
    assert sum("fetched" in line for line in make_group("p/g", GROUP, monkeypatch)) == 2


def test_published_networks_take_half_the_space(published, tmp_path):
    whole, half = (
        sum(path.stat().st_size for path in place.glob(f"*/**/{records.TENSORS}") if "evaluation" not in path.parts)
        for place in (tmp_path / "trained", published / fetched.NETWORKS)
    )
    assert half < 0.55 * whole


def test_a_group_with_other_settings_trains_its_own(published, monkeypatch):
    fetched.fetch("gpu")
    changed = {name: replace(model, epochs=2) for name, model in GROUP.members.items()}
    lines = make_group("p/g", replace(GROUP, members=changed), monkeypatch)
    assert not any("fetched" in line for line in lines)
    assert len(trained.history("p/g/ce")) == 2 and "fetched" not in records.load(records.folder("model", "p/g/ce")).card


def test_a_scale_without_published_networks_names_those_that_have_some(published):
    with pytest.raises(
        UserError, match="SCALE=paper: no networks are published for this scale; scales that have some: gpu"
    ):
        fetched.fetch("paper")


def test_a_damaged_published_network_is_not_laid_ready(published, data):
    (published / fetched.NETWORKS / "p/g/ce" / records.TENSORS).write_bytes(b"cut")
    with pytest.raises(UserError, match="p/g/ce: no whole record"):
        fetched.fetch("gpu")
    assert not list((data / "fetched").glob("*"))


def test_a_group_to_publish_that_is_none_is_named():
    (place, said), *more = mismatches.mismatches(replace(quick(), fetch=("kim/vgg61",)))
    assert (
        place == ("fetch", 0)
        and said.startswith("no group of networks 'kim/vgg61'; did you mean 'kim/vgg16'")
        and not more
    )


def test_the_published_networks_are_small_enough_for_git():
    sizes = [path.stat().st_size for path in (PUBLISHED / fetched.NETWORKS).rglob("*") if path.is_file()]
    assert sizes and sum(sizes) <= 12e6


@pytest.mark.real_data
@pytest.mark.skipif(not (Path(REAL) / "cifar-10-batches-py").is_dir(), reason="ROBUST_FEATURES_DATA has no CIFAR-10")
def test_trainings_of_params_yaml_find_the_published_networks_with_the_published_clean_accuracies(data, monkeypatch):
    monkeypatch.setenv(archives.ELSEWHERE, REAL)
    run = at_scale("photographs")
    datasets.save("cifar10", datasets.read(run.datasets["cifar10"], seed=run.seed), run.datasets["cifar10"])
    test = datasets.load("cifar10", "test")
    table = pd.read_csv(PUBLISHED / "15-kim-4-attack/tables/kim-table-3.csv")
    own = table[(table["dataset"] == "cifar10") & (table["example"] == "clean")].dropna(subset="ours")
    clean = own.set_index("defence")["ours"]
    fetched.fetch("photographs")
    for defence in ("adversarial", "trades", "mart"):
        training = run.networks["kim/vgg16"].trainings[defence]
        found, _ = fetched.take(training, trained.splits(training), hardware=CPU)
        assert found, f"{defence}: params.yaml has changed since it was published"
        predicted = predict(found.network, as_float(test.images), hardware=CPU).argmax(1)
        accuracy = 100 * (predicted == test.labels).float().mean().item()
        assert accuracy == pytest.approx(clean[defence], abs=0.3), defence  # weights are rounded to half precision
