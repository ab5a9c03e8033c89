"""``unbraid reproduce routes``: overlap against CNOTs, every way from a layer to circuits side by side.

Brickwalls with determinant 1 and with determinants searched, scaffolds with CNOTs in rows and with CNOTs placed by
search, sums of two terms (Eq. (1) of the paper with k = 2), and circuits fitted directly to the orthogonal factors of
the dense matrix (the QR and SVD routes of its Sec. IV), for trained MPOs, a Gaussian one, and a dense trained layer.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unbraid.circuits import Ansatz, brickwall, parse_ansatz
from unbraid.disentangling import direct_circuits, disentangle, disentangle_sum, search_placement
from unbraid.nn import heal
from unbraid.recipes.datasets import load_dataset
from unbraid.recipes.models import digits_mlp
from unbraid.recipes.pipeline import TARGET
from unbraid.recipes.pipeline import Settings as PipelineSettings
from unbraid.recipes.recipe import Outcome, Recipe, Request, Row, Section, Task, make_row, with_spread
from unbraid.recipes.tnn import (
    MAX_BOND,
    MIXED,
    SITES,
    START_OF,
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

GAUSSIAN, DENSE = "Gaussian", "dense layer"
SOURCES = (TRAINED, MIXED, GAUSSIAN, DENSE)


@dataclass(frozen=True)
class Route:
    """A way to circuits: its name in tables, kind of its rows, and what it is."""

    name: str
    kind: str
    description: str


ROUTES = (
    Route("bricks, SO(4)", "hybrid", "brickwall of SO(4) gates, product core, both parities"),
    Route("bricks, O(4)", "hybrid", "the same with determinants searched"),
    Route("CNOTs in rows", "hybrid", "one-body rotations on frozen rows of CNOTs, both parities"),
    Route("CNOTs placed", "hybrid", "the same with CNOTs placed by search"),
    Route("CNOTs alone", "control", "placed by search, without rotations"),
    Route("two terms", "hybrid", "a sum of two terms, each with a brickwall of SO(4) gates and a product core"),
    Route("SVD", "control", "circuits fitted to both orthogonal factors of the singular value decomposition"),
    Route("SVD, refitted", "control", "the same, then circuits and diagonal refitted to the matrix together"),
    Route("QR", "control", "one circuit fitted to Q; the triangle stays on the host"),
)
WITHOUT_CIRCUITS = ("bricks, SO(4)", "two terms", "QR")  # begin with what cores, or the triangle, reach alone
PLACED = {"CNOTs placed": True, "CNOTs alone": False}  # with rotations or without
DIRECT = {"SVD": ("svd", False), "SVD, refitted": ("svd", True), "QR": ("qr", False)}


@dataclass(frozen=True)
class RoutesSettings:
    """What the table is made with.

    Attributes:
        depths: layers of the brickwalls; scaffolds have twice as many rows.
        budget: CNOTs a side of the placement search.
        placed: CNOTs a side at which its front is read.
        restarts: of every run.
        tolerance: of every run.
    """

    depths: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 12)
    budget: int = 20
    placed: tuple[int, ...] = (1, 2, 3, 5, 8, 10, 12, 15, 20)
    restarts: int = 8
    tolerance: float = 1e-6


def explore(request: Request, network: Mapping[str, Any], source: str, route: str, seed: int) -> list[dict[str, Any]]:
    """One curve: overlap, CNOTs in all and numbers kept on the host, point by point."""
    settings: RoutesSettings = request.settings
    depths = (*((0,) if route in WITHOUT_CIRCUITS else ()), *settings.depths)
    if route in DIRECT:
        return [_direct(_matrix(network, source, seed), depth, route, settings, seed) for depth in depths]
    mpo = _mpo(network, source, seed)
    if route in PLACED:
        front = search_placement(mpo, settings.budget, angles=PLACED[route], seed=seed)
        best = {cnots: front.at(cnots) for cnots in settings.placed if cnots <= settings.budget}
        return [_point(2 * cnots, found.overlap, found.result.core.num_parameters) for cnots, found in best.items()]
    options: dict[str, Any] = {"restarts": settings.restarts, "tolerance": settings.tolerance, "seed": seed}
    points = []
    for depth in depths:
        if route == "two terms":
            sums = [disentangle_sum(mpo, brickwall(len(SITES), depth, parity=p), 2, **options) for p in (0, 1)]
            pair = max(sums, key=lambda one: one.overlap)
            kept = sum(term.core.num_parameters for term in pair.terms)
            points.append(_point(sum(pair.cnot_counts), pair.overlap, kept))
            continue
        runs = [
            disentangle(mpo, ansatz, start=start, **options)
            for ansatz in _ansaetze(route, depth)
            for start in (("near_identity", "random") if route == "CNOTs in rows" else ("near_identity",))
        ]
        best_run = max(runs, key=lambda run: run.overlap)
        points.append(_point(sum(best_run.cnot_counts), best_run.overlap, best_run.core.num_parameters))
    return points


def _ansaetze(route: str, depth: int) -> list[Ansatz]:
    if route != "CNOTs in rows":
        return [
            brickwall(len(SITES), depth, gate="o" if "O(4)" in route and "SO" not in route else "so", parity="auto")
        ]
    rows = [
        "+".join(f"cnot@{'odd' if (row + parity) % 2 else 'even'}+1b" for row in range(2 * depth)) for parity in (0, 1)
    ]
    return [parse_ansatz(f"1b+{text}", len(SITES)) for text in rows]


def _point(cnots: int, overlap: float, numbers: int) -> dict[str, Any]:
    return {"cnots": cnots, "overlap": overlap, "numbers": numbers}


def _direct(matrix: Tensor, depth: int, route: str, settings: RoutesSettings, seed: int) -> dict[str, Any]:
    name, joint = DIRECT[route]
    found = max(
        (
            direct_circuits(
                matrix,
                brickwall(len(SITES), depth, parity=parity),
                route=name,
                joint=joint,
                restarts=settings.restarts,
                tolerance=settings.tolerance,
                seed=seed,
            )
            for parity in (0, 1)
        ),
        key=lambda one: one.overlap,
    )
    return _point(sum(found.cnot_counts), found.overlap, found.num_classical)


def _mpo(network: Mapping[str, Any], source: str, seed: int) -> MPO:
    if source == GAUSSIAN:
        return MPO.random(SITES, SITES, MAX_BOND, seed=seed, dtype=torch.float64)
    if source == DENSE:
        return MPO.from_dense(_matrix(network, source, seed), SITES, SITES)
    return mpo_from_result(network)


def _matrix(network: Mapping[str, Any], source: str, seed: int) -> Tensor:
    if source == DENSE:
        return torch.tensor(network["weight"], dtype=torch.float64)
    return _mpo(network, source, seed).to_dense()


def dense_layer(request: Request, seed: int) -> dict[str, Any]:
    """The 64 x 64 layer of the demo's dense network, trained on the bundled digits."""
    settings = PipelineSettings()
    data, model = load_dataset("digits", seed=seed), digits_mlp(seed)
    heal(model, data.train, data.validation, epochs=settings.train_epochs, lr=settings.train_lr, seed=seed)
    layer = model.get_submodule(TARGET)
    assert isinstance(layer, nn.Linear)
    return {"weight": layer.weight.detach().tolist()}


def _before(source: str, seed: int) -> str:
    if source == DENSE:
        return f"seed-{seed}-dense"
    return training_task(seed, START_OF.get(source, "near_identity")).name


def _name(source: str, route: str, seed: int) -> str:
    kept = "".join(letter if letter.isalnum() else "-" for letter in f"{source} {route}".lower())
    return f"seed-{seed}-{kept}"


def _routes(source: str) -> list[Route]:
    """Searches for the best places are left out on a dense layer, whose overlaps stay far from 1."""
    return [route for route in ROUTES if source != DENSE or route.name not in (*PLACED, "two terms")]


def _tasks(request: Request) -> list[Task]:
    seeds = range(request.seeds)
    tasks = [training_task(seed, start) for start in START_OF.values() for seed in seeds]
    tasks += [Task(f"seed-{seed}-dense", dense_layer, {"seed": seed}, seed=seed) for seed in seeds]
    return tasks + [
        Task(
            _name(source, route.name, seed),
            explore,
            {"source": source, "route": route.name, "seed": seed},
            after=_before(source, seed),
            seed=seed,
        )
        for source in SOURCES
        for route in _routes(source)
        for seed in seeds
    ]


def _assemble(request: Request, results: Mapping[str, Any]) -> Outcome:
    seeds = range(request.seeds)
    rows: list[Row] = []
    for source in SOURCES:
        for route in _routes(source):
            curves = [results[_name(source, route.name, seed)] for seed in seeds]
            rows += [_row(source, route, points) for points in zip(*curves, strict=True)]
    networks = [results[training_task(seed, start).name] for start in START_OF.values() for seed in seeds]
    note = (
        f"{describe_networks(request, networks)} Gaussian: untrained MPOs of the same shape. Dense layer: the 64 x 64 "
        "layer of a dense 64-64-10 network trained on the bundled digits, never an MPO. CNOTs of both sides together, "
        "as built; QR has one side. At 0 CNOTs stand cores, and the triangle of QR, without circuits. Mean and "
        "standard deviation over seeds. Exact simulation, no shots."
    )
    return Outcome(
        title="Routes from a layer to circuits: overlap against CNOTs",
        note=note,
        rows=rows,
        sections=tuple(_section(source, rows) for source in SOURCES),
        extra={"networks": networks},
    )


def _row(source: str, route: Route, points: Sequence[Mapping[str, Any]]) -> Row:
    cnots = statistics.fmean(point["cnots"] for point in points)
    return make_row(
        f"{source}, {route.name}, {cnots:.0f} CNOTs",
        route.kind,
        [point["overlap"] for point in points],
        seeds=range(len(points)),
        parameters=points[0]["numbers"],
        source=source,
        route=route.name,
        description=route.description,
        cnots=cnots,
    )


def _section(source: str, rows: Sequence[Row]) -> Section:
    cells = []
    for route in _routes(source):
        mine = [row for row in rows if (row["source"], row["route"]) == (source, route.name)]
        shown = "; ".join(f"{row['cnots']:.0f}: {with_spread(row['values'])}" for row in mine)
        cells.append((route.name, f"{mine[0]['parameters']:,}", shown))
    return Section(
        ("route", "numbers on the host", "overlap at so many CNOTs"),
        tuple(cells),
        heading=source,
        details=tuple(route.description for route in _routes(source)),
    )


def _plot(path: Path, rows: Sequence[Row]) -> None:
    from unbraid.report.plots import save_figure

    def draw(figure: Figure) -> None:
        figure.set_size_inches(8.6, 6.4)
        axes = figure.subplots(2, 2, sharex=True)
        for ax, source in zip(axes.flat, SOURCES, strict=True):
            _draw(ax, source, rows)
        for ax in axes[1]:
            ax.set_xlabel("CNOTs, both sides")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=4, fontsize=8)

    save_figure(path, draw)


def _draw(ax: Axes, source: str, rows: Sequence[Row]) -> None:
    from unbraid.report.plots import COLOURS, GREY, MARKERS

    names = [route.name for route in ROUTES]
    colours, markers = (*COLOURS, GREY, "black", "#8c564b"), (*MARKERS, "x", "+", "*")
    looks = dict(zip(names, zip(colours, markers, strict=True), strict=True))
    for route in _routes(source):
        colour, marker = looks[route.name]
        mine = [row for row in rows if (row["source"], row["route"]) == (source, route.name)]
        ax.errorbar(
            [row["cnots"] for row in mine],
            [1 - row["mean"] for row in mine],
            [row["std"] for row in mine],
            color=colour,
            marker=marker,
            markersize=3.5,
            linestyle="--" if route.kind == "control" else "-",
            linewidth=1.3,
            capsize=1.5,
            elinewidth=0.7,
            label=route.name,
        )
    ax.set_xscale("symlog", linthresh=10, linscale=0.7)
    ax.set_xticks(ticks := (0, 5, 10, 20, 50, 100, 200), [str(tick) for tick in ticks])
    ax.set_yscale("log")
    ax.set_ylim(bottom=0.6 * min(1 - row["mean"] for row in rows if row["source"] == source))
    ax.set_title(source, fontsize=9)
    ax.set_ylabel("1 - overlap")


RECIPE = Recipe(
    settings=RoutesSettings(),
    quick=RoutesSettings(depths=(1, 2), budget=4, placed=(1, 2, 4), restarts=2, tolerance=1e-5),
    seeds=3,
    quick_seeds=1,
    data=load_images,
    tasks=_tasks,
    assemble=_assemble,
    plot=_plot,
)
