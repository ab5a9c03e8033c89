"""Slice-wise distillation: each part of a network learns what the same part of the original puts out.

A slice is any module: a transformer block, a layer with its norm. Slices are healed in their order, each on the inputs
that the network before it, already healed, gives, towards the outputs of the teacher's slice. Gradients never leave a
slice, so this costs little memory, and a target for every token teaches more than the few numbers at the end of the
network.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unbraid.ground import progress
from unbraid.ground.errors import InvalidInputError
from unbraid.nn.calibration import as_batches
from unbraid.nn.heal import History, heal
from unbraid.nn.hidden import check_slices, first_output, mask_of, squared_error, variance
from unbraid.nn.modes import keeping_modes
from unbraid.nn.task import Task, regression


def heal_slices(
    model: nn.Module,
    teacher: nn.Module,
    batches: Any,
    slices: Sequence[str],
    *,
    epochs: int,
    lr: float,
    task: Task | None = None,
    checkpoint_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
    **options: Any,
) -> dict[str, History]:
    """Train slices of ``model`` in place, one after the other, towards the teacher's.

    The loss of a slice is the squared error of its (first) output over the teacher's variance. Positions that
    ``attention_mask`` of a batch leaves out do not count where a slice puts out (samples, length, features).

    Args:
        model: with layers replaced, otherwise of the teacher's structure.
        teacher: the original.
        batches: a list of batches, or one tensor.
        slices: names of modules that both have, in the order in which they run.
        epochs: passes a slice.
        lr: peak learning rate.
        task: how the models run on a batch; by default model(batch), model(batch[0]) or model(**batch).
        checkpoint_dir: a folder a slice is kept there, and resumed from.
        seed: of :func:`unbraid.heal`.
        **options: others of :func:`unbraid.heal`, such as ``optimizer``, ``scheduler``, ``weight_decay``. Its
            ``dropout`` is off here if not asked for.

    Returns:
        The history of each slice.

    Raises:
        InvalidInputError: if a slice is missing, does not run, gives no tensor or one of another shape than the
            teacher's, or the set is empty.
    """
    task = task or regression()
    found = as_batches(batches)
    names = check_slices({"model": model, "teacher": teacher}, slices)
    histories = {}
    for name in progress.track(names, "slices", len(names)):
        part = model.get_submodule(name)
        if not any(parameter.requires_grad for parameter in part.parameters()):
            raise InvalidInputError(f"The slice {name!r} has no trainable parameters. Leave it out.")
        targets = [_recorded(teacher, name, batch, task)[1] for batch in found]
        scale = variance(targets, [mask_of(batch, target) for batch, target in zip(found, targets, strict=True)])
        lessons = [_lesson(model, name, batch, task, target) for batch, target in zip(found, targets, strict=True)]

        def loss(part: nn.Module, lesson: Any, scale: float = scale) -> Tensor:
            inputs, target, mask = lesson
            args, kwargs = copy.deepcopy(inputs)  # a slice may change what it gets: residuals in place, caches
            return squared_error(first_output(part(*args, **kwargs)), target, mask) / scale

        place = None if checkpoint_dir is None else Path(checkpoint_dir) / name
        histories[name] = heal(
            part,
            lessons,
            epochs=epochs,
            lr=lr,
            loss=loss,
            checkpoint_dir=place,
            seed=seed,
            **{"dropout": False} | options,
        )
    return histories


class _EnoughError(Exception):
    """The slice has run; what comes behind it need not."""


@torch.no_grad()
def _recorded(model: nn.Module, name: str, batch: Any, task: Task) -> tuple[tuple[Any, Any], Tensor]:
    """The arguments that a slice gets on a batch, and its output."""
    kept: list[Any] = []

    def keep_inputs(_: nn.Module, args: Any, kwargs: Any) -> None:
        kept.append(copy.deepcopy((args, kwargs)))

    def keep_output(_: nn.Module, __: Any, output: Any) -> None:
        kept.append(first_output(output))
        raise _EnoughError

    part = model.get_submodule(name)
    hooks = [part.register_forward_pre_hook(keep_inputs, with_kwargs=True), part.register_forward_hook(keep_output)]
    try:
        with keeping_modes(model), suppress(_EnoughError):
            task.call(model.eval(), batch)
    finally:
        for hook in hooks:
            hook.remove()
    if len(kept) < 2:
        raise InvalidInputError(f"The slice {name!r} does not run when the model does. Leave it out.")
    return kept[0], kept[1]


def _lesson(
    model: nn.Module, name: str, batch: Any, task: Task, target: Tensor
) -> tuple[tuple[Any, Any], Tensor, Tensor | None]:
    inputs, output = _recorded(model, name, batch, task)
    if output.shape != target.shape:
        raise InvalidInputError(
            f"The slice {name!r} puts out {tuple(output.shape)}, that of the teacher {tuple(target.shape)}."
        )
    return inputs, target, mask_of(batch, target)
