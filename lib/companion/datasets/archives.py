"""Datasets as authors publish them: where they are, and ImageNet's derivatives, which torchvision does not read."""

import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from companion import paths
from companion.datasets.downloads import download, extract, reading, verify
from robust_features.settings import UserError

Files = list[tuple[Path, int]]  # an image and its label
Arrays = tuple[np.ndarray, np.ndarray]  # uint8 images (N, 3, 64, 64), and a label (N,) for each

ELSEWHERE = "ROBUST_FEATURES_DATA"  # names a folder where datasets may be, packed or not; nothing is written there
REPLACE = f"put a sound copy there, or take it out of the folder that {ELSEWHERE} names"
TINY = "http://cs231n.stanford.edu/tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de"  # its MD5
NINE = {  # positions in the sorted list of ImageNet's 1,000 WNIDs (Springer et al. 2021, Sec. 2.1)
    "dog": range(151, 269), "cat": range(281, 286), "frog": range(30, 33), "turtle": range(33, 38),
    "bird": range(80, 101), "primate": range(365, 383), "fish": range(389, 398), "crab": range(118, 122),
    "insect": range(300, 320),
}  # fmt: skip
NINE_OF_TINY = {  # a stand-in from Tiny-ImageNet's 200 classes
    "dog": "n02085620 n02094433 n02099601 n02099712 n02106662 n02113799", "cat": "n02123045 n02123394 n02124075",
    "amphibian": "n01641577 n01644900 n01629819", "reptile": "n01698640 n01742172",
    "bird": "n01855672 n02002724 n02056570 n02058221", "primate": "n02480495 n02481823 n02486410",
    "fish": "n01443537", "crustacean": "n01983481 n01984695",
    "insect": "n02165456 n02190166 n02206856 n02226429 n02231487 n02233338 n02236044 n02268443 n02279972 n02281406",
}  # fmt: skip


def elsewhere() -> Path | None:
    """The folder that ROBUST_FEATURES_DATA names: absolute, from the home folder (~), or from the project's folder."""
    named = os.environ.get(ELSEWHERE)
    return paths.ROOT / Path(named).expanduser() if named else None


def outside(name: str, url: str = "") -> list[Path]:
    """`name`, or else the archive that `url` ends in, in the folder ROBUST_FEATURES_DATA; [] if neither is there."""
    folder = elsewhere()
    found = [folder / each for each in (name, url.rpartition("/")[2]) if each] if folder else []
    return [path for path in found if path.exists()][:1]


def locate(name: str, url: str = "", md5: str = "") -> Path:
    """`name` in the folder ROBUST_FEATURES_DATA, or else in data/downloads.

    If it is in neither, it is unpacked to data/downloads from the archive that `url` ends in, which lies in one of the
    two or is downloaded. Files are checked against `md5`, folders are not.
    """
    ours, archive = paths.DATA / "downloads" / name, url.rpartition("/")[2]
    path, *_ = *outside(name), ours
    if not url or path.is_dir():
        return path
    if theirs := outside(name, url):
        packed = theirs[0]
        verify(packed, REPLACE, md5=md5)
    else:
        packed = ours.with_name(archive)
        if elsewhere() and not packed.exists():
            said = f"{name} is not in {ELSEWHERE}: downloading it to data/downloads (looked in {elsewhere()})"
            print(said, file=sys.stderr)
        download(url, packed, md5=md5)  # a file that is there is only checked
    return packed if archive == name else extract(packed, ours)


def share_of_tiny(train: Files) -> str:
    """How many training images per class there are, of the 500 published."""
    counts = Counter(path.parts[-3] for path, _ in train).values() or [0]
    low, high, share = min(counts), max(counts), sum(counts) / (500 * len(counts))
    part = {1: "the whole", 0.5: "half of the"}.get(share, f"{share:.0%} of the")
    return f"{low if low == high else f'{low} to {high}'} training images a class of Tiny-ImageNet: {part} training set"


def tiny(folder: Path) -> tuple[Files, Files, tuple[str, ...]]:
    """The training images that are there, the validation images, which serve as test images, and the classes."""
    train, test = _tiny(folder)
    wnids = sorted({wnid for _, wnid in train + test})
    with reading(folder / "words.txt") as path:
        words = dict(line.split("\t") for line in path.read_text().splitlines())
        classes = tuple(words[wnid].split(",")[0] for wnid in wnids)
    label = {wnid: i for i, wnid in enumerate(wnids)}
    return [(path, label[wnid]) for path, wnid in train], [(path, label[wnid]) for path, wnid in test], classes


def nine_of_tiny(folder: Path) -> tuple[Files, Files, tuple[str, ...]]:
    """The same for the nine groups in NINE_OF_TINY."""
    label = {wnid: i for i, wnids in enumerate(NINE_OF_TINY.values()) for wnid in wnids.split()}
    train, test = ([(path, label[wnid]) for path, wnid in part if wnid in label] for part in _tiny(folder))
    return train, test, tuple(NINE_OF_TINY)


def downsampled_nine(folder: Path) -> tuple[Arrays, Arrays]:
    """The training and validation images of the nine groups.

    The batches number the classes as map_clsloc.txt does, not in the order of the WNIDs. They are pickles, which can
    run code, without a published checksum: only read what you downloaded yourself.
    """
    batches = [f"train_data_batch_{i}" for i in range(1, 11)]
    if missing := [name for name in ("map_clsloc.txt", *batches, "val_data") if not (folder / name).exists()]:
        raise UserError(
            f"{folder}: no {', '.join(missing)}. Log in to image-net.org, get Imagenet64_train_part1.zip,"
            " Imagenet64_train_part2.zip, Imagenet64_val.zip and, from the ILSVRC development kit, map_clsloc.txt;"
            f" unpack all into that folder, or into Imagenet64/ in the folder that {ELSEWHERE} names"
        )
    with reading(folder / "map_clsloc.txt") as path:
        rows = sorted(line.split()[:2] for line in path.read_text().splitlines())  # n02119789 1 kit_fox
        if len(rows) != 1_000:
            raise ValueError(f"{len(rows)} lines instead of 1,000")
        numbers = np.array([int(number) for _, number in rows])
        group = np.full(1_001, -1)
        for label, positions in enumerate(NINE.values()):
            group[numbers[list(positions)]] = label
    train = [_members(folder / name, group) for name in batches]
    images, labels = (np.concatenate(arrays) for arrays in zip(*train, strict=True))
    return (images, labels), _members(folder / "val_data", group)


def _tiny(folder: Path) -> tuple[list[tuple[Path, str]], list[tuple[Path, str]]]:
    """Every training and validation image, and its WNID."""
    train = [(path, path.parts[-3]) for path in sorted(folder.glob("train/*/images/*.JPEG"))]
    with reading(folder / "val" / "val_annotations.txt") as path:
        rows = [line.split("\t")[:2] for line in path.read_text().splitlines()]
        return train, [(folder / "val" / "images" / name, wnid) for name, wnid in rows]


def _members(path: Path, group: np.ndarray) -> Arrays:
    with reading(path):
        batch = np.load(path, allow_pickle=True)
        labels = group[batch["labels"]]
        return batch["data"][labels >= 0].reshape(-1, 3, 64, 64), labels[labels >= 0]
