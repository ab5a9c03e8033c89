import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from qiskit import QuantumCircuit, transpile
from qiskit.circuit import Parameter
from qiskit.circuit.library import UnitaryGate
from qiskit.quantum_info import Operator, Statevector

from unbraid.circuits import Circuit, brickwall, parse_ansatz
from unbraid.circuits.gates import FIXED_GATES, haar
from unbraid.ground.errors import FileFormatError, InvalidInputError, OutputError
from unbraid.ground.random import stream
from unbraid.quantum.convert import (
    from_qasm3,
    from_qiskit,
    gate_qubits,
    num_qubits,
    qubit_of,
    read_qpy,
    to_qasm3,
    to_qiskit,
    unrolled,
    wire_sites,
    with_phase_as_gates,
    write_qpy,
)


def matrix(qc):
    return Operator(qc).data


def ours(circuit):
    return circuit.matrix().detach().numpy()


def random_circuit(n, bodies, names, seed, *, mirrored=False, group="o"):
    """Gates of the given numbers of wires and fixed gates, each on shuffled wires; not symmetric under any swap."""
    generator = stream(seed, "circuit")
    gates = []
    for body in bodies:
        wires = tuple(torch.randperm(n, generator=generator)[:body].tolist())
        gates.append((haar(group, 2**body, 1, generator)[0], wires))
    for name in names:
        body = len(FIXED_GATES[name]).bit_length() - 1
        gates.append((name, tuple(torch.randperm(n, generator=generator)[:body].tolist())))
    order = torch.randperm(len(gates), generator=generator).tolist()
    return Circuit.from_gates(n, [gates[k] for k in order], mirrored=mirrored, dtype=torch.float64)


CASES = [
    (2, [1, 2, 2], ["cnot", "h"], False, "o"),
    (3, [1, 2, 3], ["cnot", "cz", "x"], True, "o"),
    (4, [1, 2, 2, 3], ["swap", "cnot", "z", "h"], False, "o"),
    (5, [4, 2, 1], ["cnot", "cz"], True, "o"),
    (6, [1, 2, 2, 3], ["cnot", "swap", "h"], False, "o"),
    (3, [1, 2, 3], ["cnot"], False, "u"),
]


@pytest.mark.parametrize(("n", "bodies", "names", "mirrored", "group"), CASES)
def test_torch_and_qiskit_agree_and_circuits_come_back(n, bodies, names, mirrored, group):
    circuit = random_circuit(n, bodies, names, seed=n, mirrored=mirrored, group=group)
    expected = ours(circuit)
    assert np.abs(expected - expected.T).max() > 0.1  # a symmetric circuit would hide a transpose
    qc = to_qiskit(circuit)
    np.testing.assert_allclose(matrix(qc), expected, atol=1e-12)
    read = from_qasm3(to_qasm3(circuit))
    np.testing.assert_allclose(matrix(read), expected, atol=1e-12)
    if group == "o":
        np.testing.assert_allclose(ours(from_qiskit(qc)), expected, atol=1e-12)
        np.testing.assert_allclose(ours(from_qiskit(read)), expected, atol=1e-12)


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.booleans())
def test_small_circuits_agree_and_come_back(seed, mirrored):
    circuit = random_circuit(3, [1, 2, 2], ["cnot", "swap", "cz"], seed, mirrored=mirrored)
    expected = ours(circuit)
    qc = to_qiskit(circuit)
    np.testing.assert_allclose(matrix(qc), expected, atol=1e-12)
    np.testing.assert_allclose(matrix(from_qasm3(to_qasm3(qc))), expected, atol=1e-12)
    np.testing.assert_allclose(ours(Circuit.from_qiskit(qc)), expected, atol=1e-12)


def test_six_body_gates_are_exact():
    circuit = Circuit(brickwall(6, 1, body=6), init="random", seed=1, dtype=torch.float64)
    qc = to_qiskit(circuit)
    assert qc.count_ops()["cx"] == circuit.cnot_count
    np.testing.assert_allclose(matrix(qc), ours(circuit), atol=1e-11)


@pytest.mark.parametrize("mirrored", [False, True])
def test_states_have_the_same_index_on_both_sides(mirrored):
    circuit = Circuit(brickwall(4, 3), init="random", seed=2, mirrored=mirrored, dtype=torch.float64)
    x = torch.randn(16, dtype=torch.float64, generator=stream(1, "x"))
    x /= x.norm()
    found = Statevector(x.numpy()).evolve(to_qiskit(circuit)).data
    np.testing.assert_allclose(found, circuit(x).detach().numpy(), atol=1e-13)


def test_site_0_is_the_last_qubit():
    assert [qubit_of(site, 3) for site in range(3)] == [2, 1, 0]
    assert gate_qubits([0, 2], 3) == [0, 2]
    qc = to_qiskit(Circuit.from_gates(3, [("x", (0,))]))
    assert Statevector(qc).data.argmax() == 4
    with pytest.raises(InvalidInputError, match="0 to 2"):
        qubit_of(3, 3)


def test_wires_of_one_and_of_several_qubits():
    generator = stream(4, "gates")
    dims = (4, 1, 2, 4)
    assert num_qubits(dims) == 5
    assert wire_sites(dims) == [[0, 1], [], [2], [3, 4]]
    gates = [
        (haar("o", 8, 1, generator)[0], (2, 0)),
        ("cnot", (3, 0)),
        ("h", (3,)),
        (haar("o", 4, 1, generator)[0], (1, 3)),
        (-torch.eye(1), (1,)),
        ("cz", (0, 2)),
    ]
    circuit = Circuit.from_gates(dims, gates, dtype=torch.float64)
    np.testing.assert_allclose(matrix(to_qiskit(circuit)), ours(circuit), atol=1e-12)
    np.testing.assert_allclose(matrix(from_qasm3(to_qasm3(circuit))), ours(circuit), atol=1e-12)


def test_other_wires_and_nonlinear_circuits_are_refused():
    with pytest.raises(InvalidInputError, match="dimension 1, 2, 4, 8"):
        to_qiskit(Circuit(brickwall((2, 3), 1)))
    nonlinear = Circuit(parse_ansatz("2b | relu | 2b", 3))
    with pytest.raises(InvalidInputError, match=r"segments\(\)"):
        to_qiskit(nonlinear)
    assert [to_qiskit(segment).num_qubits for segment in nonlinear.segments()] == [3, 3]


@pytest.mark.parametrize(("group", "body"), [("so", 1), ("so", 2), ("so", 3), ("so", 4), ("o", 2), ("u", 2)])
def test_cnots_are_as_announced(group, body):
    circuit = Circuit(brickwall(4, 3, body=body, gate=group), init="random", seed=3)
    assert to_qiskit(circuit).count_ops().get("cx", 0) == circuit.cnot_count


def test_reflections_on_three_qubits_are_qiskits():
    circuit = Circuit(brickwall(3, 3, body=3, gate="o"), init="random", seed=3, dtype=torch.float64)
    qc = to_qiskit(circuit)
    # Of one real gate in four the quantum Shannon decomposition saves a CNOT.
    assert circuit.cnot_count - 3 <= qc.count_ops()["cx"] <= circuit.cnot_count
    assert "rz" in qc.count_ops()
    np.testing.assert_allclose(matrix(qc), ours(circuit), atol=1e-12)


def test_where_the_search_fails_qiskit_synthesises(monkeypatch):
    monkeypatch.setattr("unbraid.quantum.templates.SEARCH", {3: ()})
    circuit = Circuit(brickwall(3, 1, body=3), init="random", seed=4, dtype=torch.float64)
    qc = to_qiskit(circuit)
    assert qc.count_ops()["cx"] > 13
    np.testing.assert_allclose(matrix(qc), ours(circuit), atol=1e-12)


def test_searched_gates_go_through_both_formats(tmp_path):
    circuit = Circuit(brickwall(4, 2, body=3), init="random", seed=6, mirrored=True, dtype=torch.float64)
    qc = to_qiskit(circuit)
    assert set(qc.count_ops()) == {"ry", "cx"}
    np.testing.assert_allclose(matrix(from_qasm3(to_qasm3(qc))), ours(circuit), atol=1e-12)
    write_qpy(tmp_path / "circuit.qpy", qc)
    assert read_qpy(tmp_path / "circuit.qpy") == [qc]


def test_float32_circuits_convert():
    circuit = Circuit(brickwall(4, 3), init="random", seed=5, dtype=torch.float32)
    np.testing.assert_allclose(matrix(to_qiskit(circuit)), ours(circuit), atol=2e-6)


@pytest.mark.parametrize("phase", [math.pi, -math.pi, 0.3, -2.5, 1e-3, 3 * math.pi, math.pi / 2])
def test_qasm3_keeps_global_phases(phase):
    qc = QuantumCircuit(2, global_phase=phase)
    qc.cx(0, 1)
    text = to_qasm3(qc)
    assert "gphase" not in text
    np.testing.assert_allclose(matrix(from_qasm3(text)), matrix(qc), atol=1e-14)
    plain = with_phase_as_gates(qc)
    assert plain.global_phase == 0
    assert set(plain.count_ops()) == ({"ry", "cx"} if abs(math.sin(phase)) < 1e-12 else {"p", "rz", "cx"})


def test_qasm3_keeps_phases_within_boxes_and_tiny_angles():
    box = QuantumCircuit(2, global_phase=0.7)
    box.u(0.1, 0.2, 0.3, 0)
    box.cx(0, 1, ctrl_state=0)
    qc = QuantumCircuit(3)
    mistaken = box.to_gate()
    mistaken.name = "ry"
    qc.append(mistaken, [2, 0])
    qc.append(box.to_gate().control(1, annotated=False), [0, 1, 2])
    qc.ry(math.pi / 2 + 3e-10, 1)
    qc.ecr(1, 2)
    qc.append(UnitaryGate(haar("u", 4, 1, stream(2, "gate"))[0].numpy()), [1, 0])
    text = to_qasm3(qc)
    np.testing.assert_allclose(matrix(from_qasm3(text)), matrix(qc), atol=1e-12)
    assert str(math.pi / 2 + 3e-10) in text
    assert "gate " not in text


def test_qasm3_keeps_measurements_and_parameters():
    angle = Parameter("angle")
    qc = QuantumCircuit(2, 2, global_phase=math.pi)
    qc.ry(2 * angle, 0)
    qc.measure([0, 1], [1, 0])
    read = from_qasm3(to_qasm3(qc))
    assert read.count_ops()["measure"] == 2
    bound = read.assign_parameters([0.3]).remove_final_measurements(inplace=False)
    expected = QuantumCircuit(2, global_phase=math.pi)
    expected.ry(0.6, 0)
    np.testing.assert_allclose(matrix(bound), matrix(expected), atol=1e-14)


def test_what_qasm3_cannot_hold_is_refused():
    with pytest.raises(InvalidInputError, match="without qubits"):
        to_qasm3(QuantumCircuit(global_phase=1.0))
    loop = QuantumCircuit(1)
    with loop.for_loop(range(2)):
        loop.x(0)
    with pytest.raises(InvalidInputError, match="for_loop"):
        to_qasm3(loop)
    with pytest.raises(FileFormatError, match="OpenQASM 3"):
        from_qasm3("OPENQASM 3.0; nonsense q[0]")


def test_unrolling_keeps_what_it_is_told():
    qc = QuantumCircuit(3)
    qc.ccx(0, 1, 2)
    qc.h(0)
    assert unrolled(qc, lambda gate: True).count_ops() == qc.count_ops()
    parts = unrolled(qc, lambda gate: gate.name in ("cx", "p", "ry"))
    assert set(parts.count_ops()) == {"cx", "p", "ry"}
    np.testing.assert_allclose(matrix(parts), matrix(qc), atol=1e-14)


def test_fixed_gates_stay_fixed_and_others_become_trainable():
    qc = QuantumCircuit(3)
    qc.h(0)
    qc.cx(2, 0)
    qc.ry(0.3, 1)
    qc.barrier()
    qc.cz(0, 1)
    qc.swap(1, 2)
    qc.id(0)
    qc.cry(0.4, 0, 2)
    circuit = Circuit.from_qiskit(qc)
    assert [gate.name for gate in circuit.ansatz.gates()] == ["h", "cnot", "so", "cz", "swap", "so"]
    assert [gate.wires for gate in circuit.ansatz.gates()] == [(2,), (0, 2), (1,), (2, 1), (1, 0), (0, 2)]
    assert circuit.num_parameters == 1 + 6
    np.testing.assert_allclose(ours(circuit), matrix(qc), atol=1e-14)
    assert from_qiskit(qc, dtype=torch.float32).matrix().dtype == torch.float32


def test_a_gate_that_borrows_a_name_is_read_by_its_matrix():
    box = QuantumCircuit(1, name="h")
    box.ry(0.3, 0)
    qc = QuantumCircuit(1)
    qc.append(box.to_gate(), [0])
    np.testing.assert_allclose(ours(from_qiskit(qc)), matrix(qc), atol=1e-14)


def test_transpiled_circuits_are_read_back():
    circuit = random_circuit(4, [1, 2, 2, 3], ["cnot"], seed=8)
    qc = transpile(to_qiskit(circuit), basis_gates=["rz", "sx", "x", "cx"], optimization_level=1, seed_transpiler=0)
    assert "sx" in qc.count_ops()
    np.testing.assert_allclose(ours(from_qiskit(qc)), ours(circuit), atol=1e-10)


def test_wide_boxes_are_read_by_their_parts():
    box = QuantumCircuit(7, global_phase=math.pi)
    box.ry(0.3, 6)
    for qubit in range(6):
        box.cx(qubit, qubit + 1)
    qc = QuantumCircuit(7)
    qc.append(box.to_gate(), [3, 0, 1, 2, 6, 5, 4])
    found = from_qiskit(qc)
    assert found.num_parameters == 1
    np.testing.assert_allclose(ours(found), matrix(qc), atol=1e-13)


@pytest.mark.parametrize("gates", ["none", "fixed", "trainable"])
def test_a_leftover_minus_goes_into_a_gate(gates):
    qc = QuantumCircuit(2, global_phase=math.pi)
    if gates != "none":
        qc.cx(0, 1)
    if gates == "trainable":
        qc.ry(0.7, 0)
    circuit = from_qiskit(qc)
    np.testing.assert_allclose(ours(circuit), matrix(qc), atol=1e-14)
    assert circuit.num_parameters == 1


def test_phases_that_cancel_are_no_gates():
    qc = QuantumCircuit(2)
    qc.p(0.6, 0)
    qc.cx(0, 1)
    qc.p(-0.6, 0)
    qc.global_phase = 0
    np.testing.assert_allclose(ours(from_qiskit(qc)), matrix(qc), atol=1e-14)
    phase = QuantumCircuit(1, global_phase=-0.3)
    phase.p(0.6, 0)
    phase.rz(-0.6, 0)
    assert list(from_qiskit(phase).ansatz.gates()) == []


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda qc: qc.measure(0, 0), "measure"),
        (lambda qc: qc.reset(0), "reset"),
        (lambda qc: qc.s(0), "complex"),
        (lambda qc: qc.ry(Parameter("angle"), 0), "angle"),
        (lambda qc: setattr(qc, "global_phase", 0.2), "global phase"),
    ],
)
def test_circuits_that_are_not_real_gates_are_refused(build, words):
    qc = QuantumCircuit(2, 1)
    qc.cx(0, 1)
    build(qc)
    with pytest.raises(InvalidInputError, match=words):
        from_qiskit(qc)


def test_wide_complex_circuits_are_refused():
    qc = QuantumCircuit(8)
    for qubit in range(8):
        qc.rx(0.1 + 0.1 * qubit, qubit)
    for qubit in range(7):
        qc.rzz(0.3, qubit, qubit + 1)
    with pytest.raises(InvalidInputError, match="6 qubits or fewer"):
        from_qiskit(qc)
    with pytest.raises(InvalidInputError, match="at least one qubit"):
        from_qiskit(QuantumCircuit())


def test_qpy_holds_circuits_whole_or_not_at_all(tmp_path):
    circuits = [to_qiskit(Circuit(brickwall(3, 2), init="random", seed=seed, dtype=torch.float64)) for seed in (0, 1)]
    circuits[1].global_phase += math.pi
    path = tmp_path / "circuits.qpy"
    write_qpy(path, circuits)
    assert read_qpy(path) == circuits
    write_qpy(path, circuits[1])
    assert read_qpy(path) == circuits[1:]
    with pytest.raises(Exception, match="object"):
        write_qpy(path, [circuits[0], object()])
    assert read_qpy(path) == circuits[1:]
    assert [file.name for file in tmp_path.iterdir()] == ["circuits.qpy"]
    with pytest.raises(OutputError):
        write_qpy(tmp_path / "missing" / "circuits.qpy", circuits)


def test_damaged_qpy_is_refused(tmp_path):
    path = tmp_path / "circuits.qpy"
    write_qpy(path, to_qiskit(Circuit(brickwall(2, 1))))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(FileFormatError, match="no complete QPY"):
        read_qpy(path)
    path.write_bytes(b"something else")
    with pytest.raises(FileFormatError, match="no complete QPY"):
        read_qpy(path)
    with pytest.raises(FileFormatError, match="Cannot read"):
        read_qpy(tmp_path / "missing.qpy")
