import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from ruamel.yaml import YAML
from sample_networks import quick

from companion import engine, params

pytestmark = pytest.mark.pipeline
GRAPH = """
stages:
  last:
    cmd: cat left right > last
    deps: [left, right]
    outs: [last]
  each:
    foreach: [left, right]
    do:
      cmd: sleep ${seconds}; test ! -e broken-${item} && cat source ${item}.txt > ${item}
      deps: [source, "${item}.txt"]
      outs: ["${item}"]
  first:
    cmd: echo from ${word} > source
    outs: [source]
    params: [word]
  apart:
    cmd: echo apart > apart
    outs: [apart]
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A small graph in a folder of its own, which the engine takes for the project."""
    (tmp_path / "dvc.yaml").write_text("vars: [{seconds: 0}]\n" + GRAPH)
    (tmp_path / "params.yaml").write_text("word: here\n")
    for name in ("left", "right"):
        (tmp_path / f"{name}.txt").write_text(f"{name}\n")
    monkeypatch.chdir(tmp_path)
    run("dvc", "init", "--no-scm", "--quiet")
    return tmp_path


def run(*command, check=True):
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def run_engine(*arguments, check=True):
    return run(sys.executable, "-m", "companion", "engine", *arguments, check=check)


def begin(*arguments):
    """The engine, in the background; Ctrl-C stops it also where the tests themselves were started to ignore that."""
    command = [sys.executable, "-m", "companion", "engine", *arguments]
    heeds = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=heeds)


def until(condition, seconds=60):
    """Wait for something to be true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def edit(path, old, new):
    path.write_text(path.read_text().replace(old, new))


def test_it_leaves_what_dvc_leaves_and_dvc_agrees(project):
    run("dvc", "repro")
    serial = YAML(typ="safe").load(project / "dvc.lock")
    for name in ("source", "left", "right", "last", "apart", "dvc.lock"):
        (project / name).unlink()
    run("rm", "-r", ".dvc/cache", ".dvc/tmp")
    run_engine()
    assert YAML(typ="safe").load(project / "dvc.lock") == serial
    assert run("dvc", "status").stdout.strip() == "Data and pipelines are up to date."
    assert (project / "last").read_text() == "from here\nleft\nfrom here\nright\n"


def test_dvc_lock_is_in_the_order_of_dvc_yaml_and_a_second_run_leaves_it_alone(project):
    run_engine()
    first = (project / "dvc.lock").read_bytes()
    assert list(YAML(typ="safe").load(project / "dvc.lock")["stages"]) == [
        "last",
        "each@left",
        "each@right",
        "first",
        "apart",
    ]
    said = run_engine().stdout
    assert "up to date" in said and (project / "dvc.lock").read_bytes() == first
    run("dvc", "repro", "--force")
    assert (project / "dvc.lock").read_bytes() == first


def test_only_what_changed_runs_again_and_what_the_run_cache_has_is_restored(project):
    run_engine()
    edit(project / "left.txt", "left", "other")
    said = run_engine().stdout
    assert "each@left: done" in said and "last: done" in said and "each@right" not in said
    edit(project / "left.txt", "other", "left")
    assert "last: done, from the run cache" in run_engine().stdout
    assert (project / "last").read_text() == "from here\nleft\nfrom here\nright\n"


def test_a_stage_that_makes_the_same_as_before_makes_nothing_after_it_stale(project):
    run_engine()
    edit(project / "dvc.yaml", "echo from ${word} > source", "echo from  ${word} > source")
    said = run_engine().stdout
    assert "first: done" in said and "each" not in said


def test_when_a_stage_fails_others_go_on_and_the_end_says_what_is_missing(project):
    (project / "broken-left").touch()
    done = run_engine(check=False)
    assert (
        done.returncode == 1
        and "failed: each@left" in done.stdout
        and "skipped, because they need what failed: last" in done.stdout
    )
    assert (project / "right").exists() and not (project / "last").exists() and "logs/each@left.log" in done.stdout
    (project / "broken-left").unlink()
    done = run_engine()
    assert "each@right" not in done.stdout and "last: done" in done.stdout


FULL_DISK = """
import errno, sys
from types import SimpleNamespace
from dvc.stage import PipelineStage
from companion import __main__, engine

def refuse(self, *_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")

PipelineStage.commit = refuse
engine.shutil = SimpleNamespace(disk_usage=lambda _: SimpleNamespace(free=0))
sys.argv.insert(1, "engine")
__main__.main()
"""  # of the stage `first`, the only one that is not waiting for others and that DVC's run cache knows


def test_a_full_disk_stops_the_run_and_what_was_made_is_recorded_by_the_next(project):
    found = run(sys.executable, "-c", FULL_DISK, "--only", "first", check=False)
    assert found.returncode == 1 and "the disk is full; free some space there" in found.stderr
    assert "Traceback" not in found.stderr and len(re.findall("failed, ", found.stdout)) == 1
    assert "first: done, from the run cache" in run_engine().stdout
    assert not run("dvc", "status", "--json").stdout.strip("{}\n ")


def test_stages_run_beside_each_other_and_nobody_else_is_listened_to(project):
    edit(project / "dvc.yaml", "seconds: 0", "seconds: 5")
    process = begin("--slots", "2")
    until(lambda: (project / "logs/each@left.log").exists() and (project / "logs/each@right.log").exists())
    listening = [
        each.laddr.ip for each in psutil.Process(process.pid).net_connections("tcp") if each.status == "LISTEN"
    ]
    assert {*listening} == {"127.0.0.1"}
    assert "each@left: done" in process.communicate(timeout=120)[0] and not process.returncode


def test_an_input_that_is_edited_during_the_run_is_no_result(project):
    edit(project / "dvc.yaml", "seconds: 0", "seconds: 2")
    process = begin("--slots", "2")
    until(lambda: (project / "logs/each@left.log").exists())
    edit(project / "left.txt", "left", "edited")
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 1 and "changed while it ran" in said
    assert "each@left" not in (project / "dvc.lock").read_text()
    run_engine()
    assert "edited" in (project / "last").read_text()


def test_a_second_run_says_who_holds_the_project(project):
    edit(project / "dvc.yaml", "seconds: 0", "seconds: 20")
    first = begin()
    until(lambda: [*project.glob("logs/each@*.log")])
    second = run_engine(check=False)
    assert second.returncode and f"another run works on this project (process {first.pid})" in second.stderr
    first.send_signal(signal.SIGINT)
    assert "stopped; what was finished is kept" in first.communicate(timeout=120)[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_however_it_is_stopped_no_process_stays_and_nothing_finished_is_lost(project, number):
    edit(project / "dvc.yaml", "sleep ${seconds}", f"{sys.executable} -c 'import time; time.sleep(120)'")
    process = begin("--slots", "2")
    until(lambda: len([*project.glob("logs/each@*.log")]) == 2)
    process.send_signal(number)
    process.communicate(timeout=120)
    until(lambda: not left_in(project), 30)
    edit(project / "dvc.yaml", f"{sys.executable} -c 'import time; time.sleep(120)'", "sleep 0")
    said = run_engine().stdout
    assert "first: done, from the run cache" in said or "first" not in said
    assert (project / "last").exists()


def left_in(folder):
    """Processes that work in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if Path(os.readlink(process / "cwd")) == folder and int(process.name) != os.getpid():
                found.append(process.name)
        except OSError:
            pass
    return found


def test_the_end_says_which_page_to_open(project):
    (project / "run.yaml").write_text("run: {scale: quick, seed: 0}")
    (project / "reports/quick").mkdir(parents=True)
    (project / "reports/quick/metrics.json").write_text('{"verdicts": {"open": 1, "holds": 2}}')
    (project / "reports/index.html").touch()
    edit(project / "dvc.yaml", "cmd: echo apart > apart", "cmd: mkdir apart && echo apart > apart/index.html")
    last = run_engine().stdout.splitlines()[-2:]
    assert last == ["scale quick, 3 claims and controls: 2 holds; 1 open", f"open {project / 'reports/index.html'}"]
    assert run_engine("--only", "apart").stdout.splitlines()[-1] == f"open {project / 'apart/index.html'}"


def test_one_section_is_made_with_all_it_needs(project):
    said = run_engine("--only", "each@left").stdout
    assert "first: done" in said and "each@left: done" in said and "each@right" not in said and "last" not in said
    said = run_engine("--only", "nowhere", check=False)
    assert said.returncode and "nowhere: no stage is called so" in said.stderr


def test_stages_go_to_slots_of_their_class_and_to_any_where_there_is_none():
    asking = {name: SimpleNamespace(meta=meta) for name, meta in {"gpu": {"slot": "gpu"}, "none": None}.items()}
    gpu, cpu = engine.Slot("a", frozenset({"gpu"})), engine.Slot("b", frozenset({"cpu"}))
    assert engine._takes(gpu, asking["gpu"], [gpu, cpu]) and not engine._takes(cpu, asking["gpu"], [gpu, cpu])
    assert engine._takes(cpu, asking["none"], [gpu, cpu]) and not engine._takes(gpu, asking["none"], [gpu, cpu])
    assert engine._takes(cpu, asking["gpu"], [cpu]) and engine._takes(gpu, asking["none"], [gpu])


@pytest.mark.parametrize(("told", "gpus"), [("", []), ("-1", []), ("0", ["0"]), ("0,2", ["0", "2"])])
def test_gpus_that_are_hidden_from_it_are_not_used(monkeypatch, told, gpus):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", told)
    assert engine._gpus() == gpus


def test_only_what_is_forced_runs_again(project):
    run_engine()
    said = run_engine("--only", "apart", "--force", "each@left").stdout
    assert "each@left: done" in said and "apart" not in said and "each@right" not in said


@pytest.fixture
def scheduler(project):
    """A Dask scheduler and two workers of one class each, as local processes; the path of its scheduler file."""
    file, pool = project / "scheduler.json", []
    here = ["--host", "127.0.0.1", "--no-dashboard"]
    pool.append(
        subprocess.Popen(
            ["dask", "scheduler", *here, "--port", "0", "--dashboard-address", ":0", "--scheduler-file", str(file)]
        )
    )
    for name in ("gpu", "cpu"):
        options = ["--nthreads", "1", "--no-nanny", "--memory-limit", "0", "--resources", f"{name}=1", "--name", name]
        pool.append(subprocess.Popen(["dask", "worker", "--scheduler-file", str(file), *here, *options]))
    yield file, dict(zip(("scheduler", "gpu", "cpu"), pool, strict=True))
    for process in reversed(pool):
        process.kill()
        process.wait()


def test_what_a_scale_takes_that_has_not_run_is_counted(monkeypatch):
    monkeypatch.setattr(params, "load", quick)
    stages = ["networks@kim/vgg16", "networks@xu/layers", "kim@10"]
    found = engine.expected(stages, {"kim@10": 2.0, "networks@xu/layers": 3.0})
    assert found["networks@kim/vgg16"] > found["networks@xu/vgg16"] > 0 and found["networks@xu/layers"] == 3
    known = {"networks@kim/vgg16": 1.0, "networks@xu/layers": 3.0}
    assert engine.expected(stages, known) == known


def test_workers_of_a_running_scheduler_do_the_work_each_class_its_own(project, scheduler):
    edit(project / "dvc.yaml", "cmd: sleep", "meta: {slot: gpu}\n      cmd: sleep")
    run_engine("--scheduler", str(scheduler[0]))
    ran = json.loads((project / "logs/durations.json").read_text())
    assert ran["each@left"]["slot"] == ran["each@right"]["slot"] != ran["first"]["slot"] == ran["last"]["slot"]
    assert (project / "last").read_text() == "from here\nleft\nfrom here\nright\n"


def test_a_stage_whose_worker_is_killed_begins_anew_elsewhere(project, scheduler):
    edit(project / "dvc.yaml", "cmd: sleep", "meta: {slot: gpu}\n      cmd: sleep")
    edit(project / "dvc.yaml", "seconds: 0", "seconds: 5")
    file, pool = scheduler
    process = begin("--scheduler", str(file))
    until(lambda: [*project.glob("logs/each@*.log")])
    pool["gpu"].kill()
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 0 and "its worker died; it begins anew" in said
    assert (project / "last").read_text() == "from here\nleft\nfrom here\nright\n"
