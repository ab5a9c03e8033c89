"""``unbraid reproduce mlp``: a user's dense network on MNIST becomes a network with circuits, step by step.

784 -> 256 -> 256 -> 10 with ReLU and biases. The two large layers are written as operators on qubits, healed,
disentangled, and healed with their circuits: both at once, and one after the other.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unbraid.circuits import Circuit
from unbraid.disentangling import Disentangled
from unbraid.nn import MPOLinear, accuracy, convert_layers, disentangle_layers, heal, merge_back, tensorize
from unbraid.quantum import TorchExecutor, count_gates, estimate_cost, to_quantum
from unbraid.recipes.datasets import Dataset
from unbraid.recipes.models import relu_network
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
    plot_accuracies,
    with_spread,
)
from unbraid.tensors.sites import qubit_sites

TARGETS = ("fc1", "fc2")
DENSE, TRUNCATED, HEALED = "dense", "operators, not healed", "operators, healed"
EXPLICIT, FINAL = "disentangled, not healed", "disentangled, healed"
IN_TURN, SHOTS = "disentangled one by one, healed", "as circuits, sampled"
ALONE, LOW_RANK = "operators of as many scalars, healed", "low rank, healed"
STEPS = (DENSE, TRUNCATED, HEALED, EXPLICIT, FINAL, IN_TURN, SHOTS, ALONE, LOW_RANK)


@dataclass(frozen=True)
class Settings:
    """What the results depend on.

    Attributes:
        epochs: of the dense network.
        lr: its peak.
        batch_size: its rows.
        healing: epochs of each healing.
        healing_lr: their peak.
        healing_batch_size: their rows.
        bond: of the operators.
        core_bond: of the cores between circuits.
        depth: layers of SO(4) gates a side.
        sweeps: of the disentangling, at most.
        shots: a vector and circuit.
    """

    epochs: int = 15
    lr: float = 2e-3
    batch_size: int = 128
    healing: int = 20
    healing_lr: float = 4e-3
    healing_batch_size: int = 256
    bond: int = 32
    core_bond: int = 16
    depth: int = 2
    sweeps: int = 100
    shots: int = 30_000


def dense_network(seed: int) -> nn.Sequential:
    """784 -> 256 -> 256 -> 10."""
    return relu_network((784, 256, 256, 10), seed, "mlp")


def run_seed(request: Request, seed: int) -> dict[str, Any]:
    """Every step: accuracy on the test part, trainable scalars, CNOTs."""
    settings: Settings = request.settings
    data = _data(request, seed)
    models: dict[str, nn.Module] = {}
    dense = models[DENSE] = dense_network(seed)
    _fit(dense, data, settings.epochs, settings.lr, settings.batch_size, seed)
    models[TRUNCATED] = tensorize(dense, TARGETS, max_bond=settings.bond, sites="qubits")
    healed = models[HEALED] = _healed(models[TRUNCATED], dense, data, settings, seed)
    results: dict[str, Disentangled] = {}
    options: dict[str, Any] = {"core_bond": settings.core_bond, "max_sweeps": settings.sweeps, "seed": seed}
    models[EXPLICIT] = disentangle_layers(healed, TARGETS, settings.depth, results=results, **options)
    final = models[FINAL] = _healed(models[EXPLICIT], dense, data, settings, seed)
    models[IN_TURN], _ = convert_layers(
        healed,
        dict.fromkeys(reversed(TARGETS), settings.depth),
        data.train,
        data.validation,
        epochs=max(1, settings.healing // len(TARGETS)),
        lr=settings.healing_lr,
        core_bond=settings.core_bond,
        teacher=dense,
        seed=seed,
        batch_size=settings.healing_batch_size,
        disentangling={"max_sweeps": settings.sweeps},
    )
    center = data.train[0][:5_000]
    hybrid = to_quantum(final, TorchExecutor(seed), shots=settings.shots, seed=seed, center=center)
    models[SHOTS] = hybrid
    models[ALONE] = _healed(_operators_alone(healed, final), dense, data, settings, seed)
    models[LOW_RANK] = _healed(_low_rank(dense, _scalars(final)), dense, data, settings, seed)
    cost = estimate_cost(hybrid, 1)
    circuits = [module for module in final.modules() if isinstance(module, Circuit)]
    return {
        "accuracy": {name: accuracy(model, *data.test) for name, model in models.items()},
        "validation": {name: accuracy(model, *data.validation) for name, model in models.items() if name != SHOTS},
        "parameters": {name: _scalars(final if name == SHOTS else model) for name, model in models.items()},
        "overlap": {name: result.overlap for name, result in results.items()},
        "cnots": sum(circuit.cnot_count for circuit in circuits),
        "transpiled": sum(count_gates(circuit)["transpiled"]["two_qubit"] for circuit in circuits),
        "cost": [cost.circuits, cost.shots, cost.two_qubit_gates],
    }


def _operators_alone(healed: nn.Module, final: nn.Module) -> nn.Module:
    """The healed operators, compressed to at most as many scalars as layers with circuits have."""
    model = merge_back(healed)
    for name in TARGETS:
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        most = _scalars(final.get_submodule(name)) - layer.out_features
        dims = qubit_sites(layer.out_features, layer.in_features)
        model.set_submodule(name, MPOLinear.from_linear(layer, *dims, max_parameters=most))
    return model


def _low_rank(dense: nn.Sequential, limit: int) -> nn.Sequential:
    """Both large layers as two factors of the largest rank with which the network has at most so many scalars."""
    model = copy.deepcopy(dense)
    layers = [dense.get_submodule(name) for name in TARGETS]
    fixed = _scalars(dense) - sum(layer.get_parameter("weight").numel() for layer in layers)
    each = sum(sum(layer.get_parameter("weight").shape) for layer in layers)
    rank = max(1, (limit - fixed) // each)
    for name in TARGETS:
        layer = dense.get_submodule(name)
        u, s, vh = torch.linalg.svd(layer.get_parameter("weight").detach(), full_matrices=False)
        root = s[:rank].sqrt()
        first = nn.Linear(layer.get_parameter("weight").shape[1], rank, bias=False)
        second = nn.Linear(rank, layer.get_parameter("weight").shape[0])
        first.weight.data = (root[:, None] * vh[:rank]).clone()
        second.weight.data = (u[:, :rank] * root).clone()
        second.bias.data = layer.get_parameter("bias").detach().clone()
        model.add_module(name, nn.Sequential(first, second))
    return model


def _scalars(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _healed(model: nn.Module, teacher: nn.Module, data: Dataset, settings: Settings, seed: int) -> nn.Module:
    copied = copy.deepcopy(model)
    _fit(copied, data, settings.healing, settings.healing_lr, settings.healing_batch_size, seed, teacher)
    return copied


def _fit(
    model: nn.Module,
    data: Dataset,
    epochs: int,
    lr: float,
    batch_size: int,
    seed: int,
    teacher: nn.Module | None = None,
) -> None:
    heal(model, data.train, data.validation, epochs=epochs, lr=lr, batch_size=batch_size, seed=seed, teacher=teacher)


def _data(request: Request, seed: int) -> Dataset:
    return request.load("mnist", seed=seed)


def _tasks(request: Request) -> list[Task]:
    return [Task(f"seed-{seed}", run_seed, {"seed": seed}, seed=seed) for seed in range(request.seeds)]


def _assemble(request: Request, results: Mapping[str, Any]) -> Outcome:
    settings: Settings = request.settings
    seeds = range(request.seeds)
    found = [results[f"seed-{seed}"] for seed in seeds]
    texts = {
        DENSE: "784 -> 256 -> 256 -> 10, trained",
        TRUNCATED: f"fc1 and fc2 as operators on qubits, bond {settings.bond}",
        HEALED: "the same, healed",
        EXPLICIT: f"{settings.depth} layers of SO(4) a side around cores of bond {settings.core_bond}",
        FINAL: "the same, healed with trainable gates",
        IN_TURN: "fc2 disentangled and healed first, then fc1, half the epochs each",
        SHOTS: f"'{FINAL}' with {settings.shots:,} shots a vector and circuit",
        ALONE: f"'{HEALED}' compressed to at most as many scalars as '{FINAL}', no circuits",
        LOW_RANK: f"fc1 and fc2 as two factors each, with at most as many scalars as '{FINAL}'",
    }
    rows = []
    for name in STEPS:
        values = [each["accuracy"][name] for each in found]
        lost = [each["accuracy"][DENSE] - value for each, value in zip(found, values, strict=True)]
        kind = {DENSE: "original", ALONE: "control", LOW_RANK: "control"}.get(name, "hybrid")
        row = make_row(
            name,
            kind,
            values,
            seeds=seeds,
            parameters=max(each["parameters"][name] for each in found),
            description=texts[name],
            lost=lost,
            cnots=[each["cnots"] for each in found] if name in (EXPLICIT, FINAL, IN_TURN, SHOTS) else None,
        )
        rows.append(row)
    circuits, shots, gates = found[0]["cost"]
    overlaps = {name: [each["overlap"][name] for each in found] for name in TARGETS}
    told = "; ".join(f"{name} {with_spread(values, 2)}" for name, values in overlaps.items())
    transpiled = statistics.fmean(each["transpiled"] for each in found)
    return Outcome(
        title="A dense MNIST network becomes one with circuits",
        note=(
            f"MNIST, {counted(request.seeds, 'seed')}: mean and sample standard deviation of the test accuracy; "
            "hyperparameters were chosen on the validation part. Healing distils from the dense network, "
            f"{counted(settings.healing, 'epoch')} each. Overlaps of the explicit disentangling: {told}. One image "
            f"takes {circuits} circuits, {shots:,} shots and {gates:,} two-qubit gates as built, state preparation "
            f"included; the network's circuits alone have {found[0]['cnots']:,} CNOTs as built, {transpiled:,.0f} "
            "two-qubit gates on FakeMontreal."
        ),
        rows=rows,
        sections=(_table(rows),),
        extra={"cost": {"circuits": circuits, "shots": shots, "two_qubit_gates": gates}, "overlap": overlaps},
    )


def _table(rows: Sequence[Row]) -> Section:
    cells = []
    for row in rows:
        points = [100 * lost for lost in row["lost"]]
        cells.append(
            (
                row["name"],
                f"{row['parameters']:,}",
                "-" if row["cnots"] is None else f"{row['cnots'][0]:,}",
                with_spread([100 * value for value in row["values"]], 2),
                "-" if row["name"] == DENSE else with_spread(points, 2),
            )
        )
    columns = ("step", "trainable scalars", "CNOTs", "test %", "points lost")
    return Section(columns, tuple(cells), details=tuple(row["description"] for row in rows))


def _plot(path: Path, rows: Sequence[Row]) -> None:
    plot_accuracies(path, [row for row in rows if "not healed" not in row["name"]])


RECIPE = Recipe(
    settings=Settings(),
    quick=Settings(epochs=2, healing=1, healing_batch_size=512, sweeps=10),
    seeds=5,
    quick_seeds=1,
    data=_data,
    tasks=_tasks,
    assemble=_assemble,
    plot=_plot,
    extras=GATE_COUNTS,
)
