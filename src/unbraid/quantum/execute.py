"""Executors: prepare states, run one circuit on them, count outcomes.

Legend: B vectors of N = 2^n entries; counts are (B, N) in the order of our flat index, which is also Qiskit's
(``unbraid.quantum.convert`` puts site k of n on qubit n - 1 - k).

Circuits of Qiskit are built by :mod:`unbraid.quantum.samplers` alone; :class:`TorchExecutor` needs none.
"""

from __future__ import annotations

import time
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from unbraid.circuits import Circuit
from unbraid.ground.errors import InvalidInputError, require_finite
from unbraid.ground.manifest import hash_tensors
from unbraid.ground.random import stream
from unbraid.quantum.encode import Amplitude, Encoding, encode, encoding_of

_NORM_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Execution:
    """What came back, and what it took.

    Attributes:
        counts: int64, shape (B, N): how often each outcome was seen; None for an exact run.
        vectors: shape (B, N): the exact output vectors; None for a sampled run.
        circuits: circuits run, one a vector.
        shots: shots in all.
        job_ids: of the sampler's jobs; empty for torch.
        seconds: wall-clock time, queueing and transpilation included.
    """

    counts: Tensor | None
    vectors: Tensor | None
    circuits: int
    shots: int
    job_ids: tuple[str, ...]
    seconds: float


@runtime_checkable
class Executor(Protocol):
    """Anything that runs a linear circuit on encoded vectors."""

    def run(
        self,
        circuit: Circuit,
        vectors: Tensor,
        shots: int | Tensor | None = None,
        *,
        encoding: str | Encoding = "amplitude",
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
        self.seed = seed
        self._calls = 0

    def __repr__(self) -> str:
        return f"TorchExecutor(seed={self.seed})"

    def run(
        self,
        circuit: Circuit,
        vectors: Tensor,
        shots: int | Tensor | None = None,
        *,
        encoding: str | Encoding = "amplitude",
        generator: torch.Generator | None = None,
    ) -> Execution:
        """Run ``circuit`` on vectors.

        Args:
            circuit: without nonlinearities.
            vectors: normalised, shape (B, N).
            shots: shots a vector, one integer or an integer tensor of shape (B,); None for exact vectors, which stay
                differentiable.
            encoding: "amplitude": the vectors as they are. "mps": as staircases prepare them; see
                :func:`unbraid.encode`.
            generator: of the samples; equal generators give equal counts.

        Returns:
            An :class:`Execution` with ``counts``, or with ``vectors`` if ``shots`` is None.

        Raises:
            InvalidInputError: if sizes, norms, entries or shots cannot be used.
        """
        start = time.perf_counter()
        check_run(circuit, vectors)
        if not isinstance(encoding_of(encoding), Amplitude):
            vectors = encode(vectors, encoding).vectors
        if shots is None:
            exact = circuit(vectors)
            return Execution(None, exact, len(vectors), 0, (), time.perf_counter() - start)
        shots_B = check_shots(shots, len(vectors))
        if generator is None:
            generator = stream(self.seed, "torch executor", self._calls)
            self._calls += 1
        with torch.no_grad():
            counts = sample_counts(circuit(vectors), shots_B, generator)
        return Execution(counts, None, len(vectors), int(shots_B.sum()), (), time.perf_counter() - start)


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
    shots_B = check_shots(shots, len(vectors))
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
            "with sites='qubits'."
        )
    return circuit.dimension.bit_length() - 1


def circuit_key(circuit: Circuit) -> Hashable:
    """Names the content of a circuit: geometry, direction and gates."""
    return circuit.ansatz, circuit.mirrored, hash_tensors(*circuit.gate_matrices())


def check_run(circuit: Circuit, vectors: Tensor) -> None:
    """Refuse circuits that are not linear, and vectors that are no normalised states of the right size.

    Raises:
        InvalidInputError: saying what to do.
    """
    if not circuit.is_linear:
        raise InvalidInputError(
            "An executor runs linear circuits; this one carries nonlinearities. Run its segments() one by one, or use "
            "to_quantum."
        )
    if vectors.dim() != 2 or vectors.shape[1] != circuit.dimension:
        raise InvalidInputError(
            f"vectors must have shape (B, {circuit.dimension}) for this circuit; got {tuple(vectors.shape)}. Pad with "
            "zeros."
        )
    require_finite(vectors, "vectors")
    norms = torch.linalg.vector_norm(vectors.detach(), dim=1)
    wrong = (norms - 1).abs() > _NORM_TOLERANCE
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise InvalidInputError(
            f"vectors must be normalised, since a quantum state has no norm; row {row} has norm "
            f"{float(norms[row]):.6g}. Divide by the norms and keep them, as read_out does."
        )


def check_shots(shots: int | Tensor, count: int) -> Tensor:
    """Shots as an int64 tensor of shape (B,) on the CPU."""
    if isinstance(shots, Tensor):
        whole = not (shots.is_floating_point() or shots.is_complex() or shots.dtype == torch.bool)
        if whole and shots.shape == (count,) and (count == 0 or int(shots.min()) > 0):
            return shots.to("cpu", torch.int64)
    elif isinstance(shots, int) and not isinstance(shots, bool) and shots > 0:
        return torch.full((count,), shots, dtype=torch.int64)
    raise InvalidInputError(
        f"shots must be a positive integer, or a tensor of {count} positive integers; got {shots!r}."
    )


def draw_seed(generator: torch.Generator) -> int:
    """A seed for a library that has randomness of its own."""
    return int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
