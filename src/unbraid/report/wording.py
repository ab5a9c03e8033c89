"""How numbers are put into words: the same in the terminal's table, on the page and in the plots."""

from __future__ import annotations

import math
from collections.abc import Collection

_STEPS = {
    "before": "the network as it came",
    "dense": "plain linear layers",
    "mpo": "layers as MPOs",
    "healed": "MPOs after healing",
    "gauge": "MPOs, gauge fixed",
    "quantized": "MPOs with cores of integers",
    "explicit": "MPOs replaced by circuits and cores",
    "disentangled": "circuits and cores",
    "exact": "hybrid, circuits simulated without shots",
    "hybrid": "hybrid, circuits read out from sampled shots",
    "aer": "hybrid, circuits on the Aer simulator",
}


def meaning(step: str, steps: Collection[str]) -> str:
    """What a step of a report is, in the company of the other ``steps``; empty for names that are not ours."""
    text = _STEPS.get(step, "")
    if step == "mpo" and "healed" in steps:
        return f"{text}, before healing"
    if step == "disentangled" and "explicit" in steps:
        return f"{text} after the final healing"
    return text


def percent(fraction: float, digits: int = 1) -> str:
    """A fraction as a percentage; never rounded up to 100 or down to 0 unless it is exactly that."""
    while digits < 6 and 0 < fraction < 1 and round(100 * fraction, digits) in (0, 100):
        digits += 1
    return f"{100 * fraction:.{digits}f} %"


def number(value: float | int) -> str:
    """Counts with separators, other numbers with four significant digits."""
    if isinstance(value, int) or (value.is_integer() and abs(value) < 1e15):
        return f"{int(value):,}"
    if abs(value) >= 1e6 or 0 < abs(value) < 1e-3:
        return f"{value:.3g}"
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def duration(seconds: float) -> str:
    """Seconds in the unit that a person would say."""
    if seconds < 9.95:
        return f"{seconds:.2g} s"
    if seconds < 119.5:
        return f"{seconds:.0f} s"
    if seconds < 7170:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:,.0f} days"


def interval(fraction: float, count: int) -> tuple[float, float]:
    """Wilson's interval of one standard error for a fraction of ``count`` independent images.

    Unlike the normal approximation it does not shrink to a point where all images are right.

    Returns:
        (low, high), fractions within 0..1.
    """
    centre = (fraction + 0.5 / count) / (1 + 1 / count)
    half = math.sqrt(fraction * (1 - fraction) / count + 0.25 / count**2) / (1 + 1 / count)
    return centre - half, centre + half
