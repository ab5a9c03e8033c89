"""Vectors through the cores of an operator, in whatever grouping of the cores is quickest.

Cores are joined into blocks of neighbours, and vectors pass one block after the other, from the first or from the last
site. One block of all cores is the dense matrix; blocks of one core each never form anything large. Which blocks are
joined is a shortest path over the bonds: the price of a block depends on its two ends alone. Large batches pass in
chunks of rows whose vectors between two blocks stay in a core's cache, where that is worth it.

Legend: a core is (left, out, in, right); "done" counts outputs, "rest" inputs that have not passed yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from unbraid.tensors.prices import CACHE, ONCE, TRAINING, Tariff

Shape = tuple[int, int, int, int]

_LARGEST_BATCH = 2**20  # larger ones share its plan
_CHUNKS = (16, 32, 64, 128)  # rows


@dataclass(frozen=True)
class Plan:
    """How a batch passes the cores.

    Attributes:
        blocks: (start, stop) of the sites of each block, in the order of sites.
        from_left: whether the first site's block comes first.
        rows: vectors in a chunk; 0 for the whole batch at once.
        price: rough nanoseconds.
    """

    blocks: tuple[tuple[int, int], ...]
    from_left: bool
    rows: int
    price: float

    @property
    def is_dense(self) -> bool:
        """Whether the whole matrix is formed."""
        return len(self.blocks) == 1

    def describe(self) -> str:
        """In words."""
        if self.is_dense:
            return "the dense weight is formed"
        sites = ", ".join(str(start) if stop == start + 1 else f"{start} to {stop - 1}" for start, stop in self.blocks)
        sweep = all(stop == start + 1 for start, stop in self.blocks)
        what = "a sweep over single sites" if sweep else f"blocks of sites {sites}"
        end = "first" if self.from_left else "last"
        chunks = f", {self.rows} rows at a time" if self.rows else ""
        return f"{what}, the {end} one first{chunks}"


@lru_cache(maxsize=4096)
def plan(
    shapes: tuple[Shape, ...], batch: int, tariff: Tariff = TRAINING, joined: bool = False, chunked: bool = True
) -> Plan:
    """The cheapest way for a batch.

    Args:
        shapes: (left, out, in, right) of each core.
        batch: number of vectors.
        tariff: what operations cost.
        joined: whether blocks lie ready, so that joining them costs nothing.
        chunked: whether the batch may be cut.
    """
    chunks = [0, *(rows for rows in _CHUNKS if 2 * rows <= batch and chunked)]
    found = [
        _shortest(shapes, batch, from_left, tariff, joined, rows) for from_left in (True, False) for rows in chunks
    ]
    return min(found, key=lambda way: way.price)


def apply_cores(x: Tensor, cores: Sequence[Tensor]) -> Tensor:
    """Contract vectors (..., prod(in)) with cores: (..., prod(out)); differentiable.

    Args:
        x: vectors on the last axis.
        cores: a chain of tensors (left, out, in, right).
    """
    shapes = shapes_of(cores)
    tariff = TRAINING if torch.is_grad_enabled() else ONCE
    way = plan(shapes, rounded(x.shape[:-1].numel()), tariff, chunked=may_be_cut(x))
    return passed(x, matrices(cores, way), way, shapes)


def matrices(cores: Sequence[Tensor], way: Plan) -> list[Tensor]:
    """Blocks as matrices that vectors are multiplied with, in the order in which they pass."""
    found = []
    for start, stop in way.blocks:
        block = join(cores[start:stop])
        left, out, leg, right = block.shape
        if way.from_left:
            found.append(block.permute(1, 3, 0, 2).reshape(out * right, left * leg))
        else:
            found.append(block.reshape(left * out, leg * right))
    return found if way.from_left else found[::-1]


def passed(x: Tensor, blocks: Sequence[Tensor], way: Plan, shapes: tuple[Shape, ...]) -> Tensor:
    """Vectors (..., prod(in)) through the blocks that :func:`matrices` made: (..., prod(out))."""
    afters = _afters(shapes, way)
    outs = prod(shape[1] for shape in shapes)
    rows = x.reshape(-1, x.shape[-1])
    if way.rows and 2 * way.rows <= len(rows):
        y = _InChunks.apply(rows, way.rows, afters, *blocks)
    else:
        y = _through(rows, blocks, afters)[-1]
    return y.reshape(*x.shape[:-1], outs)


def join(cores: Sequence[Tensor]) -> Tensor:
    """One core (left, outs, ins, right) of neighbouring ones, halves first: large copies then move long runs."""
    if len(cores) == 1:
        return cores[0]
    middle = len(cores) // 2
    one, other = join(cores[:middle]), join(cores[middle:])
    left, out, leg, bond = one.shape
    _, next_out, next_leg, right = other.shape
    product = one.reshape(-1, bond) @ other.reshape(bond, -1)
    product = product.reshape(left, out, leg, next_out, next_leg, right).transpose(2, 3)
    return product.reshape(left, out * next_out, leg * next_leg, right)


def resized(x: Tensor, size: int) -> Tensor:
    """Vectors (..., n) with zeros behind or cut, (..., size); of the right size they are not copied, as torch would."""
    if x.shape[-1] == size:
        return x
    return pad(x, (0, size - x.shape[-1])) if x.shape[-1] < size else x[..., :size]


def may_be_cut(x: Tensor) -> bool:
    """Whether rows may pass in chunks: not in half precision, where each sum of gradients would round, nor traced."""
    half = x.element_size() <= 2 or torch.is_autocast_enabled(x.device.type)
    return not half and not torch._C._are_functorch_transforms_active()


def price(cores: Sequence[Tensor], batch: int) -> float:
    """Of :func:`apply_cores` in training, as in :mod:`unbraid.tensors.prices`."""
    return plan(shapes_of(cores), rounded(batch)).price


def price_dense(cores: Sequence[Tensor]) -> float:
    """Of making the dense matrix in training."""
    return _price_join(shapes_of(cores), TRAINING)


def shapes_of(cores: Sequence[Tensor]) -> tuple[Shape, ...]:
    """(left, out, in, right) of each core."""
    return tuple((core.shape[0], core.shape[1], core.shape[2], core.shape[3]) for core in cores)


def rounded(batch: int) -> int:
    """Batches of similar size share a plan: powers of two."""
    return 1 << (min(max(batch, 1), _LARGEST_BATCH) - 1).bit_length()


class _InChunks(torch.autograd.Function):
    """A few rows at a time through all blocks, keeping nothing for the way back: chunks pass anew there.

    Everything between input and output lies in a few tensors that each chunk overwrites: memory that the system hands
    out anew costs more than what is done in it.
    """

    @staticmethod
    def forward(x: Tensor, rows: int, afters: tuple[int, ...], *blocks: Tensor) -> Tensor:
        widths = _widths(x.shape[1], blocks, afters)
        between = [x.new_empty(rows, width) for width in widths[1:-1]]
        y = x.new_empty(len(x), widths[-1])
        for chunk, result in zip(x.split(rows), y.split(rows), strict=True):
            _through(chunk, blocks, afters, [*(space[: len(chunk)] for space in between), result])
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, ctx.rows, ctx.afters, *blocks = inputs
        ctx.save_for_backward(x, *blocks)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        (gradient,) = gradients
        x, *blocks = ctx.saved_tensors
        wanted = (ctx.needs_input_grad[0], *ctx.needs_input_grad[3:])
        if torch.is_grad_enabled():  # a derivative of this derivative is wanted
            inputs = [tensor for tensor, wants in zip((x, *blocks), wanted, strict=True) if wants]
            y = _through(x, blocks, ctx.afters)[-1].reshape(gradient.shape)
            given = iter(torch.autograd.grad(y, inputs, gradient, create_graph=True))
            found = [next(given) if wants else None for wants in wanted]
            return (found[0], None, None, *found[1:])
        widths = _widths(x.shape[1], blocks, ctx.afters)
        between = [x.new_empty(ctx.rows, width) for width in widths[1:-1]]
        back = [x.new_empty(ctx.rows, width) for width in widths[:-1]]
        sums = [torch.zeros_like(block) if wants else None for block, wants in zip(blocks, wanted[1:], strict=True)]
        to_x = x.new_empty(x.shape) if wanted[0] else None
        for start in range(0, len(x), ctx.rows):
            chunk = slice(start, min(start + ctx.rows, len(x)))
            count = chunk.stop - start
            inputs = [x[chunk], *_through(x[chunk], blocks[:-1], ctx.afters[:-1], [s[:count] for s in between])]
            spaces = [to_x[chunk] if to_x is not None else back[0][:count], *(space[:count] for space in back[1:])]
            _back(inputs, gradient[chunk], blocks, ctx.afters, sums, spaces, first=0 if wanted[0] else 1)
        return (to_x, None, None, *sums)


def _back(
    inputs: Sequence[Tensor],
    gradient: Tensor,
    blocks: Sequence[Tensor],
    afters: Sequence[int],
    sums: Sequence[Tensor | None],
    spaces: Sequence[Tensor],
    first: int,
) -> None:
    """Add the gradients of blocks to ``sums`` and write those of the ``inputs`` of each, from ``first`` on."""
    for k in reversed(range(len(blocks))):
        block, after, total, space = blocks[k], afters[k], sums[k], spaces[k]
        out, columns = block.shape
        if after == 1:
            gradient = gradient.reshape(-1, out)
            if total is not None:
                total.addmm_(gradient.mT, inputs[k].reshape(-1, columns))
            if k >= first:
                torch.mm(gradient, block, out=space.view(-1, columns))
        else:
            gradient = gradient.reshape(-1, out, after)
            if total is not None:
                total += torch.bmm(gradient, inputs[k].reshape(-1, columns, after).mT).sum(0)
            if k >= first:
                torch.bmm(block.mT.expand(len(gradient), -1, -1), gradient, out=space.view(-1, columns, after))
        gradient = space


def _through(
    x: Tensor, blocks: Sequence[Tensor], afters: Sequence[int], spaces: Sequence[Tensor | None] = ()
) -> list[Tensor]:
    """What comes out of each block, the entries of a row in order but in whatever shape; in ``spaces``, if given."""
    found = []
    for block, after, space in zip(blocks, afters, spaces or [None] * len(blocks), strict=True):
        x = _pass(x, block, after, space)
        found.append(x if space is None else space)
    return found


def _pass(x: Tensor, matrix: Tensor, after: int, space: Tensor | None = None) -> Tensor:
    """Entries ordered (before, columns of the matrix, after) to (before, rows, after)."""
    rows, columns = matrix.shape
    if after == 1:
        x = x.reshape(-1, columns)
        return torch.mm(x, matrix.mT) if space is None else torch.mm(x, matrix.mT, out=space.view(-1, rows))
    x = x.reshape(-1, columns, after)
    matrix = matrix.expand(len(x), -1, -1)
    return torch.bmm(matrix, x) if space is None else torch.bmm(matrix, x, out=space.view(-1, rows, after))


def _widths(width: int, blocks: Sequence[Tensor], afters: Sequence[int]) -> list[int]:
    """Entries of a row before, between and behind the blocks."""
    found = [width]
    for block, after in zip(blocks, afters, strict=True):
        rows, columns = block.shape
        found.append(found[-1] // (columns * after) * rows * after)
    return found


def _afters(shapes: tuple[Shape, ...], way: Plan) -> tuple[int, ...]:
    """Entries behind those that a block takes, in the order of passing: inputs to come, or outputs that are done."""
    if way.from_left:
        return tuple(prod(shape[2] for shape in shapes[stop:]) for _, stop in way.blocks)
    return tuple(prod(shape[1] for shape in shapes[stop:]) for _, stop in reversed(way.blocks))


def _shortest(shapes: tuple[Shape, ...], batch: int, from_left: bool, tariff: Tariff, joined: bool, rows: int) -> Plan:
    sites = len(shapes)
    best: list[tuple[float, tuple[tuple[int, int], ...]]] = [(0.0, ())]
    for stop in range(1, sites + 1):
        best.append(
            min(
                (
                    best[start][0] + _price(shapes, start, stop, batch, from_left, tariff, joined, rows),
                    (*best[start][1], (start, stop)),
                )
                for start in range(stop)
            )
        )
    price, blocks = best[sites]
    return Plan(blocks, from_left, 0 if len(blocks) == 1 else rows, price)


def _price(
    shapes: tuple[Shape, ...],
    start: int,
    stop: int,
    batch: int,
    from_left: bool,
    tariff: Tariff,
    joined: bool,
    rows: int,
) -> float:
    """Of making a block and taking a batch through it."""
    left, right = shapes[start][0], shapes[stop - 1][3]
    out, legs = (prod(shape[k] for shape in shapes[start:stop]) for k in (1, 2))
    if from_left:
        before, after = prod(shape[1] for shape in shapes[:start]), prod(shape[2] for shape in shapes[stop:])
        bond_in, bond_out = left, right
    else:
        before, after = prod(shape[2] for shape in shapes[:start]), prod(shape[1] for shape in shapes[stop:])
        bond_in, bond_out = right, left
    chunks = -(-batch // rows) if rows else 1
    taken, given = (before * after * side for side in (legs * bond_in, out * bond_out))
    each = (
        tariff.operation
        + tariff.near * taken * batch / chunks
        + tariff.entries(given * batch / chunks, again=bool(rows))
        + tariff.product(before * after * batch / chunks, legs * bond_in, out * bond_out)
        + tariff.read * legs * bond_in * out * bond_out
    )
    making = 0.0 if joined else _price_join(shapes[start:stop], tariff)
    if not joined and from_left and left * right > 1:
        making += tariff.operation  # laid out as a matrix
    again = 1 + tariff.again if rows else 1  # chunks pass anew on the way back
    return making + again * chunks * each * (1 if from_left else tariff.last_first)


def _price_join(shapes: Sequence[Shape], tariff: Tariff) -> float:
    """Of joining cores, halves first."""
    if len(shapes) == 1:
        return 0.0
    middle = len(shapes) // 2
    parts = (shapes[:middle], shapes[middle:])
    sizes = [prod(prod(shape[1:3]) for shape in part) for part in parts]
    bond, left, right = shapes[middle][0], shapes[0][0], shapes[-1][3]
    entries = left * sizes[0] * sizes[1] * right
    each = tariff.far if entries > CACHE // 4 else tariff.near  # the product, and its transposition
    made = tariff.operation + tariff.multiplication * entries * bond + 2 * each * entries
    return made + sum(_price_join(part, tariff) for part in parts)
