"""Circuits: gates, geometry, and their application to vectors."""

from unbraid.circuits.ansatz import Ansatz, Gate, brickwall, parse_ansatz, scaffold
from unbraid.circuits.circuit import Circuit
from unbraid.circuits.geometry import Placed, search_geometry

__all__ = ["Ansatz", "Circuit", "Gate", "Placed", "brickwall", "parse_ansatz", "scaffold", "search_geometry"]
