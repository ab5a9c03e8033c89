"""The optimisation loop over sweeps: momentum with restart, a stated criterion, a state that can be saved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from unbraid.circuits.ansatz import Ansatz
from unbraid.circuits.gates import polar
from unbraid.disentangling.dense import Gates
from unbraid.disentangling.result import Status

PATIENCE = 3  # sweeps in a row that must gain less than the tolerance
LARGEST_MOMENTUM = 0.97

Callback = Callable[[int, float], "bool | None"]


class Engine(Protocol):
    """What computes environments and updates."""

    name: str
    output_ansatz: Ansatz
    input_ansatz: Ansatz

    def evaluate(self, gates: Gates) -> Gates:
        """The same gates with their overlap, a joint core fitted to them."""
        ...

    def sweep(self, gates: Gates) -> Gates:
        """Update every gate, then a joint core; the overlap never decreases."""
        ...


@dataclass
class Run:
    """Everything that the loop needs to go on from where it is.

    Attributes:
        accepted: the best gates so far.
        current: where the next sweep starts; ahead of ``accepted`` by the momentum.
        age: sweeps since the momentum was last set to zero.
        quiet: sweeps in a row that gained less than the tolerance.
        history: overlap after each sweep, never decreasing.
        status: "running", or how it ended.
    """

    accepted: Gates
    current: Gates
    age: int = 1
    quiet: int = 0
    history: list[float] = field(default_factory=list)
    status: Status | str = "running"

    def state(self) -> dict[str, Any]:
        """Plain data and tensors for a checkpoint."""
        return {**vars(self), "accepted": vars(self.accepted), "current": vars(self.current)}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Run:
        """The inverse of :meth:`state`."""
        return cls(**{**state, "accepted": Gates(**state["accepted"]), "current": Gates(**state["current"])})


def resumed(run: Run, device: torch.device) -> Run:
    """A saved run as it goes on, on its device: one that its callback stopped is taken up again."""
    run.accepted, run.current = run.accepted.to(device), run.current.to(device)
    if run.status == "stopped":
        run.status = "converged" if run.quiet >= PATIENCE else "running"
    return run


def optimize(
    engine: Engine,
    run: Run,
    *,
    max_sweeps: int,
    tolerance: float,
    callback: Callback | None = None,
    save: Callable[[Run], None] | None = None,
) -> Run:
    """Sweep until converged; the accepted overlap never decreases.

    After each sweep the gates are extrapolated along their last change and made orthogonal again; where that lowers the
    overlap, the accepted gates come back and the momentum starts anew.

    Args:
        engine: computes the sweeps.
        run: where to start, or to go on.
        max_sweeps: at most so many in all.
        tolerance: converged when ``PATIENCE`` sweeps in a row each gain less than this.
        callback: called with (sweeps done, overlap); False stops.
        save: called after each sweep.
    """
    while run.status == "running":
        if len(run.history) >= max_sweeps:
            run.status = "out_of_sweeps"
            if save is not None:
                save(run)
            break
        swept = engine.sweep(run.current)
        gain = swept.overlap - run.accepted.overlap
        if gain < 0:  # the extrapolation overshot: sweep from the accepted gates, which cannot lose
            run.age = 1
            swept = engine.sweep(run.accepted)
            gain = swept.overlap - run.accepted.overlap
        before = run.accepted
        if gain >= 0:
            run.accepted = swept
        run.quiet = run.quiet + 1 if gain < tolerance else 0
        momentum = min(LARGEST_MOMENTUM, (run.age - 1) / (run.age + 2))
        run.current = _extrapolate(engine, before, run.accepted, momentum) if momentum > 0 else run.accepted
        run.age += 1
        run.history.append(run.accepted.overlap)
        if run.quiet >= PATIENCE:
            run.status = "converged"
        if callback is not None and callback(len(run.history), run.accepted.overlap) is False:
            run.status = "stopped"
        if save is not None:
            save(run)
    return run


def _extrapolate(engine: Engine, before: Gates, after: Gates, momentum: float) -> Gates:
    sides = []
    for old, new, ansatz in (
        (before.output, after.output, engine.output_ansatz),
        (before.input, after.input, engine.input_ansatz),
    ):
        gates = list(new)
        members: dict[tuple[str, int], list[int]] = {}
        for k, place in enumerate(ansatz.gates()):
            if place.is_trainable:
                members.setdefault((place.name, new[k].shape[0]), []).append(k)
        for (group, _), indices in members.items():
            last, now = (torch.stack([side[k] for k in indices]) for side in (old, new))
            for k, gate in zip(indices, polar(now + momentum * (now - last), group), strict=True):
                gates[k] = gate
        sides.append(gates)
    return Gates(sides[0], sides[1], after.core, after.overlap)
