import os
import signal
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import nbformat
import pytest
from sample_report import make_project, write_notebook

from robust_features.report import contents, notebook
from robust_features.settings import UserError


@pytest.fixture
def project(tmp_path, monkeypatch):
    return make_project(tmp_path, monkeypatch)


def execute(path, *arguments):
    """The command line's `run`, in this process; what it would print to stderr last, or None."""
    try:
        notebook.main(["run", str(path), *map(str, arguments)])
    except SystemExit as error:
        return error.code


def test_two_runs_differ_in_nothing_but_their_provenance(project, capfd):
    cells = ["# Title", 'key = "none"', "import pandas as pd\nprint(key)\npd.DataFrame({'a': [1]})", "object"]
    path, saved = write_notebook(project, "01-datasets", cells), []
    for run in "ab":
        assert execute(path, "--key", "digits-vgg16-standard", "--save", project / f"{run}.ipynb") is None
        saved.append(nbformat.read(project / f"{run}.ipynb", as_version=4))
        assert saved[-1].metadata.pop("provenance")["seed"] == 7
    assert nbformat.writes(saved[0]) == nbformat.writes(saved[1])
    assert [cell.source for cell in saved[0].cells[:2]] == ["# Title", 'key = "digits-vgg16-standard"']
    assert "text/plain" not in saved[0].cells[2].outputs[1].data and "digits\n" in capfd.readouterr().out
    assert not list((project / "data/failed").iterdir())


def test_a_section_becomes_a_page_run_in_this_environment(project, capfd):
    companion = {"paper": "P", "section": "1", "artefacts": {}}
    cells = ["# A claim", "import os, sys\nprint(sys.prefix)\nos.getcwd()"]
    path = write_notebook(project, "11-first", cells, companion=companion)
    assert execute(path) is None
    html = (project / "reports/quick/11-first.html").read_text()
    assert sys.prefix in html and str(project / "notebooks") in html and "Quick scale" in html
    assert capfd.readouterr().out.splitlines()[-1].endswith("reports/quick/11-first.html")


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
        assert execute(path, "--save", project / "saved.ipynb") is None
        saved.append(nbformat.read(project / "saved.ipynb", as_version=4).cells)
    assert saved[0] == saved[1] and saved[0][1].outputs[0].text == "white\n"


@pytest.mark.parametrize("surroundings", [{"TMPDIR": "t" * 90}, {"HOME": "/dev/null"}], ids=str)
def test_a_long_folder_for_temporary_files_or_no_home_change_nothing(project, monkeypatch, surroundings):
    path = write_notebook(project, "11-first", ["# A claim", "import matplotlib.pyplot as plt\nprint('ran')"])
    (project / ("t" * 90)).mkdir()
    for name, value in surroundings.items():
        monkeypatch.setenv(name, str(project / value))
    monkeypatch.setattr(tempfile, "tempdir", None)  # found anew
    assert execute(path, "--save", project / "saved.ipynb") is None
    (printed,) = nbformat.read(project / "saved.ipynb", as_version=4).cells[1].outputs
    assert printed.text == "ran\n"


def test_a_project_lies_where_it_likes_and_is_run_from_anywhere(tmp_path, monkeypatch):
    odd = tmp_path / "my {project} für $5 #1"
    odd.mkdir()
    project = make_project(odd, monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["", "run", str(odd / "notebooks/11-first.ipynb")])
    assert execute("notebooks/11-first.ipynb") is None
    assert "report.notebook run notebooks/11-first.ipynb<" in (project / "reports/quick/11-first.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["11-frist.ipynb"], "there is no notebook 11-frist.ipynb; did you mean '11-first'?"),
        (["notebooks/01-datasets.ipynb", "--key", "digit"], "run.datasets: no entry 'digit'; did you mean 'digits'?"),
        (
            ["notebooks/06-families.ipynb", "--key", "x"],
            "run.families and run.descendants: no entry 'x'; there are layers",
        ),
        (["notebooks/11-first.ipynb", "--key", "digits"], "11-first.ipynb runs once, not for an entry of params.yaml"),
        (["params.yaml"], "params.yaml is not a readable notebook"),
    ],
)
def test_a_notebook_or_key_that_is_not_there_is_said_before_any_work(project, arguments, said):
    assert said in execute(*arguments) and not (project / "data").exists()


def test_a_data_folder_on_a_disk_that_is_not_mounted_is_said_to_be_absent(project):
    (project / "data").symlink_to(project / "disk")
    assert "disk, which is not there: mount that disk" in execute("notebooks/11-first.ipynb")
    (project / "disk").mkdir()
    assert execute("notebooks/11-first.ipynb") is None


def test_without_a_params_file_the_remedy_is_one_line(project):
    (project / "params.yaml").write_text("run: *nothing")
    said = execute("notebooks/11-first.ipynb")
    assert said.endswith("has no readable run: `python -m robust_features.params` says what is wrong")


def test_a_failing_cell_is_named_and_what_was_done_is_kept(project):
    path = write_notebook(project, "11-first", ["# A claim", "print('so far')", "1 / 0"])
    kept = project / "data/failed/11-first.html"
    assert execute(path) == f"11-first, cell 3: ZeroDivisionError: division by zero; see {kept}"
    assert "so far" in kept.read_text() and "ZeroDivisionError" in kept.with_suffix(".ipynb").read_text()
    assert not (project / "reports").exists()


def test_a_user_error_says_its_message_then_where_it_arose(project):
    cell = "from robust_features.settings import UserError\nraise UserError('run `dvc repro train@x`')"
    said = execute(write_notebook(project, "01-datasets", ["key = None", cell]), "--key", "digits").splitlines()
    assert said[0] == "run `dvc repro train@x`" and "01-datasets-digits, cell 2; see " in said[1]


def test_a_dead_kernel_is_said_to_be_dead(project):
    path = write_notebook(project, "11-first", ["import os\nos.kill(os.getpid(), 9)"])
    assert execute(path).startswith("11-first: the kernel died")


def test_a_terminated_run_leaves_no_kernel(project):
    cell = "import os, time, pathlib\npathlib.Path('pid').write_text(str(os.getpid()))\ntime.sleep(600)"
    path = write_notebook(project, "20-asleep", [cell])
    code = "import pathlib, pytest, sample_report as s, robust_features.report.notebook as n\n"
    code += f"s.make_project(pathlib.Path({str(project)!r}), pytest.MonkeyPatch())\nn.main(['run', {str(path)!r}])"
    runner = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parent)
    pid = wait_for(lambda: (path.parent / "pid").exists() and (path.parent / "pid").read_text())
    runner.send_signal(signal.SIGTERM)
    assert runner.wait(timeout=20) == 128 + signal.SIGTERM
    wait_for(lambda: not alive(int(pid)))


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return result


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_another_environments_kernel_is_refused(monkeypatch, tmp_path):
    kernel = tmp_path / "kernels/python3"
    kernel.mkdir(parents=True)
    (kernel / "kernel.json").write_text('{"argv": ["/opt/other/bin/python"], "display_name": "", "language": ""}')
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    with pytest.raises(UserError, match="/opt/other/bin/python, not"):
        notebook._check_kernel()


def test_prose_does_not_change_the_code_projection(project):
    def project_code(*cells):
        notebook.main(["code", str(project), str(write_notebook(project, "x", list(cells)))])
        return (project / "x.py").read_text()

    first = project_code("# Prose", 'key = "a"', "run(key)")
    assert first == project_code('key = "a"', "# Other prose", "run(key)", "# More") != project_code("run()")
    assert first == '# %% parameters\nkey = "a"\n\n# %%\nrun(key)\n'


def commit(folder):
    """Make `folder` a repository with one commit; its name."""
    who = ["-c", "user.name=n", "-c", "user.email=e"]
    for words in (["init", "-q"], ["add", "params.yaml"], [*who, "commit", "-qm", "m"]):
        subprocess.run(["git", *words], cwd=folder, check=True)
    return subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True).stdout.strip()


def test_the_commit_is_this_checkouts_not_that_of_a_repository_around_it_or_in_the_environment(tmp_path, monkeypatch):
    def said():
        return notebook.provenance({"scale": "quick", "seed": 0}, datetime.now(UTC), 0)["commit"]

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


@pytest.fixture
def executed(project):
    """Executed notebooks as the groundwork's stages leave them."""
    (project / "data/runs").mkdir(parents=True)
    for page in contents.groundwork(contents.load_run()):
        ran = nbformat.read(page.notebook, as_version=4)
        ran.cells[1].source = f'key = "{page.key}"'
        ran.cells[2]["outputs"] = [nbformat.v4.new_output("stream", text=f"ran {page.stage} {page.key}")]
        ran.metadata["provenance"] = {"commit": "abc"}
        nbformat.write(ran, page.executed)
    return project


def test_groundwork_pages_have_the_runs_outputs_and_the_current_prose(executed, capsys):
    write_notebook(executed, "02-training", ["# New prose", 'key = "other"', "print(key)\nkey"])
    (executed / "data/runs/train-stranger.ipynb").touch()
    notebook.main(["pages"])
    html = (executed / "reports/quick/groundwork/train-digits-vgg16-standard.html").read_text()
    assert "ran train digits-vgg16-standard" in html and "New prose" in html and "abc" in html and "other" not in html
    assert "train-stranger.ipynb: not in params.yaml" in capsys.readouterr().out
    assert len(list((executed / "reports/quick/groundwork").iterdir())) == 7


def test_groundwork_that_is_missing_or_was_run_with_other_code_is_named(executed):
    write_notebook(executed, "04-attacks", ["# Groundwork", 'key = "none"', "print('changed')"])
    with pytest.raises(SystemExit, match="other code than 04-attacks.*run `dvc repro attack@digits-vgg16-standard`"):
        notebook.main(["pages"])
    (executed / "data/runs/dataset-digits.ipynb").unlink()
    with pytest.raises(SystemExit, match="dataset-digits.ipynb is missing: run `dvc repro dataset@digits`"):
        notebook.main(["pages"])


@pytest.mark.parametrize("text", ["", '{"cells": [', "{}", "\ufeff"], ids=["empty", "cut", "another", "mark"])
def test_a_damaged_executed_notebook_is_named_with_its_stage(executed, text):
    (executed / "data/runs/dataset-digits.ipynb").write_text(text)
    with pytest.raises(
        SystemExit, match="dataset-digits.ipynb is damaged.*delete it and run `dvc repro dataset@digits`"
    ):
        notebook.main(["pages"])


def test_publishing_before_anything_is_made_says_what_to_run(project):
    with pytest.raises(SystemExit, match="holds no report yet: run `make reproduce SCALE=quick` first"):
        notebook.main(["publish"])


def test_the_runner_itself_imports_no_torch():
    code = "import sys, robust_features.report.notebook, robust_features.report.page; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
