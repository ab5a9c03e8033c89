"""``unbraid reproduce gradients``: do gradients vanish in deep circuits, and what keeps them?

The paper saw vanishing gradients in deep circuits and put nonlinearities between gates. Here the network of Fig. 3 has
an operator of bond 1 between circuits of many rows of rotations and CNOTs. At its start, gradients of the loss by the
angles are measured on training images; then it is trained. Tried are starts of the gates (Haar-random, near the
identity, the identity), depths, and what stands between the rows (nothing, ReLU, batch norm and ReLU).
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from unbraid.circuits.circuit import INITS
from unbraid.nn import Architecture, DisentangledLinear, TensorLayer, accuracy, heal
from unbraid.recipes.recipe import Outcome, Recipe, Request, Row, Section, Task, counted, make_row, with_spread
from unbraid.recipes.tnn import load_images

BETWEEN = {"nothing": "+", "ReLU": "| relu |", "batch norm + ReLU": "| bn+relu |"}
ROW = "cnot+1b"
WORDS = {"random": "Haar-random", "near_identity": "near the identity", "identity": "identity"}


@dataclass(frozen=True)
class Settings:
    """What the results depend on.

    Attributes:
        depths: rows of CNOTs and rotations a side.
        images: of which gradients are measured, as one batch.
        epochs: of the training.
        lr: its peak.
        batch_size: rows.
    """

    depths: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    images: int = 512
    epochs: int = 10
    lr: float = 2e-2
    batch_size: int = 512


def declared(depth: int, between: str) -> Architecture:
    """64 -> 64 at bond 1 between two circuits of so many rows, and 64 -> 10."""
    text = f" {BETWEEN[between]} ".join([ROW] * depth)
    qubits = (2,) * 6
    return Architecture(
        (
            TensorLayer(qubits, qubits, 1, text, text),
            TensorLayer((64,), (10,), 1, norm=False, relu=False),
        )
    )


def run_way(request: Request, init: str, between: str, depth: int, seed: int) -> dict[str, Any]:
    """Gradients at the start, and accuracy after training."""
    settings: Settings = request.settings
    data = load_images(request, seed)
    model = declared(depth, between).build(seed, init)
    x, y = (part[: settings.images] for part in data.train)
    norms = gradient_norms(model, x, y)
    heal(
        model,
        data.train,
        data.validation,
        epochs=settings.epochs,
        lr=settings.lr,
        batch_size=settings.batch_size,
        seed=seed,
    )
    return {**norms, "accuracy": accuracy(model, *data.test)}


def gradient_norms(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> dict[str, float]:
    """Root mean squares of the derivatives of the loss: by all angles, by those next to the core, by the outermost."""
    model.train()
    model.zero_grad()
    cross_entropy(model(x), y).backward()
    layer = model.get_submodule("layer1")
    assert isinstance(layer, DisentangledLinear)
    inner, outer, every = [], [], []
    for circuit in (layer.input_circuit, layer.output_circuit):
        gradient = circuit.generators["so2"].grad
        assert gradient is not None
        wires = len(circuit.ansatz.wire_dims)
        inner.append(gradient[:wires])
        outer.append(gradient[-wires:])
        every.append(gradient)
    model.zero_grad()
    return {
        name: float(torch.cat(parts).square().mean().sqrt())
        for name, parts in (("all", every), ("inner", inner), ("outer", outer))
    }


def _tasks(request: Request) -> list[Task]:
    return [
        Task(
            f"seed-{seed}-{init}-{number}-depth-{depth}".replace("_", "-"),
            run_way,
            {"init": init, "between": between, "depth": depth, "seed": seed},
            seed=seed,
        )
        for seed in range(request.seeds)
        for init in INITS
        for number, between in enumerate(BETWEEN)
        for depth in request.settings.depths
    ]


def _assemble(request: Request, results: Mapping[str, Any]) -> Outcome:
    settings: Settings = request.settings
    rows = []
    for init in INITS:
        for number, between in enumerate(BETWEEN):
            for depth in settings.depths:
                names = [
                    f"seed-{seed}-{init}-{number}-depth-{depth}".replace("_", "-") for seed in range(request.seeds)
                ]
                found = [results[name] for name in names]
                architecture = declared(depth, between)
                rows.append(
                    make_row(
                        f"{WORDS[init]}, {between}, depth {depth}",
                        "hybrid",
                        [each["all"] for each in found],
                        seeds=range(request.seeds),
                        parameters=architecture.num_parameters,
                        init=init,
                        between=between,
                        depth=depth,
                        inner=[each["inner"] for each in found],
                        outer=[each["outer"] for each in found],
                        accuracy=[each["accuracy"] for each in found],
                    )
                )
    images = "the bundled 8x8 digits" if request.data_dir is None else "MNIST scaled to 8x8"
    return Outcome(
        title="Gradients against depth, start and nonlinearities",
        note=(
            f"The network of Fig. 3 at bond 1 on {images}, {ROW} as often as the depth says on either side of the "
            f"operator; {counted(request.seeds, 'seed')}. Gradients: root mean square of the derivative of the cross "
            f"entropy by an angle, at the start, on {settings.images} training images. Accuracies: test part, after "
            f"{counted(settings.epochs, 'epoch')} of Adam with one cycle of peak {settings.lr:g}."
        ),
        rows=rows,
        sections=(
            _section(rows, settings, "Gradients at the start", _gradients),
            _section(rows, settings, "Outermost angles against those next to the core, ratio of gradients", _ratios),
            _section(rows, settings, "Test accuracy in per cent after training", _accuracies),
        ),
    )


def _section(rows: Sequence[Row], settings: Settings, heading: str, values: Any) -> Section:
    cells = []
    for init in INITS:
        for between in BETWEEN:
            mine = [row for row in rows if row["init"] == init and row["between"] == between]
            cells.append((f"{WORDS[init]}, {between}", *(values(row) for row in mine)))
    columns = ("start, between rows", *(f"depth {depth}" for depth in settings.depths))
    return Section(columns, tuple(cells), heading=heading)


def _gradients(row: Row) -> str:
    return f"{row['mean']:.1e} ± {row['std']:.0e}" if len(row["values"]) > 1 else f"{row['mean']:.1e}"


def _ratios(row: Row) -> str:
    pairs = list(zip(row["outer"], row["inner"], strict=True))
    return with_spread([one / other for one, other in pairs], 2) if all(other for _, other in pairs) else "-"


def _accuracies(row: Row) -> str:
    return with_spread([100 * value for value in row["accuracy"]], 1)


def _plot(path: Path, rows: Sequence[Row]) -> None:
    from unbraid.report.plots import COLOURS, MARKERS, save_figure

    def draw(figure: Any) -> None:
        figure.set_size_inches(9.0, 3.6)
        axes = figure.subplots(1, 2)
        for start, init in enumerate(INITS):
            for line, between in enumerate(BETWEEN):
                mine = [row for row in rows if row["init"] == init and row["between"] == between]
                style = {"color": COLOURS[line], "marker": MARKERS[start], "linestyle": ("-", "--", ":")[start]}
                depths = [row["depth"] for row in mine]
                axes[0].plot(depths, [row["mean"] for row in mine], label=f"{WORDS[init]}, {between}", **style)
                axes[1].plot(depths, [100 * statistics.fmean(row["accuracy"]) for row in mine], **style)
        for ax in axes:
            ax.set_xscale("log", base=2)
            ax.set_xlabel("rows of CNOTs and rotations a side")
        axes[0].set_yscale("log")
        axes[0].set_ylabel("gradient by an angle, at the start")
        axes[1].set_ylabel("test accuracy (%)")
        figure.legend(loc="outside upper center", ncols=3, fontsize=7)

    save_figure(path, draw)


RECIPE = Recipe(
    settings=Settings(),
    quick=Settings(depths=(1, 4, 16), epochs=3),
    seeds=5,
    quick_seeds=1,
    data=load_images,
    tasks=_tasks,
    assemble=_assemble,
    plot=_plot,
)
