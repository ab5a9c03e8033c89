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
from torch.nn.functional import linear

Shape = tuple[int, int, int, int]

# Nanoseconds of one core of a CPU, forward and backward: a multiplication within a product of large matrices, an entry
# that is moved, one product's overhead. Only ratios matter.
_MULTIPLICATION, _ENTRY, _PRODUCT = 0.03, 0.6, 40_000
_LARGEST_BATCH_KEY = 2**20


def apply_cores(x: Tensor, cores: Sequence[Tensor]) -> Tensor:
    """Contract vectors (..., prod(in)) with cores: (..., prod(out)); differentiable.

    Args:
        x: vectors on the last axis.
        cores: a chain of tensors (left, out, in, right).
    """
    batch = x.shape[:-1]
    shapes = tuple(tuple(core.shape) for core in cores)
    # batches of similar size share a plan
    blocks, from_left = plan(shapes, 1 << min(batch.numel(), _LARGEST_BATCH_KEY).bit_length())  # type: ignore[arg-type]
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


@lru_cache(maxsize=4096)
def plan(shapes: tuple[Shape, ...], batch: int) -> tuple[tuple[tuple[int, int], ...], bool]:
    """The quickest grouping for a batch: (start, stop) of each block, and whether the first site comes first."""
    ways = [(*_shortest(shapes, batch, from_left), from_left) for from_left in (True, False)]
    _, blocks, from_left = min(ways, key=lambda way: way[0])
    return blocks, from_left


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
    total = _PRODUCT + copies * _ENTRY * (taken + given) + _MULTIPLICATION * taken * out * bond_out
    size = shapes[start][1] * shapes[start][2]
    for shape in shapes[start + 1 : stop]:  # making it, core by core
        total += _PRODUCT + left * size * shape[0] * shape[1] * shape[2] * shape[3] * _MULTIPLICATION
        size *= shape[1] * shape[2]
        total += _ENTRY * 2 * left * size * shape[3]
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
