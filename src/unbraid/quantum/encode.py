"""Encoding of data vectors in the amplitudes of quantum states.

A state has no norm, so the norm is kept beside the circuit. Both parts are differentiable, with finite gradients at
zero entries and at the zero vector.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from qiskit import QuantumCircuit
from torch import Tensor
from torch.nn.functional import pad

from unbraid.ground.errors import InvalidInputError, require_choice, require_finite
from unbraid.quantum.multiplexed import multiplexed_circuit, multiplexed_cnots
from unbraid.quantum.staircase import (
    Preparation,
    fit_gates,
    preparation_circuit,
    prepared,
    reaches_all,
    staircase_cnots,
)
from unbraid.tensors.sites import qubits_for

if TYPE_CHECKING:
    from unbraid.quantum.cost import GateCounts

ENCODINGS = ("amplitude", "mps")


@dataclass(frozen=True)
class Amplitude:
    """Exact: the entries are the amplitudes, prepared by uniformly controlled rotations."""

    def __str__(self) -> str:
        return "amplitude"


@dataclass(frozen=True)
class MPSEncoding:
    """Staircases of SO(4) gates on neighbouring qubits, fitted to each vector: a matrix product state as a circuit.

    Attributes:
        layers: staircases of n - 1 gates; with enough of them (4 at six qubits, 10 at eight) any vector is reached.
        sweeps: that polish the gates of a vector, at most.
        tolerance: a vector is done when a sweep gains less overlap.
    """

    layers: int = 3
    sweeps: int = 200
    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        for name, smallest in (("layers", 1), ("sweeps", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < smallest:
                raise InvalidInputError(f"{name} must be an integer of at least {smallest}; got {value!r}.")
        if not isinstance(self.tolerance, int | float) or not 0 <= self.tolerance < math.inf:
            raise InvalidInputError(f"tolerance must be a number of at least 0; got {self.tolerance!r}. Try 1e-6.")

    def __str__(self) -> str:
        return "mps"


Encoding = Amplitude | MPSEncoding


def encoding_of(encoding: str | Encoding) -> Encoding:
    """An encoding with its settings, from its name or from one.

    Raises:
        InvalidInputError: if the name is unknown.
    """
    if isinstance(encoding, Amplitude | MPSEncoding):
        return encoding
    require_choice(encoding, ENCODINGS, "encoding")
    return Amplitude() if encoding == "amplitude" else MPSEncoding()


@dataclass(frozen=True)
class Encoded:
    """Vectors as states: ``x`` is ``norm * vectors``, zero-padded, up to the fidelity.

    Attributes:
        vectors: the prepared unit vectors, shape (..., 2^n), real; |0...0> where the input is zero.
        norm: shape (...); multiply the result of a linear circuit by it.
        fidelity: shape (...): |<prepared state, vector>|^2; 1 for amplitude encoding.
        cnot_count: CNOTs of one state preparation of a generic vector.
        encoding: how the states are prepared.
        gates: of the staircases, shape (..., m, 4, 4); None for amplitude encoding.
    """

    vectors: Tensor
    norm: Tensor
    fidelity: Tensor
    cnot_count: int
    encoding: Encoding = Amplitude()
    gates: Tensor | None = None

    @property
    def num_qubits(self) -> int:
        """Qubits n of one state."""
        return qubits_for(self.vectors.shape[-1])

    def part(self, first: int, last: int) -> Encoded:
        """Vectors ``first`` to ``last - 1`` of the first axis."""
        gates = None if self.gates is None else self.gates[first:last]
        vectors, norm = self.vectors[first:last], self.norm[first:last]
        return replace(self, vectors=vectors, norm=norm, fidelity=self.fidelity[first:last], gates=gates)

    def circuit(self, index: int = 0) -> QuantumCircuit:
        """State preparation of one vector on |0...0>; its sign is that of the vector.

        Args:
            index: position in the flattened batch.

        Returns:
            A circuit of ry and cx; those of staircases are between neighbours.

        Raises:
            InvalidInputError: if there is no such vector.
        """
        count = self.norm.numel()
        if not -count <= index < count:
            raise InvalidInputError(f"This batch has {count} vectors; got index {index}.")
        if self.gates is not None:
            return preparation_circuit(self.gates.reshape(-1, *self.gates.shape[-3:])[index], self.num_qubits)
        return prepare_state(self.vectors.detach().reshape(-1, self.vectors.shape[-1])[index])

    def gate_counts(self) -> list[GateCounts]:
        """Gates and depth of every preparation as built, in the order of the flattened batch."""
        from unbraid.quantum.cost import gate_counts

        count = self.norm.numel()
        if self.gates is not None and count:  # the same gates with other angles
            return [gate_counts(self.circuit(0))] * count
        return [gate_counts(self.circuit(i)) for i in range(count)]

    def summary(self) -> dict[str, float]:
        """Means over the batch: ``fidelity``, ``cnots``, ``depth``; and the ``lowest_fidelity``.

        Raises:
            InvalidInputError: if there are no vectors.
        """
        counts = self.gate_counts()
        if not counts:
            raise InvalidInputError("This batch has no vectors, so there are no means over it.")
        return {
            "fidelity": float(self.fidelity.mean()),
            "lowest_fidelity": float(self.fidelity.min()),
            "cnots": sum(count["two_qubit"] for count in counts) / len(counts),
            "depth": sum(count["depth"] for count in counts) / len(counts),
        }


def encode(
    x: Any,
    encoding: str | Encoding = "amplitude",
    *,
    layers: int | None = None,
    sweeps: int | None = None,
    tolerance: float | None = None,
) -> Encoded:
    """Write real vectors as quantum states and norms.

    Args:
        x: shape (..., m); zeros are appended up to the next power of two. Integers become torch's default dtype.
        encoding: "amplitude": the vector's entries are the amplitudes, exactly. "mps": staircases of gates on
            neighbouring qubits, approximately and with fewer CNOTs. Or one with its settings, :class:`MPSEncoding`.
        layers: staircases; for "mps", 3 by default.
        sweeps: that polish the gates of a vector, at most; for "mps", 200 by default.
        tolerance: a vector is done when a sweep gains less overlap; for "mps", 1e-6 by default.

    Returns:
        States of n = ceil(log2(m)) qubits, in the dtype and on the device of ``x``; differentiable. Where "mps" reaches
        every vector its derivative is that of exact encoding. With fewer staircases it is that of converged gates,
        which the sweeps do not always reach if there are several, see :class:`unbraid.quantum.staircase.Preparation`.

    Raises:
        InvalidInputError: if ``x`` is complex, empty, NaN or infinite, the encoding is unknown, or a setting is out of
            range or not one of this encoding.

    Source:
        Sec. IV.1 of "Classical Neural Networks on Quantum Devices via Tensor Network Disentanglers"; for staircases
        arXiv:1908.07958.
    """
    settings = {"layers": layers, "sweeps": sweeps, "tolerance": tolerance}
    given: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
    if given:
        if encoding != "mps":
            raise InvalidInputError(
                f"{', '.join(given)} belong to encoding='mps' alone; got encoding={encoding!r}. Use one or the other."
            )
        encoding = MPSEncoding(**given)
    chosen = encoding_of(encoding)
    try:
        x = torch.as_tensor(x)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInputError(f"encode takes a tensor, or numbers in an array; got {type(x).__name__}.") from error
    if x.is_complex():
        raise InvalidInputError("encode takes real vectors; got complex ones. Encode real and imaginary parts apart.")
    if x.dim() == 0 or x.shape[-1] == 0:
        raise InvalidInputError(
            f"encode needs vectors of at least one entry, shape (..., m); got shape {tuple(x.shape)}."
        )
    if not x.is_floating_point():
        x = x.to(torch.get_default_dtype())
    require_finite(x, "x")
    n = qubits_for(x.shape[-1])
    vectors, norm = _normalised(pad(x, (0, 2**n - x.shape[-1])))
    if not bool(torch.isfinite(norm.detach()).all()):
        raise InvalidInputError(
            f"The norm of a vector is more than {x.dtype} holds. Use float64, or scale the vectors."
        )
    if isinstance(chosen, Amplitude) or n == 0:
        return Encoded(vectors, norm, torch.ones_like(norm, requires_grad=False), multiplexed_cnots(n), chosen)
    return _staircases(vectors, norm, chosen)


def _staircases(vectors: Tensor, norm: Tensor, encoding: MPSEncoding) -> Encoded:
    flat = vectors.reshape(-1, vectors.shape[-1]).double()
    exact = flat.detach().cpu()
    gates = fit_gates(exact, encoding.layers, encoding.sweeps, encoding.tolerance).to(flat.device)
    n = qubits_for(vectors.shape[-1])
    if reaches_all(n, encoding.layers):
        states = flat + (prepared(gates, n) - flat).detach()
    else:
        states = Preparation.apply(flat, gates)
    fidelity = (states.detach() * flat.detach()).sum(dim=1).square().clamp(max=1)
    return Encoded(
        states.to(vectors.dtype).reshape(vectors.shape),
        norm,
        fidelity.to(vectors.dtype).reshape(norm.shape),
        staircase_cnots(n, encoding.layers),
        encoding,
        gates.reshape(*norm.shape, *gates.shape[1:]),
    )


def prepare_state(vector: Any) -> QuantumCircuit:
    """A circuit of ry and cx that takes |0...0> to a real vector, sign included.

    Args:
        vector: shape (2^n,), not zero; it is normalised in float64.

    Returns:
        A circuit on n qubits; empty for |0...0> itself.

    Raises:
        InvalidInputError: if the size is no power of two, or the vector is zero or not finite.
    """
    amplitudes = torch.as_tensor(vector).detach().cpu().double()
    n = qubits_for(amplitudes.numel())
    if amplitudes.dim() != 1 or amplitudes.numel() != 2**n:
        raise InvalidInputError(f"A state has 2, 4, 8, ... amplitudes; got shape {tuple(amplitudes.shape)}.")
    require_finite(amplitudes, "The state")
    amplitudes, norm = _normalised(amplitudes)
    if not float(norm):
        raise InvalidInputError("The zero vector is no state; encode() puts |0...0> and the norm 0 in its place.")
    if not bool(amplitudes[1:].any()):
        return QuantumCircuit(n, global_phase=0.0 if amplitudes[0] > 0 else torch.pi)
    return multiplexed_circuit(amplitudes.numpy())


def _normalised(x: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors and norms. Vectors below the smallest normal number count as zero: their gradient would overflow."""
    scale = x.detach().abs().amax(-1, keepdim=True)
    zero = scale < torch.finfo(x.dtype).tiny
    basis = torch.zeros_like(x)
    basis[..., 0] = 1
    # Scaled so that no square under- or overflows; replaced before the root, whose gradient at zero is NaN.
    safe = torch.where(zero, basis, x / torch.where(zero, torch.ones_like(scale), scale))
    length = torch.linalg.vector_norm(safe, dim=-1, keepdim=True)
    norm = torch.where(zero, torch.zeros_like(scale), scale * length)
    return safe / length, norm.squeeze(-1)
