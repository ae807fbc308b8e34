import io
import os
import subprocess
import sys
from types import SimpleNamespace

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch

from companion import claims
from companion.report import curves, figure, images, landing, multiples, plain, style

ODD = ["a$b$", "$", r"\$x$ \alpha", "a_b^c", "<b> & {%#}", r"$\frac{", "ä"]


def pixels(text, **options):
    drawing = plt.figure(figsize=(3, 0.5))
    drawing.text(0.1, 0.3, text, **options)
    drawing.savefig(buffer := io.BytesIO(), format="png")
    plt.close(drawing)
    return buffer.getvalue()


@pytest.mark.parametrize("text", ODD)
def test_plain_text_is_drawn_letter_by_letter(text):
    assert pixels(plain(text)) == pixels(text, parse_math=False)


def test_names_above_and_beside_images_are_text(tmp_path):
    pictures = torch.zeros(1, 3, 8, 8)
    columns = images.in_columns({name: pictures for name in ODD}, {name: [name] for name in ODD})
    rows = images.in_rows({name: pictures for name in ODD}, ODD[:1])
    said = [
        [label.get_text() for label in columns.axes[0].get_xticklabels()],
        [t.get_text() for t in columns.axes[0].texts],
    ]
    said += [[label.get_text() for label in rows.axes[0].get_yticklabels()]]
    assert said == [[*map(plain, ODD)]] * 3 and rows.axes[0].get_xticklabels()[0].get_text() == plain(ODD[0])
    for drawing in (columns, rows):
        figure(drawing, alt="no error")


def test_a_column_without_titles_has_none_and_many_columns_stay_on_the_page():
    pictures = torch.zeros(1, 3, 8, 8)
    drawing = images.in_columns({str(number): pictures for number in range(20)}, {"0": ["cat"], "19": ["dog"]})
    assert [t.get_text() for t in drawing.axes[0].texts] == ["cat", "dog"]
    assert drawing.get_size_inches()[0] == pytest.approx(images.WIDEST)
    few = images.in_columns({"a": pictures, "b": pictures})
    assert few.get_size_inches()[0] == pytest.approx(2.7)
    plt.close("all")


def test_a_floor_is_drawn_in_its_own_panel_alone():
    rows = pd.DataFrame(
        {"x": ["0", "1"] * 2, "value": 1.0, "low": 0.0, "high": 2.0, "victim": ["a", "a", "b", "b"], "on": "digits"}
    )
    options = dict(x="x", panel="victim", group="on", xlabel="", ylabel="")
    drawing = multiples(rows, **options, floors={("digits", "a"): 0.5})
    dashed = [[line.get_ydata()[0] for line in axis.lines if line.get_linestyle() == "--"] for axis in drawing.axes[:2]]
    assert dashed == [[0.5], []] and not [
        line for axis in multiples(rows, **options).axes for line in axis.lines if line.get_linestyle() == "--"
    ]
    plt.close("all")


def test_a_name_with_an_underscore_in_front_has_its_line_in_the_legend():
    drawing, axis = plt.subplots()
    curves(axis, pd.DataFrame({"x": [0], "value": [1.0], "low": [0.0], "high": [2.0], "hue": "_a"}), x="x", hue="hue")
    assert [text.get_text() for text in axis.legend().get_texts()] == [r"$\_$a"]
    plt.close(drawing)


@pytest.mark.parametrize("plots", [True, False])
def test_a_users_matplotlibrc_does_not_reach_a_figure(plots):
    def drawn():
        style(plots=plots)
        drawing, axis = plt.subplots()
        axis.plot([0, 1], label="a")
        axis.legend()
        return figure(drawing, alt="a line").html

    first = drawn()
    plt.rcParams.update({"lines.linewidth": 9, "svg.fonttype": "none", "text.parse_math": False, "axes.grid.axis": "x"})
    assert drawn() == first


def test_a_caption_begins_with_what_the_papers_claims_on_the_figure_have_come_to(page, monkeypatch):
    entry = SimpleNamespace(artefacts=["mine"], ours=False)
    monkeypatch.setattr(
        claims, "entries", lambda: {"rises": entry, "ours": SimpleNamespace(artefacts=["mine"], ours=True)}
    )
    monkeypatch.setattr(claims, "verdict", lambda id: id)
    monkeypatch.setattr(landing, "sentence", lambda verdict: f"It {verdict} < there.")
    rows = pd.DataFrame({"value": [1.0]})
    assert (
        "<b>It rises &lt; there.</b> Two bars." in figure(plt.figure(), artefact="mine", alt="Two bars", data=rows).html
    )
    assert (
        "<b>" not in figure(plt.figure(), artefact="other", alt="Two bars", data=rows).html.partition("<figcaption>")[2]
    )
    told = figure(plt.figure(), artefact="mine", alt="Two bars", data=rows, finding="The second is higher.").html
    assert "<b>It rises &lt; there. The second is higher.</b> Two bars." in told


DRAWN = """
import hashlib, io
import matplotlib, torch
from companion.report.diagrams import two_experiments

matplotlib.use("Agg")
matplotlib.rcParams["svg.hashsalt"] = "figure"
pictures = {name: torch.full((3, 2, 2), k / 5) for k, name in enumerate(("D", "D_R", "D_NR", "clean", "attacked"))}
with io.BytesIO() as file:
    two_experiments(pictures, {name: name for name in pictures}).savefig(file, format="svg", metadata={"Date": None})
    print(hashlib.sha256(file.getvalue()).hexdigest())
"""


def test_a_diagram_is_drawn_in_one_order_whatever_that_of_sets():
    drawn = {
        subprocess.check_output([sys.executable, "-c", DRAWN], env={**os.environ, "PYTHONHASHSEED": seed})
        for seed in ("0", "1", "2", "3")
    }
    assert len(drawn) == 1
