"""``unbraid reproduce fig4``: overlap and entropy against the number of layers, and the gates that 94 % take.

Five ways stand side by side. "As the paper" fixes the core by truncation, starts every gate from a Haar-random one and
stops after a few sweeps: the overlap dips where circuits are deep. "As the paper, converged" goes on from the same
starts until nothing more is gained: shallow circuits gain, yet a deeper dip stays. "As the paper, near the identity"
changes only the start, and there is none: Haar-random deep circuits lead to places that nothing better lies next to.
"Ours, SO(4)" and "ours" optimise the core too, grow each circuit from the shallower ones and from fresh starts, and try
both parities, so that no depth ends below a shallower one; the first keeps to determinant 1, the second searches
determinants.

A last curve searches the places of single CNOTs instead of layers.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unbraid.circuits import Ansatz, brickwall, scaffold
from unbraid.circuits.gates import cnot_cost
from unbraid.disentangling import Disentangled, disentangle, search_placement
from unbraid.recipes.recipe import Outcome, Recipe, Request, Row, Section, Task, counted, make_row, spread, with_spread
from unbraid.recipes.table1 import PAPER
from unbraid.recipes.tnn import (
    MAX_BOND,
    MIXED,
    SITES,
    START_OF,
    STARTS,
    TITLES,
    TRAINED,
    describe_networks,
    load_images,
    mpo_from_result,
    training_task,
)
from unbraid.tensors import MPO

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TWO_BODY, SCAFFOLD = "2-body", "scaffold"
ANSAETZE = (TWO_BODY, "3-body", "4-body", "5-body", "6-body", SCAFFOLD)
SEARCHED = "searched CNOTs"
GAUSSIAN = "Gaussian"
SOURCES = (TRAINED, MIXED, GAUSSIAN)
ENOUGH = 0.94  # the overlap at which the paper counts gates
PAPER_DIP = (5, 10)  # layers
SAME = 1e-4  # results whose overlaps differ by less are told apart by their CNOTs
ALLOWED_DROP = 1e-3  # of an overlap against a shallower circuit's


@dataclass(frozen=True)
class Way:
    """How a circuit is found.

    Attributes:
        name: for tables.
        kind: of the rows.
        core: "fixed" | "joint".
        gate: group of the gates on two qubits.
        large_gate: group of the gates on more; our synthesis takes determinant 1 there.
        ansaetze: those that it is tried on.
        parity: of the brickwall; "auto" takes the better one.
        starts: of the gates; the best one counts.
        restarts: runs a start of gates on two qubits, of which the best counts.
        fewer: the same of the other gates, and of those grown.
        grown: whether each depth also starts from the result of the depth before, parity by parity.
        fresh: deepest brickwalls that begin from ``starts`` too, if grown; scaffolds always do.
        repeats: results, over which the mean is taken.
        max_sweeps: of each run.
        tolerance: of each run.
    """

    name: str
    kind: str
    core: str
    gate: str
    large_gate: str
    ansaetze: tuple[str, ...]
    parity: int | str
    starts: tuple[str, ...]
    restarts: int
    fewer: int
    grown: bool
    fresh: int
    repeats: int
    max_sweeps: int
    tolerance: float


AS_THE_PAPER = Way(
    name="as the paper",
    kind="original",
    core="fixed",
    gate="o",
    large_gate="o",
    ansaetze=ANSAETZE,
    parity=0,
    starts=("random",),
    restarts=1,
    fewer=1,
    grown=False,
    fresh=0,
    repeats=5,
    max_sweeps=20,
    tolerance=0.0,
)
CONVERGED = replace(
    AS_THE_PAPER, name="as the paper, converged", ansaetze=(TWO_BODY,), repeats=3, max_sweeps=2000, tolerance=1e-6
)
NEAR = replace(CONVERGED, name="as the paper, near the identity", kind="control", starts=("near_identity",))
OURS = Way(
    name="ours",
    kind="hybrid",
    core="joint",
    gate="o",
    large_gate="so",
    ansaetze=ANSAETZE,
    parity="auto",
    starts=("near_identity", "random"),
    restarts=32,
    fewer=3,
    grown=True,
    fresh=6,
    repeats=1,
    max_sweeps=2000,
    tolerance=1e-6,
)
OURS_SO = replace(OURS, name="ours, SO(4)", gate="so", ansaetze=(TWO_BODY,))
WAYS = (AS_THE_PAPER, CONVERGED, NEAR, OURS_SO, OURS)

# Overlaps that the optimiser is held to: two-body gates, "trained" of MNIST, by layers a side.
BARS = {
    OURS_SO.name: {1: 0.69, 2: 0.87, 3: 0.92, 5: 0.955, 8: 0.965},
    OURS.name: {1: 0.69, 2: 0.92, 3: 0.95, 5: 0.962, 8: 0.97},
}


@dataclass(frozen=True)
class Fig4Settings:
    """What the figure is made with.

    Attributes:
        depths: layers of the brickwalls, and rows of CNOTs of the scaffold.
        deepest: most layers for each of `ANSAETZE`; gates on many qubits need few.
        ways: to find the circuits.
        sources: of the MPOs; untrained ones get gates on two qubits only, and no control.
        searched: CNOTs a side up to which their places are searched, on trained MPOs; 0 for none.
    """

    depths: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 20, 24, 30, 35, 40)
    deepest: tuple[int, ...] = (40, 12, 8, 4, 1, 40)
    ways: tuple[Way, ...] = WAYS
    sources: tuple[str, ...] = SOURCES
    searched: int = 15


QUICK = Fig4Settings(
    depths=(1, 2, 3, 5, 8),
    deepest=(8, 3, 2, 2, 1, 8),
    ways=(
        replace(AS_THE_PAPER, repeats=1),
        *(replace(way, repeats=1, max_sweeps=500) for way in (CONVERGED, NEAR)),
        *(replace(way, restarts=4, fewer=1, max_sweeps=200, tolerance=1e-5) for way in (OURS_SO, OURS)),
    ),
    sources=(TRAINED,),
    searched=4,
)


def curve(
    request: Request, network: Mapping[str, Any], source: str, way: str, ansatz: str, seed: int
) -> list[dict[str, Any]]:
    """One curve of one MPO: overlap, ceiling, mean bond entropy, CNOTs and parameters at each depth."""
    settings: Fig4Settings = request.settings
    chosen = next(one for one in settings.ways if one.name == way)
    points = []
    for depth, runs in _results(_mpo(network, source, seed), ansatz, _depths(settings, ansatz), chosen, seed):
        first = runs[0]
        circuits = (first.output_circuit, first.input_circuit)
        points.append(
            {
                "layers": depth,
                "overlap": statistics.fmean(run.overlap for run in runs),
                "overlaps": [run.overlap for run in runs],
                "ceiling": first.ceiling,
                "entropy": statistics.fmean(float(run.entropies_after.mean()) for run in runs),
                "cnots": statistics.fmean(sum(run.cnot_counts) for run in runs),
                "complex_cnots": sum(_complex_cnots(circuit.ansatz) for circuit in circuits),
                "parameters": _parameters(first),
                "converged": all(run.status != "out_of_sweeps" for run in runs),
                "sweeps": [len(run.history) for run in runs],
            }
        )
    return points


def _results(
    mpo: MPO, ansatz: str, depths: Sequence[int], way: Way, seed: int
) -> Iterator[tuple[int, list[Disentangled]]]:
    """Depth after depth: the best result of a way that grows, or all results of one that does not."""
    chains: dict[int, Disentangled] = {}  # the best result of each parity so far
    for depth in depths:
        geometries = _geometries(ansatz, depth, way)
        if not way.grown:
            repeats = range(way.repeats)
            yield depth, [run for k in repeats for run in _runs(mpo, geometries[0], ansatz, way, 1000 * seed + k)]
            continue
        found: list[Disentangled] = []
        for parity, geometry in enumerate(geometries):
            runs = _runs(mpo, geometry, ansatz, way, 1000 * seed, chains.get(parity))
            chains[parity] = max(runs, key=lambda run: run.overlap)
            found += runs
        enough = max(run.overlap for run in found) - SAME
        yield depth, [min((run for run in found if run.overlap >= enough), key=lambda run: sum(run.cnot_counts))]


def _runs(
    mpo: MPO, geometry: Ansatz, ansatz: str, way: Way, seed: int, inner: Disentangled | None = None
) -> list[Disentangled]:
    """A result of each start at one depth; ``inner`` is the result that the new layers may be put around."""
    starts: list[tuple[str | Disentangled, int]] = [] if inner is None else [(inner, way.fewer)]
    if not way.grown or geometry.depth <= way.fresh or ansatz == SCAFFOLD:
        starts += [(start, way.restarts if ansatz == TWO_BODY else way.fewer) for start in way.starts]
        if way.grown and way.gate == "o" and ansatz == TWO_BODY:
            starts.append((way.starts[0], 1))  # begins with determinants 1, which take fewer CNOTs
    return [
        disentangle(
            mpo,
            geometry,
            core=way.core,
            start=start,
            restarts=restarts,
            max_sweeps=way.max_sweeps,
            tolerance=way.tolerance,
            seed=seed,
        )
        for start, restarts in starts
    ]


def _geometries(name: str, depth: int, way: Way) -> tuple[Ansatz, ...]:
    if name == SCAFFOLD:
        return (scaffold(len(SITES), depth),)
    body = int(name[0])
    gate = way.gate if body == 2 else way.large_gate
    both = brickwall(len(SITES), depth, body=body, gate=gate, parity=way.parity)
    return (replace(both, alternatives=()), *both.alternatives)


def search(request: Request, network: Mapping[str, Any], source: str, seed: int) -> list[dict[str, Any]]:
    """Overlap against CNOTs of one MPO, their places searched: one point for each number a side."""
    settings: Fig4Settings = request.settings
    front = search_placement(_mpo(network, source, seed), settings.searched, seed=seed)
    points = []
    for number in range(1, settings.searched + 1):
        point = front.at(number)
        points.append(
            {
                "cnots_a_side": number,
                "overlap": point.overlap,
                "entropy": float(point.result.entropies_after.mean()),
                "ceiling": point.result.ceiling,
                "cnots": sum(point.cnots),
                "parameters": _parameters(point.result),
            }
        )
    return points


def gaussian_mpo(seed: int) -> MPO:
    """An MPO of independent Gaussian cores: no structure to find."""
    return MPO.random(SITES, SITES, MAX_BOND, seed=seed)


def _mpo(network: Mapping[str, Any], source: str, seed: int) -> MPO:
    return gaussian_mpo(seed) if source == GAUSSIAN else mpo_from_result(network)


def _parameters(found: Disentangled) -> int:
    return found.core.num_parameters + found.output_circuit.num_parameters + found.input_circuit.num_parameters


def _complex_cnots(ansatz: Ansatz) -> int:
    """CNOTs if every trainable gate is made as a unitary, as the paper does."""
    return sum(cnot_cost("u", 2 ** len(gate.wires)) if gate.is_trainable else 1 for gate in ansatz.gates())


def _depths(settings: Fig4Settings, ansatz: str) -> list[int]:
    deepest = settings.deepest[ANSAETZE.index(ansatz)]
    return [depth for depth in settings.depths if depth <= deepest]


def _kinds(settings: Fig4Settings, source: str) -> list[tuple[Way, str]]:
    """The ways and ansaetze of a source."""
    return [
        (way, ansatz)
        for way in settings.ways
        for ansatz in way.ansaetze
        if source in START_OF or (ansatz == TWO_BODY and way.kind != "control")
    ]


def _name(source: str, way: str, ansatz: str, seed: int) -> str:
    return f"seed-{seed}-{source}-{way}-{ansatz}".translate({ord(" "): "-", **dict.fromkeys(map(ord, ",()"))}).lower()


def _network(source: str, seed: int) -> Task:
    """The training that a curve waits for; a Gaussian MPO needs none and waits for the first."""
    return training_task(seed, START_OF.get(source, STARTS[0]))


def _searched(settings: Fig4Settings) -> list[str]:
    """The sources on which places of CNOTs are searched."""
    return [source for source in settings.sources if source in START_OF and settings.searched]


def _tasks(request: Request) -> list[Task]:
    settings: Fig4Settings = request.settings
    seeds = range(request.seeds)
    networks = {(task := _network(source, seed)).name: task for source in settings.sources for seed in seeds}
    curves = [
        Task(
            _name(source, way.name, ansatz, seed),
            curve,
            {"source": source, "way": way.name, "ansatz": ansatz, "seed": seed},
            after=_network(source, seed).name,
            seed=seed,
        )
        for source in settings.sources
        for way, ansatz in reversed(_kinds(settings, source))  # the longest first
        for seed in seeds
    ]
    searches = [
        Task(
            _name(source, SEARCHED, "places", seed),
            search,
            {"source": source, "seed": seed},
            after=_network(source, seed).name,
            seed=seed,
        )
        for source in _searched(settings)
        for seed in seeds
    ]
    return [*networks.values(), *searches, *curves]


def _assemble(request: Request, results: Mapping[str, Any]) -> Outcome:
    settings: Fig4Settings = request.settings
    seeds = range(request.seeds)
    rows: list[Row] = []
    for source in settings.sources:
        for way, ansatz in _kinds(settings, source):
            curves = [results[_name(source, way.name, ansatz, seed)] for seed in seeds]
            rows += [_row(source, way, ansatz, points) for points in zip(*curves, strict=True)]
        if source in _searched(settings):
            fronts = [results[_name(source, SEARCHED, "places", seed)] for seed in seeds]
            rows += [_searched_row(source, points) for points in zip(*fronts, strict=True)]
    names = dict.fromkeys(_network(source, seed).name for source in settings.sources for seed in seeds)
    networks = [results[name] for name in names]
    gaussian = ""
    if GAUSSIAN in settings.sources:
        entropies = [float(gaussian_mpo(seed).entropies().mean()) for seed in seeds]
        gaussian = (
            f' "{GAUSSIAN}": as many untrained MPOs of independent entries, mean bond entropy '
            f"{with_spread(entropies, 2)}."
        )
    note = (
        f"{describe_networks(request, networks)}{gaussian} Cores have bond 1; overlaps are mean and standard deviation "
        f"over the MPOs. {_monotone(settings, rows)} Exact simulation, no shots."
    )
    return Outcome(
        title="Fig. 4: disentangling against the number of layers",
        note=note,
        rows=rows,
        sections=(
            *(
                _overlaps(settings, rows, source, way)
                for source in settings.sources
                for way in dict.fromkeys(way for way, _ in _kinds(settings, source))
            ),
            *(_searched_section(rows, source) for source in _searched(settings)),
            *_bars(settings, rows),
            *(_gates(settings, rows, source) for source in settings.sources),
        ),
        extra={"networks": networks},
    )


def _row(source: str, way: Way, ansatz: str, points: Sequence[Mapping[str, Any]]) -> Row:
    depth = points[0]["layers"]
    value = None
    if depth == 1 and way.name == AS_THE_PAPER.name and source in START_OF and ansatz != SCAFFOLD:
        value = PAPER[int(ansatz[0])].overlap
    return make_row(
        f"{source}, {way.name}, {ansatz}, {depth} layers",
        way.kind,
        [point["overlap"] for point in points],
        seeds=range(len(points)),
        parameters=points[0]["parameters"],
        paper={"value": value},
        source=source,
        way=way.name,
        ansatz=ansatz,
        layers=depth,
        complex_cnots=points[0]["complex_cnots"],
        std_over_starts=statistics.fmean(spread(point["overlaps"]) for point in points),
        converged=all(point["converged"] for point in points),
        **_means(points),
    )


def _searched_row(source: str, points: Sequence[Mapping[str, Any]]) -> Row:
    number = points[0]["cnots_a_side"]
    return make_row(
        f"{source}, {SEARCHED}, {number} a side",
        "hybrid",
        [point["overlap"] for point in points],
        seeds=range(len(points)),
        parameters=points[0]["parameters"],
        source=source,
        way=SEARCHED,
        ansatz=SEARCHED,
        layers=None,
        cnots_a_side=number,
        **_means(points),
    )


def _means(points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "entropy": statistics.fmean(point["entropy"] for point in points),
        "entropies": [point["entropy"] for point in points],
        "ceiling": statistics.fmean(point["ceiling"] for point in points),
        "cnots": statistics.fmean(point["cnots"] for point in points),
    }


def largest_drop(rows: Sequence[Row]) -> float:
    """By how much an overlap of a curve stays below that of a shallower circuit on the same MPO, at most."""
    return max(
        (
            earlier - later
            for k, row in enumerate(rows)
            for shallower in rows[:k]
            for earlier, later in zip(shallower["values"], row["values"], strict=True)
        ),
        default=0.0,
    )


def _monotone(settings: Fig4Settings, rows: Sequence[Row]) -> str:
    """A sentence on whether deeper circuits of ours are ever worse."""
    curves = _curves([row for row in rows if row["way"] in {way.name for way in settings.ways if way.grown}])
    brickwalls = [points for (_, _, ansatz), points in curves.items() if ansatz == TWO_BODY]
    others = [points for (_, _, ansatz), points in curves.items() if ansatz != TWO_BODY]
    drop = max((largest_drop(points) for points in brickwalls), default=0.0)
    other = max((largest_drop(points) for points in others), default=0.0)
    most = max(settings.depths)
    kept = "on no MPO gives a depth" if drop <= ALLOWED_DROP else "a depth can give"
    return (
        f"Two-body gates of ours: {kept} from 1 to {most} less than a shallower one by more than {ALLOWED_DROP:g} "
        f"(largest drop {max(drop, 0.0):.1g}; other gates of ours {max(other, 0.0):.1g})."
    )


def _overlaps(settings: Fig4Settings, rows: Sequence[Row], source: str, way: Way) -> Section:
    mine = {(row["ansatz"], row["layers"]): row for row in rows if (row["source"], row["way"]) == (source, way.name)}
    ansaetze = [ansatz for one, ansatz in _kinds(settings, source) if one == way]
    shown = [depth for depth in settings.depths if any((ansatz, depth) in mine for ansatz in ansaetze)]
    cells = tuple(
        (
            ansatz,
            _percent(mine[ansatz, shown[0]]["paper"]["value"]),
            *(with_spread(mine[ansatz, depth]["values"]) if (ansatz, depth) in mine else "-" for depth in shown),
        )
        for ansatz in ansaetze
    )
    core = "the core fixed by truncation" if way.core == "fixed" else "the core optimised too"
    group = ", determinants 1" if way.gate == "so" else ""
    words = {"random": "Haar-random gates", "near_identity": "gates near the identity"}
    start = " and from ".join(words.get(start, start) for start in way.starts)
    if way.restarts > 1:
        start += f" ({counted(way.restarts, 'run')} each"
        start += f", {way.fewer} of gates other than 2-body)" if len(ansaetze) > 1 else ")"
    if way.grown:
        start += (
            f" up to {way.fresh} layers{' (scaffolds: all)' if SCAFFOLD in ansaetze else ''}, grown from the depth "
            f"before ({counted(way.fewer, 'run')})"
        )
    parity = "best of both parities" if way.parity == "auto" else "gates from wire 0"
    mean = f"; mean of {counted(way.repeats, 'start')}" if way.repeats > 1 else ""
    stop = "" if way.tolerance == 0 else f", stopped where three sweeps in a row gain less than {way.tolerance:g} each"
    left = [] if way.tolerance == 0 else [row for row in mine.values() if not row["converged"]]
    unfinished = f" {len(left)} of {len(mine)} were still gaining." if left else ""
    return Section(
        ("overlap at layers a side", "paper, 1 layer", *(str(depth) for depth in shown)),
        cells,
        heading=f"{source}, {way.name}",
        note=f"With {core}{group}, from {start}, {parity}{mean}; at most {way.max_sweeps:,} sweeps{stop}.{unfinished}",
    )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _searched_section(rows: Sequence[Row], source: str) -> Section:
    mine = [row for row in rows if (row["source"], row["way"]) == (source, SEARCHED)]
    return Section(
        ("overlap at CNOTs a side", *(str(row["cnots_a_side"]) for row in mine)),
        ((SEARCHED, *(with_spread(row["values"]) for row in mine)),),
        heading=f"{source}, {SEARCHED}",
        note="At most so many CNOTs a side, on neighbouring wires and followed by rotations of both; their places are "
        "searched, the core is optimised too.",
    )


def _bars(settings: Fig4Settings, rows: Sequence[Row]) -> Iterator[Section]:
    """Overlaps of each trained MPO beside what the optimiser is held to."""
    for source in START_OF:
        for way in settings.ways:
            bars = BARS.get(way.name, {})
            mine = {
                row["layers"]: row["values"]
                for row in rows
                if (row["source"], row["way"], row["ansatz"]) == (source, way.name, TWO_BODY) and row["layers"] in bars
            }
            if mine:
                yield _beside_bars(source, way, bars, mine)


def _beside_bars(source: str, way: Way, bars: Mapping[int, float], found: Mapping[int, Sequence[float]]) -> Section:
    missed = 0
    lines = [("at least", *(f"{bars[depth]:g}" for depth in found))]
    for seed in range(len(next(iter(found.values())))):
        line = [f"seed {seed}"]
        for depth, values in found.items():
            below = values[seed] < bars[depth]
            missed += below
            line.append(f"{values[seed]:.4f}{' (missed)' if below else ''}")
        lines.append(tuple(line))
    held = "what the optimiser is held to on MNIST" if source == TRAINED else f"that of {TRAINED!r}, to compare"
    return Section(
        ("overlap at layers a side", *(str(depth) for depth in found)),
        tuple(lines),
        heading=f"Each seed, {source}, {TWO_BODY}, {way.name}",
        note=f"The first line is {held}; {missed or 'none'} missed.",
    )


def enough(rows: Sequence[Row], source: str, way: str, ansatz: str) -> Row | None:
    """The first row of a curve whose mean overlap reaches 94 %, or None."""
    mine = (row for row in rows if (row["source"], row["way"], row["ansatz"]) == (source, way, ansatz))
    return next((row for row in mine if row["mean"] >= ENOUGH), None)


def _gates(settings: Fig4Settings, rows: Sequence[Row], source: str) -> Section:
    kinds = [(way.name, ansatz) for way, ansatz in _kinds(settings, source)]
    if source in _searched(settings):
        kinds.append((SEARCHED, SEARCHED))
    cells = []
    for way, ansatz in kinds:
        found = enough(rows, source, way, ansatz)
        numbers = ["-"] * 4
        if found is not None:
            layered = found["layers"] is not None
            numbers = [
                str(found["layers"]) if layered else "-",
                f"{found['cnots']:,.0f}",
                f"{found['complex_cnots']:,}" if layered else "-",
                f"{found['parameters']:,}",
            ]
        cells.append((way if way == ansatz else f"{way}, {ansatz}", *numbers))
    return Section(
        ("way, gates", "layers a side", "CNOTs, real gates", "CNOTs, complex gates", "parameters"),
        tuple(cells),
        heading=f"Gates for an overlap of {ENOUGH:.0%}, {source}",
        note=f"The fewest layers, among those tried, whose mean overlap reaches {ENOUGH:.0%}. CNOTs of both sides "
        "together as built, any two qubits connected: of the real gates found, mean over the MPOs (determinant -1 on "
        "two qubits costs a third CNOT), and of as many complex gates by Qiskit's synthesis, as in the paper. A dash: "
        "not reached, or no such number.",
    )


def _plot(path: Path, rows: Sequence[Row]) -> None:
    from unbraid.report.plots import save_figure

    sources = [source for source in START_OF if any(row["source"] == source for row in rows)]

    def draw(figure: Figure) -> None:
        figure.set_size_inches(10.4, 6.4)
        panels = figure.subplots(2, 3)
        for ax, source in zip(panels[0], sources, strict=False):
            _draw_layers(ax, rows, source, "mean", "overlap")
            ax.set_title(TITLES[source], fontsize=9)
        if len(sources) == 1:
            panels[0, 1].set_axis_off()
        low = min(ax.get_ylim()[0] for ax in panels[0, : len(sources)])
        for ax in panels[0, : len(sources)]:
            ax.set_ylim(low, 1.01)
        _draw_ways(panels[0, 2], rows)
        _draw_layers(panels[1, 0], rows, TRAINED, "entropy", "mean bond entropy (nats)")
        panels[1, 0].set_title(TITLES[TRAINED], fontsize=9)
        _draw_overlap_entropy(panels[1, 1], rows, sources)
        _draw_gates(panels[1, 2], rows, sources)
        handles, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), fontsize=8, columnspacing=1.2)

    save_figure(path, draw)


def _looks() -> dict[str, tuple[str, str]]:
    from unbraid.report.plots import COLOURS, MARKERS

    return dict(zip(ANSAETZE, zip(COLOURS, MARKERS, strict=True), strict=True))


def _curves(rows: Sequence[Row]) -> dict[tuple[str, str, str], list[Row]]:
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row["source"], row["way"], row["ansatz"]), []).append(row)
    return found


def _draw_layers(ax: Axes, rows: Sequence[Row], source: str, key: str, ylabel: str) -> None:
    """Ours as lines with markers, the paper's way dashed, the paper's own overlaps as diamonds."""
    from unbraid.report.plots import GREY

    looks = _looks()
    printed: list[tuple[float, str]] = []
    for (of, way, ansatz), points in _curves(rows).items():
        if of != source or way not in (AS_THE_PAPER.name, OURS.name):
            continue
        colour, marker = looks[ansatz]
        plain = way == AS_THE_PAPER.name
        ax.plot(
            [row["layers"] for row in points],
            [row[key] for row in points],
            color=colour,
            linestyle="--" if plain else "-",
            linewidth=1.0 if plain else 1.5,
            marker="" if plain else marker,
            markersize=3.5,
            label="_" if plain else ansatz,
        )
        printed += [(row["paper"]["value"], colour) for row in points if row["paper"]["value"] is not None]
    if key == "mean":
        for value, colour in printed:  # beside the axis, where no curve runs
            ax.plot([0.83], [value], "D", mfc="none", mec=colour, mew=1.2, ms=5)
        ax.plot([], [], "D", mfc="none", mec=GREY, mew=1.2, ms=5, label="paper, 1 layer")
        ax.axhline(ENOUGH, color=GREY, linestyle=":", linewidth=1.0, label=f"paper, deep 2-body: about {ENOUGH:.0%}")
    _layer_axis(ax, rows, f"layers a side (dashed: {AS_THE_PAPER.name})", ylabel)


def _layer_axis(ax: Axes, rows: Sequence[Row], xlabel: str, ylabel: str) -> None:
    ax.set_xscale("log")
    deepest = max(row["layers"] for row in rows if row["layers"] is not None)
    ticks = sorted({*(tick for tick in (1, 2, 3, 5, 10, 20, 40) if tick <= deepest), deepest})
    ax.set_xticks(ticks, [str(tick) for tick in ticks])
    ax.minorticks_off()
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)


def _draw_ways(ax: Axes, rows: Sequence[Row]) -> None:
    """All ways to find two-body gates on the trained MPOs, and the dip that the paper saw."""
    from unbraid.report.plots import BLUE, GREEN, GREY, ORANGE, SKY, VERMILION

    looks = {
        AS_THE_PAPER.name: (BLUE, "--", "o"),
        CONVERGED.name: (SKY, "-.", "v"),
        NEAR.name: (ORANGE, ":", "D"),
        OURS_SO.name: (GREEN, "-", "s"),
        OURS.name: (VERMILION, "-", "^"),
    }
    curves = _curves(rows)
    for way, (colour, dash, marker) in looks.items():
        points = curves.get((TRAINED, way, TWO_BODY), [])
        layers = [row["layers"] for row in points]
        ax.plot(layers, [row["mean"] for row in points], dash, color=colour, marker=marker, ms=3.5, label=way)
        low = [row["mean"] - row["std"] for row in points]
        high = [min(1.0, row["mean"] + row["std"]) for row in points]
        ax.fill_between(layers, low, high, color=colour, alpha=0.15, linewidth=0)
    ax.axvspan(*PAPER_DIP, color=GREY, alpha=0.12, linewidth=0, label="dip in the paper")
    ax.set_title(f"{TWO_BODY} gates, {TRAINED}", fontsize=9)
    _layer_axis(ax, rows, "layers a side", "overlap")
    bottom, top = ax.get_ylim()
    ax.set_ylim(bottom - 0.75 * (top - bottom), top)  # room for the legend
    ax.legend(fontsize=7.5, loc="lower left")


def _draw_overlap_entropy(ax: Axes, rows: Sequence[Row], sources: Sequence[str]) -> None:
    looks = _looks()
    for row in rows:
        if row["source"] in sources and row["way"] in (AS_THE_PAPER.name, OURS.name):
            colour, marker = looks[row["ansatz"]]
            fill = colour if row["way"] == OURS.name else "none"
            ax.plot(row["entropies"], row["values"], marker, color=colour, mfc=fill, mew=0.7, ms=3)
    ax.set_xlabel(f"mean bond entropy (nats); hollow: {AS_THE_PAPER.name}")
    ax.set_ylabel("overlap")
    ax.set_title(" and ".join(sources), fontsize=9)


def _draw_gates(ax: Axes, rows: Sequence[Row], sources: Sequence[str]) -> None:
    from unbraid.report.plots import BLUE, GREEN, SKY

    names = (*ANSAETZE, SEARCHED)
    kinds = [(way, source) for way in (AS_THE_PAPER.name, OURS.name) for source in sources]
    looks = dict(zip(kinds, (BLUE, SKY, GREEN, "#a6dcca") if len(sources) > 1 else (BLUE, GREEN), strict=True))
    width = 0.84 / len(kinds)
    highest = 10.0
    for index, (way, source) in enumerate(kinds):
        plain = way == AS_THE_PAPER.name
        for place, name in enumerate(names):
            if plain and name == SEARCHED:
                continue
            row = enough(rows, source, SEARCHED if name == SEARCHED else way, name)
            at = place + (index - (len(kinds) - 1) / 2) * width
            height = 0.0 if row is None else float(row["complex_cnots" if plain else "cnots"])
            highest = max(highest, height)
            ax.bar([at], [height], width, color=looks[way, source])
            text = "–" if row is None else f"{height:,.0f}"
            ax.annotate(
                text, (at, max(height, 1.0)), (0, 2), textcoords="offset points", ha="center", fontsize=5.5, rotation=90
            )
        gates = "complex" if plain else "real"
        ax.bar([0], [0], color=looks[way, source], label=f"{way}, {gates} gates: {source}")
    ax.set_yscale("log")
    ax.set_ylim(1, 3000 * highest)
    ax.set_xticks(range(len(names)), [*ANSAETZE, SEARCHED], fontsize=7, rotation=25, ha="right", rotation_mode="anchor")
    ax.grid(visible=False, axis="x")
    ax.set_xlabel("gates (–: not reached)")
    ax.set_ylabel(f"CNOTs for an overlap of {ENOUGH:.0%}")
    ax.legend(fontsize=7, loc="upper left")


RECIPE = Recipe(
    settings=Fig4Settings(),
    quick=QUICK,
    seeds=3,
    quick_seeds=1,
    data=load_images,
    tasks=_tasks,
    assemble=_assemble,
    plot=_plot,
)
