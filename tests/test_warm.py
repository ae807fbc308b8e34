import os
import signal
import sys
import time
from pathlib import Path

import nbformat
import pytest
from jupyter_client.provisioning import KernelProvisionerFactory
from sample_report import make_project, write_notebook

from companion import pipeline, warm, worker

pytestmark = [
    pytest.mark.pipeline,
    pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="this system cannot watch a process"),
]


@pytest.fixture(scope="module")
def address():
    with warm.serving(os.environ) as said:
        yield said[warm.WARM]


def ask(address, folder, source):
    """The exit status and the output of a module that holds `source`, run in a fork."""
    (folder / "asked.py").write_text(source)
    with (folder / "output").open("wb") as output:
        process = warm.Process(
            address, ["python", "-m", "asked", "word"], cwd=folder, env=os.environ, output=output.fileno()
        )
        status = process.wait(60)
    return status, (folder / "output").read_text()


@pytest.mark.parametrize(
    "source, status, said",
    [
        ("print('all well')", 0, "all well\n"),
        ("raise SystemExit", 0, ""),
        ("raise SystemExit(3)", 3, ""),
        ("raise SystemExit('what was wrong')", 1, "what was wrong\n"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -9, ""),
        ("import sys; print(sys.argv[1:], __name__)", 0, "['word'] __main__\n"),
        ("import os, asked; print(os.getcwd() == os.path.dirname(asked.__file__))", 0, "True\nTrue\n"),
    ],
)
def test_a_fork_ends_as_a_process_of_its_own_would(address, tmp_path, source, status, said):
    assert ask(address, tmp_path, source) == (status, said)


def test_an_error_shows_its_traceback(address, tmp_path):
    status, said = ask(address, tmp_path, "def fails():\n    raise ValueError('why')\nfails()")
    assert status == 1 and "in fails" in said and said.endswith("ValueError: why\n")


def test_a_fork_has_the_packages_of_others_and_reads_the_projects_code_anew(address, tmp_path):
    source = "import sys; print('torch' in sys.modules, [name for name in sys.modules if name.startswith('companion')])"
    assert ask(address, tmp_path, source) == (0, "True []\n")


def test_a_fork_does_not_outlive_the_one_who_asked(address, tmp_path):
    asker = f"""
from companion.warm import Process
import os, time
process = Process({address!r}, ["sleep", "100"], cwd=".", env=os.environ)
print(process.pid, flush=True)
os.kill(os.getpid(), 9)
"""
    _, said = ask(address, tmp_path, asker)
    pid, end = int(said), time.monotonic() + 10
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_without_a_warm_process_a_command_is_started_by_the_shell(tmp_path):
    log = tmp_path / "log"
    commands = ["echo one > made", f"{sys.executable} -c 'raise SystemExit(4)'", "echo two > made"]
    assert worker.execute("stage", commands, tmp_path, {"DVC_STAGE": "stage"}, log) == 4
    assert (tmp_path / "made").read_text() == "one\n"


def test_a_notebook_in_a_warm_kernel_is_the_same_as_in_a_cold_one(address, tmp_path, monkeypatch, capfd):
    cell = (
        "import torch, pandas as pd, matplotlib.pyplot as plt\nprint(torch.ones(2).sum())\nplt.plot([1, 2])\nplt.show()"
    )
    project, saved = make_project(tmp_path, monkeypatch), []
    path = write_notebook(project, "02-networks", ["# Title", 'key = "none"', cell, "import os; print(os.getppid())"])
    for place in (address, ""):
        KernelProvisionerFactory.clear_instance()  # it chooses once a process who starts kernels
        monkeypatch.setenv(warm.WARM, place)
        pipeline.main(["run", str(path), "--key", "kim/vgg16"])
        saved.append(nbformat.read(project / "data/runs/networks/kim/vgg16.ipynb", as_version=4))
    parents = [int(notebook.cells.pop().outputs[0].text) for notebook in saved]
    assert parents[0] != os.getpid() == parents[1], "the first kernel was forked"
    assert saved[0].cells == saved[1].cells and "image/" in str(saved[0].cells[2].outputs)


def test_what_is_asked_to_stop_stops(address, tmp_path):
    process = warm.Process(address, ["sleep", "100"], cwd=tmp_path, env=os.environ)
    assert process.poll() is None
    process.terminate()
    assert process.wait(10) == -signal.SIGTERM and process.poll() == -signal.SIGTERM


@pytest.mark.parametrize("lacking", ["another system", "a short name"])
def test_where_there_can_be_no_warm_process_there_is_none(lacking, tmp_path, monkeypatch):
    if lacking == "another system":
        monkeypatch.delattr(os, "pidfd_open")
        monkeypatch.delattr("socket.SOCK_SEQPACKET")
    else:
        deep = tmp_path / ("long" * 30)
        deep.mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(deep))
    with warm.serving(os.environ) as said:
        assert said == {}
