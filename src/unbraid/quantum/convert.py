"""Circuits to and from Qiskit, OpenQASM 3 and QPY, and the one place of the index convention.

Here site 0 is the most significant digit of an index and the first wire of a gate the most significant digit of its
matrix. Qiskit counts from the least: **site k of n is qubit n - 1 - k**. A flat index of a state is then the same
number on both sides, so vectors and whole matrices pass unchanged; what is reversed is the list of qubits that a gate's
matrix acts on.

Global phases are kept right throughout: a sign in front of an activation matters to a network.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from qiskit import QuantumCircuit, qasm3, qpy
from qiskit.circuit import Barrier, Delay, Measure, ParameterExpression, Reset
from qiskit.circuit import Gate as QiskitGate
from qiskit.circuit.library import UnitaryGate
from qiskit.exceptions import QiskitError
from qiskit.quantum_info import Operator
from qiskit.synthesis import qs_decomposition
from torch import Tensor

from unbraid.circuits import Circuit
from unbraid.ground.errors import DidNotConvergeError, FileFormatError, InvalidInputError
from unbraid.ground.files import written_beside
from unbraid.quantum.synthesis import nearest_orthogonal, orthogonal_circuit, synthesize_orthogonal

# Gates of stdgates.inc with the same matrix, phase included, in Qiskit. "u" is not among them: conventions for
# the phase of U differ between tools.
QASM_GATES = frozenset(
    "x y z h s sdg t tdg rx ry rz p cx cy cz ch cp crx cry crz swap ccx cswap".split()  # noqa: SIM905
)
_FIXED_TO_QISKIT = {"cnot": "cx", "cz": "cz", "swap": "swap", "h": "h", "x": "x", "z": "z"}
_QISKIT_TO_FIXED = {theirs: ours for ours, theirs in _FIXED_TO_QISKIT.items()}

# Largest block of qubits whose matrix is formed when reading a circuit.
LARGEST_BLOCK = 6
# Far above the rounding of a synthesis, far below any angle that means something.
_REAL_TOLERANCE = 1e-9
_SMALLEST_PHASE = 1e-15


def qubit_of(site: int, n: int) -> int:
    """The Qiskit qubit of a site (one of ``n`` two-dimensional ones), and the site of a qubit."""
    if not 0 <= site < n:
        raise InvalidInputError(f"A site must be from 0 to {n - 1}; got {site}.")
    return n - 1 - site


def num_qubits(wire_dims: Sequence[int]) -> int:
    """Qubits of wires of the given dimensions: log2 of their product.

    Raises:
        InvalidInputError: if a dimension is not 1, 2, 4, 8, ...
    """
    return sum(len(sites) for sites in wire_sites(wire_dims))


def wire_sites(wire_dims: Sequence[int]) -> list[list[int]]:
    """The sites (of two dimensions each) that every wire is made of, most significant first.

    A wire of dimension 1 has none, one of dimension 2^m has m.

    Raises:
        InvalidInputError: if a dimension is not 1, 2, 4, 8, ...
    """
    sites: list[list[int]] = []
    count = 0
    for dim in wire_dims:
        if dim < 1 or dim & (dim - 1):
            raise InvalidInputError(
                f"Qubits need wires of dimension 1, 2, 4, 8, ...; got {tuple(wire_dims)}. Choose other legs for the "
                "layer, such as one qubit each."
            )
        m = dim.bit_length() - 1
        sites.append(list(range(count, count + m)))
        count += m
    return sites


def gate_qubits(sites: Sequence[int], n: int) -> list[int]:
    """Qubits in the order in which Qiskit reads the matrix of a gate on ``sites`` (first site most significant)."""
    return [qubit_of(site, n) for site in reversed(sites)]


def to_qiskit(circuit: Circuit) -> QuantumCircuit:
    """A linear circuit as gates of Qiskit, with the same matrix, its sign included.

    Wires of dimension 1 are dropped, wires of dimension 2^m become m qubits. Real gates on up to four qubits become Ry
    and CX (see :func:`~unbraid.quantum.synthesis.synthesize_orthogonal`); larger ones, and those of determinant -1 on
    three and four qubits, the quantum Shannon decomposition (u, rz, h, cx); complex ones u and cx.

    Args:
        circuit: without nonlinearities; trained values are copied.

    Returns:
        A circuit on log2(circuit.dimension) qubits, without measurements.

    Raises:
        InvalidInputError: if the circuit has nonlinearities, or a wire is not made of qubits.
    """
    if not circuit.is_linear:
        raise InvalidInputError(
            "A quantum circuit is linear; this one has nonlinearities between its segments. Convert each of "
            "circuit.segments() on its own, with circuit.joint_modules() between them."
        )
    sites = wire_sites(circuit.ansatz.wire_dims)
    n = sum(len(of_wire) for of_wire in sites)
    qc = QuantumCircuit(n)
    gates = list(circuit.ansatz.gates())
    matrices = [matrix.detach().cpu().numpy() for matrix in circuit.gate_matrices()]
    for step in circuit.schedule():
        assert isinstance(step, int)  # linear, checked above
        gate = gates[step]
        on = [sites[wire] for wire in gate.wires]
        if gate.is_trainable:
            _append(qc, matrices[step], [site for of_wire in on for site in of_wire])
        else:
            # On wires of several qubits a two-body gate stands between the neighbouring qubits (see fixed_gate).
            places = [on[0][0]] if len(on) == 1 else [on[0][-1], on[1][0]]
            getattr(qc, _FIXED_TO_QISKIT[gate.name])(*(qubit_of(site, n) for site in places))
    return qc


def _append(qc: QuantumCircuit, matrix: NDArray[Any], sites: Sequence[int]) -> None:
    exact = nearest_orthogonal(matrix, 2 ** len(sites))
    if not sites:
        qc.global_phase += float(np.angle(exact[0, 0]))
        return
    qc.compose(synthesize(exact), gate_qubits(sites, qc.num_qubits), inplace=True)


def synthesize(matrix: Any) -> QuantumCircuit:
    """One gate as a circuit of Ry, CX and Z (real, up to four qubits) or of u, rz, h and cx; phase included.

    Real gates on three and four qubits are of Ry and CX where the determinant is 1 and the search for angles converges.

    Args:
        matrix: shape (2^k, 2^k), k >= 1, orthogonal or unitary to within 1e-4.

    Returns:
        A circuit on k qubits; the most significant digit of the index is the last qubit.

    Raises:
        InvalidInputError: if the matrix is no gate on qubits.
    """
    gate = np.asarray(matrix)
    size = gate.shape[0] if gate.ndim else 0
    if size < 2 or size & (size - 1):
        raise InvalidInputError(f"A gate on qubits has 2, 4, 8, ... rows; got shape {gate.shape}.")
    if size <= 4 and not np.iscomplexobj(gate):
        return orthogonal_circuit(gate)
    exact = nearest_orthogonal(gate, size)
    if size <= 16 and not np.iscomplexobj(exact) and np.linalg.det(exact) > 0:
        with suppress(DidNotConvergeError):
            return _rotation(exact.tobytes(), size).copy()
    return UnitaryGate(exact, check_input=False).definition if size <= 4 else qs_decomposition(exact.astype(complex))


@lru_cache(maxsize=1024)  # the same circuit is counted, exported and run
def _rotation(data: bytes, size: int) -> QuantumCircuit:
    return synthesize_orthogonal(np.frombuffer(data).reshape(size, size))


def from_qiskit(qc: QuantumCircuit, *, dtype: torch.dtype | None = torch.float64) -> Circuit:
    """A real circuit of Qiskit as a :class:`~unbraid.Circuit` with the same matrix.

    cx, cz, swap, h, x and z become fixed gates. Any other instruction that is real up to a phase becomes one trainable
    gate. Instructions that are not (the u and rz of a transpiled circuit) are multiplied with their neighbours into
    blocks of up to six qubits until the product is real. The phases must leave a sign in the end; a minus goes into a
    gate.

    Args:
        qc: a circuit of gates, without measurements and unbound parameters. Barriers and identities are dropped.
        dtype: real dtype of the parameters; float64 by default, as Qiskit's numbers are. None is torch's default.

    Returns:
        A circuit on as many wires as ``qc`` has qubits; wire k is qubit n - 1 - k.

    Raises:
        InvalidInputError: if the circuit is not real, has an instruction that is no gate, or parameters without values.
    """
    n = qc.num_qubits
    if n == 0:
        raise InvalidInputError("A circuit needs at least one qubit; got a QuantumCircuit without any.")
    if qc.parameters:
        names = ", ".join(parameter.name for parameter in qc.parameters)
        raise InvalidInputError(f"The parameters {names} have no values. Bind them first: qc.assign_parameters(...).")
    blocks = _Blocks()
    blocks.read(qc, list(range(n)))
    gates, phase = blocks.finish()
    placed = [
        (
            gate if isinstance(gate, str) else torch.from_numpy(gate.copy()),
            tuple(qubit_of(qubit, n) for qubit in reversed(qubits)),
        )
        for gate, qubits in gates
    ]
    return Circuit.from_gates(n, _with_sign(placed, _sign(phase)), dtype=dtype)


def _with_sign(
    placed: list[tuple[Tensor | str, tuple[int, ...]]], sign: int
) -> list[tuple[Tensor | str, tuple[int, ...]]]:
    """Multiply a -1 into the first trainable gate (of even dimension, so its determinant stays), or add one."""
    if sign > 0:
        return placed
    for index, (gate, wires) in enumerate(placed):
        if isinstance(gate, Tensor):
            return [*placed[:index], (-gate, wires), *placed[index + 1 :]]
    return [*placed, (-torch.eye(2, dtype=torch.float64), (0,))]


def _sign(phase: float) -> int:
    turns = phase / math.pi
    if abs(turns - round(turns)) > _REAL_TOLERANCE:
        raise InvalidInputError(
            f"The circuit is real only up to a global phase of {phase:.6g}. Set qc.global_phase so that its matrix is "
            "real."
        )
    return -1 if round(turns) % 2 else 1


class _Blocks:
    """Real gates in their order, and complex instructions waiting until their product with others is real.

    A waiting block and a gate on other qubits commute, so the gate may pass it.
    """

    def __init__(self) -> None:
        self.gates: list[tuple[NDArray[np.float64] | str, list[int]]] = []  # qubits as Qiskit reads the matrix
        self.phase = 0.0
        self.waiting: list[tuple[str, NDArray[np.complex128], list[int]]] = []

    def read(self, qc: QuantumCircuit, qubits: list[int]) -> None:
        """Take in the circuit on these qubits; gates on more than a block's qubits through their definitions."""
        self.phase += float(qc.global_phase)
        for item in qc.data:
            operation = item.operation
            on = [qubits[qc.find_bit(bit).index] for bit in item.qubits]
            if operation.name in ("barrier", "id"):
                continue
            if not isinstance(operation, QiskitGate):
                raise InvalidInputError(
                    f"Only gates can be read; got {operation.name!r} on qubits {on}. Remove measurements with "
                    "qc.remove_final_measurements(), and anything else that is no gate."
                )
            if len(on) > LARGEST_BLOCK:
                if operation.definition is None:
                    raise InvalidInputError(f"The gate {operation.name!r} on {len(on)} qubits has no definition.")
                self.read(operation.definition, on)
            elif is_standard(operation) and operation.name in _QISKIT_TO_FIXED and not self._touches(on):
                # A control is Qiskit's first qubit and our first wire, while matrices are read in opposite orders.
                self.gates.append((_QISKIT_TO_FIXED[operation.name], on[::-1]))
            else:
                self.add(operation.name, _gate_matrix(operation), on)

    def add(self, name: str, matrix: NDArray[np.complex128], qubits: list[int]) -> None:
        touching = [block for block in self.waiting if set(block[2]) & set(qubits)]
        if touching:
            self.waiting = [block for block in self.waiting if not set(block[2]) & set(qubits)]
            name = touching[0][0]
            matrix, qubits = _product([*((part, on) for _, part, on in touching), (matrix, qubits)], name)
        real, phase = real_part(matrix)
        if real is None:
            self.waiting.append((name, matrix, qubits))
            return
        self.phase += phase
        if not touching or not _is_identity(real):
            self.gates.append((real, qubits))
        elif real[0, 0] < 0:
            self.phase += math.pi

    def finish(self) -> tuple[list[tuple[NDArray[np.float64] | str, list[int]]], float]:
        if self.waiting:
            name, _, qubits = self.waiting[0]
            raise InvalidInputError(_complex_message(name, qubits))
        return self.gates, self.phase

    def _touches(self, qubits: list[int]) -> bool:
        return any(set(block[2]) & set(qubits) for block in self.waiting)


def _complex_message(name: str, qubits: Sequence[int]) -> str:
    return (
        f"Only real circuits can be read; the instruction {name!r} on qubits {sorted(qubits)} is complex and its "
        f"product with the gates around it does not become real on {LARGEST_BLOCK} qubits or fewer."
    )


def _product(
    parts: list[tuple[NDArray[np.complex128], list[int]]], name: str
) -> tuple[NDArray[np.complex128], list[int]]:
    """Product of matrices on overlapping qubits, the first acting first."""
    union = sorted({qubit for _, qubits in parts for qubit in qubits})
    if len(union) > LARGEST_BLOCK:
        raise InvalidInputError(_complex_message(name, union))
    total = Operator(np.eye(2 ** len(union), dtype=complex))
    for matrix, qubits in parts:
        total = total.compose(Operator(matrix), qargs=[union.index(qubit) for qubit in qubits])
    return np.asarray(total.data), union


def real_part(matrix: NDArray[np.complex128]) -> tuple[NDArray[np.float64] | None, float]:
    """``matrix = exp(i phase) real`` with a phase in (-pi/2, pi/2], or (None, 0)."""
    largest = matrix.flat[int(np.argmax(np.abs(matrix)))]
    phase = float(np.angle(largest))
    if phase <= -math.pi / 2 + _REAL_TOLERANCE:
        phase += math.pi
    elif phase > math.pi / 2 + _REAL_TOLERANCE:
        phase -= math.pi
    turned = matrix * np.exp(-1j * phase)
    if np.abs(turned.imag).max() > _REAL_TOLERANCE:
        return None, 0.0
    return turned.real, phase


def _is_identity(matrix: NDArray[np.float64]) -> bool:
    return bool(np.abs(matrix * np.sign(matrix[0, 0]) - np.eye(len(matrix))).max() < _REAL_TOLERANCE)


def _gate_matrix(operation: QiskitGate) -> NDArray[np.complex128]:
    try:
        return np.asarray(Operator(operation).data)
    except (QiskitError, TypeError) as error:
        raise InvalidInputError(f"The gate {operation.name!r} has no matrix ({error}).") from error


def unrolled(qc: QuantumCircuit, keep: Callable[[QiskitGate], bool]) -> QuantumCircuit:
    """The same circuit with gates replaced by their definitions until ``keep`` holds for all of them; phases are kept.

    Unlike Qiskit's transpiler this neither optimises nor approximates. A ``u`` becomes p, ry, p, which equals it
    exactly. Measurements, resets, delays and barriers stay.

    Args:
        qc: any circuit without control flow.
        keep: tells which gates stay.

    Raises:
        InvalidInputError: if a gate has no definition, or the circuit has control flow.
    """
    out = qc.copy_empty_like()
    _unroll_into(out, qc, list(out.qubits), list(out.clbits), keep)
    return out


def is_standard(gate: QiskitGate) -> bool:
    """Whether this is one of Qiskit's standard gates, not another one of the same name."""
    return gate.base_class.__module__.startswith("qiskit.circuit.library.standard_gates.")


def _unroll_into(
    out: QuantumCircuit, qc: QuantumCircuit, qubits: list[Any], clbits: list[Any], keep: Callable[[QiskitGate], bool]
) -> None:
    for item in qc.data:
        operation = item.operation
        on = [qubits[qc.find_bit(bit).index] for bit in item.qubits]
        bits = [clbits[qc.find_bit(bit).index] for bit in item.clbits]
        is_gate = isinstance(operation, QiskitGate)
        if isinstance(operation, (Measure, Reset, Barrier, Delay)) or (is_gate and keep(operation)):
            out.append(operation, on, bits)
        elif is_gate and operation.name == "u" and is_standard(operation):
            theta, phi, lam = operation.params
            for name, angle in (("p", lam), ("ry", theta), ("p", phi)):
                if name == "ry" or angle != 0:
                    getattr(out, name)(angle, *on)
        elif getattr(operation, "definition", None) is None:
            raise InvalidInputError(f"The instruction {operation.name!r} cannot be written as simpler gates.")
        else:
            out.global_phase += operation.definition.global_phase
            _unroll_into(out, operation.definition, on, bits, keep)


def with_phase_as_gates(qc: QuantumCircuit) -> QuantumCircuit:
    """The same circuit with its global phase f written as gates on qubit 0: -1 as ry(2 pi), any other as p(2f) rz(-2f).

    Raises:
        InvalidInputError: if there is a phase but no qubit.
    """
    phase = qc.global_phase
    out = qc.copy_empty_like()
    out.global_phase = 0
    if not isinstance(phase, ParameterExpression) or not phase.parameters:
        phase = math.remainder(float(phase), 2 * math.pi)
    if isinstance(phase, ParameterExpression) or abs(phase) > _SMALLEST_PHASE:
        if not qc.num_qubits:
            raise InvalidInputError("A circuit without qubits cannot carry a global phase as gates.")
        # In front of the rest, where no measurement has happened yet.
        if not isinstance(phase, ParameterExpression) and abs(abs(phase) - math.pi) <= _SMALLEST_PHASE:
            out.ry(2 * math.pi, 0)
        else:
            out.p(2 * phase, 0)
            out.rz(-2 * phase, 0)
    for item in qc.data:
        out.append(item)
    return out


def to_qasm3(circuit: Circuit | QuantumCircuit) -> str:
    """OpenQASM 3 that reads back to the same matrix, global phase included.

    Only gates of ``stdgates.inc`` are used. Qiskit's exporter drops the global phase, so it is written as gates on one
    qubit; angles are written with all their digits.

    Args:
        circuit: ours, or Qiskit's (measurements and resets are kept).

    Raises:
        InvalidInputError: if the circuit cannot be converted, or has control flow.
    """
    qc = circuit if isinstance(circuit, QuantumCircuit) else to_qiskit(circuit)
    plain = unrolled(qc, lambda gate: is_standard(gate) and gate.name in QASM_GATES)
    # Constants such as pi/2 are written for anything within 1e-9 of them.
    return qasm3.dumps(with_phase_as_gates(plain), disable_constants=True)


def from_qasm3(text: str) -> QuantumCircuit:
    """Read OpenQASM 3.

    Raises:
        FileFormatError: if the text is no OpenQASM 3 that Qiskit reads.
    """
    try:
        return qasm3.loads(text)
    except Exception as error:  # the parser raises what its grammar and visitors happen to raise
        raise FileFormatError(f"This is no OpenQASM 3 that can be read: {error}") from error


def write_qpy(path: str | os.PathLike[str], circuits: QuantumCircuit | Sequence[QuantumCircuit]) -> None:
    """Write circuits as QPY, whole or not at all.

    Raises:
        OutputError: if the place cannot be written to.
    """
    with written_beside(path) as temporary, temporary.open("wb") as stream:
        qpy.dump(circuits, stream)


def read_qpy(path: str | os.PathLike[str]) -> list[QuantumCircuit]:
    """Read circuits from QPY.

    Raises:
        FileFormatError: if the file is missing, truncated, or no QPY.
    """
    try:
        with Path(path).open("rb") as stream:
            return list(qpy.load(stream))
    except OSError as error:
        raise FileFormatError(f"Cannot read {path}: {error.strerror or error}.") from error
    except Exception as error:  # a damaged file fails wherever it is damaged
        raise FileFormatError(f"{path} is no complete QPY file ({type(error).__name__}: {error}).") from error
