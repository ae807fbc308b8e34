from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sample_networks import CE, CPU, GROUP, PGD2, make_group, save_digits

from companion import datasets, distillations, evaluations, groups, records, trained
from companion.groups import Group, accuracies
from robust_features.attacks import PGD
from robust_features.batches import as_float
from robust_features.bottleneck import Bottleneck
from robust_features.evaluation import accuracy_of, attack_all
from robust_features.regularisers import IBRAR
from robust_features.statistics import over_seeds
from robust_features.training import train
from robust_features.training.objectives import Adversarial

FGSM1 = PGD(epsilon=0.1, step_size=0.1, steps=1, random_start=False)
DISTILLED = replace(
    GROUP,
    attacks={"fgsm": FGSM1, "pgd": PGD2},
    only={"ce": ("pgd",)},
    distil=("fgsm", "pgd"),
    bottleneck=Bottleneck(steps=2),
)


@pytest.fixture
def make(data, monkeypatch):
    save_digits()
    return lambda name, group: make_group(name, group, monkeypatch)


def equal(one, other):
    return all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))


def test_a_groups_members_are_what_training_attacking_and_distilling_one_by_one_gives(make, data):
    make("p/g", DISTILLED)
    splits = {split: datasets.load("digits", split) for split in ("train", "validation", "test")}
    alone = train(splits, CE, hardware=CPU, report=str)
    assert equal(alone.network, trained.load("p/g/ce", hardware=CPU))
    attacked = attack_all(PGD2, alone.network, splits["test"], hardware=CPU, seed=0, images_kept=20)
    found = evaluations.load("p/g/ce")["pgd"]
    assert torch.equal(found.predictions, attacked.predictions) and torch.equal(found.images, attacked.images)
    examples = {"clean": as_float(splits["test"].images), "pgd": attacked.images}
    options = dict(hardware=CPU, seed=0, report=str)
    own = distillations.distil_examples(alone.network, examples, splits["test"].labels, DISTILLED.bottleneck, **options)
    stored = distillations.load("p/g/ce")
    assert own.tensors.keys() == stored.tensors.keys() and own.rows.equals(stored.rows)
    assert all(torch.equal(own.tensors[name], stored.tensors[name]) for name in own.tensors)
    assert not list((data / "interrupted").iterdir())


def test_only_some_attacks_are_made_on_some_members_and_the_images_of_some_are_all_kept(make, data):
    make("p/g", replace(DISTILLED, images=("fgsm",), distil=("pgd",), seeds=(0, 3)))
    for run, names in (("ce", ["pgd"]), ("ce-seed3", ["pgd"]), ("ibrar", ["fgsm", "pgd"])):
        found = evaluations.load(f"p/g/{run}")
        assert list(found) == ["clean", *names] and all(len(found[name].images) == 20 for name in names)
    make("p/h", replace(GROUP, members={"ce": CE}))
    assert len(evaluations.load("p/h/ce")["pgd"].images) == evaluations.GALLERY
    assert not (data / "networks" / "p/h/ce/distillation").exists()


def test_members_are_listed_in_their_order_and_with_their_seeds(make, data):
    make("p/g", replace(GROUP, members=dict(reversed(GROUP.members.items())), seeds=(4, 1), attacks={}))
    assert records.members("p/g") == ["ibrar", "ibrar-seed1", "ce", "ce-seed1"]
    assert {path.name for path in (data / "networks/p/g").iterdir()} == {*records.members("p/g"), records.MEMBERS}
    assert records.load(records.folder("model", "p/g/ce")).card["settings"]["seed"] == 4
    with pytest.raises(Exception, match="p/none: there is none yet; run `dvc repro networks@p/none`"):
        records.members("p/none")


def test_the_history_has_a_row_a_member_and_epoch(make):
    make("p/g", replace(GROUP, members={"b": replace(CE, epochs=2), "a": replace(CE, monitor=None)}, attacks={}))
    history = groups.history("p/g", Group(members={"b": CE, "a": CE}, reads=""))
    assert history[["member", "epoch"]].to_numpy().tolist() == [["b", 1], ["b", 2], ["a", 1]]
    assert history["attacked"].isna().tolist() == [False, False, True] and history.index.tolist() == [0, 1, 2]


def test_the_history_of_chosen_seeds_has_the_rows_of_each(make):
    make("p/g", replace(GROUP, members={"a": CE}, seeds=(4, 1, 7), attacks={}))
    group = Group(members={"a": CE}, seeds=(4, 1, 7), reads="")
    assert groups.history("p/g", group)["seed"].tolist() == [4]
    both = groups.history("p/g", group, seeds=(7, 4))
    assert both[["member", "seed"]].to_numpy().tolist() == [["a", 4], ["a", 7]]
    assert both["loss"].tolist() == [trained.history(f"p/g/{run}")["loss"][0] for run in ("a", "a-seed7")]


def test_an_interrupted_group_goes_on_with_what_is_missing(make, data, monkeypatch):
    broken = replace(GROUP, members=GROUP.members | {"ibrar": replace(CE, regulariser=IBRAR(layers=("none",)))})
    with pytest.raises(Exception, match="no stage 'none'"):
        make("p/g", broken)
    (half,) = (path.parent for path in (data / "interrupted").glob("group-*/ce"))
    monkeypatch.setattr(groups, "_interrupted", lambda group, seed: half)
    lines = make("p/g", GROUP)
    assert lines[0] == "1 of 2 were finished before" and not any(line.startswith("ce: ") for line in lines)
    assert lines[-1].startswith("ibrar: clean ") and records.members("p/g") == ["ce", "ibrar"]


def test_a_member_that_is_interrupted_while_attacked_is_not_trained_again_nor_left_half_written(
    make, data, monkeypatch
):
    whole = replace(GROUP, members={"ce": CE}, attacks={"fgsm": FGSM1, "pgd": PGD2})
    real, asked = attack_all, []

    def breaks(attack, *rest, **options):
        asked.append(attack)
        if attack == PGD2 and len(asked) == 2:
            (folder,) = Path(data / "interrupted").glob("group-*-ce")
            (folder / ".evaluation.7.partial").mkdir()  # of a killed process
            raise KeyboardInterrupt
        return real(attack, *rest, **options)

    monkeypatch.setattr(evaluations, "attack_all", breaks)
    with pytest.raises(KeyboardInterrupt):
        make("p/g", whole)
    lines = make("p/g", whole)
    assert lines[0] == "ce: resumed after epoch 1 of 1" and asked == [FGSM1, PGD2, PGD2]
    assert not list(data.rglob("*.partial")) and not list((data / "interrupted").iterdir())


def test_what_is_resumed_belongs_to_these_settings_images_and_seed(make, data):
    places = {groups._interrupted(group, seed) for group, seed in ((GROUP, 0), (GROUP, 1), (DISTILLED, 0))}
    places.add(groups._interrupted(GROUP, 0))
    datasets.save("digits", datasets.read(datasets.Digits(train=65, validation=20, test=20), seed=0), GROUP)
    places.add(groups._interrupted(GROUP, 0))
    assert len(places) == 4


def test_every_seed_is_named_once():
    with pytest.raises(ValueError, match=r"every seed once, found \[0, 0\]"):
        replace(GROUP, seeds=(0, 0))


def test_rows_of_one_seed_have_wilsons_interval_of_several_students(make):
    both = replace(GROUP, seeds=(0, 1))
    make("p/one", GROUP)
    make("p/two", both)
    one, two = (
        accuracies(name, g, only=["pgd"]).set_index("member") for name, g in (("p/one", GROUP), ("p/two", both))
    )
    assert one.loc["ce", "n"] == 20 and two.loc["ce", "n"] == 2
    labels = datasets.load("digits", "test").labels
    found = [evaluations.load(f"p/two/{run}")["pgd"].predictions for run in ("ce", "ce-seed1")]
    values = [accuracy_of(predictions, labels).value for predictions in found]
    assert two.loc["ce", "value"] == over_seeds(values).value and one.loc["ce", "value"] == values[0]
    assert accuracies("p/one", GROUP)["example"].tolist() == ["clean", "pgd"] * 2


def test_processes_side_by_side_answer_in_order():
    names = list(GROUP.trainings)
    assert list(groups._side_by_side(str.upper, names, 2)) == [name.upper() for name in names]


def test_members_are_found_by_the_radius_they_are_trained_against_the_smallest_first():
    def against(epsilon):
        return replace(CE, objective=Adversarial(attack=replace(PGD2, epsilon=epsilon, norm="l2")))

    group = Group(members={"big": against(2), "plain": CE, "small": against("1/256")}, reads="datasets/digits")
    assert list(group.radii.items()) == [("0", "plain"), ("1/256", "small"), ("2", "big")]


def test_a_member_cannot_be_called_like_another_ones_seed():
    with pytest.raises(ValueError, match="the member a-seed1 has the name of another one's seed"):
        replace(GROUP, members={"a": CE, "a-seed1": CE}, seeds=(0, 1), attacks={}, only={}, distil=())
