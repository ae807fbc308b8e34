import pandas as pd
import pytest
from ruamel.yaml import YAML

from robust_features.claims import verdict
from robust_features.paths import CLAIMS

ENTRIES = YAML(typ="safe").load(CLAIMS)


def rows(robust, intermediate, spread=2.0, example="pgd"):
    values = {"R": robust, "Int": intermediate}
    return pd.DataFrame(
        {"example": example, "features": name, "value": v, "low": v - spread, "high": v + spread, "n": 100}
        for name, v in values.items()
    )


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
def test_a_verdict_follows_the_intervals(judged, word):
    assert verdict("kim-robust-features-hold", judged).word == word


def test_a_perturbed_result_changes_the_verdict():
    before = rows(90, 50)
    after = before.assign(
        **{column: before[column] - 45 * (before["features"] == "R") for column in ("value", "low", "high")}
    )
    assert verdict("kim-robust-features-hold", before).word != verdict("kim-robust-features-hold", after).word


@pytest.mark.parametrize("claim", ENTRIES)
def test_every_claim_says_where_it_stands_and_how_it_is_judged(claim):
    assert ENTRIES[claim].keys() == {"paper", "place", "artefact", "claim", "rule"}
    assert {"compare", "more", "less"} <= ENTRIES[claim]["rule"].keys()
