"""Circuits to and from PennyLane.

PennyLane's wire 0 is the most significant, like our site 0, so wire k is site k. Global phases are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import torch
from qiskit import QuantumCircuit

from unbraid.circuits import Circuit
from unbraid.ground.errors import InvalidInputError, require_extra
from unbraid.quantum.convert import QASM_GATES, is_standard, qubit_of, real_part, to_qiskit, unrolled

_NAMES = {
    "rx": "RX",
    "ry": "RY",
    "rz": "RZ",
    "p": "PhaseShift",
    "x": "PauliX",
    "y": "PauliY",
    "z": "PauliZ",
    "h": "Hadamard",
    "s": "S",
    "t": "T",
    "cx": "CNOT",
    "cz": "CZ",
    "cy": "CY",
    "ch": "CH",
    "swap": "SWAP",
}


def to_pennylane(circuit: Circuit | QuantumCircuit) -> Callable[..., None]:
    """A quantum function that applies a circuit, to be called inside a QNode.

    Args:
        circuit: ours (without nonlinearities; trained values are copied), or Qiskit's.

    Returns:
        ``apply(wires=None)``: queues the gates on the wires given, site 0 first; 0, 1, ... by default.

    Raises:
        InvalidInputError: if the circuit cannot be converted.
        MissingExtraError: if PennyLane is not installed.
    """
    qml = require_extra("pennylane", "pennylane")
    qc = circuit if isinstance(circuit, QuantumCircuit) else to_qiskit(circuit)
    plain = unrolled(qc, lambda gate: is_standard(gate) and gate.name in _NAMES and gate.name in QASM_GATES)
    n = plain.num_qubits
    steps = []
    for item in plain.data:
        if item.operation.name not in _NAMES:
            raise InvalidInputError(f"Only gates can be converted; got {item.operation.name!r}. Remove it first.")
        sites = [qubit_of(plain.find_bit(qubit).index, n) for qubit in item.qubits]
        steps.append((getattr(qml, _NAMES[item.operation.name]), [float(a) for a in item.operation.params], sites))
    phase = float(plain.global_phase)

    def apply(wires: Sequence[Hashable] | None = None) -> None:
        """Queue the gates on wires, site 0 first."""
        chosen = list(range(n)) if wires is None else list(wires)
        if len(chosen) != n:
            raise InvalidInputError(f"This circuit acts on {n} wires; got {len(chosen)}.")
        for gate, angles, sites in steps:
            gate(*angles, wires=[chosen[site] for site in sites])
        if phase:
            qml.GlobalPhase(-phase, wires=chosen)

    return apply


def from_pennylane(tape: Any, *, dtype: torch.dtype | None = torch.float64) -> Circuit:
    """A real circuit of PennyLane as a :class:`~unbraid.Circuit` with the same matrix.

    Args:
        tape: a ``QuantumScript`` or tape, such as ``qml.tape.make_qscript(function)(...)``; its measurements are
            ignored.
        dtype: real dtype of the parameters.

    Returns:
        A circuit on the tape's wires in their order.

    Raises:
        InvalidInputError: if a gate is not real, or acts on more than six wires.
        MissingExtraError: if PennyLane is not installed.
    """
    qml = require_extra("pennylane", "pennylane")
    wires = list(tape.wires)
    placed: list[tuple[torch.Tensor | str, tuple[int, ...]]] = []
    phase = 0.0
    for operation in tape.operations:
        if isinstance(operation, qml.GlobalPhase):
            phase -= float(operation.parameters[0])
            continue
        sites = tuple(wires.index(wire) for wire in operation.wires)
        if len(sites) > 6:
            raise InvalidInputError(f"Gates on up to six wires can be read; {operation.name} acts on {len(sites)}.")
        real, own = real_part(np.asarray(qml.matrix(operation, wire_order=operation.wires), dtype=complex))
        if real is None:
            raise InvalidInputError(f"Only real circuits can be read; {operation.name} on wires {sites} is complex.")
        phase += own
        placed.append((torch.from_numpy(real.copy()), sites))
    turns = phase / np.pi
    if abs(turns - round(turns)) > 1e-9:
        raise InvalidInputError(f"The circuit is real only up to a global phase of {phase:.6g}.")
    if round(turns) % 2:
        placed.append((-torch.eye(2, dtype=torch.float64), (0,)))
    return Circuit.from_gates(len(wires), placed, dtype=dtype)
