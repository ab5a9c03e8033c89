"""``unbraid reproduce table3`` and ``table4``: the networks of Fig. 5 on MNIST, their circuits, and controls.

Candidate B of the architecture is the table's; candidate A stands beside. Rows named as in the paper have the circuits
of its Table 4, read as literally as its words allow, with exactly the printed numbers of parameters.
"""

from __future__ import annotations

import statistics
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from unbraid.ground.random import stream_seed
from unbraid.nn import Architecture, TensorLayer, accuracy
from unbraid.quantum import AerExecutor, TorchExecutor, estimate_cost, to_quantum
from unbraid.recipes.circuits_table import make_recipe
from unbraid.recipes.datasets import Dataset
from unbraid.recipes.implicit import (
    LONGER,
    ORIGINAL,
    Line,
    Study,
    Training,
    describe_training,
    entropy_section,
    main_section,
    make_rows,
    plot,
    train_line,
    train_original,
)
from unbraid.recipes.networks import TABLE4, Q, fig5_a, fig5_b
from unbraid.recipes.recipe import GATE_COUNTS, Outcome, Recipe, Request, Row, Section, Task, counted, with_spread

DISENTANGLED = "disentangled, no gates"
PAPER = {
    ORIGINAL: (1008, 0.9447),
    DISENTANGLED: (854, 0.9031),
    "only CNOTs": (854, 0.9158),
    "CNOTs + 1b": (876, 0.9278),
    "CNOTs + 2b": (963, 0.9388),
    "CNOTs + 1&2b, fewer": (930, 0.9351),
    "CNOTs + 1&2b": (1029, 0.9466),
}
OURS_SMALL, OURS, OURS_NOISY = "ours, at most 930", "ours, at most 1,029", "ours, at most 930, for few shots"
DESIGN, DESIGN_CIRCUITS = "own design, no circuits", "own design, circuits"


def own_design(bond: int = 2, input_circuit: str = "", output_circuit: str = "") -> Architecture:
    """16x16 images: one operator 256 -> 64 and a dense layer; 912 parameters without circuits."""
    return Architecture(
        (
            TensorLayer(
                (4,) * 4,
                (4, 4, 2, 2),
                bond,
                input_circuit,
                output_circuit,
                input_wires=Q * 8,
                output_wires=Q * 6,
            ),
            TensorLayer((64,), (10,), 1, norm=False, relu=False),
        )
    )


def small_dense() -> nn.Module:
    """8x8 images through twelve neurons; 912 parameters."""
    return nn.Sequential(nn.Linear(64, 12, bias=False), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 10, bias=False))


def low_rank() -> nn.Module:
    """8x8 images through a 64 x 32 matrix of rank 6; 960 parameters."""
    return nn.Sequential(
        OrderedDict(
            first=nn.Linear(64, 6, bias=False),
            second=nn.Linear(6, 32, bias=False),
            norm=nn.BatchNorm1d(32),
            relu=nn.ReLU(),
            output=nn.Linear(32, 10, bias=False),
        )
    )


def _ours(rows: dict[int, tuple[str, str]]) -> Architecture:
    return fig5_b(1, last_bond=2).with_circuits(rows)


_MOST = {2: ("3*(cnot+2b@even)", "cnot+2b"), 3: ("2*(cnot+2b@even)", "2*(cnot+2b)")}

STUDY = Study(
    "mnist",
    32,
    (
        Line(ORIGINAL, "original", fig5_b(), "original", "candidate B of Fig. 5, bonds of 2", PAPER[ORIGINAL]),
        Line(LONGER, "control", fig5_b(), "longer", "the same, for as many epochs as those below"),
        Line(DISENTANGLED, "hybrid", fig5_b(1), "explicit", "bonds of 1 in layers 2 to 4", PAPER[DISENTANGLED]),
        *(
            Line(name, "hybrid", fig5_b(1).with_circuits(circuits), "explicit", "circuits of Table 4", PAPER[name])
            for name, circuits in TABLE4.items()
        ),
        Line(
            OURS_SMALL,
            "hybrid",
            _ours({2: ("5*(cnot+1b)", "")}),
            "explicit",
            "rows of CNOTs and rotations before layer 2, layer 4 keeps its bond",
        ),
        Line(
            OURS,
            "hybrid",
            _ours(_MOST),
            "explicit",
            "rows of CNOTs and SO(4) around layers 2 and 3, layer 4 keeps its bond",
        ),
        Line(
            OURS_NOISY,
            "hybrid",
            _ours({2: ("5*(cnot+1b)", "")}),
            "explicit",
            f"'{OURS_SMALL}' healed with the noise of 1,000 shots",
            noise_shots=1_000,
        ),
        Line(DESIGN, "original", own_design(), "longer", "16x16 images, 256 -> 64 at bond 2, then 64 -> 10", size=16),
        Line(
            DESIGN_CIRCUITS,
            "hybrid",
            own_design(1, "3*(cnot+1b)", "6*(cnot+1b)"),
            "explicit",
            "the same at bond 1 with rows of CNOTs and rotations, from the network above",
            size=16,
            origin=own_design(),
        ),
        Line(
            "operators alone",
            "control",
            _ours({}),
            "explicit",
            "no circuits, layers 2 and 3 at bond 1, layer 4 at bond 2",
        ),
        Line(
            "own design at bond 1, no circuits",
            "control",
            own_design(1),
            "explicit",
            "16x16 images, from the network of bond 2",
            size=16,
            origin=own_design(),
        ),
        Line("dense", "control", None, "module", "8x8 images, 64 -> 12 -> 10", module=small_dense, size=8),
        Line("low rank", "control", None, "module", "8x8 images, 64 -> 32 of rank 6 -> 10", module=low_rank, size=8),
        Line(
            "random permutations for CNOTs",
            "control",
            fig5_b(1).with_circuits(TABLE4["only CNOTs"]),
            "shuffled",
            "a random permutation for every circuit of 'only CNOTs'",
        ),
        Line(
            "circuits frozen at random",
            "control",
            _ours(_MOST),
            "frozen",
            f"'{OURS}' around Haar-random gates that are not trained",
        ),
        Line(
            "gates near the identity, from scratch",
            "control",
            _ours(_MOST),
            "near_identity",
            f"'{OURS}' without the trained original",
        ),
        Line(
            "gates at random, from scratch",
            "control",
            _ours(_MOST),
            "random",
            f"'{OURS}' without the trained original, Haar-random gates",
        ),
        Line("candidate A", "control", fig5_a(), "original", "the other candidate of Fig. 5, bonds of 2", size=28),
        Line(
            "candidate A, disentangled, no gates",
            "control",
            fig5_a(1),
            "explicit",
            "bonds of 1",
            size=28,
            origin=fig5_a(),
        ),
    ),
)


@dataclass(frozen=True)
class Settings:
    """What the results depend on.

    Attributes:
        training: of all lines.
        shots: a vector and circuit, of the runs as circuits.
        draws: of these shots, over which the accuracy is averaged.
        center_images: training images whose mean is taken off before encoding.
        aer_images: test images that run on Aer.
        aer_shots: a vector and circuit there.
    """

    training: Training = field(default_factory=Training)
    shots: tuple[int, ...] = (300, 1_000, 3_000, 10_000, 30_000)
    draws: int = 3
    center_images: int = 5_000
    aer_images: int = 200
    aer_shots: int = 10_000


QUICK = Settings(
    training=Training(epochs=2, healing=2, batch_size=1024, healing_batch_size=1024, sweeps=50),
    shots=(1_000, 10_000),
    draws=1,
    aer_images=10,
)


def run_original(request: Request, seed: int) -> dict[str, Any]:
    """The network of Fig. 5 (i), with its weights."""
    return train_original(STUDY, request.settings.training, STUDY.data(request, seed), seed)


def run_line(request: Request, given: Mapping[str, Any], line: str, seed: int) -> dict[str, Any]:
    """Any other line; ours as circuits too."""
    settings: Settings = request.settings
    data = STUDY.data(request, seed, line)
    model, found = train_line(STUDY, settings.training, data, given, line, seed)
    if line in (OURS_SMALL, OURS, OURS_NOISY, DESIGN_CIRCUITS):
        found["quantum"] = _as_circuits(model, data, settings, seed)
    return found


def _as_circuits(model: nn.Module, data: Dataset, settings: Settings, seed: int) -> dict[str, Any]:
    """Accuracy by shots, on a circuit simulator, and what an image costs."""
    center = data.train[0][: settings.center_images]
    exact = to_quantum(model, TorchExecutor(seed), readout="exact")
    found: dict[str, Any] = {"exact": accuracy(exact, *data.test), "sampled": {}, "cost": {}}
    for shots in settings.shots:
        hybrids = [
            to_quantum(model, TorchExecutor(seed), shots=shots, seed=stream_seed(seed, shots, draw), center=center)
            for draw in range(settings.draws)
        ]
        found["sampled"][str(shots)] = statistics.fmean(accuracy(hybrid, *data.test) for hybrid in hybrids)
        cost = estimate_cost(hybrids[0], 1)
        found["cost"][str(shots)] = [cost.circuits, cost.shots, cost.two_qubit_gates, cost.depth]
    part = tuple(each[: settings.aer_images] for each in data.test)
    aer = to_quantum(model, AerExecutor(seed=seed), shots=settings.aer_shots, seed=seed, center=center)
    found["aer"] = [accuracy(aer, *part), accuracy(model, *part)]
    return found


def _tasks(request: Request) -> list[Task]:
    return STUDY.tasks(request, run_original, run_line)


def _assemble(request: Request, results: Mapping[str, Any]) -> Outcome:
    rows = make_rows(STUDY, request, results)
    found = STUDY.results(request, results)
    for row in rows:
        if "quantum" in found[row["name"]][0]:
            row["quantum"] = [each["quantum"] for each in found[row["name"]]]
    return Outcome(
        title="Table 3: test accuracy of the networks of Fig. 5 on MNIST",
        note=(
            f"MNIST padded to 32x32 (other sizes by block means), {counted(request.seeds, 'seed')}: mean and sample "
            f"standard deviation. {describe_training(request.settings.training)}"
        ),
        rows=rows,
        sections=(
            main_section([row for row in rows if row["kind"] != "control"], "The rows of the paper, and ours"),
            main_section([row for row in rows if row["kind"] == "control"], "Controls"),
            *_quantum_sections(rows, request.settings),
            entropy_section(rows),
        ),
    )


def _quantum_sections(rows: Sequence[Row], settings: Settings) -> list[Section]:
    cells = []
    for row in rows:
        found = row.get("quantum")
        if not found:
            continue
        cells.append((f"{row['name']}: exact", "-", "-", "-", with_spread([100 * each["exact"] for each in found], 2)))
        for shots, (circuits, spent, gates, _) in found[0]["cost"].items():
            values = [100 * each["sampled"][shots] for each in found]
            name = f"{row['name']}: {int(shots):,} shots a vector"
            cells.append((name, f"{circuits:,}", f"{spent:,}", f"{gates:,}", with_spread(values, 2)))
        aer = ", ".join(f"{100 * one:.1f} ({100 * other:.1f})" for one, other in (each["aer"] for each in found))
        cells.append((f"{row['name']}: Aer, {settings.aer_images} images, exact in brackets", "-", "-", "-", aer))
    return [
        Section(
            ("network", "circuits an image", "shots an image", "two-qubit gates an image", "test %"),
            tuple(cells),
            heading="As circuits",
            note=(
                "Every segment is a circuit of its own; batch norms and ReLU between them run on the host. Reference "
                f"readout, amplitude encoding, centers from {settings.center_images:,} training images, mean of "
                f"{counted(settings.draws, 'draw')}; gates as built, state preparation included."
            ),
        )
    ]


RECIPE = Recipe(
    settings=Settings(),
    quick=QUICK,
    seeds=5,
    quick_seeds=1,
    data=STUDY.data,
    tasks=_tasks,
    assemble=_assemble,
    plot=plot,
    extras={**GATE_COUNTS, "qiskit_aer.primitives": "aer"},
)

CIRCUITS = make_recipe(STUDY, "Table 4", "Table 3")
