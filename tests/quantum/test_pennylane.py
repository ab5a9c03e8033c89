import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from qiskit import QuantumCircuit

from unbraid.circuits import Circuit, brickwall, parse_ansatz
from unbraid.ground.errors import InvalidInputError
from unbraid.quantum.pennylane import from_pennylane, to_pennylane

qml = pytest.importorskip("pennylane")


def tape_of(function, *arguments):
    with qml.queuing.AnnotatedQueue() as queue:
        function(*arguments)
    return qml.tape.QuantumScript.from_queue(queue)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(["2b+2b", "1b+cnot+2b", "o"]))
def test_matrices_are_the_same_there_and_back(seed, grammar):
    ansatz = brickwall(3, 2, gate="o") if grammar == "o" else parse_ansatz(grammar, 3)
    circuit = Circuit(ansatz, init="random", seed=seed, dtype=torch.float64)
    tape = tape_of(to_pennylane(circuit), [0, 1, 2])
    np.testing.assert_allclose(qml.matrix(tape, wire_order=[0, 1, 2]), circuit.matrix().detach(), atol=1e-10)
    torch.testing.assert_close(from_pennylane(tape).matrix(), circuit.matrix(), atol=1e-9, rtol=0)


def test_complex_gates_go_out_with_their_phase():
    circuit = Circuit(brickwall(2, 2, gate="u"), init="random", seed=1, dtype=torch.float64)
    tape = tape_of(to_pennylane(circuit))
    np.testing.assert_allclose(qml.matrix(tape, wire_order=[0, 1]), circuit.matrix().detach(), atol=1e-9)


def test_a_qnode_gives_the_state_with_its_sign():
    circuit = Circuit(brickwall(3, 2), init="random", seed=4, dtype=torch.float64)
    apply = to_pennylane(circuit)

    @qml.qnode(qml.device("default.qubit", wires=["a", "b", "c"]))
    def state():
        apply(["a", "b", "c"])
        return qml.state()

    np.testing.assert_allclose(state(), circuit.matrix().detach()[:, 0], atol=1e-10)


def test_what_cannot_be_converted_is_refused():
    qc = QuantumCircuit(1, 1)
    qc.measure(0, 0)
    with pytest.raises(InvalidInputError, match="Only gates"):
        to_pennylane(qc)
    circuit = Circuit(brickwall(2, 1))
    with pytest.raises(InvalidInputError, match="acts on 2 wires; got 3"):
        to_pennylane(circuit)([0, 1, 2])
    with pytest.raises(InvalidInputError, match="RZ on wires"):
        from_pennylane(tape_of(lambda: qml.RZ(0.3, 0)))
    with pytest.raises(InvalidInputError, match="global phase"):
        from_pennylane(tape_of(lambda: (qml.PauliX(0), qml.GlobalPhase(0.3))))
    with pytest.raises(InvalidInputError, match="nonlinearities"):
        to_pennylane(Circuit(parse_ansatz("2b | relu | 2b", 3)))
