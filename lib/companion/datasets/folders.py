"""Folders of images that people bring: which files are read and which are left out, and how each becomes 8-bit RGB."""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from companion.datasets.downloads import reading
from robust_features.settings import UserError

SPLITS = {"training": "train", "test": "test"}  # what messages call them, and their folders
SYSTEM = {"__macosx", "@eadir", "#recycle", "#snapshot", "$recycle.bin", "system volume information", "lost+found"}
SYSTEM |= {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}  # in lower case, besides all that begin with a dot
NO_PICTURES = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}  # formats of which Pillow knows only the ending


@dataclass(frozen=True)
class Listing:
    """The images of a folder by split, each with its class; the classes in their order; what was left out, in words."""

    files: dict[str, list[tuple[Path, str]]]
    classes: tuple[str, ...]
    left_out: str


def list_images(folder: Path) -> Listing:
    """The files `folder`/train/CLASS/* and `folder`/test/CLASS/* whose ending is that of an image format.

    Every folder in train or test that is neither hidden nor an operating system's is a class; they are in the order of
    their names. Symbolic links are followed. Raises UserError if train or test is missing or the classes are fewer than
    two.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no training images of any class, for there is no such folder")
    with reading(folder, "allow reading it"):
        there = [path.name for path in visible(folder) if path.is_dir()]
        if missing := [name for name in SPLITS.values() if name not in there]:
            raise UserError(
                f"{folder}: no folder {' and no folder '.join(missing)} in it (there is {', '.join(there) or 'none'});"
                " images belong in train/CLASS/ and test/CLASS/, the same classes in both"
            )
        files: dict[str, list[tuple[Path, str]]] = {split: [] for split in SPLITS}
        left: dict[str, list[Path]] = {}
        classes = set()
        for split, name in SPLITS.items():
            for entry in visible(folder / name):
                if not entry.is_dir():
                    left.setdefault("in no class's folder", []).append(entry)
                    continue
                label = unicodedata.normalize("NFC", entry.name)  # macOS may spell é differently from the archive
                classes.add(label)
                for path in visible(entry):
                    if reason := _unfit(path):
                        left.setdefault(reason, []).extend(_walk(path) if path.is_dir() else [path])
                    else:
                        files[split].append((path, label))
    if len(classes) == 1:
        raise UserError(f"{folder}: {classes.pop()} is its only class; a classifier needs two or more")
    return Listing(files, tuple(sorted(classes)), _tell(folder, left))


def visible(folder: Path) -> list[Path]:
    """What a folder holds, sorted, without hidden files and those of operating systems."""
    return sorted(path for path in folder.iterdir() if path.name[0] != "." and path.name.lower() not in SYSTEM)


def rgb(path: Path, size: int) -> tuple[np.ndarray, list[str]]:
    """An image as uint8 (3, size, size): upright, on white where it is transparent, resized and cropped to its centre.

    Of 16 bits per channel the upper eight are kept; floats must be in [0, 1]. Also says what was converted. Raises
    UserError.
    """
    with reading(path, "put a sound copy there, as PNG or JPEG"), Image.open(path) as file:
        done = []
        storage = str(file.tile)  # such as "RGB;16B", forgotten when the pixels are read
        if getattr(file, "n_frames", 1) > 1:
            done.append("with several frames (the first is taken)")
        if file.getexif().get(0x0112, 1) != 1:
            done.append("turned upright by EXIF")
        if ";16" in storage or file.mode.startswith("I"):
            done.append("with 16 bits a channel (the upper eight are kept)")
        if file.mode in ("1", "L", "LA", "F") or file.mode.startswith("I"):
            done.append("grey (three equal channels)")
        if file.mode == "CMYK":
            done.append("in CMYK (its colour profile is not applied)")
        if path.is_symlink():
            done.append("through symbolic links (followed)")
        image = ImageOps.exif_transpose(file)
        if image.mode == "F" or image.mode.startswith("I"):
            image = Image.fromarray(_eight_bits(image, path, twelve=";12" in storage, inverted=_white_is_zero(file)))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            if image.getextrema()[3][0] < 255:
                done.append("transparent (put on white)")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BILINEAR)
        return np.asarray(image).transpose(2, 0, 1), done


def counted(kinds: Counter[str]) -> str:
    """`3 transparent (put on white), 1 in CMYK …`, or nothing."""
    return ", ".join(f"{n:,} {kind}" for kind, n in sorted(kinds.items()))


def fingerprint(paths: list[Path]) -> dict[str, Any]:
    """Number, bytes and a hash of names, sizes and times of change of these files and all in these folders; {} if none.

    Follows symbolic links; four folders deep, so that a link to a folder above ends.
    """
    found = []
    for top in paths:
        for path in _walk(top) if top.is_dir() else [top]:
            if path.exists():
                stat = path.stat()
                found.append((os.path.relpath(path, top.parent), stat.st_size, stat.st_mtime_ns))
    digest = sha256(repr(sorted(found)).encode()).hexdigest()
    return {"files": len(found), "bytes": sum(size for _, size, _ in found), "sha256": digest} if found else {}


def _walk(folder: Path, depth: int = 4) -> Iterator[Path]:
    for path in visible(folder):
        if path.is_dir() and depth:
            yield from _walk(path, depth - 1)
        elif path.is_file():
            yield path


def _unfit(path: Path) -> str:
    """Why a file in a class's folder is left out; empty if it is an image."""
    if path.is_dir():
        return "a folder deeper than their class"
    if not path.is_file():
        return "broken symbolic links"
    ending = path.suffix.lower()
    known = Image.registered_extensions().get(ending)
    return "" if known in Image.OPEN and known not in NO_PICTURES else ending or "without an ending"


def _tell(folder: Path, left: dict[str, list[Path]]) -> str:
    """One line on what was left out: how many, why, and the first of each."""
    kinds = [
        f"{len(paths):,} {reason} ({paths[0].relative_to(folder)}{' …' if len(paths) > 1 else ''})"
        for reason, paths in left.items()
        if paths
    ]
    if not kinds:
        return ""
    n = sum(map(len, left.values()))
    return (
        f"left out {n:,} file{'s' * (n > 1)}: {', '.join(kinds)}. To have images among them read, convert them to JPEG or"
        " PNG, correct their ending, or move them into the folder of their class"
    )


def _eight_bits(image: Image.Image, path: Path, *, twelve: bool, inverted: bool) -> np.ndarray:
    """Grey pixels (H, W) of 16 bits, in 16 or 32, or floats in [0, 1], as uint8; Pillow would cut them off at 255."""
    pixels = np.asarray(image)
    low, high = pixels.min(), pixels.max()
    if image.mode == "F":
        if not 0 <= low <= high <= 1:  # nor NaN
            raise UserError(f"{path}: its floats run from {low:g} to {high:g}; scale them to [0, 1], or save 8 bits")
        grey = (pixels * 255).round().astype(np.uint8)
    else:
        if not 0 <= low <= high < 2**16 or (image.mode == "I" and 0 < high < 2**8):
            raise UserError(f"{path}: its 32-bit pixels run from {low} to {high}, not over 16 bits; save 8 or 16 bits")
        grey = (pixels >> (4 if twelve else 8)).astype(np.uint8)
    return 255 - grey if inverted else grey


def _white_is_zero(file: Image.Image) -> bool:
    return file.format == "TIFF" and file.tag_v2.get(262) == 0
