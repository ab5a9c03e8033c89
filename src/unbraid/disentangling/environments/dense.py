"""Dense environments: exact sweeps where matrices of the layer's size fit in memory.

Two implementations: compiled loops (:mod:`.kernels`) for real gates on neighbouring wires on the CPU, and torch for
the rest: complex gates, other devices.

Legend: gates act on the rows of matrices. For the output circuit the matrix is M, for the input circuit M^T and the
gates are transposed. In the torch engine the rows are the last axis, "(vectors, N)", as :func:`apply_gate` has it. The
gate next to the core is gate 0 in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from unbraid.circuits import Ansatz
from unbraid.circuits.gates import polar
from unbraid.circuits.program import apply_gate
from unbraid.disentangling.environments.engine import Engine, Gates, Layout, State
from unbraid.disentangling.environments.unbatched import Unbatched, padded
from unbraid.disentangling.fit import fit_chain
from unbraid.tensors import chain
from unbraid.tensors.entanglement import dense_entropies
from unbraid.tensors.legs import deinterleave, interleave

if TYPE_CHECKING:
    from unbraid.disentangling.environments.kernels import Side

FIT_PASSES = 20  # over a joint core where it meets gates for the first time
GRADIENT_PASSES = 3  # over a joint core before a gradient


def dense_engine(
    target: Tensor,
    output_ansatz: Ansatz,
    input_ansatz: Ansatz,
    out_dims: Sequence[int],
    in_dims: Sequence[int],
    core_shapes: Sequence[tuple[int, int, int]],
    *,
    fixed_core: bool,
) -> Engine:
    """The engine for a dense matrix: compiled where it can be, torch elsewhere.

    Args:
        target: M, shape (N_out, N_in), of norm 1, float64 or complex128 (float32 works in single precision).
        output_ansatz: of the output circuit.
        input_ansatz: of the input circuit.
        out_dims: output legs of the core.
        in_dims: input legs of the core.
        core_shapes: of the core's three-leg cores.
        fixed_core: whether the core stays as it is.
    """
    places = [gate for side in (output_ansatz, input_ansatz) for gate in side.gates()]
    is_complex = target.is_complex() or any(place.name == "u" for place in places)
    neighbours = all(place.wires == tuple(range(place.wires[0], place.wires[-1] + 1)) for place in places)
    if target.device.type == "cpu" and not is_complex and neighbours:
        return CompiledDenseEngine(
            target, output_ansatz, input_ansatz, out_dims, in_dims, core_shapes, fixed_core=fixed_core
        )
    inner = DenseEngine(target, output_ansatz, input_ansatz, out_dims, in_dims, fixed_core=fixed_core)
    return Unbatched(inner, core_shapes)


def side_of(layout: Layout, vectors: int) -> Side:
    """The places of real gates on neighbouring wires as the compiled loops of :mod:`.kernels` read them.

    Args:
        layout: of the circuit.
        vectors: columns V of the matrices that the gates act on.
    """
    from unbraid.disentangling.environments import kernels  # numba is loaded when it is used

    wires = layout.ansatz.wire_dims
    inner, starts, firsts = [], [], [0]
    for gate, d in zip(layout.ansatz.gates(), layout.dims, strict=True):
        length = prod(wires[gate.wires[-1] + 1 :]) * vectors
        blocks = prod(wires[: gate.wires[0]])
        inner.append(length)
        starts += [block * d * length for block in range(blocks)]
        firsts.append(len(starts))
    kinds = [kernels.KINDS.get(gate.name, kernels.FIXED) for gate in layout.ansatz.gates()]
    columns = (layout.dims, kinds, inner, layout.offsets, starts, firsts)
    return kernels.Side(*(np.array(column, dtype=np.int64) for column in columns))


class CompiledDenseEngine:
    """Runs side by side with the compiled loops of :mod:`.kernels`; real gates on neighbouring wires, on the CPU.

    Memory: five matrices of the layer's size, and the same again as an index. Args as of :func:`dense_engine`.
    """

    name = "dense"

    def __init__(
        self,
        target: Tensor,
        output_ansatz: Ansatz,
        input_ansatz: Ansatz,
        out_dims: Sequence[int],
        in_dims: Sequence[int],
        core_shapes: Sequence[tuple[int, int, int]],
        *,
        fixed_core: bool,
    ) -> None:
        from unbraid.disentangling.environments import kernels  # numba is loaded when it is used

        self._kernels = kernels
        self.plan = f"dense, compiled: matrices of {' x '.join(map(str, target.shape))}"
        self.output, self.inward = Layout(output_ansatz), Layout(input_ansatz)
        self.out_dims, self.in_dims = tuple(out_dims), tuple(in_dims)
        self.core_shapes = list(core_shapes)
        self.fixed_core = fixed_core
        self._rows, self._columns = target.shape
        self._target = np.ascontiguousarray(target.numpy()).reshape(-1)
        self._dtype = target.dtype
        self._output_side = side_of(self.output, self._columns)
        self._input_side = side_of(self.inward, self._rows)
        sizes = [left * leg * right for left, leg, right in core_shapes]
        order = interleave(torch.arange(target.numel()).reshape(target.shape), out_dims, in_dims)
        self._chain = kernels.Chain(
            np.array([leg for _, leg, _ in core_shapes]),
            np.array([1, *(right for _, _, right in core_shapes)]),
            np.array([0, *accumulate(sizes)]),
            order.numpy().astype(np.int32 if target.numel() < 2**31 else np.int64),
        )

    def start(self, output: Sequence[Tensor], inward: Sequence[Tensor], core: Sequence[Tensor] | None) -> State:
        """One run from matrices."""
        like = torch.empty(0, dtype=self._dtype)
        rows = self.output.join(output, like)[None], self.inward.join([gate.mT for gate in inward], like)[None]
        state = State(*rows, like.new_empty(1, int(self._chain.offsets[-1])), torch.zeros(1, dtype=torch.float64))
        if core is None:
            core = _leading(interleave(self._stripped(state, 0), self.out_dims, self.in_dims), self.core_shapes)
        state.core[0] = torch.cat(
            [padded(site, shape).reshape(-1).to(like) for site, shape in zip(core, self.core_shapes, strict=True)]
        )
        return self._fitted(state, FIT_PASSES)

    def sweep(self, state: State) -> State:
        """Update every gate there and back, then a joint core."""
        swept = State(*(tensor.clone() for tensor in vars(state).values()))
        self._kernels.sweep(
            self._target,
            self._rows,
            self._columns,
            swept.output.numpy(),
            self._output_side,
            swept.inward.numpy(),
            self._input_side,
            swept.core.numpy(),
            self._chain,
            0 if self.fixed_core else 1,
            swept.overlap.numpy(),
        )
        return swept

    def extrapolate(self, before: State, after: State, momentum: Tensor) -> State:
        """``after`` moved on along its last change."""
        moved = State(after.output.clone(), after.inward.clone(), after.core, after.overlap)
        for old, new, ahead, side in (
            (before.output, after.output, moved.output, self._output_side),
            (before.inward, after.inward, moved.inward, self._input_side),
        ):
            self._kernels.extrapolate(old.numpy(), new.numpy(), momentum.numpy(), side, ahead.numpy())
        return moved

    def gradient(self, state: State) -> tuple[State, Tensor, Tensor]:
        """Overlap and Riemannian gradients."""
        fitted = State(*(tensor.clone() for tensor in vars(state).values()))
        output, inward = torch.zeros_like(state.output), torch.zeros_like(state.inward)
        self._kernels.gradient(
            self._target,
            self._rows,
            self._columns,
            fitted.output.numpy(),
            self._output_side,
            fitted.inward.numpy(),
            self._input_side,
            fitted.core.numpy(),
            self._chain,
            0 if self.fixed_core else GRADIENT_PASSES,
            fitted.overlap.numpy(),
            output.numpy(),
            inward.numpy(),
        )
        return fitted, output, inward

    def retract(self, state: State, output: Tensor, inward: Tensor, step: float) -> State:
        """Gates moved along directions."""
        moved = State(state.output.clone(), state.inward.clone(), state.core, state.overlap)
        self._kernels.retract(moved.output.numpy(), output.numpy(), step, self._output_side)
        self._kernels.retract(moved.inward.numpy(), inward.numpy(), step, self._input_side)
        return moved

    def gates(self, state: State, run: int) -> Gates:
        """The matrices of one run."""
        cores = [
            state.core[run, a:b].view(shape)
            for shape, a, b in zip(self.core_shapes, self._chain.offsets, self._chain.offsets[1:], strict=False)
        ]
        inward = [gate.mT for gate in self.inward.split(state.inward[run])]
        return Gates(self.output.split(state.output[run]), inward, cores, float(state.overlap[run]))

    def entropies(self, state: State, run: int) -> Tensor:
        """Bond entropies of what the circuits of one run leave."""
        return dense_entropies(self._stripped(state, run), self.out_dims, self.in_dims)

    def overlap_error(self, state: State, run: int) -> float:
        """Nothing is truncated."""
        return 0.0

    def _fitted(self, state: State, passes: int) -> State:
        """With overlaps, a joint core after ``passes`` over it."""
        for run in range(len(state.overlap)):
            core = state.core[run].numpy()
            matrix = self._stripped_matrix(state, run)
            if self.fixed_core:
                dense = np.empty_like(self._target)
                self._kernels.contract(core, self._chain, dense)
                state.overlap[run] = float(dense @ matrix)
            else:
                state.overlap[run] = float(self._kernels.fit(matrix, core, self._chain, passes))
        return state

    def _stripped_matrix(self, state: State, run: int) -> np.ndarray:
        """O^T M I^T, flat."""
        work, turned = np.empty_like(self._target), np.empty_like(self._target)
        sides = state.output[run].numpy(), self._output_side, state.inward[run].numpy(), self._input_side
        self._kernels.strip(self._target, self._rows, self._columns, *sides, work, turned)
        self._kernels.transpose(turned, self._columns, self._rows, work)
        return work

    def _stripped(self, state: State, run: int) -> Tensor:
        return torch.from_numpy(self._stripped_matrix(state, run)).reshape(self._rows, self._columns)


class DenseEngine:
    """Environment and polar updates of one run, in torch, with everything dense.

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
        self.output_ansatz, self.input_ansatz = output_ansatz, input_ansatz
        self.out_dims, self.in_dims = tuple(out_dims), tuple(in_dims)
        self.fixed_core = fixed_core
        names = {gate.name for side in (output_ansatz, input_ansatz) for gate in side.gates()}
        self.dtype = torch.promote_types(target.dtype, torch.complex32) if "u" in names else target.dtype
        self.device = target.device
        self.target = target.to(self.dtype)
        self.plan = f"dense, torch on {target.device.type}: matrices of {' x '.join(map(str, target.shape))}"

    def evaluate(self, gates: Gates) -> Gates:
        """The same gates with their overlap; a joint core is fitted to them first, from where it is."""
        return self._with_core(gates, passes=FIT_PASSES)

    def sweep(self, gates: Gates) -> Gates:
        """Update every gate of both circuits there and back, then the core; the overlap never decreases."""
        core = self._dense_core(gates.core)
        stripped = self.disentangled(gates)  # what either circuit leaves of M is M with the other taken off, stripped
        inward = _sweep_side(stripped, core, _transposed(gates.input), self.input_ansatz)
        stripped = self.disentangled(replace(gates, input=_transposed(inward)))
        output = _sweep_side(stripped.mT, core.mT, gates.output, self.output_ansatz)
        return self._with_core(replace(gates, output=output, input=_transposed(inward)), passes=1)

    def environments(self, gates: Gates) -> tuple[float, list[Tensor], list[Tensor]]:
        """The overlap, and E of Eq. (3) of every gate of the output and of the input circuit, shapes (d, d)."""
        core, stripped = self._dense_core(gates.core), self.disentangled(gates)
        output = _environments(stripped.mT, core.mT, gates.output, self.output_ansatz)
        inward = _environments(stripped, core, _transposed(gates.input), self.input_ansatz)
        return float((core.conj() * stripped).sum().real), output, _transposed(inward)

    def entropies(self, gates: Gates) -> Tensor:
        """Bond entropies of O^dagger M I^dagger, in nats."""
        return dense_entropies(self.disentangled(gates), self.out_dims, self.in_dims)

    def overlap_error(self, gates: Gates) -> float:
        """Nothing is truncated."""
        return 0.0

    def truncated_core(self, gates: Gates, bond: int) -> list[Tensor]:
        """The canonical truncation of O^dagger M I^dagger to a bond dimension, of norm 1."""
        legs = [o * i for o, i in zip(self.out_dims, self.in_dims, strict=True)]
        return _truncated(self._flat(self.disentangled(gates)), core_shapes(legs, bond))

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

    def _flat(self, matrix: Tensor) -> Tensor:
        return interleave(matrix, self.out_dims, self.in_dims)

    def _dense_core(self, core: Sequence[Tensor]) -> Tensor:
        return deinterleave(chain.contract(core), self.out_dims, self.in_dims).to(self.dtype)


def core_shapes(legs: Sequence[int], bond: int) -> list[tuple[int, int, int]]:
    """Shapes of a core's three-leg cores: bonds as given, but no larger than what either side can span."""
    bonds = [min(bond, prod(legs[: k + 1]), prod(legs[k + 1 :])) for k in range(len(legs) - 1)]
    return list(zip([1, *bonds], legs, [*bonds, 1], strict=True))


def _truncated(flat: Tensor, shapes: Sequence[tuple[int, int, int]]) -> list[Tensor]:
    """The canonical truncation of a dense chain to given shapes, of norm 1; bonds are smaller where its rank is."""
    cores = chain.split(flat, [leg for _, leg, _ in shapes])
    cores, _ = chain.truncate(
        cores, [min(shape[2], core.shape[2]) for shape, core in zip(shapes, cores, strict=True)][:-1]
    )
    cores, _ = chain.canonicalize(cores, len(cores) - 1)
    return cores


def _leading(flat: Tensor, shapes: Sequence[tuple[int, int, int]]) -> list[Tensor]:
    """Nearly the same, bond after bond from the left by Gram matrices: a start to be fitted, in a tenth of the time."""
    rest, cores = flat.reshape(1, -1), []
    for left, leg, right in shapes[:-1]:
        rows = rest.reshape(left * leg, -1)
        vectors = torch.linalg.eigh(rows @ rows.mH).eigenvectors[:, -right:]
        cores.append(vectors.reshape(left, leg, right))
        rest = vectors.mH @ rows
    return [*cores, (rest / torch.linalg.vector_norm(rest)).reshape(shapes[-1])]


def _sweep_side(bra: Tensor, ket: Tensor, gates: Sequence[Tensor], ansatz: Ansatz) -> list[Tensor]:
    """Maximise Re <target, g_m ... g_0 start> gate by gate, from gate 0 to the last and back.

    ``bra`` holds the target with the gates above the current one taken off, ``ket`` the start with those below put on.
    At the start all gates are off: the caller gives (g_m ... g_0)^dagger target.
    """
    places = list(ansatz.gates())
    gates = list(gates)
    dims = ansatz.wire_dims
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


def _environments(bra: Tensor, ket: Tensor, gates: Sequence[Tensor], ansatz: Ansatz) -> list[Tensor]:
    """E of all gates as they are; ``bra`` with all gates taken off."""
    found = []
    for place, gate in zip(ansatz.gates(), gates, strict=True):
        bra = apply_gate(bra, gate, place.wires, ansatz.wire_dims)
        found.append(_environment(bra, ket, place.wires, ansatz.wire_dims))
        ket = apply_gate(ket, gate, place.wires, ansatz.wire_dims)
    return found


def _environment(bra: Tensor, ket: Tensor, wires: Sequence[int], dims: Sequence[int]) -> Tensor:
    """E of Eq. (3), shape (d, d), such that Re <E, g> is the objective as a function of the gate g."""
    order = [*(1 + wire for wire in wires), 0, *(1 + wire for wire in range(len(dims)) if wire not in wires)]
    d = 1
    for wire in wires:
        d *= dims[wire]
    first, second = (x.reshape(-1, *dims).permute(order).reshape(d, -1) for x in (bra, ket))
    return first @ second.mH


def run(x: Tensor, gates: Sequence[Tensor], ansatz: Ansatz) -> Tensor:
    """The gates one after another on vectors, shape (vectors, N)."""
    for place, gate in zip(ansatz.gates(), gates, strict=True):
        x = apply_gate(x, gate, place.wires, ansatz.wire_dims)
    return x


def _run_back(x: Tensor, gates: Sequence[Tensor], ansatz: Ansatz) -> Tensor:
    for place, gate in reversed(list(zip(ansatz.gates(), gates, strict=True))):
        x = apply_gate(x, gate.mH, place.wires, ansatz.wire_dims)
    return x


def _transposed(gates: Sequence[Tensor]) -> list[Tensor]:
    return [gate.mT for gate in gates]
