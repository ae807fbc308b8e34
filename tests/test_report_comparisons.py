"""Settings and steps beside the paper's, diagrams, and captions that settings write."""

import json

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.patches import FancyBboxPatch

from companion import params, paths
from companion.report import compared, conditions, diagrams, figure, label, line, steps, table
from companion.report.shown import Conditions
from companion.report.tables import EVIDENCE, faults, published
from robust_features.settings import UserError
from robust_features.training import loop

ENTRY = {"where": "P, Table 3", "evidence": "P", "index": ["model"], "values": {"setting": ["epochs", "decay"]}}
ENTRY |= {"rows": [["B", "100*", "yes"], ["A", "60", "no"]]}


@pytest.fixture
def page(tmp_path, monkeypatch):
    monkeypatch.setenv(paths.PAGE, str(tmp_path / "page"))
    return tmp_path / "page"


@pytest.fixture
def says(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "PUBLISHED", tmp_path / "published.yaml")
    return lambda **entries: (tmp_path / "published.yaml").write_text(json.dumps(entries))  # JSON is YAML


def test_settings_stand_in_the_papers_rows_and_columns_and_what_differs_is_marked(page, says):
    says(mine=ENTRY)
    ours = pd.DataFrame({"decay": {"A": "no", "B": "yes"}, "epochs": {"A": "5", "B": "100*"}})
    html = compared(ours, artefact="mine", caption="C").html
    assert html.index("epochs") < html.index("decay") and html.index("<th>B") < html.index("<th>A")
    assert (
        html.count("differs") == 1 and '<b class="differs">5</b><small>60</small>' in html and "In 1 of 4 cells" in html
    )
    assert pd.read_csv(page / "tables/mine.csv")["differs"].sum() == 1 and (page / "tables/mine.tex").exists()


def test_a_setting_that_we_lack_shows_a_dash_and_an_unknown_table_is_refused(page, says):
    says(mine=ENTRY)
    assert "–</b><small>100*" in compared(pd.DataFrame({"decay": {"A": "no"}}), artefact="mine", caption="C").html
    with pytest.raises(UserError, match="no values of 'other'"):
        compared(pd.DataFrame(), artefact="other", caption="C")


def test_a_printed_step_stands_beside_the_one_line_of_our_source_that_holds_the_words(page):
    source = line(loop._one_epoch, "optimiser.step()")
    html = steps(
        pd.DataFrame([["1", "θ ← θ − a", source]], columns=["step", "as printed", "our source"]),
        artefact="a",
        caption="C",
    ).html
    assert source == "optimiser.step()" and f"<code>{source}</code>" in html
    for words in ("no such words", "loss"):
        with pytest.raises(ValueError, match="not one"):
            line(loop._one_epoch, words)


def test_faults_of_a_paper_are_shown_with_their_evidence_where_its_artefact_is(page, says):
    says(mine={"faults": [{"said": "5 < 4", "evidence": "P, M"}]})
    html = figure(plt.figure(), artefact="mine", alt="nothing").html
    assert "5 &lt; 4 <i>(printed in the paper; our arithmetic on what is printed)</i>" in html and not faults("other")
    assert published("mine").empty


def test_every_fault_in_published_yaml_has_known_evidence():
    found = params.read(paths.PUBLISHED)
    tags = [each["evidence"] for entry in found.values() for each in entry.get("faults", [])]
    assert tags and {*", ".join(tags).split(", ")} <= {*EVIDENCE}


def test_a_caption_names_network_data_epochs_seeds_and_the_ball_and_steps_of_attacks():
    run = params.load()
    group = run.networks["kim/vgg16"]
    model, pgd = group.members["adversarial"], group.attacks["pgd"]
    text = conditions(run, "kim/vgg16/adversarial", attacks=["pgd", "cw"]).text
    assert (
        f"({model.epochs} epochs)" in text and f"L∞ ≤ {pgd.epsilon:.4g}" in text and f"PGD ({pgd.steps} steps)" in text
    )
    learnt = conditions(run, "ilyas/relabelled", attacks=["l2"]).text
    ordinary = label(run.constructed["ilyas/main"].dataset)
    assert f"the set random of {ordinary}" in learnt and f"on {ordinary}: PGD, L2" in learnt, (
        "it is tested on ordinary images"
    )
    assert "without bound: CW" in text and run.labels("kim/vgg16")["adversarial"] in text


@pytest.mark.parametrize(
    "seeds, over, kept",
    [
        ((1,), "over test images of one training", [1, 1]),
        ((3,), "over 3 seeds", [3, 1]),
        ((1, 3), "where n says so", [3, 1]),
    ],
)
def test_conditions_follow_a_caption_and_say_what_intervals_are_over(page, seeds, over, kept):
    rows = pd.DataFrame({"a": ["x", "z"], "b": "y", "value": 1.0, "low": 0.0, "high": 2.0, "n": [3, 200]})
    made = Conditions("Networks: none.", seeds)
    html = table(rows, artefact="mine", index=["a"], columns=["b"], caption="C", conditions=made).html
    drawn = figure(plt.figure(), artefact="mine", alt="nothing", data=rows, conditions=made).html
    assert all("Networks: none." in each and over in each for each in (html, drawn)) and "n = 3 to 200" in drawn
    files = [page / "tables/mine.csv", page / "figures/mine.csv"]
    assert [pd.read_csv(path)["seeds"].tolist() for path in files] == [kept] * 2


@pytest.mark.parametrize("layers", [["block1", "block2"], ["block1", "block2", "fc1"]])
def test_the_structure_of_ibrar_has_a_box_a_layer_and_blue_ones_where_the_regulariser_acts(layers):
    drawing = diagrams.ibrar(layers, layers[-1:])
    boxes = [each for each in drawing.axes[0].patches if isinstance(each, FancyBboxPatch)]
    assert len(boxes) == len(layers) + 5 and [
        text.get_text() for text in drawing.axes[0].texts if "T_{1}" in text.get_text()
    ]
    plt.close(drawing)


def test_the_artefact_of_type_c_is_no_part_of_the_shape_of_type_a_and_the_part_of_type_b_is():
    parts = diagrams.patterns()
    assert not (parts["A"] * parts["C"]).any() and ((parts["B"] > 0.5) <= (parts["A"] > 0)).all()
