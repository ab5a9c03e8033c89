"""Whole layers as dense matrices, for circuits so small that the number of operations counts and not their size.

Legend: N is the width of the circuit, L the layers of one structure; a block is a gate or an idle wire.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from unbraid.circuits.ansatz import Ansatz

LARGEST = 64  # width up to which a product with a fused layer is cheaper than the gates one by one

Blocks = tuple[tuple[int, int | None], ...]  # (dimension, place of the gate within its layer, or None if idle)


def layer_blocks(ansatz: Ansatz) -> list[Blocks] | None:
    """The blocks of each layer from the first wire to the last, idle wires included.

    None if the circuit is too wide, or the wires of a gate are not neighbours in ascending order.
    """
    if ansatz.dimension > LARGEST:
        return None
    layers: list[Blocks] = []
    for layer in ansatz.layers:
        starts = {gate.wires[0]: (place, gate) for place, gate in enumerate(layer)}
        blocks: list[tuple[int, int | None]] = []
        wire = 0
        while wire < len(ansatz.wire_dims):
            if wire not in starts:
                blocks.append((ansatz.wire_dims[wire], None))
                wire += 1
                continue
            place, gate = starts[wire]
            if gate.wires != tuple(range(wire, wire + len(gate.wires))):
                return None
            blocks.append((prod(ansatz.gate_dims(gate)), place))
            wire += len(gate.wires)
        if sum(place is not None for _, place in blocks) != len(layer):
            return None
        layers.append(tuple(blocks))
    return layers


def fuse_layers(layers: Sequence[Blocks], gates: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """The matrix of each layer; layers of one structure are built together.

    Args:
        layers: blocks a layer.
        gates: matrices a layer, in the order of the ansatz.

    Returns:
        One matrix a layer, shape (N, N).
    """
    fused: list[Tensor | None] = [None] * len(layers)
    for blocks in dict.fromkeys(layers):
        members = [number for number, other in enumerate(layers) if other == blocks]
        whole: Tensor | None = None
        for d, place in blocks:
            if place is None:
                some = gates[members[0]][0]
                factor = torch.eye(d, dtype=some.dtype, device=some.device).expand(len(members), d, d)
            else:
                factor = torch.stack([gates[number][place] for number in members])
            whole = factor if whole is None else _kron(whole, factor)
        assert whole is not None
        for number, matrix in zip(members, whole.unbind(0), strict=True):
            fused[number] = matrix
    return [matrix for matrix in fused if matrix is not None]


def _kron(a: Tensor, b: Tensor) -> Tensor:
    """Kronecker product of (L, m, m) and (L, n, n), layer by layer."""
    size = a.shape[1] * b.shape[1]
    return (a[:, :, None, :, None] * b[:, None, :, None, :]).reshape(-1, size, size)
