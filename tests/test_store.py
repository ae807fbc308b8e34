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


@pytest.mark.parametrize(
    "place, remedy",
    [
        ("models/m", "train@m"),
        ("datasets/d/test", "dataset@d"),
        ("families/f/evaluations/m", "family@f"),
        ("x", "delete it"),
    ],
)
def test_a_damaged_record_is_refused_with_the_stage_to_run(tmp_path, place, remedy):
    store.save(tmp_path / place, {"a": torch.ones(3)}, {})
    with (tmp_path / place / store.TENSORS).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x07")
    with pytest.raises(UserError, match=f"sha256 is .*expected.*{remedy}"):
        store.load(tmp_path / place)


def test_a_missing_record_is_named(tmp_path):
    with pytest.raises(UserError, match="models/none: no readable record.*dvc repro train@none"):
        store.load(tmp_path / "models" / "none")


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
