# ruff: noqa: E501
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import fields
from importlib import import_module
from pkgutil import walk_packages
from typing import get_type_hints

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

import robust_features
from robust_features import params
from robust_features.attacks import NIFGSM, PGD
from robust_features.datasets import ImageFolder
from robust_features.models import Victim, build
from robust_features.paths import PARAMS
from robust_features.settings import UserError
from robust_features.training import SGD

TEXT = PARAMS.read_text()
MODULES = [module.name for module in walk_packages(robust_features.__path__) if "report" not in module.name]


def load_edited(tmp_path, old, new):
    assert old in TEXT, "the edit must apply"
    path = tmp_path / "params.yaml"
    path.write_text(TEXT.replace(old, new, 1))
    return params.load(path)


@pytest.mark.parametrize("scale", ["quick", "photographs", "gpu", "paper"])
def test_every_scale_is_sound(tmp_path, scale):
    run = load_edited(tmp_path, "\nrun: *quick", f"\nrun: *{scale}")
    assert run.scale == scale
    assert {model.dataset for model in run.models.values()} <= run.datasets.keys()


def test_the_paper_scale_has_every_row_and_column_of_the_papers_tables(tmp_path):
    run = load_edited(tmp_path, "\nrun: *quick", "\nrun: *paper")
    found = {tuple(names.values()) for names in run.dimensions("adversarial", "trades", "mart").values()}
    datasets, networks = ("cifar10", "svhn", "tiny-imagenet"), ("vgg16", "wrn28-10")
    assert found == {(d, n, m) for d in datasets for n in networks for m in ("adversarial", "trades", "mart")}
    for name, names in run.dimensions().items():
        settings = run.models[name]
        assert settings.network.kind == {"vgg16": "vgg16", "wrn28-10": "wide-resnet"}[names["network"]]
        assert settings.objective.kind.removesuffix("-kim") == names["defence"]
        assert (settings.epochs, settings.batch_size, settings.schedule.every) == (60, 100, 20)


@pytest.mark.parametrize(
    "old, new, said",
    [
        ("epsilon: 0.2, step_size: 0.15", "epsilon: -0.2, step_size: 0.15", r"models\..*\.objective\.attack\.epsilon: .*greater than or equal to 0"),
        ("bottleneck: {beta: 0.3", "bottleneck: {betta: 0.3", r"run\.bottleneck: unknown key 'betta'; did you mean 'beta'\?; allowed are beta, steps"),
        ("fgsm: {kind: pgd", "fgsm: {kind: pdg", r"run\.attacks\.digits\.fgsm\.kind: 'pdg' is none of adaptive, apgd, autoattack, carlini-wagner, .*; did you mean 'pgd'"),
        ("epochs: 8", "epochs: twelve", r"run\.models\.digits-vgg16-standard\.epochs: .*integer.*found 'twelve'"),
        ("  dataset: digits\n", "  dataset: digit\n", r"run\.models\.digits-vgg16-standard\.dataset: no dataset 'digit'; did you mean 'digits'\?"),
        ("digits: {kind: digits,", "digits: {kind: cifar11,", r"run\.datasets\.digits\.kind: 'cifar11' is none of .*cifar10.*; did you mean 'cifar1"),
        ("  epochs: 8\n", "", r"run\.models\.digits-vgg16-standard\.epochs: Field required"),
        ("depth: 10, width: 1", "depth: 11, width: 1", r"run\.models\.digits-16-wrn28-10-standard\.network\.depth: .*6n \+ 4"),
        ("digits-vgg16-mart:", "mart:", r"run\.models\.mart: a model's id reads <dataset>-<network>-<defence>"),
        ("distilled: [fgsm, pgd, cw]", "distilled: [fgsm, pdg]", r"run\.attacks\.digits: no attack 'pdg', which run\.kim\.distilled names; did you mean"),
        ("layers: [block5, fc1, fc2]}", "layers: [block6, fc1]}", r"run\.families\.xu-plain\.members\.rob\.regulariser\.layers: no stage 'block6'; did you mean 'block\d'\?"),
        ("alpha: 0.008, beta: 0.08, layers: all", "alpha: -0.008, beta: 0.08, layers: all", r"run\.families\.xu-plain\.members\.all\.regulariser\.alpha: .*greater than or equal to 0"),
        ("kind: persistent, fraction: 0.05", "kind: persistent, fraction: 1.0", r"run\.families\.xu-masks\.members\.ce-persistent\.mask\.fraction: .*less than 1"),
        ("  epochs: 6\n  batch_size: 32", "  epochs: 6\n  batch_size: 1", r"run\.families\.xu-plain\.members\.ce\.batch_size: .*greater than or equal to 2"),
        ("encoding: 64", "encoding: 0", r"run\.families\.xu-plain\.members\.vib\.regulariser\.vib needs the stage 'encoding'"),
        ("      keep: [pgd]", "      keep: [pdg]", r"run\.families\.xu-plain\.keep: no attack 'pdg'; did you mean 'pgd"),
        ("pixels as they are; momentum, no decay\n  dataset: digits-600", "pixels as they are; momentum, no decay\n  dataset: digits-60", r"run\.families\.xu-plain\.members\.ce\.dataset: no dataset 'digits-60'; did you mean 'digits-600"),
        ("kind: mobilenet-v2, width: 0.25}", "kind: mobilenet-v2, width: 0.25}, seed: 4", r"run\.families\.springer-digits-16-victims\.members\.mobilenet-v2\.seed: a family's members are trained with its `seeds`, \[0\]"),
        ("member: every, splits", "member: eps-0, splits", r"run\.springer\.cifar10: needs run\.constructed\.springer-digits-16\.sets\.r with `member: every`"),
        ("    springer-digits-8:\n      dataset: digits-8", "    springer-digits-8:\n      dataset: digits-16", r"run\.springer\.imagenet9: needs run\.constructed\.springer-digits-8 with dataset digits-8 and family springer-digits-8-sources"),
        ("dataset: ilyas/next}", "dataset: ilyas/nex}", r"run\.descendants\.ilyas-trained\.members\.d-det\.dataset: no dataset 'ilyas/nex'; did you mean 'ilyas/next"),
        ("dropout: 0.0", "dropout: 1.5", r"run\.models\.digits-16-wrn28-10-standard\.network\.dropout: .*less than or equal to 1, found 1\.5"),
        ("dropout: 0.0", "dropout: -1", r"network\.dropout: .*greater than or equal to 0"),
        ("momentum: 0.9", "momentum: 2", r"run\.families\.xu-plain\.members\.ce\.optimiser\.momentum: .*less than or equal to 1"),
        ("momentum: 0.9", "momentum: 0, nesterov: true", r"members\.ce\.optimiser: nesterov needs momentum"),
        ("learning_rate: 0.1, weight", "learning_rate: .nan, weight", r"optimiser\.learning_rate: .*finite"),
        ("weight_decay: 1.0e-2", "weight_decay: .inf", r"optimiser\.weight_decay: .*finite"),
        ("mean: 0.0, std", "mean: 127, std", r"network\.mean: .*less than or equal to 1"),
        ("gamma: 0.2", "gamma: -0.2", r"schedule\.gamma: .*greater than 0|schedule\.gamma: .*greater than or equal to 0"),
        ("width: 0.125", "width: 1.0e-3", r"network\.width: .*greater than or equal to 0\.0625"),
        ("depth: 11, width", "depth: 9002, width", r"network\.depth: .*less than or equal to 1001"),
        ("  epochs: 8\n", "  epochs: 0\n", r"digits-vgg16-standard\.epochs: .*greater than or equal to 1"),
        ("  epochs: 8\n", "  epochs: true\n", r"digits-vgg16-standard\.epochs: true is no number"),
        ("hidden: 2,", "hidden: true,", r"network\.hidden: true is no number"),
        ("  seed: 0\n", "  seed: 4294967296\n", r"digits-vgg16-standard\.seed: .*less than 4294967296"),
        ("fab: {kind: fab, epsilon: 0.2", "fab: {kind: fab, epsilon: 16", r"run\.attacks\.digits\.fab: .*write 16/255"),
        ("autoattack, epsilon: 0.2", "autoattack, epsilon: 16", r"run\.attacks\.digits\.autoattack\.epsilon: .*write 16/255"),
        ("apgd, epsilon: 0.2", "apgd, epsilon: 8/0", r"run\.attacks\.digits\.apgd\.epsilon: '8/0' is no number; write it like .*8/255"),
        ("apgd, epsilon: 0.2", "apgd, epsilon: '0,03'", r"run\.attacks\.digits\.apgd\.epsilon: '0,03' is no number; write it like 0\.03"),
        ("apgd, epsilon: 0.2", "apgd, epsilon: 0", r"run\.attacks\.digits\.apgd\.epsilon: 0 leaves every image as it is"),
        ("step_size: 0.027", "step_size: -0.027", r"run\.attacks\.digits\.bim\.step_size: .*greater than or equal to 0"),
        ("size: 32, train: 1000", "size: 16, train: 1000", r"run\.models\.digits-vgg16-standard\.network: vgg16 leaves of images of 16 pixels nothing; take a dataset of 32 pixels"),
        ("size: 32, train: 1000", "size: 32, train: 1697", r"run\.datasets\.digits\.validation: 100 images asked for and 1697 for train, there are 1597"),
        ("size: 32, train: 1000, validation: 100", "size: 32, validation: 1597", r"run\.datasets\.digits\.validation: 1597 images asked for and at least one for train, there are 1597"),
        ("size: 32, train: 1000, validation: 100, test: 200", "size: 32, validation: 1, test: 1797", r"run\.datasets\.digits\.validation: .*there are 0"),
        ("digits: {kind: digits, size: 32, train: 1000", "digits: {kind: image-folder, path: no/such, size: 32, train: 1000", r"run\.datasets\.digits\.path: no folder .*no/such/train; it needs train/<class>/\*"),
        ("  batch_size: 32\n", "  batch_size: 1001\n", r"digits-vgg16-standard\.batch_size: 1001 is more than the 1000 images of digits"),
        ("augmentation: {padding: 2,", "augmentation: {padding: 32,", r"digits-vgg16-standard\.augmentation\.padding: 32 pixels of black"),
        ("splits: [test]", "splits: [tset]", r"run\.constructed\..*\.splits\.0: .*'train' or 'test', found 'tset'"),
        ("\nrun: *quick", "\nruns: *quick", r"needs `run: \*quick`"),
        ("\nrun: *quick", "\nrun: *quik", r"not valid YAML.*quik"),
        ("\nrun: *quick", "\nrun: {", r"not valid YAML"),
        ("apgd: {kind: apgd, ", "apgd: {", r"run\.attacks\.digits\.apgd\.kind: Field required"),
    ],
    ids=lambda value: None,
)  # fmt: skip
def test_a_mistake_is_named_by_its_key_with_what_is_allowed(tmp_path, old, new, said):
    with pytest.raises(UserError, match=f"(?s){said}"):
        load_edited(tmp_path, old, new)


def test_all_mistakes_are_said_at_once(tmp_path):
    with pytest.raises(UserError) as error:
        load_edited(tmp_path, "learning_rate: 0.1, weight_decay: 1.0e-2}", "learning_rate: 0, weight_decay: -1}")
    assert "learning_rate" in str(error.value) and "weight_decay" in str(error.value)


def test_python_refuses_what_yaml_refuses():
    with pytest.raises(ValueError, match="unknown key 'eps'"):
        PGD(eps=0.1, step_size=0.1)


@pytest.mark.parametrize(
    "written, value",
    [("8/255", 8 / 255), ("8./255", 8 / 255), (" 8 / 255 ", 8 / 255), ("0.5/2", 0.25), ("1e-3", 0.001), (1, 1.0)],
)
def test_a_number_may_be_written_as_a_fraction_or_in_quotes(written, value):
    assert PGD(epsilon=written, step_size=0.01).epsilon == value == SGD(learning_rate=written).learning_rate


def takes(kind, value):
    try:
        return TypeAdapter(kind).validate_python(value) is not None
    except ValidationError:
        return False


def test_no_number_of_any_settings_may_be_a_boolean_nan_or_infinite():
    found = [thing for name in MODULES for thing in vars(import_module(f"robust_features.{name}")).values()]
    owners = [thing for thing in found if isinstance(thing, type) and hasattr(thing, "_known_keys")]
    hints = {(c.__name__, f.name): get_type_hints(c, include_extras=True)[f.name] for c in owners for f in fields(c)}
    numbers = {key: kind for key, kind in hints.items() if kind is not bool and (takes(kind, 1) or takes(kind, [1]))}
    assert len(numbers) > 80
    bad = (True, math.nan, math.inf, -math.inf, "nan", "1/0", [True], [math.nan])
    assert not [(key, value) for key, kind in numbers.items() for value in bad if takes(kind, value)]


def test_an_l2_radius_may_exceed_the_range_of_a_pixel_an_linf_radius_may_not():
    assert PGD(epsilon=2, step_size=1, norm="l2").epsilon == 2
    for attack in (PGD, NIFGSM):
        with pytest.raises(ValueError, match="write 2/255"):
            attack(epsilon=2, step_size=1)


def test_an_attack_that_compares_four_classes_is_refused_for_three(tmp_path):
    for place in ("train/a", "train/b", "train/c", "train/.hidden", "test/a"):
        (tmp_path / place).mkdir(parents=True)
    mine = ImageFolder(path=str(tmp_path), size=32, validation=1, train=99)
    model, attacks = params.load().models["digits-vgg16-standard"], params.load().attacks["digits"]
    refused = [line.split()[2] for line in params._unfit(model, "m", mine, params._positions, attacks)]
    assert refused == ["autoattack"] and mine.class_count == 3


def test_a_folder_of_images_is_sound_once_it_has_more_than_are_held_out(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split / "cat").mkdir(parents=True)
        (tmp_path / split / "cat" / "1.png").touch()
    mine = ImageFolder(path=str(tmp_path), size=32, validation=1)
    assert mine.problem().endswith("there are 1")
    (tmp_path / "train" / "cat" / "2.png").touch()
    assert mine.problem() == ""


@pytest.mark.parametrize("kind", ["densenet121", "mobilenet-v2", "googlenet", "shufflenet-v2", "resnet50"])
def test_the_check_knows_what_torchvisions_networks_leave_of_small_images(kind):
    network = build(Victim(kind=kind, width=1 / 16), 2, seed=0).eval()
    for size in (8, 12, 16, 20):
        with torch.no_grad():
            left = network.features(torch.zeros(1, 3, size, size))
        assert params._positions(Victim(kind=kind), size) == left[0, 0].numel()


@pytest.mark.parametrize("size, said", [(8, "8 pixels one position at its split, .*take a dataset of 16"), (16, "")])
def test_a_network_that_is_distilled_needs_two_positions(tmp_path, size, said):
    old = "network: &narrow_wrn {kind: wide-resnet, depth: 10, width: 1, dropout: 0.0}"
    text = TEXT.replace(old, "network: {kind: resnet18, width: 0.125}").replace(
        "digits-16: {kind: digits, size: 16", f"digits-16: {{kind: digits, size: {size}"
    )
    (tmp_path / "params.yaml").write_text(text)
    try:
        params.load(tmp_path / "params.yaml")
    except UserError as error:
        assert said and re.search(
            rf"digits-16-wrn28-10-standard\.network: resnet18 leaves of images of {said}", str(error)
        )
    else:
        assert not said


def test_the_check_that_guards_every_stage_takes_seconds():
    before = os.times()
    subprocess.run([sys.executable, "-m", "robust_features.params"], check=True, capture_output=True)
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    assert spent < 10, "of a processor's time, which others may share"


def test_captions_say_which_networks_are_narrower_than_published(tmp_path):
    assert params.load().stand_ins() == " (narrow: vgg16 has width 0.125; wrn28-10 has depth 10, width 1)"
    assert params.load().stand_ins("xu-plain") == " (narrow: vgg16 has width 0.125)"
    paper = load_edited(tmp_path, "\nrun: *quick", "\nrun: *paper")
    assert paper.stand_ins() == paper.stand_ins("xu") == ""


@pytest.mark.parametrize("scale", ["gpu", "paper"])
def test_every_scale_has_the_networks_of_xu_et_al_as_they_were_trained(tmp_path, scale):
    run = load_edited(tmp_path, "\nrun: *quick", f"\nrun: *{scale}")
    tables = {name.removeprefix("xu-adversarial-") for name in run.families if name.startswith("xu-adversarial-")}
    assert {"cifar10-vgg16", "cifar10-resnet18"} <= tables
    assert scale == "gpu" or {"tiny-imagenet-vgg16", "cifar100-wrn28-10", "svhn-vgg16", "svhn-resnet18"} <= tables
    for name in tables:
        family = run.families[f"xu-adversarial-{name}"]
        assert family.members.keys() == {m + more for m in ("pgd", "trades", "mart") for more in ("", "-ibrar")}
        for member, model in family.members.items():
            assert name.startswith(model.dataset) and (model.epochs, model.batch_size, model.seed) == (60, 100, 0)
            assert (model.regulariser is not None) == (model.mask is not None) == member.endswith("-ibrar")
            assert model.objective.kind.removesuffix("-kim") == member.removesuffix("-ibrar").replace(
                "pgd", "adversarial"
            )
    of_xu = [family for name, family in run.families.items() if name.startswith("xu-")]
    assert all(len(family.seeds) == (3 if scale == "paper" else 1) for family in of_xu)


def test_standard_trained_networks_are_attacked_by_what_is_distilled_others_by_all():
    run = params.load()
    assert list(run.attacks_on("digits-vgg16-standard")) == ["fgsm", "pgd", "cw"]
    assert run.attacks_on("digits-vgg16-mart") == run.attacks["digits"]


@pytest.mark.parametrize("scale", ["quick", "photographs", "gpu", "paper"])
def test_every_scale_has_the_attacks_of_tables_3_and_4_in_one_ball(tmp_path, scale):
    run = load_edited(tmp_path, "\nrun: *quick", f"\nrun: *{scale}")
    for attacks in run.attacks.values():
        assert {"fgsm", "bim", "pgd", "apgd", "fab", "autoattack", "cw", "nrf", "nrf2", "rf", "rf2"} <= attacks.keys()
        bounded = {attack.epsilon for attack in attacks.values() if attack.epsilon is not None}
        assert len(bounded) == 1
        assert attacks["nrf"].c == attacks["cw"].c


@pytest.mark.parametrize("scale", ["quick", "photographs", "gpu", "paper"])
def test_every_scale_has_what_the_pages_on_springer_et_al_read(tmp_path, scale):
    run = load_edited(tmp_path, "\nrun: *quick", f"\nrun: *{scale}")
    for study in run.springer.studies.values():
        name = f"springer-{study.dataset}"
        sources, sets = run.families[f"{name}-sources"], run.robustified(study.dataset)
        assert list(sets) == list(sources.radii) and {"0", "1/4"} <= set(sets)
        assert {"zero", "neg"} == set(run.descendants[f"{name}-trained"].members)
        assert {f"{name}-standard", f"{name}-victims"} <= set(run.families)
        assert {"untargeted", "targeted"} == set(run.transfers[name].attacks)
        own = {model.seed for model in sources.trainings.values()}
        assert not own & {model.seed for model in run.families[f"{name}-standard"].trainings.values()}
    assert run.transfers["ilyas"].victims in run.families
    learners, victims = run.descendants["ilyas-learners"], run.families[run.transfers["ilyas"].victims]
    assert list(learners.members) == list(victims.members)


def test_the_paper_scale_has_the_epsilons_of_springer_et_al(tmp_path):
    run = load_edited(tmp_path, "\nrun: *quick", "\nrun: *paper")
    grid = ["0", "1/256", "1/128", "1/64", "1/32", "1/16", "1/8", "1/4", "1/2", "1"]
    assert list(run.robustified("cifar10")) == grid == list(run.robustified("imagenet9"))
    recipe = run.constructed["springer-cifar10"].sets["r"]
    assert (recipe.make.steps, recipe.make.step_size, recipe.splits) == (400, 0.05, ("test",))


def test_the_run_is_written_an_entry_a_file_and_what_is_gone_is_deleted(tmp_path):
    (tmp_path / "params.yaml").write_text("run:\n  seed: 3\n  models: {a: {epochs: 2}, b: {epochs: 5}}\n", "utf-8")
    (tmp_path / "out" / "models").mkdir(parents=True)
    (tmp_path / "out" / "models" / "gone.json").write_text("{}")
    params.write(tmp_path / "out", tmp_path / "params.yaml")
    found = {path.relative_to(tmp_path / "out").as_posix(): path for path in (tmp_path / "out").rglob("*.json")}
    read = {name: json.loads(path.read_text("utf-8")) for name, path in found.items()}
    assert read == {"seed.json": 3, "models/a.json": {"epochs": 2}, "models/b.json": {"epochs": 5}}
