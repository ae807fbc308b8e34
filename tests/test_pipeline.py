import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from sample_report import make_project, write_notebook

from companion import paths, pipeline
from companion.report import contents
from robust_features.settings import UserError

COMPANION = {"paper": "P", "section": "1", "artefacts": {}}


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.delenv(paths.PAGE, raising=False)
    return make_project(tmp_path, monkeypatch)


def execute(path, *arguments):
    """The command line's `run`, in this process; what is wrong, or None."""
    try:
        pipeline.main(["run", str(path), *map(str, arguments)])
    except UserError as error:
        return str(error)


def test_two_runs_differ_in_nothing_but_their_provenance(project, capfd):
    cells = ["# Title", 'key = "none"', "import pandas as pd\nprint(key)\npd.DataFrame({'a': [1]})", "object"]
    path, saved = write_notebook(project, "02-networks", cells), []
    for _ in range(2):
        assert execute(path, "--key", "kim/vgg16") is None
        saved.append(nbformat.read(project / "data/runs/networks/kim/vgg16.ipynb", as_version=4))
        assert saved[-1].metadata.pop("provenance")["seed"] == 7
    assert nbformat.writes(saved[0]) == nbformat.writes(saved[1])
    assert [cell.source for cell in saved[0].cells[:2]] == ["# Title", 'key = "kim/vgg16"']
    assert "text/plain" not in saved[0].cells[2].outputs[1].data and "kim/vgg16\n" in capfd.readouterr().out
    assert not list((project / "data/failed").iterdir())


def test_a_section_becomes_a_page_run_in_this_environment(project, capfd):
    cells = ["# A claim", "import os, sys\nprint(sys.prefix)\nos.getcwd()"]
    path = write_notebook(project, "11-first", cells, companion=COMPANION)
    assert execute(path) is None and paths.PAGE not in os.environ
    html = (project / "reports/quick/11-first/index.html").read_text()
    assert sys.prefix in html and str(project / "notebooks") in html and "Quick scale" in html
    assert capfd.readouterr().out.splitlines()[-1].endswith("reports/quick/11-first/index.html")


def test_a_section_is_given_the_parameters_that_run_yaml_has_for_it(project, capfd):
    cells = ["# A claim", "count = 1  # how many\nother = 2", "print('found', count, other)"]
    for name in ("11-first", "12-second"):
        assert execute(write_notebook(project, name, cells, companion=COMPANION)) is None
    assert re.findall("found .*", capfd.readouterr().out) == ["found 3 2", "found 1 2"]
    html = re.sub("<[^>]+>", "", (project / "reports/quick/11-first/index.html").read_text())
    assert "count = 3  # how many\nother = 2\n" in html, "the page shows what was run"


@pytest.mark.parametrize(
    "source, shown",
    [
        ("a = [1,\n     2]  # two\nb = 'x'", 'a = [0.5]  # two\nb = "é"'),
        ("# first\na = 2\nc = 3", "# first\na = [0.5]\nc = 3"),
        ("c = 3", "c = 3"),
    ],
)
def test_a_page_shows_the_parameters_as_they_were_given(source, shown):
    assert pipeline._given(source, '# Parameters\na = [0.5]\nb = "é"\n') == shown


def test_what_a_notebook_writes_lies_beside_its_page_or_if_run_by_hand_in_explored(project, data_cell):
    path = write_notebook(project, "11-first", ["# A claim", data_cell], companion=COMPANION)
    assert execute(path) is None
    assert (project / "reports/quick/11-first/outputs.txt").read_text() == str(project / "data")
    own = {name: value for name, value in os.environ.items() if name != paths.PAGE}
    subprocess.run([sys.executable, "-c", data_cell], cwd=path.parent, env=own, check=True)
    assert (project / "data/explored/outputs.txt").read_text() == str(project / "data/explored")
    groundwork = write_notebook(project, "01-datasets", ["# Groundwork", 'key = ""', data_cell])
    assert execute(groundwork, "--key", "digits") is None
    assert (project / "data/runs/dataset/outputs.txt").read_text() == str(project / "data")


@pytest.fixture
def data_cell():
    cell = "from companion import paths\npaths.page_folder().mkdir(parents=True, exist_ok=True)\n"
    return cell + "_ = (paths.page_folder() / 'outputs.txt').write_text(str(paths.outputs()))"


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["02-networks"], "02-networks.ipynb runs for an entry of run.yaml: say which, --key kim/vgg16"),
        (
            ["02-networks", "--key", "kim/vgg"],
            "run.yaml, networks: no entry 'kim/vgg'; did you mean 'kim/vgg16'?; there are kim/vgg16, springer/sources",
        ),
        (["11-first", "--key", "kim/vgg16"], "11-first.ipynb runs once, not for an entry of params.yaml: leave out --key"),
        (["notebooks/11-frist.ipynb"], "there is no notebook notebooks/11-frist.ipynb; did you mean '11-first'?"),
    ],
)  # fmt: skip
def test_a_wrong_notebook_or_key_is_refused_before_any_work(project, arguments, said):
    assert execute(*arguments).startswith(said) and not (project / "data").exists()


@pytest.mark.parametrize("place", ["{project}/notebooks/11-first.ipynb", "notebooks/11-first.ipynb", "11-first"])
def test_a_notebook_is_found_by_its_path_or_by_its_name_from_anywhere(project, place, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert pipeline._found(Path(place.format(project=project))) == project / "notebooks/11-first.ipynb"


def test_a_failing_cell_is_named_and_what_was_done_is_kept(project):
    path = write_notebook(project, "11-first", ["# A claim", "print('so far')", "1 / 0"])
    kept = project / "data/failed/11-first.html"
    assert execute(path) == f"11-first, cell 3: ZeroDivisionError: division by zero; see {kept}"
    assert "so far" in kept.read_text() and "ZeroDivisionError" in kept.with_suffix(".ipynb").read_text()
    assert not (project / "reports").exists()


def test_a_user_error_says_its_message_then_where_it_arose(project):
    cell = "from robust_features.settings import UserError\nraise UserError('run `dvc repro networks@x`')"
    path = write_notebook(project, "02-networks", ["key = None", cell])
    said = execute(path, "--key", "kim/vgg16").splitlines()
    assert said[0] == "run `dvc repro networks@x`" and "02-networks-kim-vgg16, cell 2; see " in said[1]


def test_a_dead_kernel_is_said_to_be_dead(project):
    path = write_notebook(project, "11-first", ["import os\nos.kill(os.getpid(), 9)"])
    assert execute(path).startswith("11-first: the kernel died")


def test_a_terminated_run_leaves_no_kernel(project):
    cell = "import os, time, pathlib\npathlib.Path('pid').write_text(str(os.getpid()))\ntime.sleep(600)"
    path = write_notebook(project, "20-asleep", [cell])
    runner = subprocess.Popen([sys.executable, "-m", "companion", "pipeline", "run", "20-asleep"], cwd=project)
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
        pipeline._check_kernel()


@pytest.fixture
def executed(project):
    """Executed notebooks as the groundwork's stages leave them."""
    for page in contents.groundwork(contents.load_run()):
        ran = nbformat.read(page.notebook, as_version=4)
        ran.cells[1].source = f'key = "{page.key}"'
        ran.cells[2]["outputs"] = [nbformat.v4.new_output("stream", text=f"ran {page.stage} {page.key}")]
        ran.metadata["provenance"] = {"commit": "abc"}
        page.executed.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(ran, page.executed)
    return project


def test_groundwork_pages_have_the_runs_outputs_and_the_current_prose(executed, capsys):
    write_notebook(executed, "02-networks", ["# New prose", 'key = "stray"', "print(key)\nkey"])
    (executed / "data/runs/networks/kim/stranger.ipynb").touch()
    pipeline.main(["pages"])
    folder = executed / "reports/quick/groundwork"
    html = (folder / "networks/kim/vgg16.html").read_text()
    assert "ran networks kim/vgg16" in html and "New prose" in html and "abc" in html and "stray" not in html
    assert "networks/kim/stranger.ipynb: not in run.yaml" in capsys.readouterr().out
    made = {path.relative_to(folder).as_posix() for path in folder.rglob("*.html")}
    expected = "dataset/digits", "networks/kim/vgg16", "networks/springer/sources", "construct/springer/main"
    assert made == {f"{name}.html" for name in expected}


def test_groundwork_that_is_missing_damaged_or_was_run_with_other_code_is_named(executed):
    write_notebook(executed, "03-constructed", ["# Groundwork", 'key = "none"', "print('changed')"])
    with pytest.raises(UserError, match="other code than 03-constructed.*run `dvc repro construct@springer/main`"):
        pipeline.main(["pages"])
    page = executed / "data/runs/networks/kim/vgg16.ipynb"
    page.write_text(page.read_text()[:99])
    with pytest.raises(UserError, match="vgg16.ipynb is damaged .*: delete it and run `dvc repro networks@kim/vgg16`"):
        pipeline.main(["pages"])
    (executed / "data/runs/dataset/digits.ipynb").unlink()
    with pytest.raises(UserError, match="dataset/digits.ipynb is missing: run `dvc repro dataset@digits`"):
        pipeline.main(["pages"])


def test_the_runner_itself_imports_no_torch():
    code = "import sys, companion.pipeline, companion.report.page; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
