"""What every benchmark shares: medians of repeated runs, one thread, and a table of ratios."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

REPEATS = 7


def median_seconds(function: Callable[[], Any], *, repeats: int = REPEATS, least: float = 0.02) -> float:
    """Median over repeats of the time of one call; calls are looped until a repeat takes ``least`` seconds."""
    function()
    start = time.perf_counter()
    function()
    loops = max(1, int(least / max(time.perf_counter() - start, 1e-9)))
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(loops):
            function()
        seconds.append((time.perf_counter() - start) / loops)
    return statistics.median(seconds)


def print_rows(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A plain table."""
    cells = [list(head), *[[f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]]
    widths = [max(len(row[k]) for row in cells) for k in range(len(head))]
    for row in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
