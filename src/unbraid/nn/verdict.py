"""``verdict``: whether circuits pay for the layers of a model, at a budget of weight error or of the task's loss."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import overload

import torch
from torch import Tensor, nn

from unbraid.disentangling import Disentangled, Verdict
from unbraid.disentangling.verdict import Judge, Operator, weight_verdict
from unbraid.ground.errors import InvalidInputError
from unbraid.ground.manifest import hash_tensors
from unbraid.nn.calibration import linear_layers
from unbraid.nn.kinds import check_weight, matrix_of
from unbraid.nn.layers import DisentangledLinear, MPOLinear
from unbraid.nn.surgery import replace_modules
from unbraid.nn.targets import Targets
from unbraid.tensors import MPO

Loss = Callable[[nn.Module], float]
Heal = Callable[[nn.Module], object]


@overload
def verdict(
    weight_or_model: Tensor | MPO,
    *,
    budget: float,
    bodies: Iterable[int] = ...,
    max_depth: int = ...,
    restarts: int = ...,
    max_sweeps: int = ...,
    seed: int = ...,
    checkpoint: str | os.PathLike[str] | None = ...,
) -> Verdict: ...


@overload
def verdict(
    weight_or_model: nn.Module,
    *,
    budget: float,
    targets: Targets = ...,
    loss: Loss | None = ...,
    heal: Heal | None = ...,
    bodies: Iterable[int] = ...,
    max_depth: int = ...,
    restarts: int = ...,
    max_sweeps: int = ...,
    seed: int = ...,
    checkpoint: str | os.PathLike[str] | None = ...,
) -> dict[str, Verdict]: ...


def verdict(
    weight_or_model: Tensor | MPO | nn.Module,
    *,
    budget: float,
    targets: Targets = "all-linear",
    loss: Loss | None = None,
    heal: Heal | None = None,
    bodies: Iterable[int] = (2, 3),
    max_depth: int = 3,
    restarts: int = 3,
    max_sweeps: int = 100,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
) -> Verdict | dict[str, Verdict]:
    """Set the smallest plain MPO against the smallest core plus circuits, at an equal budget.

    Chains, low-rank factors and cores are cut by the same routine until they just meet the budget; circuits are
    optimised jointly with their cores, over bonds, depths and bodies. The break-even price says what a circuit
    parameter may cost in classical ones for circuits to pay; see :class:`Verdict`.

    Args:
        weight_or_model: a weight of shape (out, in), real; or a module, whose linear layers are judged one by one, the
            others as they are.
        budget: allowed relative Frobenius error of a weight, above 0 and below 1; with ``loss``, by how much that may
            grow, 0 or more.
        targets: which layers of a model, as in :func:`match_layers`.
        loss: of a model, such as its mean cross-entropy on validation data; it may not change the model.
        heal: called with each copy of the model in which one layer was replaced, before its loss is taken; trains the
            copy in place.
        bodies: wires a gate, each 2 to 6.
        max_depth: largest number of layers of gates a side.
        restarts: runs side by side where circuits start anew.
        max_sweeps: at most so many a run.
        seed: of all starts.
        checkpoint: a folder that keeps what is done (a folder a layer): the same call, with the same ``loss`` and
            ``heal``, goes on from there.

    Returns:
        The verdict of a weight; for a module verdicts by the names of its layers (a layer itself has the name "").

    Raises:
        InvalidInputError: if a weight cannot be judged, nothing matches, a loss is no finite number, or an argument is
            out of range.
    """
    if isinstance(bodies, int):
        raise InvalidInputError(f"bodies must be several numbers of wires, such as (2, 3); got {bodies!r}.")
    options = {
        "budget": budget,
        "bodies": tuple(bodies),
        "max_depth": max_depth,
        "restarts": restarts,
        "max_sweeps": max_sweeps,
        "seed": seed,
    }
    if not isinstance(weight_or_model, nn.Module):
        if loss is not None or heal is not None:
            raise InvalidInputError("loss and heal go with a model; for a weight the budget is its relative error.")
        return weight_verdict(weight_or_model, checkpoint=checkpoint, **options)  # type: ignore[arg-type]
    if loss is None and heal is not None:
        raise InvalidInputError("heal goes with loss: a weight error is that of the weight as it was.")
    model = weight_or_model
    weights = {}
    for name, layer in linear_layers(model, targets).items():
        weights[name] = matrix_of(layer)
        check_weight(weights[name], name)
    judged_by = "" if loss is None else hash_tensors(*model.state_dict().values())
    base = None if loss is None else _loss_of(model, loss)
    found = {}
    for name, weight in weights.items():
        judge = None if loss is None or base is None else _judge(model, name, loss, heal, base)
        folder = None if checkpoint is None else Path(checkpoint) / (name or "layer")
        try:
            found[name] = weight_verdict(
                weight,
                judge=judge,
                name=name,
                checkpoint=folder,
                judged_by=judged_by and f"{judged_by} {name}",
                **options,  # type: ignore[arg-type]
            )
        except InvalidInputError as error:
            raise InvalidInputError(f"Layer {name!r}: {error}") from error
    return found


def _judge(model: nn.Module, name: str, loss: Loss, heal: Heal | None, base: float) -> Judge:
    """By how much the loss of a model grows where an operator, healed if that is asked for, stands for one weight."""

    def growth(operator: Operator) -> float:
        trial = copy.deepcopy(model)
        layer = trial.get_submodule(name)
        trial = replace_modules(trial, {layer: _layer(operator, layer)})
        if heal is not None:
            heal(trial)
        return _loss_of(trial, loss) - base

    return growth


def _layer(operator: Operator, layer: nn.Module) -> nn.Module:
    """The layer of an operator, with the bias, precision and device of another."""
    weight, bias = matrix_of(layer), layer.bias
    assert bias is None or isinstance(bias, Tensor)
    if isinstance(operator, Disentangled):  # circuits are taken over, so they are copied first
        made: nn.Module = DisentangledLinear.from_disentangled(copy.deepcopy(operator), bias)
    else:
        made = MPOLinear(operator, bias)
    return made.to(weight.device, weight.dtype)


def _loss_of(model: nn.Module, loss: Loss) -> float:
    with torch.no_grad():
        value = float(loss(model))
    if not math.isfinite(value):
        raise InvalidInputError(f"The loss must be a finite number; got {value}.")
    return value
