"""Engines that treat one run at a time, as engines of runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from unbraid.circuits import Ansatz
from unbraid.disentangling.environments.engine import Gates, Layout, State, extrapolate, retract, riemannian


class GateEngine(Protocol):
    """What computes environments and updates of one run, in torch."""

    name: str
    plan: str
    output_ansatz: Ansatz
    input_ansatz: Ansatz
    dtype: torch.dtype
    device: torch.device

    def evaluate(self, gates: Gates) -> Gates:
        """The same gates with their overlap, a joint core fitted to them."""
        ...

    def sweep(self, gates: Gates) -> Gates:
        """Update every gate, then a joint core; the overlap never decreases."""
        ...

    def environments(self, gates: Gates) -> tuple[float, Sequence[Tensor | None], Sequence[Tensor | None]]:
        """The overlap, and the environments of all trainable gates of the output and the input circuit."""
        ...

    def truncated_core(self, gates: Gates, bond: int) -> list[Tensor]:
        """The canonical truncation of O^dagger M I^dagger to a bond dimension, of norm 1."""
        ...

    def entropies(self, gates: Gates) -> Tensor:
        """Bond entropies of O^dagger M I^dagger, in nats."""
        ...

    def overlap_error(self, gates: Gates) -> float:
        """Upper bound on the error of the overlap; 0 where nothing is truncated."""
        ...


class Unbatched:
    """A :class:`GateEngine` behind the interface of runs side by side; each run in turn.

    Args:
        inner: computes one run.
        core_shapes: of the core's three-leg cores.
    """

    def __init__(self, inner: GateEngine, core_shapes: Sequence[tuple[int, int, int]]) -> None:
        self.inner = inner
        self.name, self.plan = inner.name, inner.plan
        self.output, self.inward = Layout(inner.output_ansatz), Layout(inner.input_ansatz)
        self.core_shapes = list(core_shapes)

    def start(self, output: Sequence[Tensor], inward: Sequence[Tensor], core: Sequence[Tensor] | None) -> State:
        """One run from matrices."""
        sides = [[gate.to(self.inner.device, self.inner.dtype) for gate in side] for side in (output, inward)]
        gates = Gates(sides[0], sides[1], [], 0.0)
        if core is None:
            core = self.inner.truncated_core(gates, max(shape[2] for shape in self.core_shapes))
        chosen = [
            padded(site.to(self.inner.device, self.inner.dtype), shape)
            for site, shape in zip(core, self.core_shapes, strict=True)
        ]
        return self._pack([self.inner.evaluate(Gates(sides[0], sides[1], chosen, 0.0))])

    def sweep(self, state: State) -> State:
        """Update every gate there and back, then a joint core."""
        return self._pack([self.inner.sweep(self.gates(state, run)) for run in range(len(state.overlap))])

    def extrapolate(self, before: State, after: State, momentum: Tensor) -> State:
        """``after`` moved on along its last change."""
        return State(
            extrapolate(self.output, before.output, after.output, momentum),
            extrapolate(self.inward, before.inward, after.inward, momentum),
            after.core,
            after.overlap,
        )

    def gradient(self, state: State) -> tuple[State, Tensor, Tensor]:
        """Overlap and Riemannian gradients."""
        evaluated = [self.inner.evaluate(self.gates(state, run)) for run in range(len(state.overlap))]
        packed = self._pack(evaluated)
        output, inward = [], []
        for gates in evaluated:
            _, first, second = self.inner.environments(gates)
            output.append(self._joined(self.output, first, packed.output))
            inward.append(self._joined(self.inward, [e if e is None else e.mT for e in second], packed.inward))
        return (
            packed,
            riemannian(self.output, packed.output, torch.stack(output)),
            riemannian(self.inward, packed.inward, torch.stack(inward)),
        )

    def retract(self, state: State, output: Tensor, inward: Tensor, step: float) -> State:
        """Gates moved along directions."""
        return State(
            retract(self.output, state.output, output, step),
            retract(self.inward, state.inward, inward, step),
            state.core,
            state.overlap,
        )

    def gates(self, state: State, run: int) -> Gates:
        """The matrices of one run."""
        cores, at = [], 0
        for left, leg, right in self.core_shapes:
            cores.append(state.core[run, at : at + left * leg * right].view(left, leg, right))
            at += left * leg * right
        inward = [gate.mT for gate in self.inward.split(state.inward[run])]
        return Gates(self.output.split(state.output[run]), inward, cores, float(state.overlap[run]))

    def entropies(self, state: State, run: int) -> Tensor:
        """Bond entropies of what the circuits of one run leave."""
        return self.inner.entropies(self.gates(state, run))

    @staticmethod
    def _joined(layout: Layout, environments: Sequence[Tensor | None], like: Tensor) -> Tensor:
        filled = [like.new_zeros(d, d) if e is None else e for e, d in zip(environments, layout.dims, strict=True)]
        return layout.join(filled, like)

    def overlap_error(self, state: State, run: int) -> float:
        """Upper bound on the error of the overlap of one run."""
        return self.inner.overlap_error(self.gates(state, run))

    def _pack(self, runs: Sequence[Gates]) -> State:
        like = torch.empty(0, dtype=self.inner.dtype, device=self.inner.device)
        return State(
            torch.stack([self.output.join(gates.output, like) for gates in runs]),
            torch.stack([self.inward.join([gate.mT for gate in gates.input], like) for gates in runs]),
            torch.stack([torch.cat([core.reshape(-1).to(like) for core in gates.core]) for gates in runs]),
            torch.tensor([gates.overlap for gates in runs], dtype=torch.float64),
        )


def padded(core: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """With zeros where its bonds are smaller."""
    if core.shape == shape:
        return core
    larger = core.new_zeros(shape)
    larger[: core.shape[0], :, : core.shape[2]] = core
    return larger
