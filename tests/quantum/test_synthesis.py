import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from qiskit.quantum_info import Operator

from unbraid.circuits.gates import haar
from unbraid.ground.errors import InvalidInputError
from unbraid.ground.random import stream
from unbraid.quantum.synthesis import orthogonal_circuit, so2_angle, so4_angles

CX = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]], dtype=float)
angles = st.one_of(
    st.sampled_from([k * math.pi / 4 for k in range(-8, 9)]),
    st.floats(-2 * math.pi, 2 * math.pi),
    st.floats(-1e-7, 1e-7),
)


def ry(angle):
    c, s = math.cos(angle / 2), math.sin(angle / 2)
    return np.array([[c, -s], [s, c]])


def error(gate):
    return np.abs(Operator(orthogonal_circuit(gate)).data - gate).max()


def signed_permutations():
    for order in np.stack(np.meshgrid(*[range(4)] * 4), -1).reshape(-1, 4):
        if len(set(order)) == 4:
            for signs in np.stack(np.meshgrid(*[[-1.0, 1.0]] * 4), -1).reshape(-1, 4):
                yield np.eye(4)[order] * signs


@pytest.mark.parametrize("d", [2, 4])
@pytest.mark.parametrize("group", ["so", "o"])
def test_random_gates_are_exact_sign_included(group, d):
    gates = haar(group, d, 300, stream(0, group, d)).numpy()
    if group == "o":
        assert {round(np.linalg.det(gate)) for gate in gates} == {-1, 1}
    assert max(error(gate) for gate in gates) < 1e-13


def test_signed_permutations_are_exact_at_two_or_three_cnots():
    for gate in signed_permutations():
        circuit = orthogonal_circuit(gate)
        assert np.abs(Operator(circuit).data - gate).max() < 1e-13
        assert circuit.count_ops()["cx"] == (2 if np.linalg.det(gate) > 0 else 3)
        assert set(circuit.count_ops()) <= {"ry", "cx"}


@given(st.lists(angles, min_size=6, max_size=6))
def test_gates_of_degenerate_angles_are_exact(values):
    a, b, c, d, e, f = values
    gate = np.kron(ry(a), ry(b)) @ CX @ np.kron(ry(c), ry(d)) @ CX @ np.kron(ry(e), ry(f))
    assert error(gate) < 1e-13


@given(angles, angles)
def test_products_of_one_body_gates_are_exact(a, b):
    assert error(np.kron(ry(a), ry(b))) < 1e-13
    assert error(ry(a)) < 1e-14


def test_the_angles_are_those_of_the_documented_product():
    gate = haar("so", 4, 1, stream(3, "gate"))[0].numpy()
    t = so4_angles(gate)
    product = np.kron(ry(t[4]), ry(t[5])) @ CX @ np.kron(ry(t[2]), ry(t[3])) @ CX @ np.kron(ry(t[0]), ry(t[1]))
    np.testing.assert_allclose(product, gate, atol=1e-14)
    assert so2_angle(ry(1.25)) == pytest.approx(1.25, abs=1e-15)


def test_a_rotation_by_two_pi_stays_and_by_four_pi_goes():
    assert error(-np.eye(2)) < 1e-15
    assert orthogonal_circuit(-np.eye(2)).count_ops()["ry"] == 1
    assert orthogonal_circuit(np.eye(2)).size() == 0
    assert "ry" not in orthogonal_circuit(np.eye(4)).count_ops()
    assert error(-np.eye(4)) < 1e-15


def test_float32_gates_go_to_their_nearest_rotation():
    gate = haar("so", 4, 1, stream(5, "gate"))[0].float().numpy()
    found = Operator(orthogonal_circuit(gate)).data
    assert np.abs(found - gate).max() < 2e-7
    assert np.abs(found @ found.T.conj() - np.eye(4)).max() < 1e-14


@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        (np.eye(3), "2 x 2 or 4 x 4"),
        (np.eye(2) * 1.01, "singular values"),
        (1j * np.eye(2), "complex"),
        (np.full((2, 2), np.nan), "finite"),
    ],
)
def test_other_matrices_are_refused(matrix, words):
    with pytest.raises(InvalidInputError, match=words):
        orthogonal_circuit(matrix)


def test_reflections_have_no_angles():
    with pytest.raises(InvalidInputError, match="determinant"):
        so4_angles(CX)
    with pytest.raises(InvalidInputError, match="determinant"):
        so2_angle(np.diag([1.0, -1.0]))
