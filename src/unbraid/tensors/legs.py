"""The order of legs: a matrix (out, in) against the flat order out_0, in_0, out_1, in_1, ... of a chain of sites."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor


def interleave(matrix: Tensor, out_dims: Sequence[int], in_dims: Sequence[int]) -> Tensor:
    """Shape (prod(out_dims), prod(in_dims)) to (prod of all,), legs of one site side by side."""
    n = len(out_dims)
    order = [axis for k in range(n) for axis in (k, n + k)]
    return matrix.reshape(*out_dims, *in_dims).permute(order).reshape(-1)


def deinterleave(tensor: Tensor, out_dims: Sequence[int], in_dims: Sequence[int]) -> Tensor:
    """The inverse of :func:`interleave`."""
    n = len(out_dims)
    legs = [dim for pair in zip(out_dims, in_dims, strict=True) for dim in pair]
    return tensor.reshape(legs).permute(*range(0, 2 * n, 2), *range(1, 2 * n, 2)).reshape(prod(out_dims), -1)
