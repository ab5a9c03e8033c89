"""What a verdict says: the candidates of one weight, their prices, and a paragraph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from unbraid.disentangling.result import Disentangled
from unbraid.tensors import MPO

Operator = MPO | Disentangled
Trials = tuple[tuple[int, float], ...]


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


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.3g} %"
