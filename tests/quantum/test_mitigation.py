"""Zero-noise extrapolation: folding changes nothing without noise, and buys accuracy with it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from qiskit import QuantumCircuit
from qiskit.quantum_info import Operator

from unbraid.circuits import Circuit, brickwall
from unbraid.ground.errors import InvalidInputError
from unbraid.quantum.encode import encode
from unbraid.quantum.mitigation import Learned, Polynomial, folded
from unbraid.quantum.readout import read_out
from unbraid.quantum.samplers import AerExecutor
from unbraid.quantum.signs import settings_of, with_hadamards


def circuit(seed=3):
    return Circuit(brickwall(3, 2), init="random", seed=seed, dtype=torch.float64)


def units(count, seed=0):
    x = torch.randn(count, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x / x.norm(dim=1, keepdim=True)


def noisy(strength=0.02):
    noise = pytest.importorskip("qiskit_aer.noise")
    model = noise.NoiseModel()
    model.add_all_qubit_quantum_error(noise.depolarizing_error(strength, 2), "cx")
    return model


@pytest.mark.parametrize("factor", [1, 3, 5])
def test_folding_keeps_the_unitary_and_repeats_two_qubit_gates(factor):
    qc = QuantumCircuit(3)
    qc.ry(0.3, 0)
    qc.cx(0, 1)
    qc.cz(1, 2)
    qc.ry(0.5, 2)
    found = folded(qc, factor)
    assert Operator(found) == Operator(qc)
    assert found.num_nonlocal_gates() == 2 * factor
    assert found.count_ops()["ry"] == 2


def test_gates_that_are_not_their_own_inverse_are_refused():
    qc = QuantumCircuit(2)
    qc.rzz(0.3, 0, 1)
    with pytest.raises(InvalidInputError, match="own inverse"):
        folded(qc, 3)


@given(st.lists(st.floats(-2, 2), min_size=1, max_size=3), st.integers(1, 4))
def test_the_polynomial_is_exact_for_polynomials(coefficients, more):
    factors = [1 + 2 * k for k in range(len(coefficients) + more - 1)]
    values = np.array([[np.polyval([*coefficients[::-1]], factor)] for factor in factors])[:, None]
    assert Polynomial()(values, factors)[0, 0] == pytest.approx(coefficients[0], abs=1e-6)


def test_extrapolation_without_noise_changes_nothing_but_the_shot_noise():
    run = AerExecutor(noise_factors=(1, 3))
    execution = run.run(circuit(), units(3), 200_000)
    assert (execution.circuits, execution.shots) == (6, 600_000)
    exact = circuit()(units(3)).detach() ** 2
    torch.testing.assert_close(execution.counts / 200_000, exact, atol=1e-2, rtol=0)
    torch.testing.assert_close(execution.counts.sum(dim=1), torch.full((3,), 2e5, dtype=torch.float64))


@pytest.mark.parametrize("hidden", [None, (), (8, 8)])
def test_extrapolation_reduces_the_error_of_a_noisy_device(hidden):
    x = units(6)
    exact = circuit()(x).detach()
    plain = AerExecutor(noisy(), method="density_matrix")
    extrapolate = None if hidden is None else Learned(hidden)
    better = AerExecutor(noisy(), method="density_matrix", noise_factors=(1, 3), extrapolate=extrapolate)
    if extrapolate is not None:
        circuits = [with_hadamards(circuit(), setting) for setting in settings_of(3)]
        taught = better.learn(circuits, units(10, seed=1), 50_000)
        assert taught.circuits == 2 * 4 * 10
    squares = []
    for run in (plain, better):
        execution = run.run(circuit(), encode(x, "mps", layers=1), 400_000)
        squares.append(float((execution.counts / 400_000 - exact**2).square().sum(dim=1).mean()))
    assert squares[1] < squares[0] / (2 if hidden else 4)  # a network has more to learn
    read = read_out(circuit(), x, readout="signs", shots=400_000, executor=better, encoding="mps")
    assert float((read.vectors - exact).norm(dim=1).mean()) < (0.06 if hidden else 0.03)


def test_wrong_uses_are_refused():
    for factors in ((), (2, 1), (3,), (1, 1), (1, -3), "1", (1, 2.0), (True, 3)):
        with pytest.raises(InvalidInputError, match="noise_factors"):
            AerExecutor(noise_factors=factors)
    with pytest.raises(InvalidInputError, match="needs noise factors"):
        AerExecutor(extrapolate=Polynomial())
    with pytest.raises(InvalidInputError, match="learnt nothing"):
        AerExecutor(noise_factors=(1, 3), extrapolate=Learned()).run(circuit(), units(1), 100)
    for run in (AerExecutor(), AerExecutor(noise_factors=(1, 3))):
        with pytest.raises(InvalidInputError, match="Learning needs"):
            run.learn(circuit(), units(1), 100)
