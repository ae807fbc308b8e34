import json
import re
import shutil
import subprocess
import sys
from html import escape

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from sample_networks import at_scale

from companion import paths, report
from companion.report import figures, tables

pytestmark = pytest.mark.usefixtures("page")


def agreement(dataset="cifar10", value=90.0, **more):
    """Rows for kim-table-2: three attacks on two networks."""
    attacks, networks = ("pgd", "fgsm", "cw"), ("wrn28-10", "vgg16")
    names = [{"dataset": dataset, "example": attack, "network": net} for attack in attacks for net in networks]
    return pd.DataFrame(names).assign(value=value, low=value - 3, high=value + 1, n=400, **more)


def make(rows, **more):
    options = {"artefact": "kim-table-2", "index": ["example"], "columns": ["dataset", "network"]}
    return report.table(rows, **{**options, "caption": "Agreement", **more})


@pytest.mark.parametrize(("number", "count"), [(1, 72), (2, 18), (3, 144), (4, 90)])
def test_published_has_every_value_of_kims_tables(number, count):
    rows = report.published(f"kim-table-{number}")
    assert len(rows) == count and rows["value"].between(0, 100).all() and not rows["approximate"].any()


@pytest.mark.parametrize(
    ("artefact", "place", "value"),
    [
        ("kim-table-1", {"dataset": "cifar10", "network": "vgg16", "example": "cw", "features": "NR"}, 13.66),
        ("kim-table-1", {"dataset": "tiny-imagenet", "network": "vgg16", "example": "clean", "features": "NR"}, 7.5),
        ("kim-table-2", {"dataset": "svhn", "network": "wrn28-10", "example": "cw"}, 97.65),
        ("kim-table-3", {"dataset": "svhn", "network": "vgg16", "defence": "mart", "example": "clean"}, 90.5),
        ("kim-table-3", {"dataset": "cifar10", "network": "wrn28-10", "defence": "trades", "example": "apgd"}, 52.4),
        ("kim-table-4", {"dataset": "svhn", "network": "vgg16", "defence": "mart", "example": "clean"}, 90.4),
        ("kim-table-4", {"dataset": "cifar10", "network": "vgg16", "defence": "adversarial", "example": "rf2"}, 74.6),
    ],
)
def test_published_values_stand_where_the_paper_prints_them(artefact, place, value):
    rows = report.published(artefact)
    assert rows[(rows[list(place)] == pd.Series(place)).all(axis=1)]["value"].tolist() == [value]


def test_the_same_attack_has_the_same_value_in_tables_3_and_4():
    keys = ["dataset", "defence", "network", "example"]
    both = report.published("kim-table-3").merge(report.published("kim-table-4"), on=keys)
    differ = both[both["value_x"] != both["value_y"]]
    assert len(both) == 36 and differ[keys].to_numpy().tolist() == [["svhn", "mart", "vgg16", "clean"]]  # as printed


def test_an_unknown_artefact_has_no_published_rows_and_its_table_no_paper():
    shown = make(agreement(), artefact="our-own")
    assert report.published("our-own").empty and shown.rows["paper"].isna().all() and "Small" not in shown.html


def test_a_value_read_off_a_plot_is_approximate_and_shown_so(tmp_path, monkeypatch):
    entry = {"where": "Fig. 9", "unit": "%", "evidence": "P", "index": ["dataset"], "values": {"network": ["vgg16"]}}
    entry |= {"rows": [["cifar10", "~12.5"], ["svhn", None]]}
    (tmp_path / "published.yaml").write_text(json.dumps({"fig": entry}))  # JSON is YAML
    monkeypatch.setattr(paths, "PUBLISHED", tmp_path / "published.yaml")
    assert report.published("fig")[["value", "approximate"]].to_numpy().tolist() == [[12.5, True]]
    rows = agreement().drop_duplicates("network").drop(columns="example")
    assert "~12.5" in make(rows, artefact="fig", index=["dataset"], columns=["network"]).html


def test_the_csv_has_ours_first_and_then_what_was_not_run(page):
    make(agreement())
    rows = pd.read_csv(page / "tables/kim-table-2.csv")
    assert list(rows)[:9] == ["dataset", "example", "network", "paper", "ours", "low", "high", "n", "difference"]
    assert rows["example"][0] == "pgd" and rows["difference"][0] == pytest.approx(90 - 95.06)
    assert len(rows) == 18 and rows["ours"].isna().sum() == 12 and set(rows["dataset"][6:]) == {"svhn", "tiny-imagenet"}


def test_a_cell_shows_ours_the_half_interval_the_paper_and_the_difference():
    html = make(agreement()).html
    assert "<b>90.0</b> <i>±2.0</i><small>95.06 (−5.1)</small>" in html and "paper&#x27;s" not in html
    assert (
        "other values (12 of 18) have no counterpart at this scale: it has no networks on SVHN or Tiny-ImageNet" in html
    )
    assert "n = 400" in html
    assert html.index("FGSM") < html.index("PGD") and html.index("VGG-16") < html.index(
        "WRN-28-10"
    )  # the order of LABELS


def test_a_name_that_two_dimensions_share_stands_in_each_where_the_paper_has_it(page):
    paper = report.published("xu-table-1").query("dataset == 'cifar10'")
    rows = paper.drop(columns="approximate").assign(low=lambda t: t["value"], high=lambda t: t["value"] + 1, n=100)
    places = dict(index=["dataset", "network", "method", "loss"], columns=["example"])
    html = report.table(rows, artefact="xu-table-1", caption="", **places).html
    printed = [report.label(name) for name in paper["example"].unique()]
    assert [*re.findall(r"<th>([^<]+)</th>", html.partition("<thead>")[2])][: len(printed)] == printed


def test_numbers_stand_in_their_order_and_other_names_as_they_were_met():
    names = ["1/4", "0", "1/8", "sigma", "1", "gamma"]
    rows = pd.DataFrame({"epsilon": names, "measure": "m", "value": 1.0, "low": 1.0, "high": 1.0, "n": 1})
    how = dict(artefact="own-table", caption="", index=["epsilon"], columns=["measure"])
    html = report.table(rows, **how).html
    places = [html.index(f"<th>{name}</th>") for name in ("0", "sigma", "gamma", "1/8", "1/4", "1")]
    assert places == sorted(places)


def test_another_datasets_values_stand_apart_once_and_are_not_subtracted():
    shown = make(agreement("digits"), reference={"dataset": "cifar10"})
    ours, _, apart = shown.html.partition("The paper's values on <b>CIFAR-10</b>")
    assert "95.06" not in ours and apart.count("95.06") == 1 and "12 of 18" in apart
    assert shown.rows["difference"].isna().all() and shown.rows["paper"][:6].isna().all()
    mine = make(agreement("digits", given="true"), reference={"dataset": "cifar10"}, columns=["given", "network"])
    assert mine.html.count("95.06") == 1


def test_a_paper_none_of_whose_values_has_a_partner_is_not_said_to_have_been_left_out_above_its_values():
    shown = make(agreement("digits"))
    assert (
        "The paper's values (18 of 18) have no counterpart at this scale" in shown.html
        and "Small print:" not in shown.html
    )


def test_exact_values_have_neither_a_spread_nor_an_n_and_several_seeds_that_agree_have_both():
    rows = pd.DataFrame({"x": ["a"], "y": ["b"], "value": 1.0, "low": 1.0, "high": 1.0, "n": [pd.NA]})
    how = dict(artefact="own", caption="", index=["x"], columns=["y"])
    exact = report.table(rows, **how).html
    assert "±" not in exact and "n =" not in exact and "exact values" in exact
    assert "±0.0" in report.table(rows.assign(n=3), **how).html


def test_decimals_end_where_the_interval_begins_and_nothing_is_bold_where_all_is_ours():
    html = make(agreement(), decimals=2).html
    assert "<b>90.0</b>" in html and "90.00" not in html
    assert "90.00 <i>±0.04</i>" in make(agreement().assign(low=89.96, high=90.04), artefact="own", decimals=2).html
    bare = agreement().assign(low=np.nan, high=np.nan)
    assert "90.00" not in make(bare, artefact="own", decimals=2).html
    assert "90.00" in make(bare.assign(n=5000), artefact="own", decimals=2).html
    assert "<b>" not in make(agreement(), artefact="own").html.partition("<table")[2].partition("</table>")[0]


def test_the_features_of_a_header_are_defined_under_the_pointer():
    rows = pd.concat([agreement(features=name) for name in ("R", "NR")])
    html = make(rows, artefact="own", columns=["dataset", "network", "features"]).html
    assert '<abbr title="accuracy when only the robust channels Z_r are kept">R</abbr>' in html


def test_a_readers_own_data_and_networks_get_no_value_of_the_paper():
    own = pd.concat(
        [agreement("mine"), agreement("digits").replace({"vgg16": "vgg16, of mine-vgg16"})], ignore_index=True
    )
    with pytest.MonkeyPatch.context() as patch:
        run = tables.load_run()
        run["datasets"]["mine"], run["networks"]["kim/mine-vgg16"] = {}, {}
        patch.setattr(tables, "load_run", lambda: run)
        shown = make(own, reference={"dataset": "cifar10"})
    beside = shown.rows[shown.rows["ours"].notna()].dropna(subset=["reference"])
    assert {*beside["dataset"]} == {"digits"} and {*beside["network"]} == {"wrn28-10"}
    assert shown.rows["paper"][: len(own)].isna().all()


def test_a_network_that_stands_for_the_papers_is_joined_by_its_name_and_says_so():
    ours = {"WRN-10-1": "wrn28-10", "VGG-16, width 1/8": "vgg16"}
    shown = make(agreement().replace({name: mine for mine, name in ours.items()}), stands_for={"network": ours})
    assert "<th>WRN-10-1 (for WRN-28-10)</th>" in shown.html and "<th>VGG-16, width 1/8</th>" in shown.html
    assert shown.rows["paper"].tolist() == make(agreement()).rows["paper"].tolist()
    assert {*shown.rows["network"][:6]} == {"WRN-10-1 (for WRN-28-10)", "VGG-16, width 1/8"}


def test_a_dataset_that_is_the_papers_own_images_gets_its_values_and_differences_and_no_for():
    stands = at_scale("photographs").stands_for
    rows, reference = agreement("cifar10-25k"), {"dataset": "cifar10"}
    shown = make(rows, stands_for={"dataset": stands["dataset"]}, reference=reference)
    assert shown.rows["paper"].tolist() == make(agreement()).rows["paper"].tolist()
    assert shown.rows["difference"].notna().sum() == 6 and shown.rows["reference"].isna().all()
    assert {*shown.rows["dataset"][:6]} == {"cifar10-25k"}, (
        "the CSV's names are ids, by which claims know the study's datasets"
    )
    assert (
        "CIFAR-10, 25,000 to train</th>" in shown.html and "(for" not in shown.html and "other images" not in shown.html
    )
    some = make(rows[rows["example"] == "pgd"], stands_for={"dataset": stands["dataset"]}).html
    assert "it has no networks on SVHN or Tiny-ImageNet" in some and "CIFAR-10 or" not in some
    apart = make(rows, reference=reference).html
    assert "CIFAR-10</b>, which are other images" in apart, "without its leave it stays apart"


def test_the_tables_of_springer_and_ilyas_take_the_papers_values_at_a_scale_with_part_of_cifar10():
    run = at_scale("photographs")
    for entry, artefact, columns in (
        ("springer/main", "springer-table-1", ["classifier", "test set"]),
        ("ilyas/main", "ilyas-robust-dataset", ["trained on", "example"]),
        ("ilyas/main", "ilyas-nonrobust-dataset", ["trained on", "example"]),
    ):
        paper = report.published(artefact)
        rows = paper.assign(dataset=run.constructed[entry].dataset, low=0.0, high=100.0, n=1000).drop(
            columns="approximate"
        )
        places = dict(index=["dataset", columns[0]], columns=columns[1:], reference={"dataset": "cifar10"})
        shown = report.table(rows, artefact=artefact, caption="", stands_for=run.stands_for, **places)
        assert (
            shown.rows["difference"].eq(0).all()
            and len(shown.rows) == len(paper)
            and "no counterpart" not in shown.html
        )


def test_what_a_person_runs_is_written_to_explored(page, data, monkeypatch):
    monkeypatch.delenv(paths.PAGE)
    make(agreement())
    report.figure(draw(), artefact="figure", alt="points")
    assert (data / "explored/tables/kim-table-2.csv").exists() and (data / "explored/figures/figure.png").exists()
    assert not page.exists()


def test_constants_keep_other_defences_from_the_papers_values():
    rows = pd.concat([agreement(defence="adversarial"), agreement(defence="standard")], ignore_index=True)
    shown = make(rows, index=["defence", "example"])
    assert shown.rows.groupby("defence")["difference"].count().to_dict() == {"adversarial": 6, "standard": 0}


def test_a_missing_value_and_several_units_are_shown(page):
    rows = agreement().assign(unit=["%", "L2"] * 3)
    rows.loc[0, ["value", "low", "high"]] = np.nan
    html = make(rows, artefact="norms").html
    assert "– %" in html and "90.0 <i>±2.0</i> L2" in html and "in %" not in html
    assert "-- \\%" in (page / "tables/norms.tex").read_text()


def test_rows_that_fall_into_one_cell_or_lack_a_dimension_are_refused():
    with pytest.raises(ValueError, match="two rows fall into one cell"):
        make(agreement(), index=["dataset"], columns=["network"])
    with pytest.raises(ValueError, match="need the column example"):
        make(agreement().drop(columns="example").drop_duplicates(), index=["dataset"], columns=["network"])


def test_tables_are_byte_stable_and_latex_is_booktabs_in_ascii(page):
    def contents():
        html = make(agreement(), caption="At γ = 5 % & more").html
        return [html, *((page / f"tables/kim-table-2.{end}").read_bytes() for end in ("csv", "html", "tex"))]

    first = contents()
    assert first == contents()
    latex = first[-1].decode("ascii")
    assert r"\toprule" in latex and r"$\gamma$ = 5 \% \& more" in latex and r"90.0 $\pm$2.0" in latex


NAMES = {
    "a$b": r"a\$b",
    "<i>x": "$<$i$>$x",
    "_x": r"\_x",
    r"\end{table": r"$\backslash$end\{table",
    "50 % & #1": r"50 \% \& \#1",
    "[2]": "{[}2]",
    "*": "{*}",
    "~^|": r"$\sim$\textasciicircum{}$|$",
    "für": "für",
    "猫": "{[}U+732B]",
}


@pytest.mark.parametrize(("name", "latex"), NAMES.items())
def test_a_name_is_text_in_rows_columns_units_and_captions(page, name, latex):
    rows = pd.DataFrame(
        {"class": [name, "b", name, "b"], "as": [name, name, "c", "c"], "value": 1.0, "unit": ["s", name] * 2}
    )
    places = dict(index=["class"], columns=["as"], caption=f"Of {name}")
    shown = report.table(rows.assign(low=np.nan, high=np.nan, n=1), artefact="own", **places)
    as_html = escape(name, quote=False)
    assert shown.html.count(f"<th>{as_html}</th>") == 2 and f">1.0 {as_html}</td>" in shown.html
    assert f"</a> Of {as_html}</figcaption>" in shown.html and name in {*shown.rows["class"]}
    text = (page / "tables/own.tex").read_text("utf-8")
    assert f"\n{latex} & 1.0 s & 1.0 s" in text and f"& 1.0 {latex} &" in text and f"{{Of {latex}}}" in text


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="needs pdflatex, with booktabs and multirow")
def test_a_table_of_odd_names_is_typeset_without_an_error(page):
    rows = pd.DataFrame({"class": [*NAMES], "as": "".join(NAMES), "value": 1.0, "low": 0.5, "high": 1.5, "n": 1})
    report.table(rows, artefact="own", index=["class"], columns=["as"], caption="".join(NAMES))
    lines = [
        r"\documentclass{article}\usepackage{booktabs,multirow}\begin{document}",
        r"\input{tables/own}\end{document}",
    ]
    (page / "all.tex").write_text("".join(lines))
    done = subprocess.run(["pdflatex", "-halt-on-error", "all.tex"], cwd=page, capture_output=True)
    assert done.returncode == 0, done.stdout[-2000:].decode(errors="replace")


def draw(points=20):
    report.style()
    fig, ax = plt.subplots()
    ax.scatter(*np.random.default_rng(0).random((2, points)))
    ax.set_title("β")
    return fig


def test_figures_are_byte_stable_closed_and_described(page):
    def contents():
        shown = report.figure(draw(), artefact="figure", alt='"A" & b', data=agreement())
        return [shown.html, *((page / f"figures/figure.{end}").read_bytes() for end in ("svg", "png", "csv"))]

    first = contents()
    assert first == contents() and not plt.get_fignums()
    assert 'alt="&quot;A&quot; &amp; b"' in first[0] and "data:image/svg+xml" in first[0]
    assert b"currentColor" in first[1] and figures.INK.encode() in first[1].split(b"</style>")[0]


def test_a_heavy_figure_is_shown_as_png_and_one_without_artefact_is_only_shown(page):
    shown = report.figure(draw(points=6000), alt="many points")
    assert "data:image/png" in shown.html and "href" not in shown.html and not list(page.rglob("*.*"))


def test_importing_the_report_imports_neither_torch_nor_nbconvert():
    code = "import sys, companion.report, companion.claims; "
    code += "sys.exit(bool({'torch', 'nbconvert', 'papermill'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
