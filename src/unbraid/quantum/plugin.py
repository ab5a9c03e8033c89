"""Real gates within Qiskit's transpiler: ``transpile(qc, backend, unitary_synthesis_method="unbraid")``.

Qiskit synthesises gates on three and more qubits before it chooses a layout, so a plugin gets virtual qubits beside
the coupling map of the physical ones, and cannot tell which it has. A circuit on a line in the order of the gate's own
qubits is as valid there as Qiskit's own, and the router needs fewer SWAPs. Another order is taken only where the
qubits, read as physical ones, form a line in that order and not in their own: a pass manager that synthesises after
the layout then needs no routing.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qiskit import QuantumCircuit
from qiskit.converters import circuit_to_dag
from qiskit.transpiler import CouplingMap
from qiskit.transpiler.passes.synthesis.default_unitary_synth_plugin import DefaultUnitarySynthesis

from unbraid.ground.errors import UnbraidError
from unbraid.quantum.convert import real_part
from unbraid.quantum.synthesis import synthesize_orthogonal

_OURS = frozenset({"ry", "cx"})


class RealUnitarySynthesis(DefaultUnitarySynthesis):  # type: ignore[misc]
    """Gates that are real up to a phase, on one to four qubits, as Ry and CX; Qiskit's default for all others.

    Qiskit's default also takes gates of determinant -1 on three and more qubits, which Ry and CX cannot make, and gates
    on one and two qubits for a device without Ry or CX: it needs no more CX there and knows the native gates.
    """

    def run(self, unitary: NDArray[np.complex128], **options: Any) -> Any:
        """A DAG for the unitary, with its global phase; see Qiskit's ``UnitarySynthesisPlugin``."""
        coupling_map, qubits = options["coupling_map"]
        basis = set(options["basis_gates"] or _OURS)
        if len(unitary) <= 16 and (len(unitary) > 4 or basis >= _OURS):
            circuit = _real_circuit(np.asarray(unitary), _line(qubits, coupling_map))
            if circuit is not None:
                return circuit_to_dag(circuit)
        if not options["basis_gates"] and not options.get("target"):
            return None  # nothing says which gates to use: the gate stays as it is, as with Qiskit's default
        return super().run(unitary, **options)


def _real_circuit(unitary: NDArray[np.complex128], line: Sequence[int]) -> QuantumCircuit | None:
    """The gate with CX between neighbours of ``line`` (positions of its qubits) only, or None."""
    real, phase = real_part(unitary)
    if real is None:
        return None
    n = len(line)
    # Axis k of a matrix is qubit n - 1 - k.
    axes = [n - 1 - qubit for qubit in reversed(line)]
    moved = real.reshape((2,) * (2 * n)).transpose([*axes, *(n + axis for axis in axes)]).reshape(real.shape)
    try:
        found = synthesize_orthogonal(moved)
    except UnbraidError:
        return None
    circuit = QuantumCircuit(n, global_phase=phase)
    return circuit.compose(found, list(line))


def _line(qubits: Sequence[int], coupling_map: CouplingMap | None) -> tuple[int, ...]:
    """The order of the qubits, as positions, that is a line of the coupling map; their own order if none is."""
    orders = list(permutations(range(len(qubits))))  # their own order comes first
    if coupling_map is None:
        return orders[0]
    edges = {frozenset(edge) for edge in coupling_map.get_edges()}
    for order in orders:
        if all(frozenset((qubits[a], qubits[b])) in edges for a, b in pairwise(order)):
            return order
    return orders[0]
