"""Operators of one matrix at several bonds, for little more than the price of the largest."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from unbraid.tensors import chain
from unbraid.tensors.decompose import Limits, decompose, spread_scale
from unbraid.tensors.mpo import MPO
from unbraid.tensors.sites import align
from unbraid.tensors.weighted import OutputProblem, check_covariance


def powers_below(out_dims: Sequence[int], in_dims: Sequence[int], most: int) -> list[int]:
    """Caps 1, 2, 4, ... of bonds, as long as they bind and the operator has fewer than ``most`` entries; at least 1."""
    outs, ins = align(out_dims, in_dims)
    legs = [o * i for o, i in zip(outs, ins, strict=True)]
    full = [min(math.prod(legs[: k + 1]), math.prod(legs[k + 1 :])) for k in range(len(legs) - 1)]
    caps = [1]
    while caps[-1] < max(full, default=1):
        bonds = [1, *(min(2 * caps[-1], rank) for rank in full), 1]
        if sum(bonds[k] * leg * bonds[k + 1] for k, leg in enumerate(legs)) >= most:
            break
        caps.append(2 * caps[-1])
    return caps


def ladder(
    weight: Tensor,
    out_dims: Sequence[int],
    in_dims: Sequence[int],
    caps: Sequence[int],
    *,
    covariance: Tensor | None = None,
    slopes: Tensor | None = None,
) -> list[MPO]:
    """The matrix as an operator with each cap of the bonds.

    Args:
        weight: real, shape (out, in), finite, not zero.
        out_dims: output legs.
        in_dims: input legs.
        caps: largest bonds, ascending.
        covariance: second moment of the inputs, as of :meth:`unbraid.MPO.from_dense`.
        slopes: of the loss in the outputs, likewise.

    Returns:
        One a cap, of the dtype of ``weight``. The largest is decomposed, the others are truncated from it; with a
        covariance the cores of each are optimised in one sweep, where ``MPO.from_dense`` takes several.
    """
    if covariance is None:
        top = MPO.from_dense(weight, out_dims, in_dims, max_bond=caps[-1])
        return [*(top.compress(max_bond=cap) for cap in caps[:-1]), top]
    check_covariance(covariance, weight.shape[1])
    if slopes is not None:
        check_covariance(slopes, weight.shape[0], "slopes")
    outs, ins = align(out_dims, in_dims)
    rows, columns = weight.shape
    work = torch.float64 if weight.dtype == torch.float64 else torch.float32
    problem = OutputProblem(weight.detach(), covariance, outs, ins, work, slopes)
    top_cores = decompose(problem.target, outs, ins, Limits(caps[-1]), "auto", 0)
    centered, log_norm = chain.canonicalize(top_cores, 0)
    found = []
    for cap in caps:
        ranks = [min(cap, core.shape[2]) for core in top_cores[:-1]]
        cores = problem.improved(spread_scale(chain.cut(centered, ranks), log_norm), sweeps=1)
        legs = zip(problem.stored(cores), outs, ins, strict=True)
        whole = [core.reshape(core.shape[0], o, i, core.shape[-1]) for core, o, i in legs]
        found.append(MPO(whole, shape=(rows, columns)))
    return found
