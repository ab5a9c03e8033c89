"""Gates: parametrised orthogonal and unitary groups, fixed gates, and what they cost in CNOTs.

A trainable gate is ``base @ exp(t - t^T)`` (unitary: ``t - t^dagger``) with ``t`` lower triangular and ``base`` a
constant of the group, so that any determinant is reached and no logarithm is ever taken. The paper writes ``g =
exp(t)`` with ``t`` lower triangular, which is orthogonal only in this antisymmetrised form.

Instead of the exponential, the Cayley transform or a product of plane rotations (Givens) can stand: all three take the
same parameters, and agree to first order around zero.

Legend: d is the dimension of a gate, the product of the dimensions of its wires; G counts gates of one kind and size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from unbraid.ground.errors import InvalidInputError

GROUPS: tuple[str, ...] = ("so", "o", "u")
PARAMETRIZATIONS: tuple[str, ...] = ("exp", "cayley", "givens")

_H = 1 / math.sqrt(2)
FIXED_GATES: dict[str, list[list[float]]] = {
    "cnot": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]],
    "cz": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, -1]],
    "swap": [[1, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]],
    "h": [[_H, _H], [_H, -_H]],
    "x": [[0, 1], [1, 0]],
    "z": [[1, 0], [0, -1]],
}
FIXED_CNOTS = {"cnot": 1, "cz": 1, "swap": 3, "h": 0, "x": 0, "z": 0}

# CNOTs of a rotation, and of Qiskit's synthesis (quantum Shannon decomposition) of any other generic gate; realness
# saves none there.
_ROTATION_CNOTS = {3: 13, 4: 60}
_SHANNON_CNOTS = {3: 19, 4: 95, 5: 423, 6: 1783}


def num_generators(group: str, d: int) -> int:
    """Parameters of a gate, minimal for its group: d(d-1)/2 for "so" and "o", d^2 for "u"."""
    return d * d if group == "u" else d * (d - 1) // 2


def from_generators(parameters: Tensor, group: str, d: int, parametrization: str = "exp") -> Tensor:
    """Gates from their generators, in one batch; zeros give the identity.

    Args:
        parameters: real, shape (G, num_generators(group, d)): the lower triangle of t row by row; for "u" then that of
            its imaginary part, and the diagonal of that.
        group: "so" | "o" | "u".
        d: dimension of the gates.
        parametrization: of A = t - t^dagger, "exp": exp(A); "cayley": (1 - A/2)^-1 (1 + A/2), which leaves out
            rotations by a half turn; "givens": a rotation in each plane of two axes, by the generator's angle.

    Returns:
        Shape (G, d, d); real for "so" and "o", complex for "u".

    Raises:
        InvalidInputError: for rotations in planes of a complex gate.
    """
    if group != "u" and d == 2 and parametrization != "cayley":
        cos, sin = parameters.cos(), parameters.sin()
        return torch.stack([cos, -sin, sin, cos], dim=-1).reshape(-1, 2, 2)
    if parametrization == "givens":
        if group == "u":
            raise InvalidInputError("Rotations in planes (parametrization='givens') are real; use 'exp' or 'cayley'.")
        return _plane_rotations(parameters, d)
    generators = _antihermitian(parameters, group, d)
    if parametrization == "exp":
        return torch.linalg.matrix_exp(generators)
    one = torch.eye(d, dtype=generators.dtype, device=generators.device)
    return torch.linalg.solve(one - generators / 2, one + generators / 2)


def _antihermitian(parameters: Tensor, group: str, d: int) -> Tensor:
    row, column = torch.tril_indices(d, d, offset=-1, device=parameters.device)
    count = len(row)
    gates = torch.arange(len(parameters), device=parameters.device)[:, None]
    t = parameters.new_zeros(len(parameters), d, d).index_put((gates, row, column), parameters[:, :count])
    if group != "u":
        return t - t.mT
    imaginary = torch.zeros_like(t).index_put((gates, row, column), parameters[:, count : 2 * count])
    diagonal = torch.diag_embed(parameters[:, 2 * count :])
    return torch.complex(t - t.mT, imaginary + imaginary.mT + diagonal)


def _plane_rotations(parameters: Tensor, d: int) -> Tensor:
    gates = torch.eye(d, dtype=parameters.dtype, device=parameters.device).expand(len(parameters), d, d)
    for angle, row, column in zip(parameters.unbind(1), *torch.tril_indices(d, d, offset=-1).tolist(), strict=True):
        cos, sin = angle.cos()[:, None], angle.sin()[:, None]
        rows = list(gates.unbind(1))
        rows[row], rows[column] = cos * rows[row] + sin * rows[column], cos * rows[column] - sin * rows[row]
        gates = torch.stack(rows, dim=1)
    return gates


def haar(group: str, d: int, count: int, generator: torch.Generator) -> Tensor:
    """Haar-random gates, shape (count, d, d), float64 or complex128: SO(d), O(d) or U(d)."""
    real = torch.randn(count, d, d, dtype=torch.float64, generator=generator)
    sample = (
        torch.complex(real, torch.randn(count, d, d, dtype=torch.float64, generator=generator))
        if group == "u"
        else real
    )
    q, r = torch.linalg.qr(sample)
    phases = torch.diagonal(r, dim1=-2, dim2=-1)
    q = q * (phases / phases.abs())[:, None, :]  # keeps the Haar measure
    if group == "so":
        q[:, :, 0] *= torch.linalg.det(q).sign()[:, None]
    return q


def polar(environment: Tensor, group: str) -> Tensor:
    """The gate g of a group that maximises Re <environment, g>: the polar factor.

    In "so" the singular vector of the smallest singular value is flipped where the determinant would be -1.

    Args:
        environment: shape (..., d, d).
        group: "so" | "o" | "u".

    Returns:
        Shape (..., d, d).

    Source:
        Eq. (4) of "Classical Neural Networks on Quantum Devices via Tensor Network Disentanglers".
    """
    if group != "u" and environment.is_complex():
        environment = environment.real  # a real gate does not see the imaginary part
    u, _, vh = torch.linalg.svd(environment)
    if group == "so":
        sign = torch.linalg.det(u @ vh).sign()
        u = torch.cat([u[..., :-1], u[..., -1:] * sign[..., None, None]], dim=-1)
    return u @ vh


def fixed_gate(name: str, dims: tuple[int, ...]) -> Tensor:
    """Matrix of a fixed gate on wires of the given dimensions, float64.

    On wires of several qubits, a two-body gate acts on the neighbouring qubits: the last of the first wire and the
    first of the second; a one-body gate acts on the first qubit.

    Raises:
        InvalidInputError: if a wire is not made of qubits.
    """
    if any(dim < 2 or dim & (dim - 1) for dim in dims):
        raise InvalidInputError(f"The gate {name!r} needs wires of qubits (dimensions 2, 4, 8, ...); got {dims}.")
    matrix = torch.tensor(FIXED_GATES[name], dtype=torch.float64)
    if len(dims) == 1:
        return torch.kron(matrix, torch.eye(dims[0] // 2, dtype=torch.float64))
    before = torch.eye(dims[0] // 2, dtype=torch.float64)
    return torch.kron(torch.kron(before, matrix), torch.eye(dims[1] // 2, dtype=torch.float64))


def cnot_cost(group: str, d: int, determinant: float = 1.0) -> int:
    """CNOTs of a generic gate as this package exports it.

    SO(2): 0. SO(4): 2, O(4) of determinant -1: 3, U(4): 3. SO(8): 13, SO(16): 60. Other gates on three to six qubits:
    what Qiskit's synthesis takes. Special gates may take fewer.

    Raises:
        InvalidInputError: if the gate does not act on one to six qubits.
    """
    if d & (d - 1) or d > 64:
        raise InvalidInputError(f"CNOTs are defined for gates on one to six qubits; got dimension {d}.")
    qubits = d.bit_length() - 1
    if qubits <= 1:
        return 0
    if qubits == 2:
        return 3 if group == "u" or determinant < 0 else 2
    if group != "u" and determinant > 0 and qubits in _ROTATION_CNOTS:
        return _ROTATION_CNOTS[qubits]
    return _SHANNON_CNOTS[qubits]
