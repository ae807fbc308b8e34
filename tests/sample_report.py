"""A small project for the report's tests: run.yaml, claims.yaml and notebooks in a temporary folder."""

from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from companion import paths
from companion.report import contents

RUN = """
made_of: nothing
run:
  scale: quick
  title: Digits in minutes
  seed: 7
  study: {datasets: [digits], networks: [kim/vgg16, springer/sources]}
  datasets: {digits: {kind: digits}}
  networks: {kim/vgg16: {members: {}}, springer/sources: {members: {}}}
  constructed: {springer/main: {}}
  transfers: {}
  sections: {11-first: {count: 3}}
"""
CLAIMS = """
agreement:
  paper: Kim et al. 2021
  place: Table 2
  artefact: kim-table-2
  claim: one network agrees more than the other
  rule: {compare: network, more: vgg16, less: wrn28-10}
crossing:
  paper: ours, on Kim et al. 2021
  place: control of Fig. 5
  artefact: [kim-figure-5, kim-table-2]
  claim: R stays above ten
  rule: {above: 10}
"""
ARTEFACTS = {"kim-table-2": "Agreement", "kim-figure-5": "Along β"}
COMPANION = {"paper": "Kim et al. 2021", "artefacts": ARTEFACTS}


def make_project(root: Path, patch: pytest.MonkeyPatch) -> Path:
    """Make `root` the project, with run.yaml, claims.yaml, two sections and the groundwork notebooks."""
    for name in ("REPORTS", "DATA", "NOTEBOOKS"):
        patch.setattr(paths, name, root / name.lower())
    for name in ("PARAMS", "RUN", "CLAIMS"):
        patch.setattr(paths, name, root / f"{name.lower()}.yaml")
    patch.setattr(paths, "ROOT", root)
    for name, text in (
        ("run", RUN),
        ("claims", CLAIMS),
        ("params", ""),
        ("dvc", ""),
    ):  # by the last two a kernel knows it
        (root / f"{name}.yaml").write_text(text)
    for name, section in (("11-first", "3.1"), ("12-second", "3.2")):
        write_notebook(root, name, ["# A *claim*"], companion={**COMPANION, "section": section})
    for name, *_ in contents.GROUNDWORK.values():
        write_notebook(root, name, ["# Groundwork", 'key = "none"', "print(key)\nkey"])
    return root


def write_notebook(root: Path, name: str, cells: list[str], **metadata: object) -> Path:
    """A notebook of `cells`: Markdown if it starts with #; what begins with `key` or `count` is tagged parameters."""
    made = [new_markdown_cell(cell) if cell.startswith("#") else new_code_cell(cell) for cell in cells]
    for cell in made:
        if cell.cell_type == "code" and cell.source.startswith(("key =", "count =")):
            cell.metadata["tags"] = ["parameters"]
    path = root / "notebooks" / f"{name}.ipynb"
    path.parent.mkdir(exist_ok=True)
    nbformat.write(new_notebook(cells=made, metadata=metadata), path)
    return path
