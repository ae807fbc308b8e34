"""What a user's machine brings along changes nothing: settings, places, git."""

import shutil
import subprocess
import sys
import tempfile
from datetime import UTC, datetime

import nbformat
import pytest
from sample_report import make_project, write_notebook
from test_pipeline import execute

from companion import paths, pipeline


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.delenv(paths.PAGE, raising=False)
    return make_project(tmp_path, monkeypatch)


def test_a_users_profile_and_settings_change_nothing(project, monkeypatch):
    draw = "import matplotlib.pyplot as plt\nprint(plt.rcParams['axes.facecolor'])\nplt.plot([1, 2]);"
    path = write_notebook(project, "01-datasets", ['key = ""', draw, "import sys, warnings\nprint(sys.flags.optimize)"])
    home = project / "home"
    files = {".ipython/profile_default/startup/0.py": "print('theirs')", "site/sitecustomize.py": "print('theirs')"}
    files |= {
        ".config/matplotlib/matplotlibrc": "axes.facecolor: red\nno.such.key: 1\n",
        "startup.py": "print('theirs')",
    }
    files |= {".ipython/profile_default/ipython_kernel_config.py": "c.InlineBackend.figure_formats = {'svg'}"}
    for name, text in files.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text)
    saved = []
    for hostile in (False, True):
        for name, value in {"HOME": "", "PYTHONSTARTUP": "startup.py", "PYTHONPATH": "site"}.items() if hostile else ():
            monkeypatch.setenv(name, str(home / value))
        assert execute(path, "--key", "digits") is None
        saved.append(nbformat.read(project / "data/runs/dataset/digits.ipynb", as_version=4).cells)
    assert saved[0] == saved[1] and saved[0][1].outputs[0].text == "white\n"


@pytest.mark.parametrize("surroundings", [{"TMPDIR": "t" * 90}, {"HOME": "/dev/null"}], ids=str)
def test_a_long_folder_for_temporary_files_or_no_home_change_nothing(project, monkeypatch, surroundings):
    path = write_notebook(project, "01-datasets", ['key = ""', "import matplotlib.pyplot as plt\nprint('ran')"])
    (project / ("t" * 90)).mkdir()
    for name, value in surroundings.items():
        monkeypatch.setenv(name, str(project / value))
    monkeypatch.setattr(tempfile, "tempdir", None)  # found anew
    assert execute(path, "--key", "digits") is None
    (printed,) = nbformat.read(project / "data/runs/dataset/digits.ipynb", as_version=4).cells[1].outputs
    assert printed.text == "ran\n"


def test_a_project_lies_where_it_likes_and_is_run_from_anywhere(tmp_path, monkeypatch):
    odd = tmp_path / "my {project} für $5 #1"
    odd.mkdir()
    project = make_project(odd, monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["", "run", str(odd / "notebooks/11-first.ipynb")])
    assert execute("notebooks/11-first.ipynb") is None
    assert (
        "companion pipeline run notebooks/11-first.ipynb<"
        in (project / "reports/quick/11-first/index.html").read_text()
    )


def test_a_data_folder_on_a_disk_that_is_not_mounted_is_said_to_be_absent(project):
    (project / "data").symlink_to(project / "disk")
    assert "disk, which is not there: mount that disk" in execute("notebooks/11-first.ipynb")
    (project / "disk").mkdir()
    assert execute("notebooks/11-first.ipynb") is None


def commit(folder):
    """Make `folder` a repository with one commit; its name."""
    who = ["-c", "user.name=n", "-c", "user.email=e"]
    for words in (["init", "-q"], ["add", "params.yaml"], [*who, "commit", "-qm", folder.name]):
        subprocess.run(["git", *words], cwd=folder, check=True)
    return subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True).stdout.strip()


def test_the_commit_is_this_checkouts_not_that_of_a_repository_around_it_or_in_the_environment(tmp_path, monkeypatch):
    def said():
        return pipeline.provenance({"scale": "quick", "seed": 0}, datetime.now(UTC), 0)["commit"]

    (tmp_path / "params.yaml").touch()
    around = commit(tmp_path)
    (tmp_path / "unpacked").mkdir()
    project = make_project(tmp_path / "unpacked", monkeypatch)
    assert said() == "none"
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))
    assert said() == "none"
    monkeypatch.delenv("GIT_DIR")
    own = commit(project)
    assert own != around and said() == f"{own} + uncommitted changes"
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")  # git's own way to try "dubious ownership"
    assert said() == f"{own} + uncommitted changes"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert said() == "none"


def test_another_scale_and_what_a_run_writes_are_no_change_of_the_commit(tmp_path, monkeypatch):
    def said():
        return pipeline.provenance({"scale": "quick", "seed": 0}, datetime.now(UTC), 0)["commit"]

    project = make_project(tmp_path, monkeypatch)
    params = project / "params.yaml"
    params.write_text("scale: quick\nseed: 0\n", "utf-8")
    own = commit(project)
    for name in project.iterdir():
        if name.name not in (".git", "params.yaml"):
            shutil.rmtree(name) if name.is_dir() else name.unlink()
    assert said() == own
    params.write_text("scale: photographs\nseed: 0\n", "utf-8")
    (project / "run.yaml").write_text("run: {}\n", "utf-8")
    (project / "dvc.lock").write_text("stages: {}\n", "utf-8")
    assert said() == own
    params.write_text("scale: photographs\nseed: 1\n", "utf-8")
    assert said() == f"{own} + uncommitted changes"
    params.write_text("scale: quick\nseed: 0\n", "utf-8")
    (project / "claims.yaml").write_text("", "utf-8")
    assert said() == f"{own} + uncommitted changes"
