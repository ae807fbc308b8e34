import pytest
from pydantic import TypeAdapter
from ruamel.yaml import YAML

from companion.resolve import Written, merge, place_of, resolve
from robust_features.attacks import Attack
from robust_features.settings import UserError

TEXT = """
scale: small
seed: 0
hardware: {}
bottleneck: {}
datasets: {photos: {}, digits: {}}
sections: {}
threat: {photos: {linf: 8/255, l2: 0.5}, digits: {linf: 0.2, l2: 1}}
attacks:
  training: {linf: {kind: pgd, step: 0.25, steps: 10}}
  table:
    pgd: {kind: pgd, step: 0.5, steps: 2}
    far: {from: pgd, epsilon: 0.4}
    half: {from: pgd, share: 0.5, norm: l2}
    cw: {kind: carlini-wagner, c: 0.1}
    cw-linf: {from: cw, ball: true}
    adaptive: {kind: adaptive, pgd: {from: pgd}}
recipes:
  plain:
    {dataset: photos, network: {kind: vgg16, width: 1}, objective: {kind: adversarial, attack: linf},
     optimiser: {kind: sgd, rate: 1}}
  narrow: {from: plain, network: {width: 0.5}}
regularisers: {all: {kind: ibrar, alpha: 1, layers: all}, rob: {from: all, layers: [fc1]}}
masks: {paper: {kind: persistent}}
networks:
  mine/main:
    recipe: plain
    members: {a: {}, b: {regulariser: rob, mask: paper}, plain: {objective: {kind: standard}}}
    each: {network.width: {c: 2}}
    attacks: {table: table, names: [pgd, cw], change: {cw: {c: 10}}}
  mine/other:
    {like: mine/main, recipe: narrow, base: {dataset: digits}, members: {b: {regulariser: {alpha: 3}}, plain: null}}
constructed: {mine/made: {dataset: photos}}
transfers: {mine/main: {dataset: photos, attacks: {table: table, names: [far]}}}
scales:
  large: {title: large}
  small:
    title: small
    recipes: {plain: {network: {kind: resnet18}, optimiser: {rate: 2}}}
    networks: {mine/main: {members: {b: null}}}
"""


def run(scale, text=TEXT):
    return resolve(YAML(typ="safe").load(text), scale)


def edited(old, new):
    assert old in TEXT, "the edit must apply"
    return TEXT.replace(old, new)


def test_mappings_merge_a_new_kind_replaces_its_block_lists_replace_and_null_removes():
    first = Written({"a": 1, "block": Written({"kind": "x", "b": 2}, {}), "list": [1, 2], "gone": 3}, {})
    second = Written({"block": Written({"kind": "y"}, {}), "list": [3], "gone": None}, {})
    assert merge(first, second) == {"a": 1, "block": {"kind": "y"}, "list": [3]}
    assert merge(first, Written({"block": Written({"c": 4}, {})}, {}))["block"] == {"kind": "x", "b": 2, "c": 4}


def test_a_member_is_its_recipe_as_the_group_the_scale_and_it_itself_change_it():
    members = run("large")["networks"]["mine/main"]["members"]
    assert list(members) == ["a", "b", "plain", "c"]
    assert members["c"]["network"] == {"kind": "vgg16", "width": 2}
    assert members["b"]["regulariser"] == {"kind": "ibrar", "alpha": 1, "layers": ["fc1"]}
    assert members["plain"]["objective"] == {"kind": "standard"} and members["b"]["mask"] == {"kind": "persistent"}
    small = run("small")["networks"]["mine/main"]["members"]
    assert small["a"]["network"] == {"kind": "resnet18"} and small["a"]["optimiser"] == {"kind": "sgd", "rate": 2}
    assert list(small) == ["a", "plain", "c"]


def test_a_scales_null_also_removes_what_a_group_inherits_and_changes():
    removing = "{mine/main: {each: {network.width: {c: null}}}, mine/other: {members: {b: null}}}"
    networks = run("small", edited("{mine/main: {members: {b: null}}}", removing))["networks"]
    assert list(networks["mine/main"]["members"]) == ["a", "b", "plain"]
    assert list(networks["mine/other"]["members"]) == ["a"]
    gone = run("small", edited("{mine/main: {members: {b: null}}}", "{mine/other: null}"))
    assert list(gone["networks"]) == ["mine/main"]


def test_a_group_like_another_changes_what_it_says_and_nothing_else():
    group = run("large")["networks"]["mine/other"]
    assert group["reads"] == "datasets/digits" and list(group["members"]) == ["a", "b", "c"]
    assert group["members"]["a"]["network"] == {"kind": "vgg16", "width": 0.5}
    assert group["members"]["b"]["regulariser"] == {"kind": "ibrar", "alpha": 3, "layers": ["fc1"]}
    assert group["attacks"]["pgd"]["epsilon"] == 0.2


def test_epsilon_is_the_threat_of_dataset_and_norm_and_steps_are_in_units_of_it():
    everything = run("large", edited(", names: [pgd, cw]", ""))["networks"]["mine/main"]
    attacks = TypeAdapter(dict[str, Attack]).validate_python(everything["attacks"])
    assert attacks["pgd"].epsilon == 8 / 255 and attacks["pgd"].step_size == pytest.approx(4 / 255)
    assert (attacks["far"].epsilon, attacks["far"].step_size) == (0.4, 0.2)
    assert (attacks["half"].epsilon, attacks["half"].step_size) == (0.25, 0.125)
    assert attacks["cw"].epsilon is None and attacks["cw"].c == 10 and attacks["cw-linf"].epsilon == 8 / 255
    assert attacks["adaptive"].pgd == attacks["pgd"]
    assert everything["members"]["a"]["objective"]["attack"]["step_size"] == pytest.approx(2 / 255)


def test_a_constructed_dataset_has_the_threat_of_the_one_it_is_made_of_and_is_what_its_group_reads():
    group = run("large", edited("{dataset: photos, network", "{dataset: mine/made/it, network"))["networks"][
        "mine/main"
    ]
    assert group["reads"] == "constructed/mine/made" and group["attacks"]["pgd"]["epsilon"] == "8/255"


@pytest.mark.parametrize(
    "location, place",
    [
        (
            ("networks", "mine/main", "members", "a", "optimiser", "rate"),
            "scales/small.yaml, recipes.plain.optimiser.rate",
        ),
        (("networks", "mine/main", "members", "a", "optimiser", "kind"), "params.yaml, recipes.plain.optimiser.kind"),
        (
            ("networks", "mine/main", "members", "c", "network", "width"),
            "params.yaml, networks.mine/main.each.network.width.c",
        ),
        (("networks", "mine/other", "members", "b", "regulariser", "layers"), "params.yaml, regularisers.rob.layers"),
        (("networks", "mine/main", "attacks", "cw", "c"), "params.yaml, networks.mine/main.attacks.change.cw.c"),
        (("networks", "mine/main", "members", "a", "epochs"), "params.yaml, networks.mine/main.members.a.epochs"),
    ],
    ids=lambda value: "",
)
def test_a_setting_is_traced_to_where_it_was_written(location, place):
    scale = "large" if "regulariser" in location else "small"
    assert place_of(run(scale), location) == place


@pytest.mark.parametrize(
    "old, new, said",
    [
        ("recipe: plain", "recipe: plan", "networks.mine/main.recipe: no 'plan'; did you mean 'plain'"),
        (
            "{table: table, names: [pgd",
            "{table: tabel, names: [pgd",
            "attacks.table: no table of attacks 'tabel'; did you",
        ),
        ("seed: 0", "sead: 0", "sead: unknown key; did you mean 'seed'"),
        ("members: {a: {}, b", "members: {a: [], b", "networks.mine/main: cannot be read"),
        ("narrow: {from: plain", "narrow: {from: narrow", "networks.mine/other: cannot be read (RecursionError"),
        ("regulariser: rob", "regulariser: robb", "no 'robb'; did you mean 'rob'"),
        ("like: mine/main", "like: mine/man", "networks.mine/other.like: no 'mine/man'; did you mean 'mine/main'"),
        (
            "digits: {linf: 0.2, l2: 1}",
            "digits: {l2: 1}",
            "params.yaml, threat.digits: no linf, the ε of the attack at params.yaml, attacks.training.linf",
        ),
        (
            "base: {dataset: digits}",
            "base: {}, each: {dataset: {d: digits}}",
            "the members of a group read one dataset",
        ),
    ],
    ids=lambda value: "",
)
def test_a_name_that_is_not_defined_is_said_with_its_place_and_the_nearest(old, new, said):
    with pytest.raises(UserError) as error:
        run("large", edited(old, new))
    assert said in str(error.value)


def test_a_key_that_no_group_has_is_left_for_validation_to_refuse():
    group = run("large", edited("    recipe: plain\n", "    recipe: plain\n    atacks: {}\n"))["networks"]["mine/main"]
    assert group["atacks"] == {}


def test_an_unknown_scale_is_refused_with_the_scales_there_are():
    with pytest.raises(UserError, match="scale: no scale 'smal'; did you mean 'small'.*large, small"):
        run("smal")
