import hashlib
import io
import tarfile
import zipfile

import pytest
from servers import nowhere, serve

from robust_features.downloads import download, extract
from robust_features.settings import UserError

CONTENT = bytes(range(256)) * 999
MD5 = hashlib.md5(CONTENT).hexdigest()


def test_a_download_lands_whole_and_says_so_in_two_lines(tmp_path, capsys):
    with serve({"x.bin": CONTENT}) as server:
        target = download(f"{server.url}/x.bin", tmp_path / "new" / "x.bin", md5=MD5)
    assert target.read_bytes() == CONTENT and [path.name for path in target.parent.iterdir()] == ["x.bin"]
    assert capsys.readouterr().err.splitlines() == [
        f"x.bin: fetching 0.3 MB from {server.url}/x.bin",
        "x.bin: complete",
    ]


def test_a_cut_connection_is_resumed_where_it_was_cut(tmp_path):
    with serve({"x.bin": CONTENT}, cut=2) as server:
        target = download(f"{server.url}/x.bin", tmp_path / "x.bin", md5=MD5, waits=(0, 0))
    half = len(CONTENT) // 2
    assert server.requests == [None, f"bytes={half}-", f"bytes={half + half // 2}-"]
    assert target.read_bytes() == CONTENT


def test_a_server_without_ranges_is_asked_for_everything_again(tmp_path):
    with serve({"x.bin": CONTENT}, ranges=False, cut=1) as server:
        target = download(f"{server.url}/x.bin", tmp_path / "x.bin", md5=MD5, waits=(0,))
    assert target.read_bytes() == CONTENT and len(server.requests) == 2


@pytest.mark.parametrize("have", [1000, len(CONTENT)])
def test_a_part_left_by_an_earlier_run_is_completed(tmp_path, have):
    (tmp_path / "x.bin.part").write_bytes(CONTENT[:have])
    with serve({"x.bin": CONTENT}) as server:
        target = download(f"{server.url}/x.bin", tmp_path / "x.bin", sha256=hashlib.sha256(CONTENT).hexdigest())
    assert target.read_bytes() == CONTENT and server.requests == [f"bytes={have}-"]


def test_a_download_cut_too_often_leaves_its_part_for_the_next_run(tmp_path):
    with serve({"x.bin": CONTENT}, cut=1) as server:
        with pytest.raises(UserError, match=f"cut after {len(CONTENT) // 2:,} of {len(CONTENT):,} bytes"):
            download(f"{server.url}/x.bin", tmp_path / "x.bin", md5=MD5, waits=())
        download(f"{server.url}/x.bin", tmp_path / "x.bin", md5=MD5, waits=())
    assert (tmp_path / "x.bin").read_bytes() == CONTENT


def test_a_corrupted_download_is_deleted_and_both_checksums_are_told(tmp_path):
    with serve({"x.bin": CONTENT[::-1]}) as server, pytest.raises(UserError) as error:
        download(f"{server.url}/x.bin", tmp_path / "x.bin", md5=MD5)
    found = hashlib.md5(CONTENT[::-1]).hexdigest()
    assert f"md5 is {found}, expected {MD5}; it was deleted, run the same command again" in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_there_is_checked_and_not_fetched(tmp_path):
    (tmp_path / "x.bin").write_bytes(CONTENT)
    download(nowhere(), tmp_path / "x.bin", md5=MD5)
    with pytest.raises(UserError, match=r"x\.bin: md5 is .* expected 0000; delete it and run the same command again"):
        download(nowhere(), tmp_path / "x.bin", md5="0000")


def test_without_a_network_the_error_names_the_address_the_file_and_another_way(tmp_path):
    url = f"{nowhere()}/x.bin"
    with pytest.raises(UserError) as error:
        download(url, tmp_path / "x.bin", md5=MD5, waits=(0,))
    assert all(word in str(error.value) for word in (url, str(tmp_path / "x.bin"), "ROBUST_FEATURES_DATA"))


def test_a_file_the_server_does_not_have_is_asked_for_once(tmp_path):
    with serve({}) as server, pytest.raises(UserError, match="404"):
        download(f"{server.url}/x.bin", tmp_path / "x.bin", md5=MD5, waits=(0, 0))
    assert len(server.requests) == 1


@pytest.mark.parametrize("suffix", [".tar.gz", ".zip"])
def test_an_archive_becomes_a_folder(tmp_path, suffix):
    extract(packed(tmp_path / f"x{suffix}", {"top/a/b.txt": b"hello"}), tmp_path / "top")
    assert (tmp_path / "top" / "a" / "b.txt").read_bytes() == b"hello"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["top", f"x{suffix}"]


@pytest.mark.parametrize("suffix", [".tar.gz", ".zip"])
def test_a_damaged_archive_leaves_nothing_and_is_named(tmp_path, suffix):
    archive = packed(tmp_path / f"x{suffix}", {"top/a.bin": CONTENT})
    archive.write_bytes(archive.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"x\.(zip|tar\.gz): cannot be read .*; delete it"):
        extract(archive, tmp_path / "top")
    assert [path.name for path in tmp_path.iterdir()] == [f"x{suffix}"]


def test_a_tar_archive_that_reaches_outside_is_refused(tmp_path):
    inner = tmp_path / "inner"
    inner.mkdir()
    with pytest.raises(UserError, match="OutsideDestination"):
        extract(packed(inner / "x.tar.gz", {"top/a": b"", "../evil": b""}), inner / "top")
    assert [path.name for path in tmp_path.iterdir()] == ["inner"] and not (inner / "top").exists()


def test_what_a_zip_archive_has_outside_is_left_out(tmp_path):
    inner = tmp_path / "inner"
    inner.mkdir()
    extract(packed(inner / "x.zip", {"top/a": b"", "../evil": b"", "/evil": b""}), inner / "top")
    assert [path.name for path in tmp_path.iterdir()] == ["inner"] and (inner / "top" / "a").exists()


def packed(archive, files):
    """A .zip or .tar.gz archive of the files, whose names may be hostile."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as file:
            for name, content in files.items():
                file.writestr(name, content)
    else:
        with tarfile.open(archive, "w:gz") as file:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))
    return archive
