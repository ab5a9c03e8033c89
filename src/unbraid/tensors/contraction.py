"""Vectors through the cores of an operator, in whatever grouping of the cores is quickest.

Cores are joined into blocks of neighbours, and vectors pass one block after the other, from the first or from the last
site. One block of all cores is the dense matrix; blocks of one core each never form anything large. Which blocks are
joined is a shortest path over the bonds: the price of a block depends on its two ends alone.

Legend: a core is (left, out, in, right); "done" counts outputs, "rest" inputs that have not passed yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod

from torch import Tensor
from torch.nn.functional import linear, pad

from unbraid.tensors import prices

Shape = tuple[int, int, int, int]

_LARGEST_BATCH = 2**20  # larger ones share its plan


def apply_cores(x: Tensor, cores: Sequence[Tensor]) -> Tensor:
    """Contract vectors (..., prod(in)) with cores: (..., prod(out)); differentiable.

    Args:
        x: vectors on the last axis.
        cores: a chain of tensors (left, out, in, right).
    """
    batch = x.shape[:-1]
    shapes = shapes_of(cores)
    blocks, from_left, _ = plan(shapes, _rounded(batch.numel()))
    outs, ins = (prod(shape[k] for shape in shapes) for k in (1, 2))
    after = ins if from_left else 1
    for start, stop in blocks if from_left else reversed(blocks):
        block = _join(cores[start:stop])
        left, out, leg, right = block.shape
        if from_left:  # entries: batch, done, (left, leg), rest
            after //= leg
            x = _pass(x, block.permute(1, 3, 0, 2).reshape(out * right, left * leg), after)
        else:  # entries: batch, rest, (leg, right), done
            x = _pass(x, block.reshape(left * out, leg * right), after)
            after *= out
    return x.reshape(*batch, outs)


def resized(x: Tensor, size: int) -> Tensor:
    """Vectors (..., n) with zeros behind or cut, (..., size); of the right size they are not copied, as torch would."""
    if x.shape[-1] == size:
        return x
    return pad(x, (0, size - x.shape[-1])) if x.shape[-1] < size else x[..., :size]


def price(cores: Sequence[Tensor], batch: int) -> float:
    """Of :func:`apply_cores`, as in :mod:`unbraid.tensors.prices`."""
    return plan(shapes_of(cores), _rounded(batch))[2]


def price_dense(cores: Sequence[Tensor]) -> float:
    """Of making the dense matrix."""
    return _price_block(shapes_of(cores), 0, len(cores))


def shapes_of(cores: Sequence[Tensor]) -> tuple[Shape, ...]:
    """(left, out, in, right) of each core."""
    return tuple((core.shape[0], core.shape[1], core.shape[2], core.shape[3]) for core in cores)


def _rounded(batch: int) -> int:
    """Batches of similar size share a plan."""
    return 1 << min(batch, _LARGEST_BATCH).bit_length()


@lru_cache(maxsize=4096)
def plan(shapes: tuple[Shape, ...], batch: int) -> tuple[tuple[tuple[int, int], ...], bool, float]:
    """The quickest grouping: (start, stop) of each block, whether the first site comes first, and the price."""
    ways = [(*_shortest(shapes, batch, from_left), from_left) for from_left in (True, False)]
    price, blocks, from_left = min(ways, key=lambda way: way[0])
    return blocks, from_left, price


def _shortest(shapes: tuple[Shape, ...], batch: int, from_left: bool) -> tuple[float, tuple[tuple[int, int], ...]]:
    sites = len(shapes)
    best: list[tuple[float, tuple[tuple[int, int], ...]]] = [(0.0, ())]
    for stop in range(1, sites + 1):
        best.append(
            min(
                (best[start][0] + _price(shapes, start, stop, batch, from_left), (*best[start][1], (start, stop)))
                for start in range(stop)
            )
        )
    return best[sites]


def _price(shapes: tuple[Shape, ...], start: int, stop: int, batch: int, from_left: bool) -> float:
    """Of making a block and taking a batch through it."""
    left, right = shapes[start][0], shapes[stop - 1][3]
    out, legs = (prod(shape[k] for shape in shapes[start:stop]) for k in (1, 2))
    if from_left:
        before, after = prod(shape[1] for shape in shapes[:start]), prod(shape[2] for shape in shapes[stop:])
        bond_in, bond_out = left, right
    else:
        before, after = prod(shape[2] for shape in shapes[:start]), prod(shape[1] for shape in shapes[stop:])
        bond_in, bond_out = right, left
    taken, given = batch * before * after * legs * bond_in, batch * before * after * out * bond_out
    copies = 2 if after > 1 else 1  # torch folds the batch into the rows, and back
    passing = (
        prices.OPERATION + copies * prices.ENTRY * (taken + given) + prices.MULTIPLICATION * taken * out * bond_out
    )
    return passing + _price_block(shapes, start, stop)


def _price_block(shapes: tuple[Shape, ...], start: int, stop: int) -> float:
    """Of joining cores, one by one."""
    total, left = 0.0, shapes[start][0]
    size = left * shapes[start][1] * shapes[start][2]
    for bond, out, leg, right in shapes[start + 1 : stop]:
        total += prices.OPERATION + prices.MULTIPLICATION * size * bond * out * leg * right
        size *= out * leg
        total += 2 * prices.ENTRY * size * right
    return total


def _join(cores: Sequence[Tensor]) -> Tensor:
    """One core (left, outs, ins, right) of neighbouring ones."""
    joined = cores[0]
    for core in cores[1:]:
        left, out, leg, bond = joined.shape
        _, next_out, next_leg, right = core.shape
        product = joined.reshape(-1, bond) @ core.reshape(bond, -1)
        product = product.reshape(left, out, leg, next_out, next_leg, right).transpose(2, 3)
        joined = product.reshape(left, out * next_out, leg * next_leg, right)
    return joined


def _pass(x: Tensor, matrix: Tensor, after: int) -> Tensor:
    """Entries ordered (before, columns of the matrix, after) to (before, rows, after)."""
    columns = matrix.shape[1]
    if after == 1:
        return linear(x.reshape(-1, columns), matrix)
    return matrix @ x.reshape(-1, columns, after)
