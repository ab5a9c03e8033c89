"""Errors that teach: what was expected, what came, what to try.

Everything that a user can get wrong raises a subclass of :class:`UnbraidError`, which the command line turns into
one line and a non-zero exit code. Each also derives from the built-in exception that a caller would expect.
"""

from __future__ import annotations

import importlib
from types import ModuleType

import torch
from torch import Tensor


class UnbraidError(Exception):
    """Base of all errors that this package raises on purpose."""


class InvalidInputError(UnbraidError, ValueError):
    """An argument, a weight or an option that cannot be used."""


class FileFormatError(UnbraidError, ValueError):
    """A file that is truncated, foreign, or written by a newer version."""


class OutputError(UnbraidError, OSError):
    """A place that cannot be written to."""


class MissingExtraError(UnbraidError, ImportError):
    """An optional dependency that is not installed."""


class DidNotConvergeError(UnbraidError, RuntimeError):
    """A numerical method that could not reach what was asked for."""


class ExecutionError(UnbraidError, RuntimeError):
    """A simulator or a device that failed, or returned something else than what was asked for."""


def require_finite(tensor: Tensor, name: str) -> None:
    """Refuse NaN and infinite entries.

    Args:
        tensor: any shape, any floating-point or complex dtype.
        name: how the message calls the tensor.

    Raises:
        InvalidInputError: if an entry is NaN or infinite; the message counts them and gives the first position. Also
            if the tensor is on the meta device, and has none.
    """
    if tensor.is_meta:
        raise InvalidInputError(f"{name} is on the meta device: it has a shape and no numbers. Load the weights first.")
    if tensor.is_floating_point() and tensor.element_size() < 2:  # of eight bits, for which torch has few functions
        tensor = tensor.float()
    finite = torch.isfinite(tensor)
    if bool(finite.all()):
        return
    position = tuple(int(i) for i in (~finite).nonzero()[0])
    kind = "NaN" if bool(torch.isnan(tensor).any()) else "infinite"
    count = int((~finite).sum())
    raise InvalidInputError(
        f"{name} must be finite; it has {count} {kind} or other non-finite entries out of {tensor.numel()}, the first "
        f"at index {position}. Look for a division by zero or an overflow in what made it."
    )


def require_choice(value: object, choices: tuple[str, ...], name: str) -> str:
    """Refuse a value that is not one of ``choices``; returns it otherwise.

    Raises:
        InvalidInputError: naming the choices.
    """
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise InvalidInputError(f"{name} must be one of {listed}; got {value!r}.")
    return str(value)


def require_extra(module: str, extra: str) -> ModuleType:
    """Import an optional dependency, or say which extra installs it.

    Args:
        module: dotted name, such as ``"qiskit_aer.primitives"``.
        extra: the extra of this package that brings it.

    Raises:
        MissingExtraError: with the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"This needs {module.split('.')[0]}, which cannot be imported ({error}). "
            f"Try: pip install 'unbraid[{extra}]'"
        ) from error
