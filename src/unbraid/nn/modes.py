"""Modes, dropout and frozen parameters that come back as they were, module by module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.dropout import _DropoutNd


@contextmanager
def keeping_modes(model: nn.Module) -> Iterator[None]:
    """Restore the mode of every part of ``model`` after the block, also after an error.

    ``model.train(was_training)`` would put all parts into one mode, frozen batch norms included.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """No part of ``model`` drops anything within the block, in training mode too.

    Looked for are dropout layers, and rates that a module keeps itself (an attribute with "dropout" in its name, as
    attention layers of transformers do).
    """
    rates = [
        (module, name, value)
        for module in model.modules()
        for name, value in vars(module).items()
        if isinstance(value, float) and ("dropout" in name or (name == "p" and isinstance(module, _DropoutNd)))
    ]
    try:
        for module, name, _ in rates:
            setattr(module, name, 0.0)
        yield
    finally:
        for module, name, value in rates:
            setattr(module, name, value)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter wants a gradient within the block."""
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in wanted:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, grad in wanted:
            parameter.requires_grad_(grad)
