"""Chains between two layers of gates, truncated: M with layers taken off, the core with layers put on.

Legend: a chain has cores of shape (left, out * in, right). Circuits do not change distances, so the error of a chain is
at most the sum of what its truncations cut off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unbraid.disentangling.environments.columns import Columns, Tensors
from unbraid.disentangling.environments.network import PlacedGate
from unbraid.tensors import chain

Layer = Sequence[PlacedGate]


@dataclass(frozen=True)
class NearChain:
    """A chain and an upper bound on its distance (Frobenius norm) to what it stands for."""

    cores: list[Tensor]
    error: float = 0.0


@dataclass
class LayerSweeps:
    """Environments of one layer at a time, between two truncated chains.

    Args:
        out_dims: output legs, one a site.
        in_dims: input legs.
        dtype: of all tensors.
        truncation: relative error allowed where a chain passes one layer.
        max_bond: cap of every bond; wins over ``truncation``.

    Attributes:
        error: bound on the error of all overlaps found so far.
        spread: largest difference between two overlaps found in succession for the same gates.
    """

    out_dims: tuple[int, ...]
    in_dims: tuple[int, ...]
    dtype: torch.dtype
    truncation: float
    max_bond: int
    error: float = 0.0
    spread: float = 0.0
    _last: float | None = None

    def start(self, cores: Sequence[Tensor]) -> NearChain:
        """A chain that is exact so far."""
        return NearChain([core.to(self.dtype) for core in cores])

    def take_off(self, target: NearChain, layer: Layer, gates: Tensors) -> NearChain:
        """M of a layer's outside to M of its inside: the layer's adjoint is applied."""
        return self._through(target, layer, {gate.name: gates[gate.name].conj() for gate in layer}, inwards=True)

    def put_on(self, core: NearChain, layer: Layer, gates: Tensors) -> NearChain:
        """What a layer makes of the chain inside of it."""
        return self._through(core, layer, gates, inwards=False)

    def overlap(self, target: NearChain, core: NearChain, *, changed: bool = False) -> float:
        """Re <target, core>; ``changed`` says that the core has been updated since the last overlap."""
        mantissa, log_scale = chain.inner(target.cores, core.cores)
        overlap = float(mantissa.real * torch.exp(log_scale))
        self._note(overlap, target, core, changed)
        return overlap

    def environments(
        self, target: NearChain, core: NearChain, layers: Sequence[Layer], gates: Tensors
    ) -> tuple[NearChain, Tensors]:
        """E of every gate of one side; and ``target`` with that side taken off."""
        found: Tensors = {}
        inner = [core]
        for layer in layers[:-1]:
            inner.append(self.put_on(inner[-1], layer, gates))
        for layer in reversed(layers):
            below = inner.pop()
            overlap, new = self._columns(target, below, layer, gates).environments()
            self._note(overlap, target, below)
            found |= new
            target = self.take_off(target, layer, gates)
        return target, found

    def sweep(self, target: NearChain, core: NearChain, layers: Sequence[Layer], gates: Tensors) -> NearChain:
        """Update the gates of one side, layer by layer outwards and back; ``target`` with that side taken off.

        Args:
            target: M with the other side taken off.
            core: the core.
            layers: of one side, layer 0 first.
            gates: matrices by name; updated in place.
        """
        if not layers:
            return target
        outer = [target]  # outer[-1 - l]: outside of layer l
        for layer in reversed(layers[1:]):
            outer.append(self.take_off(outer[-1], layer, gates))
        inner = [core]  # inner[l]: inside of layer l
        for layer in layers[:-1]:
            self._update(outer.pop(), inner[-1], layer, gates)
            inner.append(self.put_on(inner[-1], layer, gates))
        for layer in reversed(layers):
            self._update(target, inner.pop(), layer, gates)
            target = self.take_off(target, layer, gates)
        return target

    def _update(self, target: NearChain, core: NearChain, layer: Layer, gates: Tensors) -> None:
        columns = self._columns(target, core, layer, gates)
        self._note(columns.value(), target, core)
        if any(gate.gate.is_trainable for gate in layer):
            self._note(columns.sweep(gates=True, core=False), target, core, changed=True)
            for gate in layer:
                if gate.gate.is_trainable:
                    gates[gate.name] = columns.tensors[gate.name].reshape(gates[gate.name].shape)

    def _note(self, overlap: float, target: NearChain, core: NearChain, changed: bool = False) -> None:
        self.error = max(self.error, target.error + core.error)
        if self._last is not None and not changed:
            self.spread = max(self.spread, abs(overlap - self._last))
        self._last = overlap

    def _columns(self, target: NearChain, core: NearChain, layer: Layer, gates: Tensors) -> Columns:
        return Columns.between(self.out_dims, self.in_dims, target.cores, core.cores, layer, gates)

    def _through(self, near: NearChain, layer: Layer, gates: Tensors, *, inwards: bool) -> NearChain:
        """Apply a layer's gates to the legs of a chain and truncate; ``inwards`` contracts what faces outwards."""
        for row in _side_by_side(layer):
            near = self._through_row(near, row, gates, inwards)
        return near

    def _through_row(self, near: NearChain, row: Layer, gates: Tensors, inwards: bool) -> NearChain:
        cores, log_norm = chain.canonicalize(near.cores, 0)
        rest = torch.exp(log_norm).to(cores[0].dtype).reshape(1, 1)
        allowance = (self.truncation * float(rest.real)) ** 2
        spent = 0.0
        starts = {min(gate.sites): gate for gate in row}
        site = 0
        while site < len(cores):
            gate = starts.get(site)
            stop = site + 1 if gate is None else max(gate.sites) + 1
            block = rest
            for core in cores[site:stop]:
                block = torch.tensordot(block, core, dims=1)
            if gate is not None:
                block = self._apply(block, gate, gates[gate.name], range(site, stop), inwards)
            rest = block.reshape(block.shape[0], -1)
            for k in range(site, stop):
                right = block.shape[-1] * self._legs(range(k + 1, stop))
                if k == len(cores) - 1:
                    cores[k] = rest.reshape(-1, self._legs([k]), 1)
                    break
                u, s, vh = torch.linalg.svd(rest.reshape(-1, right), full_matrices=False)
                share = (allowance - spent) / (len(cores) - 1 - k)
                rank, cut = _rank(s, max(share, 0.0), self.max_bond)
                spent += cut
                cores[k] = u[:, :rank].reshape(-1, self._legs([k]), rank)
                rest = s[:rank, None] * vh[:rank]
            site = stop
        return NearChain(cores, near.error + math.sqrt(spent))

    def _apply(self, block: Tensor, gate: PlacedGate, matrix: Tensor, sites: range, inwards: bool) -> Tensor:
        """A gate on its legs of a block, shape (left, legs of the sites, right)."""
        dims = [dim for site in sites for dim in (self.out_dims[site], self.in_dims[site])]
        axes = [1 + 2 * (site - sites[0]) + (gate.side == "input") for site in gate.sites]
        towards_rows = (gate.side == "output") != inwards  # an output gate's rows are outside, an input gate's inside
        square = matrix.to(block.dtype).reshape(math.prod(gate.dims), -1)
        square = square if towards_rows else square.mT
        body = len(axes)
        tensor = block.reshape(block.shape[0], *dims, -1)
        product = torch.tensordot(
            square.reshape(*gate.dims, *gate.dims), tensor, dims=(list(range(body, 2 * body)), axes)
        )
        return product.movedim(list(range(body)), axes).reshape(block.shape[0], -1, block.shape[-1])

    def _legs(self, sites: Sequence[int]) -> int:
        return math.prod(self.out_dims[site] * self.in_dims[site] for site in sites)


def _side_by_side(layer: Layer) -> list[list[PlacedGate]]:
    """A layer as rows in which no gate begins before the one left of it has ended."""
    rows: list[list[PlacedGate]] = []
    for gate in sorted(layer, key=lambda gate: min(gate.sites)):
        for row in rows:
            if max(row[-1].sites) < min(gate.sites):
                row.append(gate)
                break
        else:
            rows.append([gate])
    return rows


def _rank(values: Tensor, allowance: float, max_bond: int) -> tuple[int, float]:
    """How many singular values stay so that the squares of the others sum up to at most ``allowance``; and that sum."""
    tails = (values.flip(0) ** 2).cumsum(0).flip(0)  # tails[r]: cut by rank r
    floor = (torch.finfo(values.dtype).eps * float(values[0])) ** 2
    rank = min(max(1, int((tails > max(allowance, floor)).sum())), max_bond)
    return rank, float(tails[rank]) if rank < len(values) else 0.0
