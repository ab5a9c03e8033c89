"""``search_geometry``: where the CNOTs of two circuits should stand, by any score, such as accuracy after training.

A placement is a row of units, from the core outwards. A unit is a CNOT of either orientation on neighbouring wires of
one side, and a rotation (SO(2)) on both wires behind it; rotations also stand on every wire next to the core, and all
of them can be left out. Nothing but the score is known, so each evaluation counts: "random" draws placements
independently, "evolutionary" changes good ones.

For the overlap with a given operator there is something better, :func:`unbraid.disentangling.search_placement`, which
knows what a CNOT gains before it is tried.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from unbraid.circuits.ansatz import Ansatz, Gate, Layer
from unbraid.ground import progress
from unbraid.ground.errors import FileFormatError, InvalidInputError, require_choice
from unbraid.ground.files import problem_hash, read_json, write_json
from unbraid.ground.random import stream

METHODS = ("evolutionary", "random")
Unit = tuple[int, int, int]  # side (0 output, 1 input), first wire, orientation
Score = Callable[[Ansatz, Ansatz], float]


@dataclass(frozen=True)
class Placed:
    """A placement that was tried.

    Attributes:
        score: higher is better.
        units: from the core outwards: (side, first wire, orientation); side 0 is the output circuit, orientation 0 has
            its control on the first wire.
        output_ansatz: of the output circuit.
        input_ansatz: of the input circuit.
    """

    score: float
    units: tuple[Unit, ...]
    output_ansatz: Ansatz = field(repr=False)
    input_ansatz: Ansatz = field(repr=False)


def search_geometry(
    wires: tuple[int | Sequence[int], int | Sequence[int]],
    cnots: int,
    score: Score,
    *,
    evaluations: int,
    method: str = "evolutionary",
    rotations: bool = True,
    population: int = 12,
    tournament: int = 4,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
) -> list[Placed]:
    """Try placements of so many CNOTs; the best one first.

    Args:
        wires: of the output and of the input circuit: numbers of qubits, or leg dimensions; CNOTs stand on neighbouring
            wires of dimension 2.
        cnots: of both circuits together.
        score: called with the ansatz of the output and of the input circuit; higher is better.
        evaluations: calls of ``score``.
        method: "random": every placement is drawn anew. "evolutionary": the first ``population`` are; then the best of
            ``tournament`` of the ``population`` latest ones has one to three units moved.
        rotations: False places CNOTs alone.
        population: see ``method``.
        tournament: see ``method``.
        seed: of all choices.
        checkpoint: a file to resume from if it exists, and to save to after every evaluation.

    Returns:
        All placements, by falling score.

    Raises:
        InvalidInputError: if a number is out of range, a name unknown, there is no place for a CNOT, or a score is not
            finite.

    Source:
        Regularized evolution, arXiv:1802.01548.
    """
    require_choice(method, METHODS, "method")
    if not callable(score):
        raise InvalidInputError(f"score must be a function of two ansatze; got {score!r}.")
    if not isinstance(rotations, bool):
        raise InvalidInputError(f"rotations must be True or False; got {rotations!r}.")
    counts = {"cnots": cnots, "evaluations": evaluations, "population": population, "tournament": tournament}
    for name, number in counts.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise InvalidInputError(f"{name} must be a positive integer; got {number!r}.")
    if tournament > population:
        raise InvalidInputError(f"tournament must be from 1 to population, which is {population}; got {tournament!r}.")
    if not isinstance(wires, Sequence) or len(wires) != 2:
        raise InvalidInputError(f"wires must be a pair, of the output and of the input circuit; got {wires!r}.")
    if any(isinstance(side, bool) or not isinstance(side, (int, Sequence)) for side in wires):
        raise InvalidInputError(f"wires must be numbers of qubits, or leg dimensions; got {wires!r}.")
    dims = tuple(Ansatz((2,) * side if isinstance(side, int) else tuple(side), ()).wire_dims for side in wires)
    places = [
        (side, wire) for side in (0, 1) for wire in range(len(dims[side]) - 1) if dims[side][wire : wire + 2] == (2, 2)
    ]
    if not places:
        raise InvalidInputError(f"There is no place for a CNOT: no neighbouring wires of dimension 2 in {dims}.")
    problem = problem_hash([dims, cnots, method, rotations, population, tournament, seed])
    known = _read(checkpoint, problem)
    tried: list[Placed] = []
    with progress.task("placements", evaluations) as advance:
        for number in range(evaluations):
            generator = stream(seed, "geometry", number)
            if method == "random" or number < population:
                units = tuple(_draw(places, generator) for _ in range(cnots))
            else:
                units = _child(tried[-population:], tournament, places, generator)
            ansatze = (_ansatz(dims[0], 0, units, rotations), _ansatz(dims[1], 1, units, rotations))
            value = known[number] if number < len(known) else score(*ansatze)
            try:
                value = float(value)
            except (TypeError, ValueError) as error:
                raise InvalidInputError(f"A score must be a number; got {value!r} for placement {number}.") from error
            if not math.isfinite(value):
                raise InvalidInputError(f"A score must be a finite number; got {value} for placement {number}.")
            tried.append(Placed(value, units, *ansatze))
            if checkpoint is not None and number >= len(known):
                write_json(checkpoint, {"problem": problem, "scores": [placed.score for placed in tried]})
            advance(note=f"best {max(placed.score for placed in tried):.4f}")
    return sorted(tried, key=lambda placed: -placed.score)


def _read(checkpoint: str | os.PathLike[str] | None, problem: str) -> list[float]:
    if checkpoint is None or not Path(checkpoint).exists():
        return []
    content = read_json(checkpoint)
    scores = content.get("scores") if isinstance(content, dict) else None
    if not isinstance(scores, list) or not all(type(value) in (int, float) for value in scores):
        raise FileFormatError(f"{checkpoint} is no checkpoint of a search for placements. Choose another place.")
    if content.get("problem") != problem:
        raise InvalidInputError(
            f"{checkpoint} belongs to another search: wires, CNOTs, method or seed differ. Delete it or choose another "
            "place."
        )
    return [float(value) for value in scores]


def _draw(places: Sequence[tuple[int, int]], generator: torch.Generator) -> Unit:
    side, wire = places[_number(len(places), generator)]
    return side, wire, _number(2, generator)


def _child(
    parents: Sequence[Placed], tournament: int, places: Sequence[tuple[int, int]], generator: torch.Generator
) -> tuple[Unit, ...]:
    """The best of some of the parents, with one to three units taken out and put in elsewhere."""
    chosen = torch.randperm(len(parents), generator=generator)[:tournament].tolist()
    units = list(max((parents[k] for k in chosen), key=lambda placed: placed.score).units)
    for _ in range(1 + _number(min(3, len(units)), generator)):
        units.pop(_number(len(units), generator))
        units.insert(_number(len(units) + 1, generator), _draw(places, generator))
    return tuple(units)


def _ansatz(dims: tuple[int, ...], side: int, units: Sequence[Unit], rotations: bool) -> Ansatz:
    """Layers of one CNOT or of rotations each; layer 0 stands next to the core."""
    layers: list[Layer] = []
    if rotations:
        layers.append(tuple(Gate("so", (wire,)) for wire in range(len(dims)) if dims[wire] > 1))
    for _, wire, orientation in (unit for unit in units if unit[0] == side):
        pair = (wire, wire + 1)
        layers.append((Gate("cnot", pair[::-1] if orientation else pair),))
        if rotations:
            layers.append((Gate("so", (wire,)), Gate("so", (wire + 1,))))
    return Ansatz(dims, tuple(layers))


def _number(below: int, generator: torch.Generator) -> int:
    return int(torch.randint(below, (), generator=generator))
