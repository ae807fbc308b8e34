"""Values with their uncertainty."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist, mean, stdev


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % interval; percent where it is a share."""

    value: float
    low: float
    high: float
    n: int


def wilson(hits: int, n: int) -> Interval:
    """The share of hits among n images, in percent, with Wilson's 95 % score interval; n = 0 gives NaN within [0, 100].

    >>> found = wilson(95, 100)
    >>> f"{found.value:.1f} from {found.low:.1f} to {found.high:.1f}"
    '95.0 from 88.8 to 97.8'
    """
    if n == 0:
        return Interval(float("nan"), 0.0, 100.0, 0)
    share, z = hits / n, NormalDist().inv_cdf(0.975)
    centre, half = share + z**2 / (2 * n), z * sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    low, high = ((centre + sign * half) / (1 + z**2 / n) for sign in (-1, 1))
    return Interval(100 * share, 100 * low if hits else 0.0, 100 * high if hits < n else 100.0, n)  # exact at the ends


def of_runs(found: Sequence[Interval]) -> Interval:
    """The mean of several seeds' runs, with an interval over seeds; for one run its own, the interval over images."""
    return found[0] if len(found) == 1 else over_seeds([run.value for run in found])


def over_seeds(values: Sequence[float]) -> Interval:
    """The mean of several runs with Student's 95 % interval, in the unit of the values; one run has no interval (NaN).

    >>> found = over_seeds([50.0, 52.0, 54.0])
    >>> f"{found.value:.1f} from {found.low:.1f} to {found.high:.1f}"
    '52.0 from 47.0 to 57.0'
    """
    from scipy.stats import t  # takes a second to import, which single runs are spared

    centre, n = mean(values), len(values)
    half = float(t.ppf(0.975, n - 1)) * stdev(values) / sqrt(n) if n > 1 else float("nan")
    return Interval(centre, centre - half, centre + half, n)
