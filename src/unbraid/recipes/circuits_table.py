"""What Tables 4 and 6 have in common: the circuits of each network of a table, counted, without any training."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unbraid.circuits import Ansatz, Circuit
from unbraid.ground.random import stream_seed
from unbraid.nn import COUNTING_RULE, Architecture
from unbraid.quantum import count_gates
from unbraid.recipes.implicit import Line, Study, exported
from unbraid.recipes.recipe import (
    GATE_COUNTS,
    Outcome,
    Recipe,
    Request,
    Row,
    Section,
    Task,
    counted,
    make_row,
    with_spread,
)


@dataclass(frozen=True)
class Settings:
    """What the results depend on.

    Attributes:
        level: of Qiskit's transpiler.
    """

    level: int = 3


def make_recipe(study: Study, name: str, table: str) -> Recipe:
    """The recipe of a table.

    Args:
        study: whose hybrids' circuits are counted.
        name: of the table, for its title.
        table: of the accuracies of the same networks.
    """
    lines = [line for line in study.lines if line.kind == "hybrid" and _has_circuits(line) and line.noise_shots is None]

    def tasks(request: Request) -> list[Task]:
        return [
            Task(f"seed-{seed}-line-{number}", count_line, {"declared": _declared(line), "seed": seed})
            for seed in range(request.seeds)
            for number, line in enumerate(lines)
        ]

    def assemble(request: Request, results: Mapping[str, Any]) -> Outcome:
        seeds = range(request.seeds)
        rows = []
        for number, line in enumerate(lines):
            found = [results[f"seed-{seed}-line-{number}"] for seed in seeds]
            rows.append(_row(study, line, found, seeds))
        return Outcome(
            title=f"{name}: the circuits of the networks of {table}",
            note=(
                "Circuits in the layer grammar, the first layer next to the operator; gates Haar-random, "
                f"{counted(request.seeds, 'seed')}, which only transpiled counts depend on. As built: CNOTs of the "
                "exported circuits, any two qubits coupled. Transpiled: two-qubit gates on FakeMontreal, 27 qubits, "
                f"level {request.settings.level}. State preparation is not counted. The paper prints layers and "
                f"kinds of gates, and no counts. {COUNTING_RULE}"
            ),
            rows=rows,
            sections=(_totals(rows), _circuits(rows)),
        )

    return Recipe(
        settings=Settings(),
        quick=Settings(level=1),
        seeds=3,
        quick_seeds=1,
        data=None,
        tasks=tasks,
        assemble=assemble,
        plot=_plot,
        extras=GATE_COUNTS,
    )


def _has_circuits(line: Line) -> bool:
    return line.architecture is not None and any(layer.has_circuits for layer in line.architecture.layers)


def _declared(line: Line) -> dict[str, Any]:
    assert line.architecture is not None
    return line.architecture.to_dict()


def count_line(request: Request, declared: dict[str, Any], seed: int) -> list[dict[str, Any]]:
    """Parameters and gates of both circuits of each layer."""
    found = []
    for number, layer in enumerate(Architecture.from_dict(declared).layers, 1):
        if not layer.has_circuits:
            continue
        inward, output = layer.ansatze()
        texts = (layer.input_circuit, layer.output_circuit)
        for side, ansatz, text in zip(("input", "output"), (inward, output), texts, strict=True):
            if ansatz.layers:
                counted = _count(ansatz, stream_seed(seed, "count", number, side), request.settings.level)
                found.append({"layer": number, "side": side, "circuit": text, **counted})
    return found


def _count(ansatz: Ansatz, seed: int, level: int) -> dict[str, Any]:
    circuit = Circuit(ansatz, "random", seed)
    segments = exported(circuit)
    counts = [count_gates(segment, optimization_level=level) for segment in segments]
    return {
        "parameters": circuit.num_parameters,
        "segments": len(segments),
        "cnots": circuit.cnot_count,
        "transpiled": sum(count["transpiled"]["two_qubit"] for count in counts),
        "depth": sum(count["transpiled"]["depth"] for count in counts),
    }


def _row(study: Study, line: Line, found: Sequence[list[dict[str, Any]]], seeds: range) -> Row:
    original = study.lines[0].paper[0]
    bare = next((other.paper[0] for other in study.lines[1:] if other.kind == "hybrid" and other.paper[0]), None)
    printed = None if line.paper[0] is None or bare is None or original is None else line.paper[0] - bare
    return make_row(
        line.name,
        "hybrid",
        [sum(circuit["cnots"] for circuit in each) for each in found],
        seeds=seeds,
        parameters=sum(circuit["parameters"] for circuit in found[0]),
        paper={"parameters": printed, "value": None},
        description=line.text,
        transpiled=[sum(circuit["transpiled"] for circuit in each) for each in found],
        circuits=found[0],
    )


def _totals(rows: Sequence[Row]) -> Section:
    cells = [
        (
            row["name"],
            f"{row['parameters']:,}",
            "-" if row["paper"]["parameters"] is None else f"{row['paper']['parameters']:,}",
            f"{row['mean']:,.0f}",
            with_spread(row["transpiled"], 0),
        )
        for row in rows
    ]
    columns = ("network", "parameters of circuits", "paper's", "CNOTs as built", "two-qubit gates, transpiled")
    return Section(columns, tuple(cells), heading="Networks")


def _circuits(rows: Sequence[Row]) -> Section:
    cells = [
        (
            f"{row['name']}, layer {circuit['layer']}, {circuit['side']}",
            circuit["circuit"],
            f"{circuit['parameters']:,}",
            f"{circuit['cnots']:,}",
            f"{circuit['transpiled']:,}",
            f"{circuit['depth']:,}",
        )
        for row in rows
        for circuit in row["circuits"]
    ]
    columns = ("circuit", "layers", "parameters", "CNOTs", "transpiled, seed 0", "depth")
    return Section(columns, tuple(cells), heading="Circuits")


def _plot(path: Path, rows: Sequence[Row]) -> None:
    from unbraid.report.plots import BLUE, SKY, save_png

    def draw(ax: Any) -> Any:
        places = range(len(rows))
        ax.barh([place - 0.2 for place in places], [row["mean"] for row in rows], 0.36, color=BLUE, label="as built")
        transpiled = [statistics.fmean(row["transpiled"]) for row in rows]
        ax.barh([place + 0.2 for place in places], transpiled, 0.36, color=SKY, label="FakeMontreal")
        ax.set_yticks(list(places), [row["name"] for row in rows])
        ax.set_ylim(len(rows) - 0.5, -0.5)
        ax.set_xlabel("two-qubit gates of all circuits")
        ax.legend()
        return ax

    save_png(path, draw)
