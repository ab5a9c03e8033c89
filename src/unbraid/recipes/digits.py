"""``unbraid reproduce digits``: the demo's networks over several seeds, with fair controls."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from unbraid.circuits import Circuit
from unbraid.nn import DisentangledLinear, accuracy, heal, tensorize
from unbraid.nn.surgery import replace_modules
from unbraid.quantum import TorchExecutor, to_quantum
from unbraid.recipes.datasets import Dataset, load_dataset
from unbraid.recipes.pipeline import SHOTS, TARGET, Networks, Settings, build_networks
from unbraid.recipes.recipe import Outcome, Recipe, Request, Section, Task, make_row, plot_accuracies
from unbraid.tensors import MPO

# name, kind, what it is
ROWS = (
    ("dense", "original", "the trained network"),
    ("MPO, truncated", "original", "its 64 x 64 layer as an MPO, before healing"),
    ("MPO, healed", "original", "after healing"),
    ("disentangled, explicit", "hybrid", "circuits and core by maximal overlap, before healing"),
    ("disentangled, healed", "hybrid", "after healing with trainable gates"),
    ("hybrid, exact", "hybrid", "its circuits simulated exactly"),
    ("hybrid, 20,000 shots", "hybrid", "its circuits sampled, 20,000 shots a vector and stage, noiseless"),
    ("core alone", "control", "an MPO of bond 1 without circuits, healed alike"),
    ("random circuits, frozen", "control", "the same circuits with Haar gates that stay, core healed alike"),
    ("low rank", "control", "two dense factors of at least as many parameters, from the SVD, healed alike"),
)


def digits_seed(request: Request, seed: int) -> dict[str, dict[str, Any]]:
    """Every row for one seed: test accuracy (a fraction) and trainable scalars of the whole network.

    Args:
        request: with the settings of the pipeline.
        seed: of the split, the weights and the circuits.
    """
    settings: Settings = request.settings
    networks = build_networks(seed, settings)
    models: dict[str, nn.Module] = {
        "dense": networks.dense,
        "MPO, truncated": networks.truncated,
        "MPO, healed": networks.healed,
        "disentangled, explicit": networks.explicit,
        "disentangled, healed": networks.disentangled,
        "hybrid, exact": to_quantum(networks.disentangled, TorchExecutor(), readout="exact"),
        "hybrid, 20,000 shots": to_quantum(networks.disentangled, TorchExecutor(seed), shots=SHOTS, seed=seed),
        "core alone": tensorize(networks.dense, [TARGET], max_bond=1, sites="qubits"),
        "random circuits, frozen": _random_circuits(networks, seed),
        "low rank": _low_rank(networks),
    }
    for name, kind, _ in ROWS:
        if kind == "control":
            _heal_alike(models[name], networks, settings, seed)
    figures = {}
    with torch.no_grad():
        for name, model in models.items():
            parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
            figures[name] = {"accuracy": accuracy(model, *networks.data.test), "parameters": parameters}
    return figures


def _heal_alike(model: nn.Module, networks: Networks, settings: Settings, seed: int) -> None:
    """As the disentangled network is healed: same data, teacher, epochs; the better learning rate on validation."""
    data = networks.data
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    best: tuple[float, dict[str, torch.Tensor]] | None = None
    for lr in (settings.train_lr, settings.heal_lr):
        model.load_state_dict(start)
        heal(
            model,
            data.train,
            data.validation,
            epochs=settings.circuit_epochs,
            lr=lr,
            teacher=networks.dense,
            seed=seed,
        )
        score = accuracy(model, *data.validation)
        if best is None or score > best[0]:
            best = (score, {name: tensor.clone() for name, tensor in model.state_dict().items()})
    assert best is not None
    model.load_state_dict(best[1])


def _random_circuits(networks: Networks, seed: int) -> nn.Module:
    """The disentangled network with Haar gates that are not trained; its core is the best product for them."""
    model = tensorize(networks.dense, [TARGET], max_bond=1, sites="qubits")
    layer = networks.disentangled.get_submodule(TARGET)
    assert isinstance(layer, DisentangledLinear)
    output = Circuit(layer.output_circuit.ansatz, "random", seed)
    inward = Circuit(layer.input_circuit.ansatz, "random", seed + 1, mirrored=True)
    dense = networks.dense.get_submodule(TARGET)
    assert isinstance(dense, nn.Linear)
    with torch.no_grad():
        stripped = output.matrix().mT @ dense.weight @ inward.matrix().mT
    core = MPO.from_dense(stripped, layer.core.out_dims, layer.core.in_dims, max_bond=1)
    frozen = DisentangledLinear(output, core, inward, bias=dense.bias)
    for circuit in (frozen.output_circuit, frozen.input_circuit):
        circuit.requires_grad_(False)
    return replace_modules(model, {model.get_submodule(TARGET): frozen})


def _low_rank(networks: Networks) -> nn.Module:
    """The dense network with a factorised layer of at least as many parameters as the disentangled one."""
    model = tensorize(networks.dense, [TARGET], max_bond=1, sites="qubits")
    dense = networks.dense.get_submodule(TARGET)
    assert isinstance(dense, nn.Linear)
    layer = networks.disentangled.get_submodule(TARGET)
    bias = 0 if dense.bias is None else dense.bias.numel()
    wanted = sum(parameter.numel() for parameter in layer.parameters()) - bias
    rank = math.ceil(wanted / (dense.in_features + dense.out_features))
    u, s, vh = torch.linalg.svd(dense.weight.detach())
    first = nn.Linear(dense.in_features, rank, bias=False)
    second = nn.Linear(rank, dense.out_features, bias=dense.bias is not None)
    with torch.no_grad():
        first.weight.copy_(s[:rank, None].sqrt() * vh[:rank])
        second.weight.copy_(u[:, :rank] * s[:rank].sqrt())
        if dense.bias is not None:
            second.bias.copy_(dense.bias)
    return replace_modules(model, {model.get_submodule(TARGET): nn.Sequential(first, second)})


def _data(request: Request, seed: int) -> Dataset:
    return load_dataset("digits", seed=seed)


def _tasks(request: Request) -> list[Task]:
    return [Task(f"seed-{seed}", digits_seed, {"seed": seed}, seed=seed) for seed in range(request.seeds)]


def _assemble(request: Request, results: Mapping[str, Any]) -> Outcome:
    seeds = range(request.seeds)
    figures = [results[f"seed-{seed}"] for seed in seeds]
    rows = [
        make_row(
            name,
            kind,
            [figure[name]["accuracy"] for figure in figures],
            seeds=seeds,
            parameters=figures[0][name]["parameters"],
            description=description,
        )
        for name, kind, description in ROWS
    ]
    cells = tuple(
        (r["name"], r["kind"], f"{r['parameters']:,}", f"{100 * r['mean']:.2f}", f"{100 * r['std']:.2f}") for r in rows
    )
    return Outcome(
        title="8x8 digits, 450 test images",
        note=f"Test accuracy, mean and standard deviation over {request.seeds} seeds; simulated without noise.",
        rows=rows,
        sections=(
            Section(
                ("network", "kind", "parameters", "accuracy %", "std"),
                cells,
                details=tuple(description for _, _, description in ROWS),
            ),
        ),
    )


RECIPE = Recipe(
    settings=Settings(),
    quick=Settings(),
    seeds=5,
    quick_seeds=1,
    data=_data,
    tasks=_tasks,
    assemble=_assemble,
    plot=plot_accuracies,
)
