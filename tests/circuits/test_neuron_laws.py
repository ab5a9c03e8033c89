"""Laws of natural neurons, beside the state vectors that they come from."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unbraid.circuits.neuron_laws import FULL
from unbraid.ground.errors import InvalidInputError
from unbraid.natural import RotationNeuron, WeakMeasurement, angle, back_action, observed, polarization

INPUTS = st.floats(-3, 3)
QUANTUMNESS = st.sampled_from([0.0, 0.1, 0.5, 1.0, 2.0])
COUPLING = st.floats(0.05, FULL)
LAW = st.sampled_from(["linear", "arcsine"])


def ry(theta):
    c, s = math.cos(theta / 2), math.sin(theta / 2)
    return torch.tensor([[c, -s], [s, c]], dtype=torch.float64)


def state_of(z, a, law):
    theta = float(angle(torch.tensor(z, dtype=torch.float64), a, law))
    return ry(theta)[:, 0]


def with_ancilla(qubit, g, ancilla):
    """Amplitudes (qubit, ancilla) behind RY(pi/2 - g) on the ancilla, if it is prepared, and CRY(2g)."""
    prepared = ry(FULL - g)[:, 0] if ancilla == "symmetric" else torch.tensor([1.0, 0.0], dtype=torch.float64)
    joint = torch.outer(qubit, prepared)
    return torch.stack([joint[0], ry(2 * g) @ joint[1]])


@given(z=INPUTS, a=QUANTUMNESS, law=LAW)
def test_the_mean_is_that_of_the_rotated_qubit(z, a, law):
    chances = state_of(z, a, law).square()
    assert float(polarization(torch.tensor(z, dtype=torch.float64), a, law)) == pytest.approx(
        float(chances[1] - chances[0]), abs=1e-9
    )


@given(z=INPUTS, a=QUANTUMNESS, law=LAW, g=COUPLING, ancilla=st.sampled_from(["symmetric", "asymmetric"]))
def test_the_mean_of_the_ancilla_is_that_of_the_coupled_qubits(z, a, law, g, ancilla):
    chances = with_ancilla(state_of(z, a, law), g, ancilla).square().sum(0)
    mean = observed(polarization(torch.tensor(z, dtype=torch.float64), a, law), g, ancilla)
    assert float(mean) == pytest.approx(float(chances[1] - chances[0]), abs=1e-9)


@given(z=INPUTS, a=st.sampled_from([0.3, 1.0, 2.0]), g=COUPLING, outcome=st.sampled_from([-1.0, 1.0]))
def test_back_action_is_that_of_the_measured_ancilla(z, a, g, outcome):
    qubit = state_of(z, a, "linear")
    m, x = qubit[1] ** 2 - qubit[0] ** 2, 2 * qubit[0] * qubit[1]
    after = with_ancilla(qubit, g, "symmetric")[:, int(outcome > 0)]
    if float(after.square().sum()) < 1e-6:
        return  # this outcome does not come
    after = after / torch.linalg.vector_norm(after)
    found = back_action(m, x, g, torch.tensor(outcome, dtype=torch.float64))
    assert float(found[0]) == pytest.approx(float(after[1] ** 2 - after[0] ** 2), abs=1e-6)
    assert float(found[1]) == pytest.approx(float(2 * after[0] * after[1]), abs=1e-6)


@given(z=INPUTS, a=QUANTUMNESS, law=LAW)
def test_the_angle_and_the_mean_tell_the_same(z, a, law):
    z = torch.tensor(z, dtype=torch.float64)
    assert float(-torch.cos(angle(z, a, law))) == pytest.approx(float(polarization(z, a, law)), abs=1e-9)


def test_without_superposition_it_is_the_sign_to_the_bit():
    z = torch.tensor([-2.0, -1e-30, -0.0, 0.0, 1e-30, 3.0])
    expected = torch.tensor([-1.0, -1.0, 1.0, 1.0, 1.0, 1.0])
    for neuron in (RotationNeuron(0), RotationNeuron(0.0, law="arcsine"), WeakMeasurement(FULL)):
        for _ in range(20):
            assert torch.equal(neuron(z), expected)
    for law in ("linear", "arcsine"):
        several = polarization(z.expand(2, -1), torch.tensor([[0.0], [2.0]]), law)
        assert torch.equal(several[0], expected)
        torch.testing.assert_close(several[1], polarization(z, 2.0, law))


def test_a_is_the_scale_of_inputs():
    z = torch.linspace(-2, 2, 41)
    torch.testing.assert_close(polarization(3 * z, 1.5), polarization(z, 0.5))


def test_slopes_are_finite_at_a_0_among_others():
    z = torch.linspace(-2, 2, 5, requires_grad=True)
    polarization(z.expand(2, -1), torch.tensor([[0.0], [1.0]])).sum().backward()
    assert bool(torch.isfinite(z.grad).all())


@pytest.mark.parametrize("a", [-0.1, 1e-46, math.inf, math.nan, "1", True, None])
def test_bad_quantumness_is_refused(a):
    with pytest.raises(InvalidInputError, match="0 \\(no superposition\\) or 1e-06"):
        RotationNeuron(a)


@pytest.mark.parametrize("g", [0, -1.0, 1.6, math.nan, "1", True])
def test_bad_couplings_are_refused(g):
    with pytest.raises(InvalidInputError, match="above 0 and at most pi/2"):
        WeakMeasurement(g)


def test_unknown_names_and_numbers_out_of_range_are_refused_by_the_laws():
    z = torch.zeros(2)
    for law in (polarization, angle):
        with pytest.raises(InvalidInputError, match="law must be one of"):
            law(z, 0.5, "cubic")
        with pytest.raises(InvalidInputError, match="quantumness a must be"):
            law(z, -0.5)
    with pytest.raises(InvalidInputError, match="ancilla must be one of"):
        observed(z, 0.5, "odd")
    for g in (0.0, 2.0):
        with pytest.raises(InvalidInputError, match="entangling angle g must be"):
            observed(z, g)
        with pytest.raises(InvalidInputError, match="entangling angle g must be"):
            back_action(z, z, g, torch.ones(2))
