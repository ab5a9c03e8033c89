"""How the loops are compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba

FASTMATH = {"reassoc", "contract", "nsz"}
OPTIONS: dict[str, Any] = {"fastmath": FASTMATH, "forceinline": True}


def compiled(function: Callable[..., Any]) -> Any:
    """A function compiled at its first call for the types that it gets, and kept on disk where there is a place for it.

    Sums may be reordered and products fused; NaN and infinity keep their meaning. Calls between such functions are
    always inlined: a process that compiles holds several copies of a function that is not, another one that loads the
    result from disk holds one, and they round differently.
    """
    try:
        return numba.njit(cache=True, **OPTIONS)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache folder can be written to
        return numba.njit(**OPTIONS)(function)
