"""The search for the smallest chain, and the smallest core between circuits, within a budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import Tensor

from unbraid.circuits import Circuit
from unbraid.disentangling.result import Disentangled
from unbraid.disentangling.search import as_circuit, disentangle
from unbraid.disentangling.verdict.layouts import Layout, Side
from unbraid.disentangling.verdict.outcome import Candidate, Operator, Trials
from unbraid.disentangling.verdict.store import Store
from unbraid.ground import progress
from unbraid.ground.errors import InvalidInputError
from unbraid.tensors import MPO
from unbraid.tensors.legs import interleave
from unbraid.tensors.sites import qubits_for

Judge = Callable[[Operator], float]  # what the budget limits; the exact weight has 0
LADDER = (0.9, 0.7, 0.5, 0.3, 0.15)  # bonds that circuits are optimised for, as shares of the smallest so far
CURVE = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # relative errors along a curve
TRIALS = 7  # relative errors tried for one core where the budget is not that error itself
FIRST_ERROR = 0.3
SLOW, SLOW_ANEW = 5e-5, 1e-5  # a run ends once its sweeps gain less than this, those around shallower circuits sooner
PATIENCE = 10  # sweeps over which that is averaged


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
class Search:
    """The weight, in float64, and how its candidates are found."""

    matrix: Tensor
    budget: float
    judge: Judge | None
    restarts: int
    max_sweeps: int
    seed: int
    store: Store
    needs: dict[Layout, list[int]] = field(default_factory=dict)

    @cached_property
    def norm(self) -> float:
        """Of the weight."""
        return float(torch.linalg.vector_norm(self.matrix))

    def error(self, operator: Operator) -> float:
        """Relative, of the weight without padding."""
        return float(torch.dist(operator.to_dense(), self.matrix)) / self.norm

    def padded(self, layout: Layout) -> Tensor:
        """The weight with the zeros that a chain of these legs takes."""
        rows, columns = self.matrix.shape
        return torch.nn.functional.pad(self.matrix, (0, layout.padded[1] - columns, 0, layout.padded[0] - rows))

    def padding(self, layout: Layout) -> float:
        """The share of them among all entries."""
        return 1 - self.matrix.numel() / prod(layout.padded)

    def exact(self, layout: Layout) -> Candidate:
        """The dense weight."""
        chain = MPO.from_dense(self.matrix, layout.out_dims, layout.in_dims)
        return self._chain_of("dense", chain, 0.0, chain.num_parameters)

    def chain(self, kind: str, layout: Layout) -> Candidate:
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
            padding=self.padding(Layout(chain.out_dims, chain.in_dims)),
            error=self.error(chain),
            value=value,
            trials=trials,
            operator=chain,
        )

    @property
    def _shape(self) -> tuple[int, int]:
        return self.matrix.shape[0], self.matrix.shape[1]

    def smallest(self, target: Tensor, layout: Layout, operator: Callable[[MPO], Operator], first: float) -> _Fit:
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

    def _cut(self, target: Tensor, layout: Layout, **limits: Any) -> MPO:
        chain = MPO.from_dense(target, layout.out_dims, layout.in_dims, **limits).balanced()
        return MPO(chain.cores, shape=self._shape)

    def curve(self, candidate: Candidate) -> list[tuple[int, float]]:
        """(entries of the chain, value) by rising value: at several errors, or where a judge was asked.

        Points that need more entries for no smaller value are left out.
        """
        points = set(candidate.trials)
        if self.judge is None:
            layout = Layout(candidate.out_dims, candidate.in_dims)
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

    def least_bonds(self, layout: Layout, sides: tuple[Side, Side]) -> list[int]:
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

    def _ranks(self, layout: Layout) -> list[int]:
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
        layout: Layout,
        sides: tuple[Side, Side],
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
        self, target: MPO, sides: tuple[Side, Side], layout: Layout, least: int, before: Candidate
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

    def _entries(self, target: Tensor, layout: Layout, rel_error: float) -> float:
        """Entries at an error exactly, as :attr:`Candidate.at_budget` has them."""
        chain = self._cut(target, layout, rel_error=rel_error)
        entries = chain.num_parameters
        if entries <= sum(layout.legs):
            return entries
        below = self._cut(target, layout, max_parameters=entries - 1)
        errors = [float(torch.dist(each.to_padded_dense(), target)) / self.norm for each in (chain, below)]
        return _between(entries, errors[0] ** 2, below.num_parameters, errors[1] ** 2, rel_error**2)

    def _optimized(self, target: MPO, sides: tuple[Side, Side], bond: int, start: Disentangled | None) -> Disentangled:
        """Circuits for a joint core of one bond, near the identity at first or around shallower ones."""
        history: list[float] = []

        def goes_on(_: int, overlap: float) -> bool:
            history.append(overlap)
            if len(history) <= PATIENCE:
                return True
            gain = (overlap - history[-1 - PATIENCE]) / PATIENCE
            return gain > (SLOW_ANEW if start is None else SLOW)

        if start is not None:
            stripped = self._stripped(start, Layout(target.out_dims, target.in_dims))
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

    def _stripped(self, result: Disentangled, layout: Layout) -> Tensor:
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


def _restored(state: Mapping[str, Any], sides: tuple[Side, Side], target: MPO) -> Disentangled:
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
