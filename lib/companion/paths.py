"""Where things are. Absolute, so that notebooks run from any working directory."""

import os
from pathlib import Path


def _root() -> Path:
    """The checkout that the working directory is in, else this file's: two clones may share an environment."""
    here = Path.cwd()
    inside = [
        folder
        for folder in (here, *here.parents)
        if (folder / "params.yaml").exists() and (folder / "dvc.yaml").exists()
    ]
    return (inside or [Path(__file__).resolve().parents[2]])[0]


ROOT = _root()
LIBRARY = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
DATA = ROOT / "data"
REPORTS = ROOT / "reports"
PARAMS = ROOT / "params.yaml"
SCALES = ROOT / "scales"
RUN = ROOT / "run.yaml"
PUBLISHED = ROOT / "published.yaml"
CLAIMS = ROOT / "claims.yaml"
PAGE = "COMPANION_PAGE"  # names the folder of the page that the pipeline makes; unset when a person explores


def page_folder() -> Path:
    """Where tables and figures are written: the page's folder, or data/explored/ where a notebook is run by hand."""
    return Path(os.environ.get(PAGE) or DATA / "explored")


def outputs() -> Path:
    """Where groundwork is written: data/, or data/explored/ where a notebook is run by hand."""
    return DATA if os.environ.get(PAGE) else DATA / "explored"


def made(relative: str) -> Path:
    """Where `relative`, a path under data/, is: a person who explores finds first what they made by hand."""
    explored = outputs() / relative
    return explored if explored.exists() else DATA / relative
