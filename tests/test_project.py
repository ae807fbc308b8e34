"""The project's files agree with one another, and its notebooks keep the house rules."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib

import pytest
from ruamel.yaml import YAML

from companion.claims import entries
from companion.paths import NOTEBOOKS, ROOT
from companion.report.contents import GROUNDWORK, sections

ALL = sorted(NOTEBOOKS.glob("*.ipynb"))
yaml = YAML(typ="safe")


def cells(path, kind):
    return [cell for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == kind]


def source(cell):
    return "".join(cell["source"])


@pytest.mark.parametrize("path", ALL, ids=lambda p: p.stem)
def test_a_notebook_defines_nothing_and_its_cells_are_short(path):
    for cell in cells(path, "code"):
        assert not re.search(r"^\s*(def|class|async def) ", source(cell), re.M), source(cell)
        assert len(source(cell).splitlines()) <= 14, source(cell)
        assert not cell["outputs"] and cell["execution_count"] is None, "notebooks are committed without outputs"


@pytest.mark.parametrize("path", ALL, ids=lambda p: p.stem)
def test_a_notebooks_first_code_cell_is_tagged_parameters_and_its_ids_are_unique(path):
    assert cells(path, "code")[0]["metadata"]["tags"] == ["parameters"]
    ids = [cell["id"] for kind in ("code", "markdown") for cell in cells(path, kind)]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("page", sections(), ids=lambda page: page.notebook.stem)
def test_a_section_states_its_claim_its_differences_and_what_to_change(page):
    prose = "\n".join(source(cell) for cell in cells(page.notebook, "markdown"))
    assert prose.startswith("# ") and "## Differences from the paper" in prose and "**Change this and look.**" in prose


def artefacts_written(path):
    return {name for cell in cells(path, "code") for name in re.findall(r'artefact="([\w-]+)"', source(cell))}


@pytest.mark.parametrize("page", sections(), ids=lambda page: page.notebook.stem)
def test_what_a_section_writes_is_in_its_contents(page):
    assert artefacts_written(page.notebook) == set(page.companion["artefacts"])


@pytest.mark.parametrize("page", sections(), ids=lambda page: page.notebook.stem)
def test_a_figure_of_values_says_what_was_found(page):
    judged = {entry.artefacts[0] for entry in entries().values() if len(entry.artefacts) == 1 and not entry.ours}
    drawn = [source(cell) for cell in cells(page.notebook, "code") if "figure(" in source(cell)]
    values = [cell for cell in drawn if "data=" in cell and "finding=" not in cell]
    assert {name for cell in values for name in re.findall(r'artefact="([\w-]+)"', cell)} <= judged


def stages():
    return yaml.load(ROOT / "dvc.yaml")["stages"]


def bodies():
    return [stage.get("do", stage) for stage in stages().values()]


def test_every_section_is_a_stage_that_owns_its_folder_and_the_index_reads_them_all():
    listed = {
        item: stage["do"]
        for stage in stages().values()
        if isinstance(stage.get("foreach"), list)
        for item in stage["foreach"]
    }
    assert sorted(listed) == [page.notebook.stem for page in sections()]
    assert all(body["outs"] == ["reports/${run.scale}/${item}"] for body in listed.values())
    assert {f"reports/${{run.scale}}/{item}" for item in listed} <= {*stages()["index"]["deps"]}


def test_every_stage_that_runs_a_notebook_depends_on_its_code_and_sections_on_their_prose_too():
    running = [body for body in bodies() if "pipeline run" in body["cmd"]]
    assert len(running) > 10
    for body in running:
        name, deps = body["cmd"].split()[5], {*body["deps"]}
        section = name == "${item}"
        entry = "/${key}" if name in {notebook for notebook, *_ in GROUNDWORK.values()} else ""
        assert f"data/code/{name}{entry}.json" in deps and section == (f"notebooks/{name}.ipynb" in deps)
        assert {"data/params/sections/${item}.json", "data/code/report.json"} <= deps or not section


def test_what_a_stage_depends_on_is_there_or_made_by_a_stage():
    made = (
        "data/params",
        "data/code",
        "data/runs",
        "data/datasets",
        "data/networks",
        "data/constructed",
        "data/transfers",
        "reports/",
        "data/${item.reads}",
    )
    loose = [dep for body in bodies() for dep in body.get("deps", []) if not dep.startswith(made)]
    assert loose and all((ROOT / re.sub(r"\$\{item\}", "10-kim-2-bottleneck", dep)).exists() for dep in loose)
    assert not any("params" in body for body in bodies()), "values of parameters would fill dvc.lock"


def test_environment_yml_installs_what_the_lock_and_pyproject_say():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    environment = yaml.load(ROOT / "environment.yml")
    conda = [item for item in environment["dependencies"] if isinstance(item, str)]
    (pip,) = [item["pip"] for item in environment["dependencies"] if isinstance(item, dict)]
    assert f"python{project['requires-python']}" in conda and environment["name"] == project["name"]
    assert pip == ["--requirement requirements.txt", "--editable ."]
    locked = set(re.findall(r"^([\w.-]+)==", (ROOT / "requirements.txt").read_text(), re.M))
    extras = project["optional-dependencies"]
    direct = project["dependencies"] + extras["project"] + extras["dev"]
    assert {re.split(r"[><=\[]", need)[0].replace(".", "-") for need in direct} <= locked


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
@pytest.mark.parametrize(
    "active, used",
    [({}, ".venv"), ({"CONDA_DEFAULT_ENV": "base"}, ".venv"), ({"CONDA_DEFAULT_ENV": "robust-features"}, "/opt/env")],
    ids=["none", "condas own", "conda"],
)
def test_make_uses_an_active_conda_environment_and_builds_no_second_one(tmp_path, active, used):
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("requirements.txt", "pyproject.toml"):
        (tmp_path / name).touch()
    own = {name: value for name, value in os.environ.items() if not name.startswith(("CONDA", "MAKE", "MFLAGS"))}
    env = own | active | ({"CONDA_PREFIX": "/opt/env"} if active else {})
    found = subprocess.run(["make", "-n", "settings"], cwd=tmp_path, env=env, capture_output=True, text=True)
    said = found.stdout
    assert not found.stderr, "such as a target that is there twice"
    assert f"--python {used}/bin/python" in said and ("-m venv" in said) == (used == ".venv")
    assert ("/opt/env" in said) == (used == "/opt/env")


@pytest.mark.skipif(not shutil.which("git") or not shutil.which("make"), reason="needs git and make")
def test_outputs_of_a_notebook_stay_out_of_git_by_the_filter_that_make_lab_defines(tmp_path):
    said = subprocess.run(["make", "-n", "lab"], cwd=ROOT, capture_output=True, text=True).stdout
    options = re.search(r"filter.nbstripout.clean '\".*/bin/python\"(.*?)'", said)[1]
    (tmp_path / "notebooks").mkdir()
    shutil.copy(ROOT / ".gitattributes", tmp_path)
    cell = {"cell_type": "code", "id": "kept", "metadata": {}, "source": ["1 + 1"], "execution_count": 7}
    cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": ["two"]}]
    whole = {"cells": [cell], "metadata": {"companion": {"paper": "P"}}, "nbformat": 4, "nbformat_minor": 5}
    (tmp_path / "notebooks/a.ipynb").write_text(json.dumps(whole))
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    git = lambda *words: subprocess.check_output(["git", *words], cwd=tmp_path, env=env, text=True)  # noqa: E731
    git("init", "--quiet")
    git("config", "filter.nbstripout.clean", f'"{sys.executable}"{options}')
    git("add", "notebooks/a.ipynb")
    stored = json.loads(git("show", ":notebooks/a.ipynb"))
    assert stored == {**whole, "cells": [{**cell, "outputs": [], "execution_count": None}]}


def test_the_lock_pins_everything_and_names_no_index():
    lines = [
        line
        for line in (ROOT / "requirements.txt").read_text().splitlines()
        if line and not line.lstrip().startswith("#")
    ]
    assert all(re.match(r"[\w.-]+==\S+", line) for line in lines)
    assert "://" not in "".join(lines) and "--" not in "".join(lines)


def test_ci_runs_the_readmes_commands():
    commands = re.findall(r"^    (make \w+)", (ROOT / "README.md").read_text("utf-8"), re.M)
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    assert {"make reproduce", "make test"} <= set(commands) and all(
        c in script for c in ("make reproduce", "make test")
    )


def test_the_tutorial_needs_fewer_than_twenty_lines_after_the_cell_that_readers_replace():
    code = [source(cell) for cell in cells(NOTEBOOKS / "70-your-own-network.ipynb", "code")]
    (yours,) = [place for place, text in enumerate(code) if text.startswith("# YOURS")]
    assert len("\n".join(code[yours + 1 :]).splitlines()) < 20
