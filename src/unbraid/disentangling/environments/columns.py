"""Exact environments of a network, column by column: the boundary between what is contracted and what is not.

A boundary moves along the chain and absorbs one piece after the other. The environment of a piece is the product of the
boundary that holds all pieces before it and the one that holds all after it, over the legs that pass by. The cost is
linear in the number of sites; the boundary has 4 entries for every two-body gate that it cuts (2 for a CNOT), times the
bonds of M and of the core.

Legend: a, x, b are the sizes of groups of legs; a and b pass by, x belongs to a piece.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from unbraid.circuits.gates import polar
from unbraid.disentangling.environments.network import Leg, Name, Network, Piece, PlacedGate, Side
from unbraid.tensors import chain

T = TypeVar("T")
Tensors = dict[Name, Tensor]  # axes in the order of the legs of the piece; M conjugated
FITTED = 1e-13  # a pass over the core that gains less ends the fit
_NARROW = 16  # below this many columns a batch of small products is slower than one product with a Kronecker factor


@dataclass(frozen=True)
class Boundary:
    """A contracted end of the network.

    Attributes:
        tensor: one axis a leg.
        legs: open legs.
        log_scale: logarithm of a factor in front.
    """

    tensor: Tensor
    legs: tuple[Leg, ...]
    log_scale: float = 0.0

    @property
    def value(self) -> float:
        """Real part of a boundary without legs of more than one dimension."""
        return float(self.tensor.real) * math.exp(self.log_scale)


def absorb(boundary: Boundary, piece: Piece, tensor: Tensor) -> Boundary:
    """Contract a piece into a boundary over the legs that they share."""
    shared = [leg for leg in boundary.legs if leg in piece.legs]
    new = sorted(leg for leg in piece.legs if leg not in shared)
    matrix = _grouped(tensor, piece.legs, new, shared)  # (new, shared)
    first = boundary.legs.index(shared[0]) if shared else 0
    before, after = (
        [leg for leg in part if leg not in shared] for part in (boundary.legs[:first], boundary.legs[first:])
    )
    sizes = dict(zip([*boundary.legs, *piece.legs], [*boundary.tensor.shape, *tensor.shape], strict=True))
    x = _permuted(boundary.tensor, boundary.legs, [*before, *shared, *after])
    x = x.reshape(*(math.prod(sizes[leg] for leg in group) for group in (before, shared, after)))
    legs = [*before, *new, *after]
    product = _multiply(matrix, x).reshape([sizes[leg] for leg in legs])
    ordered = sorted(legs)  # mostly as it is: no copy
    result = _permuted(product, legs, ordered)
    scale = 1.0
    if piece.name[0] == "target":  # once a site: fifty sites would leave the range of float64
        scale = float(torch.linalg.vector_norm(result)) or 1.0
        result = result / scale
    return Boundary(result, tuple(ordered), boundary.log_scale + math.log(scale))


def environment(before: Boundary, after: Boundary, piece: Piece) -> Tensor:
    """The network without a piece, axes in the order of the legs of the piece, up to the boundaries' scales."""
    passing = [leg for leg in before.legs if leg in after.legs]
    here, there = ([leg for leg in end.legs if leg not in passing] for end in (before, after))
    product = _grouped(before.tensor, before.legs, here, passing) @ _grouped(after.tensor, after.legs, passing, there)
    sizes = dict(zip([*before.legs, *after.legs], [*before.tensor.shape, *after.tensor.shape], strict=True))
    product = product.reshape([sizes[leg] for leg in [*here, *there]])
    return _permuted(product, [*here, *there], piece.legs)


class Columns:
    """Contracts a network to and fro, and updates pieces on the way.

    Args:
        network: the pieces.
        tensors: theirs by name; halves of fixed gates are added. Updates replace entries.
        levels: 1 keeps every boundary of the far end, l keeps l N^(1/l) of N and contracts l times as often.
    """

    def __init__(self, network: Network, tensors: Tensors, levels: int = 1) -> None:
        self.network = network
        self.levels = levels
        dtype = torch.float64
        for tensor in tensors.values():
            dtype = torch.promote_types(dtype, tensor.dtype)
        device = tensors["target", 0].device
        self.tensors = {name: tensor.to(device, dtype) for name, tensor in (tensors | network.factors).items()}

    @classmethod
    def between(
        cls,
        out_dims: Sequence[int],
        in_dims: Sequence[int],
        target: Sequence[Tensor],
        core: Sequence[Tensor],
        gates: Sequence[PlacedGate] = (),
        matrices: Tensors | None = None,
        levels: int = 1,
    ) -> Columns:
        """The network of <target, O core I>.

        Args:
            out_dims: output legs.
            in_dims: input legs.
            target: chain of M, cores (left, out * in, right).
            core: chain of the core.
            gates: of both circuits, layer 0 first.
            matrices: of the gates by name, shape (d, d).
            levels: as above.
        """
        sides: dict[Side, list[PlacedGate]] = {"output": [], "input": []}
        tensors: Tensors = {}
        for gate in gates:
            sides[gate.side].append(gate)
            if matrices is not None and not gate.is_split:
                tensors[gate.name] = matrices[gate.name].reshape(*gate.dims, *gate.dims)
        for k, (above, below) in enumerate(zip(target, core, strict=True)):
            legs = out_dims[k], in_dims[k]
            tensors["target", k] = above.reshape(above.shape[0], *legs, above.shape[2]).conj()
            tensors["core", k] = below.reshape(below.shape[0], *legs, below.shape[2])
        bonds = [[tensor.shape[2] for tensor in cores[:-1]] for cores in (target, core)]
        return cls(Network(out_dims, in_dims, bonds[0], bonds[1], sides["output"], sides["input"]), tensors, levels)

    def value(self) -> float:
        """Re <M, O C I>."""
        boundary = self._end(0)
        for piece in self.network.pieces:
            boundary = absorb(boundary, piece, self.tensors[piece.name])
        return boundary.value

    def environments(self) -> tuple[float, Tensors]:
        """The value, and E of every trainable gate, shape (d, d): the value is Re <E, g> as a function of the gate."""
        found: Tensors = {}
        before = self._end(0)
        for piece, after in self._walk(self.network.pieces, self._end(1), self.levels):
            if piece.group is not None:
                found[piece.name] = _as_matrix(environment(before, after, piece)).conj() * math.exp(
                    before.log_scale + after.log_scale
                )
            before = absorb(before, piece, self.tensors[piece.name])
        return before.value, found

    def sweep(self, *, gates: bool, core: bool, backwards: bool = False) -> float:
        """Set pieces one after the other to the best there is, given all others; the value never decreases.

        Args:
            gates: update trainable gates, by polar factors.
            core: update the core, of norm 1, whose center must be at the end where the sweep starts; it moves along.
            backwards: from the right end to the left.

        Returns:
            The value at the end.
        """
        pieces = self.network.pieces[::-1] if backwards else self.network.pieces
        before = self._end(1 if backwards else 0)
        cores_left = len(self.network.out_dims)
        center: tuple[Leg, Tensor] | None = None  # what stands on a bond between two cores, (near, far)
        for piece, after in self._walk(pieces, self._end(0 if backwards else 1), self.levels):
            if core and piece.name[0] == "core":
                cores_left -= 1
                best = environment(before, after, piece).conj()
                best = best / (float(torch.linalg.vector_norm(best)) or 1.0)
                center = None
                if cores_left > 0:
                    axis = 0 if backwards else 3
                    best, rest = _orthogonalize(best, axis)
                    center = piece.legs[axis], rest
                self.tensors[piece.name] = best
            elif gates and piece.group is not None:
                if center is not None and center[0] in after.legs:
                    after = _on_leg(after, *center)
                found = environment(before, after, piece)
                gate = polar(_as_matrix(found).conj(), piece.group)
                self.tensors[piece.name] = gate.to(found.dtype).reshape(found.shape)
            before = absorb(before, piece, self.tensors[piece.name])
        return before.value

    def fit_core(self, passes: int) -> float:
        """Improve the core with the gates as they are, by passes from the left; the value that it reaches."""
        value = -math.inf
        for _ in range(passes):
            for site, core in enumerate(chain.canonicalize(self.core(), 0)[0]):
                legs = self.network.out_dims[site], self.network.in_dims[site]
                self.tensors["core", site] = core.reshape(core.shape[0], *legs, core.shape[2])
            before, value = value, self.sweep(gates=False, core=True)
            if value - before < FITTED:
                break
        return value

    def core(self) -> list[Tensor]:
        """The chain of the core, cores (left, out * in, right)."""
        cores = [self.tensors["core", site] for site in range(len(self.network.out_dims))]
        return [core.resolve_conj().contiguous().reshape(core.shape[0], -1, core.shape[3]) for core in cores]

    def _end(self, which: int) -> Boundary:
        """The boundary that holds nothing yet."""
        some = next(iter(self.tensors.values()))
        return Boundary(some.new_ones(1, 1), tuple(sorted(self.network.ends[which])))

    def _walk(self, pieces: Sequence[Piece], after: Boundary, levels: int) -> Iterator[tuple[Piece, Boundary]]:
        """Pieces in order, each with the boundary that holds all pieces after it.

        Only boundaries at the ends of stretches are kept; within a stretch the same is done again, one level down. What
        is kept depends on later pieces only, so pieces may change once they have been passed.
        """
        if len(pieces) == 1:
            yield pieces[0], after
            return
        stretches = _stretches(pieces, levels)
        kept = [after]
        for stretch in stretches[:0:-1]:
            for piece in reversed(stretch):
                after = absorb(after, piece, self.tensors[piece.name])
            kept.append(after)
        del after
        for stretch in stretches:
            yield from self._walk(stretch, kept.pop(), max(1, levels - 1))


def kept_entries(sizes: Sequence[int], levels: int) -> int:
    """The most entries of boundaries that a walk keeps at a time, and of three more in work.

    Args:
        sizes: of the boundaries after each piece.
        levels: as for :class:`Columns`.
    """

    def kept(sizes: Sequence[int], levels: int) -> int:
        if len(sizes) == 1:
            return 0
        most = waiting = 0
        for stretch in reversed(_stretches(sizes, levels)):
            waiting += stretch[-1]
            most = max(most, waiting + kept(stretch, max(1, levels - 1)))
        return most

    return kept(sizes, levels) + 3 * max(sizes)


def _stretches(items: Sequence[T], levels: int) -> list[Sequence[T]]:
    """About N^(1/levels) parts of N items."""
    length = math.ceil(len(items) / max(2, math.ceil(len(items) ** (1 / levels))))
    return [items[k : k + length] for k in range(0, len(items), length)]


def _multiply(matrix: Tensor, x: Tensor) -> Tensor:
    """``matrix`` on the middle axis of ``x``, shape (a, x, b)."""
    a, _, b = x.shape
    if b == 1:
        return x.reshape(a, -1) @ matrix.mT
    if b < _NARROW and a > b:
        kronecker = matrix[:, None, :, None] * torch.eye(b, dtype=matrix.dtype, device=matrix.device)[:, None]
        return x.reshape(a, -1) @ kronecker.reshape(len(matrix) * b, -1).mT
    return matrix @ x


def _grouped(tensor: Tensor, legs: Sequence[Leg], rows: Sequence[Leg], columns: Sequence[Leg]) -> Tensor:
    """A tensor as a matrix, shape (rows, columns)."""
    moved = _permuted(tensor, legs, [*rows, *columns])
    return moved.reshape(math.prod(moved.shape[: len(rows)]), -1)


def _permuted(tensor: Tensor, legs: Sequence[Leg], order: Sequence[Leg]) -> Tensor:
    return tensor.permute([legs.index(leg) for leg in order])


def _as_matrix(gate: Tensor) -> Tensor:
    """Shape (rows..., columns...) to (d, d)."""
    return gate.reshape(math.isqrt(gate.numel()), -1)


def _orthogonalize(core: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """A core as an isometry on all axes but one, and what is left, shape (near, far)."""
    moved = core.movedim(axis, -1)
    q, r = torch.linalg.qr(moved.reshape(-1, moved.shape[-1]))
    return q.reshape(*moved.shape[:-1], -1).movedim(-1, axis), r


def _on_leg(boundary: Boundary, leg: Leg, matrix: Tensor) -> Boundary:
    """``matrix``, shape (near, far), on one leg of a boundary."""
    axis = boundary.legs.index(leg)
    shape = list(boundary.tensor.shape)
    x = boundary.tensor.reshape(math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :]))
    shape[axis] = len(matrix)
    return Boundary(_multiply(matrix, x).reshape(shape), boundary.legs, boundary.log_scale)
