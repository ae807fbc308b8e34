import json

import pandas as pd
import pytest
from sample_report import make_project

from companion import metrics, pipeline
from companion.report import contents


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project whose run has a claim that holds and one that was not run, and a network right twice in four times."""
    root = make_project(tmp_path, monkeypatch)
    (root / "run.yaml").write_text(
        (root / "run.yaml").read_text().replace("{members: {}}", "{members: {plain: {}}}", 1)
    )
    table = root / "reports/quick/12-second/tables/kim-table-2.csv"
    table.parent.mkdir(parents=True)
    table.write_text("network,paper,ours,low,high\nvgg16,,90,89,91\nwrn28-10,,5,4,6\n")
    rows = [("clean", 1, 1), ("clean", 2, 2), ("clean", 3, 3), ("clean", 4, 4)]
    rows += [("pgd", 1, 1), ("pgd", 2, 0), ("pgd", 3, 3), ("pgd", 4, 0), ("odd", 1, 0)]
    folder = root / "data/networks/kim/vgg16/plain/evaluation"
    folder.mkdir(parents=True)
    pd.DataFrame(rows, columns=["example", "label", "prediction"]).assign(l2=0).to_csv(folder / "rows.csv", index=False)
    return root


def test_the_contents_come_with_verdicts_counted_and_accuracies_that_runs_are_compared_by(project, capsys):
    pipeline.main(["index"])
    found = json.loads((project / "reports/quick/metrics.json").read_text())
    assert found["verdicts"] == {"holds": 1, "mixed": 1}
    assert found["accuracy"] == {"kim/vgg16": {"plain": {"clean": 100.0, "pgd": 50.0}}}
    assert capsys.readouterr().out.strip().endswith("reports/quick/index.html")


def test_the_count_of_verdicts_is_a_line_and_of_contents_that_are_not_made_none(project):
    assert metrics.verdicts("quick") == ""
    metrics.write(contents.load_run())
    assert metrics.verdicts("quick") == "scale quick, 2 claims and controls: 1 holds; 1 mixed"
