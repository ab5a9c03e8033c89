"""Exact preparation of real states by uniformly controlled rotations, as Ry and CX.

Wire k is turned by an angle that depends on the wires before it. Such a rotation is a sequence of 2^k rotations with
CZ between them, in the order of a Gray code. The CZ that would end each sequence is left out: it is diagonal, commutes
with everything after it, and so only changes signs of the state that the rest has to prepare. A CZ is a CX between
Ry(pi/2) and Ry(-pi/2) on its target, which merge with the rotations around them. In all 2^n - n - 1 CX, the same for
every state.

Qiskit's ``StatePreparation`` takes as many, but is much slower and refuses some states with entries between 1e-10 and
1e-5 of the largest ("Input matrix is not unitary").

Source: M. Mottonen, J. Vartiainen, V. Bergholm, M. Salomaa, arXiv:quant-ph/0407010.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from qiskit import QuantumCircuit

from unbraid.quantum.convert import qubit_of

Array = NDArray[np.float64]


def multiplexed_cnots(n: int) -> int:
    """CNOTs of :func:`multiplexed_circuit`: 2^n - n - 1."""
    return 2**n - n - 1


def multiplexed_circuit(state: Array) -> QuantumCircuit:
    """A circuit of ry and cx that takes |0...0> to a real unit vector, sign included; the same gates for every vector.

    Args:
        state: shape (2^n,), of norm 1, n at least 1.
    """
    n = len(state).bit_length() - 1
    signs, steps = _plan(n)
    level = state * signs
    blocks: list[Array] = []  # angles of each wire, by the value of the wires before it
    for _ in range(n):
        pairs = level.reshape(-1, 2)
        blocks.insert(0, 2 * np.arctan2(pairs[:, 1], pairs[:, 0]))
        level = np.hypot(pairs[:, 0], pairs[:, 1])
    qc = QuantumCircuit(n)
    for wire, (angles, (transform, controls)) in enumerate(zip(blocks, steps, strict=True)):
        turns = transform @ angles
        target = qubit_of(wire, n)
        if controls:
            turns[0] += math.pi / 2
            turns[-1] -= math.pi / 2
        qc.ry(float(turns[0]), target)
        for turn, control in zip(turns[1:], controls, strict=True):
            qc.cx(qubit_of(control, n), target)
            qc.ry(float(turn), target)
    return qc


@lru_cache(maxsize=16)
def _plan(n: int) -> tuple[Array, list[tuple[Array, list[int]]]]:
    """Signs of the CZ left out; and of every wire, its angles from those by value, and the controls between them."""
    index = np.arange(2**n)
    signs = np.ones(2**n)
    steps: list[tuple[Array, list[int]]] = []
    for wire in range(n):
        values = np.arange(2**wire)
        gray = values ^ (values >> 1)
        parity = np.bitwise_count(gray[:, None] & values) % 2
        changed = gray[1:] ^ gray[:-1]
        controls = [wire - int(bit).bit_length() for bit in changed]
        steps.append(((1.0 - 2.0 * parity) / 2**wire, controls))
        if wire:  # the Gray code closes with the first wire
            first, own = index >> (n - 1) & 1, index >> (n - 1 - wire) & 1
            signs *= 1.0 - 2.0 * (first & own)
    return signs, steps
