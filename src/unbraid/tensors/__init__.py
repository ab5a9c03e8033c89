"""Tensor networks on a line: matrix product operators and states, over torch."""

from unbraid.tensors.mpo import MPO, inner, overlap
from unbraid.tensors.mps import MPS

__all__ = ["MPO", "MPS", "inner", "overlap"]
