"""A bundle of a small project: packed by DVC's graph, run where there is none, taken back."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time

import pytest

from companion import bundle, node, paths, pipeline
from robust_features.settings import UserError

pytestmark = [
    pytest.mark.pipeline,
    pytest.mark.skipif(not hasattr(tarfile, "data_filter"), reason="unpacking safely needs Python 3.11.4 or newer"),
]
GRAPH = """
stages:
  dataset:
    foreach: [used, idle]
    do:
      cmd: mkdir -p data/datasets && echo ${item} > data/datasets/${item}
      outs: ["data/datasets/${item}"]
  networks:
    foreach: [first, second]
    do:
      cmd: mkdir -p data/networks/${item}/model
        && cat data/datasets/used source.txt > data/networks/${item}/model/card.json
        && echo weights > data/networks/${item}/model/tensors.safetensors
      deps: [data/datasets/used, source.txt]
      outs: ["data/networks/${item}"]
  kim:
    foreach: [10-kim, 11-kim]
    do:
      cmd: test -e quick || sleep 60; mkdir -p reports/tiny && cp -r data/networks reports/tiny/${item}
      deps: [data/datasets, data/networks]
      outs: ["reports/tiny/${item}"]
  xu:
    foreach: [20-xu]
    do:
      cmd: echo > reports/tiny/20-xu
      outs: [reports/tiny/20-xu]
"""
FIRST = ["dataset@used", "networks@first", "networks@second"]
SECTIONS = ["kim@10-kim", "kim@11-kim"]


@pytest.fixture
def packed(tmp_path, monkeypatch):
    """A bundle of a small project's paper, made in a folder that is gone."""
    project = tmp_path / "project"
    project.mkdir()
    (project / "dvc.yaml").write_text(GRAPH)
    (project / "source.txt").write_text("source\n")
    (project / "run.yaml").write_text("run: {scale: tiny, seed: 0}\n")
    stages, reads = bundle.graph(project, "kim", {"kim@11-kim": 600.0})
    assert reads == ["source.txt"]
    files = bundle.listed(project, [*reads, "run.yaml"])
    bundle.write(tmp_path / "bundle", files, stages, paper="kim", scale="tiny", commit="abc + uncommitted changes")
    shutil.rmtree(project)
    monkeypatch.setattr(paths, "DATA", tmp_path / "taken" / "data")
    monkeypatch.setattr(paths, "REPORTS", tmp_path / "taken" / "reports")
    return tmp_path / "bundle"


def begin(folder, *arguments):
    """run.py as on a node: without site packages, and without git and DVC in the PATH."""
    tools = folder.parent / "tools"
    if not tools.exists():
        tools.mkdir()
        for name in ("cat", "cp", "mkdir", "sleep"):
            (tools / name).symlink_to(shutil.which(name))
    command = [sys.executable, "-S", "-E", str(folder / "run.py"), *arguments]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": folder.parent}
    return subprocess.Popen(command, env={"PATH": str(tools), "HOME": str(folder)}, **options)


def finish(process):
    return process.communicate(timeout=60)[0], process.returncode


def until(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def done(folder):
    path = folder / "work" / "project" / node.DONE
    return sorted(json.loads(path.read_text())) if path.exists() else []


def test_the_stages_are_those_that_the_papers_sections_need_in_graph_order(packed):
    node.read_parts(packed, packed / "looked")
    stages = json.loads((packed / "looked" / node.BUNDLE).read_text())["stages"]
    names = [each["name"] for each in stages]
    assert names == FIRST + SECTIONS, "no other paper's, and no dataset that no network reads"
    assert all({*each["needs"]} <= {*names[:place]} for place, each in enumerate(stages))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_midway_it_goes_on_where_it_was_and_the_sections_are_published(packed, number):
    process = begin(packed, "--minutes", "30", "--at-once", "2")
    until(lambda: len([*packed.glob("work/project/logs/kim@*.log")]) == 2)
    first = packed / "work/project/data/networks/first/model/card.json"
    before = first.stat().st_mtime_ns
    process.send_signal(number)
    said, status = finish(process)
    assert status and (number == signal.SIGKILL or "kim@10-kim: interrupted" in said)
    (packed / "work/project/quick").touch()  # the same stages need no time now
    until(lambda: not left_in(packed / "work/project", end=True))
    said, status = finish(begin(packed, "--minutes", "30", "--weights"))
    assert status == 0 and "3 of 5 stages are done" in said and first.stat().st_mtime_ns == before
    target = bundle.take(packed / "results")
    manifest = json.loads((target / "manifest.json").read_text())
    assert target == paths.REPORTS / "published" / "tiny" and manifest["params"] == {"scale": "tiny", "seed": 0}
    assert manifest["provenance"]["commit"] == "abc + uncommitted changes"
    assert (target / "10-kim/first/model/card.json").read_text() == "used\nsource\n"
    assert (paths.DATA / "taken/tiny-kim/data/networks/first/model/tensors.safetensors").read_text() == "weights\n"


def left_in(folder, *, end):
    """Processes that work in a folder; ended, if asked."""
    found = []
    for place in os.listdir("/proc"):
        try:
            if place.isdigit() and os.readlink(f"/proc/{place}/cwd") == str(folder):
                found.append(int(place))
                if end:
                    os.kill(int(place), signal.SIGKILL)
        except OSError:
            pass
    return found


def test_at_the_deadline_it_stops_says_what_is_left_and_packs_what_there_is(packed):
    said, status = finish(begin(packed, "--minutes", "0.15", "--at-once", "2"))
    assert status == 1 and done(packed) == FIRST and not left_in(packed / "work/project", end=False)
    assert "left: kim@11-kim: not started: about 600 s no longer fit" in said
    assert "left: kim@10-kim: interrupted" in said
    with pytest.raises(UserError, match="no section was finished"):
        bundle.take(packed / "results")
    kept = paths.DATA / "taken" / "tiny-kim" / "data" / "networks" / "first" / "model"
    assert [path.name for path in kept.iterdir()] == ["card.json"]  # no weights unless asked


def test_a_stage_that_fails_does_not_stop_the_others_and_is_tried_again(packed):
    (packed / "work/project/data/networks").mkdir(parents=True)
    (packed / "work/project/data/networks/first").write_text("")
    (packed / "work/project/quick").touch()
    stages = [
        node.Stage("one", "false", [], [], None),
        node.Stage("two", "echo > two", [], ["two"], None),
        node.Stage("three", "echo > three", ["one"], ["three"], None),
    ]
    with (packed / "work/lock").open("w") as lock:
        left = node.run(
            stages, packed / "work/project", lock, threading.Event(), at_once=1, deadline=time.monotonic() + 30
        )
        assert (
            {*left} == {"one", "three"}
            and left["one"].startswith("failed, exit status 1")
            and "needs one" in left["three"]
        )
        stages[0] = node.Stage("one", "true", [], [], None)
        assert not node.run(
            stages, packed / "work/project", lock, threading.Event(), at_once=1, deadline=time.monotonic() + 30
        )


def test_parts_are_no_larger_than_asked_and_a_damaged_one_is_refused_on_both_sides(packed, tmp_path):
    noise = tmp_path / "noise"
    noise.write_bytes(os.urandom(25_000))
    node.write_parts(tmp_path / "parts", {"noise": noise}, 10_000, scale="tiny", paper="kim", left={})
    sizes = [path.stat().st_size for path in sorted((tmp_path / "parts").glob("part-*"))]
    assert len(sizes) == 3 and max(sizes) == 10_000
    node.read_parts(tmp_path / "parts", tmp_path / "back")
    assert (tmp_path / "back/noise").read_bytes() == noise.read_bytes()
    (tmp_path / "parts/part-001").write_bytes(b"damaged")
    with pytest.raises(UserError, match="missing or damaged: part-001; copy them again"):
        bundle.take(tmp_path / "parts")
    (packed / "part-000").unlink()
    said, status = finish(begin(packed, "--minutes", "1"))
    assert status == 1 and "missing or damaged: part-000" in said and not done(packed)


def test_sections_of_another_day_stay_published_with_where_they_come_from(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "DATA", tmp_path / "data")
    monkeypatch.setattr(paths, "REPORTS", tmp_path / "reports")
    (tmp_path / "run.yaml").write_text("run: {scale: tiny}\n")
    for name, commit in (("10-kim", "a"), ("20-xu", "b"), ("10-kim", "c")):
        (tmp_path / "page").write_text(commit)
        files = {f"reports/tiny/{name}/index.html": tmp_path / "page", "run.yaml": tmp_path / "run.yaml"}
        about = {"scale": "tiny", "paper": name, "commit": commit, "left": {}, "provenance": {}}
        node.write_parts(tmp_path / "came", files, node.PART, **about)
        target = bundle.take(tmp_path / "came")
    manifest = json.loads((target / "manifest.json").read_text())
    assert sorted(manifest["files"]) == ["10-kim/index.html", "20-xu/index.html"]
    assert (target / "10-kim/index.html").read_text() == "c" and manifest["provenance"]["sections"] == ["10-kim"]
    assert [(each["commit"], each["sections"]) for each in manifest["provenance"]["others"]] == [("b", ["20-xu"])]


def test_a_folder_that_holds_something_else_is_not_written_to(tmp_path):
    (tmp_path / "mine").touch()
    with pytest.raises(UserError, match="holds something else"):
        bundle.pack("kim", scale="quick", have=bundle.HAVE, to=tmp_path)


def test_a_dataset_that_is_not_on_this_disk_is_named_with_where_to_put_it(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "DATA", tmp_path)
    monkeypatch.setenv("ROBUST_FEATURES_DATA", str(tmp_path / "mine"))
    assert bundle.packed("d", {"kind": "digits"}) == []
    with pytest.raises(UserError, match="datasets.c: put cifar-10-python.tar.gz or cifar-10-batches-py into"):
        bundle.packed("c", {"kind": "cifar10"})
    (tmp_path / "downloads/cifar-10-batches-py").mkdir(parents=True)
    assert bundle.packed("c", {"kind": "cifar10"}) == [tmp_path / "downloads/cifar-10-batches-py"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/cifar-10-python.tar.gz").touch()
    assert bundle.packed("c", {"kind": "cifar10"}) == [tmp_path / "mine/cifar-10-python.tar.gz"]


def test_pages_made_where_there_is_no_git_name_the_commit_that_was_packed(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    assert pipeline.commit() == "none"
    (tmp_path / pipeline.COMMIT).write_text("abc + uncommitted changes")
    assert pipeline.commit() == "abc + uncommitted changes"


def test_a_node_has_what_it_lists_and_the_default_list_names_its_python(tmp_path):
    assert "python==3.12" in bundle.HAVE.read_text()
    with pytest.raises(UserError, match="needs a line such as python==3.12"):
        (tmp_path / "have.txt").write_text("torch\n")
        bundle.wheels(tmp_path / "have.txt", tmp_path / "wheels")
