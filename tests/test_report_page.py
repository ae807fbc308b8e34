import base64
import re

import nbformat
import pytest
from nbformat.v4 import new_output
from sample_report import make_project, write_notebook

from companion.report import contents, index, page, search
from robust_features.settings import UserError

PROVENANCE = {
    **{"commit": "abc + uncommitted changes", "command": "run", "scale": "quick", "seed": 7, "started": "today"},
    **{"run time": "3 s", "hardware": "an abacus; no GPU", "versions": {"python": "3.11", "torch": "2.15"}},
}
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="


def companion(**artefacts):
    return {"paper": "P", "section": "1", "artefacts": artefacts}


@pytest.fixture
def project(tmp_path, monkeypatch):
    return make_project(tmp_path, monkeypatch)


KEY = """
agreement:
  paper: P
  place: Table 2
  artefact: kim-table-2
  claim: R exceeds Int
  rule: {compare: features, more: R, less: Int}
  found: {holds: R beats Int, fails: Int beats R}
"""


def show(project, *cells, outputs=(), run=None, name="11-first", **about):
    """The HTML of a section page with `cells`, whose last one has `outputs`."""
    path = write_notebook(project, name, ["# A *claim*", *cells], companion={**companion(), **about})
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[-1]["outputs"] = list(outputs)
    notebook.metadata["provenance"] = PROVENANCE
    target = project / "reports/quick" / name / "index.html"
    place = next(place for place in contents.sections() if place.notebook == path)
    page.render(notebook, target, run=run or contents.load_run(), page=place)
    return target.read_text("utf-8")


def test_a_page_is_small_asks_for_nothing_and_hides_its_code_behind_one_switch(project):
    html = show(project, "# Prose", "import numpy")
    assert not re.search(r'(src|href)="(https?:)?//|@import|url\(|<script', html) and len(html) < 30_000
    assert '<div class="code">' in html and html.count('type="checkbox"') == 1 and "<title>A claim</title>" in html


def test_what_stands_before_the_second_words_is_folded_as_the_set_up(project):
    html = show(project, "import numpy", "run = 1", "# Prose", "print(1)")
    setup = html.partition('<details class="setup"><summary>Set-up</summary>')[2].partition("</details>")[0]
    assert setup.count('<section class="cell"') == 2 and "Prose" not in setup
    assert "<details" not in show(project, "import numpy"), "nothing to fold without words after it"


def test_a_heading_asks_while_most_comparisons_are_undecided(project):
    (project / "claims.yaml").write_text(KEY)
    table = project / "reports/quick/11-first/tables/kim-table-2.csv"
    table.parent.mkdir(parents=True)
    rows = [
        f"{name},R,{robust},{robust - 5},{robust + 5}\n{name},Int,50,45,55"
        for name, robust in zip("abc", (90, 52, 51), strict=True)
    ]
    table.write_text("\n".join(["example,features,ours,low,high", *rows[:2], ""]))
    assert re.search(r"<h1[^>]*>(.*?) <a", show(project, key="agreement"))[1] == "A <em>claim</em>"
    table.write_text(
        "\n".join(["example,features,ours,low,high", rows[0], rows[0].replace("a,", "d,"), *rows[1:2], ""])
    )
    assert re.search(r"<h1[^>]*>(.*?) <a", show(project, key="agreement"))[1] == "R beats Int in 2 of 3 comparisons"


VERDICTS = {90: ("R beats Int", "holds"), 10: ("Int beats R", "does not hold"), 50: ("", "open")}


@pytest.mark.parametrize("robust", VERDICTS)
def test_a_heading_says_what_was_found_and_asks_while_nothing_was(project, robust):
    finding, word = VERDICTS[robust]
    (project / "claims.yaml").write_text(KEY)
    table = project / "reports/quick/11-first/tables/kim-table-2.csv"
    table.parent.mkdir(parents=True)
    table.write_text(f"features,ours,low,high,n\nR,{robust},{robust - 5},{robust + 5},200\nInt,50,45,55,200\n")
    html = show(project, key="agreement", doubt="It may be luck.")
    assert re.search(r"<h1[^>]*>(.*?) <a", html)[1] == (finding or "A <em>claim</em>")
    assert ('<p class="question">A claim</p>' in html) == bool(finding) and "It may be luck." in html
    assert f"</b> {word}</span>" in html
    assert "<dd>Low: handwritten digits, one training of each network, n = 200" in html


def test_equations_become_mathml_and_code_spans_survive(project):
    html = show(project, r"# E" + "\n\nInline $x_1 < 2$ and `a_$b$_c`.\n\n$$\\max_{\\delta} \\mathbb{E}[L]$$")
    assert html.count("<math") == 2 and "<munder><mo>max</mo>" in html and "𝔼" in html
    assert "<code>a_$b$_c</code>" in html and "$$" not in html and 'display="block"' in html


@pytest.mark.parametrize("latex", [r"\mathbb{1}(x)", r"\arg\max_i z_i", r"\begin{aligned}a &= b \\ c\end{aligned}"])
def test_what_the_converter_lacks_is_written_as_it_knows_it(latex):
    assert not re.search(r"\\|&(?!#)|mathvariant", page.mathml(latex, display=True))


@pytest.mark.parametrize("latex", [r"\foo{x}", r"\boldsymbol{\sigma}", r"a & b"])
def test_an_equation_that_would_show_wrongly_is_refused(latex):
    with pytest.raises(UserError, match="neither latex2mathml nor browsers know"):
        page.mathml(latex, display=False)


def test_images_keep_their_alt_text_and_terminal_colours_go(project):
    image = new_output("display_data", {"image/png": PIXEL}, metadata={"image/png": {"alt": 'a "dot"'}})
    error = new_output("error", ename="E", evalue="e", traceback=["\x1b[31mred <b>\x1b[0m"])
    html = show(project, "draw()", outputs=[image, error, new_output("stream", text="\x1b[1mbold\x1b[0m")])
    assert 'alt="a &quot;dot&quot;"' in html or "alt='a \"dot\"'" in html
    assert "red &lt;b&gt;" in html and "bold" in html and "\x1b" not in html


def test_html_and_text_results_are_shown(project):
    results = [{"text/html": "<i>rich</i>"}, {"text/plain": "a<b"}]
    html = show(project, "1", outputs=[new_output("execute_result", result) for result in results])
    assert "<i>rich</i>" in html and "a&lt;b" in html


def test_the_banner_follows_the_scale(project):
    run = contents.load_run()
    assert "not the paper&#39;s numbers" in show(project, run=run)
    assert "One GPU" in show(project, run={**run, "scale": "gpu", "title": "One GPU"})
    assert 'class="banner"' not in show(project, run={**run, "scale": "paper", "title": "All"})


def test_the_footer_says_where_the_page_comes_from(project):
    html = show(project)
    assert "abc + uncommitted changes" in html and "an abacus; no GPU" in html and "python 3.11, torch 2.15" in html


def test_navigation_leads_through_sections_and_then_groundwork(project):
    first, second = show(project), show(project, name="12-second")
    assert 'rel="prev"' not in first and 'href="../12-second/index.html"' in first
    assert 'href="../11-first/index.html"' in second and 'href="../groundwork/dataset/digits.html"' in second
    assert 'href="../index.html"' in first


def test_a_page_with_three_headings_has_a_table_of_its_contents(project):
    html = show(project, "# Prose\n\n## One & only\n\n## Two\n\n## The $x$ third")
    assert re.search(r'<nav class="toc".*href="#one-amp-only">One &amp; only</a>.*href="#two"', html, re.DOTALL)


def test_every_heading_has_an_anchor_of_its_own_that_the_search_and_the_list_lead_to(project):
    prose = (
        "# Prose\n\n## Results\n\n## See [this](x.html) & `<b>` now\n\n### ±\n\n## Results\n\n## Cell 3\n\n## Cell *3*"
    )
    html = show(project, prose, "1")
    ids = re.findall(r'\bid="([^"]+)"', html)
    wanted = ["results", "see-this-amp-lt-b-gt-now", "section", "results-2", "cell-3-2", "cell-3-3"]
    assert len(ids) == len({*ids}) and re.findall(r'<h[23] id="([^"]+)"', html) == wanted
    assert re.findall(r'<a [^>]*href="#([^"]+)"[^>]*>#</a>', html)[2:] == wanted
    assert '<a href="#see-this-amp-lt-b-gt-now">See this &amp; &lt;b&gt; now</a>' in html
    found = [entry for entry in search.entries(contents.load_run(), project / "reports/quick") if "See" in entry[0]]
    assert [(entry[0], entry[3]) for entry in found] == [("See this & <b> now", f"11-first/index.html#{wanted[1]}")]


@pytest.mark.parametrize(
    "source",
    ["![a dot](attachment:my%20dot.png)", '<img width="9" src="attachment:my dot.png">', 'is <img src="dot.png"> here'],
)
def test_a_pasted_image_and_one_that_lies_beside_the_notebook_are_in_the_page(project, source):
    (project / "notebooks/dot.png").write_bytes(base64.b64decode(PIXEL))
    html = page.markdown(source, {"my dot.png": {"image/png": PIXEL}}, folder=project / "notebooks")
    assert f'src="data:image/png;base64,{PIXEL}"' in html


def test_the_image_of_a_cell_is_shown_and_one_that_is_missing_is_named(project):
    path = write_notebook(project, "11-first", ["# A\n\n![dot](attachment:dot.png)"], companion=companion())
    notebook, target = nbformat.read(path, as_version=4), project / "x.html"
    notebook.cells[0]["attachments"] = {"dot.png": {"image/png": PIXEL}}
    page.render(notebook, target, run=contents.load_run())
    assert f"data:image/png;base64,{PIXEL}" in target.read_text("utf-8")
    del notebook.cells[0]["attachments"]
    with pytest.raises(UserError, match="pasted image 'dot.png', which it does not hold"):
        page.render(notebook, target, run=contents.load_run())


def test_a_notebook_may_have_any_name_and_links_lead_to_its_page(project):
    html = show(project, name="80 50% #1?")
    assert 'href="../12-second/index.html"' in html and '"80%2050%25%20%231%3F/index.html"' in (
        index.scale_index(contents.load_run()).read_text("utf-8")
    )
    (project / "notebooks/._80.ipynb").write_bytes(b"\xff\x00")  # what macOS adds to a ZIP
    assert 'href="../80%2050%25%20%231%3F/index.html"' in show(project, name="12-second")
