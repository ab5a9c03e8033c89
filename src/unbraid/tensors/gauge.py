"""The gauge of a chain, fixed: cores with an identity among their rows, and what is left of them without it.

Legend: a core (left, legs, right) is looked at as a matrix of left * legs rows and right columns. Any invertible matrix
may be put on a bond, with its inverse behind it, so that ``right`` of the rows, the pivots, become those of an
identity. The other rows are free. The last core is free as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from scipy.linalg import qr
from torch import Tensor


@dataclass(frozen=True)
class FixedGauge:
    """A chain with identities left out.

    Attributes:
        shapes: of the whole cores.
        orders: one a core but the last, int32, shape (rows,): where each row is in (identity, free rows).
        free: free rows of each core but the last, shape (rows - right, right), and the last core.
    """

    shapes: tuple[torch.Size, ...]
    orders: tuple[Tensor, ...]
    free: tuple[Tensor, ...]


def fixed_gauge(cores: Sequence[Tensor]) -> FixedGauge:
    """The same operator with its gauge fixed; bonds that are larger than a core has rows become as small as those.

    Pivots are those of a QR with column pivoting, so free rows are combinations of them with coefficients that are not
    large; the norm goes into the last core.

    Args:
        cores: shapes (left, ..., right).

    Source:
        The interpolative decomposition of Cheng, Gimbutas, Martinsson, Rokhlin, SIAM J. Sci. Comput. 26, 1389 (2005),
        bond by bond. What remains counts the dimension of the manifold of such operators: Holtz, Rohwedder, Schneider,
        Numer. Math. 120, 701 (2012).
    """
    shapes, orders, free = [], [], []
    like = cores[0]
    wide = [core.detach().to("cpu", torch.promote_types(core.dtype, torch.float64)) for core in cores]
    carried = torch.eye(wide[0].shape[0], dtype=wide[0].dtype)
    for core in wide[:-1]:
        core = torch.tensordot(carried, core, 1)
        basis, carried = torch.linalg.qr(core.reshape(-1, core.shape[-1]))
        rows, rank = basis.shape
        pivoted = torch.from_numpy(qr(basis.mT.numpy(), mode="r", pivoting=True)[1]).long()
        pivots, others = pivoted[:rank], pivoted[rank:].sort().values
        top = basis[pivots]
        free.append(torch.linalg.solve(top, basis[others], left=False))
        carried = top @ carried
        order = torch.empty(rows, dtype=torch.int32)
        order[torch.cat((pivots, others))] = torch.arange(rows, dtype=torch.int32)
        orders.append(order)
        shapes.append(torch.Size((*core.shape[:-1], rank)))
    free.append(torch.tensordot(carried, wide[-1], 1))
    shapes.append(free[-1].shape)
    return FixedGauge(
        tuple(shapes),
        tuple(order.to(like.device) for order in orders),
        tuple(part.to(like.device, like.dtype).contiguous() for part in free),
    )


def whole_core(shape: Sequence[int], order: Tensor, free: Tensor) -> Tensor:
    """A core of its free rows, differentiable."""
    identity = torch.eye(shape[-1], dtype=free.dtype, device=free.device)
    return torch.cat((identity, free)).index_select(0, order).reshape(*shape)


def degrees_of_freedom(shapes: Sequence[Sequence[int]]) -> int:
    """Numbers that are left once the gauge of such cores is fixed: entries, without the square of each bond."""
    left, count = 1, 0
    for shape in shapes[:-1]:
        rows = left * prod(shape[1:-1])
        rank = min(shape[-1], rows)
        count += (rows - rank) * rank
        left = rank
    return count + left * prod(shapes[-1][1:])
