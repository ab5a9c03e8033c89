"""What disentangling maximises, and how far it can get.

The objective is Eq. (2) of "Classical Neural Networks on Quantum Devices via Tensor Network Disentanglers": the overlap
Re <M, O C I> / (|M| |C|) over orthogonal circuits O, I (and the core C). Orthogonal factors cannot change singular
values, so von Neumann's trace inequality bounds it by sum_i s_i(M) s_i(C) / (|M| |C|), whatever the circuits.
"""

from __future__ import annotations

from itertools import accumulate
from math import prod

import numpy as np
import torch
from torch import Tensor

from unbraid.ground.errors import InvalidInputError
from unbraid.ground.random import stream
from unbraid.tensors import MPO

LARGEST_DENSE = 2**12  # rows or columns of a matrix whose singular values are computed


def singular_values(mpo: MPO) -> Tensor | None:
    """Singular values of the padded operator divided by its norm, descending, float64; None if it is too large.

    Raises:
        InvalidInputError: if the operator is zero.
    """
    if max(mpo.padded_shape) > LARGEST_DENSE:
        return None
    centered = mpo.detach().to(torch.complex128 if mpo.dtype.is_complex else torch.float64).canonicalize(0)
    if max(centered.bond_dims, default=1) == 1:  # a product has the products of its sites' values
        values = torch.ones(1, dtype=torch.float64, device=mpo.device)
        for core in centered.cores:
            values = torch.outer(values, torch.linalg.svdvals(core[0, :, :, 0])).reshape(-1)
        missing = min(mpo.padded_shape) - len(values)  # where legs are longer on one side here, on the other there
        values = torch.cat([values.sort(descending=True).values, values.new_zeros(missing)])
    else:
        values = torch.linalg.svdvals(MPO(centered.cores).to_padded_dense())
    size = torch.linalg.vector_norm(values)
    if size == 0:
        raise InvalidInputError("A zero MPO has no overlap with anything; check that the layer is not all zeros.")
    return values / size


def spectral_ceiling(a: MPO, b: MPO) -> float | None:
    """Largest overlap of ``a`` with ``O b I`` over all orthogonal (unitary) O and I.

    Args:
        a: an MPO.
        b: another of the same padded shape, whatever its legs.

    Returns:
        sum_i s_i(a) s_i(b) / (|a| |b|), or None where the matrices have more than 4096 rows or columns.

    Raises:
        InvalidInputError: if the shapes differ or one is zero.
    """
    if a.padded_shape != b.padded_shape:
        raise InvalidInputError(
            f"Both operators must have one padded shape; got {a.padded_shape} and {b.padded_shape}."
        )
    first, second = singular_values(a), singular_values(b)
    return None if first is None or second is None else min(1.0, float(first @ second))


def joint_ceiling(
    mpo: MPO, core_bond: int, *, values: Tensor | None = None, starts: int = 8, seed: int = 0
) -> float | None:
    """The best spectral ceiling found over all cores of a given bond.

    Only the singular values of a core matter. A core that is diagonal on each site has those of a vector on a chain of
    the same bond, so the search is over such vectors: the singular values of ``mpo`` are put in the order of the
    vector's entries, the vector is fitted to them (alternating least squares), and again until nothing changes; from
    several starts. Each value found is a true ceiling of some core; that none is higher is not proven.

    Args:
        mpo: the operator to disentangle.
        core_bond: bond dimension of the core.
        values: its :func:`singular_values`, if they are known already.
        starts: number of random starts.
        seed: of the starts.

    Returns:
        A number in 0..1, or None where ``mpo`` has more than 4096 rows or columns, or where output legs are longer than
        input legs on one site and shorter on another: cores can then have more singular values than diagonal ones.
    """
    values = singular_values(mpo) if values is None else values
    if values is None:
        return None
    legs = [min(o, i) for o, i in zip(mpo.out_dims, mpo.in_dims, strict=True)]
    if prod(legs) < len(values):
        return None
    values = values.cpu()
    bonds = [1, *(min(core_bond, prod(legs[: k + 1]), prod(legs[k + 1 :])) for k in range(len(legs) - 1)), 1]
    sizes = [left * leg * right for left, leg, right in zip(bonds, legs, bonds[1:], strict=False)]
    from unbraid.disentangling.environments import kernels

    offsets = np.array([0, *accumulate(sizes)])
    shape = kernels.Chain(np.array(legs), np.array(bonds), offsets, np.arange(len(values), dtype=np.int32))
    descending = values.numpy()
    best = 0.0
    for start in range(starts):
        core = torch.rand(int(offsets[-1]), dtype=torch.float64, generator=stream(seed, "joint_ceiling", start)).numpy()
        entries, arranged, found = np.empty_like(descending), np.empty_like(descending), 0.0
        for _ in range(200):
            kernels.contract(core, shape, entries)
            arranged[np.argsort(-np.abs(entries), kind="stable")] = descending
            size = kernels.fit(arranged, core, shape, 2)
            if size < found + 1e-12:
                break
            found = size
        best = max(best, found)
    return min(1.0, best)
