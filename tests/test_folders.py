import json
import os
import shutil
import struct
import unicodedata
import zlib

import numpy as np
import pytest
from PIL import Image

from companion import datasets
from companion.datasets import ImageFolder, fingerprint, folders, read
from robust_features.settings import UserError

RAMP = np.tile(np.arange(8) * 9000, (8, 1))  # 16 bits
UPRIGHT = "turned upright by EXIF"


@pytest.fixture
def mine(tmp_path):
    """Two classes with four training and four test images each."""
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "mine" / split / name).mkdir(parents=True)
            for k in range(4):
                Image.new("RGB", (8, 8), (50 * k, 0, 0)).save(tmp_path / "mine" / split / name / f"{k}.png")
    return tmp_path / "mine"


def load(folder):
    return read(ImageFolder(path=str(folder), size=8, validation=2), seed=0)


def saved(path, image, **options):
    image.save(path, **options)
    return folders.rgb(path, 8)


def png16(path, colour_type, samples):
    """A row of pixels of 16 bits a channel, in the PNG format (W3C 2003), which Pillow writes in grey only."""
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour_type]
    header = struct.pack(">IIBBBBB", len(samples) // channels, 1, 16, colour_type, 0, 0, 0)
    body = b"\0" + struct.pack(f">{len(samples)}H", *samples)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(body)), (b"IEND", b"")
    parts = (struct.pack(">I", len(x)) + name + x + struct.pack(">I", zlib.crc32(name + x)) for name, x in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


def tiff(path, bits, photometric, data):
    """8 x 8 grey pixels in the TIFF format (Adobe 1992), of which Pillow writes few kinds."""
    tags = (256, 8), (257, 8), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, 8), (279, len(data))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", 9) + entries + bytes(4))
    return path


# Pixels


@pytest.mark.parametrize("kind, ending", [("u2", "png"), ("u2", "tif"), (">u2", "tif"), ("i4", "tif"), ("i4", "pgm")])
def test_of_16_bits_the_upper_eight_are_kept(tmp_path, kind, ending):
    pixels, done = saved(tmp_path / f"x.{ending}", Image.fromarray(RAMP.astype(kind)))
    assert np.array_equal(pixels, np.stack([RAMP // 256] * 3))
    assert done == ["with 16 bits a channel (the upper eight are kept)", "grey (three equal channels)"]


def test_of_16_bits_a_colour_the_upper_eight_are_kept_and_this_is_counted(tmp_path):
    pixels, done = folders.rgb(png16(tmp_path / "x.png", 2, [0x12FF, 0x3400, 0xFF80]), 1)
    assert pixels.ravel().tolist() == [0x12, 0x34, 0xFF] and done == [
        "with 16 bits a channel (the upper eight are kept)"
    ]


def test_transparent_pixels_of_16_bits_are_put_on_white(tmp_path):
    pixels, _ = folders.rgb(png16(tmp_path / "x.png", 6, [0x12FF, 0x3400, 0xFF80, 0]), 1)
    assert pixels.ravel().tolist() == [255, 255, 255]
    pixels, _ = folders.rgb(png16(tmp_path / "x.png", 4, [0x12FF, 0]), 1)
    assert pixels.ravel().tolist() == [255, 255, 255]


def test_a_tiff_whose_white_is_zero_is_not_inverted(tmp_path):
    pixels, _ = folders.rgb(tiff(tmp_path / "x.tif", 16, 0, (65535 - RAMP).astype("<u2").tobytes()), 8)
    assert np.array_equal(pixels[0], RAMP // 256)


def test_a_tiff_of_12_bits_keeps_its_upper_eight(tmp_path):
    pixels, _ = folders.rgb(tiff(tmp_path / "x.tif", 12, 1, bytes([0xAB, 0xC1, 0x23] * 32)), 8)
    assert pixels[0, 0].tolist() == [0xAB, 0x12] * 4


def test_floats_in_the_unit_interval_are_scaled_to_8_bits(tmp_path):
    pixels, _ = saved(tmp_path / "x.tif", Image.fromarray(np.tile(np.arange(8) / 7, (8, 1)).astype(np.float32)))
    assert pixels[2, 3].tolist() == [0, 36, 73, 109, 146, 182, 219, 255]


@pytest.mark.parametrize("value", [-0.1, 1.5, 200, np.nan])
def test_floats_in_another_range_are_refused(tmp_path, value):
    image = Image.fromarray(np.full((8, 8), value, np.float32))
    with pytest.raises(UserError, match=rf"^{tmp_path}/x.tif: its floats run from .*; scale them to \[0, 1\]"):
        saved(tmp_path / "x.tif", image)


@pytest.mark.parametrize("value", [-1, 200, 65536])
def test_32_bit_integers_in_another_range_than_16_bits_are_refused(tmp_path, value):
    with pytest.raises(UserError, match=f"x.tif: its 32-bit pixels run from {value} to {value}"):
        saved(tmp_path / "x.tif", Image.fromarray(np.full((8, 8), value, np.int32)))


@pytest.mark.parametrize(
    "mode, ending", [("RGBA", "png"), ("RGBA", "webp"), ("RGBA", "tif"), ("LA", "png"), ("PA", "tif")]
)
@pytest.mark.parametrize("alpha, expected", [(0, 255), (255, 0), (51, 204)])
def test_a_transparent_image_is_put_on_white(tmp_path, mode, ending, alpha, expected):
    image = Image.new("RGBA" if mode == "PA" else mode, (8, 8))
    image.putalpha(alpha)
    pixels, done = saved(
        tmp_path / f"x.{ending}", image.convert(mode), **({"lossless": True} if ending == "webp" else {})
    )
    assert abs(pixels.astype(int) - expected).max() <= 1 and ("transparent (put on white)" in done) == (alpha < 255)


@pytest.mark.parametrize("mode, ending", [("P", "png"), ("P", "gif"), ("L", "png"), ("RGB", "png")])
def test_a_colour_that_is_declared_transparent_is_white(tmp_path, mode, ending):
    image = Image.new(mode, (8, 8), (9, 9, 9) if mode == "RGB" else 9)
    if mode == "P":
        image.putpalette(range(30))
    pixels, _ = saved(tmp_path / f"x.{ending}", image, transparency=(9, 9, 9) if mode == "RGB" else 9)
    assert (pixels == 255).all()


@pytest.mark.parametrize("ending", ["png", "gif", "bmp"])
def test_a_palette_is_looked_up(tmp_path, ending):
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    pixels, done = saved(tmp_path / f"x.{ending}", image)
    assert pixels[:, 0, 0].tolist() == [200, 100, 50] and done == []


@pytest.mark.parametrize("ending", ["tif", "jpg"])
def test_cmyk_is_converted_and_counted(tmp_path, ending):
    pixels, done = saved(tmp_path / f"x.{ending}", Image.new("CMYK", (8, 8), (255, 0, 0, 0)))
    assert pixels[:, 0, 0].tolist() == pytest.approx([0, 255, 255], abs=2)
    assert done == ["in CMYK (its colour profile is not applied)"]


@pytest.mark.parametrize("ending", ["png", "webp", "tif"])
@pytest.mark.parametrize(
    "orientation, turns", [(1, 0), (6, 3), (3, 2), (8, 1)]
)  # EXIF 2.3: 6 is shown turned clockwise
def test_an_image_is_turned_upright(tmp_path, ending, orientation, turns):
    stored, exif = np.random.default_rng(0).integers(256, size=(8, 8, 3), dtype=np.uint8), Image.Exif()
    exif[0x0112] = orientation
    options = {"exif": exif} | ({"lossless": True} if ending == "webp" else {})
    pixels, done = saved(tmp_path / f"x.{ending}", Image.fromarray(stored), **options)
    assert np.array_equal(pixels.transpose(1, 2, 0), np.rot90(stored, turns))
    assert done == [UPRIGHT] * (orientation != 1)


@pytest.mark.parametrize("ending", ["gif", "png", "webp", "tif", "mpo"])
def test_of_several_frames_the_first_is_taken(tmp_path, ending):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    pixels, done = saved(tmp_path / f"x.{ending}", frames[0], save_all=True, append_images=frames[1:])
    assert pixels[:, 0, 0].tolist() == pytest.approx([255, 0, 0], abs=3)
    assert done == ["with several frames (the first is taken)"]


def test_grey_and_bilevel_images_get_three_equal_channels(tmp_path):
    for mode, value, grey in (("L", 77, 77), ("1", 1, 255)):
        pixels, done = saved(tmp_path / "x.png", Image.new(mode, (8, 8), value))
        assert (pixels == grey).all() and done == ["grey (three equal channels)"]


# What is read and what is left out


JUNK = ".DS_Store", "Thumbs.db", "desktop.ini", "._0.png", "Icon\r", ".hidden.png"
STRANGERS = ".ipynb_checkpoints", "__MACOSX", "@eaDir", ".cache", "#recycle"


def test_hidden_files_and_those_of_operating_systems_are_no_classes_and_no_images(mine, capsys):
    expected = load(mine)
    for place in (mine, mine / "train", mine / "test", mine / "train" / "cat"):
        for name in JUNK:
            (place / name).write_bytes(b"\0\5\26\7 no image")
        for name in STRANGERS:
            (place / name).mkdir()
            shutil.copy(mine / "test" / "cat" / "0.png", place / name / "0.png")
    found = load(mine)
    assert found["test"].classes == ("cat", "dog") and len(found["train"]) == len(expected["train"])
    assert capsys.readouterr().err.count("left out") == 0


def test_what_is_left_out_is_counted_with_its_reason(mine):
    cat = mine / "train" / "cat"
    for name in ("0.heic", "1.HEIC", "notes.pdf", "x.h5", "x.mpg", "2", "3.png.bak", "4.jpgg", "../stray.png"):
        (cat / name).write_bytes(b"no image")
    (cat / "deeper").mkdir()
    (cat / "0.png").rename(cat / "deeper" / "0.png")
    (cat / "lost.png").symlink_to(mine / "nowhere.png")
    found = load(mine)
    expected = ("left out 11 files: ", "2 .heic (train/cat/0.heic …)", "1 .pdf", "1 .h5", "1 .mpg", "1 .bak", "1 .jpgg")
    expected += (
        "1 without an ending (train/cat/2)",
        "1 a folder deeper",
        "1 broken symbolic",
        "1 in no class's folder",
    )
    assert [words for words in expected if words not in found["train"].notes[1]] == []
    assert len(found["train"]) + len(found["validation"]) == 7


def test_it_is_said_while_reading_and_kept_in_the_card_in_one_line(mine, capsys, data):
    (mine / "train" / "cat" / "0.heic").write_bytes(b"")
    Image.new("RGBA", (8, 8)).save(mine / "train" / "cat" / "0.png")
    datasets.save("mine", load(mine), ImageFolder(path=str(mine), size=8, validation=2))
    notes = json.loads((data / "datasets" / "mine" / "train" / "card.json").read_text())["notes"]
    assert "order of their names" in notes[0] and notes[2] == "as read: 1 transparent (put on white)"
    assert notes[1].startswith("left out 1 file: 1 .heic") and f"{mine}: {notes[1]}\n" in capsys.readouterr().err


def test_symbolic_links_are_followed_and_counted(mine, tmp_path):
    (mine / "train" / "cat" / "0.png").rename(tmp_path / "0.png")
    (mine / "train" / "cat" / "0.png").symlink_to(tmp_path / "0.png")
    (mine / "test" / "dog").rename(tmp_path / "dogs")
    (mine / "test" / "dog").symlink_to(tmp_path / "dogs")
    found = load(mine)
    assert [len(part) for part in found.values()] == [6, 2, 8]
    assert found["train"].notes[1] == "as read: 1 through symbolic links (followed)"


@pytest.mark.parametrize("n", [2, 3])
def test_classes_are_in_the_order_of_their_names_as_text(mine, n):
    for split in ("train", "test"):
        for old, new in (("cat", "10"), ("dog", "2"), ("dog", "B"))[:n]:
            shutil.copytree(mine / split / old, mine / split / new)
        shutil.rmtree(mine / split / "cat")
        shutil.rmtree(mine / split / "dog")
    assert load(mine)["test"].classes == ("10", "2", "B")[:n]


def test_one_name_in_two_spellings_of_unicode_is_one_class(mine):
    for split, form in (("train", "NFC"), ("test", "NFD")):
        (mine / split / "cat").rename(mine / split / unicodedata.normalize(form, "bébé"))
    assert load(mine)["test"].classes == (unicodedata.normalize("NFC", "bébé"), "dog")


@pytest.mark.parametrize(
    "remove, message",
    [
        (["train"], r"mine: no folder train in it \(there is test\); images belong in train/CLASS/ and test/CLASS/"),
        (["train", "test"], r"mine: no folder train and no folder test in it \(there is none\)"),
        (["train/dog", "test/dog"], "mine: cat is its only class; a classifier needs two or more"),
        (["test/dog"], "mine: no test images of dog; every class needs them"),
        (["train/cat"], "mine: no training images of cat; every class needs them"),
    ],
)
def test_an_unfit_folder_is_refused_in_words(mine, remove, message):
    for name in remove:
        shutil.rmtree(mine / name)
    with pytest.raises(UserError, match=message):
        load(mine)


def test_a_class_without_images_is_named_with_what_was_left_out(mine):
    for split in ("train", "test"):
        (mine / split / "bird").mkdir()
    (mine / "train" / "bird" / "0.heic").write_bytes(b"")
    with pytest.raises(UserError) as error:
        load(mine)
    for words in (
        "no training images of bird",
        "no test images of bird",
        "left out 1 file: 1 .heic (train/bird/0.heic)",
    ):
        assert words in str(error.value)


def test_a_file_that_only_calls_itself_an_image_is_named(mine):
    (mine / "train" / "cat" / "0.png").write_bytes(b"%PDF-1.4")
    with pytest.raises(UserError, match="train/cat/0.png: cannot be read .*; put a sound copy there, as PNG or JPEG"):
        load(mine)


# Whether it has changed


CHANGES = {
    "a new image": lambda cat: shutil.copy(cat / "0.png", cat / "9.png"),
    "an image less": lambda cat: (cat / "0.png").unlink(),
    "another name": lambda cat: (cat / "0.png").rename(cat / "9.png"),
    "another size": lambda cat: (cat / "0.png").write_bytes(b"1"),
    "another time": lambda cat: os.utime(cat / "0.png", ns=(0, 0)),
    "another class": lambda cat: cat.rename(cat.with_name("bird")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_folder_has_another_fingerprint(mine, change):
    settings = ImageFolder(path=str(mine), size=8, validation=2)
    before = fingerprint(settings)
    assert before["files"] == 16 and before == fingerprint(settings)
    CHANGES[change](mine / "train" / "cat")
    assert fingerprint(settings) != before


def test_the_fingerprint_moves_with_its_folder_and_not_with_hidden_files(mine, tmp_path):
    before = fingerprint(ImageFolder(path=str(mine), size=8, validation=2))
    (mine / "train" / "cat" / ".DS_Store").write_text("seen")
    (tmp_path / "elsewhere").mkdir()
    moved = mine.rename(tmp_path / "elsewhere" / "mine")
    assert fingerprint(ImageFolder(path=str(moved), size=8, validation=2)) == before
    assert fingerprint(ImageFolder(path=str(mine), size=8, validation=2)) == {}


def test_a_link_to_a_folder_above_ends(mine):
    (mine / "train" / "cat" / "loop").symlink_to(mine)
    assert fingerprint(ImageFolder(path=str(mine), size=8, validation=2))["files"] >= 16
    assert load(mine)["test"].classes == ("cat", "dog")
