import functools
import hashlib
import json
import os
import pickle
import re
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from servers import nowhere, serve
from test_downloads import packed

from companion import datasets, paths
from companion.datasets import (
    Cifar,
    Digits,
    ImageFolder,
    ImageNet9,
    ImageSet,
    Svhn,
    TinyImageNet,
    archives,
    downloads,
    draw,
    read,
)
from robust_features.settings import UserError

pytestmark = pytest.mark.skipif(
    not hasattr(tarfile, "data_filter"), reason="unpacking safely needs Python 3.11.4 or newer"
)

REAL = os.environ.get(archives.ELSEWHERE, "")


@pytest.fixture(autouse=True)
def nothing_elsewhere(data, monkeypatch):
    monkeypatch.delenv(archives.ELSEWHERE, raising=False)
    monkeypatch.setattr(archives, "download", functools.partial(downloads.download, waits=()))


# Choosing


def numbered(labels):
    """Images whose pixels are their number."""
    images = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    return ImageSet(images, torch.tensor(labels), tuple("abc"), "numbered")


def numbers(images):
    return images.images[:, 0, 0, 0].tolist()


def test_a_draw_is_stratified_and_leaves_the_others():
    pool = numbered([0] * 100 + [1] * 50 + [2] * 50)
    drawn, others = draw(pool, 41, seed=0)
    assert torch.bincount(drawn.labels).tolist() in ([20, 10, 11], [20, 11, 10], [21, 10, 10])
    assert sorted(numbers(drawn) + numbers(others)) == list(range(200))
    assert all(pool.labels[i] == label for i, label in zip(numbers(drawn), drawn.labels, strict=True))


def test_a_draw_depends_on_its_seed_and_begins_with_the_draw_of_fewer():
    pool = numbered([0, 1, 2] * 30)
    assert numbers(draw(pool, 20, seed=3)[0]) == numbers(draw(pool, 20, seed=3)[0])
    assert numbers(draw(pool, 20, seed=3)[0]) != numbers(draw(pool, 20, seed=4)[0])
    assert numbers(draw(pool, 20, seed=3)[0]) == numbers(draw(pool, 50, seed=3)[0])[:20]


@pytest.mark.parametrize("n", [0, 4])
def test_more_images_than_there_are_cannot_be_drawn(n):
    with pytest.raises(UserError, match="numbered: .* images asked for, 3 left"):
        draw(numbered([0, 1, 2]), n, seed=0)


# Records


@pytest.mark.parametrize(
    "images, labels, message",
    [
        (torch.zeros(2, 3, 4, 4), torch.zeros(2).long(), r"images must be uint8 .* found torch.float32 \(2, 3, 4, 4\)"),
        (torch.zeros(2, 1, 4, 4).byte(), torch.zeros(2).long(), r"images must be uint8 .* found .* \(2, 1, 4, 4\)"),
        (torch.zeros(2, 3, 4, 4).byte(), torch.zeros(3).long(), r"labels must be int64 \(2,\), found .* \(3,\)"),
        (torch.zeros(2, 3, 4, 4).byte(), torch.tensor([0, 2]), "labels must be 0 to 1, found 0 to 2"),
    ],
)
def test_images_and_labels_that_disagree_are_refused(images, labels, message):
    with pytest.raises(UserError, match=f"mine: {message}"):
        ImageSet(images, labels, ("a", "b"), "mine")


def test_a_split_is_saved_and_loaded_without_the_others(data):
    splits = {"train": numbered([0, 0, 1, 2]), "test": numbered([2, 1])}
    datasets.save("toy", splits, Digits(validation=9))
    (data / "datasets" / "toy" / "train" / "tensors.safetensors").write_bytes(b"damaged")
    test = datasets.load("toy", "test")
    assert torch.equal(test.images, splits["test"].images) and test.labels.tolist() == [2, 1]
    assert (test.classes, test.name) == (("a", "b", "c"), "toy/test")
    with pytest.raises(UserError, match="toy"):
        datasets.load("toy", "train")


def test_a_dataset_tried_by_hand_leaves_the_pipelines_alone(data, monkeypatch):
    datasets.save("toy", {"test": numbered([0, 1])}, Digits(validation=9))
    monkeypatch.delenv(paths.PAGE)
    assert datasets.load("toy", "test").labels.tolist() == [0, 1], "which is read where there is no other"
    datasets.save("toy", {"test": numbered([2, 2])}, Digits(validation=9))
    assert datasets.load("toy", "test").labels.tolist() == [2, 2]
    monkeypatch.setenv(paths.PAGE, "a page's folder")
    assert datasets.load("toy", "test").labels.tolist() == [0, 1]


def test_the_card_counts_the_classes_and_fingerprints_the_images(data):
    datasets.save("toy", {"train": numbered([0, 0, 2])}, Digits(validation=9), seed=7)
    card = json.loads((data / "datasets" / "toy" / "train" / "card.json").read_text())
    assert (card["size"], card["classes"], card["counts"]) == (3, ["a", "b", "c"], [2, 0, 1])
    assert (card["settings"]["validation"], card["seed"]) == (9, 7) and "CC BY 4.0" in card["about"]
    assert card["images_sha256"] == hashlib.sha256(bytes([0] * 12 + [1] * 12 + [2] * 12)).hexdigest()


# Settings


@pytest.mark.parametrize(
    "entry",
    [
        {"kind": "cifar10", "validation": 0},
        {"kind": "cifar10", "validation": 10, "size": 3},
        {"kind": "mnist", "validation": 10},
        {"kind": "imagenet9", "validation": 10},
        {"kind": "digits"},
    ],
)
def test_a_wrong_entry_is_refused(entry):
    with pytest.raises(ValidationError):
        TypeAdapter(datasets.DatasetSettings).validate_python(entry)


# Digits


def test_the_digits_are_split_evenly_and_without_overlap():
    splits = read(Digits(validation=297), seed=0)
    assert {split: len(images) for split, images in splits.items()} == {"train": 1000, "validation": 297, "test": 500}
    for images in splits.values():
        share = torch.bincount(images.labels) / len(images)
        assert (share - 0.1).abs().max() < 0.01
    together = torch.cat([images.images for images in splits.values()]).flatten(1)
    assert len(together.unique(dim=0)) == 1797  # the digits are all different


def test_the_digits_are_enlarged_within_the_range_of_pixels_and_grey():
    from sklearn.datasets import load_digits

    images = torch.cat([images.images for images in read(Digits(validation=1, size=8), seed=0).values()])
    expected = torch.from_numpy(load_digits().images * 255 / 16).round().byte()
    assert torch.equal(images[:, 0].flatten(1).unique(dim=0), expected.flatten(1).unique(dim=0))
    assert torch.equal(images[:, 0], images[:, 2]) and images.max() == 255
    assert read(Digits(validation=1), seed=0)["test"].images.shape == (500, 3, 32, 32)


def test_one_seed_gives_one_split_and_torchvision_is_not_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    first, again, other = (read(Digits(validation=50, train=100, test=40), seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[split].images, again[split].images) for split in first)
    assert not torch.equal(first["test"].images, other["test"].images)
    assert [len(images) for images in first.values()] == [100, 50, 40]


def test_more_digits_than_there_are_is_an_error():
    with pytest.raises(UserError, match="digits: 1300 images asked for, 1297 left"):
        read(Digits(validation=1300), seed=0)


# CIFAR


@pytest.fixture(params=["cifar10", "cifar100"])
def cifar(request, monkeypatch, tmp_path):
    """(kind, torchvision's class, archive): CIFAR in its own layout with a few images and the checksums of these."""
    from torchvision.datasets import CIFAR10, CIFAR100

    known, key, classes = (CIFAR10, "labels", 10) if request.param == "cifar10" else (CIFAR100, "fine_labels", 100)
    random = np.random.default_rng(0)
    files = {known.meta["filename"]: pickle.dumps({known.meta["key"]: [f"class {i}" for i in range(classes)]})}
    for name, _ in known.train_list + known.test_list:
        batch = {"data": random.integers(256, size=(2 * classes, 3072), dtype=np.uint8), key: [*range(classes)] * 2}
        files[name] = pickle.dumps(batch)
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(known, "train_list", [[name, md5[name]] for name, _ in known.train_list])
    monkeypatch.setattr(known, "test_list", [[name, md5[name]] for name, _ in known.test_list])
    monkeypatch.setattr(known, "meta", {**known.meta, "md5": md5[known.meta["filename"]]})
    archive = packed(
        tmp_path / known.filename, {f"{known.base_folder}/{name}": content for name, content in files.items()}
    ).read_bytes()
    monkeypatch.setattr(known, "tgz_md5", hashlib.md5(archive).hexdigest())
    return request.param, known, archive


def test_cifar_is_downloaded_once_and_read_as_it_is(cifar, data, monkeypatch):
    kind, known, archive = cifar
    with serve({known.filename: archive}) as server:
        monkeypatch.setattr(known, "url", f"{server.url}/{known.filename}")
        first, again = (read(Cifar(kind=kind, validation=10), seed=0) for _ in range(2))
    assert len(server.requests) == 1 and torch.equal(first["train"].images, again["train"].images)
    batch = pickle.loads((data / "downloads" / known.base_folder / known.test_list[0][0]).read_bytes())
    pixels = batch["data"].reshape(-1, 3, 32, 32)
    assert {x.numpy().tobytes() for x in first["test"].images} == {x.tobytes() for x in pixels}
    assert first["train"].classes[1] == "class 1" and first["train"].name == f"{kind}/train"


def test_a_cifar_file_with_another_checksum_is_named(cifar, data, monkeypatch):
    kind, known, archive = cifar
    name = known.train_list[0][0]
    with serve({known.filename: archive}) as server:
        monkeypatch.setattr(known, "url", f"{server.url}/{known.filename}")
        read(Cifar(kind=kind, validation=10), seed=0)
    (data / "downloads" / known.base_folder / name).write_bytes(b"damaged")
    with pytest.raises(UserError, match=f"{name}: md5 is .* expected .*; delete .*{known.base_folder} to have"):
        read(Cifar(kind=kind, validation=10), seed=0)


def test_data_that_lies_elsewhere_is_read_there_and_nothing_is_written(cifar, data, monkeypatch, tmp_path):
    kind, known, archive = cifar
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / known.filename).write_bytes(archive)
    downloads.extract(tmp_path / known.filename, elsewhere / known.base_folder)
    before = {path: path.stat().st_mtime_ns for path in [elsewhere, *elsewhere.rglob("*")]}
    monkeypatch.setenv(archives.ELSEWHERE, str(elsewhere))
    monkeypatch.setattr(known, "url", nowhere())
    read(Cifar(kind=kind, validation=10), seed=0)
    assert {path: path.stat().st_mtime_ns for path in [elsewhere, *elsewhere.rglob("*")]} == before
    assert not data.exists()


def test_data_that_is_not_elsewhere_is_downloaded_and_this_is_said(cifar, data, monkeypatch, tmp_path, capsys):
    kind, known, archive = cifar
    monkeypatch.setenv(archives.ELSEWHERE, str(tmp_path / "elsewhere"))
    with serve({known.filename: archive}) as server:
        monkeypatch.setattr(known, "url", f"{server.url}/{known.filename}")
        read(Cifar(kind=kind, validation=10), seed=0)
    said = f"{known.base_folder} is not in ROBUST_FEATURES_DATA: downloading it to data/downloads"
    assert said in capsys.readouterr().err
    assert not (tmp_path / "elsewhere").exists()


def test_without_a_network_the_error_says_where_to_put_the_archive(cifar, data, monkeypatch):
    kind, known, _ = cifar
    monkeypatch.setattr(known, "url", f"{nowhere()}/{known.filename}")
    with pytest.raises(UserError, match=f"{data}/downloads/{known.filename}"):
        read(Cifar(kind=kind, validation=10), seed=0)


@pytest.fixture
def lying(cifar, monkeypatch, tmp_path):
    """CIFAR's archive in the folder ROBUST_FEATURES_DATA, without a network."""
    kind, known, archive = cifar
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / known.filename).write_bytes(archive)
    monkeypatch.setenv(archives.ELSEWHERE, str(tmp_path / "elsewhere"))
    monkeypatch.setattr(known, "url", f"{nowhere()}/{known.filename}")
    return Cifar(kind=kind, validation=10), tmp_path / "elsewhere" / known.filename


def test_an_archive_that_lies_elsewhere_is_unpacked_to_downloads(lying, data):
    settings, archive = lying
    before = archive.parent.stat().st_mtime_ns
    assert len(read(settings, seed=0)["validation"]) == 10
    assert [path.name for path in archive.parent.iterdir()] == [archive.name]
    assert archive.parent.stat().st_mtime_ns == before
    assert [path.is_dir() for path in (data / "downloads").iterdir()] == [True]
    read(settings, seed=0)


def test_a_truncated_archive_elsewhere_is_named_and_left_alone(lying, data):
    settings, archive = lying
    archive.write_bytes(archive.read_bytes()[:-100])
    with pytest.raises(UserError, match=f"{archive}: md5 is .* expected .*; put a sound copy there, or take it out"):
        read(settings, seed=0)
    assert archive.exists() and not data.exists()


def test_a_damaged_file_elsewhere_is_not_ours_to_delete(cifar, lying):
    settings, archive = lying
    folder = downloads.extract(archive, archive.with_name(cifar[1].base_folder))
    name = cifar[1].test_list[0][0]
    (folder / name).write_bytes(b"damaged")
    with pytest.raises(UserError, match=f"{folder / name}: md5 is .*; put a sound copy there, or take it out"):
        read(settings, seed=0)


@pytest.mark.parametrize("named", ["elsewhere", "~/elsewhere"])
def test_a_relative_folder_is_sought_in_the_project_and_a_tilde_at_home(lying, monkeypatch, tmp_path, named):
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(archives.ELSEWHERE, named)
    assert len(read(lying[0], seed=0)["validation"]) == 10


# Whether what others may change has changed


@pytest.mark.parametrize("name", ["svhn-first-10000.npz", "tiny-imagenet-200/words.txt", "Imagenet64/val_data"])
def test_what_lies_elsewhere_without_a_checksum_has_a_fingerprint(tmp_path, monkeypatch, name):
    kinds = Svhn(kind="svhn-first-10000", validation=1), TinyImageNet(validation=1)
    kinds += tuple(ImageNet9(source=source, validation=1) for source in ("downsampled", "tiny-imagenet"))
    monkeypatch.setenv(archives.ELSEWHERE, str(tmp_path))
    assert [datasets.fingerprint(kind) for kind in kinds] == [{}] * 4
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"12345")
    before = [datasets.fingerprint(kind) for kind in kinds]
    assert {(each["files"], each["bytes"]) for each in before if each} == {(1, 5)}
    (tmp_path / name).write_bytes(b"54321")
    os.utime(tmp_path / name, ns=(0, 0))  # file systems' clocks may be slower than this test
    assert [datasets.fingerprint(kind) == each for kind, each in zip(kinds, before, strict=True)] == [
        not x for x in before
    ]


def test_what_ships_or_has_a_published_checksum_has_none(tmp_path, monkeypatch):
    monkeypatch.setenv(archives.ELSEWHERE, str(tmp_path / "elsewhere"))
    names = "cifar-10-batches-py/data_batch_1", "cifar-10-python.tar.gz", "train_32x32.mat", "test_32x32.mat"
    for place in (tmp_path / "elsewhere" / name for name in (*names, "svhn-first-10000.npz")):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"12345")
    kinds = Digits(validation=1), Cifar(kind="cifar10", validation=1), Svhn(kind="svhn", validation=1)
    assert [datasets.fingerprint(kind) for kind in kinds] == [{}] * 3


# SVHN


@pytest.fixture
def svhn(monkeypatch):
    """SVHN's two archives with a few images, served; the digit 0 is labelled 10 there."""
    from io import BytesIO

    from scipy.io import savemat
    from torchvision.datasets import SVHN

    files, listed = {}, {}
    with serve(files) as server:
        for split, n in (("train", 30), ("test", 20)):
            buffer, name = BytesIO(), f"{split}_32x32.mat"
            images = np.random.default_rng(n).integers(256, size=(32, 32, 3, n), dtype=np.uint8)
            savemat(buffer, {"X": images, "y": np.arange(n, dtype=np.uint8)[:, None] % 10 + 1})
            files[name] = buffer.getvalue()
            listed[split] = [f"{server.url}/{name}", name, hashlib.md5(files[name]).hexdigest()]
        monkeypatch.setattr(SVHN, "split_list", listed)
        yield server


def test_svhn_is_downloaded_and_zero_is_zero(svhn, data):
    splits = read(Svhn(kind="svhn", validation=10), seed=0)
    assert [len(images) for images in splits.values()] == [20, 10, 20] and len(svhn.requests) == 2
    assert torch.bincount(splits["test"].labels).tolist() == [2] * 10
    tenth = np.random.default_rng(20).integers(256, size=(32, 32, 3, 20), dtype=np.uint8)[..., 9].transpose(2, 0, 1)
    assert splits["test"].labels[(splits["test"].images == torch.from_numpy(tenth)).flatten(1).all(1)].tolist() == [0]


def test_a_corrupted_svhn_file_is_named(svhn, data):
    read(Svhn(kind="svhn", validation=10), seed=0)
    (data / "downloads" / "test_32x32.mat").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"test_32x32\.mat: md5 is .* expected .*; delete it and run"):
        read(Svhn(kind="svhn", validation=10), seed=0)


def test_the_first_10000_of_svhn_are_split_in_order(data, tmp_path, monkeypatch):
    number = np.arange(10_000)
    images = np.stack([number % 256, number // 256, number * 0], axis=1).astype(np.uint8)[:, None, None, :]
    np.savez(tmp_path / "svhn-first-10000.npz", images=images, labels=number % 10)
    monkeypatch.setenv(archives.ELSEWHERE, str(tmp_path))
    splits = read(Svhn(kind="svhn-first-10000", validation=1000), seed=0)
    assert [len(images) for images in splits.values()] == [6000, 1000, 3000]
    for images, low, high in ((splits["train"], 0, 7000), (splits["validation"], 0, 7000), (splits["test"], 7000, 1e4)):
        found = images.images[:, 0, 0, 0].long() + 256 * images.images[:, 1, 0, 0].long()
        assert images.notes == (datasets.FIRST,) and "7,000" in datasets.FIRST and "3,000" in datasets.FIRST
        assert low <= found.min() and found.max() < high and torch.equal(found % 10, images.labels)


def test_without_the_npz_file_the_first_10000_are_those_of_the_archive(svhn, monkeypatch):
    with pytest.raises(UserError, match=r"test_32x32\.mat: more images are needed, SVHN's first 10,000; it holds 20"):
        read(Svhn(kind="svhn-first-10000", validation=10), seed=0)


# Tiny-ImageNet


WORDS = {"n01443537": "goldfish, Carassius auratus", "n02123045": "tabby, tabby cat", "n07875152": "potpie"}


def jpeg(path, seed, mode="RGB", size=(64, 64)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(256, size=(*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


@pytest.fixture
def tiny(data):
    """Tiny-ImageNet in its own layout: three classes with three training and two validation images each."""
    folder = data / "downloads" / "tiny-imagenet-200"
    annotations = []
    for i, wnid in enumerate(WORDS):
        for k in range(3):
            jpeg(folder / "train" / wnid / "images" / f"{wnid}_{k}.JPEG", 10 * i + k, "L" if k == 0 else "RGB")
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text("")
    for k in range(6):
        jpeg(folder / "val" / "images" / f"val_{k}.JPEG", 100 + k)
        annotations.append(f"val_{k}.JPEG\t{list(WORDS)[k % 3]}\t0\t32\t44\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(annotations))
    (folder / "words.txt").write_text("".join(f"{wnid}\t{words}\n" for wnid, words in [*WORDS.items(), ("n0", "x")]))
    return folder


def test_tiny_imagenet_is_downloaded_and_decoded(tiny, tmp_path, monkeypatch):
    moved = tiny.rename(tmp_path / "tiny-imagenet-200")
    with zipfile.ZipFile(tmp_path / "tiny.zip", "w") as file:
        for path in moved.rglob("*"):
            file.write(path, path.relative_to(tmp_path))
    content = (tmp_path / "tiny.zip").read_bytes()
    with serve({"tiny-imagenet-200.zip": content}) as server:
        published = f"{server.url}/tiny-imagenet-200.zip", hashlib.md5(content).hexdigest()
        monkeypatch.setattr(archives, "TINY", published)
        splits = read(TinyImageNet(validation=3), seed=0)
    assert [len(images) for images in splits.values()] == [6, 3, 6]
    assert splits["test"].classes == ("goldfish", "tabby", "potpie")
    assert torch.bincount(splits["validation"].labels).tolist() == [1, 1, 1]


def test_tiny_imagenet_keeps_every_pixel_and_each_label(tiny):
    test = read(TinyImageNet(validation=3), seed=0)["test"]
    for k in range(6):
        with Image.open(tiny / "val" / "images" / f"val_{k}.JPEG") as file:
            expected = torch.from_numpy(np.array(file)).permute(2, 0, 1)
        assert test.labels[(test.images == expected).flatten(1).all(1)].tolist() == [k % 3]


def test_grey_images_get_three_equal_channels(tiny):
    splits = read(TinyImageNet(validation=3), seed=0)
    images = torch.cat([splits["train"].images, splits["validation"].images])
    assert (images[:, :1] == images).flatten(1).all(1).sum() == 3


@pytest.mark.parametrize(
    "n, words", [(250, "250 .*: half of the training set"), (500, "500 .*: the whole"), (100, "100 .*: 20% of the")]
)
def test_tiny_imagenet_says_how_many_training_images_a_class_there_are(n, words):
    files = [(Path(f"tiny/train/{wnid}/images/{wnid}_{k}.JPEG"), 0) for wnid in WORDS for k in range(n)]
    assert re.match(words, archives.share_of_tiny(files))
    uneven = archives.share_of_tiny(files[1:])
    assert uneven.startswith(f"{n - 1} to {n} training images a class")


def test_the_notes_of_tiny_imagenet_reach_every_split(tiny):
    notes = {part.notes for part in read(TinyImageNet(validation=3), seed=0).values()}
    assert len(notes) == 1 and notes.pop()[0].startswith("3 training images a class of Tiny-ImageNet: 1% of the")


@pytest.mark.parametrize("name", ["val/val_annotations.txt", "words.txt", "val/images/val_3.JPEG"])
def test_a_file_missing_from_tiny_imagenet_is_named(tiny, name):
    (tiny / name).unlink()
    with pytest.raises(UserError, match=f"{tiny / name}: cannot be read .No such file"):
        read(TinyImageNet(validation=3), seed=0)


def test_a_truncated_image_is_named(tiny):
    path = tiny / "train" / "n02123045" / "images" / "n02123045_1.JPEG"
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(UserError, match=f"{path}: cannot be read .*truncated.*; put a sound copy there"):
        read(TinyImageNet(validation=3), seed=0)


# ImageNet-9


def test_nine_groups_of_tiny_imagenet_are_chosen_by_wnid(tiny, monkeypatch):
    monkeypatch.setattr(archives, "NINE_OF_TINY", {"cat": "n02123045", "others": "n07875152"})
    splits = read(ImageNet9(source="tiny-imagenet", validation=2), seed=0)
    assert splits["train"].classes == ("cat", "others")
    assert [torch.bincount(images.labels).tolist() for images in splits.values()] == [[2, 2], [1, 1], [2, 2]]


def test_a_group_without_images_is_named(tiny):
    with pytest.raises(UserError, match="tiny-imagenet-200: no training images of dog, amphibian, .* every class"):
        read(ImageNet9(source="tiny-imagenet", validation=2), seed=0)


def test_the_tables_hold_nine_groups_without_overlap():
    assert sorted(map(len, archives.NINE.values())) == [3, 4, 5, 5, 9, 18, 20, 21, 118]  # classes (Springer et al.)
    wnids = " ".join(archives.NINE_OF_TINY.values()).split()
    assert len(archives.NINE_OF_TINY) == 9 and len(wnids) == len(set(wnids)) == 34


@pytest.fixture
def imagenet64(data):
    """Downsampled ImageNet: an image a class in the first batch and in val_data, whose pixels say its class's place."""
    folder = data / "downloads" / "Imagenet64"
    folder.mkdir(parents=True)
    number = np.random.default_rng(0).permutation(1000) + 1  # of the class at each position of the sorted WNIDs
    lines = [f"n{10_000_000 + 7 * position} {number[position]} name_{position}" for position in range(1000)]
    (folder / "map_clsloc.txt").write_text("\n".join(sorted(lines, key=lambda line: int(line.split()[1]))) + "\n")
    pixels = np.zeros((1000, 3 * 64 * 64), np.uint8)
    pixels[:, :4096], pixels[:, 4096:8192] = (np.arange(1000) // 256)[:, None], (np.arange(1000) % 256)[:, None]
    for name in ("val_data", *(f"train_data_batch_{i}" for i in range(1, 11))):
        keep = slice(None) if name in ("val_data", "train_data_batch_1") else slice(0)
        batch = {"data": pixels[keep], "labels": number[keep].tolist(), "mean": pixels[0]}
        (folder / name).write_bytes(pickle.dumps(batch))
    return folder


def test_downsampled_imagenet_is_grouped_by_sorted_wnid_not_by_its_own_numbers(imagenet64):
    splits = read(ImageNet9(source="downsampled", validation=9), seed=0)
    test = splits["test"]
    assert len(test) == 203 and len(splits["train"]) == 194 and test.images.shape[1:] == (3, 64, 64)
    position = test.images[:, 0, 0, 0].long() * 256 + test.images[:, 1, 0, 0]
    name = {int(p): test.classes[label] for p, label in zip(position, test.labels, strict=True)}
    edges = {151: "dog", 268: "dog", 281: "cat", 285: "cat", 30: "frog", 33: "turtle", 100: "bird", 382: "primate"}
    edges |= {397: "fish", 121: "crab", 319: "insect"}
    assert name | edges == name
    assert not {150, 269, 280, 286, 29, 38, 79, 101, 364, 383, 388, 398, 117, 122, 299, 320} & set(name)


def test_missing_files_of_downsampled_imagenet_are_named_with_where_to_get_them(imagenet64):
    (imagenet64 / "val_data").unlink()
    (imagenet64 / "map_clsloc.txt").unlink()
    with pytest.raises(UserError, match=r"Imagenet64: no map_clsloc.txt, val_data\. Log in to image-net\.org"):
        read(ImageNet9(source="downsampled", validation=9), seed=0)


@pytest.mark.parametrize("name", ["train_data_batch_7", "map_clsloc.txt"])
def test_a_truncated_file_of_downsampled_imagenet_is_named(imagenet64, name):
    (imagenet64 / name).write_bytes((imagenet64 / name).read_bytes()[:400])
    with pytest.raises(UserError, match=f"{name}: cannot be read"):
        read(ImageNet9(source="downsampled", validation=9), seed=0)


# Image folders


@pytest.fixture
def folder(tmp_path):
    """Two classes of wide pictures: red in the middle, blue at both sides."""
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, :5, 2] = wide[:, 25:, 2] = wide[:, 5:25, 0] = 255
    for split, n in (("train", 3), ("test", 2)):
        for name in ("cat", "dog"):
            (tmp_path / "mine" / split / name).mkdir(parents=True)
            for k in range(n):
                Image.fromarray(wide).save(tmp_path / "mine" / split / name / f"{k}.PNG")
    (tmp_path / "mine" / "train" / "cat" / "Thumbs.db").write_text("no image")
    return tmp_path / "mine"


def test_an_image_folder_is_cropped_to_the_centre_and_resized(folder):
    splits = read(ImageFolder(path=str(folder), size=5, validation=2), seed=0)
    assert [len(images) for images in splits.values()] == [4, 2, 4] and splits["test"].classes == ("cat", "dog")
    assert torch.equal(splits["test"].images[0], torch.tensor([255, 0, 0]).byte().view(3, 1, 1).expand(3, 5, 5))


def test_an_image_folder_without_a_test_set_says_what_is_missing(folder):
    for path in (folder / "test").rglob("*.PNG"):
        path.unlink()
    with pytest.raises(UserError, match="mine: no test images of cat, dog; every class needs"):
        read(ImageFolder(path=str(folder), size=5, validation=2), seed=0)


def test_a_class_in_one_of_train_and_test_only_is_named(folder):
    (folder / "test" / "dog").rename(folder / "test" / "horse")
    with pytest.raises(UserError, match="mine: no training images of horse; every class needs"):
        read(ImageFolder(path=str(folder), size=5, validation=2), seed=0)


def test_a_folder_without_images_is_named():
    with pytest.raises(UserError, match="/nowhere: no training images of any class"):
        read(ImageFolder(path="/nowhere", size=5, validation=2), seed=0)


# The real thing


@pytest.mark.real_data
@pytest.mark.skipif(not (Path(REAL) / "cifar-10-batches-py").is_dir(), reason="ROBUST_FEATURES_DATA has no CIFAR-10")
def test_the_real_cifar10_has_its_known_counts_and_mean_colour(monkeypatch):
    monkeypatch.setenv(archives.ELSEWHERE, REAL)
    splits = read(Cifar(kind="cifar10", validation=5000), seed=0)
    counts = [torch.bincount(images.labels).unique().tolist() for images in splits.values()]
    assert counts == [[4500], [500], [1000]] and splits["test"].classes[:2] == ("airplane", "automobile")
    means = [splits[split].images.sum((0, 2, 3)).double() / 32**2 for split in ("train", "validation")]
    assert torch.allclose(sum(means) / 50_000, torch.tensor([125.307, 122.950, 113.865]).double(), atol=1e-3)
