import hashlib
import json

from robust_features.report import publish as module


def test_a_published_report_has_a_manifest_of_every_file(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "REPORTS", tmp_path)
    (tmp_path / "gpu" / "tables").mkdir(parents=True)
    (tmp_path / "gpu" / "tables" / "x.csv").write_text("a,b\n")
    for _ in range(2):  # the second replaces the first
        target = module.publish({"scale": "gpu", "seed": 0}, {"commit": "abc"})
    manifest = json.loads((target / "manifest.json").read_text())
    assert target == tmp_path / "published" / "gpu" and (target / "tables" / "x.csv").read_text() == "a,b\n"
    assert manifest["files"] == {"tables/x.csv": hashlib.sha256(b"a,b\n").hexdigest()}
    assert manifest["params"]["scale"] == "gpu" and manifest["provenance"]["commit"] == "abc"
