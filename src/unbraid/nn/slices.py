"""Slice-wise distillation: each part of a network learns what the same part of the original puts out.

A slice is any module: a transformer block, a layer with its norm. Slices are healed in their order, each on the inputs
that the network before it, already healed, gives, towards the outputs of the teacher's slice. Gradients never leave a
slice, so this costs little memory, and a target for every token teaches more than the few numbers at the end of the
network.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unbraid.ground import progress
from unbraid.ground.errors import InvalidInputError
from unbraid.nn.calibration import as_batches
from unbraid.nn.heal import History, heal
from unbraid.nn.hidden import (
    check_run,
    check_shapes,
    check_slices,
    first_output,
    mask_of,
    recorded,
    squared_error,
    variance,
)
from unbraid.nn.modes import keeping_modes
from unbraid.nn.task import Task, regression

KEPT_BYTES = 2 * 2**30  # of the teacher's outputs


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
    for name in names:
        if not any(parameter.requires_grad for parameter in model.get_submodule(name).parameters()):
            raise InvalidInputError(f"The slice {name!r} has no trainable parameters. Leave it out.")
    pairs = zip(names, _targets(teacher, names, found, task), strict=True)
    for name, targets in progress.track(pairs, "slices", len(names)):
        masks = [mask_of(batch, target) for batch, target in zip(found, targets, strict=True)]
        scale = variance(targets, masks)
        inputs = [_inputs(model, name, batch, task) for batch in found]

        def loss(part: nn.Module, lesson: Any, name: str = name, scale: float = scale) -> Tensor:
            given, target, mask = lesson
            args, kwargs = copy.deepcopy(given)  # a slice may change what it gets: residuals in place, caches
            output = first_output(part(*args, **kwargs))
            check_shapes(name, output, target)
            return squared_error(output, target, mask) / scale

        place = None if checkpoint_dir is None else Path(checkpoint_dir) / name
        histories[name] = heal(
            model.get_submodule(name),
            list(zip(inputs, targets, masks, strict=True)),
            epochs=epochs,
            lr=lr,
            loss=loss,
            checkpoint_dir=place,
            seed=seed,
            **{"dropout": False} | options,
        )
    return histories


def _targets(teacher: nn.Module, names: Sequence[str], batches: Sequence[Any], task: Task) -> Iterator[list[Tensor]]:
    """What each slice of the teacher puts out; of as many slices in one pass as take KEPT_BYTES together."""
    size = sum(each.nbytes for each in _outputs(teacher, names, batches[0], task).values()) * len(batches) / len(names)
    together = max(1, int(KEPT_BYTES / max(size, 1)))
    for start in range(0, len(names), together):
        group = names[start : start + together]
        found = [_outputs(teacher, group, batch, task) for batch in batches]
        for name in group:
            yield [each.pop(name) for each in found]


@torch.no_grad()
def _outputs(teacher: nn.Module, names: Sequence[str], batch: Any, task: Task) -> dict[str, Tensor]:
    with keeping_modes(teacher), recorded(teacher, names) as found:
        task.call(teacher.eval(), batch)
    check_run(names, found)
    return found


class _EnoughError(Exception):
    """The slice is about to run; what comes from there on need not."""


@torch.no_grad()
def _inputs(model: nn.Module, name: str, batch: Any, task: Task) -> tuple[Any, Any]:
    """The arguments that a slice gets on a batch."""
    kept: list[Any] = []

    def keep(_: nn.Module, args: Any, kwargs: Any) -> None:
        kept.append(copy.deepcopy((args, kwargs)))
        raise _EnoughError

    hook = model.get_submodule(name).register_forward_pre_hook(keep, with_kwargs=True)
    try:
        with keeping_modes(model), suppress(_EnoughError):
            task.call(model.eval(), batch)
    finally:
        hook.remove()
    check_run([name], [name] if kept else [])
    return kept[0]
