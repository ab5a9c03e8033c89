import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qiskit import QuantumCircuit, transpile
from qiskit.circuit.library import UnitaryGate
from qiskit.providers.fake_provider import GenericBackendV2
from qiskit.quantum_info import Operator, random_unitary
from qiskit.transpiler import CouplingMap, PassManager
from qiskit.transpiler.passes import CheckMap, UnitarySynthesis
from qiskit.transpiler.passes.synthesis.plugin import unitary_synthesis_plugin_names

from unbraid.circuits.gates import haar
from unbraid.ground.random import stream


def gate(group, d, seed=0):
    return haar(group, d, 1, stream(seed, group, d))[0].numpy()


def circuit(matrix, qubits=None, n=None):
    size = len(matrix).bit_length() - 1
    qc = QuantumCircuit(n or size)
    qc.append(UnitaryGate(matrix), qubits or range(size))
    return qc


def real(qc, target=None, **options):
    return transpile(qc, target, **{"unitary_synthesis_method": "unbraid", "seed_transpiler": 0} | options)


def error(found, expected):
    """Largest error of an entry, the layout taken back."""
    return np.abs(Operator.from_circuit(found).data - Operator(expected).data).max()


def test_the_plugin_is_registered():
    assert "unbraid" in unitary_synthesis_plugin_names()


@pytest.mark.parametrize(("d", "cost"), [(2, 0), (4, 2), (8, 13), (16, 60)])
def test_rotations_become_ry_and_cx_with_their_phase(d, cost):
    for phase in (1, -1, 1j, np.exp(0.3j)):
        qc = circuit(phase * gate("so", d))
        found = real(qc, basis_gates=["ry", "cx"])
        assert found.count_ops().get("cx", 0) == cost
        assert set(found.count_ops()) <= {"ry", "cx"}
        assert np.abs(Operator(found).data - Operator(qc).data).max() < 1e-9


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.permutations(range(4)))
def test_gates_on_any_qubits_are_exact(seed, qubits):
    qc = circuit(gate("so", 8, seed), qubits[:3], 4)
    assert np.abs(Operator(real(qc, basis_gates=["ry", "cx"])).data - Operator(qc).data).max() < 1e-9


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_montreal_needs_no_swaps(level):
    provider = pytest.importorskip("qiskit_ibm_runtime.fake_provider")
    backend = provider.FakeMontrealV2()
    for d, cost in ((4, 2), (8, 13), (16, 60)):
        found = real(circuit(gate("so", d)), backend, optimization_level=level)
        assert found.count_ops()["cx"] == cost
        # Nothing was routed, so the qubits that are used make up the gate.
        places = found.layout.initial_index_layout(filter_ancillas=True)
        assert places == found.layout.final_index_layout()
        small = QuantumCircuit(len(places), global_phase=found.global_phase)
        for item in found.data:
            on = tuple(found.find_bit(qubit).index for qubit in item.qubits)
            assert backend.target.instruction_supported(item.operation.name, on)
            small.append(item.operation, [places.index(qubit) for qubit in on])
        assert np.abs(Operator(small).data - gate("so", d)).max() < 1e-9


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_circuits_of_many_gates_are_exact_on_a_line(level):
    qc = QuantumCircuit(5)
    for start, size in ((0, 3), (2, 3), (1, 4), (3, 2), (0, 1)):
        qc.append(UnitaryGate(gate("so", 2**size, start)), range(start, start + size))
    qc.append(UnitaryGate(gate("u", 4)), [4, 1])
    line = GenericBackendV2(5, ["rz", "sx", "x", "cx"], coupling_map=CouplingMap.from_line(5), seed=0)
    found = real(qc, line, optimization_level=level)
    assert error(found, qc) < 1e-9
    theirs = real(qc, line, optimization_level=level, unitary_synthesis_method="default")
    assert found.count_ops()["cx"] < theirs.count_ops()["cx"]


@pytest.mark.parametrize("level", [0, 2])
@pytest.mark.parametrize("name", ["ecr", "cz"])
def test_other_native_gates_are_used(name, level):
    backend = GenericBackendV2(3, ["rz", "sx", "x", name], coupling_map=[[0, 1], [1, 2]], seed=0)
    qc = circuit(gate("so", 8))
    found = real(qc, backend, optimization_level=level)
    assert found.count_ops()[name] == 13
    assert error(found, qc) < 1e-9


@pytest.mark.parametrize(
    ("matrix", "cost"),
    [
        (gate("u", 4), 3),
        (gate("u", 8), 19),
        (gate("so", 8) @ np.diag([-1.0, *[1.0] * 7]), 19),
        (gate("so", 32), 423),
    ],
)
def test_all_other_gates_are_left_to_qiskit(matrix, cost):
    qc = circuit(matrix)
    found = real(qc, basis_gates=["u", "cx"], optimization_level=1)
    assert found.count_ops()["cx"] <= cost
    assert np.abs(Operator(found).data - Operator(qc).data).max() < 1e-8


def test_reflections_on_two_qubits_take_three_cx():
    qc = circuit(gate("so", 4) @ np.diag([1.0, 1, 1, -1]))
    found = real(qc, basis_gates=["ry", "cx"])
    assert found.count_ops()["cx"] == 3
    assert np.abs(Operator(found).data - Operator(qc).data).max() < 1e-9


@pytest.mark.parametrize("qubits", [(0, 1, 2), (2, 0, 1), (1, 3, 2), (5, 3, 4, 2)])
def test_after_the_layout_the_order_is_a_line_of_the_device(qubits):
    line = CouplingMap.from_line(6)
    qc = circuit(gate("so", 2 ** len(qubits)), qubits, 6)
    check = CheckMap(line)
    manager = PassManager([UnitarySynthesis(["ry", "cx"], coupling_map=line, method="unbraid"), check])
    found = manager.run(qc)
    assert manager.property_set["is_swap_mapped"]
    assert np.abs(Operator(found).data - Operator(qc).data).max() < 1e-9


def test_gates_within_control_flow_are_synthesised():
    qc = QuantumCircuit(3, 1)
    qc.measure(0, 0)
    with qc.if_test((qc.clbits[0], 1)):
        qc.append(UnitaryGate(gate("so", 8)), [0, 1, 2])
    found = real(qc, basis_gates=["ry", "cx", "if_else", "measure"])
    assert found.data[-1].operation.blocks[0].count_ops()["cx"] == 13


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_without_a_basis_foreign_gates_stay_as_with_qiskit(level):
    reflection = np.diag([-1.0, *[1.0] * 7])
    for matrix in (reflection, random_unitary(8, seed=1).data):
        qc = QuantumCircuit(3)
        qc.unitary(matrix, [0, 1, 2])
        found = transpile(qc, unitary_synthesis_method="unbraid", optimization_level=level)
        assert found.count_ops() == transpile(qc, optimization_level=level).count_ops()
        assert Operator(found) == Operator(qc)
