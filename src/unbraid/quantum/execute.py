"""Executors: prepare states, run one circuit on them, count outcomes.

Legend: B vectors of N = 2^n entries; counts are (B, N), or (M, B, N) of M circuits, in the order of our flat index,
which is also Qiskit's
(``unbraid.quantum.convert`` puts site k of n on qubit n - 1 - k).

Circuits of Qiskit are built by :mod:`unbraid.quantum.samplers` alone; :class:`TorchExecutor` needs none.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from unbraid.circuits import Circuit
from unbraid.ground.errors import InvalidInputError, require_finite
from unbraid.ground.manifest import hash_tensors
from unbraid.ground.random import stream
from unbraid.quantum.encode import Encoded

_NORM_TOLERANCE = 1e-4
MOST_SHOTS = 2**53


@dataclass(frozen=True)
class Execution:
    """What came back, and what it took.

    Attributes:
        counts: shape (B, N), or (M, B, N) for a list of M circuits: how often each outcome was seen, int64; float64
            where noise was extrapolated; None for an exact run.
        vectors: of the same shape: the exact output vectors; None for a sampled run.
        circuits: circuits run, one a vector and circuit.
        shots: shots in all.
        job_ids: of the sampler's jobs; empty for torch.
        seconds: wall-clock time, queueing and transpilation included.
        confusion: how qubits are misread, probabilities (seen, true), shape (B, n, 2, 2) or (M, B, n, 2, 2), the most
            significant qubit first; None where that was not measured.
    """

    counts: Tensor | None
    vectors: Tensor | None
    circuits: int
    shots: int
    job_ids: tuple[str, ...]
    seconds: float
    confusion: Tensor | None = None


Circuits = Circuit | Sequence[Circuit]


@runtime_checkable
class Executor(Protocol):
    """Anything that runs linear circuits on encoded vectors."""

    def run(
        self,
        circuit: Circuits,
        vectors: Tensor | Encoded,
        shots: int | Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Execution:
        """See :meth:`TorchExecutor.run`."""
        ...


class TorchExecutor:
    """Batched simulation in torch: exact vectors, or outcomes drawn from their squares.

    Args:
        seed: of the samples of runs that get no ``generator``; each such run takes the next stream.
    """

    def __init__(self, seed: int = 0) -> None:
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise InvalidInputError(f"seed must be an integer; got {seed!r}.")
        self.seed = seed
        self._calls = 0

    def __repr__(self) -> str:
        return f"TorchExecutor(seed={self.seed})"

    def run(
        self,
        circuit: Circuits,
        vectors: Tensor | Encoded,
        shots: int | Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Execution:
        """Run ``circuit`` on vectors.

        Args:
            circuit: without nonlinearities; or a list of M such circuits, each of which runs on every vector.
            vectors: normalised, shape (B, N), prepared exactly; or encoded ones.
            shots: shots a vector, one integer or an integer tensor of shape (B,), or (M, B) for a list of circuits;
                None for exact vectors, which stay differentiable.
            generator: of the samples; equal generators give equal counts.

        Returns:
            An :class:`Execution` with ``counts``, or with ``vectors`` if ``shots`` is None.

        Raises:
            InvalidInputError: if sizes, norms, entries or shots cannot be used.
        """
        start = time.perf_counter()
        circuits = as_list(circuit)
        states = check_run(circuits, vectors)
        count = len(circuits) * len(states)
        if shots is None:
            exact = torch.stack([each(states) for each in circuits])
            return Execution(None, _like(exact, circuit), count, 0, (), time.perf_counter() - start)
        split = check_shots(shots, len(circuits), len(states))
        if generator is None:
            generator = stream(self.seed, "torch executor", self._calls)
            self._calls += 1
        with torch.no_grad():
            found = torch.stack([each(states) for each in circuits])
            counts = sample_counts(found.flatten(0, 1), split.flatten(), generator).reshape(found.shape)
        return Execution(_like(counts, circuit), None, count, int(split.sum()), (), time.perf_counter() - start)


def as_list(circuit: Circuits) -> list[Circuit]:
    """One or several circuits as a list.

    Raises:
        InvalidInputError: if there is none, or they act on vectors of different sizes.
    """
    given: Sequence[Any] = circuit if isinstance(circuit, list | tuple) else [circuit]
    circuits = [each for each in given if isinstance(each, Circuit)]
    if len(circuits) < len(given):
        raise InvalidInputError(f"An executor runs a Circuit, or a list of them; got {type(circuit).__name__}.")
    if not circuits or len({each.dimension for each in circuits}) > 1:
        raise InvalidInputError(
            f"Circuits that run together must act on vectors of one size; got sizes {[c.dimension for c in circuits]}."
        )
    return circuits


def _like(found: Tensor, circuit: Circuits) -> Tensor:
    """Without the axis of circuits where only one was given."""
    return found[0] if isinstance(circuit, Circuit) else found


def sample_counts(vectors: Tensor, shots: int | Tensor, generator: torch.Generator) -> Tensor:
    """Draw outcomes from the squared entries of vectors, all vectors at once.

    Args:
        vectors: real or complex, shape (B, N); normalised here, in float64.
        shots: one positive integer, or an integer tensor of shape (B,).
        generator: source of the randomness; advanced by one draw.

    Returns:
        Counts, int64, shape (B, N), on the device of ``vectors``; each row sums to its shots.

    Raises:
        InvalidInputError: if ``shots`` are not positive integers.
    """
    (shots_B,) = check_shots(shots, 1, len(vectors))
    # NumPy's conditional binomials cost the same for ten shots and for a million.
    probabilities = vectors.detach().abs().to("cpu", torch.float64).square().numpy()
    probabilities = probabilities / probabilities.sum(axis=1, keepdims=True)
    counts = np.random.default_rng(draw_seed(generator)).multinomial(shots_B.numpy(), probabilities)
    return torch.from_numpy(counts).to(vectors.device)


def count_qubits(circuit: Circuit) -> int:
    """Number of qubits of a circuit whose wires hold whole qubits; wires of dimension 1 hold none.

    Raises:
        InvalidInputError: if a wire dimension is no power of two, or nothing is left.
    """
    dims = circuit.ansatz.wire_dims
    if any(dim & (dim - 1) for dim in dims) or circuit.dimension < 2:
        raise InvalidInputError(
            f"A quantum circuit needs wires of dimension 2, 4, 8, ..., at least one; got {dims}. Tensorize the layer "
            "with sites='qubits', or declare wires of qubits (input_wires, output_wires)."
        )
    return circuit.dimension.bit_length() - 1


def circuit_key(circuit: Circuit) -> Hashable:
    """Names the content of a circuit: geometry, direction and gates."""
    return circuit.ansatz, circuit.mirrored, hash_tensors(*circuit.gate_matrices())


def check_run(circuits: Sequence[Circuit], vectors: Tensor | Encoded) -> Tensor:
    """The states that circuits get, shape (B, N).

    Raises:
        InvalidInputError: if a circuit is not linear, or vectors are no normalised states of the right size.
    """
    if not all(circuit.is_linear for circuit in circuits):
        raise InvalidInputError(
            "An executor runs linear circuits; this one carries nonlinearities. Run its segments() one by one, or use "
            "to_quantum."
        )
    states = vectors.vectors if isinstance(vectors, Encoded) else vectors
    if not isinstance(states, Tensor):
        raise InvalidInputError(f"vectors must be a tensor or encode(...); got {type(states).__name__}.")
    if states.dim() != 2 or states.shape[1] != circuits[0].dimension:
        raise InvalidInputError(
            f"vectors must have shape (B, {circuits[0].dimension}) for this circuit; got {tuple(states.shape)}. Pad "
            "with zeros."
        )
    require_finite(states, "vectors")
    norms = torch.linalg.vector_norm(states.detach(), dim=1)
    wrong = (norms - 1).abs() > max(_NORM_TOLERANCE, 2 * torch.finfo(states.dtype).eps)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise InvalidInputError(
            f"vectors must be normalised, since a quantum state has no norm; row {row} has norm "
            f"{float(norms[row]):.6g}. Divide by the norms and keep them, as read_out does."
        )
    return states


def check_executor(executor: Any) -> Executor:
    """The executor itself.

    Raises:
        InvalidInputError: if it is none.
    """
    if isinstance(executor, type) or not callable(getattr(executor, "run", None)):
        raise InvalidInputError(f"executor must be one such as TorchExecutor() or AerExecutor(); got {executor!r}.")
    found: Executor = executor
    return found


def check_total(shots: Any) -> None:
    """Refuse shots of a readout, over all of its circuits, that are not at least two.

    Raises:
        InvalidInputError: if they are not.
    """
    if isinstance(shots, bool) or not isinstance(shots, int) or not 2 <= shots <= MOST_SHOTS:
        raise InvalidInputError(f"shots must be an integer from 2 to 2^53; got {shots!r}.")


def check_shots(shots: int | Tensor, circuits: int, count: int) -> Tensor:
    """Shots as an int64 tensor of shape (circuits, count) on the CPU.

    Raises:
        InvalidInputError: if they are not positive integers, or not as many.
    """
    if isinstance(shots, Tensor):
        whole = not (shots.is_floating_point() or shots.is_complex() or shots.dtype == torch.bool)
        fits = shots.shape in ((count,), (circuits, count))
        if whole and fits and (shots.numel() == 0 or 0 < int(shots.min()) <= int(shots.max()) <= MOST_SHOTS):
            return shots.to("cpu", torch.int64).expand(circuits, count)
    elif isinstance(shots, int) and not isinstance(shots, bool) and 0 < shots <= MOST_SHOTS:
        return torch.full((circuits, count), shots, dtype=torch.int64)
    raise InvalidInputError(
        f"shots must be a positive integer of at most 2^53, or a tensor of {count} of them; got {shots!r}."
    )


def draw_seed(generator: torch.Generator) -> int:
    """A seed for a library that has randomness of its own."""
    return int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
