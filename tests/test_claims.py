from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from companion import claims, paths
from companion.claims import entries, verdict
from companion.report import contents
from companion.rules import PARTING, Rule, compared, difference
from companion.study import Study
from robust_features.settings import UserError

HOMES = {artefact for page in contents.sections() for artefact in page.companion["artefacts"]}
RULE = Rule(compare="features", more="R", less="Int")


def rows(robust, intermediate, spread=2.0, example="pgd"):
    values = {"R": robust, "Int": intermediate}
    return pd.DataFrame(
        {"example": example, "features": name, "ours": v, "low": v - spread, "high": v + spread, "n": 100}
        for name, v in values.items()
    )


def keep(page, rows, kind="tables", artefact="kim-table-1"):
    path = page / kind / f"{artefact}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows.to_csv(path, index=False)


def judge(rule, page, artefact="kim-table-1"):
    entry = claims.Entry(paper="P", place="T", artefact=artefact, claim="C", rule=rule)
    found = claims.judge(entry, page)
    return tuple(found.count(outcome) for outcome in ("for", "against", "open"))


@pytest.mark.parametrize(
    "judged, word",
    [
        (rows(90, 50), "holds"),
        (rows(50, 90), "does not hold"),
        (rows(51, 50), "open"),
        (pd.concat([rows(90, 50), rows(50, 90, example="cw")]), "mixed"),
        (pd.concat([rows(90, 50), rows(90, 50, example="fgsm"), rows(51, 50, example="cw")]), "mostly holds"),
        (pd.concat([rows(90, 50), rows(51, 50, example="fgsm"), rows(51, 50, example="cw")]), "open"),
        (pd.concat([rows(50, 90), rows(51, 50, example="fgsm"), rows(51, 50, example="cw")]), "does not hold"),
        (rows(90, 50, example="clean"), "no such row"),
    ],
    ids=["apart", "reversed", "overlapping", "contradicted", "most", "few", "one against", "absent"],
)
def test_a_verdict_follows_the_intervals(page, judged, word):
    keep(page, judged)
    assert verdict("kim-robust-features-hold").word == word


def test_a_verdict_is_about_its_own_page_and_the_contents_about_all(page, monkeypatch):
    keep(page / "11-first", rows(90, 50))
    assert verdict("kim-robust-features-hold").word == "holds", "found below the folder too"
    monkeypatch.setenv(paths.PAGE, str(page / "12-second"))
    assert verdict("kim-robust-features-hold").word == "not run"
    keep(page / "12-second", rows(50, 90))
    assert verdict("kim-robust-features-hold").word == "does not hold"


def test_a_claim_that_there_is_not_is_named_with_the_nearest():
    with pytest.raises(
        UserError, match="claims.yaml has no 'kim-robust-feature-hold'; did you mean 'kim-robust-features"
    ):
        verdict("kim-robust-feature-hold")


def test_a_perturbed_result_changes_the_verdict(page):
    before = rows(90, 50)
    keep(page, before)
    assert verdict("kim-robust-features-hold").word == "holds"
    robust = before["features"] == "R"
    keep(page, before.assign(**{c: before[c] - 45 * robust for c in ("ours", "low", "high")}))
    assert verdict("kim-robust-features-hold").word == "does not hold"


def test_rows_are_chosen_by_where_and_unless_and_matched_on_all_else_but_what_is_ignored(page):
    both = pd.concat([rows(90, 50), rows(50, 90, example="cw")]).assign(channels=range(4))
    keep(page, both)
    assert judge(RULE, page) == (0, 0, 0)
    assert judge(Rule(**vars(RULE) | {"ignore": ["channels"]}), page) == (1, 1, 0)
    for chosen in ({"where": {"example": ["cw"]}}, {"unless": {"example": ["pgd"]}}):
        assert judge(Rule(**vars(RULE) | {"ignore": ["channels"]} | chosen), page) == (0, 1, 0)


def test_a_value_is_held_against_a_constant(page):
    keep(page, rows(90, 10))
    assert judge(Rule(above=30), page) == (1, 1, 0) and judge(Rule(above=11), page) == (1, 0, 1)


def test_dimensions_are_text_so_that_numbers_and_truth_values_match_what_claims_yaml_says(page):
    keep(page, rows(90, 50).assign(features=["true", "false"], epsilon=0.5))
    assert judge(Rule(compare="features", more="true", less="false", where={"epsilon": ["0.5"]}), page) == (1, 0, 0)


def test_several_artefacts_are_judged_together_as_far_as_they_are_there(page):
    keep(page, rows(90, 50))
    assert judge(RULE, page, artefact=["kim-table-1", "kim-table-2"]) == (1, 0, 0)
    keep(page, rows(50, 90, example="cw"), artefact="kim-table-2")
    assert judge(RULE, page, artefact=["kim-table-1", "kim-table-2"]) == (1, 1, 0)


def test_the_papers_values_that_were_not_run_are_no_results(page):
    keep(page, rows(90, 50).assign(ours=float("nan"), low=float("nan"), high=float("nan"), paper=50))
    assert judge(RULE, page) == (0, 0, 0)


def test_a_figure_without_intervals_decides_nothing(page):
    keep(page, rows(90, 50).rename(columns={"ours": "value"})[["features", "value"]], kind="figures")
    assert judge(RULE, page) == (0, 0, 1)
    keep(page, pd.DataFrame({"features": ["R", "Int"], "x": [1, 2]}), kind="figures")
    assert judge(RULE, page) == (0, 0, 0)


def test_two_rows_that_agree_on_everything_are_refused(page):
    keep(page, pd.concat([rows(90, 50)] * 2))
    with pytest.raises(pd.errors.MergeError):
        judge(RULE, page)


def test_a_rule_about_a_column_that_is_not_there_is_refused(page):
    keep(page, rows(90, 50))
    with pytest.raises(UserError, match="kim-table-1 has no column given"):
        judge(Rule(compare="given", more="true", less="random"), page)


def test_a_misspelt_key_of_claims_yaml_is_named(tmp_path, monkeypatch):
    (tmp_path / "claims.yaml").write_text("mine: {paper: P, place: T, artefact: a, claim: C, rule: {abov: 1}}")
    monkeypatch.setattr(paths, "CLAIMS", tmp_path / "claims.yaml")
    with pytest.raises(ValidationError, match="mine.rule\n.*did you mean 'above'"):
        entries()


def curve(*values, spread=1.0, **more):
    """A row a value, at x = 0, 1/4, 1/2, … of text, with intervals of ± spread."""
    places = [str(Fraction(place, 4)) for place in range(len(values))]
    rows = pd.DataFrame({"x": places, "value": values, "n": "100"}).assign(**more)
    return rows.assign(low=rows["value"] - spread, high=rows["value"] + spread)


@pytest.mark.parametrize(
    "form, values, outcome",
    [
        ("peak", (1, 9, 2), "for"),
        ("peak", (1, 5, 9), "against"),  # a curve that rises all the way has no interior peak
        ("peak", (1, 9, 9), "open"),  # nor is a plateau one
        ("peak", (9, 9.5, 9), "open"),
        ("falls", (9, 5, 1), "for"),
        ("falls", (9, 1, 5), "against"),  # it ends lower than it began, and rises on the way
        ("falls", (9, 8, 8.5), "open"),
        ("rises", (1, 5, 9), "for"),
        ("rises", (9, 5, 1), "against"),
    ],
)
def test_a_peak_and_a_trend_are_asked_of_the_whole_curve(form, values, outcome):
    shuffled = curve(*values).sample(frac=1, random_state=0)
    (found,) = compared(Rule(**{form: "x"}), shuffled)
    assert found.outcome == outcome and found.looks > 1


def test_places_along_a_curve_are_ordered_by_the_number_their_text_ends_with():
    rows = curve(1, 2, 9, 3).assign(x=["R 0", "R 1/256", "R 1/2", "R 1"])
    (found,) = compared(Rule(peak="x"), rows.iloc[::-1])
    assert found.outcome == "for" and "R 1/2" in found.numbers
    with pytest.raises(ValueError, match="'test' ends with no number"):
        list(compared(Rule(peak="x"), rows.assign(x=["test", "R 1", "R 2", "R 3"])))


@pytest.mark.parametrize(
    "robust, other, outcome",
    [((9, 1), (1, 9), "for"), ((9, 9), (1, 1), "against"), ((1, 1), (9, 9), "open"), ((9, 5), (1, 5), "open")],
    ids=["reversed", "never", "always so", "level"],
)
def test_an_order_is_reversed_only_if_it_was_the_other_way_round_before(robust, other, outcome):
    rows = pd.concat([curve(*robust, features="R"), curve(*other, features="NR")])
    (found,) = compared(Rule(reverses="x", compare="features", more="NR", less="R"), rows)
    assert found.outcome == outcome


@pytest.mark.parametrize("other, outcome", [(9, "for"), (1, "against"), (5, "open")])
def test_the_strongest_attack_is_stronger_than_each_of_the_others(other, outcome):
    rows = pd.concat([curve(value, attack=name) for name, value in (("nrf", 5), ("pgd", 9), ("cw", other))])
    (found,) = compared(Rule(compare="attack", more=("pgd", "cw"), less="nrf"), rows)
    assert found.outcome == outcome and found.looks == 2 and ("CW" in found.numbers or outcome == "for")


def test_a_correlation_is_held_against_zero_by_its_interval():
    for slope, outcome in ((1, "for"), (-1, "against")):
        rows = curve(1, 2, 3, 4.1, 5).assign(learnt=[str(slope * each) for each in range(5)])
        (found,) = compared(Rule(correlates="learnt"), rows)
        assert found.outcome == outcome
    assert not [*compared(Rule(correlates="learnt"), rows.head(3))]


def test_the_comparison_shown_is_the_one_that_decides(page):
    keep(page, pd.concat([rows(90, 50), rows(50, 90, example="cw"), rows(40, 90, example="fgsm")]))
    found = verdict("kim-robust-features-hold")
    assert found.word == "mixed" and found.deciding.margin == -46 and found.decided_by.startswith("FGSM: R 40.0")
    keep(page, pd.concat([rows(90, 50), rows(70, 50, example="cw")]))
    assert verdict("kim-robust-features-hold").decided_by == "CW: R 70.0 [68.0, 72.0] against Int 50.0 [48.0, 52.0]"


@pytest.mark.parametrize(
    ("more", "less", "apart"), [((60, 55, 65), (50, 45, 54), True), ((60, 55, 65), (50, 45, 56), False)]
)
def test_a_difference_leaves_out_zero_exactly_where_the_intervals_do_not_overlap(more, less, apart):
    names = ("value", "low", "high")
    effect, low, high = difference(pd.Series(more, names), pd.Series(less, names))
    assert (effect, high) == (10, 20) and (low > 0) == apart
    assert np.isnan(difference(pd.Series((60, np.nan, np.nan), names), pd.Series(less, names))[1:]).all()


@pytest.mark.parametrize("count", [5, 6])
def test_a_clear_step_back_is_not_hidden_by_a_pair_that_overlaps(count):
    line = [(10, 0.5), (12, 0.5), (3, 6), (7, 6), (1, 0.5), (0.5, 0.2)][:count]
    rows = pd.DataFrame(
        {"ε": str(n), "value": v, "low": v - half, "high": v + half} for n, (v, half) in enumerate(line)
    )
    (found,) = compared(Rule(falls="ε"), rows)
    assert found.outcome == "against" and found.looks == count * (count - 1) / 2


def test_of_a_claim_about_some_networks_one_is_enough(page):
    for some, word in ((False, "mixed"), (True, "holds")):
        rule = Rule(compare="features", more="R", less="Int", some=some)
        entry = claims.Entry(paper="P", place="T", artefact="kim-table-1", claim="C", rule=rule)
        keep(page, pd.concat([rows(90, 50), rows(50, 90, example="cw")]))
        assert claims.judge(entry, page).word == word


def test_a_claim_that_holds_while_its_control_holds_too_holds_for_another_reason(page):
    keep(page, pd.concat([rows(90, 50), rows(90, 50, example="cw")]))
    assert (
        verdict("kim-robust-features-hold").finding
        == "Under attack, the robust channels classify better than the whole network"
    )
    told = rows(90, 60).assign(given="random")
    keep(page, told, artefact="kim-given-label")
    found = verdict("kim-robust-features-hold")
    assert found.word == "holds, for another reason" and found.finding.startswith("Told the true label, the robust")
    assert "Told a random label, the robust channels predict that label for most images" in found._repr_markdown_()
    keep(page, told.assign(low=30), artefact="kim-given-label")
    assert verdict("kim-robust-features-hold").word == "holds", "the control is open"


def test_a_finding_says_how_many_comparisons_it_is_of_unless_all_agree(page):
    both = [rows(90, 50), rows(50, 90, example="cw")]
    mixed = "whole network in 1 of 2 comparisons; the reverse holds in 1"
    for kept, said in ((both, mixed), (both[1:], "worse than the whole network")):
        keep(page, pd.concat(kept))
        assert verdict("kim-robust-features-hold").finding.endswith(said)
    keep(page, pd.concat([both[1], rows(51, 50)]))
    assert verdict("kim-robust-features-hold").finding.endswith("in 1 of 2 comparisons, and 1 is undecided")
    keep(page, rows(51, 50))
    assert verdict("kim-robust-features-hold").finding == "", "an open claim has no finding"


def of_methods(robust, plain, spread, example="autoattack"):
    return (
        rows(robust, plain, spread, example)
        .replace({"features": {"R": "rob", "Int": "ce"}})
        .rename(columns={"features": "member"})
    )


def test_two_values_that_differ_by_less_than_a_point_show_no_effect(page):
    for kept, word in ((of_methods(0.2, 0.0, 0.3), "no effect"), (of_methods(0.2, 0.0, 0.8), "open")):
        keep(page, kept, artefact="xu-masking")
        found = verdict("xu-holds-under-autoattack")
        assert found.word == word
        assert found.finding.endswith("keeps no more accuracy under AutoAttack than cross-entropy alone") == (
            word != "open"
        )
    scaled = Rule(compare="features", more="R", less="Int", negligible=0)
    keep(page, rows(0.2, 0.0, 0.3))
    assert judge(scaled, page) == (0, 0, 1), "of a quantity that is no percentage"


@pytest.mark.parametrize(
    ("others", "word"),
    [
        ([], "no effect"),
        ([rows(51, 50, example="cw")], "open"),
        ([rows(90, 50, example="cw")], "open"),
        ([rows(90, 50, example="cw"), rows(90, 50, example="fgsm")], "mostly holds"),
        ([rows(50, 90, example="cw")], "does not hold"),
    ],
    ids=["alone", "one open", "one for", "most for", "one against"],
)
def test_a_comparison_without_effect_speaks_for_no_claim(page, others, word):
    keep(page, pd.concat([rows(0, 0, 0.3), *others]))
    assert verdict("kim-robust-features-hold").word == word


def test_many_comparisons_are_counted_and_what_chance_gives_them(page):
    keep(page, pd.concat([rows(90, 50, example=name) for name in ("pgd", "cw", "fgsm")]))
    found = verdict("kim-robust-features-hold")
    assert found.by_chance == pytest.approx(3 * PARTING)
    assert "if nothing differed, 0.017 of 3 would be decided by chance" in found.counts


def test_two_intervals_of_equal_values_part_as_often_as_is_said():
    noise = np.random.default_rng(0).normal(size=(2, 200_000))
    assert (abs(noise[0] - noise[1]) > 2 * 1.959964).mean() == pytest.approx(PARTING, abs=6e-4)


def test_one_seed_is_said_and_several_are_what_intervals_are_over(page):
    for seeds, said in ((1, "over test images, one seed per network"), (3, "over 3 seeds per network")):
        keep(page, rows(90, 50).assign(seeds=seeds))
        assert said in verdict("kim-robust-features-hold").counts
    keep(page, rows(90, 50, spread=0).assign(n=float("nan")))
    assert "exact values" in verdict("kim-robust-features-hold").counts
    keep(page, rows(0, 0, spread=0).assign(n=3, seeds=3))
    assert "over 3 seeds per network" in verdict("kim-robust-features-hold").counts, "as where no image is right"


def test_datasets_and_networks_that_a_reader_brought_have_no_vote(page, monkeypatch):
    study = {"datasets": ["digits"], "networks": ["kim/vgg16"]}
    run = {"study": study, "datasets": {"digits": {}, "mine": {}}, "networks": {"kim/vgg16": {}, "kim/mine-vgg16": {}}}
    run["constructed"] = {"ilyas/own": {"dataset": "mine", "sets": {"next": {}}}}
    monkeypatch.setattr(claims, "load_run", lambda: run)
    called = Study(**study).called
    assert called("VGG-16", "kim/vgg16") == "VGG-16" != called("VGG-16", "kim/mine-vgg16")
    keep(page, rows(90, 50).assign(dataset="digits", network="VGG-16"))
    before = verdict("kim-robust-features-hold").counts
    brought = [("mine", "VGG-16"), ("ilyas/own/next", "VGG-16"), ("digits", called("VGG-16", "kim/mine-vgg16"))]
    own = [rows(50, 90).assign(dataset=dataset, network=network) for dataset, network in brought]
    keep(page, pd.concat([rows(90, 50).assign(dataset="digits", network="VGG-16"), *own]))
    assert verdict("kim-robust-features-hold").counts == before and before.startswith("1 for, 0 against, 0 open")


def test_a_rule_that_matches_no_row_says_what_there_is(page):
    assert "no values of kim-table-1" in verdict("kim-robust-features-hold").missing
    keep(page, rows(90, 50, example="clean"))
    said = verdict("kim-robust-features-hold")._repr_markdown_()
    assert "</b> no such row</span>" in said and "no row has example = fgsm or pgd or cw; the rows have clean" in said
    keep(page, rows(90, 50).query("features == 'R'"))
    assert verdict("kim-robust-features-hold").decided_by == "no row has features = Int; the rows have R"


def test_what_a_rule_leaves_out_and_a_curve_that_is_too_short_say_what_there_is(page):
    keep(page, rows(90, 50).assign(beta=["0.1", "0.3"]))
    said = [
        claims.judge(claims.Entry(paper="P", place="T", artefact="kim-table-1", claim="C", rule=rule), page).unmatched
        for rule in (Rule(above=1, unless={"example": ["pgd"]}), Rule(peak="beta", ignore=["features"]))
    ]
    assert said == [
        "every row has example = pgd, which the rule leaves out",
        "the rule needs more rows along beta; the rows have 0.1, 0.3",
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"compare": "a", "more": "b"},
        {"above": 1, "peak": "x"},
        {"reverses": "x"},
        {"peak": "x", "compare": "a", "more": "b", "less": "c"},
    ],
)
def test_a_rule_that_is_none_or_two_at_once_is_refused(wrong):
    with pytest.raises(ValidationError, match="together|one of|takes no"):
        Rule(**wrong)


@pytest.mark.parametrize("entry", entries().values(), ids=entries())
def test_the_artefacts_of_every_claim_are_in_some_section(entry):
    assert HOMES.issuperset(entry.artefacts)


@pytest.mark.parametrize("entry", [each for each in entries().values() if each.found], ids=lambda each: each.claim)
def test_what_may_be_found_is_written_for_either_outcome_and_a_control_is_another_entry(entry):
    assert {"holds", "fails"} <= {*entry.found} and not any(said.endswith(".") for said in entry.found.values())
    assert ("reason" in entry.found) == bool(entry.another_reason)
    assert not entry.another_reason or entries()[entry.another_reason].ours
