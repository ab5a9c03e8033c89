"""``convert_layers``: MPO layers become disentangled ones one after another, and the network is healed after each.

A network in which every layer is swapped at once starts from an accuracy near chance. One layer at a time, what the
others have learnt is kept, and each step says what it cost.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from unbraid.circuits import Ansatz, Circuit
from unbraid.disentangling import Disentangled
from unbraid.ground import progress
from unbraid.ground.errors import InvalidInputError
from unbraid.ground.files import make_directory
from unbraid.nn.heal import accuracy, heal
from unbraid.nn.layers import MPOLinear
from unbraid.nn.surgery import disentangle_these

Model = TypeVar("Model", bound=nn.Module)
Geometry = Ansatz | tuple[Ansatz, Ansatz] | int


@dataclass(frozen=True)
class Conversion:
    """The network after one step.

    Attributes:
        layer: that was swapped; "" for the network that was given.
        parameters: trainable scalars of the network.
        cnots: of all its circuits, as they are built; None if a gate is on wires that are not qubits.
        overlap: of the layer with its disentangled form, Eq. (2).
        swapped: validation accuracy right after the swap, before healing.
        accuracy: after healing.
    """

    layer: str
    parameters: int
    cnots: int | None
    overlap: float | None
    swapped: float
    accuracy: float


def convert_layers(
    model: Model,
    circuits: Mapping[str, Geometry],
    train_data: tuple[Tensor, Tensor],
    validation_data: tuple[Tensor, Tensor],
    *,
    epochs: int,
    lr: float,
    core_bond: int | Mapping[str, int] = 1,
    teacher: nn.Module | None = None,
    seed: int = 0,
    checkpoint_dir: str | os.PathLike[str] | None = None,
    disentangling: Mapping[str, Any] | None = None,
    **healing: Any,
) -> tuple[Model, list[Conversion]]:
    """Disentangle MPO layers explicitly, in the order given, and heal the whole network after each.

    Args:
        model: with MPO layers; a copy is changed.
        circuits: the layers by their full names; an ansatz for both sides, a pair (output side, input side), or the
            depth of a two-body brickwall, as of :func:`unbraid.disentangle_layers`.
        train_data: (x, y).
        validation_data: (x, y); every healing ends with the weights that are best on it.
        epochs: of each healing.
        lr: peak learning rate of each healing.
        core_bond: of the cores, or one a layer.
        teacher: for distillation; None heals on the labels alone.
        seed: of gates and batches.
        checkpoint_dir: a folder that keeps the progress: the same call takes it up again.
        disentangling: further options of :func:`unbraid.disentangle`.
        **healing: further options of :func:`unbraid.heal`.

    Returns:
        The converted model, and what each step made of it; the first entry is the model that was given.

    Raises:
        InvalidInputError: if a name is no MPO layer, or circuits do not fit one. The model is left as it was.

    Source:
        The schedule is that of "Let the Quantum Creep In: Designing Quantum Neural Network Models by Gradually
        Swapping Out Classical Components", arXiv:2409.17583.
    """
    if not isinstance(circuits, Mapping):
        raise InvalidInputError(f"circuits must be given by the names of layers; got {type(circuits).__name__}.")
    for data, what in ((train_data, "train_data"), (validation_data, "validation_data")):
        if not (isinstance(data, Sequence) and len(data) == 2 and all(isinstance(part, Tensor) for part in data)):
            raise InvalidInputError(f"{what} must be a pair of tensors (x, y).")
    taken = sorted({"core_bond", "seed", "checkpoint", "results", "inplace"} & set(disentangling or ()))
    if taken:
        raise InvalidInputError(f"disentangling= cannot have {', '.join(taken)}: convert_layers sets it itself.")
    names = {name for name, module in model.named_modules() if isinstance(module, MPOLinear)}
    unknown = [name for name in circuits if name not in names]
    if unknown or not circuits:
        raise InvalidInputError(
            f"circuits must name MPO layers of this model, which has {', '.join(sorted(names)) or 'none'}; got "
            f"{', '.join(unknown) or 'no names'}."
        )
    bonds = core_bond if isinstance(core_bond, Mapping) else dict.fromkeys(circuits, core_bond)
    if set(bonds) != set(circuits) or not all(isinstance(bond, int) for bond in bonds.values()):
        raise InvalidInputError(f"core_bond must be a number, or one for each of {', '.join(circuits)}.")
    before = accuracy(model, *validation_data)
    steps = [Conversion("", *_size(model), None, before, before)]
    changed = copy.deepcopy(model)
    for name, geometry in progress.track(circuits.items(), "convert layers", len(circuits)):
        kept = None if checkpoint_dir is None else make_directory(Path(checkpoint_dir) / name)
        results: dict[str, Disentangled] = {}
        changed = disentangle_these(
            changed,
            {name: changed.get_submodule(name)},
            geometry,
            core_bond=bonds[name],
            results=results,
            seed=seed,
            checkpoint=kept,
            **(disentangling or {}),
        )
        swapped = accuracy(changed, *validation_data)
        heal(
            changed,
            train_data,
            validation_data,
            epochs=epochs,
            lr=lr,
            teacher=teacher,
            seed=seed,
            checkpoint_dir=kept,
            **healing,
        )
        steps.append(
            Conversion(name, *_size(changed), results[name].overlap, swapped, accuracy(changed, *validation_data))
        )
    return changed, steps


def describe_conversions(steps: list[Conversion]) -> str:
    """A table as text."""
    rows: list[tuple[str, ...]] = [("layer", "parameters", "CNOTs", "overlap", "after the swap", "healed")]
    for step in steps:
        overlap = "-" if step.overlap is None else f"{step.overlap:.3f}"
        swapped, healed = (f"{100 * value:.2f} %" for value in (step.swapped, step.accuracy))
        cnots = "-" if step.cnots is None else f"{step.cnots:,}"
        rows.append((step.layer or "(given)", f"{step.parameters:,}", cnots, overlap, swapped, healed))
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _size(model: nn.Module) -> tuple[int, int | None]:
    """Trainable scalars, and CNOTs of all circuits."""
    parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    try:
        return parameters, sum(module.cnot_count for module in model.modules() if isinstance(module, Circuit))
    except InvalidInputError:  # not on qubits
        return parameters, None
