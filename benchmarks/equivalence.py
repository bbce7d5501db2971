"""Whether two frameworks reach the same accuracy: two one-sided tests on pairs of runs with one seed each."""

from functools import cache
from typing import Any

import numpy as np
from scipy import stats

LEVEL = 0.05  # of each one-sided test
MOST_PAIRS = 10_000  # beyond this no number is worth naming


def compare_pairs(differences: np.ndarray, margin: float) -> dict[str, Any]:
    """Two one-sided t-tests that the mean difference is within a margin.

    Schuirmann 1987, DOI 10.1007/BF01068419.

    Args:
        differences: of the pairs, (pairs,), in the unit of the margin.
        margin: the largest mean difference that counts as none.

    Returns:
        pairs, mean, deviation (n - 1), the interval of 90 % confidence that must lie within the margin,
        ``p`` (the larger of the two tests'), ``equivalent``, and ``pairs_needed``: how many pairs it would
        take with this mean and deviation, None where no number would do. With fewer than two pairs
        only ``pairs`` and ``equivalent``, which is false.
    """
    pairs = len(differences)
    found: dict[str, Any] = {"margin": margin, "pairs": pairs}
    if pairs < 2:
        return found | {"equivalent": False}
    mean = float(np.mean(differences))
    deviation = float(np.std(differences, ddof=1))
    error = max(deviation / np.sqrt(pairs), np.finfo(float).tiny)
    reach = stats.t.ppf(1 - LEVEL, pairs - 1) * error
    p = max(stats.t.sf((margin + mean) / error, pairs - 1), stats.t.sf((margin - mean) / error, pairs - 1))
    return found | {
        "mean": mean,
        "deviation": deviation,
        "interval": [mean - reach, mean + reach],
        "p": float(p),
        "equivalent": bool(p < LEVEL),
        "pairs_needed": pairs_needed(mean, deviation, margin),
    }


def pairs_needed(mean: float, deviation: float, margin: float) -> int | None:
    """The fewest pairs whose interval lies within the margin if mean and deviation stay; None if none do."""
    pairs, quantiles = _quantiles()
    enough = pairs[abs(mean) + quantiles * deviation / np.sqrt(pairs) < margin]
    return int(enough[0]) if len(enough) else None


@cache
def _quantiles() -> tuple[np.ndarray, np.ndarray]:
    """Numbers of pairs, and Student's quantile for each."""
    pairs = np.arange(2, MOST_PAIRS)
    return pairs, stats.t.ppf(1 - LEVEL, pairs - 1)
