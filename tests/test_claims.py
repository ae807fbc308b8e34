import pandas as pd
import pytest
from pydantic import ValidationError

from companion import claims, paths
from companion.claims import Rule, entries, verdict
from companion.report import contents
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
    return found.confirmed, found.reversed, found.undecided


@pytest.mark.parametrize(
    "judged, word",
    [
        (rows(90, 50), "holds"),
        (rows(50, 90), "does not hold"),
        (rows(51, 50), "undecided"),
        (pd.concat([rows(90, 50), rows(50, 90, example="cw")]), "partly"),
        (rows(90, 50, example="clean"), "not run at this scale"),
    ],
    ids=["apart", "reversed", "overlapping", "mixed", "absent"],
)
def test_a_verdict_follows_the_intervals(page, judged, word):
    keep(page, judged)
    assert verdict("kim-robust-features-hold").word == word


def test_a_verdict_is_about_its_own_page_and_the_contents_about_all(page, monkeypatch):
    keep(page / "11-first", rows(90, 50))
    assert verdict("kim-robust-features-hold").word == "holds", "found below the folder too"
    monkeypatch.setenv(paths.PAGE, str(page / "12-second"))
    assert verdict("kim-robust-features-hold").word == "not run at this scale"
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


@pytest.mark.parametrize("entry", entries().values(), ids=entries())
def test_every_claim_has_one_form_of_rule_and_its_artefacts_are_in_some_section(entry):
    rule = entry.rule
    assert (rule.above is None) == all([rule.compare, rule.more, rule.less]) and HOMES.issuperset(entry.artefacts)
