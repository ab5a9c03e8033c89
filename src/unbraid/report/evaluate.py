"""``evaluate``: accuracy, parameters, layers and cost of a network on labelled data."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from unbraid.circuits import Circuit
from unbraid.circuits.drawing import draw_circuit
from unbraid.ground import progress
from unbraid.ground.errors import InvalidInputError, UnbraidError, require_finite
from unbraid.ground.manifest import build_manifest, hash_tensors
from unbraid.nn.heal import accuracy
from unbraid.nn.integers import count_numbers
from unbraid.nn.layers import DisentangledLinear
from unbraid.nn.modes import keeping_modes
from unbraid.nn.operator import OperatorModule
from unbraid.nn.status import LayerStatus, get_layer_status
from unbraid.report.document import Report


def evaluate(
    model: nn.Module, data: tuple[Tensor, Tensor], *, batch_size: int = 1024, name: str | None = None
) -> Report:
    """Measure a network: how often it is right, how large it is, and what its circuits cost.

    The cost of a hybrid holds the circuits and shots that this evaluation used; gates, depth and device time are those
    of :func:`unbraid.estimate_cost` for as many inputs, and ``cost["estimated"]`` has its circuits, shots and jobs. The
    gates are those of the circuits without state preparation; their total depth is the sum, since they run one after
    another.

    Args:
        model: maps (B, ...) to (B, classes); run in evaluation mode and left as it was. A hybrid of
            :func:`unbraid.to_quantum` may be given.
        data: (x, y): inputs of shape (N, ...) and class numbers of shape (N,).
        batch_size: rows at a time.
        name: of the model, in the title.

    Returns:
        The report. ``accuracy`` has one entry: "exact", "hybrid" or "aer" for hybrids by how they run, "disentangled"
        or "mpo" by the layers, else "dense". ``parameters`` has "dense" too: with plain linear layers in the place of
        others.

    Raises:
        InvalidInputError: if data are empty, not finite or do not match, the model cannot run on them, or its outputs
            are not finite numbers of shape (N, classes).
        ExecutionError: if an executor fails.
    """
    x, y = _checked(data)
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise InvalidInputError(f"batch_size must be a positive integer; got {batch_size!r}.")
    quantum = _quantum_layers(model)
    kind = _kind(model, bool(quantum))
    step = _way_of_running(quantum) if quantum else kind
    seconds: dict[str, float] = {}
    cost: dict[str, Any] = {}
    gates: dict[str, Any] = {}
    if quantum:
        started = time.perf_counter()
        cost, gates = _estimated(model, quantum, len(x))  # before anything is spent
        seconds["estimate"] = time.perf_counter() - started
    before = _spent(quantum)
    started = time.perf_counter()
    right = _run(model, x, y, batch_size)
    seconds["evaluate"] = time.perf_counter() - started
    if quantum:
        circuits, shots, padding = (now - then for now, then in zip(_spent(quantum), before, strict=True))
        expected = cost["estimated"]["circuits"]
        if expected and circuits > expected and circuits % expected == 0:  # layers got several vectors a sample
            cost, gates = _estimated(model, quantum, len(x), circuits // expected)
        cost |= {"circuits": circuits, "shots": shots, "padding_shots": padding}
        cost["executor"] = ", ".join(dict.fromkeys(repr(module.executor) for module in quantum.values()))
    parameters = count_numbers(model)
    return Report(
        accuracy={step: right},
        parameters={"dense": _dense_parameters(model), kind: parameters},
        gates=gates,
        cost=cost,
        seconds=seconds,
        manifest=build_manifest(
            seeds={
                f"shots of {layer}": int(module.seed) for layer, module in quantum.items() if hasattr(module, "seed")
            },
            data={"sha256": hash_tensors(x, y), "shape": list(x.shape), "samples": len(x)},
        ),
        title=f"Evaluation of {name}" if name else "Evaluation",
        samples={step: len(x)},
        layers=_layers(model, quantum),
        drawings={stage.name: draw_circuit(stage.circuit) for module in quantum.values() for stage in module.stages()},
    )


def _checked(data: Any) -> tuple[Tensor, Tensor]:
    if not (isinstance(data, (tuple, list)) and len(data) == 2 and all(isinstance(part, Tensor) for part in data)):
        raise InvalidInputError(
            f"data must be a pair of tensors (x, y), inputs and class numbers; got {type(data).__name__}."
        )
    x, y = data
    if x.ndim < 2 or y.ndim != 1 or len(x) != len(y) or len(x) == 0:
        raise InvalidInputError(
            "data must be x of shape (N, ...) and y of shape (N,) with N at least 1; got shapes "
            f"{tuple(x.shape)} and {tuple(y.shape)}."
        )
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise InvalidInputError(f"Labels must be class numbers of an integer type; got {y.dtype}. Use y.long().")
    require_finite(x, "The inputs x")
    return x, y


def _run(model: nn.Module, x: Tensor, y: Tensor, batch_size: int) -> float:
    """The accuracy, with every batch of outputs checked on its way."""
    place = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), x.device)
    labels = (int(y.min()), int(y.max()))
    with progress.task("evaluate", len(x)) as advance:

        def check(_: nn.Module, inputs: tuple[Any, ...], outputs: Any) -> None:
            rows = len(inputs[0])
            if not isinstance(outputs, Tensor) or outputs.ndim != 2 or len(outputs) != rows:
                got = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
                raise InvalidInputError(
                    f"A classifier maps {rows} inputs to outputs of shape ({rows}, classes); this model gave {got}."
                )
            if labels[0] < 0 or labels[1] >= outputs.shape[1]:
                raise InvalidInputError(
                    f"The model has {outputs.shape[1]} classes, numbered from 0; the labels go from {labels[0]} to "
                    f"{labels[1]}."
                )
            require_finite(outputs, "The model's outputs")
            advance(rows)

        hook = model.register_forward_hook(check)
        try:
            with keeping_modes(model):
                return accuracy(model, x.to(place), y.to(place), batch_size=batch_size)
        except UnbraidError:
            raise
        except (RuntimeError, TypeError, ValueError) as error:
            raise InvalidInputError(f"The model cannot run on inputs of shape {tuple(x.shape)}: {error}") from error
        finally:
            hook.remove()


def _quantum_layers(model: nn.Module) -> dict[str, Any]:
    """Layers that run circuits, by name. Told by what they do, so that plain models do not load Qiskit."""
    found = {}
    for name, module in model.named_modules():
        stages = getattr(module, "stages", None)
        if (
            callable(stages)
            and not isinstance(stages, nn.Module)
            and isinstance(getattr(module, "layers", None), nn.ModuleList)
        ):
            found[name or "layer"] = module
    return found


def _kind(model: nn.Module, is_hybrid: bool) -> str:
    modules = list(model.modules())
    if is_hybrid or any(isinstance(module, DisentangledLinear) for module in modules):
        return "disentangled"
    return "mpo" if any(isinstance(module, OperatorModule) for module in modules) else "dense"


def _way_of_running(quantum: dict[str, Any]) -> str:
    from unbraid.quantum.samplers import AerExecutor

    if all(str(module.readout) == "exact" for module in quantum.values()):
        return "exact"
    return "aer" if all(isinstance(module.executor, AerExecutor) for module in quantum.values()) else "hybrid"


def _spent(quantum: dict[str, Any]) -> tuple[int, ...]:
    used = [module.spent for module in quantum.values()]
    return tuple(sum(getattr(part, name) for part in used) for name in ("circuits", "shots", "padding_shots"))


def _estimated(
    model: nn.Module, quantum: dict[str, Any], samples: int, vectors_per_sample: int = 1
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Cost and gates by estimate, as the report's ``cost`` and ``gates``."""
    from unbraid.quantum.convert import to_qiskit
    from unbraid.quantum.cost import estimate_cost, gate_counts

    estimate = estimate_cost(model, samples, vectors_per_sample=vectors_per_sample)
    cost = {
        "samples": samples,
        "one_qubit_gates": estimate.one_qubit_gates,
        "two_qubit_gates": estimate.two_qubit_gates,
        "depth": estimate.depth,
        "seconds": estimate.seconds,
        "estimated": {"circuits": estimate.circuits, "shots": estimate.shots, "jobs": estimate.jobs},
        "stages": [asdict(stage) for stage in estimate.stages],
    }
    counts = {}
    for name, module in quantum.items():
        for stage in module.stages():
            short = stage.name.removeprefix(f"{name}.") if len(quantum) == 1 else stage.name
            found = gate_counts(to_qiskit(stage.circuit))
            counts[short] = {key: found[key] for key in ("one_qubit", "two_qubit", "depth")}
    if counts:
        keys = ("one_qubit", "two_qubit", "depth")
        counts["total"] = {key: sum(part[key] for part in counts.values()) for key in keys}
    return cost, {"logical": counts} if counts else {}


def _tensor_layers(model: nn.Module) -> list[tuple[LayerStatus, nn.Module]]:
    """Operators and disentangled layers, without the plain layers that could be some."""
    modules = dict(model.named_modules())
    found = [(status, modules[status.name]) for status in get_layer_status(model)]
    return [(status, module) for status, module in found if status.bond_dims is not None]


def _dense_parameters(model: nn.Module) -> int:
    """Parameters of the network with a plain layer of the same shape for every operator and disentangled layer."""
    replaced: set[nn.Parameter] = set()
    dense = 0
    for status, module in _tensor_layers(model):
        replaced.update(module.parameters())
        dense += status.dense_parameters
    return dense + sum(parameter.numel() for parameter in model.parameters() if parameter not in replaced)


def _layers(model: nn.Module, quantum: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a tensor layer: shape, bonds, parameters, gates and CNOTs."""
    names: dict[nn.Module, str] = {}
    for name, module in quantum.items():
        own = name.split("+") if len(module.layers) > 1 else [name]
        names |= dict(
            zip(module.layers, own if len(own) == len(module.layers) else [name] * len(module.layers), strict=True)
        )
    rows = []
    for status, module in _tensor_layers(model):
        kind = "disentangled" if isinstance(module, DisentangledLinear) else "mpo"
        row: dict[str, Any] = {
            "name": names.get(module, status.name) or "layer",
            "kind": "quantum" if module in names else kind,
            "shape": list(status.shape),
            "bond_dims": list(status.bond_dims or ()),
            "parameters": status.parameters,
            "dense_parameters": status.dense_parameters,
            "bytes": status.bytes,
        }
        if isinstance(module, DisentangledLinear):
            circuits = (module.output_circuit, module.input_circuit)
            row["gates"] = sum(len(list(circuit.ansatz.gates())) for circuit in circuits)
            row["cnots"] = _cnots(circuits)
        rows.append(row)
    return rows


def _cnots(circuits: tuple[Circuit, ...]) -> int | None:
    try:
        return sum(circuit.cnot_count for circuit in circuits)
    except InvalidInputError:  # a gate that no qubits hold
        return None
