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


def describe_equivalence(found: dict[str, Any]) -> str:
    """What `compare_pairs` found between PyTorch and Flax, in a sentence."""
    margin = f"{found['margin']:g} points"
    if found["pairs"] < 2:
        return f"Equivalence within {margin}: {found['pairs']} seeds in common, at least two are needed."
    low, high = found["interval"]
    facts = (
        f"PyTorch - Flax {found['mean']:+.3f} points, 90 % confidence {low:+.3f} to {high:+.3f}, "
        f"{found['pairs']} pairs, p = {found['p']:.2g}"
    )
    if found["equivalent"]:
        return f"Equivalent within {margin}: {facts}."
    needed = found["pairs_needed"]
    more = (
        f"with this mean and deviation it takes {needed} pairs, {max(needed - found['pairs'], 1)} more"
        if needed
        else "with this mean no number of pairs would do"
    )
    return f"Not shown to be equivalent within {margin}: {facts}; {more}."
