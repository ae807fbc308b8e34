import subprocess
import sys
from pathlib import Path

import pytest

from companion import paths


def test_what_the_pipeline_runs_is_written_to_its_page_and_to_data(data, page):
    assert paths.page_folder() == page and paths.outputs() == data
    (data / "explored/networks").mkdir(parents=True)
    assert paths.made("networks") == data / "networks", "not what someone tried by hand"


def test_what_a_person_runs_is_written_to_explored_and_found_there_first(data, monkeypatch):
    monkeypatch.delenv(paths.PAGE)
    assert paths.page_folder() == paths.outputs() == data / "explored"
    assert paths.made("networks/a/b") == data / "networks/a/b"
    (data / "explored/networks/a/b").mkdir(parents=True)
    assert paths.made("networks/a/b") == data / "explored/networks/a/b"


@pytest.mark.parametrize("inside", [".", "notebooks"])
def test_the_project_is_the_checkout_one_stands_in(tmp_path, inside):
    (tmp_path / "notebooks").mkdir()
    code = "from companion import paths; print(paths.ROOT)"
    run = lambda: subprocess.check_output([sys.executable, "-c", code], cwd=tmp_path / inside, text=True)  # noqa: E731
    assert run().strip() == str(Path(paths.__file__).parents[2])
    (tmp_path / "params.yaml").touch()
    (tmp_path / "dvc.yaml").touch()
    assert run().strip() == str(tmp_path)
