"""A small project for the report's tests: params.yaml, claims.yaml and notebooks in a temporary folder."""

from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from robust_features import claims
from robust_features.report import contents, figures, index, library, notebook, publish, tables

PARAMS = """
quick: &quick
  scale: quick
  title: Digits in minutes
  seed: 7
  datasets: {digits: {kind: digits}}
  models: {digits-vgg16-standard: {dataset: digits}}
  families: {layers: {}}
  constructed: {robust: {}}
  descendants: {trained: {}}
  transfers: {}
run: *quick
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
    """Point the report at `root`, which gets params.yaml, claims.yaml, two sections and the groundwork notebooks."""
    places = {"REPORTS": root / "reports", "DATA": root / "data", "NOTEBOOKS": root / "notebooks"}
    files = {"PARAMS": root / "params.yaml", "CLAIMS": root / "claims.yaml", "ROOT": root}
    for module in (claims, contents, figures, index, library, notebook, publish, tables):
        for name, place in {**places, **files}.items():
            if hasattr(module, name):
                patch.setattr(module, name, place)
    (root / "params.yaml").write_text(PARAMS)
    (root / "claims.yaml").write_text(CLAIMS)
    for name, section in (("11-first", "3.1"), ("12-second", "3.2")):
        write_notebook(root, name, ["# A *claim*"], companion={**COMPANION, "section": section})
    for name, *_ in contents.GROUNDWORK.values():
        write_notebook(root, name, ["# Groundwork", 'key = "none"', "print(key)\nkey"])
    return root


def write_notebook(root: Path, name: str, cells: list[str], **metadata: object) -> Path:
    """A notebook of `cells`: Markdown if it starts with #; the cell that begins with `key` is tagged as parameters."""
    made = [new_markdown_cell(cell) if cell.startswith("#") else new_code_cell(cell) for cell in cells]
    for cell in made:
        if cell.cell_type == "code" and cell.source.startswith("key ="):
            cell.metadata["tags"] = ["parameters"]
    path = root / "notebooks" / f"{name}.ipynb"
    path.parent.mkdir(exist_ok=True)
    nbformat.write(new_notebook(cells=made, metadata=metadata), path)
    return path
