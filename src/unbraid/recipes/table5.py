"""``unbraid reproduce table5`` and ``table6``: the networks of Fig. 6 on CIFAR-10, their circuits, and controls.

Rows named as in the paper have the circuits of its Table 6, read as literally as its words allow.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from unbraid.nn import Architecture
from unbraid.recipes.circuits_table import make_recipe
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
from unbraid.recipes.networks import TABLE6, fig6
from unbraid.recipes.recipe import GATE_COUNTS, Outcome, Recipe, Request, Task, counted

DISENTANGLED = "disentangled, no gates"
PAPER = {
    ORIGINAL: (36_700, 0.6129),
    DISENTANGLED: (24_200, 0.5804),
    "only CNOTs": (24_200, 0.5859),
    "CNOTs + 1b": (25_500, 0.5919),
    "CNOTs + 2b": (24_300, 0.5990),
    "CNOTs + 1&2b": (25_300, 0.6074),
}
OURS = "ours"


def _ours() -> Architecture:
    return fig6(15).with_circuits({2: ("3*(cnot+2b)", "3*(cnot+2b)"), 3: ("3*(cnot+2b)", "2*(cnot+2b)")})


def small_dense() -> nn.Module:
    """8x8 colour images through 119 neurons; 24,276 parameters."""
    return nn.Sequential(
        nn.Linear(192, 119, bias=False), nn.BatchNorm1d(119), nn.ReLU(), nn.Linear(119, 10, bias=False)
    )


def low_rank() -> nn.Module:
    """16x16 colour images through matrices 768 x 256 and 256 x 64 of ranks 20 and 10; 24,960 parameters."""
    return nn.Sequential(
        OrderedDict(
            first=nn.Linear(768, 20, bias=False),
            second=nn.Linear(20, 256, bias=False),
            norm1=nn.BatchNorm1d(256),
            relu1=nn.ReLU(),
            third=nn.Linear(256, 10, bias=False),
            fourth=nn.Linear(10, 64, bias=False),
            norm2=nn.BatchNorm1d(64),
            relu2=nn.ReLU(),
            output=nn.Linear(64, 10, bias=False),
        )
    )


STUDY = Study(
    "cifar10",
    32,
    (
        Line(ORIGINAL, "original", fig6(), "original", "bonds of 30 in layers 2 to 4", PAPER[ORIGINAL]),
        Line(LONGER, "control", fig6(), "longer", "the same, for as many epochs as those below"),
        Line(DISENTANGLED, "hybrid", fig6(15), "explicit", "bonds of 15 in layers 2 to 4", PAPER[DISENTANGLED]),
        *(
            Line(name, "hybrid", fig6(15).with_circuits(circuits), "explicit", "circuits of Table 6", PAPER[name])
            for name, circuits in TABLE6.items()
        ),
        Line(OURS, "hybrid", _ours(), "explicit", "rows of CNOTs and SO(4) around layers 2 and 3"),
        Line("operators alone", "control", fig6(15), "longer", "no circuits, from scratch"),
        Line("dense", "control", None, "module", "8x8 images, 192 -> 119 -> 10", module=small_dense, size=8),
        Line("low rank", "control", None, "module", "16x16 images, ranks 20 and 10", module=low_rank, size=16),
        Line(
            "random permutations for CNOTs",
            "control",
            fig6(15).with_circuits(TABLE6["only CNOTs"]),
            "shuffled",
            "a random permutation for every circuit of 'only CNOTs'",
        ),
        Line(
            "circuits frozen at random",
            "control",
            _ours(),
            "frozen",
            f"'{OURS}' around Haar-random gates that are not trained",
        ),
        Line(
            "gates near the identity, from scratch",
            "control",
            _ours(),
            "near_identity",
            f"'{OURS}' without the trained original",
        ),
    ),
)


@dataclass(frozen=True)
class Settings:
    """What the results depend on.

    Attributes:
        training: of all lines.
    """

    training: Training = field(default_factory=lambda: Training(25, 25, 1e-2, 1e-2, 256, 256, sweeps=100))


QUICK = Settings(Training(1, 1, 1e-2, 1e-2, 512, 512, sweeps=5))


def run_original(request: Request, seed: int) -> dict[str, Any]:
    """The network of Fig. 6 (i), with its weights."""
    return train_original(STUDY, request.settings.training, STUDY.data(request, seed), seed)


def run_line(request: Request, given: Mapping[str, Any], line: str, seed: int) -> dict[str, Any]:
    """Any other line."""
    data = STUDY.data(request, seed, line)
    return train_line(STUDY, request.settings.training, data, given, line, seed)[1]


def _tasks(request: Request) -> list[Task]:
    return STUDY.tasks(request, run_original, run_line)


def _assemble(request: Request, results: Mapping[str, Any]) -> Outcome:
    rows = make_rows(STUDY, request, results)
    return Outcome(
        title="Table 5: test accuracy of the networks of Fig. 6 on CIFAR-10",
        note=(
            f"CIFAR-10 as given by --data-dir (a lossy JPEG copy is not the paper's data; see the provenance below), "
            f"{counted(request.seeds, 'seed')}: mean and sample standard deviation. "
            f"{describe_training(request.settings.training)}"
        ),
        rows=rows,
        sections=(
            main_section([row for row in rows if row["kind"] != "control"], "The rows of the paper, and ours"),
            main_section([row for row in rows if row["kind"] == "control"], "Controls"),
            entropy_section(rows),
        ),
    )


RECIPE = Recipe(
    settings=Settings(),
    quick=QUICK,
    seeds=5,
    quick_seeds=1,
    data=STUDY.data,
    tasks=_tasks,
    assemble=_assemble,
    plot=plot,
    extras=GATE_COUNTS,
)

CIRCUITS = make_recipe(STUDY, "Table 6", "Table 5")
