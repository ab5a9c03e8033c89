"""``Circuit``: an ansatz with parameters, as an ordinary ``nn.Module`` acting on the last axis of its input.

Legend: N is the product of the wire dimensions (2^n for n qubits), d the dimension of a gate, B a batch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from unbraid.circuits.ansatz import Ansatz, Gate
from unbraid.circuits.gates import (
    FIXED_CNOTS,
    PARAMETRIZATIONS,
    cnot_cost,
    fixed_gate,
    from_generators,
    haar,
    num_generators,
)
from unbraid.circuits.joints import make_joint
from unbraid.circuits.program import Program, compile_run
from unbraid.ground.errors import InvalidInputError, require_choice
from unbraid.ground.random import stream

INITS = ("random", "identity", "near_identity")
NEAR_IDENTITY_NOISE = 0.05
MAX_GATE_DIMENSION = 1024  # of trainable gates
_CACHED = 2**15  # entries that stay in a core's cache from step to step


class Circuit(nn.Module):
    """A quantum circuit of trainable and fixed gates, applied to vectors.

    All gates of one group and dimension live in one parameter and are exponentiated in one batch.

    Args:
        ansatz: the geometry.
        init: "random" (Haar), "identity", or "near_identity" (generators of standard deviation 0.05).
        seed: of the initial gates.
        mirrored: False runs layer 0 first (an output circuit), True runs layer 0 last (an input circuit).
        dtype: real dtype of the parameters; torch's default if None. Unitary gates act in the matching complex dtype.
        device: of the parameters.
        parametrization: how gates follow from their generators: "exp" | "cayley" | "givens", see
            :func:`unbraid.circuits.gates.from_generators`.

    Raises:
        InvalidInputError: if ``init`` or ``parametrization`` is unknown, complex gates are to be plane rotations, or a
            trainable gate is larger than 1,024 x 1,024.
    """

    def __init__(
        self,
        ansatz: Ansatz,
        init: str = "near_identity",
        seed: int = 0,
        *,
        mirrored: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        parametrization: str = "exp",
    ) -> None:
        super().__init__()
        require_choice(init, INITS, "init")
        require_choice(parametrization, PARAMETRIZATIONS, "parametrization")
        dtype = dtype or torch.get_default_dtype()
        self.ansatz = ansatz
        self.mirrored = mirrored
        self.parametrization = parametrization
        self._places: list[tuple[str, int]] = []  # a gate's parameter or buffer, and its row there
        members: dict[tuple[str, int], int] = {}
        for gate in ansatz.gates():
            dims = ansatz.gate_dims(gate)
            if gate.is_trainable:
                key = (gate.name, prod(dims))
                if key[1] > MAX_GATE_DIMENSION:
                    raise InvalidInputError(
                        f"A trainable gate on wires {gate.wires} of dimensions {dims} would be a matrix of {key[1]:,} "
                        f"rows; at most {MAX_GATE_DIMENSION:,} are built. Use gates on fewer wires, or smaller legs."
                    )
                self._places.append((f"{key[0]}{key[1]}", members.setdefault(key, 0)))
                members[key] += 1
            else:
                name = f"{gate.name}_{'x'.join(map(str, dims))}"
                if not hasattr(self, name):
                    self.register_buffer(name, fixed_gate(gate.name, dims).to(device, dtype), persistent=False)
                self._places.append((name, -1))
        self._programs: dict[tuple[int, ...], Program] = {}  # by the gates of a segment
        # Knows dtype and device where there is no gate.
        self.register_buffer("_anchor", torch.zeros((), dtype=dtype, device=device), persistent=False)
        self.generators = nn.ParameterDict()
        self._groups = members
        if parametrization == "givens" and self.is_complex:
            raise InvalidInputError("parametrization='givens' is for real gates; complex ones take 'exp' or 'cayley'.")
        generator = stream(seed, "circuit")
        for (group, d), count in members.items():
            size = num_generators(group, d)
            value = torch.zeros(count, size, dtype=torch.float64)
            base = torch.eye(d, dtype=torch.complex128 if group == "u" else torch.float64).repeat(count, 1, 1)
            if init == "near_identity":
                value = NEAR_IDENTITY_NOISE * torch.randn(count, size, dtype=torch.float64, generator=generator)
            elif init == "random":
                base = haar(group, d, count, generator)
            complex_dtype = torch.complex128 if dtype == torch.float64 else torch.complex64
            self.generators[f"{group}{d}"] = nn.Parameter(value.to(device, dtype))
            self.register_buffer(f"base_{group}{d}", base.to(device, complex_dtype if group == "u" else dtype))
        self.joints = nn.ModuleDict()
        for position, name in ansatz.joints:
            self.joints[str(position)] = make_joint(name, ansatz.dimension, dtype=dtype, device=device)
        self._segments = tuple(self._split())  # every forward pass asks for them

    @classmethod
    def from_gates(
        cls,
        wires: int | Sequence[int],
        gates: Sequence[tuple[Tensor | str, tuple[int, ...]]],
        *,
        mirrored: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Circuit:
        """A circuit from matrices (or names of fixed gates) and their wires, in the order in which they act.

        Args:
            wires: number of qubits, or the wire dimensions.
            gates: (matrix, wires): the first wire is the most significant digit of the matrix index.
            mirrored: how the layers are to be numbered; the order of action stays as given.
            dtype: real dtype of the parameters.
            device: of the parameters.

        Raises:
            InvalidInputError: if a matrix is not orthogonal (unitary) or does not fit its wires.
        """
        dims = (2,) * wires if isinstance(wires, int) else tuple(wires)
        placed, matrices = [], []
        for matrix, on in gates:
            if isinstance(matrix, str):
                placed.append(Gate(matrix, on))
                continue
            if any(not 0 <= wire < len(dims) for wire in on):
                raise InvalidInputError(f"The wires of a gate must be from 0 to {len(dims) - 1}; got {on}.")
            size = prod([dims[wire] for wire in on])
            exact = matrix.detach().cpu().to(torch.complex128 if matrix.is_complex() else torch.float64)
            if exact.shape != (size, size) or not torch.allclose(
                exact @ exact.mH, torch.eye(size, dtype=exact.dtype), atol=1e-5
            ):
                raise InvalidInputError(
                    f"A gate on wires {on} must be an orthogonal or unitary {size} x {size} matrix; got shape "
                    f"{tuple(exact.shape)}, or rows that are not orthonormal."
                )
            group = "u" if exact.is_complex() else "so" if float(torch.linalg.det(exact)) > 0 else "o"
            placed.append(Gate(group, on))
            matrices.append(exact)
        layers = tuple((gate,) for gate in placed)
        ansatz = Ansatz(dims, layers[::-1] if mirrored else layers)
        circuit = cls(ansatz, "identity", mirrored=mirrored, dtype=dtype, device=device)
        circuit.set_gates(matrices[::-1] if mirrored else matrices)
        return circuit

    @classmethod
    def from_qiskit(cls, circuit: Any) -> Circuit:
        """Read a real Qiskit circuit (its gates, and its global phase where that is a sign).

        Raises:
            InvalidInputError: if a gate is not real, or an instruction is no gate.
        """
        # The quantum room stands above this one and is loaded only when asked for.
        return importlib.import_module("unbraid.quantum.convert").from_qiskit(circuit)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Circuit:
        # Module.to(a real dtype) would cast the complex bases to it and lose their imaginary parts
        bases = {name: base for name, base in self._buffers.items() if base is not None and base.is_complex()}
        self._buffers.update(dict.fromkeys(bases))
        super()._apply(fn, recurse)
        for name, base in bases.items():
            self._buffers[name] = torch.view_as_complex(fn(torch.view_as_real(base)).contiguous())
        return self

    @property
    def dimension(self) -> int:
        """Length N of the vectors that the circuit acts on."""
        return self.ansatz.dimension

    @property
    def dtype(self) -> torch.dtype:
        """Real dtype of the parameters."""
        return self.get_buffer("_anchor").dtype

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return self.get_buffer("_anchor").device

    @property
    def is_linear(self) -> bool:
        """Whether nothing but gates stands in the circuit."""
        return not self.joints

    @property
    def is_complex(self) -> bool:
        """Whether some gate is complex."""
        return any(group == "u" for group, _ in self._groups)

    @property
    def num_parameters(self) -> int:
        """Trainable scalars: minimal generators of the gates, scale and shift of the batch norms."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def cnot_count(self) -> int:
        """CNOTs of the circuit as it is exported (see :func:`unbraid.circuits.gates.cnot_cost`)."""
        total = 0
        for gate, (name, row) in zip(self.ansatz.gates(), self._places, strict=True):
            if gate.is_trainable:
                base = self.get_buffer(f"base_{name}")[row]
                sign = 1.0 if gate.name == "u" else float(torch.linalg.det(base.double()))
                total += cnot_cost(gate.name, base.shape[0], sign)
            else:
                total += FIXED_CNOTS[gate.name]
        return total

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        side = "input" if self.mirrored else "output"
        return (
            f"wires={self.ansatz.wire_dims}, depth={self.ansatz.depth}, side={side!r}, parameters={self.num_parameters}"
        )

    def _repr_svg_(self) -> str:
        """What notebooks show."""
        from unbraid.circuits.drawing import draw_circuit  # which draws these

        return draw_circuit(self)

    def gate_matrices(self) -> list[Tensor]:
        """The matrices of all gates, layer by layer from layer 0, each of shape (d, d); differentiable."""
        rows = {name: gates.unbind(0) for name, gates in self._trainable().items()}
        return [rows[name][row] if row >= 0 else self.get_buffer(name) for name, row in self._places]

    def _trainable(self) -> dict[str, Tensor]:
        """The matrices of each group and dimension, shape (count, d, d)."""
        found = {}
        for group, d in self._groups:
            name = f"{group}{d}"
            base, generators = self.get_buffer(f"base_{name}"), self.generators[name]
            if generators.dtype in (torch.float16, torch.bfloat16):  # torch's matrix exponential fails there
                exact = from_generators(generators.float(), group, d, self.parametrization)
                found[name] = (base.to(exact.dtype) @ exact).to(base.dtype)
            else:
                found[name] = base @ from_generators(generators, group, d, self.parametrization)
        return found

    @torch.no_grad()
    def set_gates(self, matrices: Sequence[Tensor]) -> None:
        """Make these matrices the bases of the trainable gates and set the generators to zero.

        Args:
            matrices: one of shape (d, d) a trainable gate, layer by layer from layer 0.

        Raises:
            InvalidInputError: if their number or a shape is wrong, or one is complex and its gate real.
        """
        places = [place for place in self._places if place[1] >= 0]
        if len(matrices) != len(places):
            raise InvalidInputError(f"This circuit has {len(places)} trainable gates; got {len(matrices)} matrices.")
        for number, ((name, row), matrix) in enumerate(zip(places, matrices, strict=True)):
            base = self.get_buffer(f"base_{name}")[row]
            if matrix.shape != base.shape or (matrix.is_complex() and not base.is_complex()):
                raise InvalidInputError(
                    f"Gate {number} needs a {'complex' if base.is_complex() else 'real'} matrix of shape "
                    f"{tuple(base.shape)}; got {matrix.dtype} {tuple(matrix.shape)}."
                )
        for (name, row), matrix in zip(places, matrices, strict=True):
            self.get_buffer(f"base_{name}")[row] = matrix.to(self.get_buffer(f"base_{name}"))
        for parameter in self.generators.values():
            parameter.zero_()

    @torch.no_grad()
    def rebase(self) -> None:
        """Make the gates of now their bases and set the generators to zero; the circuit acts as before.

        A base near rounding error of its group is brought back to it.
        """
        for name, gates in self._trainable().items():
            self.get_buffer(f"base_{name}").copy_(_orthonormalized(gates))
            self.generators[name].zero_()

    def schedule(self) -> list[int | str]:
        """What acts in which order: indices into :meth:`gate_matrices` and keys of ``joints``."""
        steps: list[int | str] = []
        index = 0
        for position, layer in enumerate(self.ansatz.layers):
            if str(position) in self.joints:
                steps.append(str(position))
            steps += range(index, index + len(layer))
            index += len(layer)
        return steps[::-1] if self.mirrored else steps

    def segments(self) -> list[Circuit]:
        """The linear circuits between the joints, in the order in which they act; detached copies.

        A circuit without joints has one segment. ``joint_modules()`` gives what stands between them.
        """
        return [
            Circuit.from_gates(self.ansatz.wire_dims, part, dtype=self.dtype, device=self.device)
            for part in self.segment_gates()
        ]

    def segment_gates(self) -> list[list[tuple[Tensor | str, tuple[int, ...]]]]:
        """The gates of each segment in the order in which they act: (matrix or name of a fixed gate, wires).

        Matrices are differentiable.
        """
        gates = list(self.ansatz.gates())
        matrices = self.gate_matrices()
        parts: list[list[tuple[Tensor | str, tuple[int, ...]]]] = [[]]
        for step in self.schedule():
            if isinstance(step, str):
                parts.append([])
            else:
                gate = gates[step]
                parts[-1].append((matrices[step] if gate.is_trainable else gate.name, gate.wires))
        return parts

    def joint_modules(self) -> list[nn.Module]:
        """The modules between the segments, in the order in which they act."""
        return [self.joints[step] for step in self.schedule() if isinstance(step, str)]

    def forward(self, x: Tensor, *, prepare: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Apply the circuit to vectors.

        Args:
            x: shape (..., N).
            prepare: applied to what each linear segment with gates gets, shape (B, N) to (B, N): what a device makes of
                vectors that it prepares as states.

        Returns:
            Shape (..., N); complex if a gate is.

        Raises:
            InvalidInputError: if the last axis has another size.
        """
        if x.shape[-1] != self.dimension:
            raise InvalidInputError(
                f"This circuit acts on vectors of {self.dimension} entries; got shape {tuple(x.shape)}. "
                "Pad x with zeros."
            )
        parts = [(self._program(run) if run else None, joint) for run, joint in self._segments]
        pools = self._pools([program for program, _ in parts if program is not None])
        batch = x.shape[:-1]
        x = x.reshape(-1, self.dimension)
        for program, joint in parts:
            if program is not None:
                x = self._apply_run(x if prepare is None else prepare(x), program, pools)
            if joint is not None:
                x = self.joints[joint](x)
        return x.reshape(*batch, self.dimension)

    def adjoint(self, x: Tensor) -> Tensor:
        """Apply the inverse circuit to vectors; shape (..., N) in and out.

        Raises:
            InvalidInputError: if a nonlinearity stands in the circuit.
        """
        self._require_linear()
        program = self._program(self._whole())
        flat = x.reshape(-1, self.dimension)
        return self._run_in_parts(flat, program, self._pools([program]), adjoint=True).reshape(x.shape)

    def matrix(self) -> Tensor:
        """The N x N matrix of the circuit; differentiable.

        Raises:
            InvalidInputError: if a nonlinearity stands in the circuit.
        """
        self._require_linear()
        program = self._program(self._whole())
        return self._dense(program, self._pools([program]))

    def price(self, rows: int) -> float:
        """Nanoseconds of a linear circuit on so many vectors, forward and backward; roughly, only ratios matter."""
        program = self._program(self._whole())
        return min(program.price(rows), program.price_dense(rows))

    def _require_linear(self) -> None:
        if not self.is_linear:
            raise InvalidInputError("A circuit with nonlinearities between its segments has no matrix; see segments().")

    def _whole(self) -> tuple[int, ...]:
        return tuple(gate for run, _ in self._segments for gate in run)

    def _split(self) -> Iterator[tuple[tuple[int, ...], str | None]]:
        """The gates of each segment in the order in which they act, and the key of the joint behind it."""
        run: list[int] = []
        for step in self.schedule():
            if isinstance(step, int):
                run.append(step)
            else:
                yield tuple(run), step
                run = []
        yield tuple(run), None

    def _program(self, run: tuple[int, ...]) -> Program:
        if run not in self._programs:
            frozen = {
                number: self.get_buffer(name).detach().cpu()
                for number, (name, row) in enumerate(self._places)
                if row < 0
            }
            first: dict[str, int] = {}
            identities: dict[int, int] = {}
            for name, d, count in self._pooled():
                first[name] = identities.setdefault(d, 0)
                identities[d] += count
            sources = [
                (self.get_buffer(f"base_{name}" if row >= 0 else name).shape[-1], first[name] + max(row, 0))
                for name, row in self._places
            ]
            for d in self.ansatz.wire_dims:
                identities.setdefault(d, 0)
            self._programs[run] = compile_run(self.ansatz, run, sources, identities, frozen)
        return self._programs[run]

    def _pooled(self) -> list[tuple[str, int, int]]:
        """Name, dimension and number of the matrices of one kind, in the order in which they stand in their pool.

        The identity, for idle wires, stands behind them.
        """
        found = [(f"{group}{d}", d, count) for (group, d), count in self._groups.items()]
        frozen = dict.fromkeys(name for name, row in self._places if row < 0)
        return found + [(name, self.get_buffer(name).shape[-1], 1) for name in frozen]

    def _pools(self, programs: Sequence[Program]) -> dict[int, Tensor]:
        """All matrices that programs take, by dimension; frozen ones and the identity only where they are needed."""
        trainable = self._trainable()
        parts: dict[int, list[Tensor]] = {}
        for name in trainable:
            parts.setdefault(trainable[name].shape[-1], []).append(trainable[name])
        like = next(iter(trainable.values()), self.get_buffer("_anchor"))
        counts = {d: sum(map(len, matrices)) for d, matrices in parts.items()}
        for d in {d for program in programs for d, rows in program.used.items() if max(rows) >= counts.get(d, 0)}:
            frozen = [
                self.get_buffer(name)[None] for name, size, _ in self._pooled() if size == d and name not in trainable
            ]
            parts.setdefault(d, []).extend([*frozen, torch.eye(d, dtype=like.dtype, device=like.device)[None]])
        return {d: matrices[0] if len(matrices) == 1 else torch.cat(matrices) for d, matrices in parts.items()}

    def _dense(self, program: Program, pools: dict[int, Tensor]) -> Tensor:
        identity = torch.eye(self.dimension, dtype=self.dtype, device=self.device)
        return self._run_in_parts(identity, program, pools).mT

    def _apply_run(self, x: Tensor, program: Program, pools: dict[int, Tensor]) -> Tensor:
        """Step by step, or through the matrix where that is quicker."""
        if program.price_dense(len(x)) < program.price(len(x)):
            dense = self._dense(program, pools)
            dtype = torch.promote_types(x.dtype, dense.dtype)
            return x.to(dtype) @ dense.mT.to(dtype)
        return self._run_in_parts(x, program, pools)

    def _run_in_parts(self, x: Tensor, program: Program, pools: dict[int, Tensor], adjoint: bool = False) -> Tensor:
        """So many vectors at a time that they stay in the cache."""
        steps = program.bound(pools, x.device, adjoint)
        rows = max(1, torch.get_num_threads() * _CACHED // self.dimension) if x.device.type == "cpu" else len(x)
        parts = []
        for part in x.split(max(1, rows)):
            for step in steps:
                part = step(part)
            parts.append(part)
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _orthonormalized(gates: Tensor) -> Tensor:
    """One Newton step towards the polar factor: errors are squared."""
    wide = gates if gates.dtype not in (torch.float16, torch.bfloat16) else gates.float()
    return (1.5 * wide - 0.5 * wide @ wide.mH @ wide).to(gates.dtype)
