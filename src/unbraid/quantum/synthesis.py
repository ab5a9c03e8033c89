"""Real gates as Ry rotations and CNOTs, without a leftover sign.

Gates on one and two qubits are found in closed form, here; those on three and four in :mod:`unbraid.quantum.templates`.

so(4) is two commuting copies of su(2), spanned by ``-iY⊗I, -iZ⊗Y, -iX⊗Y`` and by ``-iI⊗Y, -iY⊗X, -iY⊗Z``. A CNOT whose
control is the first wire carries ``Y⊗I`` to ``Y⊗X`` and ``I⊗Y`` to ``Z⊗Y``: it swaps the copies. Hence

    (Ry(a) ⊗ Ry(b)) CX (Ry(c) ⊗ Ry(d)) CX (Ry(e) ⊗ Ry(f))

acts as the Euler rotation (a, d, e) in the first copy and (b, c, f) in the second, and every gate of SO(4) has that
form.

Legend: matrices are read as everywhere in this package, the first wire most significant. In the circuits returned here
wire 0 of two is qubit 1 (see :mod:`unbraid.quantum.convert`).

Source: the form is that of F. Vatan and C. Williams, Phys. Rev. A 69, 032315 (2004), there derived with S gates; the
real derivation by two copies of su(2) is ours.
"""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qiskit import QuantumCircuit
from qiskit.quantum_info import Operator
from torch import Tensor

from unbraid.ground.errors import DidNotConvergeError, InvalidInputError
from unbraid.quantum.templates import search

Matrix = NDArray[np.float64]

# How far from orthogonal a gate may be (float32 parameters leave about 1e-6); the synthesis takes its nearest rotation.
ORTHOGONALITY_TOLERANCE = 1e-4
# Rotations below this are left out; well under the error of 1e-13 that is promised.
_SMALLEST_ANGLE = 1e-15

_I = np.eye(2)
_X = np.array([[0.0, 1.0], [1.0, 0.0]])
_Z = np.diag([1.0, -1.0])
_Y = np.array([[0.0, -1.0], [1.0, 0.0]])  # -iY, which is real
_CX = np.array([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]])

# shape: (4, 4, 4); bases of unit quaternions, (1, i, j, k = i j)
_FIRST = np.stack([np.eye(4), np.kron(_Y, _I), np.kron(_Z, _Y), np.kron(_Y, _I) @ np.kron(_Z, _Y)])
_SECOND = np.stack([np.eye(4), np.kron(_I, _Y), np.kron(_Y, _X), np.kron(_I, _Y) @ np.kron(_Y, _X)])
# shape: (4, 4, 4, 4); products of one quaternion of each copy, an orthonormal basis of the 4 x 4 matrices
_PRODUCTS = np.einsum("iab,jbc->ijac", _FIRST, _SECOND) / 4


def so2_angle(matrix: Any) -> float:
    """The angle t of a rotation, ``matrix = Ry(t)``, in (-2 pi, 2 pi].

    Args:
        matrix: shape (2, 2), orthogonal with determinant 1.

    Raises:
        InvalidInputError: if it is no rotation.
    """
    gate = _checked(matrix, 2)
    if _determinant(gate) < 0:
        raise InvalidInputError("so2_angle needs determinant 1; got -1. Use orthogonal_circuit, which adds a Z.")
    return 2 * math.atan2(gate[1, 0] - gate[0, 1], gate[0, 0] + gate[1, 1])


def so4_angles(matrix: Any) -> NDArray[np.float64]:
    """The six Ry angles of an SO(4) gate between and around two CNOTs.

    With wire 0 as control of both CNOTs and angles in the order in which they act, two (wire 0, wire 1) a column,
    ``matrix = (Ry(t4) ⊗ Ry(t5)) CX (Ry(t2) ⊗ Ry(t3)) CX (Ry(t0) ⊗ Ry(t1))``, exactly: no phase and no sign is left.

    Args:
        matrix: shape (4, 4), orthogonal with determinant 1.

    Returns:
        Shape (6,), in (-2 pi, 2 pi]; the period is 4 pi.

    Raises:
        InvalidInputError: if it is no rotation.
    """
    gate = _checked(matrix, 4)
    if _determinant(gate) < 0:
        raise InvalidInputError("so4_angles needs determinant 1; got -1. Use orthogonal_circuit, which adds a CNOT.")
    return rotation_angles(gate)


def rotation_angles(gates: Matrix) -> Matrix:
    """:func:`so4_angles` of many gates at once, unchecked: shape (..., 4, 4) to (..., 6)."""
    # A rotation is one quaternion of each copy, p ⊗ q: rank one. The SVD finds both and forgets rounding.
    p, _, q = np.linalg.svd(np.einsum("ijab,...ab->...ij", _PRODUCTS, gates))
    after_0, between_1, before_0 = _euler(p[..., :, 0])
    after_1, between_0, before_1 = _euler(q[..., 0, :])
    return np.stack([before_0, before_1, between_0, between_1, after_0, after_1], axis=-1)


def orthogonal_circuit(matrix: Any) -> QuantumCircuit:
    """Any O(2) or O(4) gate as Ry, CX and at most one Z.

    SO(2): one Ry. O(2) of determinant -1: Z, then Ry. SO(4): two CX. O(4) of determinant -1: one CX more, which acts
    first. Rotations by a multiple of 4 pi are left out; one by 2 pi is -1 and stays.

    Args:
        matrix: shape (2, 2) or (4, 4), orthogonal to within 1e-4; its nearest orthogonal matrix is synthesised.

    Returns:
        A circuit on one or two qubits; the first wire of the gate is the last qubit.

    Raises:
        InvalidInputError: if the matrix is complex, of another shape, or not orthogonal.
    """
    size = np.shape(matrix)[0] if np.ndim(matrix) else 0
    if size not in (2, 4):
        raise InvalidInputError(f"orthogonal_circuit takes a 2 x 2 or 4 x 4 matrix; got shape {np.shape(matrix)}.")
    gate = _checked(matrix, size)
    reflected = _determinant(gate) < 0
    if size == 2:
        circuit = QuantumCircuit(1)
        if reflected:
            circuit.z(0)
        add_ry(circuit, so2_angle(gate @ _Z if reflected else gate), 0)
        return circuit
    circuit = QuantumCircuit(2)
    first, second = 1, 0
    if reflected:
        circuit.cx(first, second)
    angles = so4_angles(gate @ _CX if reflected else gate)
    for column in range(3):
        if column:
            circuit.cx(first, second)
        add_ry(circuit, float(angles[2 * column]), first)
        add_ry(circuit, float(angles[2 * column + 1]), second)
    return circuit


def synthesize_orthogonal(matrix: Any, *, tolerance: float = 1e-10) -> QuantumCircuit:
    """A real orthogonal gate on one to four qubits as Ry, and CX between neighbours on a line.

    SO(2) takes one Ry, SO(4) two CX, SO(8) thirteen and SO(16) sixty; Qiskit's synthesis, which gains nothing from
    realness at three and more qubits, takes 19 and 95 between any two qubits. Products of gates on fewer qubits, and
    gates of two layers of two-qubit gates, take fewer. At three and four qubits the angles are found numerically, the
    same every time. A gate of SO(8) that is not special itself but within about 1e-3 of a permutation, a controlled
    gate or two two-qubit gates may take 14 or 15 CX; within 1e-4 of a permutation about one in eight is not found.

    Determinant -1: on one qubit a Z is added, on two qubits one CX; products may hold a Z too. On three and more qubits
    no circuit of Ry, X, Z and CX has it: each of them leaves a qubit alone, so its determinant is that of its small
    matrix to an even power.

    Args:
        matrix: shape (2^k, 2^k) with k from 1 to 4, orthogonal to within 1e-4; its nearest orthogonal matrix is
            synthesised.
        tolerance: largest error of an entry, between 0 and 1. Whatever it is, no sign and no global phase is left over.

    Returns:
        A circuit on k qubits whose matrix has been multiplied out and compared. The first wire of the gate is the last
        qubit; CX join neighbouring qubits only.

    Raises:
        InvalidInputError: if the matrix is complex, not orthogonal, of another shape, or has determinant -1 on three or
            more qubits.
        DidNotConvergeError: if no circuit was found within the tolerance.
    """
    if not isinstance(tolerance, int | float) or not 0 < tolerance < 1:
        raise InvalidInputError(f"tolerance must be between 0 and 1; got {tolerance!r}. Try 1e-10.")
    if isinstance(matrix, Tensor):
        matrix = matrix.detach().cpu().numpy()
    shape = np.shape(matrix)
    if shape not in ((2, 2), (4, 4), (8, 8), (16, 16)):
        raise InvalidInputError(
            "synthesize_orthogonal takes gates on one to four qubits (2 x 2, 4 x 4, 8 x 8 or 16 x 16); got shape "
            f"{shape}. For more qubits try Qiskit's qs_decomposition."
        )
    gate = _checked(matrix, shape[0])
    if len(gate) > 4 and _determinant(gate) < 0:
        raise InvalidInputError(
            "On three and more qubits a circuit of Ry, X, Z and CX has determinant 1; got -1. Take a gate of "
            "determinant 1, or Qiskit's qs_decomposition."
        )
    circuit = _shortest(gate, tolerance)
    error = float(np.abs(Operator(circuit).data - gate).max())
    if not error <= tolerance:
        raise DidNotConvergeError(f"The circuit found is {error:.3g} from the gate. Try a tolerance larger than that.")
    return circuit


def _shortest(gate: Matrix, tolerance: float) -> QuantumCircuit:
    if len(gate) == 2:
        return orthogonal_circuit(gate)
    part = tolerance / 4  # the errors of the cut and of both factors add up
    factors = _factors(gate, part)
    if factors is not None:
        first, second = factors
        return _shortest(first, part).tensor(_shortest(second, part))
    if len(gate) > 4:
        return search(gate, tolerance)
    if _determinant(gate) < 0:
        with suppress(DidNotConvergeError):  # one CX is enough for few
            return search(gate, tolerance)
    return orthogonal_circuit(gate)


def _factors(gate: Matrix, tolerance: float) -> tuple[Matrix, Matrix] | None:
    """Gates on the first and on the other wires whose product this is, if there are any that can be synthesised."""
    size = 2
    while size < len(gate):
        other = len(gate) // size
        pairs = gate.reshape(size, other, size, other).transpose(0, 2, 1, 3).reshape(size**2, other**2)
        u, s, vh = np.linalg.svd(pairs, full_matrices=False)
        if s[1] <= tolerance:  # rank one
            first, second = _polar(u[:, 0].reshape(size, size)), _polar(vh[0].reshape(other, other))
            if first[0].sum() < 0:  # so that the identity stays empty
                first, second = -first, -second
            if all(len(part) <= 4 or _determinant(part) > 0 for part in (first, second)):
                return first, second
        size *= 2
    return None


def _polar(matrix: Matrix) -> Matrix:
    left, _, right = np.linalg.svd(matrix)
    return left @ right


def add_ry(circuit: QuantumCircuit, angle: float, qubit: int) -> None:
    """Append Ry(angle) unless the angle is a multiple of 4 pi."""
    if abs(math.remainder(angle, 4 * math.pi)) > _SMALLEST_ANGLE:
        circuit.ry(angle, qubit)


def nearest_orthogonal(matrix: Any, size: int) -> NDArray[Any]:
    """The orthogonal (unitary) matrix nearest to one that is so only to rounding; float64 or complex128.

    Args:
        matrix: shape (size, size).
        size: dimension of the gate.

    Raises:
        InvalidInputError: if the shape is another, or the matrix is further than 1e-4 from orthogonal.
    """
    gate = np.asarray(matrix)
    gate = gate.astype(np.complex128 if np.iscomplexobj(gate) else np.float64)
    if gate.shape != (size, size):
        raise InvalidInputError(f"A gate here must be a {size} x {size} matrix; got shape {gate.shape}.")
    if not np.isfinite(gate).all():
        raise InvalidInputError("A gate must be finite; got NaN or infinite entries.")
    left, values, right = np.linalg.svd(gate)
    if np.abs(values - 1).max() > ORTHOGONALITY_TOLERANCE:
        raise InvalidInputError(
            f"A gate must be orthogonal or unitary; got singular values from {values.min():.6g} to {values.max():.6g}. "
            "Take its polar factor first (unbraid.circuits.gates.polar)."
        )
    return left @ right


def _checked(matrix: Any, size: int) -> Matrix:
    if np.iscomplexobj(matrix):
        raise InvalidInputError(
            "Ry and CX make real gates only; got a complex matrix. If it is real, pass matrix.real."
        )
    return nearest_orthogonal(matrix, size)


def _determinant(gate: Matrix) -> float:
    return float(np.linalg.det(gate))


def _euler(quaternions: Matrix) -> tuple[Matrix, Matrix, Matrix]:
    """Angles (after, between, before) about the axes i, j, i of unit quaternions (1, i, j, k), shape (..., 4)."""
    real, i, j, k = np.moveaxis(quaternions, -1, 0)
    around, across = np.hypot(real, i), np.hypot(j, k)
    between = 2 * np.arctan2(across, around)
    half_sum, half_difference = np.arctan2(i, real), np.arctan2(k, j)
    # Where only the sum (the difference) of the outer angles is defined, one of them can be zero.
    between = np.where(across < _SMALLEST_ANGLE, 0.0, between)
    half_difference, half_sum = (
        np.where(across < _SMALLEST_ANGLE, half_sum, half_difference),
        np.where((across >= _SMALLEST_ANGLE) & (around < _SMALLEST_ANGLE), half_difference, half_sum),
    )
    return half_sum + half_difference, between, half_sum - half_difference
