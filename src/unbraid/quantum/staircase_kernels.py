"""Compiled loops that polish staircases of gates, one state after the other.

Legend: B states of N = 2^n entries; gates lie flat as in :mod:`unbraid.disentangling.environments.kernels`.
"""

from __future__ import annotations

import numpy as np

from unbraid.disentangling.environments.compiling import compiled
from unbraid.disentangling.environments.kernels import Array, Side, extrapolate, run, run_back, sweep_side

LARGEST_MOMENTUM = 0.97


@compiled
def unprepare(states: Array, gates: Array, side: Side) -> None:
    """States <- (g_m ... g_0)^T states, each with its own gates.

    Args:
        states: shape (B, N); overwritten.
        gates: shape (B, 16 m).
        side: places of the m gates.
    """
    for b in range(len(states)):
        run_back(states[b], gates[b], side)


@compiled
def prepare(states: Array, gates: Array, side: Side) -> None:
    """States <- g_m ... g_0 |0...0>; arguments as of :func:`unprepare`."""
    for b in range(len(states)):
        state = states[b]
        for j in range(len(state)):
            state[j] = 1 if j == 0 else 0
        run(state, gates[b], side)


@compiled
def polish(targets: Array, gates: Array, side: Side, sweeps: int, tolerance: float) -> None:
    """Maximise <target, g_m ... g_0 |0...0>> by sweeps with momentum; no overlap falls.

    Args:
        targets: unit vectors, shape (B, N).
        gates: shape (B, 16 m); overwritten.
        side: places of the m gates.
        sweeps: at most so many a target.
        tolerance: a target is done when a sweep gains less.
    """
    size = targets.shape[1]
    ket = np.zeros(size, targets.dtype)
    bra = np.empty(size, targets.dtype)
    momentum = np.zeros(1, targets.dtype)
    for b in range(len(targets)):
        best = gates[b : b + 1]
        start = best.copy()
        before = best.copy()
        bra[:] = targets[b]
        run_back(bra, start[0], side)
        reached = bra[0]
        age = 0  # sweeps since the momentum was last set to zero
        for _ in range(sweeps):
            after = start.copy()
            bra[:] = targets[b]
            run_back(bra, after[0], side)
            ket[:] = 0
            ket[0] = 1
            sweep_side(bra, ket, after[0], side)
            gain = bra[0] - reached
            if gain < 0 and age > 0:  # the momentum went too far
                start[:] = best
                age = 0
                continue
            if gain >= 0:
                reached = bra[0]
                before[:] = best
                best[:] = after
            if gain < tolerance:
                break
            age += 1
            momentum[0] = min(LARGEST_MOMENTUM, (age - 1) / (age + 2))
            extrapolate(before, best, momentum, side, start)
