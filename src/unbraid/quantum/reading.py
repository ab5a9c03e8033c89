"""What every readout is: settings, what it costs, and how it gets what a circuit makes of unit vectors.

Legend: B vectors of N = 2^n entries; x a unit input, psi = Q x wanted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from unbraid.circuits import Circuit
from unbraid.circuits.program import apply_gate
from unbraid.ground.errors import ExecutionError
from unbraid.quantum.convert import wire_sites
from unbraid.quantum.encode import Encoding
from unbraid.quantum.execute import Execution, Executor

LEAST_ANCHOR = 0.2  # least <t, u>, far above the error of a vector


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

    def measured(self, circuit: Circuit) -> Iterable[Circuit]:
        """The different circuits that are measured, in order, each as often as the others."""
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


def counts_of(execution: Execution, executor: Executor, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """The counts of a run and how its qubits were misread, float64.

    Raises:
        ExecutionError: if there are no counts.
    """
    if execution.counts is None:
        raise ExecutionError(f"{executor!r} returned no counts.")
    confusion = execution.confusion
    return execution.counts.to(device, torch.float64), None if confusion is None else confusion.to(device)


def misread(probabilities: Tensor, confusion: Tensor | None) -> Tensor:
    """Probabilities of what is seen; the identity where nothing is misread.

    Args:
        probabilities: of what is there, shape (B, N).
        confusion: (seen, true), shape (B, n, 2, 2), the most significant qubit first.
    """
    if confusion is None:
        return probabilities
    shape = probabilities.shape
    for qubit in range(confusion.shape[1]):
        pairs = probabilities.reshape(shape[0], 2**qubit, 2, shape[1] >> (qubit + 1))
        probabilities = torch.einsum("bij,bkjl->bkil", confusion[:, qubit], pairs).reshape(shape)
    return probabilities


def unfolded(counts: Tensor, confusion: Tensor | None) -> Tensor:
    """Counts as they would be if nothing had been misread, not negative and of the same sums; shapes as in misread."""
    if confusion is None:
        return counts
    try:
        inverse = torch.linalg.inv(confusion)
    except RuntimeError as error:  # a qubit that reads the same whatever it holds
        raise ExecutionError("A qubit's readout does not depend on its state; leave it out of the layout.") from error
    found = misread(counts, inverse).clamp(min=0)
    return found * (counts.sum(dim=1, keepdim=True) / found.sum(dim=1, keepdim=True).clamp(min=1e-300))


class Anchor:
    """The sign that a state has not, from what the host knows of the input.

    The host knows <x, u>, u uniform, and Q takes it to <psi, Q u>: its sign decides. Where <x, u> is small, just enough
    of u is mixed into x beforehand, and its image is taken off afterwards.

    Args:
        circuit: Q, without nonlinearities.
        units: unit vectors x, shape (B, N).

    Attributes:
        states: what is to be run, unit vectors t with |<t, u>| of at least 0.2, shape (B, N); x itself where it can be.
        lengths: x is ``lengths * t`` minus a multiple of u, shape (B,); errors grow by as much.
        image: Q u, shape (1, N): its overlap with what is found decides.
    """

    def __init__(self, circuit: Circuit, units: Tensor) -> None:
        u = uniform(circuit, units.device)
        along = (units * u).sum(dim=1)
        across = (1 - along**2).clamp(min=0).sqrt()
        self._sign = torch.where(along < 0, -1.0, 1.0).to(units)
        needed = self._sign * LEAST_ANCHOR / math.sqrt(1 - LEAST_ANCHOR**2) * across - along
        self._mixed = torch.where(along.abs() < LEAST_ANCHOR, needed, torch.zeros_like(along))
        moved = units + self._mixed[:, None] * u
        self.lengths = torch.linalg.vector_norm(moved, dim=1)
        self.states = moved / self.lengths[:, None]
        self.image = circuit(u.to(circuit.dtype)).to(torch.complex128 if circuit.is_complex else torch.float64)

    def settle(self, found: Tensor) -> Tensor:
        """Unit vectors psi = Q x from those of Q t up to a sign (a phase, if complex); shape (B, N)."""
        image = self.image.to(found.dtype)
        seen = (image.conj() * found).sum(dim=1)
        phase = torch.where(seen == 0, torch.ones_like(seen), seen / seen.abs().clamp(min=1e-300))
        signed = found * (self._sign * phase.conj())[:, None]
        psi = self.lengths[:, None] * signed - self._mixed[:, None] * image
        return psi / torch.linalg.vector_norm(psi, dim=1, keepdim=True)


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


def followed_by(circuit: Circuit, turns: Sequence[Tensor | None]) -> Circuit:
    """The circuit followed by gates on single qubits, detached; the circuit itself if there are none.

    Args:
        circuit: without nonlinearities.
        turns: one a qubit, the most significant first: a gate of shape (2, 2), or None.
    """
    if all(turn is None for turn in turns):
        return circuit
    (placed,) = circuit.segment_gates()
    dims = circuit.ansatz.wire_dims
    for wire, sites in enumerate(wire_sites(dims)):
        inside = [turns[site] for site in sites]
        if any(turn is not None for turn in inside):
            matrix = torch.ones(1, 1, dtype=torch.float64)
            for turn in inside:
                matrix = torch.kron(
                    matrix,
                    torch.eye(2, dtype=matrix.dtype)
                    if turn is None
                    else turn.to(torch.promote_types(matrix.dtype, turn.dtype)),
                )
            placed.append((matrix, (wire,)))
    return Circuit.from_gates(dims, placed, dtype=circuit.dtype, device=circuit.device)
