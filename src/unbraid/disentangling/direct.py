"""``direct_circuits``: circuits for the orthogonal factors of a dense matrix, against which the MPO route is measured.

The SVD route keeps N numbers on the classical side, W ~ O diag(s) I; the QR route keeps a triangle, W ~ O R. The MPO
route (:func:`unbraid.disentangle`) keeps a core of small bond.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from unbraid.circuits import Ansatz, Circuit
from unbraid.disentangling.objective import LARGEST_DENSE
from unbraid.disentangling.problem import Problem, as_pair, fixed_core
from unbraid.disentangling.search import disentangle
from unbraid.ground.errors import InvalidInputError, require_choice, require_finite
from unbraid.tensors import MPO

ROUTES = ("svd", "qr")
PATIENCE = 3  # joint rounds in a row that must gain less than the tolerance


@dataclass(frozen=True)
class DirectCircuits:
    """``W ~ O D I`` with D diagonal ("svd") or upper triangular ("qr", I the identity).

    Attributes:
        route: "svd" or "qr".
        output_circuit: O.
        middle: the best D for these circuits, shape (N_out, N_in), with its scale.
        input_circuit: I; without gates for "qr".
        shape: logical (out, in) of W.
        factor_overlaps: Tr(Q^T O) / N of each fitted factor, U and V^T for "svd", Q for "qr"; before a joint refit.
        overlap: <W, O D I> / (|W| |O D I|), after the joint refit if there was one.
        num_classical: numbers in D that are not zero by form.
        history: the overlap of W before the joint refit and after each round of it; it never decreases.
    """

    route: str
    output_circuit: Circuit = field(repr=False)
    middle: Tensor = field(repr=False)
    input_circuit: Circuit = field(repr=False)
    shape: tuple[int, int]
    factor_overlaps: tuple[float, ...]
    overlap: float
    num_classical: int
    history: tuple[float, ...] = field(repr=False)

    @property
    def cnot_counts(self) -> tuple[int, int]:
        """CNOTs of the output and of the input circuit."""
        return self.output_circuit.cnot_count, self.input_circuit.cnot_count

    def to_dense(self) -> Tensor:
        """The matrix O D I, cropped to the logical shape (out, in)."""
        dense = self.output_circuit.matrix() @ self.middle @ self.input_circuit.matrix()
        return dense[: self.shape[0], : self.shape[1]].detach()


def direct_circuits(
    weight: Tensor,
    ansatz: Ansatz | tuple[Ansatz, Ansatz],
    *,
    route: str = "svd",
    joint: bool = False,
    start: str = "near_identity",
    seed: int = 0,
    restarts: int = 1,
    max_sweeps: int = 1000,
    tolerance: float = 1e-7,
) -> DirectCircuits:
    """Fit circuits to the orthogonal factors of a matrix.

    Each factor Q is approximated by maximising Tr(Q^T O) with the sweeps of :func:`unbraid.disentangle` around a core
    that stays the identity. D is then the best one for these circuits: the diagonal or the upper triangle of O^T W I^T.

    The factors of an SVD are unique up to the order of the singular values, which is kept descending, and the signs of
    pairs of columns, which are chosen so that U has determinant 1; circuits of rotations cannot reach -1.

    Args:
        weight: W, real, shape (out, in); padded with zeros to powers of two.
        ansatz: geometry of both circuits, or a pair (output side, input side); "qr" uses the first alone.
        route: "svd" or "qr".
        joint: whether circuits and D are then fitted to W together, in turns.
        start: as of :func:`unbraid.disentangle`, for each factor; so are the next arguments.
        seed: of the starts.
        restarts: runs side by side a factor.
        max_sweeps: at most so many a factor, and so many joint rounds.
        tolerance: gain of a sweep, or of a joint round, below which it ends.

    Raises:
        InvalidInputError: if the matrix is zero, not finite, complex or too large, a name is unknown, or sizes do not
            fit.

    Source:
        Sec. IV of "Classical Neural Networks on Quantum Devices via Tensor Network Disentanglers", which names both
        routes for dense layers.
    """
    require_choice(route, ROUTES, "route")
    if not isinstance(weight, Tensor) or weight.dim() != 2 or weight.is_complex() or not weight.is_floating_point():
        raise InvalidInputError(
            "weight must be a real matrix, a tensor of shape (out, in). For an MPO pass mpo.to_dense()."
        )
    if max(weight.shape) > LARGEST_DENSE:
        raise InvalidInputError(
            f"Direct circuits need matrices of up to {LARGEST_DENSE} rows; got {tuple(weight.shape)}."
        )
    require_finite(weight, "weight")
    if not bool(weight.any()):
        raise InvalidInputError("This matrix is zero: it has no factors to fit. Check the layer's weights.")
    pair = as_pair(ansatz)
    wide = MPO.from_dense(weight.detach().double().cpu()).to_padded_dense()
    options = {"start": start, "seed": seed, "restarts": restarts, "max_sweeps": max_sweeps, "tolerance": tolerance}
    if route == "svd":
        u, _, vh = torch.linalg.svd(wide)
        if torch.linalg.det(u) < 0:  # the last column belongs to the smallest singular value, or to none
            u[:, -1] *= -1
            if len(u) <= len(vh):
                vh[len(u) - 1] *= -1
        output, first = _fitted(u, pair[0], False, options)
        inward, second = _fitted(vh, pair[1], True, options)
        factors: tuple[float, ...] = (first, second)
    else:
        q, _ = torch.linalg.qr(wide, mode="complete")
        if torch.linalg.det(q) < 0:
            q[:, -1] *= -1
        output, first = _fitted(q, pair[0], False, options)
        inward = Circuit(Ansatz(_qubits(wide.shape[1]), ()), "identity", mirrored=True, dtype=torch.float64)
        factors = (first,)
    scale = torch.linalg.vector_norm(wide)
    history, middle = [], _middle(wide, output, inward, route)
    history.append(float(torch.linalg.vector_norm(middle) / scale))
    if joint:
        middle = _refit(wide, output, inward, route, history, max_sweeps, tolerance)
    count = min(wide.shape) if route == "svd" else int(torch.ones_like(wide).triu().sum())
    dtype, device = weight.dtype, weight.device
    return DirectCircuits(
        route,
        output.to(device, dtype),
        middle.to(device, dtype),
        inward.to(device, dtype),
        (int(weight.shape[0]), int(weight.shape[1])),
        factors,
        history[-1],
        count,
        tuple(history),
    )


def _fitted(factor: Tensor, ansatz: Ansatz, mirrored: bool, options: dict[str, object]) -> tuple[Circuit, float]:
    """A circuit near an orthogonal matrix, and Tr(Q^T O) / N."""
    dims = _qubits(len(factor))
    one = torch.eye(2, dtype=torch.float64).reshape(1, 2, 2, 1)
    none = Ansatz(dims, ())
    found = disentangle(
        MPO.from_dense(factor, dims, dims),
        (none, ansatz) if mirrored else (ansatz, none),
        core=MPO([one] * len(dims)),
        **options,  # type: ignore[arg-type]
    )
    circuit = found.input_circuit if mirrored else found.output_circuit
    return circuit, float((circuit.matrix().detach() * factor).sum() / len(factor))


def _middle(wide: Tensor, output: Circuit, inward: Circuit, route: str) -> Tensor:
    """The best D for these circuits."""
    return _of_form(output.matrix().detach().mT @ wide @ inward.matrix().detach().mT, route)


def _of_form(matrix: Tensor, route: str) -> Tensor:
    return matrix * torch.eye(*matrix.shape, dtype=matrix.dtype) if route == "svd" else matrix.triu()


def _refit(
    wide: Tensor,
    output: Circuit,
    inward: Circuit,
    route: str,
    history: list[float],
    max_sweeps: int,
    tolerance: float,
) -> Tensor:
    """Sweeps around D, then the best D, in turns; the circuits are changed in place. Returns D.

    Each half of a round is the best given the other, so the overlap, appended to ``history``, never falls.
    """
    scale = torch.linalg.vector_norm(wide)
    target = MPO.from_dense(wide / scale)
    sides = (output.ansatz, inward.ansatz)
    gates = [[gate.detach() for gate in circuit.gate_matrices()] for circuit in (output, inward)]
    middle, quiet = _middle(wide, output, inward, route), 0
    for _ in range(max_sweeps):
        core = fixed_core(target, MPO.from_dense(middle, target.out_dims, target.in_dims), 1)
        assert core is not None
        engine = Problem(target, 1, core, "dense").engine(sides)
        found = engine.gates(engine.sweep(engine.start(gates[0], gates[1], core)), 0)
        _set(output, found.output)
        _set(inward, found.input)
        after = _middle(wide, output, inward, route)
        overlap = float(torch.linalg.vector_norm(after) / scale)
        if overlap < history[-1]:  # rounding: nothing is left to gain
            break
        quiet = quiet + 1 if overlap - history[-1] < tolerance else 0
        gates, middle = [found.output, found.input], after
        history.append(overlap)
        if quiet >= PATIENCE:
            break
    _set(output, gates[0])
    _set(inward, gates[1])
    return middle


def _set(circuit: Circuit, gates: Sequence[Tensor]) -> None:
    """Make these matrices, fixed gates included, those of a circuit."""
    places = zip(gates, circuit.ansatz.gates(), strict=True)
    circuit.set_gates([gate for gate, place in places if place.is_trainable])


def _qubits(size: int) -> tuple[int, ...]:
    return (2,) * max(1, (size - 1).bit_length())
