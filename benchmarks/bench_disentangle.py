"""One sweep of the dense engine: how its time and memory grow with qubits and depth.

One thread, float64, Gaussian MPOs of bond 2, two-body SO(4) brickwalls, joint core of bond 1. The unit of the ratios is
a product of two dense matrices of the layer's size, so they can be compared between machines.
"""

import itertools
import resource
import statistics
import time

import torch
from timing import median_seconds, print_rows

from unbraid.circuits import brickwall
from unbraid.disentangling import disentangle
from unbraid.tensors import MPO

CASES = ((4, 3), (6, 3), (6, 8), (8, 3), (8, 8), (10, 3))
SWEEPS = 8


def seconds_a_sweep(n: int, depth: int) -> float:
    """Median over the sweeps of one run."""
    mpo = MPO.random((2,) * n, (2,) * n, 2, seed=1, dtype=torch.float64)
    times: list[float] = []
    disentangle(
        mpo,
        brickwall(n, depth),
        max_sweeps=SWEEPS,
        tolerance=0.0,
        callback=lambda *_: times.append(time.perf_counter()),
    )
    return statistics.median(later - earlier for earlier, later in itertools.pairwise(times))


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for n, depth in CASES:
        matrix = torch.randn(2**n, 2**n, dtype=torch.float64)
        product = median_seconds(lambda: matrix @ matrix)
        sweep = seconds_a_sweep(n, depth)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        rows.append((n, depth, sweep, sweep / product, peak))
    print_rows(("qubits", "depth", "seconds a sweep", "in matrix products", "process peak MiB"), rows)


if __name__ == "__main__":
    main()
