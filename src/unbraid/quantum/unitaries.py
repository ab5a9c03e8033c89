"""Generic gates on several qubits: what Qiskit's synthesis and ours make of them, as built and on a device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qiskit import QuantumCircuit, transpile
from qiskit.circuit.library import UnitaryGate

from unbraid.circuits.gates import haar
from unbraid.ground.errors import InvalidInputError, require_choice, require_extra
from unbraid.ground.random import stream
from unbraid.quantum.cost import GateCounts, gate_counts
from unbraid.quantum.synthesis import synthesize_orthogonal

SYNTHESES = ("qiskit", "own")
OWN_QUBITS = 4  # the largest gate that our real synthesis takes


def generic_gate_circuit(qubits: int, group: str, *, by: str = "qiskit", seed: int = 0) -> QuantumCircuit:
    """A Haar-random gate as a circuit of one- and two-qubit gates, any two qubits connected.

    Args:
        qubits: that it acts on.
        group: "so" (real, determinant 1) | "o" | "u".
        by: "qiskit": its synthesis of a unitary, in the gates u and cx, neighbouring one-qubit gates merged; "own": Ry
            and cx on a line, for "so" on up to four qubits.
        seed: of the gate.

    Raises:
        InvalidInputError: if a name is unknown, or our synthesis does not take the gate.
    """
    require_choice(by, SYNTHESES, "by")
    matrix = haar(group, 2**qubits, 1, stream(seed, "generic gate", group, qubits))[0].numpy()
    if by == "qiskit":
        qc = QuantumCircuit(qubits)
        qc.append(UnitaryGate(matrix), range(qubits))
        return transpile(qc, basis_gates=["u", "cx"], optimization_level=1, seed_transpiler=0)
    if group != "so" or qubits > OWN_QUBITS:
        raise InvalidInputError(
            f"Our synthesis takes gates of 'so' on up to {OWN_QUBITS} qubits; got {group!r} on {qubits}. "
            "Use by='qiskit'."
        )
    return synthesize_orthogonal(matrix)


def generic_gate_counts(
    qubits: int,
    group: str,
    *,
    by: str = "qiskit",
    seed: int = 0,
    backend: Any = None,
    levels: Sequence[int] = (1, 3),
    transpiler_seeds: Sequence[int] = (0,),
) -> dict[str, list[GateCounts]]:
    """Gates of one Haar-random gate, as built and transpiled to a device.

    Args:
        qubits: that it acts on.
        group: "so" | "o" | "u".
        by: "qiskit" | "own", see :func:`generic_gate_circuit`.
        seed: of the gate.
        backend: a Qiskit ``BackendV2``; ``FakeMontrealV2`` (27 qubits, heavy hexagon, cx) by default, as in the paper.
        levels: optimisation levels of Qiskit's transpiler.
        transpiler_seeds: each is a run of its own.

    Returns:
        Counts as of :func:`~unbraid.quantum.cost.gate_counts`: under "built" one, under "level 1", ... one a
        transpiler seed.

    Raises:
        InvalidInputError: if a name is unknown, or our synthesis does not take the gate.
        MissingExtraError: if the default backend is not installed.
    """
    if backend is None:
        backend = require_extra("qiskit_ibm_runtime.fake_provider", "ibm").FakeMontrealV2()
    qc = generic_gate_circuit(qubits, group, by=by, seed=seed)
    counts = {"built": [gate_counts(qc)]}
    for level in levels:
        counts[f"level {level}"] = [
            gate_counts(transpile(qc, backend, optimization_level=level, seed_transpiler=number))
            for number in transpiler_seeds
        ]
    return counts
