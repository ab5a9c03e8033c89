"""Staircases of SO(4) gates on neighbouring qubits that prepare real states: matrix product states as circuits.

One staircase prepares any real matrix product state of bond 2 exactly. Others in front of it (acting earlier) bring it
near the rest: each takes the state that the staircases behind it leave over, cut to bond 2 (Ran). Sweeps then polish
all gates together, each gate becoming the best one for the others' values.

With so many staircases that there are more angles than entries, any real state is reached: 4 at six qubits, 10 at
eight, see :func:`reaches_all`.

Legend: B states of N = 2^n entries, m gates; gates stand in the order in which they act on |0...0>.

Source: S.-J. Ran, Phys. Rev. A 101, 032310 (2020), arXiv:1908.07958, for the staircases; the sweeps are those of Eqs.
(3) and (4) of "Classical Neural Networks on Quantum Devices via Tensor Network Disentanglers".
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from qiskit import QuantumCircuit
from torch import Tensor

from unbraid.circuits import Ansatz
from unbraid.circuits.ansatz import Gate
from unbraid.disentangling.environments.dense import side_of
from unbraid.disentangling.environments.engine import Layout
from unbraid.quantum.convert import qubit_of
from unbraid.quantum.synthesis import rotation_angles
from unbraid.tensors.sites import qubits_for

# Directions in which the state hardly moves are left out of the derivative: the gates' redundant angles.
_FLAT = 1e-9
_DERIVATIVE_CHUNK = 64  # states at once
_DERIVATIVE_NUMBERS = 2**26  # that a derivative holds at once, roughly


def staircase(n: int, layers: int) -> Ansatz:
    """Gates on the wires (n-2, n-1), (n-3, n-2), ..., (0, 1), so many times; one gate a layer of the ansatz.

    Args:
        n: qubits, at least 1; a single one gets a rotation.
        layers: staircases.
    """
    if n == 1:
        return Ansatz((2,), ((Gate("so", (0,)),),))
    if n == 2:
        layers = 1  # one gate does it
    steps = tuple((Gate("so", (wire, wire + 1)),) for wire in range(n - 2, -1, -1))
    return Ansatz((2,) * n, steps * layers)


def reaches_all(n: int, layers: int) -> bool:
    """Whether staircases prepare every real state: a gate has six angles, two of which its neighbours could hold."""
    return 4 * len(staircase(n, layers).layers) > 2**n


def fit_gates(states: Tensor, layers: int, sweeps: int, tolerance: float) -> Tensor:
    """Gates that prepare states.

    Args:
        states: real unit vectors, shape (B, N), float64, on the CPU.
        layers: staircases.
        sweeps: at most so many a state.
        tolerance: a state is done when a sweep gains less overlap.

    Returns:
        Shape (B, m, 4, 4); for one qubit (B, 1, 2, 2).
    """
    n = qubits_for(states.shape[1])
    if not len(states):
        return states.new_zeros(0, len(staircase(n, layers).layers), *([2, 2] if n == 1 else [4, 4]))
    if n == 1:
        rotations = torch.stack([states, torch.stack([-states[:, 1], states[:, 0]], 1)], 2)
        return rotations[:, None]
    if n == 2:
        return _completed(states)[:, None]
    from unbraid.quantum import staircase_kernels as kernels  # numba is loaded when it is used

    one, whole = _side(n, 1), _side(n, layers)
    left = states.clone()
    found: list[Tensor] = []
    for _ in range(layers):
        step = _bond_two(left)
        kernels.unprepare(left.numpy(), step.flatten(1).numpy(), one)
        found.insert(0, step)
    gates = torch.cat(found, dim=1).contiguous()
    kernels.polish(states.contiguous().numpy(), gates.flatten(1).numpy(), whole, sweeps, tolerance)
    return gates


def prepared(gates: Tensor, n: int) -> Tensor:
    """The states that gates prepare from |0...0>.

    Args:
        gates: shape (B, m, d, d).
        n: qubits.

    Returns:
        Shape (B, N), float64.
    """
    state = gates.new_zeros(len(gates), 2**n)
    state[:, 0] = 1
    for step, wire in enumerate(_wires(n, gates.shape[1])):
        state = _act(gates[:, step], state, wire)
    return state


def preparation_circuit(gates: Tensor, n: int) -> QuantumCircuit:
    """The gates of one state as Ry, and CX between neighbours; circuits of one shape differ in their angles only.

    The gate that acts first sees |00> and takes one CX, every other one two.

    Args:
        gates: shape (m, d, d).
        n: qubits.
    """
    qc = QuantumCircuit(n)
    waiting = [0.0] * n  # angles, so that rotations that follow each other become one

    def turn(wire: int, angle: float) -> None:
        waiting[wire] += angle

    def cx(wire: int) -> None:
        for on in (wire, wire + 1):
            qc.ry(waiting[on], qubit_of(on, n))
            waiting[on] = 0.0
        qc.cx(qubit_of(wire, n), qubit_of(wire + 1, n))

    matrices = gates.detach().cpu().double().numpy()
    wires = _wires(n, len(matrices))
    if n == 1:
        turn(0, 2 * math.atan2(matrices[0, 1, 0], matrices[0, 0, 0]))
    else:
        left, (large, small), right = np.linalg.svd(matrices[0, :, 0].reshape(2, 2))
        signs = np.linalg.det(left), np.linalg.det(right)
        left[:, 1] *= signs[0]
        right[1] *= signs[1]
        turn(wires[0], 2 * math.atan2(small * signs[0] * signs[1], large))
        cx(wires[0])
        turn(wires[0], 2 * math.atan2(left[1, 0], left[0, 0]))
        turn(wires[0] + 1, 2 * math.atan2(right[0, 1], right[0, 0]))
        for wire, angles in zip(wires[1:], rotation_angles(matrices[1:]), strict=True):
            for column in range(3):
                if column:
                    cx(wire)
                turn(wire, float(angles[2 * column]))
                turn(wire + 1, float(angles[2 * column + 1]))
    for wire in range(n):
        qc.ry(waiting[wire], qubit_of(wire, n))
    return qc


def staircase_cnots(n: int, layers: int) -> int:
    """CNOTs of :func:`preparation_circuit`: one for the gate that acts first, two for every other."""
    return max(0, 2 * len(staircase(n, layers).layers) - 1) if n > 1 else 0


class Preparation(torch.autograd.Function):
    """States to the states that fitted gates prepare, with the derivative of that fit.

    The gates are where the overlap f = <x, v> with the prepared state v is stationary. Moving x moves that point: with
    the Jacobian J of v and the Hessian H of f in the gates' angles, dv/dx = -J H^+ J^T, a symmetric matrix. It is
    exact once the sweeps have converged, and always finite.

    Where the gates reach every state the fit is the identity up to rounding, but J is singular at states that data has
    (zero pixels); such fits are differentiated as exact encoding instead.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, gates: Tensor) -> Tensor:
        """Shape (B, N) in and out; ``gates`` fitted to them, shape (B, m, d, d)."""
        ctx.save_for_backward(states, gates)
        return prepared(gates, qubits_for(states.shape[1]))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        """The transposed derivative, which is the derivative itself, applied to the gradient."""
        states, gates = ctx.saved_tensors
        if not len(states):
            return torch.zeros_like(states), None
        angles = gates[0].numel()
        size = min(_DERIVATIVE_CHUNK, max(1, _DERIVATIVE_NUMBERS // (angles * states.shape[1] * gates.shape[1])))
        chunks = zip(*(part.split(size) for part in (states, gates, grad_outputs[0])), strict=True)
        return torch.cat([_moved(*chunk) for chunk in chunks]), None


def _moved(states: Tensor, gates: Tensor, change: Tensor) -> Tensor:
    """Change of the prepared states for a change of the states, shape (B, N)."""
    n = qubits_for(states.shape[1])
    batch, count, d, _ = gates.shape
    row, column = torch.tril_indices(d, d, offset=-1, device=gates.device)

    def state_of(angles: Tensor, own: Tensor) -> Tensor:
        t = angles.new_zeros(count, d, d).index_put(
            (torch.arange(count, device=angles.device)[:, None], row, column), angles.reshape(count, -1)
        )
        skew = t - t.mT
        # to second order in the angles, which is all that is taken from it
        turned = own @ (torch.eye(d, dtype=own.dtype, device=own.device) + skew + skew @ skew / 2)
        return prepared(turned[None], n)[0]

    def overlap(angles: Tensor, own: Tensor, state: Tensor) -> Tensor:
        return state_of(angles, own) @ state

    zero = gates.new_zeros(batch, count * len(row))
    jacobian = torch.func.vmap(torch.func.jacfwd(state_of))(zero, gates)
    hessian = torch.func.vmap(torch.func.hessian(overlap))(zero, gates, states)
    values, vectors = torch.linalg.eigh(-(hessian + hessian.mT) / 2)
    kept = values > _FLAT * values[:, -1:].clamp(min=torch.finfo(values.dtype).tiny)
    inverse = torch.where(kept, 1 / torch.where(kept, values, torch.ones_like(values)), torch.zeros_like(values))
    pulled = (change[:, None] @ jacobian @ vectors) * inverse[:, None]
    return (pulled @ vectors.mT @ jacobian.mT)[:, 0]


def _bond_two(states: Tensor) -> Tensor:
    """One staircase for each state cut to bond 2, shape (B, n - 1, 4, 4)."""
    batch, n = len(states), qubits_for(states.shape[1])
    rest = states.reshape(batch, 2, 2 ** (n - 1))
    first = _directions(rest)
    rest = first.mT @ rest
    steps: list[Tensor] = []
    for _ in range(1, n - 1):
        rest = rest.reshape(batch, 4, -1)
        step = _directions(rest)
        steps.insert(0, step)
        rest = step[:, :, :2].mT @ rest
    steps.insert(0, _completed(rest.reshape(batch, 4)))
    # the rotation of the first site joins the gate that acts last
    wide = torch.einsum("bij,kl->bikjl", first, torch.eye(2, dtype=first.dtype)).reshape(batch, 4, 4)
    steps[-1] = wide @ steps[-1]
    gates = torch.stack(steps, dim=1)
    gates[..., -1] *= torch.linalg.det(gates).sign()[..., None]
    return gates


def _directions(rows: Tensor) -> Tensor:
    """Left singular vectors, those of the largest singular values first, shape (B, d, d)."""
    return torch.linalg.eigh(rows @ rows.mT)[1].flip(-1)


def _completed(vectors: Tensor) -> Tensor:
    """Rotations with given first columns, shape (B, d, d); of vectors (B, d) that need no unit length."""
    d = vectors.shape[1]
    identity = torch.eye(d, dtype=vectors.dtype, device=vectors.device)
    lengths = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    units = torch.where(lengths > 0, vectors / lengths.clamp(min=torch.finfo(vectors.dtype).tiny), identity[0])
    sign = torch.where(units[:, :1] >= 0, 1.0, -1.0).to(units)
    normal = units + sign * identity[0]
    normal = normal / torch.linalg.vector_norm(normal, dim=1, keepdim=True)
    reflection = identity - 2 * normal[:, :, None] * normal[:, None, :]  # takes -sign e_0 to the vector
    reflection[:, :, 0] *= -sign
    reflection[:, :, -1] *= torch.linalg.det(reflection).sign()[:, None]
    return reflection


def _act(gates: Tensor, states: Tensor, wire: int) -> Tensor:
    """Each state's own gate, whose first wire is given."""
    d = gates.shape[-1]
    rows = states.reshape(len(states), 2**wire, d, states.shape[1] // (d * 2**wire))
    return torch.einsum("bij,bkjl->bkil", gates, rows).reshape(states.shape)


def _wires(n: int, gates: int) -> list[int]:
    """First wires of the gates of :func:`staircase`."""
    return [0] * gates if n == 1 else [wire for _ in range(gates // (n - 1)) for wire in range(n - 2, -1, -1)]


@lru_cache(maxsize=64)
def _side(n: int, layers: int) -> Any:
    return side_of(Layout(staircase(n, layers)), 1)
