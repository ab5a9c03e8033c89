"""What disentangling maximises, and how far it can get.

The objective is Eq. (2) of "Classical Neural Networks on Quantum Devices via Tensor Network Disentanglers": the overlap
Re <M, O C I> / (|M| |C|) over orthogonal circuits O, I (and the core C). Orthogonal factors cannot change singular
values, so von Neumann's trace inequality bounds it by sum_i s_i(M) s_i(C) / (|M| |C|), whatever the circuits.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from unbraid.disentangling.fit import fit_chain
from unbraid.ground.errors import InvalidInputError
from unbraid.ground.random import stream
from unbraid.tensors import MPO, chain

LARGEST_DENSE = 2**12  # rows or columns of a matrix whose singular values are computed


def singular_values(mpo: MPO) -> Tensor | None:
    """Singular values of the padded operator divided by its norm, descending, float64; None if it is too large.

    Raises:
        InvalidInputError: if the operator is zero.
    """
    if max(mpo.padded_shape) > LARGEST_DENSE:
        return None
    centered = mpo.detach().to(torch.complex128 if mpo.dtype.is_complex else torch.float64).canonicalize(0)
    dense = (centered * torch.exp(-centered.log_scale)).to_padded_dense()
    values = torch.linalg.svdvals(dense)
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


def joint_ceiling(mpo: MPO, core_bond: int, *, starts: int = 8, seed: int = 0) -> float | None:
    """The best spectral ceiling found over all cores of a given bond.

    Only the singular values of a core matter. A core that is diagonal on each site has those of a vector on a chain of
    the same bond, so the search is over such vectors: the singular values of ``mpo`` are put in the order of the
    vector's entries, the vector is fitted to them (alternating least squares), and again until nothing changes; from
    several starts. Each value found is a true ceiling of some core; that none is higher is not proven.

    Args:
        mpo: the operator to disentangle.
        core_bond: bond dimension of the core.
        starts: number of random starts.
        seed: of the starts.

    Returns:
        A number in 0..1, or None where ``mpo`` has more than 4096 rows or columns.
    """
    values = singular_values(mpo)
    if values is None:
        return None
    legs = [min(o, i) for o, i in zip(mpo.out_dims, mpo.in_dims, strict=True)]
    values = values[: prod(legs)]
    bonds = [min(core_bond, prod(legs[: k + 1]), prod(legs[k + 1 :])) for k in range(len(legs) - 1)]
    best = 0.0
    for start in range(starts):
        generator = stream(seed, "joint_ceiling", start)
        cores = [
            torch.rand(left, leg, right, dtype=torch.float64, generator=generator).to(values.device)
            for left, leg, right in zip([1, *bonds], legs, [*bonds, 1], strict=True)
        ]
        found = 0.0
        for _ in range(200):
            order = chain.contract(cores).abs().argsort(descending=True)
            arranged = torch.empty_like(values)
            arranged[order] = values
            cores, size = fit_chain(arranged, cores, passes=2)
            if float(size) < found + 1e-12:
                break
            found = float(size)
        best = max(best, found)
    return min(1.0, best)
