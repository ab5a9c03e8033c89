"""Entanglement of MPOs and MPSs read as pure states: Schmidt values to bond entropies and profiles.

Entropies use the natural logarithm. Source: Eqs. (5) and (6) of "Classical Neural Networks on Quantum Devices via
Tensor Network Disentanglers".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from unbraid.ground.errors import InvalidInputError
from unbraid.tensors.legs import interleave


def bond_entropy(schmidt_values: Tensor) -> Tensor:
    """S = -sum p log p with p the squared, normalised Schmidt values (Eq. 5).

    Args:
        schmidt_values: shape (rank,), any scale.

    Returns:
        A scalar, in nats.

    Raises:
        InvalidInputError: if all values are zero: a zero operator has no entropy.
    """
    weights = schmidt_values.abs() ** 2
    total = weights.sum()
    if total == 0:
        raise InvalidInputError(
            "The bond entropy of a zero tensor is undefined; check that the layer is not all zeros."
        )
    return torch.special.entr(weights / total).sum()


def dense_entropies(matrix: Tensor, out_dims: Sequence[int], in_dims: Sequence[int]) -> Tensor:
    """Bond entropies of a matrix read as an MPO on given legs, without making one.

    The weights at a bond are the eigenvalues of the Gram matrix of its smaller side, so their absolute error is of
    rounding and the square roots below 1e-8 of the largest are lost: nothing to an entropy, but not Schmidt values.

    Args:
        matrix: shape (prod(out_dims), prod(in_dims)).
        out_dims: output legs.
        in_dims: input legs.

    Returns:
        In nats, float64, shape (sites - 1,).
    """
    legs = [o * i for o, i in zip(out_dims, in_dims, strict=True)]
    flat = interleave(matrix, out_dims, in_dims)
    entropies = []
    for bond in range(1, len(legs)):
        split = flat.reshape(prod(legs[:bond]), -1)
        gram = split @ split.mH if split.shape[0] <= split.shape[1] else split.mH @ split
        entropies.append(bond_entropy(torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()))
    return torch.stack(entropies).double() if entropies else torch.zeros(0, dtype=torch.float64, device=matrix.device)


def maximum_entropies(bond_dims: Sequence[int]) -> list[float]:
    """log(bond dimension) a bond: the terms of Eq. (6)."""
    return [math.log(bond) for bond in bond_dims]
