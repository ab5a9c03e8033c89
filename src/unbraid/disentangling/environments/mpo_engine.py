"""Environments for long chains: nothing of the size of a vector is ever built.

Two ways lead to the same environments. Column by column is exact; its boundary grows with the number of layers and not
with the number of sites. Layer by layer truncates, and says by how much at most; it takes over where the boundaries of
the exact way do not fit into the memory allowed.

Legend: matrices of gates by name, ("output" or "input", number); M has norm 1 here, its conjugate stands in networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from unbraid.circuits import Ansatz
from unbraid.disentangling.environments.columns import Columns, Tensors, kept_entries
from unbraid.disentangling.environments.engine import Gates
from unbraid.disentangling.environments.layers import Layer, LayerSweeps, NearChain
from unbraid.disentangling.environments.network import Network, PlacedGate, place
from unbraid.ground.errors import DidNotConvergeError, InvalidInputError
from unbraid.tensors import MPO, chain

LONGEST_GATE = 4  # sites that a gate may span where layers are truncated: 4^4 legs in one tensor
_MOST_LEVELS = 8
_CACHED = 2**24  # bytes; more boundaries than that are computed twice faster than they are kept and fetched
_FIT_PASSES = 20
_FIT_WORK = 2**31  # entries of boundaries to compute in a fit: fewer passes where they are large


class MPOEngine:
    """Environment and polar updates of all gates, in turn, with M and the core as chains.

    Args:
        target: M, of any scale.
        output_ansatz: of the output circuit; its wires are the output legs of M (ones may be left out).
        input_ansatz: of the input circuit, likewise.
        fixed_core: whether the core stays as it is.
        core_bond: bond dimension of the core, to plan with.
        memory_limit: bytes for the boundaries of the exact way. Time grows with them: near the default, a sweep over
            fifty sites takes about as long as a truncated one; far above it, minutes.
        truncation: relative error allowed where a chain passes a layer.
        max_bond: cap of the bonds of truncated chains; wins over ``truncation``.

    Attributes:
        exact: whether environments are exact (column by column) or truncated (layer by layer).
        plan: which way was chosen, and why.
        boundary_entries: numbers in all boundaries of the exact way, which its time is proportional to.
        truncation_error: upper bound on the error of the overlaps of the last call; 0 if exact.
        overlap_spread: largest disagreement between overlaps that the last call found at different layers for the same
            gates; at most twice ``truncation_error``.

    Raises:
        InvalidInputError: if M is zero, a limit makes no sense, circuits do not fit on the legs of M, or a gate spans
            more than four sites where the exact way needs too much memory.
    """

    name = "mpo"

    def __init__(
        self,
        target: MPO,
        output_ansatz: Ansatz,
        input_ansatz: Ansatz,
        *,
        fixed_core: bool,
        core_bond: int = 1,
        memory_limit: int = 2**28,
        truncation: float = 1e-6,
        max_bond: int = 128,
    ) -> None:
        self.output_ansatz, self.input_ansatz = output_ansatz, input_ansatz
        self.out_dims, self.in_dims = target.out_dims, target.in_dims
        self.fixed_core = fixed_core
        if not 0 <= truncation < 1:
            raise InvalidInputError(f"truncation must be a relative error from 0 to below 1; got {truncation!r}.")
        if max_bond < 1:
            raise InvalidInputError(f"max_bond must be a positive integer; got {max_bond!r}.")
        self.truncation, self.max_bond = truncation, max_bond
        self.output_layers = place(output_ansatz, self.out_dims, "output")
        self.input_layers = place(input_ansatz, self.in_dims, "input")
        self.target = _unit_chain(target)
        names = {gate.name for side in (output_ansatz, input_ansatz) for gate in side.gates()}
        self.dtype = torch.complex128 if target.dtype.is_complex or "u" in names else torch.float64
        self.device = target.device
        self.truncation_error = 0.0
        self.overlap_spread = 0.0
        self.levels, self.plan = self._choose(core_bond, memory_limit)
        self.exact = self.levels > 0

    def evaluate(self, gates: Gates) -> Gates:
        """The same gates with their overlap; a joint core is fitted to them first, from where it is."""
        if not self.exact:
            sweeps, matrices, core = self._truncating(gates)
            stripped = self._stripped(sweeps, matrices)
            core, overlap = self._best_core(sweeps, stripped, core, _FIT_PASSES)
            return self._noted(sweeps, replace(gates, core=core.cores, overlap=overlap))
        columns = self._columns(gates)
        if self.fixed_core:
            return replace(gates, overlap=columns.value())
        work = (1 + self.levels) * sum(columns.network.boundary_sizes)
        overlap = columns.fit_core(max(2, min(_FIT_PASSES, _FIT_WORK // work)))
        return replace(gates, core=columns.core(), overlap=overlap)

    def sweep(self, gates: Gates) -> Gates:
        """Update every gate of both circuits there and back, and a joint core.

        The overlap never decreases; where chains are truncated, by no more than ``2 * truncation_error``.
        """
        if not self.exact:
            sweeps, matrices, core = self._truncating(gates)
            inner = self._without(sweeps, matrices, self.input_layers)
            stripped = sweeps.sweep(inner, core, self.output_layers, matrices)
            core, _ = self._best_core(sweeps, stripped, core, 1)
            inner = self._without(sweeps, matrices, self.output_layers)
            stripped = sweeps.sweep(inner, core, self.input_layers, matrices)
            core, overlap = self._best_core(sweeps, stripped, core, 1)
            return self._noted(sweeps, self._gates(gates, matrices, core.cores, overlap))
        columns = self._columns(gates)
        columns.sweep(gates=True, core=not self.fixed_core)
        overlap = columns.sweep(gates=True, core=not self.fixed_core, backwards=True)
        return self._gates(gates, columns.tensors, gates.core if self.fixed_core else columns.core(), overlap)

    def environments(self, gates: Gates) -> tuple[float, list[Tensor | None], list[Tensor | None]]:
        """The overlap with the core as it is, and its derivative by each gate of the output and of the input circuit.

        A derivative is E of Eq. (3), shape (d, d), complex if anything is: Re <E, g> is the overlap as a function of
        the gate. Fixed gates have None.
        """
        if self.exact:
            overlap, found = self._columns(gates).environments()
        else:
            sweeps, matrices, core = self._truncating(gates)
            inner = self._without(sweeps, matrices, self.output_layers)
            _, found = sweeps.environments(inner, core, self.input_layers, matrices)
            inner = self._without(sweeps, matrices, self.input_layers)
            stripped, more = sweeps.environments(inner, core, self.output_layers, matrices)
            found |= more
            overlap = sweeps.overlap(stripped, core)
            self._noted(sweeps, gates)
        return (
            overlap,
            [found.get(("output", k)) for k in range(len(gates.output))],
            [found.get(("input", k)) for k in range(len(gates.input))],
        )

    def disentangled(self, gates: Gates) -> tuple[MPO, float]:
        """O^dagger M I^dagger, of norm 1 but for what was cut off, and an upper bound on the norm of its error."""
        sweeps, matrices, _ = self._truncating(gates)
        stripped = self._stripped(sweeps, matrices)
        legs = zip(stripped.cores, self.out_dims, self.in_dims, strict=True)
        return MPO([core.reshape(core.shape[0], o, i, core.shape[2]) for core, o, i in legs]), stripped.error

    def entropies(self, gates: Gates) -> Tensor:
        """Bond entropies of O^dagger M I^dagger, in nats, of what is left of it where it is truncated."""
        return self.disentangled(gates)[0].entropies()

    def overlap_error(self, gates: Gates) -> float:
        """Upper bound on the error of the overlap of these gates; 0 if exact.

        Raises:
            DidNotConvergeError: if overlaps found at different layers disagree by more than the bound allows.
        """
        if self.exact:
            return 0.0
        self.environments(gates)
        if self.overlap_spread > 2 * self.truncation_error + 1e-12:
            raise DidNotConvergeError(
                f"Truncated chains give overlaps that differ by {self.overlap_spread:.2g} between layers, more than "
                f"their bound of {2 * self.truncation_error:.2g}. Use fewer layers, or the dense engine where it fits."
            )
        return self.truncation_error

    def truncated_core(self, gates: Gates, bond: int) -> list[Tensor]:
        """The canonical truncation of O^dagger M I^dagger to a bond dimension, of norm 1."""
        sweeps, matrices, _ = self._truncating(gates)
        cores = self._stripped(sweeps, matrices).cores
        cores, _ = chain.truncate(cores, [min(bond, core.shape[2]) for core in cores[:-1]])
        return chain.canonicalize(cores, len(cores) - 1)[0]

    def _placed(self) -> list[PlacedGate]:
        return [gate for layer in (*self.output_layers, *self.input_layers) for gate in layer]

    # Column by column

    def _columns(self, gates: Gates) -> Columns:
        core = gates.core if self.fixed_core else chain.canonicalize(gates.core, 0)[0]
        return Columns.between(
            self.out_dims, self.in_dims, self.target, core, self._placed(), _matrices(gates), levels=self.levels
        )

    # Layer by layer

    def _truncating(self, gates: Gates) -> tuple[LayerSweeps, Tensors, NearChain]:
        """Truncated sweeps from the start, matrices and core; all of one dtype."""
        dtype = torch.float64
        for tensor in (*self.target, *gates.output, *gates.input, *gates.core):
            dtype = torch.promote_types(dtype, tensor.dtype)
        sweeps = LayerSweeps(self.out_dims, self.in_dims, dtype, self.truncation, self.max_bond)
        return sweeps, _matrices(gates), NearChain([core.to(dtype) for core in gates.core])

    def _without(self, sweeps: LayerSweeps, matrices: Tensors, layers: Sequence[Layer]) -> NearChain:
        """M with the layers of one circuit taken off."""
        near = sweeps.start(self.target)
        for layer in reversed(layers):
            near = sweeps.take_off(near, layer, matrices)
        return near

    def _stripped(self, sweeps: LayerSweeps, matrices: Tensors) -> NearChain:
        """M with both circuits taken off; the outermost layers first, which keeps bonds small."""
        near = sweeps.start(self.target)
        deepest = max(len(self.output_layers), len(self.input_layers))
        for depth in reversed(range(deepest)):
            for layers in (self.output_layers, self.input_layers):
                if depth < len(layers):
                    near = sweeps.take_off(near, layers[depth], matrices)
        return near

    def _best_core(
        self, sweeps: LayerSweeps, stripped: NearChain, core: NearChain, passes: int
    ) -> tuple[NearChain, float]:
        """The core after some passes towards M with both circuits taken off, and the overlap; a fixed core stays."""
        if not self.fixed_core:
            columns = Columns.between(self.out_dims, self.in_dims, stripped.cores, core.cores)
            columns.fit_core(passes)
            core = NearChain(columns.core())
        return core, sweeps.overlap(stripped, core, changed=not self.fixed_core)

    def _noted(self, sweeps: LayerSweeps, gates: Gates) -> Gates:
        self.truncation_error, self.overlap_spread = sweeps.error, sweeps.spread
        return gates

    def _gates(self, before: Gates, tensors: Tensors, core: list[Tensor], overlap: float) -> Gates:
        """Gates as they came, but for the trainable ones, which are among ``tensors``."""
        sides = {"output": list(before.output), "input": list(before.input)}
        for placed in self._placed():
            if placed.gate.is_trainable:
                old = sides[placed.side][placed.number]
                new = tensors[placed.name].reshape(old.shape)
                sides[placed.side][placed.number] = _plain(new if old.is_complex() else new.real)
        return Gates(sides["output"], sides["input"], core, overlap)

    def _choose(self, core_bond: int, memory_limit: int) -> tuple[int, str]:
        """Levels of the exact way, 0 if it does not fit; and the plan in words."""
        output, inward = (
            [gate for layer in layers for gate in layer] for layers in (self.output_layers, self.input_layers)
        )
        bonds = [core.shape[2] for core in self.target[:-1]]
        sizes = Network(self.out_dims, self.in_dims, bonds, [core_bond] * len(bonds), output, inward).boundary_sizes
        self.boundary_entries = sum(sizes)
        wide = self.target[0].is_complex() or any(gate.gate.name == "u" for gate in (*output, *inward))
        entry = 16 if wide else 8
        facts = f"the largest boundary takes {_bytes(entry * max(sizes))}"
        for levels in range(1, _MOST_LEVELS + 1):
            needed = entry * kept_entries(sizes, levels)
            if needed <= (min(memory_limit, _CACHED) if levels == 1 else memory_limit):
                often = "" if levels == 1 else f", each computed up to {levels} times"
                return levels, (
                    f"exact, column by column: {facts}, those kept {_bytes(needed)} of {_bytes(memory_limit)} "
                    f"allowed{often}"
                )
        for gate in (*output, *inward):
            if max(gate.sites) - min(gate.sites) >= LONGEST_GATE:
                raise InvalidInputError(
                    f"Truncated MPOs take gates that span up to {LONGEST_GATE} sites; got one on the sites "
                    f"{gate.sites}. Use gates on neighbouring wires, or raise memory_limit so that exact "
                    f"boundaries fit ({facts})."
                )
        return 0, (
            f"truncated, layer by layer, to {self.truncation:g} a layer and bonds of at most {self.max_bond}: {facts}, "
            f"and those of the exact way do not fit into {_bytes(memory_limit)}"
        )


def _plain(tensor: Tensor) -> Tensor:
    """In one memory layout: products of views round differently, and a checkpoint would not keep the views."""
    return tensor.resolve_conj().contiguous()


def _matrices(gates: Gates) -> Tensors:
    output = {("output", k): gate for k, gate in enumerate(gates.output)}
    return output | {("input", k): gate for k, gate in enumerate(gates.input)}


def _unit_chain(mpo: MPO) -> list[Tensor]:
    """M with norm 1, float64 or complex128."""
    centered = mpo.detach().to(torch.complex128 if mpo.dtype.is_complex else torch.float64).canonicalize(0)
    if not bool(centered.cores[0].any()):
        raise InvalidInputError("This MPO is zero: there is nothing to disentangle. Check the layer's weights.")
    return [core.reshape(core.shape[0], -1, core.shape[3]) for core in centered.cores]


def _bytes(count: int) -> str:
    """Such as "2.0 MiB"."""
    for power, unit in enumerate(("B", "KiB", "MiB", "GiB", "TiB")):
        if count < 1024 ** (power + 1):
            return f"{count / 1024**power:.4g} {unit}"
    return f"2^{count.bit_length() - 1} B"
