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
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from unbraid.disentangling.objective import LARGEST_DENSE
from unbraid.disentangling.verdict.layouts import Layout, Side, chains_for, sides_of
from unbraid.disentangling.verdict.outcome import Candidate, Verdict
from unbraid.disentangling.verdict.search import Judge, Search
from unbraid.disentangling.verdict.store import Store
from unbraid.ground import progress
from unbraid.ground.errors import InvalidInputError, require_finite
from unbraid.ground.files import problem_hash
from unbraid.ground.manifest import hash_tensors
from unbraid.tensors import MPO
from unbraid.tensors.sites import qubits_for


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
    store = Store(checkpoint, problem)
    search = Search(matrix, float(budget), judge, restarts, max_sweeps, seed, store)
    rows, columns = matrix.shape
    factors, whole = Layout((rows, 1), (1, columns)), Layout((rows,), (columns,))
    chains = chains_for(rows, columns)
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
        known: dict[tuple[Layout, Side, Side], Candidate] = {}
        for depth in depths:
            for number, (layout, body, parity) in enumerate(ways):
                before = last.get(number, plain[layout.out_dims, layout.in_dims])
                sides = sides_of(layout, depth, body, parity)
                if (layout, *sides) not in known and any(side.parameters for side in sides):
                    found.append(search.circuits(layout, sides, (body, depth, parity), before, found))
                    known[layout, *sides] = found[-1]
                candidate = known.get((layout, *sides), before)
                last[number] = before if candidate.ruled_out else candidate
                advance(note=f"body {body}, depth {depth}: {candidate.total:,}")
    return _verdict(name, search, found)


def _verdict(name: str, search: Search, found: Sequence[Candidate]) -> Verdict:
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
