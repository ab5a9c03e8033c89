"""The problem as the optimisation sees it: M of norm 1, what the core may be, and the engine that suits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from unbraid.circuits import Ansatz
from unbraid.disentangling.environments import Engine, MPOEngine, Unbatched, core_shapes, dense_engine
from unbraid.disentangling.objective import LARGEST_DENSE
from unbraid.ground.errors import InvalidInputError
from unbraid.tensors import MPO

ENGINES = ("auto", "dense", "mpo")
ALWAYS_DENSE = 4**8  # entries of a matrix up to which dense sweeps take milliseconds
# Of a sweep, measured on one core at 9 to 12 qubits: enough to tell which engine is faster.
SECONDS_A_GATE_AND_ENTRY = 1e-9  # of the matrix; two and a half times as much beyond caches
LARGEST_CACHED = 4**10
SECONDS_A_GATE = 4e-4
SECONDS_A_BOUNDARY_ENTRY = 1e-8


@dataclass(frozen=True)
class Problem:
    """What is to be disentangled, and how.

    Attributes:
        unit: M, of norm 1, float64 or complex128.
        core_bond: bond dimension of the core.
        fixed: a core of norm 1 that stays as it is, as three-leg cores; None optimises it.
        engine_name: one of ``ENGINES``.
        single: work in single precision, with dense matrices only.
    """

    unit: MPO
    core_bond: int
    fixed: Sequence[Tensor] | None
    engine_name: str
    single: bool = False

    @cached_property
    def dense(self) -> Tensor:
        """M as a matrix, in the working precision."""
        matrix = self.unit.to_padded_dense().contiguous()
        return matrix.to(torch.complex64 if matrix.is_complex() else torch.float32) if self.single else matrix

    @property
    def legs(self) -> list[int]:
        """Output times input leg of each site."""
        return [o * i for o, i in zip(self.unit.out_dims, self.unit.in_dims, strict=True)]

    def engine(self, sides: tuple[Ansatz, Ansatz]) -> Engine:
        """The engine for circuits of a geometry.

        Raises:
            InvalidInputError: if the engine asked for cannot hold the problem.
        """
        largest = max(self.unit.padded_shape)
        if self.engine_name == "dense" and largest > LARGEST_DENSE:
            raise InvalidInputError(
                f"The dense engine holds matrices of up to {LARGEST_DENSE} rows; this MPO is "
                f"{self.unit.padded_shape[0]} x {self.unit.padded_shape[1]}. Use engine='mpo' or 'auto'."
            )
        if self.single and (self.engine_name == "mpo" or largest > LARGEST_DENSE):
            raise InvalidInputError("Chains are worked on in double precision; leave dtype out, or use engine='dense'.")
        entries = self.unit.padded_shape[0] * self.unit.padded_shape[1]
        if self.engine_name == "dense" or self.single or (self.engine_name == "auto" and entries <= ALWAYS_DENSE):
            return self._dense_engine(sides)
        if self.engine_name == "mpo" or largest > LARGEST_DENSE:
            return self._mpo_engine(sides)
        try:
            chains = self._mpo_engine(sides)
        except InvalidInputError:  # its wires are not the legs of M, for example
            return self._dense_engine(sides)
        inner = chains.inner
        assert isinstance(inner, MPOEngine)
        gates = sum(1 for side in sides for _ in side.gates())
        dense_seconds = gates * entries * SECONDS_A_GATE_AND_ENTRY * (1 if entries <= LARGEST_CACHED else 2.5)
        chain_seconds = gates * SECONDS_A_GATE + inner.boundary_entries * SECONDS_A_BOUNDARY_ENTRY
        faster = inner.exact and chain_seconds < dense_seconds
        engine: Engine = chains if faster else self._dense_engine(sides)
        if inner.exact:
            engine.plan += (
                f" (a sweep takes roughly {chain_seconds:.2g} s so, {dense_seconds:.2g} s with dense matrices)"
            )
        return engine

    def _core_shapes(self) -> list[tuple[int, int, int]]:
        if self.fixed is None:
            return core_shapes(self.legs, self.core_bond)
        return [(core.shape[0], core.shape[1], core.shape[2]) for core in self.fixed]

    def _dense_engine(self, sides: tuple[Ansatz, Ansatz]) -> Engine:
        dims = self.unit.out_dims, self.unit.in_dims
        return dense_engine(self.dense, *sides, *dims, self._core_shapes(), fixed_core=self.fixed is not None)

    def _mpo_engine(self, sides: tuple[Ansatz, Ansatz]) -> Unbatched:
        shapes = self._core_shapes()
        bond = max(shape[2] for shape in shapes)
        inner = MPOEngine(self.unit, *sides, fixed_core=self.fixed is not None, core_bond=bond)
        return Unbatched(inner, shapes)


def unit_mpo(mpo: MPO) -> tuple[MPO, Tensor]:
    """M of norm 1 in float64 or complex128, and the logarithm of its norm.

    Raises:
        InvalidInputError: if it is zero or not finite.
    """
    wide = mpo.detach().to(mpo_dtype(mpo))
    if not all(bool(torch.isfinite(core).all()) for core in wide.cores) or not bool(torch.isfinite(wide.log_scale)):
        raise InvalidInputError("This MPO is not finite: it has NaN or infinite entries. Check the layer's weights.")
    centered = wide.canonicalize(0)
    if not bool(centered.cores[0].any()):
        raise InvalidInputError("This MPO is zero: there is nothing to disentangle. Check the layer's weights.")
    return MPO(centered.cores, shape=mpo.shape), centered.log_scale  # without the scale, its center has norm 1


def fixed_core(mpo: MPO, core: str | MPO, core_bond: int) -> list[Tensor] | None:
    """The core of norm 1 as three-leg cores, or None for a joint core.

    Raises:
        InvalidInputError: if it is zero, not finite, or wider than M.
    """
    if core == "joint":
        return None
    if isinstance(core, MPO):
        try:
            unit, _ = unit_mpo(core)
        except InvalidInputError as error:
            raise InvalidInputError(str(error).replace("This MPO is", "The core is").split(":")[0] + ".") from None
        if unit.dtype.is_complex and not mpo.dtype.is_complex:
            raise InvalidInputError("The core is complex and M is real; give a real core, or a complex M.")
    else:
        unit, _ = unit_mpo(mpo.compress(max_bond=core_bond))
    cores = [c.reshape(c.shape[0], -1, c.shape[3]).to(mpo.device, mpo_dtype(mpo)) for c in unit.cores]
    return [core.contiguous() for core in cores]


def mpo_dtype(mpo: MPO) -> torch.dtype:
    """The precision in which an MPO is disentangled."""
    return torch.complex128 if mpo.dtype.is_complex else torch.float64


def as_pair(ansatz: Ansatz | tuple[Ansatz, Ansatz]) -> tuple[Ansatz, Ansatz]:
    """Geometry of the output and of the input circuit; one ansatz serves both.

    Raises:
        InvalidInputError: if it is neither an ansatz nor a pair.
    """
    pair = (ansatz, ansatz) if isinstance(ansatz, Ansatz) else ansatz
    if not isinstance(pair, tuple | list) or len(pair) != 2 or not all(isinstance(side, Ansatz) for side in pair):
        raise InvalidInputError("ansatz must be an Ansatz, or a pair (output side, input side).")
    return pair[0], pair[1]


def scaled_core(cores: Sequence[Tensor], log_scale: Tensor, dtype: torch.dtype) -> MPO:
    """A core in its final dtype; its scale spread over the cores, or kept beside them where they could not hold it."""
    core = MPO(cores, log_scale=log_scale)
    largest = torch.finfo(dtype).max
    if abs(float(log_scale)) / len(cores) < 0.5 * torch.log(torch.tensor(largest, dtype=torch.float64)):
        return core.balanced().to(dtype)
    return core.to(dtype)
