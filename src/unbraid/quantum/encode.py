"""Encoding of data vectors in the amplitudes of quantum states.

A state has no norm, so the norm is kept beside the circuit. Both parts are differentiable, with finite gradients at
zero entries and at the zero vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from qiskit import QuantumCircuit
from qiskit.circuit.library import StatePreparation
from torch import Tensor
from torch.nn.functional import pad

from unbraid.ground.errors import InvalidInputError, require_choice, require_finite
from unbraid.quantum.convert import is_standard, unrolled
from unbraid.tensors.sites import qubits_for

ENCODINGS = ("amplitude",)


@dataclass(frozen=True)
class Encoded:
    """Vectors as states: ``x = norm * vectors``, zero-padded.

    Attributes:
        vectors: unit vectors, shape (..., 2^n), real; |0...0> where the input is zero.
        norm: shape (...); multiply the result of a linear circuit by it.
        fidelity: shape (...): |<prepared state, vector>|^2; 1 for amplitude encoding.
        cnot_count: CNOTs of one state preparation of a generic vector.
        encoding: how the states are prepared.
    """

    vectors: Tensor
    norm: Tensor
    fidelity: Tensor
    cnot_count: int
    encoding: str = "amplitude"

    @property
    def num_qubits(self) -> int:
        """Qubits n of one state."""
        return qubits_for(self.vectors.shape[-1])

    def circuit(self, index: int = 0) -> QuantumCircuit:
        """State preparation of one vector, as gates u and cx on |0...0>; its sign is that of the vector.

        Args:
            index: position in the flattened batch.

        Raises:
            InvalidInputError: if there is no such vector.
        """
        flat = self.vectors.detach().reshape(-1, self.vectors.shape[-1])
        if not -len(flat) <= index < len(flat):
            raise InvalidInputError(f"This batch has {len(flat)} vectors; got index {index}.")
        return prepare_state(flat[index])


def encode(x: Any, encoding: str = "amplitude") -> Encoded:
    """Write real vectors as quantum states and norms.

    Args:
        x: shape (..., m); zeros are appended up to the next power of two. Integers become torch's default dtype.
        encoding: "amplitude": the vector's entries are the amplitudes, exactly.

    Returns:
        States of n = ceil(log2(m)) qubits, in the dtype and on the device of ``x``; differentiable.

    Raises:
        InvalidInputError: if ``x`` is complex, empty, NaN or infinite, or the encoding is unknown.
    """
    require_choice(encoding, ENCODINGS, "encoding")
    x = torch.as_tensor(x)
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
    return Encoded(vectors, norm, torch.ones_like(norm, requires_grad=False), amplitude_cnots(n), encoding)


def amplitude_cnots(n: int) -> int:
    """CNOTs of Qiskit's preparation of a generic state of ``n`` qubits, any two of them connected: 2^n - n - 1."""
    return 2**n - n - 1


def prepare_state(vector: Any) -> QuantumCircuit:
    """A circuit of u and cx that takes |0...0> to a real vector, sign included.

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
    qc = QuantumCircuit(n)
    qc.append(StatePreparation(amplitudes.numpy()), range(n))
    return unrolled(qc, lambda gate: is_standard(gate) and gate.name in ("u", "cx"))


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
