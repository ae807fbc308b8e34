import pytest

from robust_features.files import atomic


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
