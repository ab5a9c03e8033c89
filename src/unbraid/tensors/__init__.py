"""Tensor networks on a line: matrix product operators and states, over torch."""

from unbraid.tensors.mpo import MPO, inner, overlap
from unbraid.tensors.mps import MPS
from unbraid.tensors.profile import EntropyProfile, entropy_profile, low_rank_profile, page_entropy

__all__ = [
    "MPO",
    "MPS",
    "EntropyProfile",
    "entropy_profile",
    "inner",
    "low_rank_profile",
    "overlap",
    "page_entropy",
]
