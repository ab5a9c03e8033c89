"""Gradients through circuits that are only sampled, by shifted parameters.

A readout gives amplitudes with their signs, so derivatives are amplitudes of other circuits: with the Givens rotation
R(s) = exp(s A) of two rows of a gate, A = E_ab - E_ba and dR/ds = (R(pi/2) - R(-pi/2)) / 2 at s = 0. A gradient g by
the output becomes Q^T g by the input: the transposed circuit, run on g. A backward pass thus takes one more readout for
the input, and two for every angle of a gate (d (d - 1) / 2 of an SO(d)).

Legend: B vectors of N entries; a circuit is a list of (matrix or name of a fixed gate, wires).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from unbraid.circuits import Circuit
from unbraid.circuits.gates import fixed_gate
from unbraid.circuits.program import apply_gate
from unbraid.ground.errors import InvalidInputError

Read = Callable[[Circuit, Tensor], Tensor]
Placed = Sequence[tuple[Tensor | str, tuple[int, ...]]]

GRADIENTS = ("none", "parameter-shift")


def sampled(circuit: Circuit, placed: Placed, x: Tensor, read: Read, gradient: str) -> Tensor:
    """What a circuit makes of vectors, by a readout.

    Args:
        circuit: gives wires and dtype.
        placed: its gates in the order in which they act; matrices may require gradients.
        x: shape (..., N).
        read: reads a circuit's results on vectors, without gradients.
        gradient: "parameter-shift", or "none": then a backward pass through the result is an error.

    Returns:
        Shape (..., N).
    """
    matrices = [gate for gate, _ in placed if isinstance(gate, Tensor)]
    found: Tensor = _Sampled.apply(circuit, placed, read, gradient, x, *matrices)
    return found


def apply_placed(circuit: Circuit, placed: Placed, x: Tensor) -> Tensor:
    """What gates make of one vector, shape (N,), in torch; differentiable.

    Args:
        circuit: gives the wires.
        placed: gates in the order in which they act.
        x: shape (N,).
    """
    dims = circuit.ansatz.wire_dims
    found = x[None]
    for gate, wires in placed:
        matrix = fixed_gate(gate, tuple(dims[wire] for wire in wires)).to(x) if isinstance(gate, str) else gate
        found = apply_gate(found, matrix, wires, dims)
    return found[0]


class _Sampled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, circuit: Circuit, placed: Placed, read: Read, gradient: str, x: Tensor, *matrices: Tensor
    ) -> Tensor:
        fixed = [gate if isinstance(gate, str) else None for gate, _ in placed]
        ctx.circuit, ctx.read, ctx.gradient = circuit, read, gradient
        ctx.names, ctx.wires = fixed, [wires for _, wires in placed]
        ctx.save_for_backward(x, *matrices)
        return read(_build(circuit, fixed, ctx.wires, matrices), x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        if ctx.gradient == "none":
            raise InvalidInputError(
                "A sampled readout has no gradient of its own. Use to_quantum(..., gradient='parameter-shift'), or "
                "readout='exact', or train the network before it becomes a hybrid."
            )
        if ctx.circuit.is_complex:
            raise InvalidInputError("Parameters are shifted in real circuits only; this one has unitary gates.")
        x, *matrices = ctx.saved_tensors
        change = grad_outputs[0]
        by_x = None
        if ctx.needs_input_grad[4]:
            back = [matrix.mT for matrix in matrices][::-1]
            transposed = _build(ctx.circuit, ctx.names[::-1], ctx.wires[::-1], back)
            by_x = ctx.read(transposed, change)
        by_matrices = [
            _by_gate(ctx, x, matrices, k, change) if ctx.needs_input_grad[5 + k] else None for k in range(len(matrices))
        ]
        return (None, None, None, None, by_x, *by_matrices)


def _by_gate(ctx: Any, x: Tensor, matrices: Sequence[Tensor], k: int, change: Tensor) -> Tensor:
    """The part of the gradient by a gate G that its group can follow, G S with S antisymmetric."""
    gate = matrices[k]
    slopes = torch.zeros_like(gate)
    for a, b in combinations(range(len(gate)), 2):
        shifted = []
        for sign in (1, -1):
            turn = torch.eye(len(gate), dtype=gate.dtype, device=gate.device)
            turn[a, a] = turn[b, b] = 0
            turn[a, b], turn[b, a] = sign, -sign
            others = [*matrices[:k], gate @ turn, *matrices[k + 1 :]]
            shifted.append(ctx.read(_build(ctx.circuit, ctx.names, ctx.wires, others), x))
        slope = (change * (shifted[0] - shifted[1])).sum() / 2
        # half each: a change along E_ab - E_ba meets both entries
        slopes[a, b], slopes[b, a] = slope / 2, -slope / 2
    return gate @ slopes


def _build(
    circuit: Circuit, names: Sequence[str | None], wires: Sequence[tuple[int, ...]], matrices: Sequence[Tensor]
) -> Circuit:
    rest = iter(matrices)
    placed = [(next(rest) if name is None else name, on) for name, on in zip(names, wires, strict=True)]
    return Circuit.from_gates(circuit.ansatz.wire_dims, placed, dtype=circuit.dtype, device=circuit.device)
