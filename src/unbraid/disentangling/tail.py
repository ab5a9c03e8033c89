"""Riemannian L-BFGS over the gates of one run: the last digits, where sweeps become slow.

A step moves every gate g to the polar factor of g (1 + t A), A antisymmetric (anti-Hermitian). Directions are kept in
these coordinates, in which a step needs no transport of the memory. A joint core is fitted to the gates at every
evaluation, so by the envelope theorem the derivative by the gates alone is that of the fitted overlap.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from unbraid.disentangling.environments import Engine, State

MEMORY = 10
_ARMIJO = 1e-4
_HALVINGS = 12


@dataclass
class Tail:
    """The memory of the optimisation.

    Attributes:
        gradient: of the overlap at the accepted gates, output and input circuit in one vector.
        steps: the last steps, oldest first.
        changes: of the gradient over these steps, with the sign of a minimisation.
    """

    gradient: Tensor
    steps: list[Tensor] = field(default_factory=list)
    changes: list[Tensor] = field(default_factory=list)

    def direction(self) -> Tensor:
        """The two-loop recursion; the gradient itself where there is no memory."""
        if not self.steps:
            return self.gradient
        ascent = self.gradient.clone()
        weights = []
        for step, change in zip(reversed(self.steps), reversed(self.changes), strict=True):
            weight = dot(step, ascent) / dot(step, change)
            ascent = ascent - weight * change
            weights.append(weight)
        ascent = ascent * (dot(self.steps[-1], self.changes[-1]) / dot(self.changes[-1], self.changes[-1]))
        for step, change, weight in zip(self.steps, self.changes, reversed(weights), strict=True):
            ascent = ascent + (weight - dot(change, ascent) / dot(step, change)) * step
        return ascent

    def remember(self, step: Tensor, change: Tensor) -> None:
        """Keep a pair if its curvature is safely positive."""
        if dot(step, change) > 1e-12 * torch.linalg.vector_norm(step) * torch.linalg.vector_norm(change):
            self.steps, self.changes = [*self.steps, step][-MEMORY:], [*self.changes, change][-MEMORY:]

    def to(self, device: torch.device) -> Tail:
        """The same on another device."""
        return Tail(self.gradient.to(device), *([x.to(device) for x in side] for side in (self.steps, self.changes)))


def dot(a: Tensor, b: Tensor) -> float:
    """Re <a, b>."""
    return float((a.conj() * b).sum().real)


def begin(engine: Engine, state: State) -> tuple[State, Tail]:
    """Gradient at the gates of one run."""
    state, output, inward = engine.gradient(state)
    return state, Tail(torch.cat([output[0], inward[0]]))


def advance(engine: Engine, state: State, tail: Tail) -> tuple[State, Tail]:
    """One step, by backtracking until the overlap grows enough; the same state if it does not.

    Args:
        engine: computes overlaps and gradients.
        state: one run.
        tail: its memory, for these gates.
    """
    size = state.output.shape[1]
    overlap = float(state.overlap[0])
    for memory in (tail, Tail(tail.gradient)):  # once more along the gradient where the memory misleads
        direction = memory.direction()
        slope = dot(tail.gradient, direction)
        if not slope > 0:
            continue
        step = 1.0
        for _ in range(_HALVINGS):
            moved = engine.retract(state, step * direction[None, :size], step * direction[None, size:], 1.0)
            moved, output, inward = engine.gradient(moved)
            if float(moved.overlap[0]) >= overlap + _ARMIJO * step * slope:
                gradient = torch.cat([output[0], inward[0]])
                after = Tail(gradient, memory.steps, memory.changes)
                after.remember(step * direction, tail.gradient - gradient)
                return moved, after
            step /= 2
        if not memory.steps:
            break
    return state, tail
