"""Slice-wise distillation: each part of a network learns what the same part of the original puts out.

A slice is any module: a transformer block, a layer with its norm. Slices are healed in their order, each on the inputs
that the network before it, already healed, gives, towards the outputs of the teacher's slice. Gradients never leave a
slice, so this costs little memory, and a target for every token teaches more than the few numbers at the end of the
network.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
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
    squared_error,
    variance,
)
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
    for name in names:
        if not any(parameter.requires_grad for parameter in model.get_submodule(name).parameters()):
            raise InvalidInputError(f"The slice {name!r} has no trainable parameters. Leave it out.")
    original, changed = _Feed(teacher, names, found, task), _Feed(model, names, found, task)
    for name in progress.track(names, "slices", len(names)):
        targets = original.outputs(name)
        masks = [mask_of(batch, target) for batch, target in zip(found, targets, strict=True)]
        scale = variance(targets, masks)
        inputs = changed.inputs(name)

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


class _Feed:
    """What slices of a network get on all batches, and put out, one slice after another.

    Where a slice gets what the one before puts out, and beside it the same as that one (blocks of a transformer), that
    one alone is run for it. Else the network is run up to it.
    """

    def __init__(self, network: nn.Module, names: Sequence[str], batches: Sequence[Any], task: Task) -> None:
        self.network, self.batches, self.task = network, batches, task
        self.chained = _chained(network, names, batches[0], task)
        self.last: str | None = None
        self.given: list[tuple[Any, Any]] = []  # to the last slice
        self.put_out: list[Tensor] | None = None  # by it, while it does not change

    def inputs(self, name: str) -> list[tuple[Any, Any]]:
        """Arguments of a slice."""
        if name in self.chained and self.last is not None:
            outputs = self._run() if self.put_out is None else self.put_out
            self.given = [
                ((output, *args[1:]), kwargs) for output, (args, kwargs) in zip(outputs, self.given, strict=True)
            ]
        else:
            self.given = []  # lets go of memory
            self.given = [_inputs(self.network, name, batch, self.task) for batch in self.batches]
        self.last, self.put_out = name, None
        return self.given

    def outputs(self, name: str) -> list[Tensor]:
        """What a slice puts out that does not change from now on."""
        self.inputs(name)
        self.put_out = self._run()
        self.given = [((None, *args[1:]), kwargs) for args, kwargs in self.given]  # lets go of memory
        return self.put_out

    @torch.no_grad()
    def _run(self) -> list[Tensor]:
        assert self.last is not None
        part, found = self.network.get_submodule(self.last), []
        with keeping_modes(part):
            part.eval()
            for given in self.given:
                args, kwargs = copy.deepcopy(given)  # a slice may change what it gets
                found.append(first_output(part(*args, **kwargs)))
        return found


@torch.no_grad()
def _chained(network: nn.Module, names: Sequence[str], batch: Any, task: Task) -> set[str]:
    """Slices that get what the one before them in the list puts out, unchanged, and beside it the same as that one."""
    given: dict[str, tuple[Any, Any]] = {}
    outputs: dict[str, tuple[Tensor, int]] = {}
    found = set()

    def before(name: str, previous: str | None, args: Any, kwargs: Any) -> None:
        if previous in outputs and args:
            output, version = outputs[previous]
            (_, *rest), other = given[previous]
            unchanged = args[0] is output and output._version == version
            if unchanged and _same(rest, list(args[1:])) and _same(other, kwargs):
                found.add(name)
        given[name] = args, kwargs

    def behind(name: str, output: Any) -> None:
        tensor = first_output(output)
        outputs[name] = tensor, tensor._version

    hooks = []
    for previous, name in zip([None, *names], names, strict=False):
        part = network.get_submodule(name)
        hooks.append(
            part.register_forward_pre_hook(
                lambda _, args, kwargs, name=name, previous=previous: before(name, previous, args, kwargs),
                with_kwargs=True,
            )
        )
        hooks.append(part.register_forward_hook(lambda _, __, output, name=name: behind(name, output)))
    try:
        with keeping_modes(network):
            task.call(network.eval(), batch)
    finally:
        for hook in hooks:
            hook.remove()
    check_run(names, outputs)
    return found


def _same(one: Any, other: Any) -> bool:
    """Whether arguments have the same values; of anything but tensors, plain values and containers: no."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one is other or (one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(value, other[key]) for key, value in one.items())
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return isinstance(one, (int, float, str, bool, type(None))) and type(one) is type(other) and one == other


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
