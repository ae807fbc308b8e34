"""Files from the network: resumed where they were cut, checked, and whole or not there."""

import errno
import hashlib
import os
import shutil
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import IO
from urllib.request import Request, urlopen

from tqdm import tqdm

from robust_features.settings import UserError

AGAIN = "delete it and run the same command again"


def download(url: str, target: Path, *, waits: Sequence[float] = (1, 2, 4), **checksum: str) -> Path:
    """Fetch `url` to `target`, going on with `<target>.part`; a target that is already there is only checked.

    `checksum` is md5=… or sha256=…; a broken connection is tried again after each of `waits` seconds. If several
    processes ask for one file, one fetches it and the others wait. Raises UserError, which tells network from disk
    problems.
    """
    if target.exists():
        verify(target, AGAIN, **checksum)
        return target
    part = target.with_name(target.name + ".part")
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        while not target.exists():
            with _alone(part) as alone:
                if alone and not target.exists():
                    _complete(url, part, waits, checksum)
                    os.replace(part, target)
                    print(f"{target.name}: complete", file=sys.stderr)
    return target


def verify(path: Path, remedy: str, **checksum: str) -> None:
    """Raise UserError, ending in `remedy`, unless `path` can be read and has the checksum."""
    for name, expected in checksum.items():
        with reading(path, remedy), path.open("rb") as file:
            found = hashlib.file_digest(file, partial(hashlib.new, name, usedforsecurity=False)).hexdigest()
        if found != expected:
            raise UserError(f"{path}: {name} is {found}, expected {expected}; {remedy}")


def extract(archive: Path, folder: Path) -> Path:
    """Unpack the top folder called `folder.name` of a tar or zip archive to `folder`, whole or not at all."""
    if not hasattr(tarfile, "data_filter"):
        raise UserError(
            f"{archive}: unpacking it safely needs Python 3.11.4 or newer; or unpack it to {folder} yourself"
        )
    options = {} if archive.suffix == ".zip" else {"filter": "data"}  # both leave out what would end up outside
    with reading(archive, AGAIN), writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as root:
            shutil.unpack_archive(archive, root, **options)
            try:
                os.replace(Path(root) / folder.name, folder)
            except OSError:
                if not folder.exists():  # if it does, another process has unpacked it meanwhile
                    raise
    return folder


@contextmanager
def reading(path: Path, remedy: str = "put a sound copy there") -> Iterator[Path]:
    """Turn an error in reading `path` into one that names it; decoders of damaged files raise almost anything."""
    try:
        yield path
    except (MemoryError, UserError):  # not the file's fault, or already reported
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or repr(error)
        raise UserError(f"{path}: cannot be read ({reason}); {remedy}") from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an error of the disk that `path` lies on into one that says so; others, such as the network's, pass."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            remedy = "free some space there and run the same command again"
        elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            remedy = f"allow writing to {path.parent} and run the same command again"
        else:
            raise
        raise UserError(f"{path}: cannot be written ({error.strerror}); {remedy}") from error


@contextmanager
def _alone(part: Path) -> Iterator[bool]:
    """Wait until no other process holds `part`; False if one that did has renamed or removed it."""
    import fcntl  # which Windows lacks: only downloads need it

    with part.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{part.stem}: another process is fetching it, waiting", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            pass
        try:
            yield _is(file, part)
        finally:
            if _is(file, part) and not part.stat().st_size:  # nothing came
                part.unlink()


def _is(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _complete(url: str, part: Path, waits: Sequence[float], checksum: dict[str, str]) -> None:
    """Fetch what `part` lacks and check it; start again if what was there does not fit the rest."""
    for wait in (*waits, None):
        resumed = part.stat().st_size > 0
        try:
            _fetch(url, part)
            break
        except (OSError, HTTPException) as error:  # no network, a time-out and an answer such as 404 are OSErrors
            code = getattr(error, "code", None)
            if code == 416:  # no such range: nothing is lacking
                break
            if wait is None or code in range(400, 500):
                raise UserError(
                    f"{url}: cannot be fetched ({error}); with a network, run the same command again: it goes on where"
                    f" it was cut. Or put a copy at {part.with_suffix('')}, or its content where ROBUST_FEATURES_DATA points"
                ) from error
            time.sleep(wait)
    try:
        verify(part, "it was deleted, run the same command again", **checksum)
    except UserError:
        if not resumed:
            part.unlink()
            raise
        os.truncate(part, 0)
        _complete(url, part, waits, checksum)


def _fetch(url: str, part: Path) -> None:
    """Append to `part` what it lacks of `url`, or write it anew if the server does not support ranges."""
    have = part.stat().st_size if part.exists() else 0
    with urlopen(Request(url, headers={"Range": f"bytes={have}-"} if have else {}), timeout=30) as response:
        have = have if response.status == 206 else 0
        total = have + int(response.headers["Content-Length"] or 0)
        if not sys.stderr.isatty():  # tqdm, with disable=None, then draws no bar
            print(f"{part.stem}: fetching {(total - have) / 1e6:,.1f} MB from {url}", file=sys.stderr)
        bar = tqdm(desc=part.stem, initial=have, total=total or None, unit="B", unit_scale=True, disable=None)
        with writing(part), bar, part.open("ab" if have else "wb") as file:
            while block := response.read(1 << 20):
                bar.update(file.write(block))
    size = part.stat().st_size
    if size < total:  # http.client says nothing when a connection ends early
        raise ConnectionError(f"cut after {size:,} of {total:,} bytes")
    if not size:
        raise ConnectionError("the server sent nothing")
