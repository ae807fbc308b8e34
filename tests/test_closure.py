import json

from companion.closure import bare, checksums, closure, notebook_code, write
from companion.paths import NOTEBOOKS


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
    write(tmp_path / "code")
    read = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "code").glob("*.json")}
    assert read.keys() == {path.stem for path in NOTEBOOKS.glob("*.ipynb")} | {"report"}
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
