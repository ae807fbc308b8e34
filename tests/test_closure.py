import json
from typing import get_args

import pytest
import yaml

from companion.closure import ATTACKS, bare, checksums, closure, notebook_code, write
from companion.paths import NOTEBOOKS, RUN
from robust_features.attacks import Attack

ENTRIES = {"01-datasets": {"a": {}}, "02-networks": {"a/b": {"attacks": {"one": {"kind": "pgd"}}}}}
ENTRIES |= {"03-constructed": {"a/b": {}}, "04-transfer": {"a/b": {}}}


def test_a_module_counts_if_it_is_imported_by_what_is_imported_anywhere():
    found = closure("def f():\n    from robust_features.attacks.tanh import search\n")
    assert {"robust_features.attacks.tanh", "robust_features.bottleneck", "robust_features.noise"} <= set(found)
    assert not any(name.startswith("companion") for name in found)


def test_docstrings_comments_and_blank_lines_do_not_count_and_code_does():
    one = 'x = "# text"\n\n\nclass A:\n    """What\n    it is."""\n\n    y = 2  # two\n'
    two = 'x = "# text"\nclass A:\n    """Other."""\n    y = 2\n'
    assert bare(one) == bare(two) == 'x = "# text"\nclass A:\n    y = 2'
    assert bare(two.replace("y = 2", "y = 3")) != bare(one)


def test_a_notebooks_prose_does_not_count_and_its_tags_do(tmp_path):
    def code(prose, tag):
        cells = [
            {"cell_type": "markdown", "source": [prose], "metadata": {}},
            {"cell_type": "code", "source": ["x = 1"], "metadata": {"tags": [tag]}},
        ]
        (tmp_path / "n.ipynb").write_text(json.dumps({"cells": cells}))
        return notebook_code(tmp_path / "n.ipynb")

    assert code("one", "parameters") == code("two", "parameters") != code("one", "shown")


def test_a_quantile_makes_every_table_stale_and_a_plot_no_training(tmp_path):
    write(tmp_path / "code", ENTRIES)
    files = {path.relative_to(tmp_path / "code").as_posix(): path for path in (tmp_path / "code").rglob("*.json")}
    read = {name.removesuffix(".json"): json.loads(path.read_text()) for name, path in files.items()}
    notebooks = {path.stem for path in NOTEBOOKS.glob("*.ipynb")}
    keyed = {f"{name}/{key}" for name, entries in ENTRIES.items() for key in entries}
    assert read.keys() == notebooks - ENTRIES.keys() | keyed | {"report"}
    tables = [name for name, modules in read.items() if name[0] in "12345" and "companion.report.tables" in modules]
    assert len(tables) > 10 and all("robust_features.statistics" in read[name] for name in tables if "43" not in name)
    assert not any("companion.report" in module for name in read if name[0] == "0" for module in read[name])
    assert {"companion.report.page", "companion/report/template/style.css"} <= read["report"].keys()


def test_checksums_are_of_every_module_found():
    source = "import robust_features.noise"
    assert list(checksums(source)) == sorted(closure(source)) == ["robust_features.noise"]


def test_what_only_the_left_out_package_imports_does_not_count():
    source = "import companion.report.captions\nimport companion.records"
    assert {"companion.report.captions", "companion.params"} <= closure(source).keys()
    found = closure(source, without="companion.report").keys()
    assert "companion.records" in found and not found & {
        "companion.report",
        "companion.report.captions",
        "companion.params",
    }


def test_an_attack_that_no_entry_names_makes_no_network_stale(tmp_path):
    write(tmp_path / "code", ENTRIES)
    modules = json.loads((tmp_path / "code/02-networks/a/b.json").read_text())
    assert f"{ATTACKS}.gradient" in modules and "robust_features.noise" in modules
    assert not {ATTACKS, f"{ATTACKS}.square", f"{ATTACKS}.fab"} & modules.keys()
    assert f"{ATTACKS}.square" in closure("", kinds=["autoattack"]), "an attack made of attacks depends on them"


@pytest.mark.parametrize("attack", get_args(get_args(Attack)[0]), ids=lambda attack: attack.__name__)
def test_every_attack_is_found_by_its_kind(attack):
    assert attack.__module__ in closure("", kinds=[attack.kind])


def test_what_every_network_of_the_run_depends_on_has_the_attacks_it_names(tmp_path):
    run = yaml.safe_load(RUN.read_text("utf-8"))["run"]
    write(tmp_path / "code", {"02-networks": run["networks"]})
    for key, group in run["networks"].items():
        modules = json.loads((tmp_path / f"code/02-networks/{key}.json").read_text())
        kinds = {attack["kind"] for attack in group["attacks"].values()}
        assert {get.__module__ for get in get_args(get_args(Attack)[0]) if get.kind in kinds} <= modules.keys()
