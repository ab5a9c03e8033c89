"""Generic gates: what Qiskit's synthesis and ours make of them."""

import pytest
import torch
from qiskit.quantum_info import Operator

from unbraid.circuits.gates import haar
from unbraid.ground.errors import InvalidInputError
from unbraid.ground.random import stream
from unbraid.quantum.unitaries import OWN_QUBITS, generic_gate_circuit, generic_gate_counts


@pytest.mark.parametrize(
    ("qubits", "group", "by"), [(2, "u", "qiskit"), (3, "so", "qiskit"), (2, "so", "own"), (3, "so", "own")]
)
def test_circuits_are_the_gate(qubits, group, by):
    matrix = haar(group, 2**qubits, 1, stream(4, "generic gate", group, qubits))[0].to(torch.complex128)
    found = torch.tensor(Operator(generic_gate_circuit(qubits, group, by=by, seed=4)).data)
    assert abs(torch.trace(found.mH @ matrix)) == pytest.approx(2**qubits)


def test_counts_of_two_qubits():
    found = generic_gate_counts(2, "u", transpiler_seeds=(0, 1))
    assert set(found) == {"built", "level 1", "level 3"}
    assert [count["two_qubit"] for count in found["built"]] == [3]
    assert [count["two_qubit"] for count in found["level 3"]] == [3, 3]


@pytest.mark.parametrize(("qubits", "cnots"), [(2, 2), (3, 13), (4, 60)])
def test_counts_of_our_synthesis(qubits, cnots):
    found = generic_gate_counts(qubits, "so", by="own", levels=(1,))
    assert [count["two_qubit"] for count in (*found["built"], *found["level 1"])] == [cnots, cnots]  # no swaps


def test_three_qubits_are_near_the_paper():
    assert generic_gate_counts(3, "u", levels=())["built"][0]["two_qubit"] == pytest.approx(19, abs=1)


def test_what_our_synthesis_does_not_take():
    with pytest.raises(InvalidInputError, match="by='qiskit'"):
        generic_gate_circuit(2, "u", by="own")
    with pytest.raises(InvalidInputError, match="up to 4 qubits"):
        generic_gate_circuit(OWN_QUBITS + 1, "so", by="own")
