"""Seeded splits that keep the shares of the classes."""

from __future__ import annotations

import torch
from torch import Tensor

from unbraid.ground.errors import InvalidInputError


def stratified_split(labels: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Choose ``count`` rows so that every class has its share.

    Each class gives its share rounded down; the largest remainders give one more, the lower class first where they are
    equal.

    Args:
        labels: int64, shape (n,).
        count: how many rows to choose.
        generator: says which ones.

    Returns:
        Indices of the rows left and of the rows chosen, each ascending; together they are all rows, once.

    Raises:
        InvalidInputError: if ``count`` is negative or larger than the number of rows.
    """
    total = len(labels)
    if not 0 <= count <= total:
        raise InvalidInputError(f"A split must choose between 0 and {total} rows; got {count}.")
    classes, sizes = torch.unique(labels, return_counts=True)
    quota = sizes * count  # in units of 1 / total
    taken = quota // max(total, 1)
    remainders = quota - taken * total
    order = torch.argsort(remainders, descending=True, stable=True)
    taken[order[: count - int(taken.sum())]] += 1

    chosen = torch.zeros(total, dtype=torch.bool)
    for label, share in zip(classes, taken, strict=True):
        rows = (labels == label).nonzero().squeeze(1)
        chosen[rows[torch.randperm(len(rows), generator=generator)[: int(share)]]] = True
    return (~chosen).nonzero().squeeze(1), chosen.nonzero().squeeze(1)
