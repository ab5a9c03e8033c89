"""``weight_verdict``: whether circuits pay for one weight, counted in parameters at an equal budget.

N* is the smallest plain MPO that meets the budget, M* the smallest core plus circuits. Both sides are cut by the same
routine: whatever the circuits, the core is the MPO of ``O^T W I^T`` that meets the budget with each bond lowered as far
as it goes, so that an empty circuit gives exactly the plain MPO. Circuits are optimised jointly with cores of several
uniform bonds; a bond that is too small is no failure, since its circuits may leave the smallest core of all.

A gate acts on few wires. Across a cut of the chain it multiplies the rank by at most the square of the smaller part of
its dimension, so the rank that the budget needs there, divided by these factors, bounds the core's bond from below,
whatever the gates. Circuits that by it, in whole bonds, could improve neither M* nor the price are not searched.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from math import prod
from typing import Any

import torch
from torch import Tensor

from unbraid.circuits import Ansatz, Circuit, brickwall
from unbraid.circuits.gates import num_generators
from unbraid.disentangling.objective import LARGEST_DENSE
from unbraid.disentangling.result import Disentangled
from unbraid.disentangling.search import as_circuit, disentangle
from unbraid.ground import progress
from unbraid.ground.errors import InvalidInputError, require_finite
from unbraid.ground.files import make_directory, problem_hash, read_checkpoint, write_checkpoint
from unbraid.ground.manifest import hash_tensors
from unbraid.tensors import MPO
from unbraid.tensors.legs import interleave
from unbraid.tensors.sites import auto_sites, qubit_sites, qubits_for

Operator = MPO | Disentangled
Judge = Callable[[Operator], float]  # what the budget limits; the exact weight has 0
Trials = tuple[tuple[int, float], ...]

LADDER = (0.9, 0.7, 0.5, 0.3, 0.15)  # bonds that circuits are optimised for, as shares of the smallest so far
CURVE = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # relative errors along a curve
TRIALS = 7  # relative errors tried for one core where the budget is not that error itself
FIRST_ERROR = 0.3
SLOW, SLOW_ANEW = 5e-5, 1e-5  # a run ends once its sweeps gain less than this, those around shallower circuits sooner
PATIENCE = 10  # sweeps over which that is averaged


@dataclass(frozen=True)
class Candidate:
    """One way to write the weight within the budget: a chain alone, or a core between circuits.

    Attributes:
        kind: "plain", "low rank", "dense" or "circuits".
        out_dims: output legs of the chain's sites.
        in_dims: its input legs.
        bond_dims: of the chain; of a candidate that was ruled out, the least they could be.
        classical: entries of the chain, of a candidate that was ruled out at least so many.
        gauge: of these, how many change nothing: the square of each bond.
        at_budget: entries that would meet the budget exactly, between this chain and the next smaller one that was
            judged, linear in the squared error, or in the loss: else a bond more or less would decide a price.
        body: wires a gate; 0 without circuits.
        depth: layers of the brickwall a side.
        parity: 0 or 1, where the layer next to the core begins.
        circuit: parameters of the gates, d(d-1)/2 of SO(d). Gates that the core could take up are not there.
        circuit_gauge: of these, how many change nothing: rotations that pass from a gate to the one before it, or to
            the core.
        cnots: of both circuits.
        padding: share of the padded matrix that is no entry of the weight.
        error: relative Frobenius error of the weight, without the padding.
        value: what the budget limits: ``error``, or the growth of the loss.
        ruled_out: whether a bound made the search needless; then ``error`` and ``value`` are None.
        trials: (entries of the chain, value) of every chain that was judged.
        operator: the chain, or circuits and core; None if ruled out.
    """

    kind: str
    out_dims: tuple[int, ...]
    in_dims: tuple[int, ...]
    bond_dims: tuple[int, ...]
    classical: int
    gauge: int
    at_budget: float
    body: int = 0
    depth: int = 0
    parity: int = 0
    circuit: int = 0
    circuit_gauge: int = 0
    cnots: int = 0
    padding: float = 0.0
    error: float | None = None
    value: float | None = None
    ruled_out: bool = False
    trials: Trials = field(default=(), repr=False)
    operator: Operator | None = field(default=None, repr=False, compare=False)

    @property
    def total(self) -> int:
        """Entries and circuit parameters, each counted as one."""
        return self.classical + self.circuit

    @property
    def free(self) -> tuple[float, int]:
        """Classical (at the budget) and circuit parameters without those that change nothing."""
        return self.at_budget - self.gauge, self.circuit - self.circuit_gauge

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; the operator is left out."""
        content = {name: value for name, value in vars(self).items() if name != "operator"}
        return content | {name: list(content[name]) for name in ("out_dims", "in_dims", "bond_dims")}

    @property
    def sites(self) -> str:
        """The legs in words, such as ``8x8 8x8``."""
        legs = [f"{o}x{i}" for o, i in zip(self.out_dims, self.in_dims, strict=True)]
        return " ".join(legs) if len(set(legs)) > 1 or len(legs) < 4 else f"{len(legs)} of {legs[0]}"


@dataclass(frozen=True)
class Verdict:
    """Whether circuits pay for one weight.

    A circuit parameter has a price p in classical ones. A core of C entries between circuits of Q parameters then costs
    C + p Q, and pays against N entries if p is below (N - C) / Q; the break-even price is the largest of these over all
    circuits found. N and C are taken at the budget exactly, see :attr:`Candidate.at_budget`.

    Attributes:
        name: of the layer.
        shape: (out, in).
        budget: what is allowed.
        budget_kind: "weight error" (relative, Frobenius) or "loss" (its growth).
        plain: the smallest plain MPO; N* is its ``classical``.
        low_rank: the smallest pair of dense factors.
        best: the smallest core plus circuits at price 1; M* is its ``total``.
        candidates: all that was tried, the plain ones first.
        curves: "plain MPO", "low rank", "core", "core and circuits" (those of ``best``) to (parameters, value) pairs,
            by rising value.
    """

    name: str
    shape: tuple[int, int]
    budget: float
    budget_kind: str
    plain: Candidate
    low_rank: Candidate
    best: Candidate
    candidates: tuple[Candidate, ...] = field(repr=False)
    curves: Mapping[str, Sequence[tuple[int, float]]] = field(repr=False)

    @property
    def dense(self) -> int:
        """Entries of the weight."""
        return prod(self.shape)

    @property
    def circuits(self) -> list[Candidate]:
        """The candidates with circuits that were searched."""
        return [each for each in self.candidates if each.kind == "circuits" and not each.ruled_out]

    @property
    def break_even(self) -> float:
        """Below this price of a circuit parameter, circuits pay against the smallest plain MPO; at most 0: never."""
        return self._price(self.cheapest, ("plain",))

    @property
    def break_even_classical(self) -> float:
        """The same against the smallest of plain MPO, low rank and the dense weight."""
        return max(self._price(each, ("plain", "low rank", "dense")) for each in self.circuits)

    @property
    def break_even_free(self) -> float:
        """As :attr:`break_even`, with parameters that change nothing counted on neither side."""
        least = min(each.free[0] for each in self.candidates if each.kind == "plain")
        return max((least - classical) / circuit for classical, circuit in (each.free for each in self.circuits))

    @property
    def cheapest(self) -> Candidate:
        """The circuits that reach the break-even price."""
        return max(self.circuits, key=lambda each: self._price(each, ("plain",)))

    @property
    def smallest_classical(self) -> int:
        """Entries of the smallest of plain MPO, low rank and the dense weight."""
        return min(self.plain.classical, self.low_rank.classical, self.dense)

    def cost(self, price: float) -> float:
        """The least of core entries + price x circuit parameters, over all circuits found."""
        return min(each.classical + price * each.circuit for each in self.circuits)

    def _price(self, candidate: Candidate, rivals: Sequence[str]) -> float:
        least = min(each.at_budget for each in self.candidates if each.kind in rivals)
        return (least - candidate.at_budget) / candidate.circuit

    @property
    def paragraph(self) -> str:
        """The verdict in words."""
        what = f"{_percent(self.budget)} of weight error" if self.budget_kind == "weight error" else ""
        what = what or f"a loss that grows by at most {self.budget:.3g}"
        plain, best, cheapest, price = self.plain, self.best, self.cheapest, self.break_even
        change = best.total / plain.classical - 1
        size = f"{_percent(abs(change))} {'fewer' if change < 0 else 'more'} than the plain MPO has"
        opening = (
            f"{self.name or 'The weight'} ({self.shape[0]} x {self.shape[1]}), at {what}: the smallest plain MPO has "
            f"{plain.classical:,} entries (sites {plain.sites}, bond {max(plain.bond_dims)}), a pair of low-rank "
            f"factors {self.low_rank.classical:,}, the dense weight {self.dense:,}. The smallest core with circuits "
            f"has {best.total:,} parameters: {best.classical:,} entries (sites {best.sites}, bond "
            f"{max(best.bond_dims, default=1)}) and {best.circuit:,} of circuits (body {best.body}, depth "
            f"{best.depth}, {best.cnots:,} CNOTs), {size}."
        )
        said = [opening]
        same = (cheapest.body, cheapest.depth) == (best.body, best.depth)
        where = "" if same else f" (body {cheapest.body}, depth {cheapest.depth})"
        if price <= 0:
            said.append("Circuits do not pay here: even if their parameters were free, no core found is smaller.")
        elif price <= 1:
            said.append(
                f"Circuits do not pay here at an equal price: a circuit parameter saves {price:.2g} entries at "
                f"best{where}, and would have to cost less than that."
            )
        elif best.total < plain.classical:
            said.append(
                f"Circuits pay here against a plain MPO: a circuit parameter saves up to {price:.2g} entries{where}, "
                "and may cost as much."
            )
        else:
            said.append(
                f"Circuits would pay here if bonds could be fractions: a circuit parameter then saves up to "
                f"{price:.2g} entries{where}. Between whole bonds they do not."
            )
        if price > 0 and self.smallest_classical < plain.classical:
            rival = "low-rank factors are" if self.low_rank.classical <= self.dense else "the dense weight is"
            against = self.break_even_classical
            outcome = "circuits never pay" if against <= 0 else f"the price is {against:.2g}"
            said.append(f"But {rival} smaller than the MPO: against the smallest of all three, {outcome}.")
        if price > 0:
            free = self.break_even_free
            outcome = "circuits never pay" if free <= 0 else f"the price is {free:.2g}"
            said.append(f"Counted without parameters that change nothing, {outcome}.")
        if best.padding:
            padded = min(
                (each.classical for each in self.candidates if each.kind == "plain" and each.padding == best.padding),
                default=plain.classical,
            )
            said.append(
                f"Circuits act on {prod(best.out_dims)} x {prod(best.in_dims)}, {_percent(best.padding)} of it padding;"
                f" a plain MPO of that size takes {padded:,} entries."
            )
        ruled_out = sum(each.ruled_out for each in self.candidates)
        if ruled_out:
            said.append(
                f"{ruled_out} of {ruled_out + len(self.circuits)} circuits were ruled out by their light cones."
            )
        return " ".join(said)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, what is derived included."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "budget": self.budget,
            "budget_kind": self.budget_kind,
            "plain": self.plain.classical,
            "low_rank": self.low_rank.classical,
            "dense": self.dense,
            "with_circuits": self.best.total,
            "best": self.best.to_dict(),
            "cheapest": self.cheapest.to_dict(),
            "break_even": self.break_even,
            "break_even_classical": self.break_even_classical,
            "break_even_free": self.break_even_free,
            "paragraph": self.paragraph,
            "candidates": [each.to_dict() for each in self.candidates],
            "curves": {name: [list(point) for point in points] for name, points in self.curves.items()},
        }


def weight_verdict(
    weight: Tensor | MPO,
    *,
    budget: float,
    judge: Judge | None = None,
    name: str = "",
    bodies: Iterable[int] = (2, 3),
    max_depth: int = 3,
    restarts: int = 3,
    max_sweeps: int = 100,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    judged_by: str = "",
) -> Verdict:
    """The smallest plain MPO and the smallest core plus circuits of one weight, and the break-even price.

    Chains are tried on one qubit a site, on half as many sites and on two, and on legs without padding; cores between
    circuits on the same, padded to powers of two. Circuits are brickwalls of SO gates on neighbouring qubits, the same
    on both sides, of either parity.

    Args:
        weight: real, shape (out, in), up to 4096 rows and columns.
        budget: allowed relative Frobenius error, above 0 and below 1; with ``judge``, allowed value of that.
        judge: called with an :class:`MPO` or a :class:`Disentangled`; returns what the budget limits, such as the
            growth of a loss.
        name: for the reader.
        bodies: wires a gate, each 2 to 6.
        max_depth: largest number of layers a side.
        restarts: runs side by side where circuits start anew.
        max_sweeps: at most so many a run.
        seed: of all starts.
        checkpoint: a folder that keeps what is done; the same call goes on from there.
        judged_by: a hash of what ``judge`` depends on, for the checkpoint.

    Raises:
        InvalidInputError: if the weight is complex, zero, not finite, smaller than 2 x 4 or too large, or an argument
            is out of range.
    """
    matrix = _checked(weight)
    bodies = sorted(set(bodies))
    _check(budget, judge, bodies, {"max_depth": max_depth, "restarts": restarts, "max_sweeps": max_sweeps})
    problem = problem_hash(
        [hash_tensors(matrix), float(budget), judged_by, bodies, max_depth, restarts, max_sweeps, seed]
    )
    store = _Store(checkpoint, problem)
    search = _Search(matrix, float(budget), judge, restarts, max_sweeps, seed, store)
    rows, columns = matrix.shape
    factors, whole = _Layout((rows, 1), (1, columns)), _Layout((rows,), (columns,))
    chains = _chains(rows, columns)
    cores = [each for each in chains if each.padded == (2 ** qubits_for(rows), 2 ** qubits_for(columns))]
    depths = range(1, max_depth + 1)
    ways = [(layout, body, parity) for layout in cores for body in bodies for parity in (0, 1)]
    found: list[Candidate] = []
    with progress.task(f"verdict {name}".strip(), len(chains) + 2 + len(ways) * max_depth) as advance:
        for kind, layout in (*(("plain", each) for each in chains), ("low rank", factors)):
            found.append(search.chain(kind, layout))
            advance(note=f"{kind} {found[-1].classical:,}")
        found.append(search.exact(whole))
        advance()
        plain = {(each.out_dims, each.in_dims): each for each in found}
        last: dict[int, Candidate] = {}  # by way: what its next depth grows from
        known: dict[tuple[_Layout, _Side, _Side], Candidate] = {}
        for depth in depths:
            for number, (layout, body, parity) in enumerate(ways):
                before = last.get(number, plain[layout.out_dims, layout.in_dims])
                sides = _sides(layout, depth, body, parity)
                if (layout, *sides) not in known and any(side.parameters for side in sides):
                    found.append(search.circuits(layout, sides, (body, depth, parity), before, found))
                    known[layout, *sides] = found[-1]
                candidate = known.get((layout, *sides), before)
                last[number] = before if candidate.ruled_out else candidate
                advance(note=f"body {body}, depth {depth}: {candidate.total:,}")
    return _verdict(name, search, found)


@dataclass(frozen=True)
class _Layout:
    """The legs of a chain."""

    out_dims: tuple[int, ...]
    in_dims: tuple[int, ...]

    @property
    def padded(self) -> tuple[int, int]:
        return prod(self.out_dims), prod(self.in_dims)

    @cached_property
    def legs(self) -> list[int]:
        return [o * i for o, i in zip(self.out_dims, self.in_dims, strict=True)]

    @property
    def key(self) -> str:
        return "_".join(f"{o}x{i}" for o, i in zip(self.out_dims, self.in_dims, strict=True))

    def entries(self, bonds: Sequence[int]) -> int:
        return sum(left * leg * right for left, leg, right in zip([1, *bonds], self.legs, [*bonds, 1], strict=True))


def _chains(rows: int, columns: int) -> list[_Layout]:
    """Chains of one qubit a site and of legs for speed, and of neighbouring sites of either taken together."""
    found: dict[_Layout, None] = {}
    for outs, ins in (qubit_sites(rows, columns), auto_sites(rows, columns)):
        for count in (len(outs), (len(outs) + 1) // 2, 2):
            if 2 <= count <= len(outs):
                found[_Layout(_merged(outs, count), _merged(ins, count))] = None
    return list(found)


def _merged(dims: Sequence[int], count: int) -> tuple[int, ...]:
    edges = [len(dims) * k // count for k in range(count + 1)]
    return tuple(prod(dims[start:stop]) for start, stop in pairwise(edges))


@dataclass(frozen=True)
class _Side:
    """The circuit of one side: its gates, how many of their parameters change nothing, its cuts."""

    ansatz: Ansatz
    gauge: int
    cuts: tuple[int, ...]  # wires before each bond of the core

    @classmethod
    def of(cls, dims: Sequence[int], depth: int, body: int, parity: int) -> _Side:
        """A brickwall on qubits without the gates that a core of these legs, or an earlier gate, could take up."""
        sizes = [qubits_for(dim) for dim in dims]
        wires = sum(sizes)
        whole = brickwall(wires, depth, min(body, wires), parity=parity)
        # What each wire met last. A gate can pass a rotation of wires with one such predecessor on to it.
        met: list[object] = [site for site, size in enumerate(sizes) for _ in range(size)]
        layers, gauge = [], 0
        for layer in whole.layers:
            kept = []
            for gate in layer:
                shared = Counter(met[wire] for wire in gate.wires).values()
                passed = sum(num_generators("so", 2**count) for count in shared)
                if passed == num_generators("so", 2 ** len(gate.wires)):
                    continue
                gauge += passed
                kept.append(gate)
                mark = object()
                for wire in gate.wires:
                    met[wire] = mark
            layers += [tuple(kept)] if kept else []
        cuts = tuple(sum(sizes[: k + 1]) for k in range(len(sizes) - 1))
        return cls(Ansatz(whole.wire_dims, tuple(layers)), gauge, cuts)

    @property
    def parameters(self) -> int:
        return sum(num_generators("so", 2 ** len(gate.wires)) for gate in self.ansatz.gates())

    def reach(self, bond: int) -> int:
        """The factor by which the gates can multiply the rank across a bond of the core."""
        cut = self.cuts[bond]
        across = (gate.wires for gate in self.ansatz.gates() if gate.wires[0] < cut <= gate.wires[-1])
        return prod(4 ** min(cut - wires[0], wires[-1] + 1 - cut) for wires in across)


def _sides(layout: _Layout, depth: int, body: int, parity: int) -> tuple[_Side, _Side]:
    output, inward = (_Side.of(dims, depth, body, parity) for dims in (layout.out_dims, layout.in_dims))
    return output, inward


@dataclass(frozen=True)
class _Fit:
    """The smallest chain within the budget, and what was found on the way to it."""

    chain: MPO
    value: float
    at_budget: float
    trials: Trials

    @property
    def figures(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"value": self.value, "at_budget": self.at_budget, "trials": self.trials}


@dataclass
class _Search:
    """The weight, in float64, and how its candidates are found."""

    matrix: Tensor
    budget: float
    judge: Judge | None
    restarts: int
    max_sweeps: int
    seed: int
    store: _Store
    needs: dict[_Layout, list[int]] = field(default_factory=dict)

    @cached_property
    def norm(self) -> float:
        return float(torch.linalg.vector_norm(self.matrix))

    def error(self, operator: Operator) -> float:
        """Relative, of the weight without padding."""
        return float(torch.dist(operator.to_dense(), self.matrix)) / self.norm

    def padded(self, layout: _Layout) -> Tensor:
        rows, columns = self.matrix.shape
        return torch.nn.functional.pad(self.matrix, (0, layout.padded[1] - columns, 0, layout.padded[0] - rows))

    def padding(self, layout: _Layout) -> float:
        return 1 - self.matrix.numel() / prod(layout.padded)

    def exact(self, layout: _Layout) -> Candidate:
        """The dense weight."""
        chain = MPO.from_dense(self.matrix, layout.out_dims, layout.in_dims)
        return self._chain_of("dense", chain, 0.0, chain.num_parameters)

    def chain(self, kind: str, layout: _Layout) -> Candidate:
        """The smallest chain of these legs within the budget."""
        key = f"{kind} {layout.key}"
        saved = self.store.load(key)
        if saved is None:
            fit = self.smallest(self.padded(layout), layout, lambda chain: chain, FIRST_ERROR)
            saved = {"cores": list(fit.chain.cores), **fit.figures}
            self.store.save(key, saved)
        chain = MPO(saved["cores"], shape=self._shape)
        return self._chain_of(kind, chain, saved["value"], saved["at_budget"], saved["trials"])

    def _chain_of(self, kind: str, chain: MPO, value: float, at_budget: float, trials: Trials = ()) -> Candidate:
        return Candidate(
            kind,
            chain.out_dims,
            chain.in_dims,
            chain.bond_dims,
            chain.num_parameters,
            sum(bond**2 for bond in chain.bond_dims),
            at_budget,
            padding=self.padding(_Layout(chain.out_dims, chain.in_dims)),
            error=self.error(chain),
            value=value,
            trials=trials,
            operator=chain,
        )

    @property
    def _shape(self) -> tuple[int, int]:
        return self.matrix.shape[0], self.matrix.shape[1]

    def smallest(self, target: Tensor, layout: _Layout, operator: Callable[[MPO], Operator], first: float) -> _Fit:
        """The smallest chain for a padded matrix whose operator meets the budget.

        Args:
            target: O^T W I^T, or W itself.
            layout: of the chain.
            operator: from the chain to what is judged.
            first: relative error to begin with, where the budget is no such error.
        """
        by_error = self.judge is None
        value_of: Judge = self.error if self.judge is None else self.judge
        rel_error, good, bad = (self.budget if by_error else first), 0.0, 1.0
        best: tuple[MPO, float] | None = None
        trials: list[tuple[int, float]] = []

        def tried(chain: MPO) -> bool:
            nonlocal best
            value = value_of(operator(chain))
            if not math.isfinite(value):
                raise InvalidInputError(f"What the budget limits must be a finite number; got {value}.")
            trials.append((chain.num_parameters, value))
            meets = value <= self.budget * (1 + 1e-9)
            if best is None or (meets and chain.num_parameters < best[0].num_parameters):
                best = chain, value
            return meets

        tried(self._cut(target, layout))
        # A padded matrix may err more: what falls into the padding does not count.
        for _ in range(1 if by_error and not self.padding(layout) else TRIALS):
            if tried(self._cut(target, layout, rel_error=rel_error)):
                good = rel_error
                rel_error = min(1.25 * good, (good + bad) / 2)
            else:
                bad = rel_error
                rel_error = (good + bad) / 2 if good else bad / 2
        assert best is not None
        while by_error and (entries := best[0].num_parameters) > sum(layout.legs):
            if not tried(self._cut(target, layout, max_parameters=entries - 1)):
                break
        entries, value = best[0].num_parameters, best[1]
        fewer, larger = max((each for each in trials if each[0] < entries), default=(entries, value))
        power = 2 if by_error else 1
        at_budget = _between(entries, value**power, fewer, larger**power, self.budget**power)
        return _Fit(*best, at_budget, tuple(trials))

    def _cut(self, target: Tensor, layout: _Layout, **limits: Any) -> MPO:
        chain = MPO.from_dense(target, layout.out_dims, layout.in_dims, **limits).balanced()
        return MPO(chain.cores, shape=self._shape)

    def curve(self, candidate: Candidate) -> list[tuple[int, float]]:
        """(entries of the chain, value) by rising value: at several errors, or where a judge was asked.

        Points that need more entries for no smaller value are left out.
        """
        points = set(candidate.trials)
        if self.judge is None:
            layout = _Layout(candidate.out_dims, candidate.in_dims)
            result = candidate.operator if isinstance(candidate.operator, Disentangled) else None
            target = self.padded(layout) if result is None else self._stripped(result, layout)
            for rel_error in CURVE:
                chain = self._cut(target, layout, rel_error=rel_error)
                operator = chain if result is None else _with_core(result, chain, target)
                points.add((chain.num_parameters, self.error(operator)))
        best = math.inf
        kept = []
        for entries, value in sorted(points):
            if value < best:
                kept.append((entries, value))
                best = value
        return kept[::-1]

    def least_bonds(self, layout: _Layout, sides: tuple[_Side, _Side]) -> list[int]:
        """Bonds that a core needs at least, whatever the gates of these circuits."""
        if layout not in self.needs:
            self.needs[layout] = self._ranks(layout)
        needed = self.needs[layout]
        return [
            math.ceil(rank / (sides[0].reach(bond) * sides[1].reach(bond) * self._cropping))
            for bond, rank in enumerate(needed)
        ]

    @property
    def _cropping(self) -> int:
        """Leaving out the padding of a side multiplies a rank by two at most."""
        return prod(2 for size in self.matrix.shape if size != 2 ** qubits_for(size))

    def _ranks(self, layout: _Layout) -> list[int]:
        """Of each unfolding, singular values without which the error would exceed the budget."""
        flat = interleave(self.padded(layout), layout.out_dims, layout.in_dims)
        allowed = (self.budget * self.norm) ** 2 * (1 + 1e-9)
        found = []
        for bond in range(len(layout.legs) - 1):
            squares = torch.linalg.svdvals(flat.reshape(prod(layout.legs[: bond + 1]), -1)).square()
            found.append(max(1, int((squares.flip(0).cumsum(0) > allowed).sum())))
        return found

    def circuits(
        self,
        layout: _Layout,
        sides: tuple[_Side, _Side],
        way: tuple[int, int, int],
        before: Candidate,
        found: Sequence[Candidate],
    ) -> Candidate:
        """The smallest core found between two circuits.

        Args:
            layout: of the core.
            sides: output and input circuit.
            way: body, depth and parity.
            before: the chain without circuits, or the core between the inner layers.
            found: all candidates so far, which decide whether a search is worth it.
        """
        least = self.least_bonds(layout, sides) if self.judge is None else [1] * (len(layout.legs) - 1)
        candidate = Candidate(
            "circuits",
            layout.out_dims,
            layout.in_dims,
            tuple(least),
            layout.entries(least),
            sum(bond**2 for bond in least),
            layout.entries(least),
            *way,
            circuit=sum(side.parameters for side in sides),
            circuit_gauge=sum(side.gauge for side in sides),
            padding=self.padding(layout),
            ruled_out=True,
        )
        if _is_hopeless(candidate, found):
            return candidate
        target = MPO.from_dense(self.matrix, layout.out_dims, layout.in_dims)
        key = "circuits {} {}-{}-{}".format(layout.key, *way)
        saved = self.store.load(key)
        if saved is None:
            result, fit = self._searched(target, sides, layout, max(least), before)
            saved = _state(result) | fit.figures
            self.store.save(key, saved)
        result = _restored(saved, sides, target)
        return replace(
            candidate,
            bond_dims=result.core.bond_dims,
            classical=result.core.num_parameters,
            gauge=sum(bond**2 for bond in result.core.bond_dims),
            at_budget=saved["at_budget"],
            cnots=sum(result.cnot_counts),
            error=self.error(result),
            value=saved["value"],
            trials=saved["trials"],
            ruled_out=False,
            operator=result,
        )

    def _searched(
        self, target: MPO, sides: tuple[_Side, _Side], layout: _Layout, least: int, before: Candidate
    ) -> tuple[Disentangled, _Fit]:
        """Circuits optimised with cores of falling bond; those that leave the smallest core, with that core."""
        aim = self.budget if self.judge is None or before.error is None else before.error
        inner = before.operator if isinstance(before.operator, Disentangled) else None
        widest = min(max(before.bond_dims), max(target.bond_dims))
        bonds = {min(widest, max(least, round(share * widest))) for share in LADDER}
        best: tuple[float, int, Disentangled] | None = None

        def improves(bond: int, start: Disentangled | None) -> bool:
            nonlocal best
            result = self._optimized(target, sides, bond, start)
            entries = self._entries(self._stripped(result, layout), layout, aim)
            if best is not None and entries >= best[0]:
                return False
            best = entries, bond, result
            return True

        misses = 0
        for bond in sorted(bonds, reverse=True):
            misses = 0 if improves(bond, inner) else misses + 1
            if misses == 2:
                break
        assert best is not None
        for bond in sorted({min(least, widest), best[1]} - (set() if inner is not None else bonds)):
            improves(bond, None)  # anew: what grows may be in a corner
        stripped = self._stripped(best[2], layout)
        whole = MPO.from_dense(stripped, layout.out_dims, layout.in_dims)
        result = replace(best[2], entropies_after=whole.entropies())
        fit = self.smallest(stripped, layout, lambda core: _with_core(result, core, stripped), aim)
        return _with_core(result, fit.chain, stripped), fit

    def _entries(self, target: Tensor, layout: _Layout, rel_error: float) -> float:
        """Entries at an error exactly, as :attr:`Candidate.at_budget` has them."""
        chain = self._cut(target, layout, rel_error=rel_error)
        entries = chain.num_parameters
        if entries <= sum(layout.legs):
            return entries
        below = self._cut(target, layout, max_parameters=entries - 1)
        errors = [float(torch.dist(each.to_padded_dense(), target)) / self.norm for each in (chain, below)]
        return _between(entries, errors[0] ** 2, below.num_parameters, errors[1] ** 2, rel_error**2)

    def _optimized(
        self, target: MPO, sides: tuple[_Side, _Side], bond: int, start: Disentangled | None
    ) -> Disentangled:
        """Circuits for a joint core of one bond, near the identity at first or around shallower ones."""
        history: list[float] = []

        def goes_on(_: int, overlap: float) -> bool:
            history.append(overlap)
            if len(history) <= PATIENCE:
                return True
            gain = (overlap - history[-1 - PATIENCE]) / PATIENCE
            return gain > (SLOW_ANEW if start is None else SLOW)

        if start is not None:
            stripped = self._stripped(start, _Layout(target.out_dims, target.in_dims))
            start = _with_core(start, start.core.compress(max_bond=bond), stripped)
        with progress.shown_by(_Hidden()):
            return disentangle(
                target,
                (sides[0].ansatz, sides[1].ansatz),
                core_bond=bond,
                start="near_identity" if start is None else start,
                engine="dense",
                seed=self.seed,
                restarts=self.restarts if start is None else 1,
                max_sweeps=self.max_sweeps,
                callback=goes_on,
            )

    def _stripped(self, result: Disentangled, layout: _Layout) -> Tensor:
        """O^T W I^T, padded."""
        output, inward = (circuit.matrix().detach() for circuit in _circuits(result))
        return output.mT @ self.padded(layout) @ inward.mT


class _Hidden:
    """Shows nothing: the runs of one search are too many for a bar each."""

    def task(self, description: str, total: int | None) -> AbstractContextManager[progress.Advance]:
        return nullcontext(lambda steps=1, note="": None)


def _between(entries: int, value: float, fewer: int, larger: float, allowed: float) -> float:
    """Entries at the allowed value, between a chain that meets it and one that does not; linear in the value."""
    if larger <= allowed or value > allowed:
        return entries
    return fewer + (entries - fewer) * (larger - allowed) / (larger - value)


def _with_core(result: Disentangled, core: MPO, stripped: Tensor) -> Disentangled:
    """The same circuits around another core."""
    dense = core.to_padded_dense()
    size = torch.linalg.vector_norm(dense) * torch.linalg.vector_norm(stripped)
    core = MPO(core.cores)  # of the padded size
    return replace(result, core=core, overlap=min(1.0, float((dense * stripped).sum() / size)), ceiling=None)


def _state(result: Disentangled) -> dict[str, Any]:
    """For a checkpoint."""
    return {
        "gates": [[gate.detach() for gate in side.gate_matrices()] for side in _circuits(result)],
        "cores": list(result.core.cores),
        "entropies": [result.entropies_before, result.entropies_after],
        "overlap": result.overlap,
    }


def _restored(state: Mapping[str, Any], sides: tuple[_Side, _Side], target: MPO) -> Disentangled:
    output, inward = (
        as_circuit(side.ansatz, gates, mirrored, target)
        for side, gates, mirrored in zip(sides, state["gates"], (False, True), strict=True)
    )
    core = MPO(state["cores"])
    before, after = state["entropies"]
    return Disentangled(output, core, inward, target.shape, state["overlap"], None, before, after, "stopped", ())


def _circuits(result: Disentangled) -> tuple[Circuit, Circuit]:
    return result.output_circuit, result.input_circuit


def _is_hopeless(candidate: Candidate, found: Sequence[Candidate]) -> bool:
    """Whether the least core that these circuits could leave would improve neither M* nor the price."""
    searched = [each for each in found if each.kind == "circuits" and not each.ruled_out]
    if not searched:
        return False
    plain = min(each.classical for each in found if each.kind == "plain")
    price = max(0.0, *((plain - each.classical) / each.circuit for each in searched))
    smallest = min(each.total for each in searched)
    return candidate.total >= smallest and (plain - candidate.classical) / candidate.circuit <= price


def _verdict(name: str, search: _Search, found: Sequence[Candidate]) -> Verdict:
    by_kind = {kind: [each for each in found if each.kind == kind] for kind in ("plain", "low rank")}
    plain, low_rank = (min(by_kind[kind], key=lambda each: each.classical) for kind in ("plain", "low rank"))
    searched = [each for each in found if each.kind == "circuits" and not each.ruled_out]
    best = min(searched, key=lambda each: each.total)
    named = {"plain MPO": plain, "low rank": low_rank, "core": best}
    curves = {name: search.curve(candidate) for name, candidate in named.items()}
    curves["core and circuits"] = [(entries + best.circuit, value) for entries, value in curves["core"]]
    kind = "weight error" if search.judge is None else "loss"
    rows, columns = search.matrix.shape
    return Verdict(name, (rows, columns), search.budget, kind, plain, low_rank, best, tuple(found), curves)


class _Store:
    """The candidates that are done, a file each, in a folder."""

    def __init__(self, folder: str | os.PathLike[str] | None, problem: str) -> None:
        self.folder = None if folder is None else make_directory(folder)
        self.problem = problem

    def load(self, key: str) -> Any:
        """What was kept, or None."""
        if self.folder is None or not (self.folder / _file(key)).exists():
            return None
        return read_checkpoint(self.folder / _file(key), self.problem)

    def save(self, key: str, state: Any) -> None:
        """Keep a candidate."""
        if self.folder is not None:
            write_checkpoint(self.folder / _file(key), state, self.problem)


def _file(key: str) -> str:
    return f"{key.replace(' ', '-')}.candidate"


def _checked(weight: Tensor | MPO) -> Tensor:
    """The weight as a matrix in float64.

    Raises:
        InvalidInputError: if it is none that can be judged.
    """
    if isinstance(weight, MPO):
        weight = weight.to_dense()
    if not isinstance(weight, Tensor) or weight.dim() != 2 or not weight.is_floating_point():
        raise InvalidInputError("A verdict is on a real matrix, shape (out, in), an MPO, or a model with such layers.")
    if min(weight.shape) < 2 or max(weight.shape) < 4 or max(weight.shape) > LARGEST_DENSE:
        raise InvalidInputError(
            f"A verdict needs a weight from 2 x 4 to {LARGEST_DENSE} rows and columns; got {tuple(weight.shape)}."
        )
    require_finite(weight, "weight")
    if not bool(weight.any()):
        raise InvalidInputError("This weight is zero: there is nothing to judge. Check the layer's weights.")
    return weight.detach().double().cpu()


def _check(budget: float, judge: Judge | None, bodies: Sequence[int], counts: Mapping[str, int]) -> None:
    if isinstance(budget, bool) or not isinstance(budget, int | float) or not math.isfinite(budget):
        raise InvalidInputError(f"budget must be a number; got {budget!r}.")
    if judge is None and not 0 < budget < 1:
        raise InvalidInputError(f"budget must be a relative error above 0 and below 1; got {budget!r}.")
    if judge is not None and budget < 0:
        raise InvalidInputError(f"budget must be a growth of the loss, 0 or more; got {budget!r}.")
    if not bodies or not all(type(body) is int and 2 <= body <= 6 for body in bodies):
        raise InvalidInputError(f"bodies must be from 2 to 6 wires a gate, at least one; got {list(bodies)}.")
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InvalidInputError(f"{name} must be a positive integer; got {value!r}.")


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.3g} %"
