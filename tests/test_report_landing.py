import json
import re

import pandas as pd
import pytest
from ruamel.yaml import YAML
from sample_report import CLAIMS, make_project

from companion import claims
from companion.report import contents, landing
from companion.report.scales import _behind, scales
from companion.rules import Rule, compared
from robust_features.settings import UserError

PAPER = {"title": "T", "authors": "A", "venue": "V", "link": "https://x.org", "claim": "C.", "keys": ["agreement"]}
PAPER |= {"start": "12-second", "thumbnail": "kim-figure-5"}
FOUND = "  found: {holds: It agrees more, fails: It agrees less}\n"
PIXEL = b"\x89PNG"


@pytest.fixture
def project(tmp_path, monkeypatch):
    root = make_project(tmp_path, monkeypatch)
    (root / "claims.yaml").write_text(CLAIMS.replace("less: wrn28-10}\n", f"less: wrn28-10}}\n{FOUND}"))
    monkeypatch.setattr(landing, "PAPERS", {"Kim et al. 2021": PAPER})
    return root


def keep(project, more, less, place="quick", seeds=1, header="network"):
    """A scale with one table of two rows, ± 5, and the page that it is on."""
    page = project / "reports" / place / "12-second"
    (page / "tables").mkdir(parents=True, exist_ok=True)
    (page / "index.html").write_text('<p id="kim-table-2"></p>')
    (page.parent / "index.html").touch()
    rows = [
        f"{name},{value},{value - 5},{value + 5},200,{seeds}" for name, value in (("vgg16", more), ("wrn28-10", less))
    ]
    (page / "tables/kim-table-2.csv").write_text("\n".join([f"{header},ours,low,high,n,seeds", *rows]) + "\n")
    return page


def test_of_a_scale_published_by_paper_only_that_papers_networks_and_images_are_said(tmp_path):
    run = {
        "networks": {
            "kim/a": {"members": {"m": {"dataset": "mine"}}},
            "ilyas/b": {"members": {"m": {"dataset": "ilyas/main/next"}}},
            "xu/c": {"members": {"m": {"dataset": "other"}}},
        },
        "constructed": {"ilyas/main": {"dataset": "base"}},
        "datasets": {"mine": {}, "base": {}, "other": {}},
    }
    assert _behind(run, tmp_path) == run
    for page in ("11-kim-3.1-features", "41-ilyas-3.2-suffice"):
        (tmp_path / page).mkdir()
    found = _behind(run, tmp_path)
    assert [*found["networks"]] == ["kim/a", "ilyas/b"] and [*found["datasets"]] == ["mine", "base"]


def text_of(html):
    return re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", html))


def test_without_a_report_the_first_page_says_how_to_make_one(project):
    assert "There is no report yet: run make reproduce" in text_of(landing.render().read_text("utf-8"))


def test_what_is_said_of_a_paper_follows_its_results(project):
    for values, said in (
        ((90, 50), "It agrees more"),
        ((50, 90), "It agrees less"),
        ((52, 50), "Undecided: one network agrees"),
    ):
        keep(project, *values)
        html = text_of(landing.render().read_text("utf-8"))
        effect = f"{values[0] - values[1]:+.1f} points".replace("-", "−")
        assert re.search(f"Found . (holds|does not hold|open) {said}", html) and f"({effect} [" in html


def test_confidence_is_low_on_digits_and_grows_with_seeds_and_agreement(project):
    keep(project, 90, 50)
    assert "Low: handwritten digits, one training of each network, n = 200" in text_of(
        landing.render().read_text("utf-8")
    )
    run = {"scale": "gpu", "title": "Photographs", "datasets": {"cifar10": {"kind": "cifar10"}}}
    for seeds, values, level in (
        (1, (52, 50), "Low"),
        (1, (90, 50), "Moderate"),
        (3, (52, 50), "Low"),
        (3, (90, 50), "High"),
    ):
        page = keep(project, *values, place="published/gpu", seeds=seeds)
        manifest = {"params": run, "provenance": {"commit": "abc", "started": "2026-01-01"}}
        (page.parent / "manifest.json").write_text(json.dumps(manifest))
        assert f"{level}: photographs" in text_of(landing.render().read_text("utf-8"))


def test_confidence_counts_points_of_a_correlation_and_trusts_exact_values(project):
    rows = pd.DataFrame({"x": [str(x) for x in range(6)], "value": [0, 1, 2, 3, 4, 5.1]}).assign(low=0, high=9, n=300)
    rule, (scale, *_) = Rule(correlates="x"), [keep(project, 90, 50), *scales()][1:]
    entry = claims.Entry(paper="P", place="T", artefact="a", claim="C", rule=rule)
    said = landing.confidence([claims.Verdict(entry, tuple(compared(rule, rows)))], scale)
    assert "6 points" in said and "test images" not in said
    exact = claims.Verdict(entry, tuple(compared(rule, rows)), over=claims.EXACT)
    assert landing.confidence([exact], scale).startswith("High: exact")


def test_the_first_page_leads_to_every_scale_and_begins_with_the_one_that_says_most(project):
    keep(project, 90, 50)
    keep(project, 50, 90, place="published/photographs")
    html = landing.render().read_text("utf-8")
    assert '<a href="quick/index.html">quick</a>, run here' in html
    assert '<a href="published/photographs/index.html">photographs</a>, published' in html
    assert [scale.name for scale in scales()] == ["photographs", "quick"] and "does not hold It agrees less" in text_of(
        html
    )


def test_a_scale_that_was_published_with_other_columns_is_shown_without_those_verdicts(project):
    keep(project, 50, 90, place="published/photographs", header="model")
    assert "published with other columns" in landing.render().read_text("utf-8")
    keep(project, 90, 50)
    html = landing.render().read_text("utf-8")
    assert 'id="quick-agreement"' in html and 'id="photographs-agreement"' not in html
    keep(project, 90, 50, header="model")
    with pytest.raises(UserError, match="has no column"):
        landing.render()


def test_single_sections_that_were_published_count_without_contents_to_link_to(project):
    keep(project, 90, 50)
    page = keep(project, 50, 90, place="published/gpu")
    (page.parent / "index.html").unlink()
    (page.parent / "manifest.json").write_text(json.dumps({"params": {"scale": "gpu"}, "provenance": {}}))
    html = landing.render().read_text("utf-8")
    assert "does not hold It agrees less" in text_of(html) and "published/gpu/index.html" not in html
    assert 'href="published/gpu/12-second/index.html#kim-table-2"' in html


@pytest.mark.parametrize(("kind", "images"), [("cifar10", "photographs"), ("digits", "handwritten digits")])
def test_a_scale_that_run_yaml_is_not_of_has_the_settings_that_params_yaml_gives_it(project, monkeypatch, kind, images):
    keep(project, 90, 50, place="photographs")
    data = {"some": {"kind": kind}}
    monkeypatch.setattr("companion.report.scales.written", dict)
    monkeypatch.setattr("companion.report.scales.resolve", lambda text, name: {"scale": name, "datasets": data})
    assert [scale.images for scale in scales()] == [images]


def test_every_claim_is_a_row_of_every_scale_with_a_link_to_its_evidence(project):
    keep(project, 90, 50)
    keep(project, 50, 90, place="published/photographs")
    rows = re.findall(r"<tr id=.*?</tr>", landing.render().read_text("utf-8"), re.DOTALL)
    assert len(rows) == 4 and [*map(str.strip, re.findall(r'data-scale="(\w+)"', " ".join(rows)))].count("quick") == 2
    assert (
        'href="published/photographs/12-second/index.html#kim-table-2"' in rows[0]
        and "<td>200</td><td>1</td>" in rows[0]
    )


def test_an_effect_is_drawn_where_it_is():
    rows = pd.DataFrame({"x": n, "value": v, "low": v - 5, "high": v + 5} for n, v in (("a", 75), ("b", 50)))
    entry = claims.Entry(paper="P", place="T", artefact="a", claim="C", rule=Rule(compare="x", more="a", less="b"))
    svg = landing.forest(claims.Verdict(entry, tuple(compared(entry.rule, rows))), width=212)  # one pixel a point
    assert '<path d="M106.0 2V20" class="zero"/>' in svg and f'<rect x="{106 + 25 - 3.5}"' in svg
    low, high = re.search(r'M([\d.]+) 11H([\d.]+)" class="interval"', svg).groups()
    assert (float(low), float(high)) == (121, 141)


@pytest.mark.parametrize("random, tail", [(96, "largely the label"), (20, "")])
def test_the_picture_says_what_the_index_was_told_and_what_it_repeats(project, random, tail):
    page = keep(project, 90, 50)
    record = "kim-index-records-the-label: {paper: 'ours, on Kim et al. 2021', place: T, artefact: kim-given-label, "
    record += "claim: C, rule: {above: 50, where: {given: [random], features: [R]}}}\n"
    (project / "claims.yaml").write_text((project / "claims.yaml").read_text() + record)
    rows = [
        f"digits,vgg16,{given},R,{value},{value - 2},{value + 2},200"
        for given, value in (("true", 98), ("random", random))
    ]
    (page / "tables/kim-given-label.csv").write_text(
        "\n".join(["dataset,network,given,features,ours,low,high,n", *rows]) + "\n"
    )
    html = landing.render().read_text("utf-8")
    assert (
        f"predict it for 98 % of the test images of Digits; told a random label, they predict that one for {random} %"
        in html
    )
    assert f"width: {random}.0%" in html and (tail in html if tail else "largely the label" not in html)
    assert 'class="pictures"' not in html
    (page / "figures").mkdir()
    (page / "figures/kim-figure-4.csv").write_text("image,panel,title\n,clean,true: 3\n,attacked,predicted: 9\n")
    for name in ("clean", "attacked"):
        (page / f"figures/kim-figure-4-{name}.png").write_bytes(PIXEL)
    assert landing.render().read_text("utf-8").count("data:image/png;base64,iVBORw==") == 2


def test_bibtex_has_every_paper_with_its_authors_in_bibtexs_order():
    text = landing.citations(YAML(typ="safe").load(landing.CITATION))
    assert text.count("@") == 1 + len(contents.PAPERS)
    for paper in contents.PAPERS.values():
        first = paper["authors"].split(", ")[0].rsplit(" ", 1)
        assert f"title = {{{paper['title']}}}" in text and f"author = {{{first[1]}, {first[0]} and " in text


def test_the_example_of_the_library_runs():
    found: dict = {}
    exec((landing.TEMPLATE / "example.txt").read_text("utf-8"), found)
    assert found["robust"].shape == found["non_robust"].shape == (8,)


def test_what_the_first_page_and_the_headings_say_has_words_for_either_outcome():
    keys = [key for paper in contents.PAPERS.values() for key in paper["keys"]]
    keys += [page.companion["key"] for page in contents.sections() if "key" in page.companion]
    keys += [*landing.TEXT["figures"].values()]
    assert not [key for key in keys if not claims.entries()[key].found]
    homes = {artefact for page in contents.sections() for artefact in page.companion["artefacts"]}
    assert homes >= {*landing.TEXT["figures"], *landing.TEXT["clean"]}
    assert homes >= {paper["thumbnail"] for paper in contents.PAPERS.values()}
    stems = {page.notebook.stem for page in contents.sections()}
    assert stems >= {paper["start"] for paper in contents.PAPERS.values()}
