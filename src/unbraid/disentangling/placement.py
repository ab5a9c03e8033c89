"""``search_placement``: rotations on a scaffold of CNOTs whose placement is searched, for every number of CNOTs.

A level is a number of CNOTs of both circuits together, shared as evenly as it can be. Each level keeps its few best
circuits. A round goes down and up again: from regular scaffolds of the largest size with random angles, CNOTs are taken
off one by one, then put on one by one; at every level the best circuits are improved by taking off one to three CNOTs,
not always the least important ones, and putting on as many elsewhere. Moves are ranked by environments, which give the
overlap right after a move in closed form, and the best ones raced: a few sweeps each, more for those in front.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from unbraid.circuits import Ansatz
from unbraid.disentangling.objective import LARGEST_DENSE, joint_ceiling
from unbraid.disentangling.problem import scaled_core, unit_mpo
from unbraid.disentangling.result import Disentangled, Status
from unbraid.disentangling.search import check_run
from unbraid.disentangling.units import UnitProblem, Units, distinct
from unbraid.ground import progress
from unbraid.ground.errors import InvalidInputError
from unbraid.ground.files import problem_hash, read_checkpoint, write_checkpoint
from unbraid.ground.manifest import hash_tensors
from unbraid.ground.random import stream, stream_seed
from unbraid.tensors import MPO
from unbraid.tensors.entanglement import dense_entropies

WIDTH = 3  # circuits kept a level
CANDIDATES = 12  # moves that a race begins with
RACE = ((5, 6), (20, 3), (80, 2))  # sweeps, and how many go on
SHORT_RACE = ((5, 4), (20, 1))
EXCHANGES = 30  # trials of taking off and putting on, a level and round
CLOSE = 0.005  # below the best overlap, within which a trial is worth more sweeps
SEEDS = 16  # regular scaffolds with random angles a round
SAVE_EVERY = 2.0  # seconds between checkpoints
POLISH, TOLERANCE = 500, 1e-9  # sweeps of a result, and the gain that ends them
MARGIN = 1e-9  # a point of the front is better than those before by more than rounding

Callback = Callable[[int, float], "bool | None"]


@dataclass(frozen=True)
class PlacementPoint:
    """One point of a front.

    Attributes:
        cnots: CNOTs of the output and of the input circuit.
        overlap: Eq. (2).
        result: circuits, core, entropies. ``disentangle(mpo, point.ansatz, start=point.result)`` goes on from here.
    """

    cnots: tuple[int, int]
    overlap: float
    result: Disentangled = field(repr=False)

    @property
    def ansatz(self) -> tuple[Ansatz, Ansatz]:
        """Where the CNOTs and rotations stand, output and input side."""
        return self.result.output_circuit.ansatz, self.result.input_circuit.ansatz


@dataclass(frozen=True)
class PlacementFront:
    """The best overlaps found against CNOTs.

    Attributes:
        points: the fewest CNOTs first; each has a larger overlap than those before. The first has no circuits.
        status: "converged" (all rounds done) or "stopped" (by the callback).
        evaluations: sweeps of candidates in this call (fits of a core where there are no angles).
    """

    points: tuple[PlacementPoint, ...]
    status: Status
    evaluations: int = field(compare=False)

    def at(self, cnots: int) -> PlacementPoint:
        """The best point with at most so many CNOTs a side.

        Raises:
            InvalidInputError: for a negative number, or anything else that is no number of CNOTs.
        """
        if isinstance(cnots, bool) or not isinstance(cnots, int) or cnots < 0:
            raise InvalidInputError(f"cnots must be a number of CNOTs a side, 0 or more; got {cnots!r}.")
        fitting = [point for point in self.points if max(point.cnots) <= cnots]
        return fitting[-1]


def search_placement(
    mpo: MPO,
    budget: int,
    *,
    core_bond: int = 1,
    angles: bool = True,
    seed: int = 0,
    effort: int = 1,
    checkpoint: str | os.PathLike[str] | None = None,
    callback: Callback | None = None,
) -> PlacementFront:
    """Search where the CNOTs of one-body rotations on a frozen scaffold should stand.

    Units of a CNOT on neighbouring wires followed by rotations on both wires are placed freely on both sides of a core
    that is optimised with them. Regular scaffolds are among the starts.

    Args:
        mpo: M, real; wires that get CNOTs are legs of dimension 2.
        budget: CNOTs a side at most.
        core_bond: bond dimension of the core.
        angles: False leaves out the rotations: CNOTs alone, of either orientation, around a core.
        seed: of the random angles and choices.
        effort: rounds; more never lower an overlap.
        checkpoint: a file to resume from if it exists, and to save to; it is kept at the end.
        callback: called with (steps done, largest overlap) after each level; returning False stops.

    Returns:
        The Pareto front up to the budget.

    Raises:
        InvalidInputError: if M is zero, complex, too large to be held as a matrix, or has no place for a CNOT; if a
            number is out of range; if the checkpoint belongs to another problem.

    Source:
        The frozen scaffolds of Table 4 of "Classical Neural Networks on Quantum Devices via Tensor Network
        Disentanglers", whose CNOTs stand in regular rows; here they are searched.
    """
    _check(mpo, budget, core_bond, angles, effort)
    check_run(seed, checkpoint, callback)
    unit, log_norm = unit_mpo(mpo.to("cpu") if mpo.device.type != "cpu" else mpo)
    problem = UnitProblem(unit, core_bond, budget + 1, angles)
    if not (problem.wires(0) or problem.wires(1)):
        raise InvalidInputError(
            f"There is no place for a CNOT: no two neighbouring legs of dimension 2 in {mpo.out_dims} x {mpo.in_dims}. "
            "Split the legs into qubits, for example MPO.from_dense(matrix, (2,) * n, (2,) * n)."
        )
    identity = problem_hash(
        {
            "target": hash_tensors(*unit.cores),
            "legs": [mpo.out_dims, mpo.in_dims],
            "search": ["placement", budget, core_bond, angles, stream_seed(seed, "placement"), effort],
        }
    )
    search = _Search(problem, budget, seed)
    steps = [(number, level) for number in range(effort) for level in search.levels()]
    done = 0
    if checkpoint is not None and Path(checkpoint).exists():
        saved = read_checkpoint(checkpoint, identity)
        done = saved["done"]
        search.load(saved["levels"], saved["path"])
    saved_at = time.monotonic()
    status: Status = "converged"
    with progress.task("CNOT placement", len(steps)) as advance:
        advance(done)
        for number, (level, upwards) in steps[done:]:
            search.step(number, level, upwards)
            done += 1
            stop = callback is not None and callback(done, search.best) is False
            if checkpoint is not None and (stop or done == len(steps) or time.monotonic() - saved_at > SAVE_EVERY):
                write_checkpoint(checkpoint, {"done": done, **search.state()}, identity)
                saved_at = time.monotonic()
            advance(note=f"overlap {search.best:.4f}")
            if stop:
                status = "stopped"
                break
    return PlacementFront(_front(mpo, log_norm, unit, problem, search, core_bond), status, problem.sweeps)


class _Search:
    """The best circuits of each level, and those of the present way down or up."""

    def __init__(self, problem: UnitProblem, budget: int, seed: int) -> None:
        self.problem, self.seed = problem, seed
        self.sides = [side for side in (0, 1) if problem.wires(side)]
        self.top = len(self.sides) * budget
        self.found: list[list[Units]] = [[problem.empty()], *([] for _ in range(self.top))]
        self.path: list[Units] = []  # what the last step found

    @property
    def best(self) -> float:
        """The largest overlap of all levels."""
        return max(units.overlap for level in self.found for units in level)

    def levels(self) -> list[tuple[int, bool]]:
        """(Level, whether upwards) in the order of a round."""
        down = [(level, False) for level in range(self.top, 0, -1)]
        return [*down, *((level, True) for level in range(1, self.top + 1))]

    def largest(self, level: int) -> int:
        """CNOTs that a side may have at a level."""
        return -(-level // len(self.sides))

    def step(self, number: int, level: int, upwards: bool) -> None:
        """One level on the way down or up."""
        if upwards:
            parents = distinct([*self.found[level - 1], *self.path], WIDTH) if level > 1 else self.found[0]
            moves = [self.problem.additions(units, self.largest(level))[:CANDIDATES] for units in parents]
        elif level == self.top:
            self.path = self._race(self._regular(number), ((10, SEEDS // 2), (50, 6), (200, WIDTH)))
            moves = []
        else:
            parents = distinct([*self.path, *self.found[level + 1][:1]], WIDTH + 1)
            moves = [self.problem.removals(units, self.largest(level))[:CANDIDATES] for units in parents]
        if moves:
            self.path = self._race([units for ranked in moves for _, units in ranked], RACE)
        self.found[level] = distinct([*self.found[level], *self.path], WIDTH)
        if level % len(self.sides) == 0:
            self._exchange(number, level, upwards)

    def _race(self, candidates: Sequence[Units], rungs: Sequence[tuple[int, int]]) -> list[Units]:
        """Improve all a little, the better ones more, the best ones most."""
        left = list(candidates)
        for sweeps, kept in rungs:
            left = distinct(self.problem.improve(left, sweeps), kept)
        return left

    def _regular(self, number: int) -> list[Units]:
        """Regular scaffolds of the largest size, both parities, random angles; in odd rounds each row stands twice."""
        starts = []
        for start in range(SEEDS):
            generator = stream(self.seed, "placement", "regular", number, start)
            size = 0.1 if start % 4 < 2 else 1.0
            units = self.problem.empty()
            for side in self.sides:
                wires = self.problem.wires(side)
                row = 0
                while units.counts[side] < self.top // len(self.sides):
                    places = [wire for wire in wires if (wire + row + start) % 2 == 0] * (1 + number % 2)
                    for wire in sorted(places)[: self.top // len(self.sides) - int(units.counts[side])]:
                        turns = size * torch.randn(2, dtype=torch.float64, generator=generator).numpy()
                        turns = turns if self.problem.angles else 0 * turns
                        units = self.problem.add(units, side, int(units.counts[side]), 2 * wire, turns, 0 * turns)
                    row += 1
            starts.append(units)
        return starts

    def _exchange(self, number: int, level: int, upwards: bool) -> None:
        """Take CNOTs off and put as many on elsewhere, from the best of this way first, then from the best so far."""
        generator = stream(self.seed, "placement", "exchange", number, level, int(upwards))
        draws = torch.rand(EXCHANGES, 3, dtype=torch.float64, generator=generator).tolist()
        for trial, row in enumerate(draws):
            count = min(1 + trial % 3, level)
            pool = self.found[level]
            origin = self.path[0] if trial < EXCHANGES // 2 else pool[0]
            units = origin
            for draw in row[:count]:
                ranked = self.problem.removals(units, self.largest(level))
                units = self.problem.improve([ranked[int(len(ranked) * draw**2)][1]], 5)[0]
            while units.total < level:
                ranked = self.problem.additions(units, self.largest(level))[: CANDIDATES // 2]
                units = self._race([each for _, each in ranked], SHORT_RACE)[0]
            if units.overlap > origin.overlap - CLOSE:
                units = self.problem.improve([units], 80)[0]
            if origin is self.path[0] and units.overlap > origin.overlap:
                self.path = distinct([units, *self.path], WIDTH)
            self.found[level] = distinct([*pool, units], WIDTH)

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        levels = [[units.state() for units in level] for level in self.found]
        return {"levels": levels, "path": [units.state() for units in self.path]}

    def load(self, levels: list[list[dict[str, Any]]], path: list[dict[str, Any]]) -> None:
        """The inverse of :meth:`state`."""
        self.found = [[Units.from_state(units) for units in level] for level in levels]
        self.path = [Units.from_state(units) for units in path]


def _check(mpo: MPO, budget: int, core_bond: int, angles: bool, effort: int) -> None:
    if not isinstance(mpo, MPO):
        raise InvalidInputError(f"mpo must be an MPO; got {type(mpo).__name__}. For a matrix: MPO.from_dense(matrix).")
    for value, name in ((budget, "budget"), (core_bond, "core_bond"), (effort, "effort")):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            meaning = " (CNOTs a side; with none there is nothing to place)" if name == "budget" else ""
            raise InvalidInputError(f"{name} must be a positive integer{meaning}; got {value!r}.")
    if not isinstance(angles, bool):
        raise InvalidInputError(
            f"angles must be True (rotations behind each CNOT) or False (CNOTs alone); got {angles!r}."
        )
    if mpo.dtype.is_complex:
        raise InvalidInputError("The placement of CNOTs is searched for real operators; this MPO is complex.")
    if max(mpo.padded_shape) > LARGEST_DENSE:
        raise InvalidInputError(
            f"The search holds matrices of up to {LARGEST_DENSE} rows; this MPO is {mpo.padded_shape[0]} x "
            f"{mpo.padded_shape[1]}. Use disentangle with a scaffold, whose engine='mpo' holds chains only."
        )
    widest = max(mpo.bond_dims, default=1)
    if core_bond > widest:
        raise InvalidInputError(
            f"The core would be wider than the MPO: bond {core_bond} against {widest}. A core of the MPO's own bonds "
            "needs no circuits; choose a smaller core_bond."
        )


def _front(
    mpo: MPO, log_norm: torch.Tensor, unit: MPO, problem: UnitProblem, search: _Search, core_bond: int
) -> tuple[PlacementPoint, ...]:
    """The polished best circuits of every level that are better than all smaller ones."""
    ceiling = joint_ceiling(unit, core_bond)
    points: list[PlacementPoint] = []
    for level in range(search.top + 1):
        for units in search.found[level][:1]:
            before = problem.sweeps
            (polished,) = problem.improve([units], POLISH, TOLERANCE)
            status: Status = "converged" if problem.sweeps - before < POLISH else "out_of_sweeps"
            polished = polished if polished.overlap >= units.overlap else units
            if not points or polished.overlap > points[-1].overlap + MARGIN:
                points.append(_point(mpo, log_norm, unit, problem, polished, ceiling, status))
    return tuple(points)


def _point(
    mpo: MPO,
    log_norm: torch.Tensor,
    unit: MPO,
    problem: UnitProblem,
    units: Units,
    ceiling: float | None,
    status: Status,
) -> PlacementPoint:
    circuits = [problem.circuit(units, side) for side in (0, 1)]
    overlap = min(1.0, units.overlap)  # it may exceed 1 by rounding
    core = problem.core(units)
    scaled = scaled_core([*core[:-1], core[-1] * units.overlap], log_norm.cpu(), mpo.dtype)
    stripped = circuits[0].matrix().detach().mT @ problem.dense @ circuits[1].matrix().detach().mT
    result = Disentangled(
        output_circuit=circuits[0].to(mpo.device, mpo.dtype),
        core=scaled.to(mpo.device),
        input_circuit=circuits[1].to(mpo.device, mpo.dtype),
        shape=mpo.shape,
        overlap=overlap,
        ceiling=None if ceiling is None else max(ceiling, overlap),
        entropies_before=unit.entropies().double(),
        entropies_after=dense_entropies(stripped, mpo.out_dims, mpo.in_dims),
        status=status,
        history=(overlap,),
        engine="dense",
        plan="dense, compiled: CNOT units",
    )
    return PlacementPoint(result.cnot_counts, overlap, result)
