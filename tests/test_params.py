# ruff: noqa: E501
import json
import math
import os
import subprocess
import sys
from dataclasses import fields, replace
from importlib import import_module
from pkgutil import walk_packages
from typing import get_type_hints

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from ruamel.yaml import YAML

import companion
import robust_features
from companion import mismatches, params, paths
from companion.datasets import ImageFolder
from robust_features.attacks import NIFGSM, PGD
from robust_features.networks import VGG16, Victim, build
from robust_features.settings import UserError
from robust_features.training import SGD

WRITTEN = {
    path: path.read_text("utf-8")
    for path in (paths.PARAMS, paths.SCALES / "quick.yaml", *sorted(paths.SCALES.glob("[!q]*.yaml")))
}
SCALES = ["quick", "photographs", "gpu", "paper"]
MODULES = [
    module.name
    for package in (robust_features, companion)
    for module in walk_packages(package.__path__, f"{package.__name__}.")
    if "report" not in module.name and "pipeline" not in module.name
]


def checked(scale="quick", *edits):
    papers, *scales = (YAML(typ="safe").load(text) for text in edited(*edits).values())
    names = [path.stem for path in WRITTEN][1:]
    return params.check(papers | {"scales": dict(zip(names, scales, strict=True))}, scale)[1]


def edited(*edits):
    """What is written, by file, with each edit made once: in params.yaml, or else in scales/quick.yaml."""
    texts = dict(WRITTEN)
    for old, new in edits:
        file = next(path for path, text in texts.items() if old in text)
        texts[file] = texts[file].replace(old, new, 1)
    return texts


def write(project, *edits):
    for path, text in edited(*edits).items():
        copy = project / path.relative_to(paths.ROOT)
        copy.parent.mkdir(exist_ok=True)
        copy.write_text(text, "utf-8")


@pytest.fixture(scope="module")
def runs():
    return {scale: checked(scale) for scale in SCALES}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A copy of what is written and a place for run.yaml."""
    for name in ("PARAMS", "SCALES", "RUN"):
        monkeypatch.setattr(paths, name, tmp_path / getattr(paths, name).name)
    write(tmp_path)
    return tmp_path


def test_the_committed_run_yaml_is_what_params_yaml_resolves_to(project):
    committed = (paths.ROOT / "run.yaml").read_text("utf-8")
    assert params.make().read_text("utf-8") == committed


@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_is_sound_and_says_its_settings_as_python_objects(runs, scale):
    assert runs[scale].scale == scale and len(runs[scale].networks) > 15
    groups = {name.partition("/")[0] for name in runs[scale].networks}
    assert groups == {"kim", "xu", "ilyas", "springer"}


def test_networks_are_called_what_they_are_and_stand_for_what_the_paper_has(runs):
    called = runs["quick"].dimensions("kim/", "adversarial")
    assert [names["network"] for names in called.values()] == ["VGG-16, width 1/8", "WRN-10-1"]
    assert runs["quick"].stands_for["network"]["WRN-10-1"] == "wrn28-10"
    assert {names["network"] for names in runs["paper"].dimensions("kim/").values()} == {"VGG-16", "WRN-28-10"}
    assert runs["quick"].labels("springer/victims")["densenet121"] == "DenseNet-121, width 1/4"


def test_a_dataset_of_the_study_that_is_cifars_own_images_stands_for_it_and_a_readers_does_not(runs):
    called = {scale: run.stands_for["dataset"] for scale, run in runs.items()}
    assert called == {"quick": {}, "photographs": {"cifar10-25k": "cifar10"}, "gpu": {}, "paper": {}}
    own = (
        "  cifar100: null\n  svhn: {kind: svhn-first",
        "  mine: {kind: cifar10, validation: 9}\n  svhn: {kind: svhn-first",
    )
    assert checked("photographs", own).stands_for == runs["photographs"].stands_for


def test_the_study_names_the_datasets_and_groups_of_all_scales_and_no_others(runs):
    for kind in ("datasets", "networks"):
        there = {name for run in runs.values() for name in getattr(run, kind)}
        assert sorted(there) == sorted(getattr(runs["quick"].study, kind)), f"params.yaml, study.{kind}"


def test_a_readers_group_is_told_from_the_studys_wherever_it_is_shown():
    own = ("  kim/svhn-vgg16: {like", "  kim/mine-vgg16: {like: kim/vgg16}\n  kim/svhn-vgg16: {like")
    called = checked("quick", own).dimensions("kim/", "adversarial")
    assert called["kim/mine-vgg16/adversarial"]["network"] == "VGG-16, width 1/8, of mine-vgg16"
    assert called["kim/vgg16/adversarial"]["network"] == "VGG-16, width 1/8"


def test_an_attack_that_is_not_made_on_a_network_is_named_with_it_and_the_nearest(runs):
    assert runs["quick"].attack("kim/vgg16/mart", "pgd") == runs["quick"].networks["kim/vgg16"].attacks["pgd"]
    said = "kim/vgg16/mart: no attack 'pdg'; did you mean 'pgd'.*; there are fgsm, bim, pgd"
    with pytest.raises(UserError, match=said):
        runs["quick"].attack("kim/vgg16/mart", "pdg")


def test_the_paper_scale_has_every_row_and_column_of_the_papers_tables(runs):
    found = {tuple(names.values()) for names in runs["paper"].dimensions("kim/").values()}
    datasets, networks = ("cifar10", "svhn", "tiny-imagenet"), ("VGG-16", "WRN-28-10")
    defences = ("standard", "adversarial", "trades", "mart")
    assert found == {(d, n, m) for d in datasets for n in networks for m in defences}
    for model in runs["paper"].members("kim/").values():
        assert (model.epochs, model.batch_size, model.schedule.every) == (60, 100, 20)


@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_has_the_attacks_of_tables_3_and_4_in_one_ball(runs, scale):
    for name, group in runs[scale].networks.items():
        if not name.startswith("kim/"):
            continue
        attacks = group.attacks
        assert {"fgsm", "bim", "pgd", "apgd", "fab", "autoattack", "cw", "nrf", "nrf2", "rf", "rf2"} <= attacks.keys()
        assert len({attack.epsilon for attack in attacks.values() if attack.epsilon is not None}) == 1
        assert attacks["nrf"].c == attacks["cw"].c and group.distil == ("fgsm", "pgd", "cw")
        defended = [member for member, model in group.members.items() if model.defence != "standard"]
        assert all({"cw", "cw-strong", "nrf", *group.distil} <= group.attacks_on(member).keys() for member in defended)


@pytest.mark.parametrize("scale", ["gpu", "paper"])
def test_the_networks_of_xu_et_al_are_trained_as_theirs(runs, scale):
    tables = [name for name, group in runs[scale].networks.items() if "pgd-ibrar" in group.members]
    assert "xu/vgg16" in tables and len(tables) == (6 if scale == "paper" else 1)
    for name in tables:
        for member, model in runs[scale].networks[name].members.items():
            assert scale == "gpu" or (model.epochs, model.batch_size) == (60, 100)
            assert (model.regulariser is not None) == (model.mask is not None) == member.endswith("-ibrar")
            assert model.defence == member.removesuffix("-ibrar").replace("pgd", "adversarial")
    seeds = {len(group.seeds) for name, group in runs[scale].networks.items() if name.startswith("xu/")}
    assert seeds == {3 if scale == "paper" else 1}


@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_has_what_the_pages_on_springer_et_al_read(runs, scale):
    run = runs[scale]
    for role in ("", "nine-") if "springer/nine" in run.constructed else ("",):
        sources, standard = (run.networks[f"springer/{role}{name}"] for name in ("sources", "standard"))
        entry = run.constructed["springer/nine" if role else "springer/main"]
        assert {"r", "zero", "neg"} == set(entry.sets) and entry.sets["r"].by == "every"
        assert {"0", "1/4"} <= set(sources.radii) and entry.networks == f"springer/{role}sources"
        assert {"zero", "neg"} == set(run.networks[f"springer/{role}trained"].members)
        own = {model.seed for model in sources.trainings.values()}
        assert not own & {model.seed for model in standard.trainings.values()}
    learners, victims = (run.networks[name] for name in ("ilyas/architectures", run.transfers["ilyas/main"].victims))
    assert list(learners.members) == list(victims.members)


def test_the_paper_scale_has_the_epsilons_of_springer_et_al(runs):
    grid = ["0", "1/256", "1/128", "1/64", "1/32", "1/16", "1/8", "1/4", "1/2", "1"]
    assert all(list(runs["paper"].networks[f"springer/{name}"].radii) == grid for name in ("sources", "nine-sources"))
    recipe = runs["paper"].constructed["springer/main"].sets["r"]
    assert (recipe.make.steps, recipe.make.step_size, recipe.splits) == (400, 0.05, ("test",))


Q = "scales/quick.yaml, "


@pytest.mark.parametrize(
    "old, new, said",
    [
        ("linf: {step: 0.75, steps: 3}", "linf: {step: -0.75, steps: 3}", rf"{Q}attacks.training.linf.*: .*greater than or equal to 0"),
        ("bottleneck: {beta: 0.3", "bottleneck: {betta: 0.3", r"bottleneck\.betta: unknown key 'betta'; did you mean 'beta'\?; allowed are beta, steps"),
        ("fgsm: {kind: pgd", "fgsm: {kind: pdg", r"attacks\.kim\.fgsm\.kind: 'pdg' is none of adaptive, apgd, autoattack, carlini-wagner, .*; did you mean 'pgd'"),
        ("schedule: {every: 6}, epochs: 8", "schedule: {every: 6}, epochs: twelve", rf"{Q}recipes\.kim\.epochs: .*integer.*found 'twelve'"),
        ("{dataset: digits, network", "{dataset: digit, network", rf"threat\.digit: no linf|{Q}recipes\.kim\.dataset: no dataset 'digit'; did you mean 'digits'"),
        ("digits: {kind: digits,", "digits: {kind: cifar11,", rf"{Q}datasets\.digits\.kind: 'cifar11' is none of .*cifar10.*; did you mean 'cifar1"),
        ("depth: 10, width: 1", "depth: 11, width: 1", rf"{Q}networks\.kim/wrn28-10\.base\.network\.depth: .*6n \+ 4"),
        ("distil: [fgsm, pgd, cw] ", "distil: [fgsm, pdg] ", r"networks\.kim/vgg16\.distil: no attack 'pdg'; did you mean 'pgd'"),
        ("only: {standard: [", "only: {standart: [", r"networks\.kim/vgg16\.only: no member 'standart'; did you mean 'standard'"),
        ("layers: [block5, fc1, fc2]}", "layers: [block6, fc1]}", r"regularisers\.rob\.layers: no stage 'block6'; did you mean 'block\d'|regulariser: layers: no stage 'block6'"),
        ("all: {kind: ibrar, alpha: 0.008", "all: {kind: ibrar, alpha: -0.008", r"regularisers\.all\.alpha: .*greater than or equal to 0"),
        ("kind: persistent, fraction: 0.05", "kind: persistent, fraction: 1.0", r"masks\.paper\.fraction: .*less than 1"),
        ("encoding: 64", "encoding: 0", r"vib needs the stage 'encoding'"),
        ("images: [pgd]\n  xu/rivals", "images: [pdg]\n  xu/rivals", r"networks\.xu/plain\.images: no attack 'pdg'; did you mean 'pgd"),
        ("by: eps-0, batch_size: 1000, make: {kind: relabelled, targets: next", "by: eps-00, batch_size: 1000, make: {kind: relabelled, targets: next", r"constructed\.springer/main\.sets\.neg\.by: no member 'eps-00'; did you mean 'eps-0'"),
        ("d-det: ilyas/main/next", "d-det: ilyas/main/nex", r"networks\.ilyas/relabelled\.each\.dataset\.d-det: no dataset 'ilyas/main/nex'; did you mean 'ilyas/main/next"),
        ("sources: ilyas/sources", "sources: ilyas/source", r"transfers\.ilyas/main\.sources: no group of networks 'ilyas/source'; did you mean"),
        ("width: 1, dropout: 0.0", "width: 1, dropout: 1.5", r"dropout: .*less than or equal to 1, found 1\.5"),
        ("learning_rate: 0.1}, schedule: {every: 6}", "learning_rate: .nan}, schedule: {every: 6}", r"optimiser\.learning_rate: .*finite"),
        ("fab: {kind: fab}", "fab: {kind: fab, epsilon: 16}", r"attacks\.kim\.fab.*: .*write 16/255"),
        ("apgd: {kind: apgd}", "apgd: {kind: apgd, epsilon: 8/0}", r"attacks\.kim\.apgd\.epsilon: '8/0' is no number; write it like .*8/255"),
        ("apgd: {kind: apgd}", "apgd: {kind: apgd, epsilon: 0}", r"attacks\.kim\.apgd\.epsilon: 0 leaves every image as it is"),
        ("digits-8: {l2: 0.5}", "digits-8: {l2: 64}", rf"{Q}threat\.digits-8.*: 64 in L2 is more than two images of 8 pixels can differ, 13\.9; write 64/255"),
        ("norm: l2, epsilon: 2.0", "norm: l2, epsilon: 128", r"attacks\.transfer\.untargeted\.epsilon: 128 in L2 is more than .*; write 128/255"),
        ("make: &far {epsilon: 2.0", "make: &far {epsilon: 128", rf"{Q}constructed\.ilyas/main\.sets\.random\.make\.epsilon: 128 in L2 is more than"),
        ("digits: {kind: digits, size: 32", "digits: {kind: digits, size: 16", r"recipes\.kim\.network: vgg16 leaves of images of 16 pixels nothing; take a dataset of 32 pixels"),
        ("size: 32, train: 1000", "size: 32, train: 1697", rf"{Q}datasets\.digits.*: validation: 100 images asked for and 1697 for train, there are 1597"),
        ("digits: {kind: digits, size: 32, train: 1000", "digits: {kind: image-folder, path: no/such, size: 32, train: 1000", rf"{Q}datasets\.digits.*path: no folder .*no/such/train; it needs train/<class>/\*"),
        ("epochs: 8, batch_size: 32", "epochs: 8, batch_size: 1001", r"batch_size: 1001 is more than the 1000 images of digits"),
        ("{betas: [0.0, 0.03,", "{betta: [0.0, 0.03,", rf"{Q}sections\.14-kim-3\.4-information-flow\.betta: no parameter 'betta'; did you mean 'betas'"),
        ("  kim/wrn28-10: {like", "  kim_wrn: {like", r"networks\.kim/wrn28-10.*needs `recipe`, or `like` and one of kim/vgg16"),
        ("\nscale:", "\nscale_:", r"params.yaml: needs `scale:`, one of gpu, paper, photographs, quick"),
        ("scale: quick", "scale: quik", r"scale: no scale 'quik'; did you mean 'quick'\?; there are gpu, paper"),
        ("\nscale: quick", "\nscale: {", r"not valid YAML"),
    ],
    ids=lambda value: None,
)  # fmt: skip
def test_a_mistake_is_named_by_the_key_that_was_written_with_what_is_allowed(project, old, new, said):
    write(project, (old, new))
    with pytest.raises(UserError, match=f"(?s)(params|scales/quick).yaml.*({said})|{said}"):
        params.make()
    assert not paths.RUN.exists()


def test_params_yaml_that_is_absent_or_of_another_encoding_is_said(project):
    mine = paths.SCALES / "mine.yaml"
    mine.write_bytes(b"title: mine\n" + "# ε\n".encode("cp1253"))
    with pytest.raises(UserError, match="scales/mine.yaml, line 2: is not UTF-8"):
        params.make()
    mine.unlink()
    paths.PARAMS.unlink()
    with pytest.raises(UserError, match="params.yaml: No such file"):
        params.make()


def test_all_mistakes_are_said_at_once():
    with pytest.raises(UserError) as error:
        checked(
            "quick",
            (
                "learning_rate: 0.1}, schedule: {every: 6}, epochs: 8",
                "learning_rate: 0}, schedule: {every: 6}, epochs: 0",
            ),
        )
    assert "recipes.kim.optimiser.learning_rate" in str(error.value) and "recipes.kim.epochs" in str(error.value)


def test_a_scale_that_is_chosen_is_written_into_params_yaml_and_a_wrong_one_leaves_everything(project):
    before = paths.PARAMS.read_text("utf-8")
    with pytest.raises(UserError, match="no scale 'gpuu'; did you mean 'gpu'"):
        params.make("gpuu")
    assert paths.PARAMS.read_text("utf-8") == before and not paths.RUN.exists()
    params.make("gpu")
    assert "\nscale: gpu\n" in paths.PARAMS.read_text("utf-8") and params.load().scale == "gpu"


def test_a_run_yaml_of_other_settings_is_refused_and_comments_are_no_settings(project):
    params.make()
    write(project, ("\nscale: quick", "\n# a comment\nscale: quick"))
    assert params.split(project / "out").exists()
    for old, new in (("seed: 0", "seed: 1"), ("digits-8: {l2: 0.5}", "digits-8: {l2: 0.4}")):
        write(project, (old, new))
        with pytest.raises(UserError, match="made of another params.yaml.*run `make`"):
            params.split(project / "out")


def test_a_network_that_shares_its_initial_weights_with_the_maker_of_its_images_is_refused(runs):
    run = runs["photographs"]
    assert not [*mismatches.mismatches(run)]
    learner = replace(run.networks["springer/trained"], seeds=(1, 0))
    (place, said), (_, other) = mismatches.mismatches(
        replace(run, networks={**run.networks, "springer/trained": learner})
    )
    assert place == ("networks", "springer/trained", "seeds")
    assert (
        said.startswith("zero-seed0 begins with the weights that springer/sources/eps-0 began with") and "neg" in other
    )
    source = run.networks["springer/sources"].members["eps-1"]
    victims = replace(
        run.networks["springer/victims"], members={"same": source, "wider": replace(source, network=VGG16())}
    )
    found = [*mismatches.mismatches(replace(run, networks={**run.networks, "springer/victims": victims}))]
    assert {place for place, _ in found} == {("networks", "springer/victims", "seeds")}
    assert all(said.startswith("same begins with the weights that ") for _, said in found)


def test_the_run_is_written_an_entry_a_file_and_what_is_gone_is_deleted(project):
    params.make()
    (project / "out" / "networks").mkdir(parents=True)
    (project / "out" / "networks" / "gone.json").write_text("{}")
    params.split(project / "out")
    found = {path.relative_to(project / "out").as_posix() for path in (project / "out").rglob("*.json")}
    assert {
        "seed.json",
        "scale.json",
        "networks/kim/vgg16.json",
        "datasets/digits.json",
        "sections/43-ilyas-4-theory.json",
    } <= found
    assert "networks/gone.json" not in found
    group = json.loads((project / "out" / "networks" / "kim" / "vgg16.json").read_text("utf-8"))
    assert group["members"]["trades"]["objective"]["attack"]["epsilon"] == 0.2 and group["bottleneck"]["beta"] == 0.3
    assert "bottleneck" not in json.loads((project / "out" / "networks" / "xu" / "plain.json").read_text("utf-8"))


def test_a_change_in_a_folder_of_images_makes_the_settings_be_written_again(project, monkeypatch):
    monkeypatch.setattr(paths, "DATA", project / "data")
    for place in ("train/a", "train/b", "test/a", "test/b"):
        (project / "mine" / place).mkdir(parents=True)
        for number in range(3):
            (project / "mine" / place / f"{number}.png").write_bytes(b"x")
    mine = f"mine: {{kind: image-folder, path: {project / 'mine'}, size: 8, validation: 1}}"
    write(project, (" digits: {kind: digits,", f" {mine},\n  digits: {{kind: digits,"))
    params.make()
    written = params.split(project / "data" / "params")
    params.make()
    assert written.exists(), "nothing has changed"
    (project / "mine" / "train" / "a" / "new.png").write_bytes(b"y")
    params.make()
    assert not written.exists()


def test_a_network_that_is_distilled_needs_two_positions():
    edits = [("network: {depth: 10, width: 1, dropout: 0.0}", "network: {kind: resnet18, width: 0.125}")]
    checked("quick", *edits)
    with pytest.raises(
        UserError, match="resnet18 leaves of images of 8 pixels one position at its split.*take a dataset of 16"
    ):
        checked(
            "quick",
            *edits,
            (
                "{dataset: digits-16, network: {kind: resnet18, width: 0.125}, optimiser: {kind: adam",
                "{dataset: digits-8, network: {kind: resnet18, width: 0.125}, optimiser: {kind: adam",
            ),
            ("digits-8: {l2: 0.5}", "digits-8: {l2: 0.5, linf: 0.1}"),
        )


def spent(code):
    """Seconds of a processor's time, which others may share."""
    before = os.times()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def test_the_check_that_guards_every_stage_takes_seconds():
    check = "from companion import params, resolve; params.check(resolve.written(), 'quick')"
    assert spent(check) < max(10, 4 * spent("import torch")), "the latter on a slow processor"


def test_python_refuses_what_yaml_refuses():
    with pytest.raises(ValueError, match="unknown key 'eps'; did you mean 'epsilon'"):
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
    found = [thing for name in MODULES for thing in vars(import_module(name)).values()]
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
        assert mismatches._positions(Victim(kind=kind), size) == left[0, 0].numel()
