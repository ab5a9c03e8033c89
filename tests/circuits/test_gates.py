import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unbraid.circuits.gates import (
    FIXED_CNOTS,
    FIXED_GATES,
    GROUPS,
    cnot_cost,
    fixed_gate,
    from_generators,
    haar,
    num_generators,
    polar,
)
from unbraid.ground.errors import InvalidInputError

SEEDS = st.integers(0, 10_000)
BODIES = range(1, 7)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("body", BODIES)
def test_exponentials_are_in_their_group(group, body):
    d = 2**body
    parameters = torch.randn(3, num_generators(group, d), dtype=torch.float64, generator=seeded(body))
    gates = from_generators(parameters, group, d)
    assert gates.shape == (3, d, d)
    assert gates.is_complex() == (group == "u")
    assert (gates @ gates.mH - torch.eye(d)).abs().max() < 1e-12
    if group != "u":
        assert (torch.linalg.det(gates) - 1).abs().max() < 1e-10


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("d", [1, 2, 3, 4])
def test_exponential_is_that_of_the_generator_and_differentiable(group, d):
    count = num_generators(group, d)
    parameters = torch.randn(2, count, dtype=torch.float64, generator=seeded(d))
    for k, row in enumerate(parameters):
        t = torch.zeros(d, d, dtype=torch.complex128)
        below = d * (d - 1) // 2
        index = torch.tril_indices(d, d, -1)
        t[index[0], index[1]] = row[:below].to(torch.complex128)
        generator = t - t.mT
        if group == "u":
            s = torch.zeros(d, d, dtype=torch.complex128)
            s[index[0], index[1]] = 1j * row[below : 2 * below]
            generator = generator + s + s.mT + torch.diag(1j * row[2 * below :])
        expected = torch.linalg.matrix_exp(generator)
        assert torch.allclose(from_generators(parameters, group, d)[k].to(torch.complex128), expected)
    for start in (parameters, torch.zeros_like(parameters)):
        if count:
            assert torch.autograd.gradcheck(lambda p: from_generators(p, group, d), start.requires_grad_())


def test_parameter_counts_are_minimal():
    assert [num_generators("so", 2**k) for k in BODIES] == [1, 6, 28, 120, 496, 2016]
    assert [num_generators("u", 2**k) for k in (1, 2)] == [4, 16]
    p = torch.randn(1, 6, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda q: from_generators(q, "so", 4), p).reshape(16, 6)
    assert int(torch.linalg.matrix_rank(jacobian)) == 6


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("d", [1, 2, 3, 4, 8])
def test_haar_gates_are_in_their_group(group, d):
    gates = haar(group, d, 60, seeded(1))
    assert (gates @ gates.mH - torch.eye(d)).abs().max() < 1e-12
    determinants = torch.linalg.det(gates)
    if group == "so":
        assert (determinants - 1).abs().max() < 1e-12
    elif group == "o":
        assert {round(float(x)) for x in determinants} == {-1, 1}
    assert torch.equal(gates, haar(group, d, 60, seeded(1)))


def test_haar_moments_are_those_of_the_measure():
    gates = haar("so", 3, 20_000, seeded(0))
    assert gates.mean(0).abs().max() < 0.02
    assert ((gates**2).mean(0) - 1 / 3).abs().max() < 0.02


@settings(max_examples=40)
@given(seed=SEEDS, group=st.sampled_from(GROUPS), d=st.integers(1, 5), rank=st.integers(0, 5))
def test_polar_maximises_the_overlap(seed, group, d, rank):
    generator = seeded(seed)
    rank = min(rank, d)
    left, right = (torch.randn(d, rank, dtype=torch.float64, generator=generator) for _ in range(2))
    environment = left @ right.mT
    if seed % 2 or group == "u":
        environment = environment + 1j * torch.randn(d, d, dtype=torch.float64, generator=generator)
    best = polar(environment, group)
    assert best.is_complex() == (group == "u")
    assert (best @ best.mH - torch.eye(d)).abs().max() < 1e-12
    if group == "so":
        assert abs(float(torch.linalg.det(best)) - 1) < 1e-10

    def value(gates):
        return (environment.conj() * gates).sum((-2, -1)).real

    rivals = torch.cat([haar(group, d, 100, generator), best @ exponential_near(group, d, generator)])
    assert float(value(rivals).max()) <= float(value(best)) + 1e-10


def exponential_near(group, d, generator):
    return from_generators(
        0.05 * torch.randn(50, num_generators(group, d), dtype=torch.float64, generator=generator), group, d
    )


def test_polar_works_in_batches():
    environments = torch.randn(5, 4, 4, dtype=torch.float64, generator=seeded(0))
    one_by_one = torch.stack([polar(e, "so") for e in environments])
    assert torch.allclose(polar(environments, "so"), one_by_one)


@pytest.mark.parametrize("name", FIXED_GATES)
def test_fixed_gates_are_orthogonal_also_on_wires_of_several_qubits(name):
    body = 1 if len(FIXED_GATES[name]) == 2 else 2
    for dims in ((2,), (4,)) if body == 1 else ((2, 2), (4, 2), (2, 8)):
        gate = fixed_gate(name, dims)
        assert len(gate) == torch.tensor(dims).prod()
        assert torch.allclose(gate @ gate.mT, torch.eye(len(gate), dtype=torch.float64))


def test_fixed_gates_on_wider_wires_act_on_the_neighbouring_qubits():
    cnot = fixed_gate("cnot", (4, 4))  # qubits 0 1 | 2 3: from 1 to 2
    for index in range(16):
        flipped = index ^ 0b0010 if index & 0b0100 else index
        assert cnot[flipped, index] == 1
    assert torch.equal(fixed_gate("x", (4,)), torch.kron(fixed_gate("x", (2,)), torch.eye(2, dtype=torch.float64)))


@pytest.mark.parametrize("dims", [(1, 2), (3, 2), (2, 6)])
def test_fixed_gates_need_qubits(dims):
    with pytest.raises(InvalidInputError, match="needs wires of qubits"):
        fixed_gate("cnot", dims)


def test_cnot_costs():
    assert [cnot_cost("so", d) for d in (1, 2, 4, 8, 16, 32, 64)] == [0, 0, 2, 13, 60, 423, 1783]
    assert [cnot_cost("o", d, -1.0) for d in (8, 16)] == [cnot_cost("u", d) for d in (8, 16)] == [19, 95]
    assert [cnot_cost("o", d, 1.0) for d in (8, 16)] == [13, 60]
    assert cnot_cost("o", 4, -1.0) == 3
    assert cnot_cost("o", 4, 1.0) == 2
    assert cnot_cost("u", 4) == 3
    assert FIXED_CNOTS == {"cnot": 1, "cz": 1, "swap": 3, "h": 0, "x": 0, "z": 0}
    for d in (3, 6, 128):
        with pytest.raises(InvalidInputError, match="one to six qubits"):
            cnot_cost("so", d)


@pytest.mark.parametrize("parametrization", ["cayley", "givens"])
@pytest.mark.parametrize("d", [2, 3, 4, 8])
def test_other_parametrizations_are_rotations_that_agree_with_the_exponential_near_zero(parametrization, d):
    generator = torch.Generator().manual_seed(d)
    parameters = torch.randn(3, num_generators("so", d), dtype=torch.float64, generator=generator)
    gates = from_generators(parameters, "so", d, parametrization)
    torch.testing.assert_close(gates @ gates.mT, torch.eye(d, dtype=torch.float64).expand(3, d, d))
    torch.testing.assert_close(torch.linalg.det(gates), torch.ones(3, dtype=torch.float64))
    small = 1e-4 * parameters
    exact = from_generators(small, "so", d)
    assert torch.dist(from_generators(small, "so", d, parametrization), exact) < 1e-6 * d
    assert torch.autograd.gradcheck(lambda p: from_generators(p, "so", d, parametrization), parameters.requires_grad_())


def test_complex_gates_have_a_cayley_transform_and_no_plane_rotations():
    parameters = torch.randn(2, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gates = from_generators(parameters, "u", 4, "cayley")
    torch.testing.assert_close(gates @ gates.mH, torch.eye(4, dtype=torch.complex128).expand(2, 4, 4))
    with pytest.raises(InvalidInputError, match="real"):
        from_generators(parameters, "u", 4, "givens")
