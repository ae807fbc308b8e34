import hashlib
import json
import math
import re
import subprocess

import pandas as pd
import pytest
from ruamel.yaml import YAML

from companion import paths
from companion.report.publish import locked, publish
from robust_features.settings import UserError


def test_a_published_report_has_a_manifest_of_every_file(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "REPORTS", tmp_path)
    (tmp_path / "gpu" / "11-first" / "tables").mkdir(parents=True)
    (tmp_path / "gpu" / "11-first" / "tables" / "x.csv").write_text("a,b\n")
    for _ in range(2):  # the second replaces the first
        target = publish({"scale": "gpu", "seed": 0}, {"commit": "abc"})
    manifest = json.loads((target / "manifest.json").read_text())
    assert (
        target == tmp_path / "published" / "gpu" and (target / "11-first" / "tables" / "x.csv").read_text() == "a,b\n"
    )
    assert manifest["files"] == {"11-first/tables/x.csv": hashlib.sha256(b"a,b\n").hexdigest()}
    assert manifest["params"]["scale"] == "gpu" and manifest["provenance"]["commit"] == "abc"


def test_what_is_published_has_the_lock_entries_of_what_is_up_to_date(tmp_path, monkeypatch):
    stage = "  {0}: {{cmd: 'echo {0} > {0}', deps: [{0}.txt], outs: [{0}]}}\n"
    (tmp_path / "dvc.yaml").write_text("stages:\n" + "".join(stage.format(name) for name in ("kept", "edited", "gone")))
    for name in ("kept", "edited", "gone"):
        (tmp_path / f"{name}.txt").write_text(name)
    monkeypatch.chdir(tmp_path)
    for command in (["init", "--no-scm"], ["repro"]):
        subprocess.run(["dvc", *command, "--quiet"], check=True)
    (tmp_path / "edited.txt").write_text("anew")
    (tmp_path / "dvc.yaml").write_text("stages:\n" + "".join(stage.format(name) for name in ("kept", "edited")))
    found = locked(tmp_path)
    assert [*found["stages"]] == ["kept"] and found["stages"]["kept"]["deps"][0]["path"] == "kept.txt"
    monkeypatch.setattr(paths, "REPORTS", tmp_path / "reports")
    (tmp_path / "reports/gpu/11-first").mkdir(parents=True)
    target = publish({"scale": "gpu"}, {}, lock=found)
    assert YAML(typ="safe").load(target / "dvc.lock") == found
    assert "dvc.lock" in json.loads((target / "manifest.json").read_text())["files"]


def test_what_is_not_made_yet_is_not_published(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "REPORTS", tmp_path)
    with pytest.raises(UserError, match="gpu holds no report yet: run `make reproduce SCALE=gpu` first"):
        publish({"scale": "gpu"}, {})


def test_a_published_page_finds_the_first_page_one_folder_further_up_and_no_other_scale(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "REPORTS", tmp_path)
    page = tmp_path / "gpu/11-first/index.html"
    page.parent.mkdir(parents=True)
    page.write_text(
        '<a data-home href="../../index.html">x</a>\n<nav class="switch">at <a href="../../quick/x">q</a></nav>\nb'
    )
    html = (publish({"scale": "gpu"}, {}) / "11-first/index.html").read_text()
    page.write_text(html)
    assert (publish({"scale": "gpu"}, {}) / "11-first/index.html").read_text() == html, "published again with others"
    home = (tmp_path / "published/gpu/11-first" / re.search('href="([^"]*)"', html)[1]).resolve()
    assert home == (tmp_path / "index.html").resolve() and "quick" not in html and html.endswith("b")


def test_what_is_published_links_only_to_what_is_published_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "REPORTS", tmp_path)
    page = tmp_path / "gpu/11-first/index.html"
    (page.parent / "tables").mkdir(parents=True)
    (page.parent / "tables/x y.csv").touch()
    links = [
        "tables/x%20y.csv",
        "#there",
        "https://x.org/a",
        "../20-other/index.htm",
        "../20-other/x.html#y",
        "gone.png",
        "../index.html",  # the contents, of a scale whose single sections were published
    ]
    page.write_text("".join(f'<a href="{link}">x</a>' for link in links))
    html = (publish({"scale": "gpu"}, {}) / "11-first/index.html").read_text()
    assert re.findall('href="([^"]*)"', html) == links[:3] and html.count("<a") == len(links)


PUBLISHED = paths.ROOT / "reports/published/photographs"
KIM = dict(dataset="cifar10", network="VGG-16, width 1/4")
ADVERSARIAL = KIM | dict(defence="adversarial")
ILYAS = SPRINGER = XU = dict(dataset="cifar10-25k")
HEADLINES = {  # README's rows → where their numbers are
    "clean images": ("kim-table-3", ADVERSARIAL | dict(example="clean")),
    "under PGD, all features": ("kim-table-3", ADVERSARIAL | dict(example="pgd")),
    "under PGD, robust features, told the true label": ("kim-table-1", KIM | dict(example="pgd", features="R")),
    "under PGD, robust features, told the predicted label": (
        "kim-table-1-controls",
        KIM | dict(example="pgd", features="R", given="predicted"),
    ),
    "under PGD, non-robust features": ("kim-table-1", KIM | dict(example="pgd", features="NR")),
    "agreement of non-robust features with PGD's class": ("kim-table-2", KIM | dict(example="pgd", given="true")),
    "under CW, without bound": ("kim-table-3", ADVERSARIAL | dict(example="cw")),
    "under NRF, without bound": ("kim-table-3", ADVERSARIAL | dict(example="nrf")),
    "under NRF, within PGD's bound": ("kim-table-3", ADVERSARIAL | dict(example="nrf-linf")),
    "under AutoAttack": ("kim-table-3", ADVERSARIAL | dict(example="autoattack")),
    "taught by D_R, clean images": ("ilyas-robust-dataset", ILYAS | {"trained on": "d-r", "example": "clean"}),
    "taught by D_R, under PGD": ("ilyas-robust-dataset", ILYAS | {"trained on": "d-r", "example": "l2-half"}),
    "taught by D_NR, under PGD": ("ilyas-robust-dataset", ILYAS | {"trained on": "d-nr", "example": "l2-half"}),
    "taught by D, under PGD": ("ilyas-robust-dataset", ILYAS | {"trained on": "d", "example": "l2-half"}),
}
HEADLINES |= {
    f"taught by {name}, clean images": ("ilyas-nonrobust-dataset", ILYAS | {"trained on": taught, "example": "clean"})
    for name, taught in (("D_rand", "d-rand"), ("D_det", "d-det"), ("random moves with D_rand's labels", "null-noise"))
}
HEADLINES |= {
    f"{name}, {shown}": (artefact, XU | where | dict(example=example))
    for name, artefact, where in (
        ("PGD training", "xu-table-1", dict(method="pgd", loss="plain")),
        ("PGD training with IB-RAR", "xu-table-1", dict(method="pgd", loss="ib-rar")),
        ("IB-RAR alone", "xu-table-3", dict(layer="rob")),
    )
    for shown, example in (("on clean images", "clean"), ("under the paper's PGD", "pgd"))
} | {"IB-RAR alone, under any of seven attacks": ("xu-masking", XU | {"member": "rob", "example": "worst case"})}
HEADLINES |= {
    f"{name} network, {shown}": ("springer-table-1", SPRINGER | {"classifier": classifier, "test set": test})
    for name, classifier, shown, test in (
        ("standard", "standard", "R 0", "R 0"),
        ("standard", "standard", "R 1/16", "R 1/16"),
        ("standard", "standard", "R 1", "R 1"),
        ("zero-robust", "zero-robust", "test images", "test"),
        ("zero-robust", "zero-robust", "R 1/8", "R 1/8"),
        ("negative-robust", "neg-robust", "test images", "test"),
        ("negative-robust", "neg-robust", "R 1/8", "R 1/8"),
    )
}


def test_the_headlines_of_the_readme_are_the_published_numbers():
    lines = re.findall(r"^\| (.+?) \| (.+) \|$", (paths.ROOT / "README.md").read_text("utf-8"), re.M)
    said = {name: numbers.split(" | ") for name, numbers in lines if name in HEADLINES}
    assert {*said} == {*HEADLINES}
    for name, (artefact, where) in HEADLINES.items():
        row = published(PUBLISHED, artefact, where)
        paper = row["reference"] if math.isnan(row["paper"]) else row["paper"]  # of the same row on the paper's images
        expected = ["not given" if math.isnan(paper) else f"{paper:.1f}", f"{row['ours']:.1f}"]
        if "network" in where:
            full = published(PUBLISHED.with_name("gpu"), artefact, where | dict(network="VGG-16"))
            expected.append(f"{full['ours']:.1f}")
        assert said[name] == expected, name


def published(scale, artefact, where):
    """The row of a published table that has these values."""
    (path,) = scale.rglob(f"tables/{artefact}.csv")
    (row,) = (
        pd.read_csv(path)
        .query(" and ".join(f"`{key}` == '{value}'" for key, value in where.items()))
        .to_dict("records")
    )
    return row
