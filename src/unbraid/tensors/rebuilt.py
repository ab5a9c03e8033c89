"""A linear map through the dense matrix of a chain of cores, at little more than the cost of the matrix.

The matrix is a product of two halves of the chain, ``M[o p, i j] = sum_c one[o, i, c] other[c, p, j]``: its rows and
columns, in the order of its legs, need a transposition of the product. Here product and transposition go by groups of
rows, through a tensor that stays in the cache. The matrix is never kept: it is made again on the way back, and its
gradient takes the same memory.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from unbraid.tensors.prices import CACHE

_LARGEST = 2**24  # entries of a tensor that is kept to be written again
_local = threading.local()


def linear(x: Tensor, one: Tensor, other: Tensor, bias: Tensor | None) -> Tensor:
    """Vectors (..., i j) through the matrix of two halves: (..., o p); differentiable, twice as well.

    Args:
        x: shape (..., i j), single or double precision on a CPU.
        one: shape (o, i, c).
        other: shape (c, p, j).
        bias: shape (o p,), or None.
    """
    y = _Rebuilt.apply(x.reshape(-1, x.shape[-1]), one, other, bias)
    return y.reshape(*x.shape[:-1], y.shape[-1])


class _Rebuilt(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, one: Tensor, other: Tensor, bias: Tensor | None) -> Tensor:
        dense = _matrix(one, other)
        return x @ dense.mT if bias is None else torch.addmm(bias, x, dense.mT)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, one, other, bias = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        if torch.is_grad_enabled():  # a derivative of this derivative is wanted
            inputs = [tensor for tensor, wants in zip((x, one, other, bias), wanted, strict=True) if wants]
            dense = torch.einsum("oic,cpj->opij", one, other).reshape(gradient.shape[1], x.shape[1])
            y = functional.linear(x, dense, bias)
            given = iter(torch.autograd.grad(y, inputs, gradient, create_graph=True))
            return tuple(next(given) if wants else None for wants in wanted)
        to_bias = gradient.sum(0) if wanted[3] else None
        dense = _matrix(one, other)
        to_x = gradient @ dense if wanted[0] else None
        if not (wanted[1] or wanted[2]):
            return to_x, None, None, to_bias
        torch.mm(gradient.mT, x, out=dense)  # the gradient of the matrix, in its memory
        _, leg, bond = one.shape
        _, next_out, next_leg = other.shape
        flat = other.reshape(bond, -1)
        to_one, to_other = one.new_empty(one.shape), flat.new_zeros(flat.shape)
        slope = dense.view(-1, next_out, leg, next_leg)
        for rows, first, found in _groups(slope, one, to_one):
            block = _again("block", x, len(first) * leg, next_out * next_leg)
            block.view(-1, leg, next_out, next_leg).copy_(rows.transpose(1, 2))
            torch.mm(block, flat.mT, out=found.view(-1, bond))
            to_other.addmm_(first.reshape(-1, bond).mT, block)
        return to_x, to_one, to_other.view_as(other), to_bias


def _matrix(one: Tensor, other: Tensor) -> Tensor:
    """Shape (o p, i j), in memory that the next call writes again."""
    out, leg, bond = one.shape
    _, next_out, next_leg = other.shape
    matrix = _again("matrix", one, out, next_out, leg, next_leg)
    flat = other.reshape(bond, -1)
    for rows, first in _groups(matrix, one):
        block = _again("block", one, len(first) * leg, next_out * next_leg)
        torch.mm(first.reshape(-1, bond), flat, out=block)
        rows.copy_(block.view(-1, leg, next_out, next_leg).transpose(1, 2))
    return matrix.view(out * next_out, leg * next_leg)


def _groups(matrix: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """A few rows at a time, so that a group of the matrix fills half of a core's cache."""
    size = max(1, CACHE // (2 * matrix[0].numel()))
    return zip(*(tensor.split(size) for tensor in (matrix, *others)), strict=True)


def _again(name: str, like: Tensor, *shape: int) -> Tensor:
    """A tensor whose memory is used again: to have it handed out anew costs more than what is done in it.

    One of each name and dtype a thread; whoever asks again overwrites it.
    """
    count = prod(shape)
    if count > _LARGEST:
        return like.new_empty(shape)
    held: dict[Any, Tensor] = _local.__dict__
    key = f"{name} {like.dtype}"
    if key not in held or held[key].numel() < count:
        held[key] = torch.empty(count, dtype=like.dtype)
    return held[key][:count].view(shape)
