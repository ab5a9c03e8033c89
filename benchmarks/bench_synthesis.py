"""Circuits of random real gates against Qiskit's synthesis: CX, depth and seconds, as built and on FakeMontrealV2.

Haar-random SO(4), SO(8) and SO(16), medians over the gates. As built: transpiled to cx and u (ours: ry), any two qubits
connected. FakeMontrealV2: cx, rz, sx, x on a heavy hexagon, SWAPs counted as their three cx. Seconds are of the whole
transpilation, the synthesis included. Peer: ``qiskit.transpile`` with its default synthesis at levels 1 to 3.
"""

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from qiskit import QuantumCircuit, transpile
from qiskit.circuit.library import UnitaryGate
from qiskit_ibm_runtime.fake_provider import FakeMontrealV2
from timing import print_rows

from unbraid.circuits.gates import haar
from unbraid.ground.random import stream
from unbraid.quantum.synthesis import synthesize_orthogonal

GATES = {4: 20, 8: 20, 16: 10}
LEVELS = (1, 2, 3)


def around(matrix: np.ndarray) -> QuantumCircuit:
    """The gate as Qiskit users write it."""
    qc = QuantumCircuit(len(matrix).bit_length() - 1)
    qc.append(UnitaryGate(matrix), range(qc.num_qubits))
    return qc


def measured(build: Callable[[np.ndarray], QuantumCircuit], gates: np.ndarray) -> tuple[float, float, float]:
    """Medians of CX, depth and seconds; the first gate is built once more beforehand, to load what is needed."""
    build(gates[0])
    counts, depths, seconds = [], [], []
    for gate in gates:
        start = time.perf_counter()
        qc = build(gate)
        seconds.append(time.perf_counter() - start)
        counts.append(qc.count_ops().get("cx", 0))
        depths.append(qc.depth())
    return statistics.median(counts), statistics.median(depths), statistics.median(seconds)


def main() -> None:
    torch.set_num_threads(1)
    montreal = FakeMontrealV2()
    rows = []
    for size, count in GATES.items():
        gates = haar("so", size, count, stream(0, "benchmark", size)).numpy()
        rows.append((f"SO({size})", "as built", "unbraid", *measured(synthesize_orthogonal, gates)))
        for where, device in (
            ("as built", {"basis_gates": ["u", "cx"]}),
            ("FakeMontrealV2", {"backend": montreal}),
        ):
            for method in ("default", "unbraid") if "backend" in device else ("default",):
                for level in LEVELS:
                    options = device | {"optimization_level": level, "unitary_synthesis_method": method}
                    name = f"{'Qiskit' if method == 'default' else method}, level {level}"
                    found = measured(lambda gate: transpile(around(gate), seed_transpiler=0, **options), gates)
                    rows.append((f"SO({size})", where, name, *found))
    print_rows(("gate", "counted", "synthesis", "cx", "depth", "seconds"), rows)


if __name__ == "__main__":
    main()
