"""Circuits of Ry and CX in a fixed order on a line of wires, and the search for the angles that make a given rotation.

A template puts Ry on every wire and then CX between neighbouring wires, each followed by Ry on its two wires. With m CX
on n wires it has n + 2m angles. A rotation of d = 2^n dimensions has d(d-1)/2 of them: SO(8) needs at least 13 CX (29
angles for 28), SO(16) at least 58; we take 60, which are found at the first start.

The direction of a CX does not matter to a template: CX = Ry(pi/2) CZ Ry(-pi/2) on the target, and CZ has no direction.
The order of the wires does. With the strictly alternating one of 13 CX, 60 starts failed for 7 of 200 random gates of
SO(8) and for most near the identity. The ones below were chosen among all orders for what is hard: gates close to the
identity, to permutations and to products of two-qubit gates.

Legend: k counts angles, N = 2^n is the dimension of the gate, G its d(d-1)/2 generators.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from qiskit import QuantumCircuit

from unbraid.ground.errors import DidNotConvergeError
from unbraid.ground.parallel import one_thread

Matrix = NDArray[np.float64]

# (CX, starts), tried in this order. A digit is the upper wire of a CX. First what two layers of two-qubit gates can
# make, which costs a generic gate some milliseconds; then the generic order and its mirror image; then one or two CX
# more, for the few gates at which the generic orders are too singular.
SEARCH: dict[int, tuple[tuple[str, int], ...]] = {
    2: (("0", 2),),
    3: (
        *((order, 2) for order in ("01", "10", "0011", "1100")),
        *((order, 2) for order in ("0110010100110", "1001101011001") * 6),
        *((order, 4) for order in ("10011010011001", "01100101100110") * 4),
        *((order, 4) for order in ("011001011001101",) * 4),
    ),
    4: (
        *((order, 2) for order in ("002211", "110022")),
        ("021" * 20, 20),
    ),
}

_STEPS = 200
# A start is given up when this many steps have not halved the squared distance.
_PATIENCE = 20
# Distance (Frobenius norm) below which more steps find only rounding.
_EXACT = 2e-13


class Template:
    """The matrices of a template as functions of its angles.

    Args:
        num_wires: n.
        order: upper wire of each CX, a digit each.
    """

    def __init__(self, num_wires: int, order: str) -> None:
        self.num_wires = num_wires
        self.pairs = tuple(int(digit) for digit in order)
        self._wires = [*range(num_wires), *(wire for pair in self.pairs for wire in (pair, pair + 1))]
        size = 2**num_wires
        cx = np.array([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]])
        half_y = np.array([[0.0, -0.5], [0.5, 0.0]])  # -iY/2, the derivative of Ry at 0
        # shape: (k, N, N); angle k stands in exp(angle * generator) @ before
        self._generators = np.stack([_on_wires(half_y, wire, num_wires) for wire in self._wires])
        before = [np.eye(size)] * num_wires
        for pair in self.pairs:
            before += [_on_wires(cx, pair, num_wires), np.eye(size)]
        self._before = np.stack(before)
        self._turned = 2 * self._generators @ self._before
        self._upper = np.triu_indices(size, 1)

    @property
    def num_angles(self) -> int:
        """Angles: one for each wire, two for each CX."""
        return len(self._wires)

    def products(self, angles: Matrix) -> Matrix:
        """The matrix of the circuit up to and including each angle, shape (k, N, N); the last is the whole."""
        half = angles[:, None, None] / 2
        out = np.cos(half) * self._before + np.sin(half) * self._turned
        for k in range(1, len(out)):
            np.matmul(out[k], out[k - 1], out=out[k])
        return out

    def jacobian(self, products: Matrix) -> Matrix:
        """Derivatives of the whole U as generators ``U^T dU``, shape (G, k)."""
        moved = products.transpose(0, 2, 1) @ self._generators @ products
        return moved[:, *self._upper].T

    def difference(self, found: Matrix, gate: Matrix) -> Matrix:
        """The generator that leads from ``found`` to ``gate`` to first order, shape (G,)."""
        turn = found.T @ gate
        return (turn - turn.T)[self._upper] / 2

    def fit(self, gate: Matrix, start: Matrix) -> tuple[Matrix, float]:
        """Angles near the gate, by Levenberg-Marquardt steps from ``start``.

        The damping is proportional to the squared distance, which keeps the convergence quadratic also where the angles
        are redundant.

        Returns:
            The angles, and the largest error of an entry.
        """
        angles, products = start, self.products(start)
        distances = [float(np.square(products[-1] - gate).sum())]
        damping = 0.1
        for _ in range(_STEPS):
            if distances[-1] < _EXACT**2:
                break
            if len(distances) > _PATIENCE and distances[-1] > distances[-1 - _PATIENCE] / 2:
                break
            step = _damped_solution(
                self.jacobian(products), self.difference(products[-1], gate), np.sqrt(damping * distances[-1])
            )
            moved = self.products(angles + step)
            distance = float(np.square(moved[-1] - gate).sum())
            if distance < distances[-1]:
                angles, products = angles + step, moved
                damping = max(damping / 3, 1e-4)
            else:
                distance = distances[-1]
                damping *= 4
            distances.append(distance)
        return angles, float(np.abs(products[-1] - gate).max())

    def circuit(self, angles: Matrix) -> QuantumCircuit:
        """The circuit with these angles; wire 0 is the last qubit."""
        circuit = QuantumCircuit(self.num_wires)
        last = self.num_wires - 1
        for k, (wire, angle) in enumerate(zip(self._wires, angles, strict=True)):
            if k >= self.num_wires and (k - self.num_wires) % 2 == 0:
                circuit.cx(last - wire, last - wire - 1)
            circuit.ry(float(np.remainder(angle + 2 * np.pi, 4 * np.pi) - 2 * np.pi), last - wire)
        return circuit


def _damped_solution(rows: Matrix, values: Matrix, damping: float) -> Matrix:
    """The x that minimises ``|rows x - values|^2 + |damping x|^2``.

    By QR, since near a singular gate the normal equations lose every digit. By torch, whose threads can be limited.
    """
    square = torch.from_numpy(np.vstack([rows, damping * np.eye(rows.shape[1])]))
    q, r = torch.linalg.qr(square)
    right = q[: len(rows)].T @ torch.from_numpy(values)
    return torch.linalg.solve_triangular(r, right[:, None], upper=True)[:, 0].numpy()


@one_thread()
def search(gate: Matrix, tolerance: float) -> QuantumCircuit:
    """The first circuit of :data:`SEARCH` that makes a rotation of 4, 8 or 16 dimensions; the same one every time.

    Args:
        gate: orthogonal, shape (4, 4), (8, 8) or (16, 16).
        tolerance: largest error of an entry.

    Raises:
        DidNotConvergeError: if no start ends within the tolerance.
    """
    num_wires = len(gate).bit_length() - 1
    random = np.random.default_rng(0)
    best = np.inf
    for order, starts in SEARCH[num_wires]:
        template = _template(num_wires, order)
        for _ in range(starts):
            angles, error = template.fit(gate, random.uniform(-np.pi, np.pi, template.num_angles))
            if error <= tolerance:
                return template.circuit(angles)
            best = min(best, error)
    raise DidNotConvergeError(
        f"No circuit of Ry and CX within {tolerance:.3g} of this {len(gate)} x {len(gate)} gate was found; the nearest "
        f"is {best:.3g} away. Try a larger tolerance, or Qiskit's qs_decomposition."
    )


@cache
def _template(num_wires: int, order: str) -> Template:
    return Template(num_wires, order)


def _on_wires(matrix: Matrix, wire: int, num_wires: int) -> Matrix:
    """A gate on neighbouring wires, the first of them ``wire``, as a matrix on all of them."""
    after = 2 ** (num_wires - wire) // len(matrix)
    return np.kron(np.kron(np.eye(2**wire), matrix), np.eye(after))
