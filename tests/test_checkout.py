import subprocess
import sys
from pathlib import Path

import pytest

from companion import checkout, paths
from robust_features.settings import UserError


@pytest.fixture
def clone(tmp_path):
    """Another clone, as far as it can be told from outside."""
    (tmp_path / "lib").mkdir()
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize("command", ["params", "pipeline index", "engine"])
def test_two_clones_that_share_an_environment_do_not_cross(clone, command):
    done = subprocess.run(
        [sys.executable, "-m", "companion", *command.split()], cwd=clone, capture_output=True, text=True
    )
    home = Path(paths.__file__).parents[2]
    assert done.returncode and f"{clone}: the code that runs is of another checkout, {home}; run `make`" in done.stderr


def test_a_copy_that_dvc_makes_inside_of_the_project_for_an_experiment_runs_the_projects_code(clone, monkeypatch):
    monkeypatch.setattr(paths, "ROOT", clone)
    with pytest.raises(UserError, match="another checkout"):
        checkout.check()
    monkeypatch.setattr(paths, "LIBRARY", clone.parent / "lib")
    checkout.check()


def test_outside_of_any_checkout_that_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    with pytest.raises(UserError, match="change to a checkout"):
        checkout.check()
