"""Engines: what computes the environments of gates."""

from unbraid.disentangling.environments.dense import DenseEngine, core_shapes, dense_engine
from unbraid.disentangling.environments.engine import Engine, Gates, State, stack
from unbraid.disentangling.environments.mpo_engine import MPOEngine
from unbraid.disentangling.environments.unbatched import Unbatched

__all__ = ["DenseEngine", "Engine", "Gates", "MPOEngine", "State", "Unbatched", "core_shapes", "dense_engine", "stack"]
