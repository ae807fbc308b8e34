import shutil

import pytest
import torch

from robust_features import store
from robust_features.files import atomic
from robust_features.settings import UserError


def test_a_record_comes_back_as_it_was_written(tmp_path):
    shared = torch.arange(6).view(2, 3)
    store.save(tmp_path / "x", {"a": shared, "b": shared.t()}, {"about": [1, "two"]})
    record = store.load(tmp_path / "x")
    assert torch.equal(record.tensors["b"], shared.t()) and record.card["about"] == [1, "two"]


def test_equal_content_gives_equal_bytes(tmp_path):
    for name in ("x", "y"):
        store.save(tmp_path / name, {"b": torch.ones(3), "a": torch.zeros(2)}, {"z": 1, "y": 2})
    for file in (store.TENSORS, store.CARD):
        assert (tmp_path / "x" / file).read_bytes() == (tmp_path / "y" / file).read_bytes()


PLACES = [
    ("models/m", "models/m", "train@m"),
    ("datasets/d/test", "datasets/d", "dataset@d"),
    ("constructed/c/r/eps-0/test", "constructed/c", "construct@c"),
    ("families/f/evaluations/m", "families/f", "family@f"),
]


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "DATA", tmp_path / "models" / "mine" / "data")  # in a folder whose name means nothing
    return store.DATA


@pytest.mark.parametrize("place, output, stage", PLACES)
def test_a_damaged_record_is_refused_with_the_stage_to_run(data, place, output, stage):
    store.save(data / place, {"a": torch.ones(3)}, {})
    with (data / place / store.TENSORS).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x07")
    with pytest.raises(UserError, match=f"sha256 of .*expected.*; delete {data / output} and run `dvc repro {stage}`"):
        store.load(data / place)


@pytest.mark.parametrize("place, output, stage", PLACES)
def test_of_a_missing_record_there_is_nothing_to_delete(data, place, output, stage):
    with pytest.raises(UserError, match=f"{place}: there is none yet; run `dvc repro {stage}`$"):
        store.load(data / place)


def test_a_family_on_constructed_datasets_is_made_by_another_stage(data):
    (data / "params" / "descendants").mkdir(parents=True)
    (data / "params" / "descendants" / "f.json").touch()
    with pytest.raises(UserError, match="run `dvc repro descend@f`"):
        store.load(data / "families" / "f" / "models" / "m")


def test_a_record_elsewhere_is_not_one_of_dvcs(data, tmp_path):
    with pytest.raises(UserError, match="models/x: there is none yet; make it first"):
        store.load(tmp_path / "models" / "x")
    (tmp_path / "models" / "x").mkdir(parents=True)
    with pytest.raises(UserError, match=f"delete {tmp_path}/models/x and make it again"):
        store.load(tmp_path / "models" / "x")


def half_written(folder):
    (folder / store.CARD).unlink()


def without_tensors(folder):
    (folder / store.TENSORS).unlink()


def garbled(folder):
    (folder / store.CARD).write_bytes(b"{\xff")


def another_card(folder):
    (folder / store.CARD).write_text('["no", "record"]')


def no_folder(folder):
    shutil.rmtree(folder)
    folder.write_text("")


@pytest.mark.parametrize("damage", [half_written, without_tensors, garbled, another_card, no_folder])
def test_half_a_record_is_refused_in_one_line_and_made_anew_where_it_was_interrupted(data, damage, capsys):
    store.save(data / "models" / "m", {"a": torch.ones(3)}, {})
    damage(data / "models" / "m")
    with pytest.raises(
        UserError, match=r"models/m: no whole record \(.*\); delete .* and run `dvc repro train@m`"
    ) as error:
        store.load(data / "models" / "m")
    assert "\n" not in str(error.value)
    assert store.kept(data / "models" / "m") is None and not (data / "models" / "m").exists()
    assert capsys.readouterr().err.endswith(": made anew\n")


def test_what_a_record_of_another_version_lacks_is_named(data):
    store.save(data / "models" / "m", {"a": torch.ones(3)}, {})
    record = store.load(data / "models" / "m")
    for contents in (record.tensors, record.card):
        with pytest.raises(UserError, match="models/m: no 'b', so another version wrote it; delete .*train@m"):
            contents["b"]


def test_a_failure_between_write_and_rename_leaves_the_old_file_intact(tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(RuntimeError), atomic(tmp_path / "file") as partial:
        partial.write_text("half of the n")
        raise RuntimeError
    assert (tmp_path / "file").read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_record_that_cannot_be_saved_leaves_the_old_one_intact(tmp_path):
    store.save(tmp_path / "x", {"a": torch.ones(3)}, {})
    with pytest.raises(TypeError):
        store.save(tmp_path / "x", {"a": torch.zeros(3)}, {"card": object()})
    assert torch.equal(store.load(tmp_path / "x").tensors["a"], torch.ones(3))
