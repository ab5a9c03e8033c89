"""What every readout is: settings, what it costs, and how it gets what a circuit makes of unit vectors.

Legend: B vectors of N = 2^n entries; x a unit input, psi = Q x wanted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from unbraid.circuits import Circuit
from unbraid.circuits.circuit import apply_gate
from unbraid.ground.errors import ExecutionError
from unbraid.quantum.encode import Encoding
from unbraid.quantum.execute import Execution, Executor


@dataclass(frozen=True)
class Reading:
    """Unit vectors read back.

    Attributes:
        vectors: shape (B, N), float64 (complex128 for complex circuits).
        errors: estimated root of the expected squared L2 error, shape (B,).
        circuits: circuits run.
        shots: shots of all circuits.
    """

    vectors: Tensor
    errors: Tensor
    circuits: int
    shots: int


class Readout(Protocol):
    """A way to read vectors; a frozen dataclass of its settings whose ``str`` is its name."""

    def circuits(self, qubits: int) -> int:
        """Circuits that one vector takes."""
        ...

    def shots(self, total: int, qubits: int) -> int:
        """Shots that one vector takes if ``total`` are asked for."""
        ...

    def read(
        self,
        circuit: Circuit,
        units: Tensor,
        shots: int,
        executor: Executor,
        generator: torch.Generator | None,
        encoding: Encoding,
    ) -> Reading:
        """Run ``circuit`` on unit vectors and read the results.

        Args:
            circuit: without nonlinearities.
            units: shape (B, N), float64.
            shots: for one vector, over all of its circuits.
            executor: what runs the circuits.
            generator: of the samples.
            encoding: of the vectors.

        Raises:
            InvalidInputError: if the readout does not suit circuit or executor.
            ExecutionError: if the executor fails.
        """
        ...


def counts_of(execution: Execution, executor: Executor, device: torch.device) -> Tensor:
    """The counts of a run, float64.

    Raises:
        ExecutionError: if there are none.
    """
    if execution.counts is None:
        raise ExecutionError(f"{executor!r} returned no counts.")
    return execution.counts.to(device, torch.float64)


def uniform(circuit: Circuit, device: torch.device) -> Tensor:
    """The vector of equal entries and norm 1, shape (1, N), float64."""
    size = circuit.dimension
    return torch.full((1, size), size**-0.5, dtype=torch.float64, device=device)


def apply_transposed(circuit: Circuit, x: Tensor) -> Tensor:
    """``Q^T x`` along the last axis, gate by gate.

    Args:
        circuit: without nonlinearities.
        x: shape (B, N).

    Returns:
        Shape (B, N).
    """
    matrices, gates = circuit.gate_matrices(), list(circuit.ansatz.gates())
    for step in reversed(circuit.schedule()):
        if isinstance(step, int):
            x = apply_gate(x, matrices[step].mT, gates[step].wires, circuit.ansatz.wire_dims)
    return x
