"""A run of gates as a short program: permutations, and products of small matrices on neighbouring wires.

Gates are packed into moments as early as their wires allow. Frozen gates that only move and flip entries (CNOT, CZ,
SWAP, X, Z) become one signed permutation a moment, however many there are. Other gates of a moment act on different
wires, so the moment is a Kronecker product; it is cut into groups of neighbouring wires, and groups of one structure
are built together, for all moments at once.

Legend: N is the width of the circuit, R the vectors, d a dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import signature
from itertools import pairwise
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from unbraid.circuits.ansatz import Ansatz, Gate
from unbraid.tensors import prices

# Sizes of groups, of which the one with fewer groups is taken: a product with a larger matrix takes hardly longer than
# one with a small one, as both wait for memory.
_GROUP_SIZES = (16, 32)
# Up to this width a permutation is a matrix as well, multiplied with the product behind it for all moments at once.
_SMALL = 64

Source = tuple[int, int]  # a dimension, and a row of the pool of matrices of that dimension


@dataclass(frozen=True)
class Permutation:
    """y_j = sign_j x_index_j."""

    index: Tensor
    sign: Tensor | None

    def price(self, rows: int) -> float:
        """Of this many vectors."""
        return 2 * prices.OPERATION + 4 * prices.ENTRY * rows * len(self.index)


@dataclass(frozen=True)
class Group:
    """A matrix on neighbouring wires: the Kronecker product of its blocks.

    Attributes:
        number: among all groups of the program.
        blocks: gates and idle wires, from the first wire to the last.
        size: product of the blocks' dimensions.
        after: product of the dimensions of the wires behind.
        before: what acts right before, on the same wires, or None.
    """

    number: int
    blocks: tuple[Source, ...]
    size: int
    after: int
    before: Permutation | None = None

    def price(self, rows: int, width: int) -> float:
        """Of this many vectors of this width."""
        copies = 1 if self.after == 1 else 2  # torch folds the vectors into the rows of the product, and back
        return 2 * prices.OPERATION + rows * width * (prices.MULTIPLICATION * self.size + 4 * copies * prices.ENTRY)


@dataclass(frozen=True)
class Scattered:
    """A gate on wires that are no neighbours in ascending order."""

    source: Source
    wires: tuple[int, ...]

    def price(self, rows: int, width: int) -> float:
        """Of this many vectors of this width."""
        return 8 * prices.OPERATION + rows * width * (prices.MULTIPLICATION * self.source[0] + 8 * prices.ENTRY)


Step = Permutation | Group | Scattered


@dataclass
class Program:
    """What acts in which order.

    Attributes:
        wire_dims: dimensions of the wires.
        steps: in the order in which they act.
        structures: the groups with blocks of the same dimensions, by these dimensions.
        used: the rows of each pool that are taken.
    """

    wire_dims: tuple[int, ...]
    steps: tuple[Step, ...]
    structures: dict[tuple[int, ...], list[Group]]
    used: dict[int, set[int]]
    _placed: dict[torch.device, Any] = field(default_factory=dict)

    def price(self, rows: int) -> float:
        """Nanoseconds of this many vectors, roughly; only ratios matter."""
        width = prod(self.wire_dims)
        built = sum(
            2 * prices.OPERATION * len(dims) + 2 * prices.ENTRY * len(groups) * groups[0].size ** 2
            for dims, groups in self.structures.items()
        )
        return built + sum(
            step.price(rows) if isinstance(step, Permutation) else step.price(rows, width) for step in self.steps
        )

    def price_dense(self, rows: int) -> float:
        """The same through the dense matrix, which is what the program makes of N basis vectors."""
        width = prod(self.wire_dims)
        return self.price(width) + prices.product(rows, width, width)

    def bound(
        self, pools: Mapping[int, Tensor], device: torch.device, adjoint: bool = False
    ) -> list[Callable[[Tensor], Tensor]]:
        """The steps with their matrices made, as functions from (R, N) to (R, N).

        Args:
            pools: matrices by dimension, shape (count, d, d).
            device: of the vectors.
            adjoint: the inverse.
        """
        indices, before, permutations = self._on(device)
        matrices: dict[int, Tensor] = {}
        for dims, groups in self.structures.items():
            built = _kronecker(dims, indices[dims], pools)
            if dims in before:
                built = built @ before[dims].to(built.dtype)
            matrices.update(zip((group.number for group in groups), built.unbind(0), strict=True))
        found: list[Callable[[Tensor], Tensor]] = []
        for number, step in enumerate(self.steps):
            if isinstance(step, Permutation):
                index, inverse, sign = permutations[number]
                found.append(_moving(index, inverse, sign) if not adjoint else _moving_back(index, inverse, sign))
                continue
            if isinstance(step, Group):
                matrix = matrices[step.number]
                found.append(_multiplying(matrix.mH if adjoint else matrix, step.after))
                continue
            matrix = pools[step.source[0]][step.source[1]]
            found.append(_scattering(matrix.mH if adjoint else matrix, step.wires, self.wire_dims))
        return found[::-1] if adjoint else found

    def _on(self, device: torch.device) -> Any:
        """Index tensors and frozen matrices on a device."""
        if device not in self._placed:
            indices = {
                dims: torch.tensor([[group.blocks[k][1] for group in groups] for k in range(len(dims))], device=device)
                for dims, groups in self.structures.items()
            }
            before = {
                dims: torch.stack(
                    [_matrix(group.before, group.size) for group in groups],
                ).to(device)
                for dims, groups in self.structures.items()
                if any(group.before is not None for group in groups)
            }
            permutations = {
                number: (
                    step.index.to(device),
                    step.index.argsort().to(device),
                    None if step.sign is None else step.sign.to(device),
                )
                for number, step in enumerate(self.steps)
                if isinstance(step, Permutation)
            }
            self._placed[device] = indices, before, permutations
        return self._placed[device]


def compile_run(
    ansatz: Ansatz,
    run: Sequence[int],
    sources: Sequence[Source],
    identities: Mapping[int, int],
    frozen: Mapping[int, Tensor],
) -> Program:
    """The program of some gates.

    Args:
        ansatz: the geometry.
        run: numbers of the gates (as of ``ansatz.gates()``) in the order in which they act.
        sources: where the matrix of each gate of the ansatz stands.
        identities: the row of the identity in the pool of a dimension, which idle wires take.
        frozen: matrices of the frozen gates by their numbers.
    """
    gates = list(ansatz.gates())
    moves = {number: matrix for number, matrix in frozen.items() if _is_signed_permutation(matrix)}
    steps: list[Step] = []
    structures: dict[tuple[int, ...], list[Group]] = {}
    for is_move, members in _pack(gates, run, moves):
        if is_move:
            steps.append(_permutation(ansatz, gates, members, moves))
            continue
        apart = [number for number in members if not _neighbours(gates[number].wires)]
        steps += [Scattered(sources[number], gates[number].wires) for number in apart]
        starts = {gates[number].wires[0]: number for number in members if number not in apart}
        for blocks, after in _groups(ansatz, starts, gates, sources, identities):
            dims = tuple(d for d, _ in blocks)
            before: Permutation | None = None
            if ansatz.dimension <= _SMALL and steps and isinstance(steps[-1], Permutation) and not apart:
                popped = steps.pop()
                assert isinstance(popped, Permutation)
                before = popped
            group = Group(sum(map(len, structures.values())), blocks, prod(dims), after, before)
            structures.setdefault(dims, []).append(group)
            steps.append(group)
    used: dict[int, set[int]] = {}
    taken = [source for groups in structures.values() for group in groups for source in group.blocks]
    for d, row in [*taken, *(step.source for step in steps if isinstance(step, Scattered))]:
        used.setdefault(d, set()).add(row)
    return Program(ansatz.wire_dims, tuple(steps), structures, used)


def apply_gate(x: Tensor, matrix: Tensor, wires: Sequence[int], dims: Sequence[int]) -> Tensor:
    """Apply one gate to vectors.

    Args:
        x: shape (R, N).
        matrix: shape (d, d); its index reads the wires in the given order, the first most significant.
        wires: the wires, in any order.
        dims: dimensions of all wires, with product N.

    Returns:
        Shape (R, N).
    """
    dtype = torch.promote_types(x.dtype, matrix.dtype)
    x, matrix = x.to(dtype), matrix.to(dtype)
    if _neighbours(wires):
        return _multiplied(x, matrix, prod(dims[wires[-1] + 1 :]))
    others = [wire for wire in range(len(dims)) if wire not in wires]
    order = [0, *(wire + 1 for wire in [*others, *wires])]
    back = [order.index(axis) for axis in range(len(order))]
    moved = x.reshape(-1, *dims).permute(order)
    return (moved.reshape(-1, matrix.shape[0]) @ matrix.mT).reshape(moved.shape).permute(back).reshape(x.shape)


def _pack(gates: Sequence[Gate], run: Sequence[int], moves: Mapping[int, Tensor]) -> list[tuple[bool, list[int]]]:
    """Moments of gates: each gate in the earliest one of its kind that its wires allow.

    Permutations may share wires within a moment, where they keep their order.
    """
    moments: list[tuple[bool, list[int]]] = []
    last: dict[int, int] = {}  # the latest moment of a wire
    for number in run:
        is_move = number in moves
        place = max((last.get(wire, -1) for wire in gates[number].wires), default=-1)
        if place < 0 or not (is_move and moments[place][0]):
            place += 1
        while place < len(moments) and moments[place][0] != is_move:
            place += 1
        if place == len(moments):
            moments.append((is_move, []))
        moments[place][1].append(number)
        last.update(dict.fromkeys(gates[number].wires, place))
    return moments


def _groups(
    ansatz: Ansatz,
    starts: Mapping[int, int],
    gates: Sequence[Gate],
    sources: Sequence[Source],
    identities: Mapping[int, int],
) -> list[tuple[tuple[Source, ...], int]]:
    """Blocks of a moment in groups, from the last wire to the first, with what stands behind; idle groups left out."""
    blocks: list[tuple[Source, bool]] = []
    wire = 0
    while wire < len(ansatz.wire_dims):
        if wire in starts:
            number = starts[wire]
            blocks.append((sources[number], True))
            wire += len(gates[number].wires)
        else:
            d = ansatz.wire_dims[wire]
            blocks.append(((d, identities[d]), False))
            wire += 1
    cuts = [_cut(blocks, max(limit, ansatz.dimension if ansatz.dimension <= _SMALL else 1)) for limit in _GROUP_SIZES]
    found: list[tuple[tuple[Source, ...], int]] = []
    after = 1
    for group in min(cuts, key=len):
        if any(busy for _, busy in group):
            found.append((tuple(source for source, _ in group), after))
        after *= prod(d for (d, _), _ in group)
    return found


def _cut(blocks: Sequence[tuple[Source, bool]], limit: int) -> list[list[tuple[Source, bool]]]:
    """Groups of blocks, the last one first, of a size up to the limit or of a single block."""
    found: list[list[tuple[Source, bool]]] = [[]]
    size = 1
    for block in reversed(blocks):
        size *= block[0][0]
        if size > limit and found[-1]:
            found.append([])
            size = block[0][0]
        found[-1].insert(0, block)
    return found


def _neighbours(wires: Sequence[int]) -> bool:
    return all(after == before + 1 for before, after in pairwise(wires))


def _is_signed_permutation(matrix: Tensor) -> bool:
    ones = (matrix.abs() == 1).sum(0), (matrix.abs() == 1).sum(1)
    return bool((ones[0] == 1).all() and (ones[1] == 1).all() and (matrix != 0).sum() == len(matrix))


def _permutation(
    ansatz: Ansatz, gates: Sequence[Gate], members: Sequence[int], moves: Mapping[int, Tensor]
) -> Permutation:
    places = torch.arange(1, ansatz.dimension + 1, dtype=torch.float64)[None]
    for number in members:
        places = apply_gate(places, moves[number].double(), gates[number].wires, ansatz.wire_dims)
    moved = places[0]
    sign = moved.sign() if bool((moved < 0).any()) else None
    return Permutation(moved.abs().long() - 1, sign)


def _matrix(permutation: Permutation | None, size: int) -> Tensor:
    if permutation is None:
        return torch.eye(size)
    matrix = torch.eye(size)[permutation.index]
    return matrix if permutation.sign is None else matrix * permutation.sign[:, None].to(matrix.dtype)


class _Move(torch.autograd.Function):
    """Entries by index; the gradient goes back by the inverse index, where torch would add entry by entry."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        return x.index_select(-1, index)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1], inputs[2])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        index, inverse = ctx.saved_tensors
        if torch.is_grad_enabled():  # for second derivatives
            return _Move.apply(gradients[0], inverse, index), None, None
        return gradients[0].index_select(-1, inverse), None, None


# torch asks for it at every call, and inspect makes it anew each time where it is not stored
_Move.forward.__signature__ = signature(_Move.forward)  # type: ignore[attr-defined]


def _moving(index: Tensor, inverse: Tensor, sign: Tensor | None) -> Callable[[Tensor], Tensor]:
    def step(x: Tensor) -> Tensor:
        moved: Any = _Move.apply(x, index, inverse)
        return moved if sign is None else moved * sign.to(x.dtype)

    return step


def _moving_back(index: Tensor, inverse: Tensor, sign: Tensor | None) -> Callable[[Tensor], Tensor]:
    def step(x: Tensor) -> Tensor:
        return _Move.apply(x if sign is None else x * sign.to(x.dtype), inverse, index)  # type: ignore[no-any-return]

    return step


def _multiplying(matrix: Tensor, after: int) -> Callable[[Tensor], Tensor]:
    def step(x: Tensor) -> Tensor:
        dtype = torch.promote_types(x.dtype, matrix.dtype)
        return _multiplied(x.to(dtype), matrix.to(dtype), after)

    return step


def _scattering(matrix: Tensor, wires: tuple[int, ...], dims: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    return lambda x: apply_gate(x, matrix, wires, dims)


def _multiplied(x: Tensor, matrix: Tensor, after: int) -> Tensor:
    d = matrix.shape[0]
    if after == 1:
        return linear(x.reshape(-1, d), matrix).reshape(x.shape)
    return (matrix @ x.reshape(-1, d, after)).reshape(x.shape)


def _kronecker(dims: tuple[int, ...], rows: Tensor, pools: Mapping[int, Tensor]) -> Tensor:
    """Kronecker products of the blocks of many groups: rows of the pools, shape (blocks, G), to (G, size, size)."""
    if len(set(dims)) > 1:
        factors = [pools[d].index_select(0, places) for d, places in zip(dims, rows, strict=True)]
        while len(factors) > 1:
            factors[:2] = [_kron(factors[0], factors[1])]
        return factors[0]
    blocks, count = rows.shape
    d = dims[0]
    level = pools[d].index_select(0, rows.reshape(-1))
    behind: Tensor | None = None  # of an odd number of blocks the last one waits
    while blocks > 1:
        if blocks % 2:
            last = level[-count:]
            level = level[:-count]
            behind = last if behind is None else _kron(last, behind)
            blocks -= 1
        d = level.shape[-1]
        pairs = level.reshape(blocks // 2, 2, count, d, d)
        blocks //= 2
        level = _kron(*(pair.reshape(-1, d, d) for pair in pairs.unbind(1)))
    return level if behind is None else _kron(level, behind)


def _kron(a: Tensor, b: Tensor) -> Tensor:
    """Kronecker products of (G, m, m) and (G, n, n)."""
    m, n = a.shape[-1], b.shape[-1]
    return (a.reshape(-1, m, 1, m, 1) * b.reshape(-1, 1, n, 1, n)).reshape(-1, m * n, m * n)
