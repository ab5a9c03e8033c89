"""Tests of paired differences, and the correction for making many of them."""

from __future__ import annotations

from collections.abc import Sequence


def paired_p(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Two-sided p value of Student's test of paired differences; None of fewer than two, or where all are alike."""
    from scipy.stats import ttest_rel

    if len(one) < 2 or len({a - b for a, b in zip(one, other, strict=True)}) < 2:
        return None
    return float(ttest_rel(one, other).pvalue)


def holm(values: Sequence[float | None]) -> list[float | None]:
    """P values corrected for their number by Holm's step-down method; None stays None.

    Source:
        Holm, Scandinavian Journal of Statistics 6, 65 (1979).
    """
    order = sorted((value, place) for place, value in enumerate(values) if value is not None)
    found: list[float | None] = [None] * len(values)
    largest = 0.0
    for rank, (value, place) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * value))
        found[place] = largest
    return found
