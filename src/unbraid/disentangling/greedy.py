"""A start chosen gate by gate: from the outermost layer inwards, each gate lowers the entropy of the bond it stands on.

The gates that touch M first are those of the outermost layers. Taken off M as a chain, a pair of gates on the same two
neighbouring sites, one on the output and one on the input legs, changes only the bond between these sites.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unbraid.circuits import Ansatz
from unbraid.circuits.ansatz import Gate
from unbraid.circuits.gates import polar
from unbraid.ground.errors import InvalidInputError
from unbraid.ground.parallel import one_thread
from unbraid.tensors import MPO, chain

PASSES = 20  # alternations between the gates on one bond
MAX_BOND = 64  # of the chain on the way


@one_thread()  # thousands of tiny products
def greedy_gates(
    mpo: MPO, sides: tuple[Ansatz, Ansatz], gates: tuple[Sequence[Tensor], Sequence[Tensor]]
) -> tuple[list[Tensor], list[Tensor]]:
    """Gates that lower the bond entropies of ``O^dagger M I^dagger`` one after another.

    Each pair raises the purity of its bonds' Schmidt weights: the derivative of the purity by the tensor of the gate's
    sites gives an environment, its polar factor the next gate; the purity is convex, so it cannot fall.

    Args:
        mpo: M, of norm 1.
        sides: ansatz of the output and of the input circuit; gates on neighbouring legs of M.
        gates: where each gate starts, those of the input circuit as they act on columns; fixed gates stay.

    Returns:
        Gates of the output and of the input circuit.

    Raises:
        InvalidInputError: if a circuit's wires are not the legs of M.
    """
    for side, dims, name in zip(sides, (mpo.out_dims, mpo.in_dims), ("output", "input"), strict=True):
        if (*side.wire_dims, *(1,) * (len(dims) - len(side.wire_dims))) != tuple(dims):
            raise InvalidInputError(
                f"The greedy start needs a circuit on the legs of the MPO, {dims} on the {name} side; this one has "
                f"wires {side.wire_dims}."
            )
    found = (list(gates[0]), list(gates[1]))
    wide = any(gate.is_complex() for side in found for gate in side) or mpo.dtype.is_complex
    dtype = torch.complex128 if wide else torch.float64
    legs = [o * i for o, i in zip(mpo.out_dims, mpo.in_dims, strict=True)]
    cores = [core.to(dtype).reshape(core.shape[0], leg, -1) for core, leg in zip(mpo.cores, legs, strict=True)]
    numbers = [iter(range(len(gates))) for gates in found]
    layers = [
        [[(next(count), gate) for gate in layer] for layer in side.layers]
        for side, count in zip(sides, numbers, strict=True)
    ]
    for depth in reversed(range(max(map(len, layers)))):
        blocks: dict[tuple[int, ...], list[tuple[int, int, Gate]]] = {}  # sites: (side, number, place)
        for which, rows in enumerate(layers):
            for number, place in rows[depth] if depth < len(rows) else []:
                blocks.setdefault(tuple(sorted(place.wires)), []).append((which, number, place))
        for sites in sorted(blocks):
            cores = _settle(cores, sites, blocks[sites], found, mpo.out_dims, mpo.in_dims)
    return found


def _settle(
    cores: chain.Chain,
    sites: tuple[int, ...],
    members: list[tuple[int, int, Gate]],
    found: tuple[list[Tensor], list[Tensor]],
    out_dims: Sequence[int],
    in_dims: Sequence[int],
) -> chain.Chain:
    """Choose the gates on one group of sites and take them off the chain."""
    first, last = sites[0], sites[-1]
    if sites != tuple(range(first, last + 1)):
        raise InvalidInputError(f"The greedy start takes gates on neighbouring wires; got one on the wires {sites}.")
    cores, _ = chain.canonicalize(cores, first)
    theta = cores[first]
    for core in cores[first + 1 : last + 1]:
        theta = torch.tensordot(theta, core, dims=1).reshape(theta.shape[0], -1, core.shape[2])
    left, _, right = theta.shape
    count = len(sites)
    pairs = [dim for k in sites for dim in (out_dims[k], in_dims[k])]
    axes = [[1 + 2 * k for k in range(count)], [2 + 2 * k for k in range(count)]]  # output and input legs of theta
    theta = theta.reshape(left, *pairs, right)
    for which, number, place in members:
        theta = _act(theta, _taking_off(found[which][number], which), [axes[which][w - first] for w in place.wires])
    for _ in range(PASSES if count > 1 else 0):
        for which, number, place in members:
            if not place.is_trainable:
                continue
            legs = [axes[which][wire - first] for wire in place.wires]
            slope = _purity_slope(theta, count)
            environment = _rows(slope, legs) @ _rows(theta, legs).mH
            step = polar(environment, place.name).to(theta.dtype)
            theta = _act(theta, step, legs)
            taking_off = step @ _taking_off(found[which][number], which).to(step.dtype)
            gate = taking_off.mH if which == 0 else taking_off.conj()
            found[which][number] = gate if place.name == "u" else gate.real.to(torch.float64)
    block = theta.reshape(left, -1)
    for k in range(first, last):
        rest = block.reshape(-1, out_dims[k] * in_dims[k], block.numel() // (block.shape[0] * out_dims[k] * in_dims[k]))
        u, s, vh = torch.linalg.svd(rest.reshape(rest.shape[0] * rest.shape[1], -1), full_matrices=False)
        rank = max(1, min(MAX_BOND, int((s > 1e-12 * s[0]).sum())))
        cores[k] = u[:, :rank].reshape(rest.shape[0], rest.shape[1], rank)
        block = s[:rank, None] * vh[:rank]
    cores[last] = block.reshape(block.shape[0], out_dims[last] * in_dims[last], right)
    return cores


def _taking_off(gate: Tensor, which: int) -> Tensor:
    """What acts on the legs of M when a gate is taken off: its inverse on output legs, its conjugate on input legs."""
    return gate.mH if which == 0 else gate.conj()


def _purity_slope(theta: Tensor, count: int) -> Tensor:
    """Derivative of the summed purities of the bonds within theta, up to a factor."""
    slope = torch.zeros_like(theta)
    for k in range(1, count):
        matrix = theta.reshape(theta.shape[: 1 + 2 * k].numel(), -1)
        slope = slope + ((matrix @ matrix.mH) @ matrix).reshape(theta.shape)
    return slope


def _rows(theta: Tensor, legs: Sequence[int]) -> Tensor:
    """Some axes as rows, the rest as columns."""
    moved = theta.movedim(list(legs), list(range(len(legs))))
    return moved.reshape(moved.shape[: len(legs)].numel(), -1)


def _act(theta: Tensor, gate: Tensor, legs: Sequence[int]) -> Tensor:
    """Multiply a gate into some axes."""
    moved = theta.movedim(list(legs), list(range(len(legs))))
    acted = gate.to(theta.dtype) @ moved.reshape(gate.shape[0], -1)
    return acted.reshape(moved.shape).movedim(list(range(len(legs))), list(legs))
