"""The tensor network of <M, O C I> as a list of small tensors, to be contracted from one end of the chain to the other.

At every site a vertical line runs from the output leg of M through the gates of the output circuit (last layer first),
the core, and the gates of the input circuit (layer 0 first) to the input leg of M. In that order every gate is met at
its row index and left at its column index, on both sides: O C I is one product of matrices. ``time`` counts what the
lines meet: -1 is M, then the output gates, the core, the input gates.

Legend: a leg is (time, kind, site). Kind 1 is the segment of the line at ``site`` that begins at ``time``; kind 0 is
the bond of what stands at ``time``: from ``site`` to the next one for M and the core, -1 within a fixed gate that is
split in two. Legs sort along the vertical line, so that the legs of a gate at one site are neighbours in a boundary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Literal

import torch
from torch import Tensor

from unbraid.circuits import Ansatz
from unbraid.circuits.ansatz import Gate
from unbraid.circuits.gates import fixed_gate
from unbraid.ground.errors import InvalidInputError

Side = Literal["output", "input"]
Leg = tuple[int, int, int]
Name = tuple[str, int]


@dataclass(frozen=True)
class PlacedGate:
    """A gate on the sites of a chain; wires of dimension 1 are left out.

    Attributes:
        side: the circuit that it belongs to.
        number: its place in that circuit, layer 0 first.
        gate: its group or name and its wires.
        sites: where its wires of more than one dimension stand, in the order of its matrix index.
        dims: dimensions there.
    """

    side: Side
    number: int
    gate: Gate
    sites: tuple[int, ...]
    dims: tuple[int, ...]

    @property
    def name(self) -> Name:
        """The key of its tensor."""
        return self.side, self.number

    @property
    def is_split(self) -> bool:
        """Whether the network holds it as two tensors: a fixed gate between two sites."""
        return not self.gate.is_trainable and len(self.sites) == 2


@dataclass(frozen=True)
class Piece:
    """A small tensor of the network, by name, with the legs of its axes."""

    name: Name
    legs: tuple[Leg, ...]
    group: str | None = None  # of a trainable gate


def place(ansatz: Ansatz, dims: Sequence[int], side: Side) -> list[list[PlacedGate]]:
    """The layers of a circuit on the legs of an MPO.

    Wires and legs correspond in order once those of dimension 1 are left out on either side.

    Raises:
        InvalidInputError: if the dimensions do not correspond, or a gate has no wire of more than one dimension.
    """
    legs = [site for site, dim in enumerate(dims) if dim > 1]
    wires = [wire for wire, dim in enumerate(ansatz.wire_dims) if dim > 1]
    if [dims[site] for site in legs] != [ansatz.wire_dims[wire] for wire in wires]:
        raise InvalidInputError(
            f"The wires of the {side} circuit must be the {side} legs of the MPO, {tuple(dims)} (ones may be left "
            f"out); got wires of dimensions {ansatz.wire_dims}. Build the ansatz on those legs, or decompose the "
            "matrix on these wires."
        )
    site_of = dict(zip(wires, legs, strict=True))
    layers: list[list[PlacedGate]] = []
    number = 0
    for layer in ansatz.layers:
        layers.append([])
        for gate in layer:
            sites = tuple(site_of[wire] for wire in gate.wires if wire in site_of)
            if not sites:
                raise InvalidInputError(f"A gate acts on wires of dimension 1 only, {gate.wires}: leave it out.")
            layers[-1].append(PlacedGate(side, number, gate, sites, tuple(dims[site] for site in sites)))
            number += 1
    return layers


class Network:
    """Pieces, their order from left to right, and how large the boundary is in between.

    Args:
        out_dims: output legs of M, one a site.
        in_dims: input legs.
        target_bonds: inner bonds of M.
        core_bonds: inner bonds of the core.
        output: gates of the output circuit, layer 0 first.
        input: gates of the input circuit, layer 0 first.
    """

    def __init__(
        self,
        out_dims: Sequence[int],
        in_dims: Sequence[int],
        target_bonds: Sequence[int],
        core_bonds: Sequence[int],
        output: Sequence[PlacedGate],
        input: Sequence[PlacedGate],  # noqa: A002
    ) -> None:
        self.out_dims, self.in_dims = tuple(out_dims), tuple(in_dims)
        self.gates = [*reversed(output), *input]
        self.core_time = len(output)
        self._ranks: dict[Leg, int] = {}
        for time, bonds in ((-1, target_bonds), (self.core_time, core_bonds)):
            self._ranks |= {(time, 0, k - 1): bond for k, bond in enumerate([1, *bonds, 1])}
        self.factors: dict[Name, Tensor] = {}  # halves of fixed gates
        self.pieces = self._ordered(self._columns())

    @property
    def ends(self) -> tuple[tuple[Leg, Leg], tuple[Leg, Leg]]:
        """The bonds, of dimension 1, that leave the chains at the left and at the right."""
        last = len(self.out_dims) - 1
        return ((-1, 0, -1), (self.core_time, 0, -1)), ((-1, 0, last), (self.core_time, 0, last))

    def dim(self, leg: Leg) -> int:
        """Dimension of a leg."""
        time, kind, site = leg
        if kind == 0:
            return self._ranks[leg]
        return self.out_dims[site] if time < self.core_time else self.in_dims[site]

    @cached_property
    def boundary_sizes(self) -> list[int]:
        """Number of entries of the boundary after each piece."""
        sizes = []
        legs, size = set(self.ends[0]), 1
        for piece in self.pieces:
            gained, lost = self._gained_and_lost(piece, legs)
            size = size * gained // lost
            legs ^= set(piece.legs)
            sizes.append(size)
        return sizes

    def _columns(self) -> list[list[Piece]]:
        """What the vertical line of each site passes; a gate stands in the column of its first site."""
        columns: list[list[Piece]] = [[] for _ in self.out_dims]
        begins = [-1 for _ in self.out_dims]  # where the current segment of each line begins

        def pass_through(time: int, site: int) -> tuple[Leg, Leg]:
            legs = (begins[site], 1, site), (time, 1, site)
            begins[site] = time
            return legs

        for time in range(len(self.gates) + 1):
            if time == self.core_time:
                for site, column in enumerate(columns):
                    legs = (time, 0, site - 1), *pass_through(time, site), (time, 0, site)
                    column.append(Piece(("core", site), legs))
                continue
            gate = self.gates[time - (time > self.core_time)]
            crossed = [pass_through(time, site) for site in gate.sites]
            if gate.is_split:
                bond = time, 0, -1
                self._split(gate, bond)
                for half, (site, pair) in enumerate(zip(gate.sites, crossed, strict=True)):
                    columns[site].append(Piece((f"{gate.side} half {half}", gate.number), (*pair, bond)))
            else:
                rows_and_columns = (*(above for above, _ in crossed), *(below for _, below in crossed))
                group = gate.gate.name if gate.gate.is_trainable else None
                columns[min(gate.sites)].append(Piece(gate.name, rows_and_columns, group))
        for site, column in enumerate(columns):
            ends = (-1, 0, site - 1), (-1, 1, site), (begins[site], 1, site), (-1, 0, site)
            column.append(Piece(("target", site), ends))
        return columns

    def _split(self, gate: PlacedGate, bond: Leg) -> None:
        """A fixed gate between two sites as two tensors (row, column, bond): the bond of a CNOT is 2, not 4."""
        first, second = gate.dims
        matrix = fixed_gate(gate.gate.name, gate.dims).reshape(first, second, first, second).transpose(1, 2)
        u, s, vh = torch.linalg.svd(matrix.reshape(first * first, second * second), full_matrices=False)
        rank = int((s > 1e-12 * s[0]).sum())
        root = s[:rank].sqrt()
        self._ranks[bond] = rank
        self.factors[f"{gate.side} half 0", gate.number] = (u[:, :rank] * root).reshape(first, first, rank)
        self.factors[f"{gate.side} half 1", gate.number] = (vh[:rank].mT * root).reshape(second, second, rank)

    def _gained_and_lost(self, piece: Piece, legs: set[Leg]) -> tuple[int, int]:
        """Factors by which the boundary with these legs grows and shrinks when it absorbs a piece."""
        open_, closed = ([leg for leg in piece.legs if (leg in legs) == shared] for shared in (False, True))
        return prod(self.dim(leg) for leg in open_), prod(self.dim(leg) for leg in closed)

    def _ordered(self, columns: Sequence[Sequence[Piece]]) -> list[Piece]:
        """Column by column; within a column, next comes what leaves the smallest boundary."""
        order: list[Piece] = []
        legs = set(self.ends[0])
        for column in columns:
            waiting = list(column)
            while waiting:
                ratios = [gained / lost for gained, lost in (self._gained_and_lost(piece, legs) for piece in waiting)]
                piece = waiting[ratios.index(min(ratios))]
                waiting.remove(piece)
                legs ^= set(piece.legs)
                order.append(piece)
        return order
