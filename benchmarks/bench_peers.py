"""The dense engine beside BQSKit's QFactor and quimb's TNOptimizer, on one core, as ratios of one run.

Needs both beside unbraid, in the versions of ``benchmarks/peers.txt``.

QFactor instantiates a unitary target, which is all it can do, so there our side is one circuit with the identity as its
core: the same brickwall of two-qubit gates, the same realisable target, the same number of gate updates a sweep (there
and back). TNOptimizer maximises the overlap of a Gaussian MPO of bond 2 with circuits and a product core, as we do, by
L-BFGS on gates of SO(4) made with a matrix exponential.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAYON_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import itertools
import statistics
import sys
import time
from collections.abc import Callable

import torch
from timing import print_rows

from unbraid import brickwall
from unbraid.circuits import Ansatz, Circuit
from unbraid.disentangling import disentangle
from unbraid.tensors import MPO

QFACTOR_CASES = ((6, 3, 40), (6, 5, 40), (8, 3, 12), (8, 5, 12), (10, 5, 2))  # qubits, layers, iterations
OUR_SWEEPS = 12  # before the shallowest target is reached: then sweeps are done twice, as rounding lowers the overlap
GOAL = 0.92
REPEATS = 5


def our_sweep(n: int, depth: int, sweeps: int) -> float:
    """Median seconds a sweep towards a circuit of the same geometry."""
    ansatz = brickwall(n, depth)
    target = Circuit(ansatz, "random", seed=1, dtype=torch.float64).matrix().detach()
    legs = (2,) * n
    core = MPO([torch.eye(2, dtype=torch.float64).reshape(1, 2, 2, 1)] * n)
    mpo = MPO.from_dense(target, legs, legs)
    times: list[float] = []
    disentangle(
        mpo,
        (ansatz, Ansatz(legs, ())),
        core=core,
        start="random",
        max_sweeps=sweeps,
        tolerance=0.0,
        callback=lambda *_: times.append(time.perf_counter()),
    )
    return statistics.median(later - earlier for earlier, later in itertools.pairwise(times))


def qfactor_sweep(n: int, depth: int, iterations: int) -> float:
    """Seconds an iteration of QFactor on the same target from a random start."""
    import numpy as np
    from bqskit.ir import Circuit as Peer
    from bqskit.ir.gates import VariableUnitaryGate
    from bqskit.ir.opt.instantiaters.qfactor import QFactor

    ansatz = brickwall(n, depth)
    target = Circuit(ansatz, "random", seed=1, dtype=torch.float64).matrix().detach().numpy()
    peer = Peer(n)
    for gate in ansatz.gates():
        peer.append_gate(VariableUnitaryGate(2), gate.wires)
    start = np.random.default_rng(0).standard_normal(peer.num_params)

    def run(count: int) -> float:
        instantiater = QFactor(diff_tol_a=0.0, diff_tol_r=0.0, dist_tol=0.0, max_iters=count, min_iters=count)
        begin = time.perf_counter()
        instantiater.instantiate(peer, np.asarray(target, dtype=np.complex128), start)
        return time.perf_counter() - begin

    run(1)
    return (run(iterations + 1) - run(1)) / iterations


def our_time(mpo: MPO, depth: int) -> tuple[float, float]:
    """Seconds until the overlap passes the goal, and the overlap."""
    begin = time.perf_counter()
    result = disentangle(mpo, brickwall(mpo.num_sites, depth), callback=lambda _, overlap: overlap < GOAL)
    return time.perf_counter() - begin, result.overlap


def quimb_time(mpo: MPO, depth: int) -> tuple[float, float]:
    """The same with TNOptimizer from a near-identity start; gives up after five minutes."""
    import numpy as np
    import quimb.tensor as qtn
    from autoray import do

    def rotation(generator: object) -> object:
        return do("reshape", do("linalg.expm", generator - do("transpose", generator)), (2, 2, 2, 2))

    n = mpo.num_sites
    random = np.random.default_rng(0)
    dense = (mpo.to_dense() / mpo.norm()).numpy()
    legs = [[f"{side}{wire}" for wire in range(n)] for side in ("core_out", "core_in")]
    tensors = [
        qtn.Tensor(np.eye(2) + 0.05 * random.standard_normal((2, 2)), [legs[0][wire], legs[1][wire]], tags=["CORE"])
        for wire in range(n)
    ]
    for side in legs:
        for number, gate in enumerate(brickwall(n, depth).gates()):
            outer = [f"{side[wire]}_{number}" for wire in gate.wires]
            inner = [side[wire] for wire in gate.wires]
            tensors.append(qtn.PTensor(rotation, 0.05 * random.standard_normal((4, 4)), [*outer, *inner]))
            for wire, name in zip(gate.wires, outer, strict=True):
                side[wire] = name
    constant = qtn.TensorNetwork([qtn.Tensor(dense.reshape((2,) * (2 * n)), [*legs[0], *legs[1]])])

    def loss(network: qtn.TensorNetwork, target: qtn.TensorNetwork) -> object:
        norm = 1.0
        for core in network.select_tensors("CORE"):
            norm = norm * do("sum", core.data**2) ** 0.5
        return -(network & target).contract(all, optimize="auto-hq") / norm

    optimizer = qtn.TNOptimizer(
        qtn.TensorNetwork(tensors), loss, loss_constants={"target": constant}, autodiff_backend="torch", progbar=False
    )
    begin, overlap = time.perf_counter(), 0.0
    while overlap < GOAL and time.perf_counter() - begin < 300:
        optimizer.optimize(5)
        overlap = -float(optimizer.loss)
    return time.perf_counter() - begin, overlap


def median_of(function: Callable[[], float]) -> float:
    return statistics.median(function() for _ in range(REPEATS))


def main() -> None:
    torch.set_num_threads(1)
    our_sweep(4, 2, 3)  # compiles
    rows = []
    for n, depth, iterations in QFACTOR_CASES:
        ours = median_of(lambda: our_sweep(n, depth, OUR_SWEEPS))
        peer = median_of(lambda: qfactor_sweep(n, depth, iterations))
        rows.append((n, depth, ours, peer, peer / ours))
    print_rows(("qubits", "layers", "seconds a sweep", "QFactor iteration", "ratio"), rows)
    mpo = MPO.random((2,) * 6, (2,) * 6, 2, seed=1, dtype=torch.float64)
    for depth in (3, 5):
        ours = sorted(our_time(mpo, depth) for _ in range(REPEATS))[REPEATS // 2]
        peer = quimb_time(mpo, depth)
        print(
            f"to overlap {GOAL}, 6 qubits, {depth} layers: ours {ours[0]:.3g} s ({ours[1]:.4f}), "
            f"TNOptimizer {peer[0]:.3g} s ({peer[1]:.4f}), ratio {peer[0] / ours[0]:.3g}"
        )


if __name__ == "__main__":
    sys.exit(main())
