"""Magnitudes in the computational basis, signs from Hadamards: n + 1 circuits a vector, or up to 2 n + 2 under noise.

Measured as it is, psi gives its magnitudes; with a Hadamard on qubit k, outcomes b and b + e_k give the sign of
psi_b psi_(b + e_k). A spanning tree of the surest of these signs gives a first vector, which is then refined: the
vector and the share beta of noise that maximise the likelihood of all counts, where outcome b of circuit j has the
probability (1 - beta) (H_j psi)_b^2 + beta / N. Gate noise that spreads over the outcomes thus ends in beta and not in
psi.

That leaves one sign for the whole vector, see :class:`unbraid.quantum.reading.Anchor`.

Legend: B vectors of N = 2^n entries; u uniform; counts have shape (M, B, N) for M circuits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree
from torch import Tensor

from unbraid.circuits import Circuit
from unbraid.circuits.gates import FIXED_GATES
from unbraid.ground.errors import InvalidInputError
from unbraid.quantum.encode import Encoding, encode
from unbraid.quantum.execute import Executor, count_qubits
from unbraid.quantum.reading import Anchor, Reading, counts_of, followed_by, misread, unfolded

Setting = tuple[int, ...]  # the qubits, counted from the most significant, that get a Hadamard

_STEPS = 200
_TOLERANCE = 1e-5  # change of a vector and step
_FIRST_NOISE = 0.02


@dataclass(frozen=True)
class Signs:
    """Z on all qubits, and one Hadamard a circuit; for real circuits.

    The error that it states is that of magnitudes: a wrong sign, likely with few shots or many zeros, is not in it.

    Attributes:
        settings: circuits a vector, from n + 1 (one Hadamard each) to 2 n + 2 (then all qubits, then all but one); None
            for n + 1. More of them average gate noise better; by shot noise alone they gain little.
    """

    settings: int | None = None

    def __post_init__(self) -> None:
        if self.settings is not None and (isinstance(self.settings, bool) or not isinstance(self.settings, int)):
            raise InvalidInputError(f"settings must be a number of circuits; got {self.settings!r}.")

    def __str__(self) -> str:
        return "signs"

    def circuits(self, qubits: int) -> int:
        """One a setting."""
        return len(settings_of(qubits, self.settings))

    def shots(self, total: int, qubits: int) -> int:
        """The same for each setting, at least 1."""
        count = self.circuits(qubits)
        return count * max(1, total // count)

    def read(
        self,
        circuit: Circuit,
        units: Tensor,
        shots: int,
        executor: Executor,
        generator: torch.Generator | None,
        encoding: Encoding,
    ) -> Reading:
        """See :meth:`unbraid.quantum.reading.Readout.read`."""
        if circuit.is_complex:
            raise InvalidInputError(
                "Signs are those of real vectors, and this circuit has unitary gates. Use readout='tomography' or "
                "'exact', or circuits of gate='so'."
            )
        n = count_qubits(circuit)
        settings = settings_of(n, self.settings)
        each = max(1, shots // len(settings))
        anchor = Anchor(circuit, units)
        circuits = [with_hadamards(circuit, setting) for setting in settings]
        execution = executor.run(circuits, encode(anchor.states, encoding), each, generator=generator)
        found, noise = solve_signs(*counts_of(execution, executor, units.device), settings)
        psi = anchor.settle(found)
        variance = (units.shape[1] - 1) / (4 * each * len(settings) * (1 - noise).clamp(min=0.05))
        return Reading(psi, anchor.lengths * variance.sqrt(), execution.circuits, execution.shots)


def settings_of(qubits: int, count: int | None = None) -> list[Setting]:
    """Which qubits get Hadamards: none, each, all, all but each.

    Raises:
        InvalidInputError: if there are not so many settings, or too few for all signs.
    """
    every = tuple(range(qubits))
    single = [(k,) for k in every]
    others = [tuple(j for j in every if j != k) for k in every]
    settings = list(dict.fromkeys([(), *single, every, *others]))
    wanted = qubits + 1 if count is None else count
    if not qubits + 1 <= wanted <= len(settings):
        raise InvalidInputError(
            f"At {qubits} qubits there are from {qubits + 1} to {len(settings)} settings; got settings={count!r}."
        )
    return settings[:wanted]


def with_hadamards(circuit: Circuit, qubits: Setting) -> Circuit:
    """The circuit followed by Hadamards, detached."""
    h = torch.tensor(FIXED_GATES["h"], dtype=torch.float64)
    return followed_by(circuit, [h if k in qubits else None for k in range(count_qubits(circuit))])


def solve_signs(counts: Tensor, confusion: Tensor | None, settings: Sequence[Setting]) -> tuple[Tensor, Tensor]:
    """Unit vectors of unknown overall sign, and shares of noise, that make counts most likely.

    Args:
        counts: shape (M, B, N); the first n + 1 settings are none and each qubit in turn.
        confusion: how qubits were misread, shape (M, B, n, 2, 2), or None.
        settings: M of them.

    Returns:
        Vectors, float64, shape (B, N), and shares of noise, shape (B,).
    """
    _, batch, size = counts.shape
    n = size.bit_length() - 1
    if not batch:
        return counts.new_zeros(0, size), counts.new_zeros(0)
    matrices = [None] * len(counts) if confusion is None else list(confusion)
    back = [None if matrix is None else matrix.mT for matrix in matrices]
    clean = torch.stack([unfolded(*each) for each in zip(counts[: n + 1], matrices, strict=False)]).cpu().numpy()
    v = torch.from_numpy(np.stack([_first_vector(clean[:, b], n) for b in range(batch)])).to(counts)
    v = v / torch.linalg.vector_norm(v, dim=1, keepdim=True)
    total = counts.sum(dim=(0, 2))
    noise = torch.full_like(total, _FIRST_NOISE)
    for _ in range(_STEPS):
        pulled, white = torch.zeros_like(v), torch.zeros_like(noise)
        for setting, seen, matrix, transposed in zip(settings, counts, matrices, back, strict=True):
            amplitudes = _hadamards(v, setting)
            there = (1 - noise)[:, None] * amplitudes**2 + noise[:, None] / size
            weight = misread(seen / misread(there, matrix), transposed)
            pulled += _hadamards(weight * amplitudes, setting)
            white += weight.sum(dim=1)
        # at the maximum (1 - noise) pulled = total * v, so v and what pulls it are averaged
        moved = v + (1 - noise)[:, None] * pulled / total[:, None]
        moved = moved / torch.linalg.vector_norm(moved, dim=1, keepdim=True)
        noise = (noise * white / (size * total)).clamp(1e-7, 0.95)
        change = float((moved - v).abs().max())
        v = moved
        if change < _TOLERANCE:
            break
    return v, noise


def _hadamards(x: Tensor, qubits: Setting) -> Tensor:
    """Hadamards on some qubits of vectors, shape (B, N)."""
    for qubit in qubits:
        pairs = x.reshape(len(x), 2**qubit, 2, x.shape[1] >> (qubit + 1))
        x = torch.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], dim=2).reshape(x.shape)
    return x * 2 ** (-len(qubits) / 2)


def _first_vector(counts: np.ndarray, n: int) -> np.ndarray:
    """Magnitudes from the first setting, signs along the tree of the surest ones; counts of shape (n + 1, N)."""
    size = 2**n
    index = np.arange(size)
    low, high, sure, sign = [], [], [], []
    for k in range(n):
        bit = size >> (k + 1)
        a = index[(index & bit) == 0]
        sums, differences = counts[k + 1, a], counts[k + 1, a | bit]
        low.append(a)
        high.append(a | bit)
        sure.append(np.abs(sums - differences) / np.sqrt(sums + differences + 1))
        sign.append(np.where(sums >= differences, 1.0, -1.0))
    rows, columns = np.concatenate(low), np.concatenate(high)
    strength, signs = np.concatenate(sure), np.concatenate(sign)
    price = coo_matrix((strength.max() + 1 - strength, (rows, columns)), shape=(size, size)).tocsr()
    table = coo_matrix((signs, (rows, columns)), shape=(size, size)).tocsr()
    order, before = breadth_first_order(minimum_spanning_tree(price), int(np.argmax(counts[0])), directed=False)
    found = np.ones(size)
    for b in order[1:]:
        found[b] = found[before[b]] * table[min(b, before[b]), max(b, before[b])]
    return found * np.sqrt(counts[0] + 0.5)  # never zero: what was not seen may still be there
