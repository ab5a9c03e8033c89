import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qiskit.quantum_info import Operator

from unbraid.circuits.gates import haar
from unbraid.ground.errors import DidNotConvergeError, InvalidInputError
from unbraid.ground.random import stream
from unbraid.quantum.synthesis import orthogonal_circuit, so2_angle, so4_angles, synthesize_orthogonal
from unbraid.quantum.templates import SEARCH, Template

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


def generic(d, seed):
    return haar("so", d, 1, stream(seed, "gate", d))[0].numpy()


def synthesized(gate, **options):
    """The circuit, after checks of its matrix, of its gates and that CX join neighbours only."""
    circuit = synthesize_orthogonal(gate, **options)
    assert np.abs(Operator(circuit).data - gate).max() <= options.get("tolerance", 1e-10)
    assert set(circuit.count_ops()) <= {"ry", "cx", "z"}
    for item in circuit.data:
        if item.operation.name == "cx":
            control, target = (circuit.find_bit(qubit).index for qubit in item.qubits)
            assert abs(control - target) == 1
    return circuit


def cnots(gate, **options):
    return synthesized(gate, **options).count_ops().get("cx", 0)


def rotations(d, count, seed):
    """Permutations with signs, of determinant 1."""
    random = np.random.default_rng(seed)
    gates = np.stack([np.eye(d)[random.permutation(d)] * random.choice([-1.0, 1.0], d) for _ in range(count)])
    gates[:, 0] *= np.linalg.det(gates)[:, None]
    return gates


@pytest.mark.parametrize(("d", "count", "cost"), [(2, 20, 0), (4, 20, 2), (8, 30, 13), (16, 4, 60)])
def test_random_rotations_take_the_announced_cnots(d, count, cost):
    for seed in range(count):
        circuit = synthesized(generic(d, seed))
        assert circuit.count_ops().get("cx", 0) == cost
        assert set(circuit.count_ops()) <= {"ry", "cx"}


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.sampled_from([1.0, 1e-1, 1e-2, 1e-3, 1e-5, 1e-7, 1e-9, 1e-12]))
def test_rotations_near_the_identity_are_found(seed, distance):
    skew = np.random.default_rng(seed).normal(size=(8, 8)) * distance
    turn, _ = np.linalg.qr(np.eye(8) + skew - skew.T)
    assert cnots(turn * np.sign(np.diag(turn))) <= 14


@pytest.mark.parametrize(("d", "count"), [(8, 20), (16, 2)])
def test_signed_permutations_are_found(d, count):
    for gate in rotations(d, count, d):
        assert cnots(gate) <= {8: 13, 16: 60}[d]


def test_controlled_rotations_are_found():
    gate = np.eye(8)
    gate[4:, 4:] = generic(4, 1)
    assert cnots(gate) <= 13
    toffoli = np.eye(8)[[0, 1, 2, 3, 4, 5, 7, 6]] @ np.diag([1, 1, 1, 1, 1, 1, 1, -1])
    assert cnots(toffoli) <= 13


def test_products_cost_what_their_factors_cost():
    for d in (2, 4, 8, 16):
        assert synthesized(np.eye(d)).size() == 0
        assert synthesized(-np.eye(d)).size() == 1
    a, b, c = ry(0.3), generic(4, 2), generic(8, 3)
    assert cnots(np.kron(a, ry(1.1))) == 0
    assert cnots(np.kron(a, b)) == cnots(np.kron(b, a)) == 2
    assert cnots(np.kron(b, b)) == 4
    assert cnots(np.kron(c, a)) == 13
    assert synthesized(np.kron(np.diag([1.0, -1.0]), np.eye(4))).count_ops() == {"z": 1}


def test_few_cnots_and_layers_of_two_qubit_gates_stay_few():
    swap = np.eye(4)[[0, 2, 1, 3]]
    reversed_cx = swap @ CX @ swap
    assert [cnots(gate) for gate in (CX, reversed_cx, np.diag([1.0, 1, 1, -1]), swap)] == [1, 1, 1, 3]
    assert cnots(np.kron(np.eye(2), CX)) == 1
    first, second = np.kron(generic(4, 4), np.eye(2)), np.kron(np.eye(2), generic(4, 5))
    assert cnots(first @ second) == cnots(second @ first) == 4
    outer = np.kron(generic(4, 6), generic(4, 7))
    inner = np.kron(np.eye(2), np.kron(generic(4, 8), np.eye(2)))
    assert cnots(outer @ inner) == cnots(inner @ outer) == 6


def test_a_gate_has_one_circuit():
    gate = generic(8, 9)
    assert synthesize_orthogonal(gate) == synthesize_orthogonal(gate.copy())


def test_float32_gates_of_three_qubits_go_to_their_nearest_rotation():
    gate = generic(8, 10).astype(np.float32)
    found = Operator(synthesize_orthogonal(gate)).data
    assert np.abs(found - gate).max() < 5e-7
    rounded = np.kron(ry(0.4), generic(4, 11)).astype(np.float32)
    assert cnots(rounded, tolerance=1e-5) == 2
    assert cnots(generic(8, 12), tolerance=0.1) <= 13


def test_reflections_take_a_z_or_a_cnot_and_are_impossible_on_three_qubits():
    assert synthesized(np.diag([-1.0, 1.0])).count_ops()["z"] == 1
    assert cnots(generic(4, 12) @ CX) == 3
    for d in (8, 16):
        gate = generic(d, 13)
        gate[0] *= -1
        with pytest.raises(InvalidInputError, match="Ry, X, Z and CX has determinant 1; got -1"):
            synthesize_orthogonal(gate)
    # The factor on three wires is a reflection, which a fourth wire makes possible.
    toffoli = np.eye(8)[[0, 1, 2, 3, 4, 5, 7, 6]]
    assert cnots(np.kron(np.eye(2), toffoli)) == 60


@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        (np.eye(3), "one to four qubits"),
        (np.eye(32), "one to four qubits"),
        (np.ones((4, 2)), "one to four qubits"),
        (1.0, "one to four qubits"),
        (1j * np.eye(8), "complex"),
        (np.full((8, 8), np.nan), "finite"),
        (np.ones((8, 8)), "singular values"),
    ],
)
def test_other_matrices_are_not_synthesized(matrix, words):
    with pytest.raises(InvalidInputError, match=words):
        synthesize_orthogonal(matrix)


@pytest.mark.parametrize("tolerance", [0, -1e-3, 2, math.nan])
def test_a_tolerance_is_a_small_positive_number(tolerance):
    with pytest.raises(InvalidInputError, match="tolerance"):
        synthesize_orthogonal(np.eye(8), tolerance=tolerance)


def test_what_cannot_be_found_is_an_error(monkeypatch):
    monkeypatch.setitem(SEARCH, 3, (("01", 2),))
    with pytest.raises(DidNotConvergeError, match="larger tolerance"):
        synthesize_orthogonal(generic(8, 14))


@pytest.mark.parametrize("order", ["0", "01", "0110", "021"])
def test_the_derivatives_of_a_template_are_those_of_its_matrix(order):
    template = Template(4, order)
    angles = np.random.default_rng(0).uniform(-3, 3, template.num_angles)
    products = template.products(angles)
    np.testing.assert_allclose(Operator(template.circuit(angles)).data, products[-1], atol=1e-13)
    step = 1e-6
    for k in range(template.num_angles):
        moved = template.products(angles + step * np.eye(len(angles))[k])[-1]
        slope = template.difference(products[-1], moved) / step
        np.testing.assert_allclose(template.jacobian(products)[:, k], slope, atol=1e-5)
