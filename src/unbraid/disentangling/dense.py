"""Dense environments: exact sweeps where a vector of size out x in fits in memory.

Legend: gates act on the rows of matrices "(vectors, N)", N the width of a circuit. For the output circuit the vectors
are the columns of M (rows of M^T); for the input circuit, whose gates act from the right, they are the rows of M and
the gates are transposed. The gate next to the core is gate 0 in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unbraid.circuits import Ansatz
from unbraid.circuits.circuit import apply_gate
from unbraid.circuits.gates import polar
from unbraid.disentangling.fit import fit_chain
from unbraid.tensors import chain
from unbraid.tensors.legs import deinterleave, interleave


@dataclass(frozen=True)
class Gates:
    """Gates and core at one moment of the optimisation.

    Attributes:
        output: matrices of the output circuit's gates, layer 0 first, fixed gates included.
        input: matrices of the input circuit's gates as they act on columns, layer 0 first.
        core: chain of the core, three-leg cores (left, out * in, right).
        overlap: Eq. (2) with these.
    """

    output: list[Tensor]
    input: list[Tensor]
    core: list[Tensor]
    overlap: float

    def __post_init__(self) -> None:
        # One memory layout: products of transposed views round differently, and a checkpoint would not keep the views.
        for name in ("output", "input", "core"):
            object.__setattr__(self, name, [tensor.resolve_conj().contiguous() for tensor in getattr(self, name)])

    def to(self, device: torch.device) -> Gates:
        """The same on another device."""
        output, inward, core = ([tensor.to(device) for tensor in side] for side in (self.output, self.input, self.core))
        return Gates(output, inward, core, self.overlap)


class DenseEngine:
    """Environment and polar updates of all gates, in turn, with everything dense.

    Args:
        target: M, shape (N_out, N_in), of norm 1, float64 or complex128.
        output_ansatz: of the output circuit.
        input_ansatz: of the input circuit.
        out_dims: output legs of the core.
        in_dims: input legs of the core.
        fixed_core: whether the core stays as it is.
    """

    name = "dense"

    def __init__(
        self,
        target: Tensor,
        output_ansatz: Ansatz,
        input_ansatz: Ansatz,
        out_dims: Sequence[int],
        in_dims: Sequence[int],
        *,
        fixed_core: bool,
    ) -> None:
        self.target = target
        self.output_ansatz, self.input_ansatz = output_ansatz, input_ansatz
        self.out_dims, self.in_dims = tuple(out_dims), tuple(in_dims)
        self.fixed_core = fixed_core

    def evaluate(self, gates: Gates) -> Gates:
        """The same gates with their overlap; a joint core is fitted to them first, from where it is."""
        return self._with_core(gates, passes=20)

    def sweep(self, gates: Gates) -> Gates:
        """Update every gate of both circuits there and back, then the core; the overlap never decreases."""
        core = self._dense_core(gates.core)
        after_input = _run(core, _transposed(gates.input), self.input_ansatz)
        output = _sweep_side(self.target.mT, after_input.mT, gates.output, self.output_ansatz)
        after_output = _run(core.mT, output, self.output_ansatz).mT
        inward = _sweep_side(self.target, after_output, _transposed(gates.input), self.input_ansatz)
        return self._with_core(replace(gates, output=output, input=_transposed(inward)), passes=1)

    def disentangled(self, gates: Gates) -> Tensor:
        """O^dagger M I^dagger, shape (N_out, N_in)."""
        stripped = _run_back(self.target.mT, gates.output, self.output_ansatz).mT
        return _run_back(stripped, _transposed(gates.input), self.input_ansatz)

    def _with_core(self, gates: Gates, passes: int) -> Gates:
        stripped = self.disentangled(gates)
        if self.fixed_core:
            overlap = (self._dense_core(gates.core).conj() * stripped).sum().real
            return replace(gates, overlap=float(overlap))
        core, size = fit_chain(self._flat(stripped), gates.core, passes)
        return replace(gates, core=[*core[:-1], core[-1] / size], overlap=float(size))

    def truncated_core(self, gates: Gates, bond: int) -> list[Tensor]:
        """The canonical truncation of O^dagger M I^dagger to a bond dimension, of norm 1."""
        legs = [o * i for o, i in zip(self.out_dims, self.in_dims, strict=True)]
        cores = chain.split(self._flat(self.disentangled(gates)), legs)
        cores, _ = chain.truncate(cores, [min(bond, core.shape[2]) for core in cores[:-1]])
        return chain.canonicalize(cores, len(cores) - 1)[0]

    def _flat(self, matrix: Tensor) -> Tensor:
        return interleave(matrix, self.out_dims, self.in_dims)

    def _dense_core(self, core: Sequence[Tensor]) -> Tensor:
        return deinterleave(chain.contract(core), self.out_dims, self.in_dims)


def _sweep_side(target: Tensor, start: Tensor, gates: Sequence[Tensor], ansatz: Ansatz) -> list[Tensor]:
    """Maximise Re <target, g_m ... g_0 start> gate by gate, from gate 0 to the last and back.

    ``bra`` holds the target with the gates above the current one taken off, ``ket`` the start with those below put on.
    """
    places = list(ansatz.gates())
    gates = list(gates)
    dims = ansatz.wire_dims
    bra, ket = _run_back(target, gates, ansatz), start
    for k, place in enumerate(places):
        bra = apply_gate(bra, gates[k], place.wires, dims)
        if place.is_trainable:
            gates[k] = polar(_environment(bra, ket, place.wires, dims), place.name)
        ket = apply_gate(ket, gates[k], place.wires, dims)
    for k in range(len(places) - 1, -1, -1):
        place = places[k]
        ket = apply_gate(ket, gates[k].mH, place.wires, dims)
        if place.is_trainable:
            gates[k] = polar(_environment(bra, ket, place.wires, dims), place.name)
        bra = apply_gate(bra, gates[k].mH, place.wires, dims)
    return gates


def _environment(bra: Tensor, ket: Tensor, wires: Sequence[int], dims: Sequence[int]) -> Tensor:
    """E of Eq. (3), shape (d, d), such that Re <E, g> is the objective as a function of the gate g."""
    order = [*(1 + wire for wire in wires), 0, *(1 + wire for wire in range(len(dims)) if wire not in wires)]
    d = 1
    for wire in wires:
        d *= dims[wire]
    first, second = (x.reshape(-1, *dims).permute(order).reshape(d, -1) for x in (bra, ket))
    return first @ second.mH


def _run(x: Tensor, gates: Sequence[Tensor], ansatz: Ansatz) -> Tensor:
    for place, gate in zip(ansatz.gates(), gates, strict=True):
        x = apply_gate(x, gate, place.wires, ansatz.wire_dims)
    return x


def _run_back(x: Tensor, gates: Sequence[Tensor], ansatz: Ansatz) -> Tensor:
    for place, gate in reversed(list(zip(ansatz.gates(), gates, strict=True))):
        x = apply_gate(x, gate.mH, place.wires, ansatz.wire_dims)
    return x


def _transposed(gates: Sequence[Tensor]) -> list[Tensor]:
    return [gate.mT for gate in gates]
