"""Explicit disentangling: circuits that take the entanglement out of an MPO."""

from unbraid.disentangling.objective import spectral_ceiling
from unbraid.disentangling.result import Disentangled
from unbraid.disentangling.search import disentangle

__all__ = ["Disentangled", "disentangle", "spectral_ceiling"]
