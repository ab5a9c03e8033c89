"""``unbraid reproduce geometry``: where CNOTs should stand, by accuracy, at a fixed number of them.

The network is our own design of Table 3: an operator 256 -> 64 disentangled to a product core between circuits. All
placements have the same number of CNOTs. Random and evolutionary search score a placement by the validation accuracy
after a short healing, and have equally many scores; beside them stand rows of CNOTs as in a brickwall, and a placement
searched by the overlap with the trained operator, which needs no training at all. Each way's best placement is healed
for long at the end, and only that is tested.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from unbraid.circuits import Ansatz, parse_ansatz, search_geometry
from unbraid.disentangling import disentangle, search_placement
from unbraid.ground.random import stream_seed
from unbraid.nn import COUNTING_RULE, DisentangledLinear, MPOLinear, accuracy, heal
from unbraid.recipes.datasets import Dataset
from unbraid.recipes.implicit import weights_of, with_weights
from unbraid.recipes.recipe import Outcome, Recipe, Request, Row, Section, Task, counted, make_row, with_spread
from unbraid.recipes.table3 import own_design
from unbraid.tensors import MPO

WIRES = (6, 8)  # of the output and of the input circuit
ROWS, RANDOM, EVOLVED, OVERLAP, ALONE, NONE = (
    "rows, as in a brickwall",
    "random search",
    "evolutionary search",
    "search by overlap",
    "evolutionary search, CNOTs alone",
    "no gates",
)
WAYS = (NONE, ROWS, RANDOM, EVOLVED, OVERLAP, ALONE)


@dataclass(frozen=True)
class Settings:
    """What the results depend on.

    Attributes:
        epochs: of the network without circuits.
        lr: its peak.
        batch_size: its rows.
        cnots: of both circuits together, even.
        evaluations: placements that a search by accuracy scores.
        scored: epochs of healing before a score.
        healing: epochs of healing of the best placement.
        healing_lr: peak of both.
        healing_batch_size: rows of both.
        sweeps: of the explicit disentangling, at most.
    """

    epochs: int = 30
    lr: float = 2e-2
    batch_size: int = 256
    cnots: int = 16
    evaluations: int = 60
    scored: int = 2
    healing: int = 30
    healing_lr: float = 4e-2
    healing_batch_size: int = 512
    sweeps: int = 100


def run_original(request: Request, seed: int) -> dict[str, Any]:
    """The network without circuits, with its weights."""
    settings: Settings = request.settings
    data = _data(request, seed)
    model = own_design().build(seed)
    heal(
        model,
        data.train,
        data.validation,
        epochs=settings.epochs,
        lr=settings.lr,
        batch_size=settings.batch_size,
        seed=seed,
    )
    return {"accuracy": accuracy(model, *data.test), "weights": weights_of(model)}


def run_way(request: Request, given: Mapping[str, Any], way: str, seed: int) -> dict[str, Any]:
    """Find a placement in one way, and heal it."""
    settings: Settings = request.settings
    data = _data(request, seed)
    model = with_weights(own_design(), given["weights"])
    operator = _qubits(model)
    scores: list[float] = []
    if way in (RANDOM, EVOLVED, ALONE):

        def score(output: Ansatz, inward: Ansatz) -> float:
            placed = _placed(model, operator, (output, inward), settings, seed)
            _heal(placed, data, settings, seed, settings.scored)
            scores.append(accuracy(placed, *data.validation))
            return scores[-1]

        found = search_geometry(
            WIRES,
            settings.cnots,
            score,
            evaluations=settings.evaluations,
            method="random" if way == RANDOM else "evolutionary",
            rotations=way != ALONE,
            seed=stream_seed(seed, way),
        )
        pair = found[0].output_ansatz, found[0].input_ansatz
    else:
        pair = _regular(way, operator, settings, seed)
    placed = _placed(model, operator, pair, settings, seed)
    _heal(placed, data, settings, seed, settings.healing)
    layer = placed.get_submodule("layer1")
    assert isinstance(layer, DisentangledLinear)
    return {
        "accuracy": accuracy(placed, *data.test),
        "validation": accuracy(placed, *data.validation),
        "parameters": sum(parameter.numel() for parameter in placed.parameters()),
        "cnots": [layer.output_circuit.cnot_count, layer.input_circuit.cnot_count],
        "scores": scores,
        "layers": [ansatz.to_dict()["layers"] for ansatz in pair],
    }


def _regular(way: str, operator: MPO, settings: Settings, seed: int) -> tuple[Ansatz, Ansatz]:
    """A placement that no accuracy is needed for."""
    half = settings.cnots // 2
    if way == NONE:
        return Ansatz((2,) * WIRES[0], ()), Ansatz((2,) * WIRES[1], ())
    if way == OVERLAP:
        return search_placement(operator, half, seed=seed).at(half).ansatz
    return _rows(WIRES[0], half), _rows(WIRES[1], half)


def _rows(wires: int, cnots: int) -> Ansatz:
    """Rotations on every wire, then CNOTs in alternating rows, as many as asked for, with rotations behind each row."""
    depth = 1
    while True:
        ansatz = parse_ansatz("1b" + "+cnot+1b" * depth, wires)
        if sum(gate.name == "cnot" for gate in ansatz.gates()) >= cnots:
            break
        depth += 1
    surplus = sum(gate.name == "cnot" for gate in ansatz.gates()) - cnots
    layers = list(ansatz.layers)
    layers[-2] = layers[-2][: len(layers[-2]) - surplus]
    return Ansatz(ansatz.wire_dims, tuple(layers))


def _qubits(model: nn.Module) -> MPO:
    """The trained operator on qubits: six legs out, eight in, two of them against legs of dimension 1."""
    layer = model.get_submodule("layer1")
    assert isinstance(layer, MPOLinear)
    return MPO.from_dense(layer.weight.detach(), (2,) * 6, (2,) * 8)


def _placed(model: nn.Module, operator: MPO, pair: tuple[Ansatz, Ansatz], settings: Settings, seed: int) -> nn.Module:
    """The network with its operator disentangled by this placement."""
    output, inward = pair
    wide = Ansatz(operator.out_dims, output.layers), Ansatz(operator.in_dims, inward.layers)
    placed = copy.deepcopy(model)
    result = disentangle(operator, wide, max_sweeps=settings.sweeps, seed=seed)
    placed.add_module("layer1", DisentangledLinear.from_disentangled(result))
    return placed


def _heal(model: nn.Module, data: Dataset, settings: Settings, seed: int, epochs: int) -> None:
    heal(
        model,
        data.train,
        data.validation,
        epochs=epochs,
        lr=settings.healing_lr,
        batch_size=settings.healing_batch_size,
        seed=seed,
    )


def _data(request: Request, seed: int) -> Dataset:
    return request.load("mnist", seed=seed, size=16)


def _tasks(request: Request) -> list[Task]:
    found = []
    for seed in range(request.seeds):
        first = f"seed-{seed}-original"
        found.append(Task(first, run_original, {"seed": seed}, seed=seed, depends=own_design().to_dict()))
        for number, way in enumerate(WAYS):
            found.append(Task(f"seed-{seed}-way-{number}", run_way, {"way": way, "seed": seed}, after=first, seed=seed))
    return found


def _assemble(request: Request, results: Mapping[str, Any]) -> Outcome:
    settings: Settings = request.settings
    seeds = range(request.seeds)
    originals = [results[f"seed-{seed}-original"] for seed in seeds]
    rows = [
        make_row(
            "operator of bond 2",
            "original",
            [each["accuracy"] for each in originals],
            seeds=seeds,
            parameters=own_design().num_parameters,
            scores=None,
            validation=None,
        )
    ]
    for number, way in enumerate(WAYS):
        found = [results[f"seed-{seed}-way-{number}"] for seed in seeds]
        rows.append(
            make_row(
                way,
                "control" if way in (NONE, ROWS) else "hybrid",
                [each["accuracy"] for each in found],
                seeds=seeds,
                parameters=max(each["parameters"] for each in found),
                validation=[each["validation"] for each in found],
                cnots=[each["cnots"] for each in found],
                scores=[each["scores"] for each in found],
                placements=[each["layers"] for each in found],
            )
        )
    return Outcome(
        title=f"Where {settings.cnots} CNOTs should stand",
        note=(
            f"MNIST scaled to 16x16, {counted(request.seeds, 'seed')}: mean and sample standard deviation. An operator "
            f"256 -> 64, trained at bond 2 within a network for {settings.epochs} epochs and disentangled to a product "
            f"core on qubits. Searches by accuracy score {settings.evaluations} placements each, by the validation "
            f"accuracy after {counted(settings.scored, 'epoch')}; the best placement of each way is healed for "
            f"{settings.healing} epochs and tested. {COUNTING_RULE}"
        ),
        rows=rows,
        sections=(_section(rows),),
    )


def _section(rows: Sequence[Row]) -> Section:
    cells = []
    for row in rows:
        best = [100 * max(scores) for scores in row["scores"] or () if scores]
        cells.append(
            (
                row["name"],
                f"{row['parameters']:,}",
                with_spread(best, 2),
                "-" if row["validation"] is None else with_spread([100 * value for value in row["validation"]], 2),
                with_spread([100 * value for value in row["values"]], 2),
            )
        )
    columns = ("placement", "parameters", "best score %", "validation % when healed", "test %")
    return Section(columns, tuple(cells))


def _plot(path: Path, rows: Sequence[Row]) -> None:
    from unbraid.report.plots import COLOURS, plot_rows, save_figure

    def draw(figure: Any) -> None:
        figure.set_size_inches(9.0, 3.4)
        left, right = figure.subplots(1, 2)
        searched = [row for row in rows if row["scores"] and row["scores"][0]]
        for color, row in zip(COLOURS, searched, strict=False):
            for number, scores in enumerate(row["scores"]):
                best = [100 * max(scores[: k + 1]) for k in range(len(scores))]
                label = row["name"] if number == 0 else "_"
                left.plot(range(1, len(best) + 1), best, color=color, linewidth=1.2, label=label)
        left.set_xlabel("placements scored")
        left.set_ylabel("best validation accuracy so far (%)")
        left.legend(fontsize=7)
        plot_rows(rows, ax=right)

    save_figure(path, draw)


RECIPE = Recipe(
    settings=Settings(),
    quick=Settings(epochs=2, cnots=8, evaluations=4, scored=1, healing=1, sweeps=20),
    seeds=3,
    quick_seeds=1,
    data=_data,
    tasks=_tasks,
    assemble=_assemble,
    plot=_plot,
)
