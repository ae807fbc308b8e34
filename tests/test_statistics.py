import math

import pytest
from scipy import stats

from robust_features.statistics import over_seeds, wilson

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("hits, n", [(0, 10), (5, 10), (10, 10), (447, 1000), (5000, 10_000)])
def test_wilsons_interval_is_scipys(hits, n):
    expected = stats.binomtest(hits, n).proportion_ci(0.95, method="wilson")
    found = wilson(hits, n)
    assert (found.low, found.high) == pytest.approx((100 * expected.low, 100 * expected.high), abs=1e-9)
    assert (found.value, found.n) == (100 * hits / n, n)


@pytest.mark.parametrize("n", [10, 50, 300, 1000, 9999])
def test_where_none_or_all_are_hits_the_interval_ends_there_exactly(n):
    assert wilson(0, n).low == 0 and wilson(n, n).high == 100, "a rest of rounding would count as above chance"


def test_no_images_give_no_value_and_the_widest_interval():
    found = wilson(0, 0)
    assert math.isnan(found.value) and (found.low, found.high, found.n) == (0, 100, 0)


def test_a_mean_over_seeds_has_students_interval():
    values = [50.1, 51.4, 49.2]
    found = over_seeds(values)
    expected = stats.t.interval(0.95, 2, loc=sum(values) / 3, scale=stats.sem(values))
    assert (found.low, found.high) == pytest.approx(expected)


def test_one_seed_has_no_interval():
    assert math.isnan(over_seeds([50.0]).low)
