"""Where an optimisation starts: gates near the identity, random, grown from shallower circuits, or chosen greedily."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unbraid.circuits import Ansatz, Circuit
from unbraid.disentangling.greedy import greedy_gates
from unbraid.ground.random import stream_seed
from unbraid.tensors import MPO

STARTS = ("near_identity", "identity", "random", "growth", "greedy")

Pair = tuple[list[Tensor], list[Tensor]]  # gates of the output and of the input circuit, these as they act on columns


def first_gates(
    mpo: MPO, sides: tuple[Ansatz, Ansatz], start: str, seed: int, restart: int, inner: Pair | None = None
) -> Pair:
    """The gates that one run starts from.

    Args:
        mpo: M, of norm 1.
        sides: ansatz of the output and of the input circuit.
        start: one of ``STARTS``.
        seed: of everything random.
        restart: number of the run. From the second on, gates of the group "o" have random determinants, and "identity"
            is near it.
        inner: gates of the innermost layers, taken as they are.
    """
    seeds = [stream_seed(seed, "disentangle", side, restart) for side in ("output", "input")]
    init = {"growth": "near_identity", "greedy": "near_identity"}.get(start, start)
    if init == "identity" and restart > 0:
        init = "near_identity"
    chosen = []
    for side, side_seed, mirrored in zip(sides, seeds, (False, True), strict=True):
        circuit = Circuit(side, init, side_seed, mirrored=mirrored, dtype=torch.float64)
        gates = [gate.detach() for gate in circuit.gate_matrices()]
        if restart > 0:
            generator = torch.Generator().manual_seed(side_seed)
            for k, place in enumerate(side.gates()):
                if place.name == "o" and bool(torch.rand((), generator=generator) < 0.5):
                    gates[k] = torch.cat([-gates[k][:1], gates[k][1:]])
        chosen.append(gates)
    output, inward = chosen
    if start == "greedy":
        output, inward = greedy_gates(mpo, sides, (output, inward))
    return (output, inward) if inner is None else (_with_inner(output, inner[0]), _with_inner(inward, inner[1]))


def extended_by_identity(sides: tuple[Ansatz, Ansatz], inner: Pair) -> Pair:
    """Gates of the innermost layers, and identities around them: the overlap stays what it was.

    Fixed gates of the outer layers are what they are, so this keeps the overlap only where there are none.
    """
    gates = [[g.detach() for g in Circuit(side, "identity", dtype=torch.float64).gate_matrices()] for side in sides]
    return _with_inner(gates[0], inner[0]), _with_inner(gates[1], inner[1])


def _with_inner(gates: Sequence[Tensor], inner: Sequence[Tensor]) -> list[Tensor]:
    return [*inner, *gates[len(inner) :]]
