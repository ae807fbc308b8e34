import pytest

from robust_features.files import atomic


def test_a_failure_between_write_and_rename_leaves_the_old_file_intact(tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(RuntimeError), atomic(tmp_path / "file") as partial:
        partial.write_text("half of the n")
        raise RuntimeError
    assert (tmp_path / "file").read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_is_replaced_whole(tmp_path):
    for name in ("old", "new"):
        with atomic(tmp_path / "folder") as partial:
            partial.mkdir()
            (partial / name).touch()
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["folder", "folder/new"]


@pytest.mark.parametrize("kind", ["file", "folder", "nothing"])
def test_a_link_is_replaced_and_what_it_leads_to_is_left_alone(tmp_path, kind):
    elsewhere, link = tmp_path / "elsewhere", tmp_path / "link"
    if kind == "folder":
        (elsewhere / "old").mkdir(parents=True)
    elif kind == "file":
        elsewhere.write_text("old")
    link.symlink_to(elsewhere)
    with atomic(link) as partial:
        partial.mkdir()
        (partial / "new").touch()
    assert not link.is_symlink() and [path.name for path in link.iterdir()] == ["new"]
    assert (elsewhere / "old").exists() if kind == "folder" else elsewhere.exists() == (kind == "file")
    assert not list(tmp_path.glob(".*"))
