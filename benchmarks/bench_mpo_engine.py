"""One sweep of the MPO engine: how its time and memory grow with sites, layers and the bond of the core.

One thread, float64, Gaussian MPOs of bond 4, two-body SO(4) brickwalls on both sides, near-identity start, joint core.
The ratio is the time a sweep against that of the first row with the same depth, way and core bond, divided by the ratio
of sites: 1 where time is linear in sites. Overlaps are small: a Gaussian MPO on fifty sites is far from any product.

``python benchmarks/bench_mpo_engine.py scaling.png`` also draws the time against the sites.
"""

import resource
import statistics
import sys
import time
from dataclasses import replace

import torch
from timing import print_rows

from unbraid.circuits import Circuit, brickwall
from unbraid.disentangling.environments import Gates
from unbraid.disentangling.environments.mpo_engine import MPOEngine
from unbraid.tensors import MPO

EXACT, TRUNCATED = {}, {"memory_limit": 0, "truncation": 1e-4}
CASES = (
    *((sites, depth, 1, EXACT) for depth in (3, 8) for sites in (10, 20, 30, 40, 50, 60)),
    *((sites, 3, 1, TRUNCATED) for sites in (10, 20, 40, 60)),
    (50, 8, 2, EXACT),
    (50, 8, 1, TRUNCATED),
)
SWEEPS = 3


def start(sites: int, depth: int, core_bond: int, limits: dict) -> tuple[MPOEngine, Gates]:
    ansatz = brickwall(sites, depth)
    mpo = MPO.random((2,) * sites, (2,) * sites, 4, seed=1, dtype=torch.float64)
    engine = MPOEngine(mpo, ansatz, ansatz, fixed_core=False, core_bond=core_bond, **limits)
    sides = [
        [gate.detach() for gate in Circuit(ansatz, seed=k, mirrored=k > 0, dtype=torch.float64).gate_matrices()]
        for k in range(2)
    ]
    gates = Gates(*sides, core=[], overlap=0.0)
    return engine, replace(gates, core=engine.truncated_core(gates, core_bond))


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    first: dict[tuple, float] = {}
    for sites, depth, core_bond, limits in CASES:
        engine, gates = start(sites, depth, core_bond, limits)
        seconds = []
        for _ in range(SWEEPS):
            begin = time.perf_counter()
            gates = engine.sweep(gates)
            seconds.append(time.perf_counter() - begin)
        median = statistics.median(seconds)
        key = depth, core_bond, engine.exact
        ratio = median / sites / first.setdefault(key, median / sites)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        way = "exact" if engine.exact else "truncated"
        rows.append((sites, depth, core_bond, way, median, ratio, peak, gates.overlap, engine.truncation_error))
    head = ("sites", "depth", "core bond", "way", "seconds a sweep", "ratio", "process peak MiB", "overlap", "error <=")
    print_rows(head, rows)
    if len(sys.argv) > 1:
        draw(sys.argv[1], rows)


def draw(path: str, rows: list[tuple]) -> None:
    """Seconds a sweep against sites, with the line through the first point of each series that linear growth is."""
    from unbraid.report.plots import save_png

    def plot(ax: object) -> object:
        series: dict[tuple, list[tuple]] = {}
        for row in rows:
            series.setdefault(row[1:4], []).append((row[0], row[4]))
        for (depth, bond, way), points in series.items():
            if len(points) > 1:
                (line,) = ax.plot(
                    *zip(*points, strict=True), "o", label=f"{way}, {depth} layers a side, core bond {bond}"
                )
                (first, seconds), (last, _) = points[0], points[-1]
                ax.plot([first, last], [seconds, seconds * last / first], "--", lw=0.8, color=line.get_color())
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xticks([10, 20, 30, 40, 50, 60], ["10", "20", "30", "40", "50", "60"])
        ax.minorticks_off()
        ax.set_xlabel("sites (dashed: linear in sites)")
        ax.set_ylabel("seconds a sweep, one thread")
        ax.legend(fontsize=7.5)
        return ax

    save_png(path, plot)


if __name__ == "__main__":
    main()
