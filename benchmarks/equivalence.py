"""Equivalence of two frameworks' accuracies: two one-sided t-tests on pairs of runs that share a seed."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from benchmarks.record import Row

LEVEL = 0.05  # of each one-sided test
MARGIN = 0.05  # percentage points of mean accuracy that count as no difference
MAX_PAIRS = 10_000  # a larger number of pairs is not worth naming


class Equivalence(NamedTuple):
    """The result of `compare_pairs`, in the unit of the differences."""

    pairs: int
    mean: float
    std: float
    low: float  # 90 % confidence interval of the mean difference
    high: float
    p: float  # the larger of the two one-sided tests' p-values
    equivalent: bool


def compare_pairs(differences: np.ndarray, margin: float) -> Equivalence:
    """Two one-sided paired t-tests that the mean difference is within a margin (TOST).

    Schuirmann 1987, DOI 10.1007/BF01068419.

    Args:
        differences: one of each pair, (pairs,), at least two.
        margin: the largest mean difference that counts as none.
    """
    pairs = len(differences)
    assert pairs >= 2, pairs
    mean, std = float(np.mean(differences)), float(np.std(differences, ddof=1))
    error = max(std / np.sqrt(pairs), np.finfo(float).tiny)
    half_width = stats.t.ppf(1 - LEVEL, pairs - 1) * error
    p = float(stats.t.sf((margin - abs(mean)) / error, pairs - 1))
    return Equivalence(pairs, mean, std, mean - half_width, mean + half_width, p, p < LEVEL)


def pairs_needed(mean: float, std: float, margin: float) -> int | None:
    """The smallest number of pairs that shows equivalence if mean and deviation stay; None if none does."""
    pairs = np.arange(2, MAX_PAIRS)
    half_widths = stats.t.ppf(1 - LEVEL, pairs - 1) * std / np.sqrt(pairs)
    enough = pairs[abs(mean) + half_widths < margin]
    return int(enough[0]) if len(enough) else None


def compare_frameworks(rows: Sequence[Row]) -> Equivalence | None:
    """PyTorch minus Flax in percentage points, over the seeds that both have; None with fewer than two."""
    finals = {(row["framework"], row["seed"]): 100 * row["final"] for row in rows}
    seeds = sorted(seed for framework, seed in finals if framework == "torch" and ("jax", seed) in finals)
    differences = np.array([finals["torch", seed] - finals["jax", seed] for seed in seeds])
    return compare_pairs(differences, MARGIN) if len(seeds) >= 2 else None
