"""What the optimisation works on and what it asks of an engine.

Legend: R runs are optimised side by side. A run's gates of one circuit lie flat in one row, gate 0 (next to the core)
first; those of the input circuit transposed, as they act on the rows of M^T. So both circuits act from the core
outwards on rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import prod
from typing import Protocol

import torch
from torch import Tensor

from unbraid.circuits import Ansatz
from unbraid.circuits.gates import polar


@dataclass(frozen=True)
class Gates:
    """Gates and core of one run.

    Attributes:
        output: matrices of the output circuit's gates, layer 0 first, fixed gates included.
        input: matrices of the input circuit's gates as they act on columns, layer 0 first.
        core: chain of the core, three-leg cores (left, out * in, right), of norm 1.
        overlap: Eq. (2) with these.
    """

    output: list[Tensor]
    input: list[Tensor]
    core: list[Tensor]
    overlap: float


@dataclass(frozen=True)
class State:
    """Gates and cores of R runs, flat.

    Attributes:
        output: shape (R, sum of d^2 over the output circuit's gates).
        inward: the same of the input circuit, each gate transposed.
        core: shape (R, entries of the core).
        overlap: Eq. (2) of each run, shape (R,), float64, on the CPU.
    """

    output: Tensor
    inward: Tensor
    core: Tensor
    overlap: Tensor

    def take(self, runs: Sequence[int] | Tensor) -> State:
        """Copies of some runs."""
        rows = torch.as_tensor(runs, dtype=torch.long)
        picked = (tensor[rows.to(tensor.device)] for tensor in (self.output, self.inward, self.core, self.overlap))
        return State(*picked)

    def put(self, runs: Sequence[int] | Tensor, others: State) -> State:
        """The same with some runs replaced."""
        rows = torch.as_tensor(runs, dtype=torch.long)
        return State(
            *(
                mine.index_copy(0, rows.to(mine.device), theirs)
                for mine, theirs in zip(vars(self).values(), vars(others).values(), strict=True)
            )
        )

    def to(self, device: torch.device) -> State:
        """The same on another device."""
        return replace(self, output=self.output.to(device), inward=self.inward.to(device), core=self.core.to(device))


def stack(states: Sequence[State]) -> State:
    """Runs side by side."""
    return State(*(torch.cat(column) for column in zip(*(vars(state).values() for state in states), strict=True)))


class Layout:
    """Where each gate of a circuit lies in a row, and which gates may change.

    Attributes:
        ansatz: the circuit.
        dims: dimension of each gate.
        offsets: where each begins; the last is the length of a row.
    """

    def __init__(self, ansatz: Ansatz) -> None:
        self.ansatz = ansatz
        self.dims = [prod(ansatz.gate_dims(gate)) for gate in ansatz.gates()]
        self.offsets = [0, *accumulate(d * d for d in self.dims)]
        groups: dict[tuple[str, int], list[int]] = {}
        for k, gate in enumerate(ansatz.gates()):
            if gate.is_trainable:
                groups.setdefault((gate.name, self.dims[k]), []).append(k)
        self.groups = groups

    def split(self, row: Tensor) -> list[Tensor]:
        """The matrices in a row; views."""
        return [row[a : a + d * d].view(d, d) for a, d in zip(self.offsets, self.dims, strict=False)]

    def join(self, matrices: Sequence[Tensor], like: Tensor) -> Tensor:
        """The inverse of :meth:`split`, in the dtype and on the device of ``like``."""
        return torch.cat([like.new_empty(0), *(matrix.reshape(-1).to(like) for matrix in matrices)])

    def gather(self, rows: Tensor, group: tuple[str, int]) -> Tensor:
        """Gates of one group and dimension, shape (R, gates, d, d)."""
        d = group[1]
        return torch.stack([rows[:, self.offsets[k] : self.offsets[k + 1]] for k in self.groups[group]], 1).unflatten(
            -1, (d, d)
        )

    def scatter(self, rows: Tensor, group: tuple[str, int], gates: Tensor) -> None:
        """The inverse of :meth:`gather`, in place."""
        for position, k in enumerate(self.groups[group]):
            rows[:, self.offsets[k] : self.offsets[k + 1]] = gates[:, position].flatten(1)


class Engine(Protocol):
    """Environments and updates for runs side by side.

    Attributes:
        name: "dense" or "mpo".
        plan: what it does and why, for people.
        output: layout of the output circuit.
        inward: layout of the input circuit.
    """

    name: str
    plan: str
    output: Layout
    inward: Layout

    def start(self, output: Sequence[Tensor], inward: Sequence[Tensor], core: Sequence[Tensor] | None) -> State:
        """One run from matrices, the input circuit's as they act on columns; without a core, from a truncation."""
        ...

    def sweep(self, state: State) -> State:
        """Update every gate there and back, then a joint core; no overlap decreases."""
        ...

    def extrapolate(self, before: State, after: State, momentum: Tensor) -> State:
        """``after`` moved on by ``momentum`` times the change from ``before``, gates made orthogonal again."""
        ...

    def gradient(self, state: State) -> tuple[State, Tensor, Tensor]:
        """The state with its overlap and a joint core fitted to it, and the Riemannian gradients of both circuits.

        The gradient of a gate g with environment E is the antisymmetric part of g^T E: the derivative along g exp(A).
        """
        ...

    def retract(self, state: State, output: Tensor, inward: Tensor, step: float) -> State:
        """Gates polar(g + step g A) for antisymmetric directions A; overlaps are those before."""
        ...

    def gates(self, state: State, run: int) -> Gates:
        """The matrices of one run."""
        ...

    def entropies(self, state: State, run: int) -> Tensor:
        """Bond entropies of O^dagger M I^dagger of one run, in nats, shape (bonds,)."""
        ...

    def overlap_error(self, state: State, run: int) -> float:
        """Upper bound on the error of the overlap of one run; 0 where nothing is truncated."""
        ...


def extrapolate(layout: Layout, before: Tensor, after: Tensor, momentum: Tensor) -> Tensor:
    """Rows of gates moved on along their last change; shape (R, row)."""
    moved = after.clone()
    for group in layout.groups:
        old, new = layout.gather(before, group), layout.gather(after, group)
        ahead = new + momentum.to(new)[:, None, None, None] * (new - old)
        layout.scatter(moved, group, polar(ahead, group[0]))
    return moved


def riemannian(layout: Layout, gates: Tensor, environments: Tensor) -> Tensor:
    """Antisymmetric parts of g^dagger E for rows of gates and environments; zero for fixed gates."""
    found = torch.zeros_like(gates)
    for group in layout.groups:
        product = layout.gather(gates, group).mH @ layout.gather(environments, group)
        if group[0] != "u":
            product = product.real.to(product.dtype)
        layout.scatter(found, group, (product - product.mH) / 2)
    return found


def retract(layout: Layout, gates: Tensor, direction: Tensor, step: float) -> Tensor:
    """Rows of polar(g + step g A)."""
    moved = gates.clone()
    for group in layout.groups:
        g = layout.gather(gates, group)
        layout.scatter(moved, group, polar(g + step * (g @ layout.gather(direction, group)), group[0]))
    return moved
