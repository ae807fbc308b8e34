"""The project's files agree with one another, and its notebooks keep the house rules."""

import json
import re
import tomllib

import pytest
from ruamel.yaml import YAML

from robust_features import params
from robust_features.paths import NOTEBOOKS, ROOT
from robust_features.report.contents import sections

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
        assert len(source(cell).splitlines()) <= 12, source(cell)
        assert not cell["outputs"] and cell["execution_count"] is None, "notebooks are committed without outputs"


@pytest.mark.parametrize("path", ALL, ids=lambda p: p.stem)
def test_a_notebooks_first_code_cell_is_tagged_parameters_and_its_ids_are_unique(path):
    assert cells(path, "code")[0]["metadata"]["tags"] == ["parameters"]
    assert len(cells(path, "markdown")) >= len(cells(path, "code")), "a sentence of intent before every cell"
    ids = [cell["id"] for kind in ("code", "markdown") for cell in cells(path, kind)]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("page", sections(), ids=lambda page: page.notebook.stem)
def test_a_section_states_its_claim_its_differences_and_what_to_change(page):
    prose = "\n".join(source(cell) for cell in cells(page.notebook, "markdown"))
    assert prose.startswith("# ") and "## Differences from the paper" in prose and "**Change this and look.**" in prose


def artefacts_written(path):
    code = "\n".join(source(cell) for cell in cells(path, "code"))
    calls = re.findall(
        r"(table|figure)\((?:[^()]|\([^()]*\))*?artefact=\"([\w-]+)\"((?:[^()]|\([^()]*\))*)\)", code, re.S
    )
    return [(kind, name) for kind, name, _ in calls]


@pytest.mark.parametrize("page", sections(), ids=lambda page: page.notebook.stem)
def test_what_a_section_writes_is_in_its_contents_and_in_its_stage(page):
    written = artefacts_written(page.notebook)
    assert {name for _, name in written} == set(page.companion["artefacts"])
    stage = yaml.load(ROOT / "dvc.yaml")["stages"][page.notebook.stem.replace(".", "-")]
    outs = {next(iter(out)).removeprefix("reports/${run.scale}/") for out in stage["outs"]}
    ends = {"table": ("csv", "html", "tex"), "figure": ("svg", "png")}
    expected = {f"{kind}s/{name}.{end}" for kind, name in written for end in ends[kind]} | {page.file}
    assert {out for out in outs if not re.fullmatch(r"figures/.*\.csv", out)} == expected


def bodies():
    return [stage.get("do", stage) for stage in yaml.load(ROOT / "dvc.yaml")["stages"].values()]


def test_stages_depend_on_modules_that_are_there():
    deps = {dep for body in bodies() for dep in body.get("deps", []) if dep.startswith("lib/")}
    assert deps and all((ROOT / dep).exists() for dep in deps)


def test_stages_read_settings_that_every_scale_has_and_keep_no_values_in_the_lock(tmp_path):
    assert not any("params" in body for body in bodies())
    named = {dep for body in bodies() for dep in body.get("deps", []) if dep.startswith("data/params/")}
    scales = [name for name, scale in yaml.load(ROOT / "params.yaml").items() if name != "run" and "scale" in scale]
    assert len(named) > 10 and len(scales) == 4
    for scale in scales:
        text = (ROOT / "params.yaml").read_text("utf-8")
        (tmp_path / "params.yaml").write_text(re.sub(r"^run: .*", f"run: *{scale}", text, flags=re.M), "utf-8")
        params.write(tmp_path / scale, tmp_path / "params.yaml")
        for name in named:
            assert (tmp_path / scale / re.sub(r"/\$.*", "", name.removeprefix("data/params/"))).exists(), name


def test_environment_yml_installs_what_the_lock_and_pyproject_say():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    environment = yaml.load(ROOT / "environment.yml")
    conda = [item for item in environment["dependencies"] if isinstance(item, str)]
    (pip,) = [item["pip"] for item in environment["dependencies"] if isinstance(item, dict)]
    assert f"python{project['requires-python']}" in conda and environment["name"] == project["name"]
    assert pip == ["--requirement requirements.txt", "--editable ."]
    locked = set(re.findall(r"^([\w.-]+)==", (ROOT / "requirements.txt").read_text(), re.M))
    direct = project["dependencies"] + project["optional-dependencies"]["dev"]
    assert {re.split(r"[><=\[]", need)[0].replace(".", "-") for need in direct} <= locked


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
