"""Readouts: from counts back to the signed vector that a circuit produced.

A quantum state has neither norm nor sign: the norm is kept aside, and every readout says what becomes of the sign.

- "exact": the vector itself, from torch; nothing is measured.
- "reference": the plus/minus reference, two circuits a vector; measures magnitudes and signs, the global one included
  (:mod:`unbraid.quantum.reference`).
- "signs": n + 1 circuits a vector, one Hadamard each; the global sign from what the host knows of the input
  (:mod:`unbraid.quantum.signs`).
- "tomography": 3^n circuits a vector; the global sign is lost, and a rule chooses one
  (:mod:`unbraid.quantum.tomography`).

Legend: B vectors of N = 2^n entries.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from unbraid.circuits import Circuit
from unbraid.ground.errors import InvalidInputError, require_choice, require_finite
from unbraid.quantum.encode import Amplitude, Encoding, encode, encoding_of
from unbraid.quantum.execute import Executor, TorchExecutor, check_executor, check_total
from unbraid.quantum.reading import Reading, Readout
from unbraid.quantum.reference import Reference
from unbraid.quantum.signs import Signs
from unbraid.quantum.tomography import Tomography

READOUTS = ("exact", "reference", "signs", "tomography")


@dataclass(frozen=True)
class Exact:
    """The vector itself, from torch's simulation."""

    def __str__(self) -> str:
        return "exact"

    def circuits(self, qubits: int) -> int:
        """One, simulated."""
        return 1

    def shots(self, total: int, qubits: int) -> int:
        """None."""
        return 0

    def measured(self, circuit: Circuit) -> Iterable[Circuit]:
        """The circuit itself."""
        return [circuit]

    def read(
        self,
        circuit: Circuit,
        units: Tensor,
        shots: int,
        executor: Executor,
        generator: torch.Generator | None,
        encoding: Encoding,
    ) -> Reading:
        """See :meth:`unbraid.quantum.reading.Readout.read`; differentiable, and for vectors of any length."""
        if not isinstance(executor, TorchExecutor):
            raise InvalidInputError(
                f"readout='exact' takes the vector from torch's simulation, and {executor!r} only counts outcomes. Use "
                "readout='reference', or executor=TorchExecutor()."
            )
        vectors = circuit(through_states(units, encoding))
        return Reading(vectors, vectors.new_zeros(len(units), dtype=vectors.real.dtype), len(units), 0)


def through_states(x: Tensor, encoding: Encoding) -> Tensor:
    """What is left of vectors that are prepared as states and get their norms back; shape (..., N), differentiable."""
    if isinstance(encoding, Amplitude):
        return x
    encoded = encode(x, encoding)
    return encoded.norm[..., None] * encoded.vectors


def readout_of(readout: str | Readout) -> Readout:
    """A readout with its settings, from its name or from one.

    Raises:
        InvalidInputError: if the name is unknown.
    """
    if isinstance(readout, Exact | Reference | Signs | Tomography):
        return readout
    require_choice(readout, READOUTS, "readout")
    named: dict[str, Readout] = {str(each): each for each in (Exact(), Reference(), Signs(), Tomography())}
    return named[str(readout)]


@dataclass(frozen=True)
class ReadOut:
    """A vector read back, and what that took.

    Attributes:
        vectors: circuit(x) with its norm, shape (..., N).
        standard_error: estimated root of the expected squared L2 error of each vector, from the finite number of shots
            alone (no gate errors, no error of the encoding), shape (...).
        circuits: circuits that the vectors rest on, some of which a store may have held.
        shots: shots of all circuits.
    """

    vectors: Tensor
    standard_error: Tensor
    circuits: int
    shots: int


def read_out(
    circuit: Circuit,
    x: Tensor,
    *,
    readout: str | Readout = "reference",
    shots: int = 10_000,
    executor: Executor | None = None,
    generator: torch.Generator | None = None,
    encoding: str | Encoding = "amplitude",
) -> ReadOut:
    """Run ``circuit`` on ``x`` and read the result back, with norm and sign.

    Zero vectors give zeros without being run.

    Args:
        circuit: without nonlinearities.
        x: real, shape (..., N).
        readout: "exact": torch, no shots, differentiable. "reference": the plus/minus reference, for real circuits.
            "signs": magnitudes, then signs from Hadamards, for real circuits. "tomography": state tomography by
            qiskit-experiments and the top eigenvector of the density matrix (of its real part, for a real circuit).
            Tomography cannot see the global sign: the component of largest magnitude is made positive, which is wrong
            for about half of all vectors and must not precede a nonlinearity. Or one with its settings:
            :class:`~unbraid.quantum.Reference`, :class:`~unbraid.quantum.Signs`, :class:`~unbraid.quantum.Tomography`.
        shots: for one vector, over all circuits of its readout: "reference" splits them over 2, "signs" over n + 1,
            "tomography" over 3^n circuits, at least 1 each.
        executor: :class:`unbraid.TorchExecutor` by default, sampled with seed 0.
        generator: of the samples; equal generators give equal results (samplers other than Aer keep their own
            randomness).
        encoding: "amplitude" | "mps", or one with its settings; see :func:`unbraid.encode`.

    Returns:
        A :class:`ReadOut`.

    Raises:
        InvalidInputError: if the readout is unknown or does not suit circuit and executor, or sizes, entries or shots
            cannot be used.
        ExecutionError: if the executor fails.
        MissingExtraError: if qiskit-experiments is needed and not installed.
    """
    chosen, encoding = readout_of(readout), encoding_of(encoding)
    if not isinstance(circuit, Circuit) or not isinstance(x, Tensor):
        raise InvalidInputError(
            f"read_out takes a Circuit and a tensor; got {type(circuit).__name__} and {type(x).__name__}."
        )
    if generator is not None and not isinstance(generator, torch.Generator):
        raise InvalidInputError(f"generator must be a torch.Generator; got {generator!r}.")
    if not circuit.is_linear:
        raise InvalidInputError(
            "read_out takes linear circuits; this one carries nonlinearities. Read out its segments() one by one, or "
            "use to_quantum."
        )
    if x.dim() == 0 or x.shape[-1] != circuit.dimension:
        raise InvalidInputError(
            f"x must have {circuit.dimension} entries on its last axis; got shape {tuple(x.shape)}. Pad with zeros."
        )
    if x.is_complex() or not x.is_floating_point():
        raise InvalidInputError(f"x must be real and floating point; got {x.dtype}.")
    require_finite(x, "x")
    executor = check_executor(TorchExecutor() if executor is None else executor)
    flat = x.reshape(-1, circuit.dimension)
    if isinstance(chosen, Exact):
        exact = chosen.read(circuit, flat, 0, executor, None, encoding)
        return ReadOut(exact.vectors.reshape(x.shape), exact.errors.reshape(x.shape[:-1]), exact.circuits, 0)
    check_total(shots)
    with torch.no_grad():
        # Scaled by the largest entry, so that no square under- or overflows.
        largest = flat.abs().amax(dim=1).double()
        rows = largest > 0
        scaled = flat[rows].double() / largest[rows, None]
        lengths = torch.linalg.vector_norm(scaled, dim=1)
        units, norms = scaled / lengths[:, None], largest[rows] * lengths
        if not len(units):
            kind = torch.promote_types(x.dtype, torch.complex64) if circuit.is_complex else x.dtype
            return ReadOut(torch.zeros_like(x, dtype=kind), torch.zeros_like(x[..., 0]), 0, 0)
        read = chosen.read(circuit, units, shots, executor, generator, encoding)
        dtype = torch.promote_types(x.dtype, torch.complex64) if read.vectors.is_complex() else x.dtype
        vectors = torch.zeros(flat.shape, dtype=dtype, device=x.device)
        vectors[rows] = (read.vectors * norms[:, None]).to(dtype)
        errors = torch.zeros_like(largest)
        errors[rows] = read.errors * norms
    standard_error = errors.to(x.dtype).reshape(x.shape[:-1])
    return ReadOut(vectors.reshape(x.shape), standard_error, read.circuits, read.shots)
