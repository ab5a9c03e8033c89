"""Explicit disentangling: circuits that take the entanglement out of an MPO."""

from unbraid.disentangling.direct import DirectCircuits, direct_circuits
from unbraid.disentangling.kraus import DisentangledSum, SumTerm, disentangle_sum
from unbraid.disentangling.objective import spectral_ceiling
from unbraid.disentangling.placement import PlacementFront, PlacementPoint, search_placement
from unbraid.disentangling.result import Disentangled
from unbraid.disentangling.search import disentangle
from unbraid.disentangling.verdict import Candidate, Verdict, weight_verdict

__all__ = [
    "Candidate",
    "DirectCircuits",
    "Disentangled",
    "DisentangledSum",
    "PlacementFront",
    "PlacementPoint",
    "SumTerm",
    "Verdict",
    "direct_circuits",
    "disentangle",
    "disentangle_sum",
    "search_placement",
    "spectral_ceiling",
    "weight_verdict",
]
