"""The dense engine: time and memory of a sweep by qubits, depth and precision, and what restarts cost.

One thread, Gaussian MPOs of bond 2, two-body SO(4) brickwalls, joint core of bond 1. The unit of the ratios is a
product of two dense matrices of the layer's size in double precision, so they can be compared between machines. Peaks
are of the process, so a row's is that of the largest so far. ``chains`` is a sweep of the MPO engine on the same
problem.

The second table is the time of a whole ``disentangle`` with eight restarts against one, to its end.
"""

import resource
import statistics
import time

import torch
from timing import median_seconds, print_rows

from unbraid.circuits import brickwall
from unbraid.disentangling import disentangle
from unbraid.disentangling.environments import Engine, State
from unbraid.disentangling.problem import Problem, unit_mpo
from unbraid.disentangling.starts import first_gates
from unbraid.tensors import MPO

CASES = ((4, 3), (6, 3), (6, 8), (6, 40), (8, 3), (8, 8), (10, 3), (10, 5), (12, 3))
RESTARTS = ((6, 3, "so"), (6, 5, "o"), (8, 3, "so"), (8, 5, "o"))
REPEATS = 5


def started(n: int, depth: int, engine: str, *, single: bool = False) -> tuple[Engine, State]:
    """An engine and the start of one run."""
    mpo = MPO.random((2,) * n, (2,) * n, 2, seed=1, dtype=torch.float64)
    problem = Problem(unit_mpo(mpo)[0], 1, None, engine, single=single)
    sides = (brickwall(n, depth),) * 2
    chosen = problem.engine(sides)
    return chosen, chosen.start(*first_gates(problem.unit, sides, "near_identity", 0, 0), None)


def seconds_a_sweep(n: int, depth: int, engine: str, *, single: bool = False) -> float:
    """Median of several sweeps from one state."""
    chosen, state = started(n, depth, engine, single=single)
    return median_seconds(lambda: chosen.sweep(state), repeats=3 if n > 10 else 7)


def ratio_of_restarts(n: int, depth: int, gate: str) -> tuple[float, float, float]:
    """Seconds with one run and with eight, and the ratio, medians over several MPOs."""
    pairs = []
    for seed in range(REPEATS):
        mpo = MPO.random((2,) * n, (2,) * n, 2, seed=seed, dtype=torch.float64)
        seconds = []
        for restarts in (1, 8):
            begin = time.perf_counter()
            disentangle(mpo, brickwall(n, depth, gate=gate), restarts=restarts)
            seconds.append(time.perf_counter() - begin)
        pairs.append(seconds)
    one, eight = (statistics.median(column) for column in zip(*pairs, strict=True))
    return one, eight, statistics.median(second / first for first, second in pairs)


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for n, depth in CASES:
        matrix = torch.randn(2**n, 2**n, dtype=torch.float64)
        product = median_seconds(lambda: matrix @ matrix, repeats=3)
        double = seconds_a_sweep(n, depth, "dense")
        single = seconds_a_sweep(n, depth, "dense", single=True)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        rows.append((n, depth, double, double / product, single, seconds_a_sweep(n, depth, "mpo"), peak))
    print_rows(("qubits", "depth", "seconds a sweep", "in products", "float32", "chains", "process peak MiB"), rows)
    print()
    print_rows(
        ("qubits", "depth", "gates", "one run, s", "eight, s", "ratio"),
        [(*case, *ratio_of_restarts(*case)) for case in RESTARTS],
    )


if __name__ == "__main__":
    main()
