"""Circuits of CNOT units around a core, as flat arrays: add a unit, remove one, improve many side by side.

Once every wire has a rotation R(t) = [[cos t, -sin t], [sin t, cos t]] behind each CNOT, which wire is the control does
not matter: CNOT = (1 x H) CZ (1 x H), CZ has no control, and H is a rotation times Z, which passes through CZ and turns
R(t) into R(-t) on its way to the core, which absorbs it. So any circuit of CNOTs and real one-body gates is a circuit
of units (CNOT on neighbouring wires, then a rotation on both) up to what the core absorbs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unbraid.circuits import Ansatz, Circuit
from unbraid.circuits.ansatz import Gate, Layer
from unbraid.disentangling.environments import core_shapes
from unbraid.tensors import MPO
from unbraid.tensors.legs import interleave

Array = NDArray[Any]

FIT_PASSES = 20  # over the core where circuits have no rotations
SAME = 1e-3  # overlaps of one placement that differ by less count as one optimum


@dataclass(frozen=True)
class Units:
    """Circuits and core of one run.

    Attributes:
        counts: units of the output and of the input circuit, shape (2,).
        codes: 2 * wire + orientation of each, next to the core first, shape (2, capacity).
        rotations: sum and difference of the two angles of each, shape (2, capacity, 2).
        core: flat, of norm 1.
        overlap: Eq. (2) with these.
    """

    counts: Array
    codes: Array
    rotations: Array
    core: Array
    overlap: float

    @property
    def total(self) -> int:
        """CNOTs of both circuits."""
        return int(self.counts.sum())

    def levels(self, side: int) -> list[int]:
        """The row in which each unit stands when every unit is as near to the core as it can be."""
        front: dict[int, int] = {}
        found = []
        for code in self.codes[side, : self.counts[side]]:
            wire = int(code) >> 1
            level = max(front.get(wire, 0), front.get(wire + 1, 0)) + 1
            front[wire] = front[wire + 1] = level
            found.append(level)
        return found

    def key(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """Names the placement: the same for orders that differ by units on different wires."""
        sides = (zip(self.levels(side), self.codes[side, : self.counts[side]].tolist(), strict=True) for side in (0, 1))
        return tuple(tuple(sorted(side)) for side in sides)

    def state(self) -> dict[str, Any]:
        """Tensors and numbers for a checkpoint."""
        arrays = {name: torch.from_numpy(value.copy()) for name, value in vars(self).items() if name != "overlap"}
        return {**arrays, "overlap": self.overlap}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Units:
        """The inverse of :meth:`state`."""
        counts, codes, rotations, core = (state[name].numpy() for name in ("counts", "codes", "rotations", "core"))
        return cls(counts, codes, rotations, core, float(state["overlap"]))


class UnitProblem:
    """M and the moves on circuits of units.

    Args:
        unit: M, real, of norm 1, float64.
        core_bond: bond dimension of the core.
        capacity: units a side at most.
        angles: whether units have rotations.
    """

    def __init__(self, unit: MPO, core_bond: int, capacity: int, angles: bool) -> None:
        from unbraid.disentangling import unit_kernels  # numba is loaded when it is used
        from unbraid.disentangling.environments.kernels import Chain

        self._kernels: Any = unit_kernels
        self.out_dims, self.in_dims = unit.out_dims, unit.in_dims
        self.capacity, self.angles = capacity, angles
        self.dense = unit.to_padded_dense().contiguous()
        self._target = self.dense.numpy().reshape(-1)
        legs = [o * i for o, i in zip(self.out_dims, self.in_dims, strict=True)]
        self.shapes = core_shapes(legs, core_bond)
        self._offsets = [0, *accumulate(prod(shape) for shape in self.shapes)]
        order = interleave(torch.arange(self.dense.numel()).reshape(self.dense.shape), self.out_dims, self.in_dims)
        self._chain = Chain(
            np.array(legs),
            np.array([1, *(shape[2] for shape in self.shapes)]),
            np.array(self._offsets),
            order.numpy().astype(np.int32),
        )
        self._wires = self._places()
        self.sweeps = 0  # done so far
        self._first_core = unit.compress(max_bond=core_bond)

    def _places(self) -> Any:
        rows, columns = self.dense.shape
        sites = len(self.out_dims)
        inner, firsts = np.zeros((2, sites), np.int64), np.zeros((2, sites + 1), np.int64)
        starts: list[int] = []
        for side, (dims, vectors) in enumerate(((self.out_dims, columns), (self.in_dims, rows))):
            for wire in range(sites):
                firsts[side, wire] = len(starts)
                if dims[wire : wire + 2] == (2, 2):
                    inner[side, wire] = prod(dims[wire + 2 :]) * vectors
                    starts += [block * 4 * int(inner[side, wire]) for block in range(prod(dims[:wire]))]
            firsts[side, sites] = len(starts)
        return self._kernels.Wires(rows, columns, inner, np.array(starts, np.int64), firsts)

    def wires(self, side: int) -> list[int]:
        """First wires of the places for a unit."""
        return [int(wire) for wire in np.flatnonzero(self._wires.inner[side])]

    def empty(self) -> Units:
        """No circuits: the best core alone."""
        cores = [torch.zeros(shape, dtype=torch.float64) for shape in self.shapes]
        for core, found in zip(cores, self._first_core.cores, strict=True):
            left, o, i, right = found.shape
            core[:left, :, :right] = found.reshape(left, o * i, right)
        flat = torch.cat([core.reshape(-1) for core in cores]).numpy()
        shape = (2, self.capacity)
        none = Units(np.zeros(2, np.int64), np.zeros(shape, np.int64), np.zeros((*shape, 2)), flat, 0.0)
        return replace(none, overlap=self._fitted(none))

    def add(self, units: Units, side: int, position: int, code: int, after: Array, before: Array) -> Units:
        """One more unit, outside of ``position`` others; the rotations before it go to the units inside of it."""
        counts, codes, rotations = units.counts.copy(), units.codes.copy(), units.rotations.copy()
        counts[side] += 1
        codes[side] = np.insert(codes[side], position, code)[:-1]
        rotations[side] = np.insert(rotations[side], position, after, axis=0)[:-1]
        more = Units(counts, codes, rotations, units.core.copy(), units.overlap)
        self._turn_inside(more, side, position, code >> 1, before)
        return more

    def remove(self, units: Units, side: int, position: int, left: Array) -> Units:
        """One unit less; the rotations ``left`` in its place go to the units inside of it."""
        counts, codes, rotations = units.counts.copy(), units.codes.copy(), units.rotations.copy()
        counts[side] -= 1
        codes[side] = np.append(np.delete(codes[side], position), 0)
        rotations[side] = np.append(np.delete(rotations[side], position, axis=0), np.zeros((1, 2)), axis=0)
        fewer = Units(counts, codes, rotations, units.core.copy(), units.overlap)
        self._turn_inside(fewer, side, position, int(units.codes[side, position]) >> 1, left)
        return fewer

    def _turn_inside(self, units: Units, side: int, position: int, wire: int, rotations: Array) -> None:
        """Merge a rotation of two wires into the units inside of a position, or into the core; in place."""
        angles = float(rotations[0] + rotations[1]) / 2, float(rotations[0] - rotations[1]) / 2
        for turned, angle in zip((wire, wire + 1), angles, strict=True):
            for k in range(position - 1, -1, -1):
                first = int(units.codes[side, k]) >> 1
                if turned in (first, first + 1):
                    units.rotations[side, k] += angle * np.array([1.0, 1.0 if turned == first else -1.0])
                    break
            else:
                core = units.core[self._offsets[turned] : self._offsets[turned + 1]]
                left, _, right = self.shapes[turned]
                legs = core.reshape(left, self.out_dims[turned], self.in_dims[turned], right)
                legs[:] = np.einsum("ab,lbir->lair" if side == 0 else "ab,lobr->loar", _rotation(angle), legs)

    def additions(self, units: Units, largest: int) -> list[tuple[float, Units]]:
        """All circuits with one more unit, no side above ``largest``, with their overlap before any sweep, best first.

        Of positions that differ by units on other wires the innermost stands for all.
        """
        found = []
        for side in (0, 1):
            if units.counts[side] >= largest:
                continue
            values = np.full((self.capacity + 1, 2 * len(self.out_dims)), -np.inf)
            trials = np.zeros((*values.shape, 2, 2))
            self._kernels.additions(self._target, *self._arrays(units), side, self.angles, values, trials)
            for position, code in np.argwhere(np.isfinite(values)).tolist():
                inside = int(units.codes[side, position - 1])
                if position == 0 or abs((inside >> 1) - (code >> 1)) <= 1:
                    found.append((float(values[position, code]), side, position, code, trials[position, code]))
        found.sort(key=lambda each: -each[0])
        return [(value, self.add(units, side, k, code, *trial)) for value, side, k, code, trial in found]

    def removals(self, units: Units, largest: int) -> list[tuple[float, Units]]:
        """All circuits with one unit less, no side above ``largest``, with the overlap before any sweep, best first."""
        found = []
        for side in (0, 1):
            if units.counts[1 - side] > largest or not 0 < units.counts[side] <= largest + 1:
                continue
            values, trials = np.zeros(self.capacity), np.zeros((self.capacity, 2))
            self._kernels.removals(self._target, *self._arrays(units), side, self.angles, values, trials)
            found += [(float(values[k]), side, k, trials[k]) for k in range(int(units.counts[side]))]
        found.sort(key=lambda each: -each[0])
        return [(value, self.remove(units, side, k, left)) for value, side, k, left in found]

    def improve(self, chosen: Sequence[Units], sweeps: int, tolerance: float = 0.0) -> list[Units]:
        """Sweeps with momentum of each; without rotations the core is fitted, and ``sweeps`` does not matter."""
        if not chosen:
            return []
        if not self.angles:
            self.sweeps += len(chosen)
            copies = [replace(units, core=units.core.copy()) for units in chosen]
            return [replace(units, overlap=self._fitted(units)) for units in copies]
        counts, codes, rotations, cores = (
            np.stack([getattr(units, name) for units in chosen]) for name in ("counts", "codes", "rotations", "core")
        )
        overlaps = np.zeros(len(chosen))
        self.sweeps += self._kernels.improve(
            self._target, counts, codes, rotations, cores, self._wires, self._chain, sweeps, tolerance, overlaps
        )
        return [Units(*parts) for parts in zip(counts, codes, rotations, cores, overlaps.tolist(), strict=True)]

    def _fitted(self, units: Units) -> float:
        """The overlap after a fit of the core, in place."""
        return float(self._kernels.fit_core(self._target, *self._arrays(units), FIT_PASSES))

    def _arrays(self, units: Units) -> tuple[Any, ...]:
        return units.counts, units.codes, units.rotations, units.core, self._wires, self._chain

    def core(self, units: Units) -> list[Tensor]:
        """The core's tensors, shapes (left, out, in, right), of norm 1."""
        legs = zip(self.shapes, self.out_dims, self.in_dims, strict=True)
        return [
            torch.from_numpy(units.core[a:b].copy()).reshape(shape[0], o, i, shape[2])
            for (shape, o, i), a, b in zip(legs, self._offsets, self._offsets[1:], strict=False)
        ]

    def circuit(self, units: Units, side: int) -> Circuit:
        """The circuit of a side in float64: rows of CNOTs, next to the core first, each followed by its rotations."""
        levels = units.levels(side)
        layers: list[Layer] = []
        matrices: list[Tensor] = []
        for level in range(1, max(levels, default=0) + 1):
            cnots, turns = [], []
            for k in (k for k, found in enumerate(levels) if found == level):
                wire, flipped = divmod(int(units.codes[side, k]), 2)
                cnots.append(Gate("cnot", (wire + 1, wire) if flipped else (wire, wire + 1)))
                total, difference = units.rotations[side, k].tolist()
                for turned, angle in ((wire, (total + difference) / 2), (wire + 1, (total - difference) / 2)):
                    turns.append(Gate("so", (turned,)))
                    matrices.append(torch.from_numpy(_rotation(angle if side == 0 else -angle)))
            layers += [tuple(cnots), tuple(turns)] if self.angles else [tuple(cnots)]
        dims = (self.out_dims, self.in_dims)[side]
        circuit = Circuit(Ansatz(tuple(dims), tuple(layers)), "identity", mirrored=side == 1, dtype=torch.float64)
        circuit.set_gates(matrices if self.angles else [])
        return circuit


def distinct(found: Sequence[Units], width: int) -> list[Units]:
    """The best few, of which no two are the same placement with the same overlap."""
    kept: list[Units] = []
    keys: list[Any] = []
    for units in sorted(found, key=lambda units: -units.overlap):
        key = units.key()
        if not any(key == k and abs(units.overlap - o.overlap) < SAME for k, o in zip(keys, kept, strict=True)):
            kept.append(units)
            keys.append(key)
        if len(kept) == width:
            break
    return kept


def _rotation(angle: float) -> Array:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
