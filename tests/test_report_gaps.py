"""What was not run and what papers contradict, on the contents page; and the papers, cited alike everywhere."""

import json

import pandas as pd
import pytest
from ruamel.yaml import YAML
from sample_report import make_project

from companion import paths
from companion.paths import ROOT
from companion.report import contents, gaps, index, published

ENTRY = {"where": "Kim et al. 2021, Table 2", "unit": "%", "evidence": "P", "index": ["dataset"]}
ENTRY |= {"values": {"network": ["vgg16"]}, "rows": [["cifar10", 9], ["digits", 8]]}


@pytest.fixture
def project(tmp_path, monkeypatch):
    root = make_project(tmp_path, monkeypatch)
    faults = [{"said": "9 stands as 8 in Table 3.", "evidence": "P"}]
    (root / "published.yaml").write_text(json.dumps({"kim-table-2": ENTRY | {"faults": faults}}))  # JSON is YAML
    monkeypatch.setattr(paths, "PUBLISHED", root / "published.yaml")
    return root


def keep(project, *rows):
    table = project / "reports/quick/11-first/tables/kim-table-2.csv"
    table.parent.mkdir(parents=True, exist_ok=True)
    table.write_text("\n".join(["dataset,network,paper,ours,low,high", *rows]) + "\n")


def test_printed_numbers_without_a_partner_are_counted_with_the_reason(project):
    run = contents.load_run()
    assert [(each["count"], each["why"]) for each in gaps.not_run(run)] == [
        (2, "its page has not been made at this scale")
    ]
    keep(project, "digits,vgg16,8,7,6,8", "cifar10,vgg16,9,,,")
    (found,) = gaps.not_run(run)
    assert (found["count"], found["total"], found["why"]) == (1, 2, "no CIFAR-10 at this scale")
    part = run | {"datasets": run["datasets"] | {"cifar10-25k": {"kind": "cifar10"}}}
    assert gaps.not_run(part)[0]["why"] == "no such networks or attacks at this scale"
    keep(project, "digits,vgg16,8,,,", "digits,other,,7,6,8")
    assert gaps.not_run(run)[0]["why"] == "no such networks or attacks at this scale"
    keep(project, "digits,vgg16,8,7,6,8")
    assert not gaps.not_run(run)


def test_the_contents_list_what_was_not_run_and_what_a_paper_contradicts(project):
    keep(project, "cifar10,vgg16,9,,,", "digits,vgg16,,7,6,8")
    html = index.scale_index(contents.load_run()).read_text("utf-8")
    missing, faults = html.partition('id="not-run"')[2].split('id="faults"')
    assert "1 of 2" in missing and "no CIFAR-10 at this scale" in missing
    assert "9 stands as 8 in Table 3. <i>(printed in the paper)</i>" in faults and "with one seed" in html


@pytest.mark.parametrize("name, paper", contents.PAPERS.items(), ids=contents.PAPERS)
def test_a_paper_is_cited_by_title_authors_and_link_on_its_pages_in_readme_and_in_the_citation_file(name, paper):
    readme = (ROOT / "README.md").read_text("utf-8")
    cited = {each["title"]: each for each in YAML(typ="safe").load(ROOT / "CITATION.cff")["references"]}[paper["title"]]
    people = ", ".join(f"{each['given-names']} {each['family-names']}" for each in cited["authors"])
    assert f"[{paper['title']}]({paper['link']}) | {paper['authors']} | {paper['venue']} |" in readme
    assert people == paper["authors"] and cited["url"] == paper["link"]
    assert [page for page in contents.sections() if page.companion["paper"] == name]


@pytest.mark.parametrize(
    "first, second",
    [
        (
            ("kim-table-1", {"dataset": "svhn", "network": "vgg16", "example": "pgd", "features": "Int"}, 48.92),
            ("kim-table-3", 48.8),
        ),
        (
            ("kim-table-3", {"dataset": "svhn", "network": "vgg16", "defence": "mart", "example": "clean"}, 90.5),
            ("kim-table-4", 90.4),
        ),
        (
            ("xu-table-3", {"dataset": "cifar10", "layer": "rob", "example": "clean"}, 90.97),
            ("xu-figure-3-clean", 91.33),
        ),
    ],
    ids=["Tables 1 and 3", "Tables 3 and 4", "Table III and Fig. 3"],
)
def test_numbers_that_a_fault_sets_against_each_other_are_printed_so(first, second):
    (artefact, place, value), (other, theirs) = first, second
    rows = published(artefact)
    assert rows[(rows[[*place]] == pd.Series(place)).all(axis=1)]["value"].tolist() == [value]
    assert theirs in published(other)["value"].tolist()
    said = " ".join(each["said"] for each in gaps.known_faults() if each["artefact"] == artefact)
    assert f"{value:g}" in said and f"{theirs:g}" in said


def test_ci_runs_what_a_new_user_does():
    workflow = YAML(typ="safe").load(ROOT / ".github/workflows/ci.yml")
    assert any(step.get("run") == ".ci/run" for job in workflow["jobs"].values() for step in job["steps"])
