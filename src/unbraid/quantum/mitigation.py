"""Zero-noise extrapolation: each circuit also runs with more gate noise, and the result without any is extrapolated.

Noise is raised by repeating every two-qubit gate of the transpiled circuit an odd number of times (it is its own
inverse). Probabilities are extrapolated outcome by outcome: by the polynomial through all noise factors, or by a
small regression that has learnt from circuits whose exact result the host knows, as networks do for expectation values
in the related work on neural zero-noise extrapolation.

Legend: F noise factors, P circuits with their vectors, N outcomes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from qiskit import QuantumCircuit

from unbraid.ground.errors import InvalidInputError

Array = NDArray[np.float64]

_SELF_INVERSE = frozenset({"cx", "cz", "ecr", "swap", "cy", "ch"})


class Extrapolator(Protocol):
    """Probabilities at several noise factors to probabilities without noise."""

    def __call__(self, probabilities: Array, factors: Sequence[int]) -> Array:
        """Shape (F, P, N) to (P, N); the result need not be positive or sum to one."""
        ...


@dataclass(frozen=True)
class Polynomial:
    """The polynomial of degree F - 1 through all noise factors, at zero."""

    def __call__(self, probabilities: Array, factors: Sequence[int]) -> Array:
        """See :class:`Extrapolator`."""
        scale = np.array(factors, dtype=np.float64)
        weights = [np.prod([other / (other - own) for other in scale if other != own]) for own in scale]
        return np.tensordot(weights, probabilities, axes=1)


@dataclass
class Learned:
    """A regression of exact probabilities on those at all noise factors, the same for every outcome.

    It is learnt from circuits of the kind that it will be used on; see
    :meth:`unbraid.SamplerExecutor.learn`.

    Attributes:
        hidden: sizes of the hidden layers of a small network; none for a linear regression.
        seed: of the network's initial weights.
    """

    hidden: tuple[int, ...] = ()
    seed: int = 0
    _model: Any = field(default=None, repr=False)

    def fit(self, probabilities: Array, exact: Array) -> None:
        """Learn from probabilities of shape (F, P, N) and exact ones of shape (P, N)."""
        from sklearn.linear_model import LinearRegression
        from sklearn.neural_network import MLPRegressor

        size = exact.shape[-1]
        features, target = self._features(probabilities), size * exact.reshape(-1)
        if self.hidden:
            network = MLPRegressor(hidden_layer_sizes=self.hidden, max_iter=3000, random_state=self.seed, alpha=1e-3)
            self._model = network.fit(np.sqrt(features.clip(min=0)), np.sqrt(target))
        else:
            self._model = LinearRegression().fit(features, target)

    def __call__(self, probabilities: Array, factors: Sequence[int]) -> Array:
        """See :class:`Extrapolator`.

        Raises:
            InvalidInputError: if nothing has been learnt yet.
        """
        if self._model is None:
            raise InvalidInputError(
                "This extrapolator has learnt nothing yet: call executor.learn(circuit, vectors, shots)."
            )
        features = self._features(probabilities)
        if self.hidden:
            found = np.maximum(self._model.predict(np.sqrt(features.clip(min=0))), 0) ** 2
        else:
            found = self._model.predict(features)
        return np.asarray(found).reshape(probabilities.shape[1:]) / probabilities.shape[-1]

    @staticmethod
    def _features(probabilities: Array) -> Array:
        """In units of the uniform distribution, one row an outcome."""
        return probabilities.shape[-1] * np.moveaxis(probabilities, 0, -1).reshape(-1, len(probabilities))


def check_factors(factors: Sequence[int]) -> tuple[int, ...]:
    """Noise factors: different odd numbers, 1 among them.

    Raises:
        InvalidInputError: if they are anything else.
    """
    found = tuple(factors) if isinstance(factors, list | tuple) else ()
    whole = all(isinstance(factor, int) and not isinstance(factor, bool) and factor % 2 for factor in found)
    if not whole or 1 not in found or len(set(found)) < len(found) or min(found, default=0) < 1:
        raise InvalidInputError(
            f"noise_factors must be different odd numbers with 1 among them, such as (1, 3); got {factors!r}."
        )
    return found


def folded(circuit: QuantumCircuit, factor: int) -> QuantumCircuit:
    """The same circuit with every two-qubit gate ``factor`` times, kept apart by barriers.

    Raises:
        InvalidInputError: if a two-qubit gate is not its own inverse.
    """
    if factor == 1:
        return circuit
    out = circuit.copy_empty_like()
    for item in circuit.data:
        out.append(item)
        if item.operation.num_qubits != 2 or item.operation.name in ("barrier", "delay"):
            continue
        if item.operation.name not in _SELF_INVERSE:
            raise InvalidInputError(
                "Noise is raised by repeating two-qubit gates that are their own inverse; got "
                f"{item.operation.name!r}. Leave noise_factors out for this backend."
            )
        for _ in range(factor - 1):
            out.barrier(*item.qubits)
            out.append(item)
    return out
