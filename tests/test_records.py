import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from companion import paths, records
from robust_features.settings import UserError


def test_a_record_comes_back_as_it_was_written(tmp_path):
    shared = torch.arange(6).view(2, 3)
    records.save(tmp_path / "x", {"a": shared, "b": shared.t()}, {"about": [1, "two"]})
    record = records.load(tmp_path / "x")
    assert torch.equal(record.tensors["b"], shared.t()) and record.card["about"] == [1, "two"]


def test_equal_content_gives_equal_bytes(tmp_path):
    for name in ("x", "y"):
        records.save(tmp_path / name, {"b": torch.ones(3), "a": torch.zeros(2)}, {"z": 1, "y": 2})
    for file in (records.TENSORS, records.CARD):
        assert (tmp_path / "x" / file).read_bytes() == (tmp_path / "y" / file).read_bytes()


PLACES = [
    ("datasets/d/test", "datasets/d", "dataset@d"),
    ("networks/p/g/m/model", "networks/p/g", "networks@p/g"),
    ("networks/p/g/m-seed1/distillation", "networks/p/g", "networks@p/g"),
    ("constructed/p/c/r/eps-0/test", "constructed/p/c", "construct@p/c"),
    ("transfers/p/t", "transfers/p/t", "transfer@p/t"),
]


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "DATA", tmp_path / "networks" / "p" / "data")  # in a folder whose name means nothing
    monkeypatch.setenv(paths.PAGE, str(tmp_path))
    return paths.DATA


@pytest.mark.parametrize("place, output, stage", PLACES)
def test_a_damaged_record_is_refused_with_the_stage_to_run(data, place, output, stage):
    records.save(data / place, {"a": torch.ones(3)}, {})
    with (data / place / records.TENSORS).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x07")
    with pytest.raises(UserError, match=f"sha256 of .*expected.*; delete {data / output} and run `dvc repro {stage}`"):
        records.load(data / place)


@pytest.mark.parametrize("place, output, stage", PLACES)
def test_of_a_missing_record_there_is_nothing_to_delete(data, place, output, stage):
    with pytest.raises(UserError, match=f"{place}: there is none yet; run `dvc repro {stage}`$"):
        records.load(data / place)


def test_a_record_elsewhere_is_not_one_of_dvcs(data, tmp_path):
    for place in (tmp_path / "networks/p/x", data / "explored/networks/p/x"):
        with pytest.raises(UserError, match="networks/p/x: there is none yet; make it first"):
            records.load(place)
        place.mkdir(parents=True)
        with pytest.raises(UserError, match=f"delete {place} and make it again"):
            records.load(place)


def half_written(folder):
    (folder / records.CARD).unlink()


def without_tensors(folder):
    (folder / records.TENSORS).unlink()


def garbled(folder):
    (folder / records.CARD).write_bytes(b"{\xff")


def another_card(folder):
    (folder / records.CARD).write_text('["no", "record"]')


def no_folder(folder):
    shutil.rmtree(folder)
    folder.write_text("")


DAMAGES = [half_written, without_tensors, garbled, another_card, no_folder]


@pytest.mark.parametrize("damage", DAMAGES)
def test_half_a_record_is_refused_in_one_line(data, damage):
    records.save(data / "networks/p/g/m", {"a": torch.ones(3)}, {})
    damage(data / "networks/p/g/m")
    with pytest.raises(
        UserError, match=r"g/m: no whole record \(.*\); delete .* and run `dvc repro networks@p/g`"
    ) as error:
        records.load(data / "networks/p/g/m")
    assert "\n" not in str(error.value)


def test_what_a_record_of_another_version_lacks_is_named(data):
    records.save(data / "networks/p/g/m", {"a": torch.ones(3)}, {})
    record = records.load(data / "networks/p/g/m")
    for contents in (record.tensors, record.card):
        with pytest.raises(UserError, match="p/g/m: no 'b', so another version wrote it; delete .*networks@p/g"):
            contents["b"]


# Rows


def test_rows_come_back_with_their_text_as_text(data):
    rows = pd.DataFrame({"example": ["", "NA", "null"], "image": [0, 1, 2], "l2": np.float32([1e-9, 0.1, 3])})
    records.save(data / "networks/p/g/m", {}, {}, rows=rows)
    found = records.rows(data / "networks/p/g/m", floats=["l2"])
    assert found.equals(rows) and found["l2"].dtype == np.float32


@pytest.mark.parametrize("change", [lambda text: text.replace("1", "7"), lambda text: text[:-3], lambda text: ""])
def test_rows_that_are_not_what_was_written_are_refused(data, change):
    records.save(data / "transfers/p/t", {}, {}, rows=pd.DataFrame({"image": [0, 1], "prediction": [3, 1]}))
    path = data / "transfers/p/t" / records.ROWS
    path.write_text(change(path.read_text()))
    with pytest.raises(UserError, match=r"sha256 of rows.csv is .*; delete .*/p/t and run `dvc repro transfer@p/t`"):
        records.rows(data / "transfers/p/t")


def test_a_record_without_rows_is_refused_where_they_are_asked_for(data):
    records.save(data / "transfers/p/t", {}, {})
    with pytest.raises(UserError, match="p/t: no whole record .*rows"):
        records.rows(data / "transfers/p/t")


# Unfinished work


def work(calls, breaks="", settings=0):
    """The sum of two parts; `breaks` off before a part."""
    with records.unfinished("sums", settings, [torch.ones(2)]) as once:

        def part(name):
            if name == breaks:
                raise KeyboardInterrupt
            calls.append(name)
            return {"x": torch.ones(2), "none": None}

        return once("one", lambda: part("one"))["x"] + once("two", lambda: part("two"))["x"]


def test_interrupted_work_goes_on_with_the_parts_that_are_missing_and_leaves_nothing(data):
    calls = []
    with pytest.raises(KeyboardInterrupt):
        work(calls, breaks="two")
    assert [path.name for path in (data / "interrupted").glob("sums-*/*")] == ["one"]
    assert work(calls).tolist() == [2, 2] and calls == ["one", "two"]
    assert not list((data / "interrupted").iterdir())


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_part_that_is_damaged_is_made_again_and_this_is_said(data, damage, capsys):
    calls = []
    with pytest.raises(KeyboardInterrupt):
        work(calls, breaks="two")
    (part,) = (data / "interrupted").glob("sums-*/one")
    damage(part)
    assert work(calls).tolist() == [2, 2] and calls == ["one", "one", "two"]
    assert capsys.readouterr().err.endswith(": made anew\n")


def test_interrupted_work_belongs_to_its_kind_settings_and_tensors(data):
    x = torch.arange(3.0)
    keys = ("a", 0, [x]), ("b", 0, [x]), ("a", 1, [x]), ("a", 0, [x + 1]), ("a", 0, [x, x])
    places = [records.interrupted(*key) for key in keys]
    assert len({*places}) == 5 and places[0] == records.interrupted("a", 0, [x.clone()])


# Writing


def test_a_record_that_cannot_be_saved_leaves_the_old_one_intact(tmp_path):
    records.save(tmp_path / "x", {"a": torch.ones(3)}, {})
    with pytest.raises(TypeError):
        records.save(tmp_path / "x", {"a": torch.zeros(3)}, {"card": object()})
    assert torch.equal(records.load(tmp_path / "x").tensors["a"], torch.ones(3))


def test_what_older_code_began_is_not_finished_by_another(data, monkeypatch):
    before = records.interrupted("a", 0, [])
    monkeypatch.setattr(records, "_method", lambda: {"robust_features.attacks.gradient": "another"})
    assert records.interrupted("a", 0, []) != before
