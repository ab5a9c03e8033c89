"""Tensors made of parameters, kept from one call to the next until a parameter changes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.nn import Parameter

Made = TypeVar("Made")


class Kept(Generic[Made]):
    """What was made of some parameters, by what was asked for; copies and pickles begin empty."""

    def __init__(self) -> None:
        self._stamp: list[int] = []
        self._parameters: tuple[Tensor, ...] = ()
        self._made: dict[Any, Made] = {}

    def get(self, parameters: tuple[Tensor, ...], key: Any, make: Callable[[Any], Made]) -> Made:
        """``make(key)``, or what it gave since the parameters, integers among them, last changed."""
        for parameter in parameters:
            if _is_stand_in(parameter) or parameter.is_inference():
                return make(key)  # an inference tensor counts no changes
        stamp: list[int] = []
        for parameter in parameters:
            stamp += (id(parameter), parameter.data_ptr(), parameter._version)
        if stamp != self._stamp:  # parameters are held on to, so that no other gets the id of one
            self._stamp, self._parameters, self._made = stamp, parameters, {}
        if key not in self._made:
            with torch.inference_mode(False), torch.no_grad():
                self._made[key] = make(key)
        return self._made[key]

    def drop(self) -> None:
        """Keep nothing: a step may follow, and fused ones count no changes."""
        if self._made:
            self._stamp, self._parameters, self._made = [], (), {}

    def __reduce__(self) -> tuple[Any, ...]:
        return (Kept, ())


def _is_stand_in(tensor: Tensor) -> bool:
    """Whether a transform put it in a parameter's place; integers are buffers, of no class of their own."""
    return type(tensor) is not Parameter and (type(tensor) is not Tensor or tensor.is_floating_point())


def without_autocast(like: Tensor) -> AbstractContextManager[Any]:
    """Parameters are joined in their own precision; products with inputs are cast as they would be."""
    kind = like.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()
