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
from functools import lru_cache

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree
from scipy.special import expit, ndtr
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

    Signs are found from outcome to outcome, so islands of large entries among zeros cannot be tied together; the error
    that it states holds such doubts.

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

    def measured(self, circuit: Circuit) -> list[Circuit]:
        """The circuit with the Hadamards of each setting."""
        return [with_hadamards(circuit, setting) for setting in settings_of(count_qubits(circuit), self.settings)]

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
        execution = executor.run(self.measured(circuit), encode(anchor.states, encoding), each, generator=generator)
        counts, confusion = counts_of(execution, executor, units.device)
        found, noise, doubt = solve_signs(counts, confusion, settings, anchor.image)
        psi = anchor.settle(found)
        variance = (units.shape[1] - 1) / (4 * each * len(settings) * (1 - noise).clamp(min=0.05))
        return Reading(psi, anchor.lengths * (variance + doubt).sqrt(), execution.circuits, execution.shots)


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


def solve_signs(
    counts: Tensor, confusion: Tensor | None, settings: Sequence[Setting], image: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Unit vectors of unknown overall sign, and shares of noise, that make counts most likely.

    Args:
        counts: shape (M, B, N); the first n + 1 settings are none and each qubit in turn.
        confusion: how qubits were misread, shape (M, B, n, 2, 2), or None.
        settings: M of them.
        image: what will decide the overall sign, see :func:`sign_doubt`.

    Returns:
        Vectors, float64, shape (B, N), shares of noise, shape (B,), and :func:`sign_doubt`, shape (B,).
    """
    _, batch, size = counts.shape
    n = size.bit_length() - 1
    if not batch:
        return counts.new_zeros(0, size), counts.new_zeros(0), counts.new_zeros(0)
    matrices = [None] * len(counts) if confusion is None else list(confusion)
    back = [None if matrix is None else matrix.mT for matrix in matrices]
    clean = torch.stack([unfolded(*each) for each in zip(counts[: n + 1], matrices, strict=False)])
    plain = clean.cpu().numpy()
    v = torch.from_numpy(np.stack([_first_vector(plain[:, b], n) for b in range(batch)])).to(counts)
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
    return v, noise, sign_doubt(clean, v, noise, image)


def _hadamards(x: Tensor, qubits: Setting) -> Tensor:
    """Hadamards on some qubits of vectors, shape (B, N)."""
    for qubit in qubits:
        pairs = x.reshape(len(x), 2**qubit, 2, x.shape[1] >> (qubit + 1))
        x = torch.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], dim=2).reshape(x.shape)
    return x * 2 ** (-len(qubits) / 2)


def _first_vector(counts: np.ndarray, n: int) -> np.ndarray:
    """Magnitudes from the first setting, signs along the tree of the surest ones; counts of shape (n + 1, N)."""
    low, high, setting = _pairs(n)
    sums, differences = counts[setting, low], counts[setting, high]
    order, before = _tree(np.abs(sums - differences) / np.sqrt(sums + differences + 1), n, int(np.argmax(counts[0])))
    signs = np.where(sums >= differences, 1.0, -1.0)
    table = coo_matrix((signs, (low, high)), shape=(2**n, 2**n)).tocsr()
    found = np.ones(2**n)
    for b in order[1:]:
        found[b] = found[before[b]] * table[min(b, before[b]), max(b, before[b])]
    return found * np.sqrt(counts[0] + 0.5)  # never zero: what was not seen may still be there


def sign_doubt(counts: Tensor, v: Tensor, noise: Tensor, image: Tensor | None = None) -> Tensor:
    """Expected squared error of unit vectors from signs that may be wrong, at most 4.

    Turning the signs of some outcomes changes the likelihood by what single Hadamards saw on the pairs between these
    and the others. The doubt adds up all branches of the tree of the surest pairs, each with its probability.

    The overall sign is that of the overlap with a known vector. It is wrong where shot noise and turned branches
    outweigh that overlap.

    Args:
        counts: of the first n + 1 settings, shape (n + 1, B, N).
        v: the vectors found, shape (B, N).
        noise: their shares of noise, shape (B,).
        image: the known vector, of norm 1, shape (1, N); None leaves the overall sign out.

    Returns:
        Shape (B,).
    """
    batch, size = v.shape
    n = size.bit_length() - 1
    low, high, setting = _pairs(n)
    seen = torch.stack([_hadamards(v, (k,)) for k in range(n)])
    there = ((1 - noise)[:, None] * seen**2 + noise[:, None] / size).cpu().numpy()
    clean, squares = counts.cpu().numpy(), (v**2).cpu().numpy()
    # log-likelihood ratio of a pair as it is to one of them turned
    weights = (clean[setting, :, low] - clean[setting, :, high]) * np.log(
        there[setting - 1, :, low] / there[setting - 1, :, high]
    )
    along = None if image is None else (v * image.real).cpu().numpy()
    shots = counts.sum(dim=(0, 2)).cpu().numpy()
    doubt = np.zeros(batch)
    for b in range(batch):
        weight = weights[:, b]
        order, before = _tree(weight.clip(min=0), n, int(np.argmax(squares[b])))
        branch = np.eye(size, dtype=bool)
        for node in order[:0:-1]:
            branch[before[node]] |= branch[node]
        branch = branch[order[1:]]
        cost = (branch[:, low] != branch[:, high]) @ weight
        mass = branch @ squares[b]
        turned = expit(-cost)  # probability of each branch
        doubt[b] = min(2.0, float((4 * np.minimum(mass, 1 - mass) * turned).sum()))
        if along is not None:
            variance = 1 / (4 * shots[b]) + float((turned * (2 * (branch @ along[b])) ** 2).sum())
            doubt[b] += 4 * ndtr(-abs(along[b].sum()) / np.sqrt(variance))
    return torch.from_numpy(doubt).to(v).clamp(max=4)


@lru_cache(maxsize=16)
def _pairs(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Outcomes that differ in one qubit, the lower first, and the setting with a Hadamard on it."""
    index = np.arange(2**n)
    bits = [2 ** (n - 1 - k) for k in range(n)]
    low = np.concatenate([index[(index & bit) == 0] for bit in bits])
    step = np.repeat(bits, 2 ** (n - 1))
    return low, low + step, np.repeat(np.arange(1, n + 1), 2 ** (n - 1))


def _tree(strength: np.ndarray, n: int, root: int) -> tuple[np.ndarray, np.ndarray]:
    """The spanning tree of the strongest pairs: outcomes from the root outwards, and the one before each."""
    low, high, _ = _pairs(n)
    price = coo_matrix((strength.max() + 1 - strength, (low, high)), shape=(2**n, 2**n)).tocsr()
    order, before = breadth_first_order(minimum_spanning_tree(price), root, directed=False)
    return order, before
