"""``unbraid reproduce table1``: what gates on k qubits cost, and the overlap of one layer of them a side."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unbraid.circuits import brickwall
from unbraid.disentangling import disentangle
from unbraid.quantum.unitaries import OWN_QUBITS, generic_gate_counts
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
    spread,
    with_spread,
)
from unbraid.recipes.tnn import (
    SITES,
    START_OF,
    TITLES,
    TRAINED,
    describe_networks,
    load_images,
    mpo_from_result,
    training_task,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEVELS = (1, 3)
BARE = "no gates"


@dataclass(frozen=True)
class Printed:
    """A line of the paper's Table 1: (one-qubit, two-qubit) gates as built and on FakeMontreal; overlap of a layer."""

    built: tuple[int, int]
    hardware: tuple[int, int]
    overlap: float


PAPER = {
    2: Printed((8, 3), (32, 3), 0.62),
    3: Printed((32, 19), (174, 44), 0.72),
    4: Printed((164, 100), (1062, 249), 0.81),
    5: Printed((693, 442), (4481, 1125), 0.93),
    6: Printed((2893, 1868), (18481, 4799), 0.96),
}


@dataclass(frozen=True)
class GateKind:
    """A way to make gates: group, synthesis, and how rows are called."""

    name: str
    kind: str
    group: str
    by: str
    description: str


GATES = (
    GateKind("complex", "original", "u", "qiskit", "Haar U(2^k), Qiskit's synthesis"),
    GateKind("real, Qiskit", "peer", "so", "qiskit", "Haar SO(2^k), Qiskit's synthesis"),
    GateKind("real, ours", "hybrid", "so", "own", "Haar SO(2^k), Ry and CX on a line"),
)


@dataclass(frozen=True)
class Way:
    """A way to disentangle; ``best`` tries both parities and several starts near the identity."""

    name: str
    kind: str
    core: str
    gate: str
    best: bool
    description: str


WAYS = (
    Way("fixed, random", "original", "fixed", "o", False, "the paper's: core fixed by truncation, Haar starts"),
    Way("fixed, best", "hybrid", "fixed", "o", True, "the same core; best parity and start"),
    Way("joint, random", "hybrid", "joint", "o", False, "core optimised too, Haar starts"),
    Way("joint, best SO", "hybrid", "joint", "so", True, "core optimised too; best parity and start, determinants 1"),
    Way("joint, best", "hybrid", "joint", "o", True, "core optimised too; best parity and start, determinants free"),
)


@dataclass(frozen=True)
class Table1Settings:
    """What the table is made with.

    Attributes:
        gate_bodies: qubits of the gates that are counted.
        gates: Haar-random gates of each kind.
        transpiler_seeds: runs of the transpiler a gate and level.
        bodies: qubits a gate of the layers.
        starts: Haar starts, each a result of its own.
        restarts: starts near the identity, of which the best counts.
        max_sweeps: of each run.
        tolerance: of each run.
    """

    gate_bodies: tuple[int, ...] = (2, 3, 4, 5, 6)
    gates: int = 10
    transpiler_seeds: int = 3
    bodies: tuple[int, ...] = (2, 3, 4, 5, 6)
    starts: int = 5
    restarts: int = 8
    max_sweeps: int = 1000
    tolerance: float = 1e-6


def count(request: Request, kind: str, body: int) -> list[dict[str, Any]]:
    """Counts of several gates of one kind, see :func:`~unbraid.quantum.unitaries.generic_gate_counts`."""
    settings: Table1Settings = request.settings
    chosen = next(gate for gate in GATES if gate.name == kind)
    return [
        generic_gate_counts(
            body,
            chosen.group,
            by=chosen.by,
            seed=seed,
            levels=LEVELS,
            transpiler_seeds=range(settings.transpiler_seeds),
        )
        for seed in range(settings.gates)
    ]


def overlaps(request: Request, network: Mapping[str, Any], body: int, seed: int) -> dict[str, dict[str, Any]]:
    """One layer of gates a side on one trained MPO, in every way: overlaps (one a start), ceiling and parameters."""
    settings: Table1Settings = request.settings
    mpo = mpo_from_result(network)
    found = {}
    for way in WAYS:
        ansatz = brickwall(len(SITES), 1, body=body, gate=way.gate, parity="auto" if way.best else 0)
        runs = [
            disentangle(
                mpo,
                ansatz,
                core=way.core,
                start="near_identity" if way.best else "random",
                restarts=settings.restarts if way.best else 1,
                max_sweeps=settings.max_sweeps,
                tolerance=settings.tolerance,
                seed=1000 * seed + start,
            )
            for start in range(1 if way.best else settings.starts)
        ]
        first = runs[0]
        found[way.name] = {
            "overlaps": [run.overlap for run in runs],
            "ceiling": first.ceiling,
            "parameters": first.core.num_parameters
            + first.output_circuit.num_parameters
            + first.input_circuit.num_parameters,
            "converged": all(run.status != "out_of_sweeps" for run in runs),
        }
    return found


def _tasks(request: Request) -> list[Task]:
    settings: Table1Settings = request.settings
    seeds = range(request.seeds)
    tasks = [
        Task(f"gates-{gate.group}-{gate.by}-{body}", count, {"kind": gate.name, "body": body})
        for body in sorted(settings.gate_bodies, reverse=True)  # the longest first
        for gate in GATES
        if gate.by == "qiskit" or body <= OWN_QUBITS
    ]
    tasks += [training_task(seed, start) for start in START_OF.values() for seed in seeds]
    return tasks + [
        Task(
            _name(source, body, seed),
            overlaps,
            {"body": body, "seed": seed},
            after=training_task(seed, start).name,
            seed=seed,
        )
        for body in sorted(settings.bodies, reverse=True)
        for source, start in START_OF.items()
        for seed in seeds
    ]


def _name(source: str, body: int, seed: int) -> str:
    return f"seed-{seed}-{START_OF[source].replace('_', '-')}-body-{body}"


def _assemble(request: Request, results: Mapping[str, Any]) -> Outcome:
    settings: Table1Settings = request.settings
    gate_rows = [
        _gate_row(body, gate, results[name])
        for body in settings.gate_bodies
        for gate in GATES
        if (name := f"gates-{gate.group}-{gate.by}-{body}") in results
    ]
    overlap_rows = [
        _overlap_row(source, body, way, [results[_name(source, body, seed)][way.name] for seed in range(request.seeds)])
        for source in START_OF
        for body in settings.bodies
        for way in WAYS
    ]
    networks = [
        results[training_task(seed, start).name] for start in START_OF.values() for seed in range(request.seeds)
    ]
    bare_rows = [
        _bare_row(source, [net for net in networks if net["start"] == start]) for source, start in START_OF.items()
    ]
    ended = "All runs converged"
    if not all(row["converged"] for row in overlap_rows):
        ended = f"Not all runs converged within {settings.max_sweeps:,} sweeps"
    return Outcome(
        title="Table 1: gates on k qubits, what they cost and how far one layer disentangles",
        note=f"{describe_networks(request, networks)} Exact simulation, no shots.",
        rows=gate_rows + overlap_rows + bare_rows,
        sections=(
            Section(
                ("qubits, gate", "1Q / 2Q as built", "level 1", "level 3", "paper, built", "paper, hardware"),
                tuple(_gate_cells(row) for row in gate_rows),
                heading="Gates of one k-qubit gate",
                note=(
                    f"Means over {counted(settings.gates, 'Haar-random gate')} and "
                    f"{counted(settings.transpiler_seeds, 'seed')} of Qiskit's transpiler to FakeMontrealV2 at "
                    "optimisation levels 1 and 3; ± is the standard deviation where there is any. As built: any two "
                    "qubits connected, one-qubit gates merged (u and cx; ours Ry and cx). The paper does not state the "
                    f"level of its hardware counts. Our synthesis takes up to {OWN_QUBITS} qubits."
                ),
            ),
            *(
                Section(
                    ("k", "paper", "ceiling, fixed", "ceiling, joint", *(way.name for way in WAYS)),
                    tuple(_overlap_cells(body, source, overlap_rows) for body in settings.bodies),
                    heading=f"Overlap of one layer of k-body gates a side, {source}",
                    note=note,
                )
                for source, note in zip(START_OF, (_overlap_note(request, ended), "As above."), strict=True)
            ),
        ),
        extra={"networks": networks},
    )


def _overlap_note(request: Request, ended: str) -> str:
    settings: Table1Settings = request.settings
    return (
        f"Mean and standard deviation over {counted(request.seeds, 'trained MPO')}, core of bond 1. Fixed: the paper's "
        "truncated core; joint: the core is optimised too. Ceilings: von Neumann's bound. Random: mean of "
        f"{counted(settings.starts, 'Haar start')}, gates from wire 0; best: {counted(settings.restarts, 'start')} "
        "near the identity at each of both places of the layer. Determinants 1 or -1, but SO: 1, as our synthesis "
        f"needs (on two qubits it makes -1 with a third CX). {ended}. Wires on which no whole gate fits stay free, two "
        "of six for k = 4 and one for k = 5; the paper does not say what stands there, nor how its MPO was trained."
    )


def _gate_row(body: int, gate: GateKind, counts: Sequence[Mapping[str, Any]]) -> Row:
    paper = PAPER[body]
    dimension = 2**body
    sums = {
        stage: {
            key: _summary([run[key] for each in counts for run in each[stage]])
            for key in ("one_qubit", "two_qubit", "depth")
        }
        for stage in counts[0]
    }
    by_group = {"u": dimension**2, "so": dimension * (dimension - 1) // 2}
    numbers: dict[str, Any] = {}
    if gate.group == "u":
        numbers = {
            "value": paper.built[1],
            "built": dict(zip(("one_qubit", "two_qubit"), paper.built, strict=True)),
            "hardware": dict(zip(("one_qubit", "two_qubit"), paper.hardware, strict=True)),
        }
    return make_row(
        f"{body} qubits, {gate.name}",
        gate.kind,
        [each["built"][0]["two_qubit"] for each in counts],
        seeds=range(len(counts)),
        parameters=by_group[gate.group],
        paper=numbers,
        quantity="two_qubit_gates",
        description=gate.description,
        qubits=body,
        gate=gate.name,
        counts=sums,
    )


def _overlap_row(source: str, body: int, way: Way, found: Sequence[Mapping[str, Any]]) -> Row:
    ceilings = [one["ceiling"] for one in found]
    return make_row(
        f"{source}, one layer of {body}-body gates, {way.name}",
        way.kind,
        [statistics.fmean(one["overlaps"]) for one in found],
        seeds=range(len(found)),
        parameters=found[0]["parameters"],
        paper={"value": PAPER[body].overlap if way.name == WAYS[0].name else None},
        quantity="overlap",
        source=source,
        description=way.description,
        qubits=body,
        way=way.name,
        ceiling=statistics.fmean(ceilings),
        std_over_starts=statistics.fmean(spread(one["overlaps"]) for one in found),
        converged=all(one["converged"] for one in found),
    )


def _bare_row(source: str, networks: Sequence[Mapping[str, Any]]) -> Row:
    return make_row(
        f"{source}, no gates",
        "control",
        [network["bare_overlap"] for network in networks],
        seeds=range(len(networks)),
        parameters=4 * len(SITES),
        quantity="overlap",
        source=source,
        description="the best core of bond 1 alone",
        qubits=0,
        way=BARE,
    )


def _summary(values: Sequence[int]) -> dict[str, float]:
    return {"mean": statistics.fmean(values), "std": spread(values), "median": statistics.median(values)}


def _gate_cells(row: Row) -> tuple[str, ...]:
    def pair(counts: Mapping[str, Any]) -> str:
        return " / ".join(_rounded(counts[key]) for key in ("one_qubit", "two_qubit"))

    def printed(key: str) -> str:
        numbers = row["paper"].get(key)
        return "-" if numbers is None else f"{numbers['one_qubit']:,} / {numbers['two_qubit']:,}"

    stages = ("built", *(f"level {level}" for level in LEVELS))
    name = f"{row['qubits']}, {row['gate']}"
    return (name, *(pair(row["counts"][stage]) for stage in stages), printed("built"), printed("hardware"))


def _rounded(summary: Mapping[str, float]) -> str:
    text = f"{summary['mean']:,.0f}"
    return text if summary["std"] < 0.5 else f"{text} ± {summary['std']:,.0f}"


def _overlap_cells(body: int, source: str, rows: Sequence[Row]) -> tuple[str, ...]:
    mine = {row["way"]: row for row in rows if (row["source"], row["qubits"]) == (source, body)}
    return (
        str(body),
        f"{PAPER[body].overlap:.2f}",
        f"{mine['fixed, random']['ceiling']:.3f}",
        f"{mine['joint, random']['ceiling']:.3f}",
        *(with_spread(mine[way.name]["values"]) for way in WAYS),
    )


def _plot(path: Path, rows: Sequence[Row]) -> None:
    from unbraid.report.plots import save_figure

    def draw(figure: Figure) -> None:
        figure.set_size_inches(11.0, 3.6)
        panels = figure.subplots(1, 3)
        _draw_gates(panels[0], [row for row in rows if row["quantity"] == "two_qubit_gates"])
        for ax, source in zip(panels[1:], START_OF, strict=True):
            _draw_overlaps(ax, [row for row in rows if row.get("source") == source])
            ax.set_title(TITLES[source], fontsize=9)
            ax.set_ylim(0.55, 1.01)
            if source == TRAINED:
                ax.legend(loc="lower right", fontsize=7.5)

    save_figure(path, draw)


def _draw_gates(ax: Axes, rows: Sequence[Row]) -> None:
    from unbraid.report.plots import BLUE, GREEN, VERMILION

    looks = {"complex": (BLUE, "o"), "real, ours": (GREEN, "s")}
    for kind, (colour, marker) in looks.items():
        mine = [row for row in rows if row["gate"] == kind]
        places = [row["qubits"] for row in mine]
        for stage, dash, filled in (("built", "-", True), ("level 3", "--", False)):
            ax.plot(
                places,
                [row["counts"][stage]["two_qubit"]["mean"] for row in mine],
                color=colour,
                marker=marker,
                linestyle=dash,
                mfc=colour if filled else "none",
                markersize=4 if filled else 7,  # both are seen where they are equal
                label=f"{kind}, {'as built' if filled else 'FakeMontreal, level 3'}",
            )
    bodies = sorted({row["qubits"] for row in rows})
    printed = (
        ("D", "as built", [PAPER[body].built for body in bodies]),
        ("^", "FakeMontreal", [PAPER[body].hardware for body in bodies]),
    )
    for marker, label, counts in printed:
        ax.plot(bodies, [two for _, two in counts], marker, mfc="none", mec=VERMILION, ms=7, label=f"paper, {label}")
    ax.set_yscale("log")
    ax.set_xticks(bodies)
    ax.set_xlabel("qubits of the gate")
    ax.set_ylabel("two-qubit gates")
    ax.legend(fontsize=7.5)


def _draw_overlaps(ax: Axes, rows: Sequence[Row]) -> None:
    from unbraid.report.plots import BLUE, GREEN, GREY, SKY, VERMILION

    bodies = sorted({row["qubits"] for row in rows if row["way"] != BARE})
    looks = {"fixed, random": (BLUE, "o", "-"), "fixed, best": (SKY, "v", "-."), "joint, best": (GREEN, "s", "--")}
    for shift, (way, (colour, marker, dash)) in zip((-0.06, 0.0, 0.06), looks.items(), strict=True):
        mine = [row for row in rows if row["way"] == way]
        ax.errorbar(
            [row["qubits"] + shift for row in mine],
            [row["mean"] for row in mine],
            [row["std"] for row in mine],
            color=colour,
            marker=marker,
            linestyle=dash,
            capsize=2,
            elinewidth=1.0,
            label=f"core {way}",
        )
    ceiling = statistics.fmean(row["ceiling"] for row in rows if row["way"] == "fixed, random")
    ax.axhline(ceiling, color=GREY, linestyle=(0, (5, 3)), linewidth=1.0, label="ceiling of the fixed core")
    bare = next(row["mean"] for row in rows if row["way"] == BARE)
    ax.axhline(bare, color=GREY, linestyle=":", linewidth=1.2, label="best core, no gates")
    ax.plot(bodies, [PAPER[body].overlap for body in bodies], "D", mfc="none", mec=VERMILION, ms=7, label="paper")
    ax.set_xticks(bodies)
    ax.set_xlabel("qubits a gate, one layer a side")
    ax.set_ylabel("overlap")


RECIPE = Recipe(
    settings=Table1Settings(),
    quick=Table1Settings(
        gate_bodies=(2, 3, 4), gates=2, transpiler_seeds=1, bodies=(2, 3, 4), starts=2, restarts=2, max_sweeps=300
    ),
    seeds=5,
    quick_seeds=1,
    data=load_images,
    tasks=_tasks,
    assemble=_assemble,
    plot=_plot,
    extras=GATE_COUNTS,
)
