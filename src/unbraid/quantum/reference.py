"""The plus/minus reference: two circuits a vector, no ancilla, and every sign, the global one included.

Instead of x the circuit Q gets c x + s r and c x - s r, normalised, with a reference r whose image w = s Q r the host
knows. With a = c psi, outcome b has the probabilities (a_b + w_b)^2 / nu+^2 and (a_b - w_b)^2 / nu-^2: their sum tells
the magnitude of a_b, their difference its sign relative to w_b.

r = Q^T u, so that w has equal entries, which serves all signs alike. It is little entangled where the circuit is
shallow, so staircases prepare c x +- s r nearly as well as x. A product state r would be prepared better still, but its
image w has small entries, where signs are lost.

Small s leaves more shots to the signal, but signs are lost where w_b is no larger than the resolution
1 / (2 sqrt(S)) of an amplitude; so s follows from the number of shots.

Legend: u uniform; nu+ and nu- the norms of c x +- s r; S shots of both circuits; n+ and n- counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from unbraid.circuits import Circuit
from unbraid.ground.errors import InvalidInputError
from unbraid.quantum.encode import Encoding, encode
from unbraid.quantum.execute import Executor
from unbraid.quantum.reading import Reading, apply_transposed, counts_of, unfolded, uniform

# w_b against the resolution of an amplitude: the least error at 3,000 to 36,000 shots and 6 to 10 qubits
_RESOLUTION = 4.8
_LEAST, _MOST = 0.02, 0.2  # share of the reference, s^2
_CANCELLED = 1e-6  # squared norm of a state that is not there


@dataclass(frozen=True)
class Reference:
    """The plus/minus reference, for real circuits.

    Attributes:
        share: s^2, the share of the reference in the prepared states, between 0 and 1; None chooses it by the shots.
    """

    share: float | None = None

    def __post_init__(self) -> None:
        if self.share is not None and not (isinstance(self.share, int | float) and 0 < self.share < 1):
            raise InvalidInputError(
                f"share must be between 0 and 1; got {self.share!r}. Leave it out to let shots decide."
            )

    def __str__(self) -> str:
        return "reference"

    def circuits(self, qubits: int) -> int:
        """Two."""
        return 2

    def shots(self, total: int, qubits: int) -> int:
        """The same for both circuits, at least 1."""
        return 2 * max(1, total // 2)

    def measured(self, circuit: Circuit) -> Iterable[Circuit]:
        """The circuit itself."""
        return [circuit]

    def read(
        self,
        circuit: Circuit,
        units: Tensor,
        shots: int,
        executor: Executor,
        generator: torch.Generator | None,
        encoding: Encoding,
    ) -> Reading:
        """See :meth:`unbraid.quantum.reading.Readout.read`."""
        if circuit.is_complex:
            raise InvalidInputError(
                "The plus/minus reference reads real vectors, and this circuit has unitary gates. Use readout='exact', "
                "or circuits of gate='so'."
            )
        share = self.share or reference_share(shots, circuit.dimension)
        u = uniform(circuit, units.device)
        r = apply_transposed(circuit, u)
        states, squares = reference_states(units, r, share)
        if bool((squares < _CANCELLED).any()):  # an input along r cancels it: another share does not
            share *= 0.9
            states, squares = reference_states(units, r, share)
        each = max(1, shots // 2)  # some services want equal numbers within a job
        encoded = encode(states.flatten(0, 1), encoding)
        execution = executor.run(circuit, encoded, each, generator=generator)
        plus, minus = unfolded(*counts_of(execution, executor, units.device)).chunk(2)
        vectors, errors = solve_reference(plus, minus, each / squares, math.sqrt(share) * u, 1 - share)
        return Reading(vectors, errors, execution.circuits, execution.shots)


def reference_share(shots: int, size: int) -> float:
    """The share s^2 of the reference that suits a number of shots: about 23 N / (4 S), between 0.02 and 0.2."""
    return min(_MOST, max(_LEAST, _RESOLUTION**2 * size / (4 * shots)))


def reference_states(units: Tensor, r: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """The states that the plus/minus reference prepares.

    Args:
        units: unit vectors x, shape (B, N).
        r: the reference, of norm 1, shape (1, N).
        share: s^2.

    Returns:
        ``(c x + s r) / nu+`` and ``(c x - s r) / nu-``, shape (2, B, N), and nu+^2 and nu-^2, shape (2, B).
    """
    mixed = math.sqrt(1 - share) * units + math.sqrt(share) * torch.stack([r, -r])
    squares = mixed.square().sum(dim=2)
    return mixed / squares.sqrt()[:, :, None], squares


def solve_reference(plus: Tensor, minus: Tensor, weights: Tensor, w: Tensor, signal: float) -> tuple[Tensor, Tensor]:
    """Maximum-likelihood unit vector from the counts of the plus/minus reference.

    Each amplitude a = c psi_b is a stationary point of the Poisson likelihood
    ``n+ log (a + w)^2 + n- log (a - w)^2 - k+ (a + w)^2 - k- (a - w)^2``, k = S / nu^2 of either circuit, and so a root
    of ``k+ (a + w)^2 (a - w) + k- (a - w)^2 (a + w) = n+ (a - w) + n- (a + w)``, which always has three real roots: one
    between -w and w, and one on either side.

    Args:
        plus: counts of the plus circuit, shape (B, N).
        minus: counts of the minus circuit, shape (B, N).
        weights: k+ and k-, shots of a circuit over the squared norm of its state, shape (2, B).
        w: s Q r, shape (1, N).
        signal: c^2.

    Returns:
        Unit vectors, float64, shape (B, N), and their estimated L2 errors, shape (B,).
    """
    plus, minus, w = plus.double(), minus.double(), w.double()
    k_plus, k_minus = weights.double()[:, :, None]
    total, size = k_plus + k_minus, plus.shape[1]
    # a^3 + first a^2 + second a + third = 0, and with a = t - first / 3: t^3 - p t + q = 0
    first = (k_plus - k_minus) * w / total
    second = -(w**2) - (plus + minus) / total
    third = w * (plus - minus) / total - first * w**2
    p = first**2 / 3 - second
    q = 2 * first**3 / 27 - first * second / 3 + third
    tiny = torch.finfo(torch.float64).tiny
    radius = 2 * (p / 3).sqrt()
    # Rounding may push the argument beyond 1 where two roots meet.
    angle = torch.arccos((-3 * q / (p * radius).clamp(min=tiny)).clamp(-1, 1)) / 3
    turns = torch.arange(3, dtype=torch.float64, device=plus.device) * (2 * math.pi / 3)
    roots = radius * torch.cos(angle - turns[:, None, None]) - first / 3  # shape (3, B, N)
    ahead, behind = (roots + w) ** 2, (roots - w) ** 2
    likelihood = torch.xlogy(plus, ahead) + torch.xlogy(minus, behind) - k_plus * ahead - k_minus * behind
    (best, runner_up), order = likelihood.topk(2, dim=0)
    chosen, other = roots.gather(0, order)
    # Curvature 4 (k+ + k-) / 2 around the chosen root, plus the odds of having chosen the wrong one.
    doubt = (runner_up - best).exp()
    variance = (size - 1) / (4 * total[:, 0]) + (doubt / (1 + doubt) * (chosen - other) ** 2).sum(dim=1)
    norm = torch.linalg.vector_norm(chosen, dim=1, keepdim=True)
    return chosen / norm.clamp(min=tiny), (variance / signal).sqrt()
