import hashlib
import json
import re

import pytest

from companion import paths
from companion.report.publish import publish
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
