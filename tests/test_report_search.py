import pytest
from sample_report import COMPANION, make_project, write_notebook

from companion.report import contents, search


@pytest.fixture
def report(tmp_path, monkeypatch):
    make_project(tmp_path, monkeypatch)
    for file in ("11-first/index.html", "groundwork/networks/kim/vgg16.html"):
        path = tmp_path / "reports/quick" / file
        path.parent.mkdir(parents=True)
        html = '<h2 id="one-two">One &amp; <em>two</em> <a class="anchor" href="#one-two">#</a></h2>'
        path.write_text(html + '<p id="kim-figure-5"><p id="kim-table-2">')
    return tmp_path / "reports/quick"


def test_search_finds_pages_headings_and_artefacts_of_what_is_made(report):
    found = search.entries(contents.load_run(), report)
    place = "Kim et al. 2021, 3.1"
    assert found == [
        ("A claim", "", place, "11-first/index.html"),
        ("One & two", "", f"{place} A claim", "11-first/index.html#one-two"),
        ("Figure 5", "Along β", f"{place}, kim-figure-5", "11-first/index.html#kim-figure-5"),
        ("Table 2", "Agreement", f"{place}, kim-table-2", "11-first/index.html#kim-table-2"),
        ("Networks: kim/vgg16", "", "Groundwork", "groundwork/networks/kim/vgg16.html"),
    ]


def test_search_finds_what_a_section_is_about_though_no_heading_says_so(report):
    write_notebook(
        report.parents[1], "11-first", ["# A *claim*"], companion={**COMPANION, "section": "3.1", "topics": "leaks"}
    )
    assert ("A claim", "leaks", "Kim et al. 2021, 3.1", "11-first/index.html") in search.entries(
        contents.load_run(), report
    )
