"""Datasets, each read once into uint8 tensors, checked, and split into train, validation and test.

A new kind is one class with a `parts` method, and its name in `DatasetSettings`; or no code at all: kind image-folder.
"""

import hashlib
import inspect
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch.nn import functional as F
from tqdm import tqdm

from companion import paths, records
from companion.datasets import archives, folders
from companion.datasets.downloads import reading, verify
from companion.paths import made, outputs
from robust_features.batches import ImageSet
from robust_features.settings import Count, UserError, settings


@settings
class Source:
    """The settings of every kind. A kind adds `parts`, all its training and test images, their `size` and terms of use.

    `outside` lists what it reads that others may change: not what is downloaded or has a published checksum.
    """

    validation: Count  # images held out of the training images
    train: Count | None = None  # how many of the others; None: all
    test: Count | None = None

    @property
    def available(self) -> tuple[int, int] | None:
        """How many training and test images there are; None where only reading them tells."""
        return None

    @property
    def taught(self) -> int | None:
        """How many images are trained on; None where only reading them tells."""
        return self.train or (self.available and self.available[0] - self.validation)

    def problem(self) -> str:
        """What keeps it from being read as asked; empty if nothing."""
        if not self.available:
            return ""
        train, test = self.available
        if (self.test or 0) > test:
            return f"test: {self.test} images asked for, there are {test}"
        if (self.train or 1) + self.validation > train:
            asked = f"{self.train} for train" if self.train else "at least one for train"
            return f"validation: {self.validation} images asked for and {asked}, there are {train}"
        return ""

    def outside(self) -> list[Path]:
        return []


Parts = tuple[ImageSet, ImageSet]
FIRST = "the first 10,000 images of SVHN's test file: 7,000 for training and validation, 3,000 for testing"
STAND_IN = "nine groups out of Tiny-ImageNet's 200 classes: a stand-in, not the published ImageNet-9"
ORDER = "classes in the order of their names as text (capitals first, 10 before 2), numbered from 0"


@settings
class Digits(Source):
    """8 x 8 digits in scikit-learn, enlarged bilinearly; `test` are held out (Alpaydin and Kaynak 1998; CC BY 4.0)."""

    kind: Literal["digits"] = "digits"
    test: Count = 500
    size: Count = 32

    @property
    def available(self) -> tuple[int, int]:
        return 1_797 - self.test, 1_797

    def parts(self, seed: int) -> Parts:
        from sklearn.datasets import load_digits

        found = load_digits()
        grey = torch.from_numpy(found.images)[:, None] * 255 / 16
        images = F.interpolate(grey, size=(self.size, self.size), mode="bilinear").round().byte().expand(-1, 3, -1, -1)
        return draw(_labelled("digits", images, found.target, "0123456789"), self.test, seed)[::-1]  # the test is drawn


@settings
class Cifar(Source):
    """32 x 32 photographs of 10 or 100 classes (Krizhevsky 2009, which users are asked to cite)."""

    kind: Literal["cifar10", "cifar100"]
    size: ClassVar = 32
    available: ClassVar = 50_000, 10_000

    def parts(self, seed: int) -> Parts:
        from torchvision.datasets import CIFAR10, CIFAR100

        known = CIFAR10 if self.kind == "cifar10" else CIFAR100
        folder = archives.locate(known.base_folder, known.url, known.tgz_md5)
        ours = folder.is_relative_to(paths.DATA)
        remedy = f"delete {folder} to have it downloaded again" if ours else archives.REPLACE
        for name, md5 in (*known.train_list, *known.test_list, (known.meta["filename"], known.meta["md5"])):
            verify(folder / name, remedy, md5=md5)
        both = known(folder.parent, train=True), known(folder.parent, train=False)
        return tuple(_labelled(folder, part.data.transpose(0, 3, 1, 2), part.targets, part.classes) for part in both)


@settings
class Svhn(Source):
    """32 x 32 house numbers, or 7,000 and 3,000 of its test images (Netzer et al. 2011; non-commercial use only)."""

    kind: Literal["svhn", "svhn-first-10000"]
    size: ClassVar = 32

    @property
    def available(self) -> tuple[int, int]:
        return (73_257, 26_032) if self.kind == "svhn" else (7_000, 3_000)

    def outside(self) -> list[Path]:
        return [archives.locate("svhn-first-10000.npz")] if self.kind == "svhn-first-10000" else []

    def parts(self, seed: int) -> Parts:
        if self.kind == "svhn":
            return self.archive("train"), self.archive("test")
        if (path := archives.locate("svhn-first-10000.npz")).exists():
            with reading(path), np.load(path) as arrays:
                images, labels = arrays["images"].transpose(0, 3, 1, 2), arrays["labels"]
            first = _labelled(path, images, labels, "0123456789")
        else:
            first = self.archive("test")
        if len(first) < 10_000:
            raise UserError(f"{first.name}: more images are needed, SVHN's first 10,000; it holds {len(first):,}")
        first = replace(first, notes=(FIRST,))
        return first.take(slice(7_000)), first.take(slice(7_000, 10_000))

    def archive(self, split: str) -> ImageSet:
        from torchvision.datasets import SVHN

        url, name, md5 = SVHN.split_list[split]
        found = SVHN(archives.locate(name, url, md5).parent, split=split)
        return _labelled(name, found.data, found.labels, "0123456789")


@settings
class TinyImageNet(Source):
    """64 x 64, 200 classes of ImageNet, tested on its validation set (Le and Yang 2015; non-commercial use only)."""

    kind: Literal["tiny-imagenet"] = "tiny-imagenet"
    size: ClassVar = 64
    available: ClassVar = 100_000, 10_000

    def outside(self) -> list[Path]:
        return archives.outside("tiny-imagenet-200")

    def parts(self, seed: int) -> Parts:
        folder = archives.locate("tiny-imagenet-200", *archives.TINY)
        train, test, classes = archives.tiny(folder)
        return _decoded(folder, train, test, classes, size=64, notes=[archives.share_of_tiny(train)])


@settings
class ImageNet9(Source):
    """64 x 64, nine unbalanced groups of ImageNet's animals (Chrabaszcz et al. 2017; non-commercial use only)."""

    kind: Literal["imagenet9"] = "imagenet9"
    size: ClassVar = 64
    source: Literal["downsampled", "tiny-imagenet"]  # the second stands in if the first is not at hand

    def outside(self) -> list[Path]:
        given = self.source == "downsampled"
        return [archives.locate("Imagenet64")] if given else archives.outside("tiny-imagenet-200")

    def parts(self, seed: int) -> Parts:
        if self.source == "downsampled":
            folder = archives.locate("Imagenet64")
            return tuple(_labelled(folder, *arrays, archives.NINE) for arrays in archives.downsampled_nine(folder))
        folder = archives.locate("tiny-imagenet-200", *archives.TINY)
        train, test, classes = archives.nine_of_tiny(folder)
        return _decoded(folder, train, test, classes, size=64, notes=[archives.share_of_tiny(train), STAND_IN])


@settings
class ImageFolder(Source):
    """Your own images: `path`/train/CLASS/* and `path`/test/CLASS/*, resized and centre-cropped to `size`.

    Classes are in the order of their names. Transparent images are put on white; of 16 bits per channel the upper eight
    are kept, of several frames the first. What is left out (other formats, deeper folders) is reported and noted in the
    card.
    """

    kind: Literal["image-folder"] = "image-folder"
    path: str  # absolute, or from the project's folder
    size: Count

    @property
    def folder(self) -> Path:
        return paths.ROOT / Path(self.path).expanduser()

    @property
    def available(self) -> tuple[int, int]:  # at most: files that are not images are counted too
        return tuple(sum(1 for _ in self.folder.glob(f"{split}/*/*")) for split in ("train", "test"))

    def problem(self) -> str:
        """What keeps it from being read as asked; empty if nothing."""
        absent = [split for split in ("train", "test") if not (self.folder / split).is_dir()]
        wanted = "; it needs train/<class>/* and test/<class>/*"
        return f"path: no folder {self.folder / absent[0]}{wanted}" if absent else Source.problem(self)

    def outside(self) -> list[Path]:
        return [self.folder]

    def parts(self, seed: int) -> Parts:
        found = folders.list_images(self.folder)
        label = {name: i for i, name in enumerate(found.classes)}
        train, test = ([(path, label[name]) for path, name in files] for files in found.files.values())
        return _decoded(self.folder, train, test, found.classes, size=self.size, left_out=found.left_out, notes=[ORDER])


DatasetSettings = Annotated[Digits | Cifar | Svhn | TinyImageNet | ImageNet9 | ImageFolder, Field(discriminator="kind")]


def read(settings: Source, *, seed: int) -> dict[str, ImageSet]:
    """The splits train, validation and test; `seed` chooses and shuffles their images."""
    train, test = settings.parts(seed)
    validation, train = draw(train, settings.validation, seed)
    train, _ = draw(train, settings.train, seed)
    test, _ = draw(test, settings.test, seed)
    splits = ("train", train), ("validation", validation), ("test", test)
    return {split: replace(images, name=f"{settings.kind}/{split}") for split, images in splits}


def fingerprint(settings: Source) -> dict[str, Any]:
    """Number, bytes and a hash of the names, sizes and times of the files that `settings.outside` lists; {} if none.

    A stage that reads the dataset depends on it, so that a change is noticed.
    """
    return folders.fingerprint(settings.outside())


def draw(pool: ImageSet, n: int | None, seed: int) -> tuple[ImageSet, ImageSet]:
    """`n` random images (None: all), each class in proportion, and the others; the draw of fewer is its beginning."""
    n = len(pool) if n is None else n
    if not 0 < n <= len(pool):
        raise UserError(f"{pool.name}: {n or 'more'} images asked for, {len(pool)} left; lower train, validation, test")
    order = np.random.RandomState(seed).permutation(len(pool))  # NumPy promises never to change this stream
    labels = pool.labels.numpy()[order]
    quantile = np.empty(len(pool))  # within the class of each; drawing the lowest is Sainte-Laguë's apportionment
    for label in np.unique(labels):
        members = labels == label
        quantile[members] = (np.arange(members.sum()) + 0.5) / members.sum()
    order = torch.from_numpy(order[np.argsort(quantile, kind="stable")])
    return pool.take(order[:n]), pool.take(order[n:])


def save(id: str, splits: dict[str, ImageSet], settings: Any, **more: Any) -> None:
    """Write each split as a record of its own, data/datasets/<id>/<split>/; `more`, such as a seed, joins its card."""
    card = {"settings": asdict(settings), "about": inspect.cleandoc(settings.__doc__), **more}
    for split, part in splits.items():
        counts = torch.bincount(part.labels, minlength=len(part.classes)).tolist()
        card |= {"size": len(part), "classes": part.classes, "counts": counts}
        if part.notes:
            card["notes"] = part.notes
        card["images_sha256"] = hashlib.sha256(part.images.contiguous().numpy()).hexdigest()
        records.save(outputs() / "datasets" / id / split, {"images": part.images, "labels": part.labels}, card)


def load(id: str, split: str) -> ImageSet:
    """One split of a dataset, read or constructed. Raises UserError if it is missing or damaged."""
    record = records.load(folder(id) / split)
    images, labels = record.tensors["images"], record.tensors["labels"]
    return ImageSet(images, labels, tuple(record.card["classes"]), f"{id}/{split}")


def folder(id: str) -> Path:
    """A dataset's folder: data/constructed/<id> if a network made it (its id has slashes), else data/datasets/<id>."""
    return made(f"{'constructed' if '/' in id else 'datasets'}/{id}")


def _labelled(name: object, images: Any, labels: Any, classes: Iterable[str]) -> ImageSet:
    images = torch.as_tensor(np.ascontiguousarray(images))
    return ImageSet(images, torch.as_tensor(labels, dtype=torch.int64), tuple(classes), str(name))


def _decoded(
    folder: Path,
    train: archives.Files,
    test: archives.Files,
    classes: Sequence[str],
    *,
    size: int,
    notes: list[str],
    left_out: str = "",
) -> Parts:
    """Decode image files as `folders.rgb` does; what was left out or converted joins the notes."""
    problems = []
    for split, files in (("training", train), ("test", test)):
        missing = sorted(set(range(len(classes))).difference(label for _, label in files))
        if missing or not files:
            named = ", ".join(classes[label] for label in missing) or "any class"
            problems.append(f"{folder}: no {split} images of {named}; every class needs them")
    if problems:
        raise UserError("\n".join([*problems, left_out]).strip())
    if left_out:
        notes = [*notes, left_out]
        print(f"{folder}: {left_out}", file=sys.stderr)
    parts, done = [], Counter()
    for files in (train, test):
        images = np.empty((len(files), 3, size, size), np.uint8)
        for image, (path, _) in zip(images, tqdm(files, desc=folder.name, disable=None), strict=True):
            image[:], converted = folders.rgb(path, size)
            done.update(converted)
        parts.append(_labelled(folder, images, [label for _, label in files], classes))
    if done:
        notes = [*notes, f"as read: {folders.counted(done)}"]
    return tuple(replace(part, notes=tuple(notes)) for part in parts)
