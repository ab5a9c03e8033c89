"""Complete circuits for a sampler: a state preparation and what follows, transpiled once for all angles.

Preparations that differ in the angles of their rotations share one circuit with parameters; the angles travel as
values.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from qiskit import QuantumCircuit, transpile
from qiskit.circuit import ParameterVector
from qiskit.circuit.library import get_standard_gate_name_mapping

from unbraid.quantum.mitigation import folded

_LARGEST_CACHE = 20_000
_ROTATIONS = frozenset({"rx", "ry", "rz", "p", "u"})
_STANDARD = frozenset(get_standard_gate_name_mapping())


@dataclass(frozen=True, eq=False)
class Template:
    """A transpiled circuit with parameters.

    Attributes:
        circuit: ends in a measurement of all of the program's qubits.
        order: which angle each parameter of the circuit is.
        two_qubit_gates: of the circuit.
        measured: the physical qubit behind each classical bit.
        key: a hash of all that it was made from.
    """

    circuit: QuantumCircuit
    order: tuple[int, ...]
    two_qubit_gates: int
    measured: tuple[int, ...]
    key: str


@dataclass(frozen=True)
class Program:
    """A template with angles and shots.

    Attributes:
        template: shared by programs of one structure.
        values: of its parameters, in their order.
        shots: of this program.
    """

    template: Template
    values: tuple[float, ...]
    shots: int

    @property
    def pub(self) -> tuple[QuantumCircuit, list[float], int]:
        """As Qiskit's samplers take it."""
        return self.template.circuit, list(self.values), self.shots

    def key(self, salt: str) -> str:
        """A hash that names what is measured."""
        content = (self.template.key, [value.hex() for value in self.values], self.shots, salt)
        return hashlib.sha256(repr(content).encode()).hexdigest()


def with_noise(program: Program, factor: int, shots: int) -> Program:
    """The same program with each of its two-qubit gates repeated, and other shots."""
    if factor == 1:
        return replace(program, shots=shots)
    return Program(_folded(program.template, factor), program.values, shots)


@lru_cache(maxsize=4096)
def _folded(template: Template, factor: int) -> Template:
    return replace(
        template,
        circuit=folded(template.circuit, factor),
        two_qubit_gates=factor * template.two_qubit_gates,
        key=f"{template.key} x {factor}",
    )


class Compiler:
    """Transpiles each structure once.

    Args:
        backend: a ``BackendV2``, or None to translate to ``basis_gates`` only.
        optimization_level: of Qiskit's transpiler.
        seed: of Qiskit's transpiler.
        basis_gates: where there is no backend.
        one_layout: put all programs of a width on the qubits that the first one got, so that they can be calibrated.
    """

    def __init__(
        self,
        backend: Any,
        optimization_level: int,
        seed: int,
        basis_gates: Sequence[str],
        *,
        one_layout: bool = False,
    ) -> None:
        self.backend = backend
        self.optimization_level = optimization_level
        self.seed = seed
        self.basis_gates = tuple(basis_gates)
        self.one_layout = one_layout
        self._templates: dict[Hashable, Template] = {}
        self._layouts: dict[int, list[int]] = {}

    @property
    def largest(self) -> int:
        """Two-qubit gates of the largest template."""
        return max((template.two_qubit_gates for template in self._templates.values()), default=0)

    def program(self, preparation: QuantumCircuit, tail: QuantumCircuit, tail_key: Hashable, shots: int) -> Program:
        """A preparation followed by a tail that measures all its qubits; equal keys mean equal tails."""
        structure, angles = _structure(preparation)
        if structure is None:  # unknown gates: a template of its own
            return Program(self._template(preparation, tail, repr(preparation.data)), (), shots)
        key = (structure, tail_key)
        if key not in self._templates:
            if len(self._templates) >= _LARGEST_CACHE:
                self._templates.clear()
            parameters = ParameterVector("angle", len(angles))
            self._templates[key] = self._template(_with_angles(preparation, parameters), tail, repr(key))
        template = self._templates[key]
        return Program(template, tuple(angles[index] for index in template.order), shots)

    def bound(self, circuit: QuantumCircuit, key: Hashable, values: Sequence[float], shots: int) -> Program:
        """A whole circuit, whose parameters are of one vector; equal keys mean equal circuits."""
        if key not in self._templates:
            self._templates[key] = self._as_template(self.transpile(circuit), repr(key))
        template = self._templates[key]
        return Program(template, tuple(values[index] for index in template.order), shots)

    def placed(self, circuit: QuantumCircuit, shots: int) -> Program:
        """A circuit without parameters whose qubits are the physical ones."""
        ready = self.transpile(circuit, None if self.backend is None else range(circuit.num_qubits))
        return Program(self._as_template(ready, repr(circuit.data)), (), shots)

    def transpile(self, circuit: QuantumCircuit, initial_layout: Sequence[int] | None = None) -> QuantumCircuit:
        """``circuit`` for the backend, or in ``basis_gates`` where there is none."""
        settings: dict[str, Any] = {"optimization_level": self.optimization_level, "seed_transpiler": self.seed}
        if self.backend is None:
            return transpile(circuit, basis_gates=list(self.basis_gates), **settings)
        return transpile(circuit, backend=self.backend, initial_layout=initial_layout, **settings)

    def _template(self, preparation: QuantumCircuit, tail: QuantumCircuit, content: str) -> Template:
        whole = tail.copy_empty_like()
        whole.compose(preparation, whole.qubits, inplace=True)
        whole.compose(tail, inplace=True)
        circuit = self.transpile(whole, self._layouts.get(whole.num_qubits) if self.one_layout else None)
        if circuit.layout is not None:
            self._layouts.setdefault(whole.num_qubits, circuit.layout.initial_index_layout(filter_ancillas=True))
        return self._as_template(circuit, content)

    def _as_template(self, circuit: QuantumCircuit, content: str) -> Template:
        circuit.global_phase = 0  # counts do not see it, and it would carry parameters
        name = None if self.backend is None else getattr(self.backend, "name", repr(self.backend))
        places = [
            (step.operation.name, *(circuit.find_bit(qubit).index for qubit in step.qubits)) for step in circuit.data
        ]
        made_by = (name, self.optimization_level, self.seed, self.basis_gates, self.one_layout)
        return Template(
            circuit,
            # The transpiler may drop or reorder parameters.
            tuple(parameter.index for parameter in circuit.parameters),
            circuit.num_nonlocal_gates(),
            measured_qubits(circuit),
            hashlib.sha256(repr((made_by, content, measured_qubits(circuit), places)).encode()).hexdigest(),
        )


def measured_qubits(circuit: QuantumCircuit) -> tuple[int, ...]:
    """The qubit that each classical bit reads."""
    places = {
        circuit.find_bit(item.clbits[0]).index: circuit.find_bit(item.qubits[0]).index
        for item in circuit.data
        if item.operation.name == "measure"
    }
    return tuple(places[bit] for bit in sorted(places))


def _structure(preparation: QuantumCircuit) -> tuple[Hashable | None, list[float]]:
    """What a preparation is apart from the angles of its rotations, and these; None if it holds unknown gates."""
    places: list[Hashable] = []
    angles: list[float] = []
    for step in preparation.data:
        operation = step.operation
        if operation.name not in _STANDARD or preparation.parameters:
            return None, []
        fixed: tuple[float, ...] = ()
        if operation.name in _ROTATIONS:
            angles += [float(angle) for angle in operation.params]
        else:
            fixed = tuple(float(angle) for angle in operation.params)
        state = getattr(operation, "ctrl_state", None)
        places.append((operation.name, state, fixed, tuple(preparation.find_bit(qubit).index for qubit in step.qubits)))
    return (preparation.num_qubits, tuple(places)), angles


def _with_angles(preparation: QuantumCircuit, angles: Any) -> QuantumCircuit:
    template = preparation.copy_empty_like()
    cursor = 0
    for step in preparation.data:
        operation = step.operation
        if operation.name in _ROTATIONS:
            count = len(operation.params)
            operation = operation.to_mutable()
            operation.params = list(angles[cursor : cursor + count])
            cursor += count
        template.append(operation, step.qubits)
    return template
