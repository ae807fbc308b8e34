import re

import pytest
from sample_report import make_project, write_notebook

from companion.report import contents, index


@pytest.fixture
def project(tmp_path, monkeypatch):
    return make_project(tmp_path, monkeypatch)


def companion(**artefacts):
    return {"paper": "P", "section": "1", "artefacts": artefacts}


def make_page(project, name):
    folder = project / "reports/quick" / name
    folder.mkdir(parents=True)
    (folder / "index.html").write_text('<p id="p-figure-d"><p id="kim-table-2"><p id="kim-figure-5">')


def test_the_index_lists_artefacts_thumbnails_and_groundwork(project):
    make_page(project, "11-first")
    write_notebook(project, "12-second", ["# Other"], companion=companion(**{"p-figure-d": "F"}))
    figure = project / "reports/quick/12-second/figures/p-figure-d.png"
    make_page(project, "12-second")
    figure.parent.mkdir()
    figure.touch()
    html = index.scale_index(contents.load_run()).read_text("utf-8")
    assert (
        '<a href="12-second/index.html#p-figure-d">Figure D</a>' in html
        and '<img src="12-second/figures/p-figure-d.png"' in html
    )
    assert (
        "kim/vgg16 (not made)" in html and "Constructed datasets" in html and '<a href="11-first/index.html">' in html
    )


def test_the_index_begins_with_a_row_a_claim_that_links_to_its_evidence(project):
    make_page(project, "12-second")
    html = index.scale_index(contents.load_run()).read_text("utf-8")
    rows = re.findall(r"<tr><td><span class=.*?</tr>", html.partition('class="ledger"')[2], re.DOTALL)
    assert html.index('class="ledger"') < html.index('id="paper-1"') and len(rows) == 2
    assert '<a href="12-second/index.html#kim-table-2">' in rows[0] and "ours" not in rows[0]
    assert '<a href="12-second/index.html#kim-figure-5">' in rows[1] and '<i class="ours">ours</i> control' in rows[1]


def test_the_index_shows_another_verdict_when_a_result_changes(project):
    table = project / "reports/quick/12-second/tables/kim-table-2.csv"
    table.parent.mkdir(parents=True)
    for low, high, word in ((80, 90, "holds"), (0, 9, "does not hold"), (30, 50, "open")):
        table.write_text(f"network,paper,ours,low,high\nvgg16,,40,{low},{high}\nwrn28-10,,40,35,45\n")
        html = index.scale_index(contents.load_run()).read_text("utf-8")
        assert re.search(
            rf'<span class="chip {word.replace(" ", "-")}"><b aria-hidden="true">.</b> {word}</span></td>\n<td>one',
            html,
        )


def test_one_latex_document_inputs_every_table_that_is_made(project):
    write_notebook(project, "11-first", ["# First"], companion=companion(**{"p-table-1": "A", "p-table-2": "B"}))
    tables = project / "reports/quick/11-first/tables"
    tables.mkdir(parents=True)
    (tables / "p-table-2.tex").touch()
    latex = index.all_tables(contents.load_run()).read_text("utf-8")
    assert (
        latex.count("\\input") == 1
        and "\\input{11-first/tables/p-table-2}" in latex
        and latex.endswith("\\end{document}\n")
    )


def test_an_artefact_that_a_page_lacks_at_this_scale_has_no_link(project):
    make_page(project, "12-second")
    (project / "reports/quick/12-second/index.html").write_text('<p id="kim-table-2">')
    html = index.scale_index(contents.load_run()).read_text("utf-8")
    assert "12-second/index.html#kim-table-2" in html and "12-second/index.html#kim-figure-5" not in html
