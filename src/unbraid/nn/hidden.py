"""What parts of a network put out within it: recorded, told apart from padding, and compared."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from unbraid.ground.errors import InvalidInputError


def check_slices(models: Mapping[str, nn.Module], slices: Any) -> list[str]:
    """The names as a list.

    Args:
        models: by what they are called.
        slices: names of modules that all of them have.

    Raises:
        InvalidInputError: if it is no list of names, is empty, or a model lacks one.
    """
    if isinstance(slices, str) or not isinstance(slices, Sequence) or not slices:
        raise InvalidInputError(f"slices must be a list of module names; got {slices!r}.")
    for whose, model in models.items():
        known = dict(model.named_modules())
        missing = [name for name in slices if name not in known]
        if missing:
            raise InvalidInputError(f"The {whose} has no module {missing[0]!r}, which is named as a slice.")
    return list(slices)


def first_output(output: Any) -> Tensor:
    """The tensor that a module puts out, alone or at the head of a tuple.

    Raises:
        InvalidInputError: if there is none of shape (samples, ..., features).
    """
    first = output[0] if isinstance(output, (tuple, list)) else output
    if not isinstance(first, Tensor) or first.dim() < 2:
        came = tuple(first.shape) if isinstance(first, Tensor) else type(first).__name__
        raise InvalidInputError(
            f"A slice must put out a tensor (samples, ..., features), or a tuple that begins with one; got {came}."
        )
    return first


@contextmanager
def recorded(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """What modules put out (:func:`first_output`) while the model runs within the block, by name."""
    found: dict[str, Tensor] = {}

    def keep(name: str, output: Any) -> None:
        found[name] = first_output(output).clone()  # what comes behind may change it in place

    hooks = [
        model.get_submodule(name).register_forward_hook(lambda _, __, output, name=name: keep(name, output))
        for name in names
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def check_run(names: Sequence[str], found: Container[str]) -> None:
    """Refuse a slice that put out nothing.

    Raises:
        InvalidInputError: naming it.
    """
    missing = [name for name in names if name not in found]
    if missing:
        raise InvalidInputError(f"The slice {missing[0]!r} does not run when the model does. Leave it out.")


def check_shapes(name: str, output: Tensor, wanted: Tensor) -> None:
    """Refuse a slice whose output cannot be compared with the teacher's.

    Raises:
        InvalidInputError: saying so.
    """
    if output.shape != wanted.shape:
        raise InvalidInputError(
            f"The slice {name!r} puts out {tuple(output.shape)}, that of the teacher {tuple(wanted.shape)}."
        )


def mask_of(batch: Any, output: Tensor) -> Tensor | None:
    """The ``attention_mask`` of a batch, where a module's output has a vector for each of its positions."""
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    return mask.to(output.dtype) if mask is not None and output.shape[:2] == mask.shape else None


def squared_error(output: Tensor, wanted: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over features and those positions that the mask leaves in, a scalar."""
    errors = (output - wanted).square().mean(-1)
    return errors.mean() if mask is None else (errors * mask).sum() / mask.sum().clamp_min(1)


def variance(outputs: Sequence[Tensor], masks: Sequence[Tensor | None]) -> float:
    """Of the entries around the mean of their feature, over all batches; their mean square where that is 0, or 1."""
    rows = [
        output.flatten(0, -2) if mask is None else output[mask.bool()]
        for output, mask in zip(outputs, masks, strict=True)
    ]
    together = torch.cat(rows).double()
    if not together.numel():
        return 1.0
    sizes = (float(together.var(0, correction=0).mean()), float(together.square().mean()), 1.0)
    return next(size for size in sizes if size > 0)
