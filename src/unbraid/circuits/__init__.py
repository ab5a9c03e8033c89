"""Circuits: gates, geometry, and their application to vectors."""

from unbraid.circuits.ansatz import Ansatz, Gate, brickwall, parse_ansatz, scaffold
from unbraid.circuits.circuit import Circuit

__all__ = ["Ansatz", "Circuit", "Gate", "brickwall", "parse_ansatz", "scaffold"]
