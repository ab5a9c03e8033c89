"""Entanglement of MPOs and MPSs read as pure states: Schmidt values to bond entropies and profiles.

Entropies use the natural logarithm. Source: Eqs. (5) and (6) of "Classical Neural Networks on Quantum Devices via
Tensor Network Disentanglers".
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from unbraid.ground.errors import InvalidInputError


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


def maximum_entropies(bond_dims: Sequence[int]) -> list[float]:
    """log(bond dimension) a bond: the terms of Eq. (6)."""
    return [math.log(bond) for bond in bond_dims]
