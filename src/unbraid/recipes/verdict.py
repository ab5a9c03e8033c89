"""``unbraid reproduce verdict``: whether circuits pay for trained layers, at three weight errors and a healed loss.

Beside each layer stand two controls: a Gaussian matrix, and the layer's own singular values with random singular
vectors, which knows nothing of the layer but how far its rank can be cut. Of language models the small Llama of
``DATA/models/stories260k`` is looked at where it is there.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unbraid.circuits.gates import haar
from unbraid.disentangling import weight_verdict
from unbraid.ground.files import read_tensors
from unbraid.ground.random import isolated, stream
from unbraid.nn import heal, verdict
from unbraid.recipes.datasets import Dataset, load_dataset
from unbraid.recipes.models import digits_mlp
from unbraid.recipes.recipe import Outcome, Recipe, Request, Row, Section, Task, counted, make_row

GAUSSIAN, DIGITS, MNIST = "Gaussian", "digits hidden", "MNIST fc1"
LLAMA = {
    "Llama q_proj": "model.layers.2.self_attn.q_proj.weight",
    "Llama gate_proj": "model.layers.2.mlp.gate_proj.weight",
}
_LLAMA_FILE = Path("models/stories260k/model.safetensors")
OWN, SPECTRUM, HEALED = "own", "spectrum", "healed"


@dataclass(frozen=True)
class Settings:
    """What the results depend on.

    Attributes:
        budgets: relative weight errors.
        control: the one at which controls of the same singular values are made.
        bodies: wires a gate.
        max_depth: largest number of layers a side.
        epochs: of training the networks.
        lr: their peak learning rate.
        growth: of the validation cross-entropy, in nats, that a healed layer may cost.
        healing: epochs of healing before each judgement.
        healing_lr: their peak.
        healed_depth: largest number of layers a side there.
    """

    budgets: tuple[float, ...] = (0.1, 0.3, 0.5)
    control: float = 0.3
    bodies: tuple[int, ...] = (2, 3)
    max_depth: int = 3
    epochs: int = 15
    lr: float = 1e-2
    growth: float = 0.05
    healing: int = 5
    healing_lr: float = 5e-3
    healed_depth: int = 2


QUICK = Settings(budgets=(0.5,), control=0.5, bodies=(2,), max_depth=1, epochs=2, healing=1, healed_depth=1)


def run_weight(request: Request, layer: str, way: str, budget: float, seed: int) -> dict[str, Any]:
    """The verdict on a layer at a weight error, as it is or with random singular vectors."""
    settings: Settings = request.settings
    weight = _weight(request, layer, seed)
    if way == SPECTRUM:
        weight = _with_random_vectors(weight, seed)
    found = weight_verdict(
        weight,
        budget=budget,
        name=layer if way == OWN else f"{layer}, vectors random",
        bodies=settings.bodies,
        max_depth=settings.max_depth,
        seed=seed,
    )
    return found.to_dict()


def run_healed(request: Request, seed: int) -> dict[str, Any]:
    """The verdict on the digits layer at a growth of the loss, each candidate healed before it is judged."""
    settings: Settings = request.settings
    data = load_dataset("digits", seed=seed)
    found = verdict(
        _digits(settings, data, seed),
        targets=["hidden"],
        budget=settings.growth,
        loss=validation_loss(data),
        heal=healing(data, settings.healing, settings.healing_lr, seed),
        bodies=settings.bodies,
        max_depth=settings.healed_depth,
        seed=seed,
    )
    return found["hidden"].to_dict() | {"name": f"{DIGITS}, healed"}


def validation_loss(data: Dataset) -> Callable[[nn.Module], float]:
    """The mean cross-entropy of a model on the validation part, in nats."""
    return partial(_cross_entropy, data)


@torch.no_grad()
def _cross_entropy(data: Dataset, model: nn.Module) -> float:
    inputs, labels = data.validation
    return float(nn.functional.cross_entropy(model.eval()(inputs), labels))


def healing(data: Dataset, epochs: int, lr: float, seed: int) -> Callable[[nn.Module], object]:
    """Heals a model on the training part, and keeps the epoch that is best on the validation part."""
    return lambda model: heal(model, data.train, data.validation, epochs=epochs, lr=lr, seed=seed)


def _weight(request: Request, layer: str, seed: int) -> Tensor:
    settings: Settings = request.settings
    if layer == GAUSSIAN:
        return torch.randn(64, 64, generator=stream(seed, "gaussian"), dtype=torch.float64)
    if layer == DIGITS:
        return _linear(_digits(settings, load_dataset("digits", seed=seed), seed), "hidden")
    if layer == MNIST:
        data = request.load("mnist", seed=seed, size=16)
        with isolated(seed, "mnist_mlp"):
            parts = {"fc1": nn.Linear(256, 64), "relu": nn.ReLU(), "output": nn.Linear(64, 10)}
            model = nn.Sequential(OrderedDict(parts))
        _train(model, data, settings, seed)
        return _linear(model, "fc1")
    assert request.data_dir is not None
    tensors, _ = read_tensors(request.data_dir / _LLAMA_FILE)
    return tensors[LLAMA[layer]]


def _linear(model: nn.Module, name: str) -> Tensor:
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    return layer.weight.detach()


def _digits(settings: Settings, data: Dataset, seed: int) -> nn.Sequential:
    model = digits_mlp(seed)
    _train(model, data, settings, seed)
    return model


def _train(model: nn.Module, data: Dataset, settings: Settings, seed: int) -> None:
    heal(model, data.train, data.validation, epochs=settings.epochs, lr=settings.lr, seed=seed)


def _with_random_vectors(weight: Tensor, seed: int) -> Tensor:
    """The same singular values between Haar matrices."""
    values = torch.linalg.svdvals(weight.double())
    generator = stream(seed, "vectors")
    left, right = (haar("o", size, 1, generator)[0] for size in weight.shape)
    count = len(values)
    return left[:, :count] * values @ right[:count]


def _layers(request: Request) -> list[str]:
    found = [GAUSSIAN, DIGITS]
    if request.data_dir is not None:
        found.append(MNIST)
        if (request.data_dir / _LLAMA_FILE).is_file():
            found += LLAMA
    return found


def _tasks(request: Request) -> list[Task]:
    settings: Settings = request.settings
    found = []
    for seed in range(request.seeds):
        for layer in _layers(request):
            depends = None
            if layer in LLAMA:
                assert request.data_dir is not None
                depends = hashlib.sha256((request.data_dir / _LLAMA_FILE).read_bytes()).hexdigest()
            ways = [(OWN, budget) for budget in settings.budgets]
            if layer != GAUSSIAN:
                ways.append((SPECTRUM, settings.control))
            for way, budget in ways:
                arguments = {"layer": layer, "way": way, "budget": budget, "seed": seed}
                found.append(Task(_name(layer, way, budget, seed), run_weight, arguments, depends=depends))
        found.append(Task(f"seed-{seed}-{HEALED}", run_healed, {"seed": seed}))
    return found


def _name(layer: str, way: str, budget: float, seed: int) -> str:
    return f"seed-{seed}-{layer.replace(' ', '-')}-{way}-{budget}"


def _assemble(request: Request, results: Mapping[str, Any]) -> Outcome:
    seeds = range(request.seeds)
    first = [name.removeprefix("seed-0-") for name in results if name.startswith("seed-0-")]
    rows = []
    for name in first:
        verdicts = [results[f"seed-{seed}-{name}"] for seed in seeds]
        control = verdicts[0]["name"].startswith(GAUSSIAN) or f"-{SPECTRUM}-" in name
        rows.append(
            make_row(
                verdicts[0]["name"],
                "control" if control else "hybrid",
                [each["break_even"] for each in verdicts],
                seeds=seeds,
                parameters=verdicts[0]["with_circuits"],
                budget=verdicts[0]["budget"],
                verdicts=verdicts,
            )
        )
    words = tuple((f"{row['name']}, {row['budget']:g}", row["verdicts"][0]["paragraph"]) for row in rows)
    return Outcome(
        title="Whether circuits pay",
        note=(
            f"{counted(request.seeds, 'seed')}; sizes are those of the first. Parameters that stay within a relative "
            "weight error, or, healed, within a growth of the validation cross-entropy in nats. Price: what a circuit "
            "parameter may cost in classical ones, against the plain MPO and against the smallest classical way; free "
            "only: without parameters that change nothing."
        ),
        rows=rows,
        sections=(_section(rows), Section(("layer, budget", "verdict"), words)),
    )


def _section(rows: Sequence[Row]) -> Section:
    cells = []
    for row in rows:
        found = row["verdicts"][0]
        best = found["best"]
        cells.append(
            (
                f"{row['name']}, {row['budget']:g}",
                f"{found['dense']:,}",
                f"{found['low_rank']:,}",
                f"{found['plain']:,}",
                f"{best['classical']:,} + {best['circuit']:,}",
                f"{best['body']}, {best['depth']}",
                *(f"{found[key]:.2g}" for key in ("break_even", "break_even_classical", "break_even_free")),
            )
        )
    columns = (
        "layer, budget",
        "dense",
        "low rank",
        "plain MPO",
        "core + circuits",
        "body, depth",
        "price",
        "against the smallest",
        "free only",
    )
    return Section(columns, tuple(cells))


def _plot(path: Path, rows: Sequence[Row]) -> None:
    from unbraid.report.plots import save_figure
    from unbraid.report.verdict import draw_verdicts

    budgets = sorted({row["budget"] for row in rows if row["verdicts"][0]["budget_kind"] == "weight error"})
    middle = budgets[len(budgets) // 2]
    shown = [
        row["verdicts"][0] for row in rows if row["budget"] == middle or row["verdicts"][0]["budget_kind"] == "loss"
    ]
    save_figure(path, lambda figure: draw_verdicts(figure, shown))


RECIPE = Recipe(
    settings=Settings(),
    quick=QUICK,
    seeds=1,
    quick_seeds=1,
    data=None,
    tasks=_tasks,
    assemble=_assemble,
    plot=_plot,
)
