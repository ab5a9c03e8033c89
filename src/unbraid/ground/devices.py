"""Where torch computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from unbraid.ground.errors import InvalidInputError


def find_device(name: str) -> torch.device:
    """The device of a name, tried out.

    Args:
        name: "cpu", "cuda", "cuda:1", ...

    Raises:
        InvalidInputError: if torch knows no such device, has none here, or it lacks double precision.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, dtype=torch.float64, device=device).item()
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        here = ["cpu", *(f"cuda:{k}" for k in range(torch.cuda.device_count()))]
        said = str(error).strip().partition("\n")[0]
        raise InvalidInputError(
            f"torch cannot compute in double precision on the device {name!r} ({said}). Here are {', '.join(here)}."
        ) from error
    return device


def moved(content: Any, device: str | torch.device) -> Any:
    """Tensors on a device, within lists, tuples and mappings; anything else as it is."""
    if isinstance(content, Tensor):
        return content.to(device)
    if isinstance(content, Mapping):
        return {key: moved(value, device) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return type(content)(moved(value, device) for value in content)
    return content
