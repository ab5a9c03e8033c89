"""``unbraid reproduce tenfold``: a dense MNIST network, a tenth of its size and less, healed in a tenth of its time.

784 -> 1024 -> 1024 -> 1024 -> 10 with ReLU and biases. Its three large layers become operators; everything that the
compressed network has is counted, the head and all biases too, and everything that making it takes is timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from unbraid.nn import (
    InputMoments,
    LayerSensitivity,
    accuracy,
    allocate,
    classification,
    heal,
    input_moments,
    model_bytes,
    quantize,
    sensitivity,
    tensorize,
)
from unbraid.recipes.compressing import count, distil, mean
from unbraid.recipes.datasets import Dataset
from unbraid.recipes.models import relu_network
from unbraid.recipes.recipe import Outcome, Recipe, Request, Row, Section, Task, counted, make_row, with_spread

Result = TypeVar("Result")

TARGETS = ("fc1", "fc2", "fc3")
DENSE, OURS, LOW_RANK, PLAIN = "dense", "ours", "low rank", "plain operators"
WAYS = {
    OURS: "two sites a layer, fitted to the layers' outputs, the budget spent by sensitivity",
    LOW_RANK: "truncated SVD, every layer the same fraction",
    PLAIN: "MPOs of several sites by TT-SVD, every layer the same fraction",
}


@dataclass(frozen=True)
class Settings:
    """What the results depend on; rates were chosen on the validation part.

    Attributes:
        hidden: widths of the hidden layers.
        epochs: of the dense network.
        lr: its peak.
        batch_size: its rows.
        factors: how many times fewer parameters, of the whole network.
        healing_lr: the peak of each factor's healing.
        healing: its epochs, of networks of two sites a layer.
        plain_healing: the same of plain operators, which take several times as long an epoch.
        healing_batch_size: rows of both.
        calibration: training rows for moments of inputs.
        scanned: training rows for sensitivities.
        bonds: of the sensitivities.
    """

    hidden: tuple[int, int, int] = (1024, 1024, 1024)
    epochs: int = 10
    lr: float = 1e-3
    batch_size: int = 128
    factors: tuple[int, ...] = (10, 20, 50, 100)
    healing_lr: tuple[float, ...] = (1e-3, 2e-3, 4e-3, 4e-3)
    healing: int = 3
    plain_healing: int = 1
    healing_batch_size: int = 256
    calibration: int = 2_000
    scanned: int = 1_024
    bonds: tuple[int, ...] = (2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True)
class _Seconds:
    """How long something took, on the wall and on the processor."""

    wall: float
    cpu: float

    def __add__(self, other: _Seconds) -> _Seconds:
        return _Seconds(self.wall + other.wall, self.cpu + other.cpu)


def _timed(work: Callable[[], Result]) -> tuple[Result, _Seconds]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, _Seconds(time.perf_counter() - wall, time.process_time() - cpu)


def run_seed(request: Request, seed: int) -> dict[str, Any]:
    """Train, compress in every way by every factor, heal: accuracies, parameters and times of one process."""
    settings: Settings = request.settings
    data = _data(request, seed)
    dense = relu_network((784, *settings.hidden, 10), seed, "tenfold")
    torch.optim.Adam(dense.parameters())  # the first of a process loads torch's compiler, which is no training
    _, trained = _timed(
        lambda: heal(
            dense,
            data.train,
            data.validation,
            epochs=settings.epochs,
            lr=settings.lr,
            batch_size=settings.batch_size,
            seed=seed,
        )
    )
    (moments, profile), looked = _timed(lambda: _seen(dense, data, settings))
    found = {DENSE: _measured(dense, data) | {"wall": trained.wall, "cpu": trained.cpu}}
    for factor, lr in zip(settings.factors, settings.healing_lr, strict=True):
        for way in WAYS:
            model, decomposed = _timed(partial(_compressed, dense, way, factor, moments, profile))
            before = accuracy(model, *data.test)
            _, healed = _timed(partial(_heal, model, dense, data, settings, way, lr, seed))
            needed = decomposed + healed + (looked if way == OURS else _Seconds(0, 0))
            found[_named(way, factor)] = _measured(model, data) | {
                "before": before,
                "wall": needed.wall,
                "cpu": needed.cpu,
            }
    return found


def _seen(
    dense: nn.Module, data: Dataset, settings: Settings
) -> tuple[dict[str, InputMoments], list[LayerSensitivity]]:
    """What layers see, and how much the loss grows with each at each bond."""
    x, y = data.train
    moments = input_moments(dense, x[: settings.calibration], targets=TARGETS)
    profile = sensitivity(
        dense,
        _batches((x[: settings.scanned], y[: settings.scanned]), settings.batch_size),
        classification(),
        targets=TARGETS,
        bonds=settings.bonds,
        sites="low-rank",
        moments=moments,
    )
    return moments, profile


def _batches(part: tuple[Tensor, Tensor], size: int) -> list[tuple[Tensor, Tensor]]:
    x, y = part
    return list(zip(x.split(size), y.split(size), strict=True))


def _budget(dense: nn.Module, factor: int) -> float:
    """Core entries as a fraction of the layers' weights, so that the network has ``factor`` times fewer parameters."""
    weights = sum(dense.get_submodule(name).get_parameter("weight").numel() for name in TARGETS)
    return (count(dense) / factor - (count(dense) - weights)) / weights


def _compressed(
    dense: nn.Module,
    way: str,
    factor: int,
    moments: Mapping[str, InputMoments],
    profile: Sequence[LayerSensitivity],
) -> nn.Module:
    budget = _budget(dense, factor)
    if way != OURS:
        return tensorize(dense, TARGETS, budget=budget, sites="low-rank" if way == LOW_RANK else "auto")
    options = allocate(profile, budget).options
    return tensorize(dense, list(options), sites="low-rank", layer_options=options, moments=moments)


def _measured(model: nn.Module, data: Dataset) -> dict[str, Any]:
    """Accuracies and sizes, also with all linear layers as integers of eight bits."""
    integers = quantize(model, "all-linear")
    return {
        "accuracy": accuracy(model, *data.test),
        "validation": accuracy(model, *data.validation),
        "parameters": count(model),
        "bytes": model_bytes(model),
        "integers": accuracy(integers, *data.test),
        "integer_bytes": model_bytes(integers),
    }


def _heal(
    model: nn.Module, dense: nn.Module, data: Dataset, settings: Settings, way: str, lr: float, seed: int
) -> None:
    distil(
        model,
        dense,
        classification(),
        _batches(data.train, settings.healing_batch_size),
        _batches(data.validation, 1_000),
        epochs=settings.plain_healing if way == PLAIN else settings.healing,
        lr=lr,
        seed=seed,
    )


def _named(way: str, factor: int) -> str:
    return f"{way}, {factor}x"


def _data(request: Request, seed: int) -> Dataset:
    return request.load("mnist", seed=seed)


def _tasks(request: Request) -> list[Task]:
    return [Task(f"seed-{seed}", run_seed, {"seed": seed}, seed=seed) for seed in range(request.seeds)]


def _assemble(request: Request, results: Mapping[str, Any]) -> Outcome:
    settings: Settings = request.settings
    seeds = range(request.seeds)
    found = [results[f"seed-{seed}"] for seed in seeds]
    network = " -> ".join(str(size) for size in (784, *settings.hidden, 10))
    rows = [_row(DENSE, "original", found, seeds, description=f"{network}, {counted(settings.epochs, 'epoch')}")]
    for factor in settings.factors:
        for way, meaning in WAYS.items():
            kind = "hybrid" if way == OURS else "control"
            rows.append(_row(_named(way, factor), kind, found, seeds, description=meaning, way=way, factor=factor))
    return Outcome(
        title="A dense MNIST network, ten times smaller",
        note=(
            f"MNIST, {counted(request.seeds, 'seed')}: mean and sample standard deviation; hyperparameters were chosen "
            "on the validation part. Parameters of the whole network, biases and head included. Seconds: of the dense "
            "network's training, or of all that comes after it (moments, sensitivities, decomposition, healing towards "
            "the dense network's outputs), on the wall and on the processor, one thread of one process; share: of the "
            f"dense training of that process. Healed for {counted(settings.healing, 'epoch')}, plain operators for "
            f"{settings.plain_healing}: each of theirs takes several times as long."
        ),
        rows=rows,
        sections=(_table(rows), _integers(rows)),
    )


def _row(name: str, kind: str, found: Sequence[Any], seeds: Sequence[int], **more: Any) -> Row:
    each = [result[name] for result in found]
    original = [result[DENSE] for result in found]
    return make_row(
        name,
        kind,
        [one["accuracy"] for one in each],
        seeds=seeds,
        parameters=max(one["parameters"] for one in each),
        **more,
        lost=[first["accuracy"] - one["accuracy"] for first, one in zip(original, each, strict=True)],
        before=None if name == DENSE else [one["before"] for one in each],
        validation=[one["validation"] for one in each],
        seconds=[{"wall": one["wall"], "cpu": one["cpu"]} for one in each],
        share=[
            {clock: one[clock] / first[clock] for clock in ("wall", "cpu")}
            for first, one in zip(original, each, strict=True)
        ],
        bytes=max(one["bytes"] for one in each),
        integers={"bytes": max(one["integer_bytes"] for one in each), "values": [one["integers"] for one in each]},
    )


def _table(rows: Sequence[Row]) -> Section:
    parameters = rows[0]["parameters"]
    cells = []
    for row in rows:
        dense = row["name"] == DENSE
        cells.append(
            (
                row["name"],
                f"{row['parameters']:,}",
                f"{parameters / row['parameters']:.1f}",
                "-" if dense else with_spread([100 * value for value in row["before"]], 2),
                with_spread([100 * value for value in row["values"]], 2),
                "-" if dense else with_spread([100 * value for value in row["lost"]], 2),
                *(f"{mean([each[clock] for each in row['seconds']]):.1f}" for clock in ("wall", "cpu")),
                *(
                    "-" if dense else f"{100 * max(share[clock] for share in row['share']):.1f}"
                    for clock in ("wall", "cpu")
                ),
            )
        )
    columns = (
        "network",
        "parameters",
        "times fewer",
        "not healed: test %",
        "test %",
        "points lost",
        "wall s",
        "CPU s",
        "wall %, at most",
        "CPU %, at most",
    )
    return Section(columns, tuple(cells), details=tuple(row["description"] for row in rows))


def _integers(rows: Sequence[Row]) -> Section:
    cells = []
    for row in rows:
        if row["kind"] == "control":
            continue
        stored = row["integers"]
        cells.append(
            (
                row["name"],
                f"{row['bytes']:,}",
                f"{stored['bytes']:,}",
                f"{rows[0]['bytes'] / stored['bytes']:.1f}",
                with_spread([100 * value for value in stored["values"]], 2),
            )
        )
    return Section(
        ("network", "bytes", "bytes, int8", "times fewer than dense", "test %, int8"),
        tuple(cells),
        heading="Stored as integers",
        note="Weights and cores as integers of eight bits with a scale for every 64; biases in single precision.",
    )


def _plot(path: Path, rows: Sequence[Row]) -> None:
    from unbraid.report.plots import plot_points, save_png

    curves: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    for row in rows[1:]:
        curves[row["way"]].append((rows[0]["parameters"] / row["parameters"], 100 * mean(row["lost"])))

    save_png(path, lambda ax: plot_points(curves, "times fewer parameters", "points lost, healed", ax=ax))


RECIPE = Recipe(
    settings=Settings(),
    quick=Settings(
        hidden=(128, 128, 128),
        epochs=2,
        factors=(5,),
        healing_lr=(1e-3,),
        calibration=500,
        scanned=128,
        bonds=(2, 8, 32),
    ),
    seeds=3,
    quick_seeds=1,
    data=_data,
    tasks=_tasks,
    assemble=_assemble,
    plot=_plot,
)
