"""Explicit disentangling: circuits that take the entanglement out of an MPO."""

from unbraid.disentangle.objective import spectral_ceiling
from unbraid.disentangle.result import Disentangled
from unbraid.disentangle.search import disentangle

__all__ = ["Disentangled", "disentangle", "spectral_ceiling"]
