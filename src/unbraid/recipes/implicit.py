"""What Tables 3 and 5 have in common: lines that are trained alike, from one trained original a seed.

A hybrid starts from the original: each of its layers is disentangled explicitly to the bond and circuits of its
declaration, then everything is trained on together, the implicit method. Controls begin elsewhere and are trained for
as many epochs in all, or begin there too and get something else in place of the circuits.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unbraid.circuits import Ansatz, Circuit
from unbraid.disentangling import disentangle
from unbraid.ground.random import isolated, stream, stream_seed
from unbraid.nn import COUNTING_RULE, Architecture, DisentangledLinear, MPOLinear, accuracy, heal, start_from
from unbraid.quantum import count_gates, shot_noise
from unbraid.recipes.datasets import Dataset
from unbraid.recipes.recipe import Request, Row, Section, Task, make_row, plot_accuracies, with_spread
from unbraid.tensors import MPO
from unbraid.tensors.entanglement import dense_entropies

ORIGINAL, LONGER = "original TNN", "original TNN, trained on"


@dataclass(frozen=True)
class Line:
    """A line of a table.

    Attributes:
        name: of the row.
        kind: "original" | "hybrid" | "control"; an original is what a hybrid starts from.
        architecture: the declaration; None for a module.
        start: "original" and "longer": from random cores, for the epochs of the original alone or of both trainings;
            "explicit": from the trained original, see :func:`unbraid.nn.start_from`; "near_identity" and "random": from
            random cores and gates near the identity or Haar-random, for the epochs of both; "frozen": from the trained
            original, around Haar-random gates that are not trained; "shuffled": likewise, around random permutations
            instead of circuits; "module": ``module``, from its own start.
        text: what it is, for people.
        paper: its number of parameters and its accuracy, a fraction.
        module: makes a control that is no tensor network from a seed.
        size: side of the images, if not that of the table.
        origin: what "explicit" starts from, if not the original of the table; it is trained for as many epochs.
        noise_shots: heal with the noise of readouts of so many shots; of lines that start from a trained network.
    """

    name: str
    kind: str
    architecture: Architecture | None
    start: str
    text: str
    paper: tuple[int | None, float | None] = (None, None)
    module: Callable[[], nn.Module] | None = None
    size: int | None = None
    origin: Architecture | None = None
    noise_shots: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """What decides its result, ready for JSON."""
        networks = {
            key: None if value is None else value.to_dict()
            for key, value in (("architecture", self.architecture), ("origin", self.origin))
        }
        with isolated(0, "description"):
            module = None if self.module is None else str(self.module())
        return {**networks, "module": module, "start": self.start, "size": self.size, "noise_shots": self.noise_shots}


@dataclass(frozen=True)
class Training:
    """How lines are trained: Adam, one cycle of the learning rate.

    Attributes:
        epochs: of the original.
        healing: further epochs of whatever starts from it; others are trained for both.
        lr: peak of the original and of controls without circuits that are trained from scratch.
        healing_lr: peak of the healing, and of circuits that are trained from scratch.
        batch_size: rows, with ``lr``.
        healing_batch_size: rows, with ``healing_lr``.
        sweeps: of the explicit disentangling, at most.
    """

    epochs: int = 40
    healing: int = 60
    lr: float = 2e-2
    healing_lr: float = 4e-2
    batch_size: int = 256
    healing_batch_size: int = 512
    sweeps: int = 300


@dataclass(frozen=True)
class Study:
    """A table: its data, its lines and their training.

    Attributes:
        dataset: published data.
        size: side of the images.
        lines: the first one is the original.
    """

    dataset: str
    size: int
    lines: tuple[Line, ...] = field(repr=False)

    def line(self, name: str) -> Line:
        """The line of a name."""
        return next(line for line in self.lines if line.name == name)

    def data(self, request: Request, seed: int, name: str | None = None) -> Dataset:
        """The data of a seed, at the size of a line."""
        size = None if name is None else self.line(name).size
        return request.load(self.dataset, seed=seed, size=size or self.size)

    def tasks(self, request: Request, run_original: Any, run_line: Any) -> list[Task]:
        """One task a line and seed; those that start from the original wait for it."""
        found = []
        for seed in range(request.seeds):
            first = f"seed-{seed}-original"
            found.append(Task(first, run_original, {"seed": seed}, seed=seed, depends=self.lines[0].to_dict()))
            for line in self.lines[1:]:
                arguments = {"line": line.name, "seed": seed}
                name = self.task_name(seed, line)
                found.append(Task(name, run_line, arguments, after=first, seed=seed, depends=line.to_dict()))
        return found

    def task_name(self, seed: int, line: Line) -> str:
        """Of the task that trains a line."""
        kept = "".join(letter if letter.isalnum() else " " for letter in line.name)
        return f"seed-{seed}-{'-'.join(kept.split())}"

    def results(self, request: Request, results: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
        """What :meth:`tasks` found, by line; one a seed."""
        seeds = range(request.seeds)
        found = {self.lines[0].name: [results[f"seed-{seed}-original"] for seed in seeds]}
        for line in self.lines[1:]:
            found[line.name] = [results[self.task_name(seed, line)] for seed in seeds]
        return found


def train_original(study: Study, training: Training, data: Dataset, seed: int) -> dict[str, Any]:
    """Train the first line; the result is ready for JSON and holds its weights."""
    architecture = study.lines[0].architecture
    assert architecture is not None
    model = architecture.build(seed)
    found = _train(model, data, training, seed, training.epochs)
    return {**found, "weights": weights_of(model), **describe_layers(model)}


def original_from(study: Study, given: Mapping[str, Any]) -> nn.Sequential:
    """The network of :func:`train_original`."""
    architecture = study.lines[0].architecture
    assert architecture is not None
    return with_weights(architecture, given["weights"])


def weights_of(model: nn.Module) -> dict[str, Any]:
    """The state of a model, ready for JSON."""
    return {name: value.tolist() for name, value in model.state_dict().items()}


def with_weights(architecture: Architecture, weights: Mapping[str, Any]) -> nn.Sequential:
    """The network of a declaration with the state that :func:`weights_of` gave."""
    model = architecture.build()
    like = model.state_dict()
    model.load_state_dict({name: torch.tensor(value, dtype=like[name].dtype) for name, value in weights.items()})
    return model


def train_line(
    study: Study, training: Training, data: Dataset, given: Mapping[str, Any], name: str, seed: int
) -> tuple[nn.Module, dict[str, Any]]:
    """Train a line.

    Returns:
        The network, and the result, ready for JSON: accuracies, parameters, gates, entropies.
    """
    line = study.line(name)
    if line.origin is None:
        original = original_from(study, given)
    else:
        original = line.origin.build(seed)
        _train(original, data, training, seed, training.epochs)
    if line.start in ("original", "longer", "near_identity", "random", "module"):
        if line.module is not None:
            with isolated(seed, "control", name):
                model = line.module()
        else:
            assert line.architecture is not None
            model = line.architecture.build(seed, "random" if line.start == "random" else "near_identity")
        if line.start in ("near_identity", "random"):
            found = _heal(model, data, training, seed, training.epochs + training.healing)
        else:
            epochs = training.epochs + (0 if line.start == "original" else training.healing)
            found = _train(model, data, training, seed, epochs)
    else:
        model = start_line(line, original, seed, training.sweeps)
        with nullcontext() if line.noise_shots is None else shot_noise(model, line.noise_shots):
            found = _heal(model, data, training, seed, training.healing)
    return model, {**found, **describe_layers(model, original)}


def start_line(line: Line, original: nn.Sequential, seed: int, sweeps: int) -> nn.Module:
    """The network of a line that starts from the original, before it is trained on."""
    assert line.architecture is not None
    if line.start == "explicit":
        return start_from(original, line.architecture, seed=seed, max_sweeps=sweeps)
    model = start_from(original, line.architecture.with_circuits({}), seed=seed)
    for number, layer in enumerate(line.architecture.layers, 1):
        if layer.has_circuits:
            trained = original.get_submodule(f"layer{number}")
            assert isinstance(trained, MPOLinear)
            around = _frozen if line.start == "frozen" else _shuffled
            model.add_module(
                f"layer{number}", around(trained.mpo.detach(), layer, stream_seed(seed, line.name, number))
            )
    return model


def _frozen(mpo: MPO, layer: Any, seed: int) -> nn.Module:
    """The best core for Haar-random gates, which stay as they are."""
    inward, output = layer.ansatze()
    first = Circuit(inward, "random", stream_seed(seed, "input"), mirrored=True, dtype=mpo.dtype)
    last = Circuit(output, "random", stream_seed(seed, "output"), dtype=mpo.dtype)
    turned = last.adjoint(first(mpo.to_padded_dense()).mT).mT
    around = DisentangledLinear(last, _best_core(turned, mpo, layer.bond), first)
    for circuit in (first, last):
        circuit.requires_grad_(False)
    return around


class Shuffled(nn.Module):
    """An operator between two fixed permutations."""

    def __init__(self, core: MPO, first: Tensor, last: Tensor) -> None:
        super().__init__()
        self.layer = MPOLinear(core)
        self.register_buffer("first", first)
        self.register_buffer("last", last)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (..., in) to (..., out)."""
        return self.layer(x[..., self.get_buffer("first")])[..., self.get_buffer("last")]


def _shuffled(mpo: MPO, layer: Any, seed: int) -> nn.Module:
    """The best core for random permutations on the sides that have circuits."""
    weight = mpo.to_dense()
    out, size = weight.shape
    generator = stream(seed, "permutations")
    inward, output = layer.ansatze()
    first = torch.randperm(size, generator=generator) if inward.layers else torch.arange(size)
    last = torch.randperm(out, generator=generator) if output.layers else torch.arange(out)
    turned = weight[last.argsort()][:, first]
    return Shuffled(_best_core(turned, mpo, layer.bond), first, last)


def _best_core(turned: Tensor, mpo: MPO, bond: int) -> MPO:
    wide = MPO.from_dense(turned, mpo.out_dims, mpo.in_dims)
    if max(wide.bond_dims, default=1) <= bond:
        return wide
    return disentangle(wide, (Ansatz(wide.out_dims, ()), Ansatz(wide.in_dims, ())), core_bond=bond).core


def _train(model: nn.Module, data: Dataset, training: Training, seed: int, epochs: int) -> dict[str, Any]:
    return _run(model, data, seed, epochs, training.lr, training.batch_size)


def _heal(model: nn.Module, data: Dataset, training: Training, seed: int, epochs: int) -> dict[str, Any]:
    return _run(model, data, seed, epochs, training.healing_lr, training.healing_batch_size)


def _run(model: nn.Module, data: Dataset, seed: int, epochs: int, lr: float, batch_size: int) -> dict[str, Any]:
    began = time.perf_counter()
    history = heal(model, data.train, data.validation, epochs=epochs, lr=lr, batch_size=batch_size, seed=seed)
    return {
        "accuracy": accuracy(model, *data.test),
        "validation": history.validation_accuracy[history.best_epoch],
        "parameters": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        "seconds": time.perf_counter() - began,
    }


def describe_training(training: Training) -> str:
    """A few sentences on how lines are trained and counted."""
    return (
        f"The original is trained for {training.epochs} epochs (batches of {training.batch_size}, peak of the learning "
        f"rate {training.lr:g}); hybrids start from it, each layer disentangled explicitly, and are healed for "
        f"{training.healing} more (batches of {training.healing_batch_size}, peak {training.healing_lr:g}); controls "
        "from scratch are trained for as many epochs in all, those with circuits like a healing and others like the "
        "original. Adam, one cycle, the weights of the epoch best on the validation part; circuits and training were "
        f"chosen on it too. {COUNTING_RULE} The paper's numbers are of its own, unknown architecture and training."
    )


@torch.no_grad()
def describe_layers(model: nn.Module, original: nn.Module | None = None) -> dict[str, Any]:
    """Gates and mean bond entropies of the tensor layers, by name."""
    gates: dict[str, Any] = {}
    entropies: dict[str, Any] = {}
    for name, layer in model.named_children():
        before = None if original is None else original._modules.get(name)
        if isinstance(layer, MPOLinear):
            entropies[name] = {"layer": _mean_entropy(layer.mpo), "bonds": list(layer.mpo.bond_dims)}
        if isinstance(layer, DisentangledLinear):
            gates[name] = {
                "cnots": [layer.input_circuit.cnot_count, layer.output_circuit.cnot_count],
                "transpiled": [_transpiled(layer.input_circuit), _transpiled(layer.output_circuit)],
            }
            if layer.is_linear and layer.core.bond_dims:
                core = layer.core
                entropies[name] = {
                    "layer": float(dense_entropies(layer.weight.double(), core.out_dims, core.in_dims).mean()),
                    "core": _mean_entropy(core),
                    "bonds": list(core.bond_dims),
                    "largest": _mean_largest(core),
                }
                if isinstance(before, MPOLinear):
                    entropies[name]["original"] = _mean_entropy(before.mpo)
                    entropies[name]["original_largest"] = _mean_largest(before.mpo)
    return {"gates": gates, "entropies": entropies}


def _mean_entropy(mpo: MPO) -> float:
    return float(mpo.detach().to(torch.float64).entropies().mean()) if len(mpo.cores) > 1 else 0.0


def _mean_largest(mpo: MPO) -> float:
    """Mean over the bonds of the largest entropy that each allows, Eq. (6)."""
    return statistics.fmean(math.log(bond) for bond in mpo.bond_dims) if mpo.bond_dims else 0.0


def _transpiled(circuit: Circuit) -> int:
    """Two-qubit gates of all segments on the paper's device."""
    return sum(count_gates(segment)["transpiled"]["two_qubit"] for segment in exported(circuit))


def exported(circuit: Circuit) -> list[Circuit]:
    """The segments that have gates, on the wires that they touch: idle wires need not be qubits."""
    found = []
    for gates in circuit.segment_gates():
        touched = sorted({wire for _, wires in gates for wire in wires})
        if touched:
            dims = [circuit.ansatz.wire_dims[wire] for wire in touched]
            moved = [(gate, tuple(touched.index(wire) for wire in wires)) for gate, wires in gates]
            found.append(Circuit.from_gates(dims, moved, dtype=circuit.dtype))
    return found


def make_rows(study: Study, request: Request, results: Mapping[str, Any]) -> list[Row]:
    """The rows of the table; those of hybrids have gates and entropies beside."""
    rows = []
    for name, found in study.results(request, results).items():
        line = study.line(name)
        rows.append(
            make_row(
                name,
                line.kind,
                [each["accuracy"] for each in found],
                seeds=range(request.seeds),
                parameters=max(each["parameters"] for each in found),
                paper={"parameters": line.paper[0], "value": line.paper[1]},
                description=line.text,
                start=line.start,
                validation=[each["validation"] for each in found],
                cnots=_total(found, "cnots"),
                transpiled=_total(found, "transpiled"),
                entropies=[each["entropies"] for each in found],
                seconds=[each["seconds"] for each in found],
            )
        )
    return rows


def _total(found: Sequence[Mapping[str, Any]], key: str) -> list[int] | None:
    """Of all circuits of a network, one a seed."""
    totals = [sum(sum(layer[key]) for layer in each["gates"].values()) for each in found]
    return totals if any(each["gates"] for each in found) else None


def main_section(rows: Sequence[Row], heading: str, note: str = "") -> Section:
    """The table for people."""
    cells = []
    for row in rows:
        printed, value = row["paper"]["parameters"], row["paper"]["value"]
        cells.append(
            (
                row["name"],
                f"{row['parameters']:,}",
                "-" if printed is None else f"{printed:,}",
                "-" if row["cnots"] is None else f"{statistics.fmean(row['cnots']):,.0f}",
                "-" if row["transpiled"] is None else f"{statistics.fmean(row['transpiled']):,.0f}",
                with_spread([100 * value for value in row["validation"]], 2),
                with_spread([100 * value for value in row["values"]], 2),
                "-" if value is None else f"{100 * value:.2f}",
            )
        )
    columns = (
        "network",
        "parameters",
        "paper's",
        "CNOTs as built",
        "two-qubit gates, FakeMontreal",
        "validation %",
        "test %",
        "paper %",
    )
    return Section(columns, tuple(cells), heading=heading, note=note, details=tuple(row["description"] for row in rows))


def entropy_section(rows: Sequence[Row]) -> Section:
    """Mean bond entropies of the original's layers, of O C I and of the cores."""
    cells = []
    for row in rows:
        for layer in sorted({name for each in row["entropies"] for name in each}):
            found = [each[layer] for each in row["entropies"] if "core" in each.get(layer, {})]
            if found and "original" in found[0]:
                cells.append(
                    (
                        f"{row['name']}, {layer}",
                        *(
                            with_spread([each[key] for each in found], 2)
                            for key in ("original", "original_largest", "layer", "core", "largest")
                        ),
                    )
                )
    return Section(
        ("layer", "original M", "its bonds' maximum", "O C I", "core C", "its bonds' maximum"),
        tuple(cells),
        heading="Are they disentanglers? Mean entropy of a bond, in nats",
        note="If circuits disentangle, O C I is entangled like the original, and the core less.",
    )


def plot(path: Path, rows: Sequence[Row]) -> None:
    """Accuracies as NAME.png, and entropies as NAME-entropies.png."""
    from unbraid.report.plots import save_png

    plot_accuracies(path, rows)
    save_png(path.with_name(f"{path.stem}-entropies.png"), lambda ax: _draw_entropies(rows, ax))


def _draw_entropies(rows: Sequence[Row], ax: Any) -> Any:
    from unbraid.report.plots import BLUE, GREY, SKY, VERMILION

    found = [
        (f"{row['name']}, {layer}", [each[layer] for each in row["entropies"]])
        for row in rows
        if row["kind"] == "hybrid"
        for layer in sorted(row["entropies"][0])
        if "original" in row["entropies"][0][layer]
    ]
    kinds = (
        ("original_largest", "|", GREY, "maximum of the original's bonds"),
        ("original", "D", VERMILION, "original M"),
        ("layer", "o", BLUE, "O C I"),
        ("core", "s", SKY, "core C"),
    )
    for key, marker, color, label in kinds:
        values = [statistics.fmean(each[key] for each in layers) for _, layers in found]
        ax.plot(values, range(len(values)), marker, color=color, label=label, linestyle="none", markersize=6)
    ax.set_ylim(len(found) - 0.5, -0.5)
    ax.set_yticks(range(len(found)), [name for name, _ in found], fontsize=7)
    ax.set_xlabel("mean entropy of a bond (nats)")
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return ax
