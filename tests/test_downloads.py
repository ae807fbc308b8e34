import errno
import hashlib
import io
import os
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest
from servers import nowhere, serve

from companion.datasets.downloads import download, extract, writing
from robust_features.settings import UserError

pytestmark = pytest.mark.skipif(
    not hasattr(tarfile, "data_filter"), reason="unpacking safely needs Python 3.11.4 or newer"
)

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


def test_one_of_several_that_ask_for_a_file_at_once_fetches_it(tmp_path):
    with (
        serve({"x.bin": CONTENT}) as server,
        ThreadPoolExecutor(8) as pool,
    ):  # threads lock each other out as processes do
        targets = list(pool.map(lambda _: download(f"{server.url}/x.bin", tmp_path / "x.bin", md5=MD5), range(8)))
    assert len(server.requests) == 1 and targets[7].read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["x.bin"]


def test_those_that_wait_go_on_where_another_was_cut(tmp_path):
    with serve({"x.bin": CONTENT}, cut=1) as server, ThreadPoolExecutor(2) as pool:
        tries = [pool.submit(download, f"{server.url}/x.bin", tmp_path / "x.bin", md5=MD5, waits=()) for _ in "ab"]
    assert sorted(type(each.exception()).__name__ for each in tries) == ["NoneType", "UserError"]
    assert server.requests == [None, f"bytes={len(CONTENT) // 2}-"] and (tmp_path / "x.bin").read_bytes() == CONTENT


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_full_disk_is_told_from_a_missing_network_and_not_tried_again(tmp_path):
    (tmp_path / "x.bin.part").symlink_to("/dev/full")
    with (
        serve({"x.bin": CONTENT}) as server,
        pytest.raises(UserError, match=r"x\.bin.*: cannot be written .No space left"),
    ):
        download(f"{server.url}/x.bin", tmp_path / "x.bin", md5=MD5, waits=(0, 0))
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "code, remedy",
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "free some space"),
        (errno.EROFS, r"allow writing to .*/f and"),
        (errno.EACCES, r"allow writing to .*/f and"),
    ],
)
def test_an_error_of_the_disk_names_the_file_and_a_remedy(tmp_path, code, remedy):
    with pytest.raises(UserError, match=rf"/f/x: cannot be written .*{remedy}"), writing(tmp_path / "f" / "x"):
        raise OSError(code, os.strerror(code))
    with pytest.raises(ConnectionResetError), writing(tmp_path):
        raise ConnectionResetError(errno.ECONNRESET, "reset")


def test_without_a_network_no_part_is_left(tmp_path):
    with pytest.raises(UserError, match="cannot be fetched"):
        download(f"{nowhere()}/x.bin", tmp_path / "x.bin", md5=MD5, waits=())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("length", [len(CONTENT) // 3, len(CONTENT) // 2, 2 * len(CONTENT)])
def test_a_part_of_another_file_is_fetched_again_from_its_beginning(tmp_path, length):
    (tmp_path / "x.bin.part").write_bytes(bytes(length))  # the server's file has changed since
    with serve({"x.bin": CONTENT}) as server:
        download(f"{server.url}/x.bin", tmp_path / "x.bin", md5=MD5)
    assert (tmp_path / "x.bin").read_bytes() == CONTENT and server.requests == [f"bytes={length}-", None]


def test_a_redirection_is_followed_also_when_resuming(tmp_path):
    (tmp_path / "x.bin.part").write_bytes(CONTENT[:1000])
    with serve({"old": "x.bin", "x.bin": CONTENT}) as server:
        download(f"{server.url}/old", tmp_path / "x.bin", md5=MD5)
    assert (tmp_path / "x.bin").read_bytes() == CONTENT and server.requests == ["bytes=1000-"] * 2


def test_an_empty_answer_is_told(tmp_path):
    with serve({"x.bin": b""}) as server, pytest.raises(UserError, match="cannot be fetched .the server sent nothing"):
        download(f"{server.url}/x.bin", tmp_path / "x.bin", md5=MD5, waits=(0,))
    assert len(server.requests) == 2 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".tar.gz", ".zip"])
def test_several_may_unpack_one_archive_at_once(tmp_path, suffix):
    archive = packed(tmp_path / f"x{suffix}", {f"top/{i}": CONTENT for i in range(20)})
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: extract(archive, tmp_path / "top"), range(4)))
    assert len(list((tmp_path / "top").iterdir())) == 20 and len(list(tmp_path.iterdir())) == 2


def test_a_full_disk_is_not_the_fault_of_the_archive(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("shutil.unpack_archive", full)
    with pytest.raises(UserError, match=r"/top: cannot be written .No space left on device.; free some space"):
        extract(packed(tmp_path / "x.zip", {"top/a": b""}), tmp_path / "top")


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
    assert [path.name for path in tmp_path.iterdir()] == ["inner"]
    assert [path.name for path in inner.iterdir()] == ["x.tar.gz"]


def test_what_a_zip_archive_has_outside_is_left_out(tmp_path):
    inner = tmp_path / "inner"
    inner.mkdir()
    extract(packed(inner / "x.zip", {"top/a": b"", "../evil": b"", f"{tmp_path}/evil": b""}), inner / "top")
    assert [path.name for path in tmp_path.iterdir()] == ["inner"] and (inner / "top" / "a").exists()
    assert sorted(path.name for path in inner.iterdir()) == ["top", "x.zip"]


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
