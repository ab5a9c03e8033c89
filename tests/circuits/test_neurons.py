"""Natural neurons as activations: what they draw, and which gradients pass."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

from unbraid.ground.errors import InvalidInputError
from unbraid.natural import RotationNeuron, WeakMeasurement

Z = torch.tensor([-1.7, -0.6, -0.2, 0.0, 0.4, 0.9, 2.5], dtype=torch.float64)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    "neuron",
    [
        RotationNeuron(0.7, generator=generator()),
        RotationNeuron(1.5, law="arcsine", generator=generator()),
        WeakMeasurement(0.6, generator=generator()),
        WeakMeasurement(0.6, a=1.0, ancilla="asymmetric", generator=generator()),
        WeakMeasurement(0.6, a=1.0, readings=3, generator=generator()),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_outcomes_have_their_mean_and_their_values(neuron, training):
    count = 40_000
    found = neuron.train(training)(Z.expand(count, -1))
    assert set(found.unique().tolist()) <= {-1.0, -1 / 3, 1 / 3, 1.0}
    assert neuron.readings > 1 or set(found.abs().unique().tolist()) == {1.0}
    error = (found.mean(0) - neuron.mean(Z)).abs()
    assert bool((error <= 4.5 / math.sqrt(count)).all())


@pytest.mark.parametrize("law", ["linear", "arcsine"])
@pytest.mark.parametrize("bits", [2, 3])
def test_a_register_draws_levels_with_their_probabilities(bits, law):
    neuron = RotationNeuron(0.7, law=law, bits=bits, generator=generator())
    chance, levels = neuron.distribution(Z)
    torch.testing.assert_close(chance.sum(0), torch.ones_like(Z))
    count = 40_000
    found = neuron(Z.expand(count, -1))
    shares = (found - levels[:, None, None]).abs().lt(1e-9).double().mean(1)
    assert bool(((shares - chance).abs() <= 4.5 * (chance * (1 - chance) / count).sqrt() + 1e-9).all())
    torch.testing.assert_close(neuron.mean(Z), (chance * levels[:, None]).sum(0))


@pytest.mark.parametrize("bits", [1, 2, 3, 6])
def test_without_superposition_a_register_takes_the_nearest_level(bits):
    z = torch.linspace(-1.3, 1.3, 997, dtype=torch.float64)
    levels = torch.linspace(-1, 1, 2**bits, dtype=torch.float64)
    nearest = (z[:, None] - levels).abs().argmin(1)
    found = RotationNeuron(0.0, bits=bits)(z)
    torch.testing.assert_close(found, levels[nearest])
    assert not RotationNeuron(0.0, bits=bits).uncertainty(z).any()


def test_gradients_of_registers():
    value, slope = slopes(RotationNeuron(0.7, bits=2, generator=generator()))
    assert torch.equal(slope, 2 * (Z.abs() <= 1).double())
    neuron = RotationNeuron(0.7, bits=2, estimator="mean_field")
    assert torch.autograd.gradcheck(neuron, (Z.clone().requires_grad_(),))
    _, through = slopes(neuron)
    value, expected = slopes(RotationNeuron(0.7, bits=2, estimator="expected", generator=generator()))
    torch.testing.assert_close(expected, through)
    scored = RotationNeuron(0.7, bits=2, estimator="score", generator=generator())
    value, _ = slopes(scored)
    chance, levels = scored.distribution(Z)
    number = (value[None] - levels[:, None]).abs().argmin(0)
    torch.testing.assert_close(scored.log_probability.exp(), chance.gather(0, number[None])[0])


@pytest.mark.parametrize("bits", [0, 7, 1.5, True, "2"])
def test_bad_numbers_of_qubits_are_refused(bits):
    with pytest.raises(InvalidInputError, match="bits must be an integer from 1 to 6"):
        RotationNeuron(0.5, bits=bits)


def test_several_readings_ask_the_same_question():
    # the qubit is in an equal superposition; each reading alone says little, but they agree more than chance
    neuron = WeakMeasurement(0.5, a=1.0, readings=2, generator=generator())
    both = neuron(torch.zeros(40_000, dtype=torch.float64))
    agree = float((both.abs() == 1).double().mean())
    assert agree == pytest.approx((1 + math.sin(0.5) ** 2) / 2, abs=0.01)


def test_the_same_generator_gives_the_same_outcomes():
    first, again, other = (RotationNeuron(2.0, generator=generator(seed)) for seed in (0, 0, 1))
    z = torch.zeros(200)
    outcomes = [neuron(z) for neuron in (first, again, other)]
    assert torch.equal(outcomes[0], outcomes[1])
    assert not torch.equal(outcomes[0], outcomes[2])
    copied = copy.deepcopy(first)
    assert torch.equal(copied(z), first(z))  # the copy goes on from the same state


def slopes(neuron, z=Z):
    z = z.clone().requires_grad_()
    outcome = neuron(z)
    if outcome.requires_grad:
        (2 * outcome).sum().backward()
    return outcome.detach(), z.grad


def test_straight_through_passes_where_inputs_are_small():
    for neuron in (RotationNeuron(0.0), RotationNeuron(1.0), WeakMeasurement(0.5)):
        outcome, slope = slopes(neuron)
        assert set(outcome.abs().tolist()) == {1.0}
        assert torch.equal(slope, torch.where(Z.abs() <= 1, 2.0, 0.0).double())


@pytest.mark.parametrize("ancilla", ["symmetric", "asymmetric"])
def test_expected_passes_the_slope_of_the_mean_and_mean_field_the_mean(ancilla):
    options = {"a": 0.8, "ancilla": ancilla}
    z = Z.clone().requires_grad_()
    mean = WeakMeasurement(0.9, **options).mean(z)
    (expected,) = torch.autograd.grad(2 * mean.sum(), z)
    outcome, slope = slopes(WeakMeasurement(0.9, estimator="expected", **options))
    assert set(outcome.abs().tolist()) == {1.0}
    torch.testing.assert_close(slope, expected)
    passed, slope = slopes(WeakMeasurement(0.9, estimator="mean_field", **options))
    torch.testing.assert_close(passed, mean.detach())
    torch.testing.assert_close(slope, expected)


def test_score_keeps_the_log_probability():
    neuron = RotationNeuron(2.0, estimator="score", generator=generator())
    outcome, slope = slopes(neuron)
    assert slope is None
    torch.testing.assert_close(neuron.log_probability.exp(), ((1 + outcome * neuron.mean(Z)) / 2))


def test_they_are_activations_of_any_network():
    model = nn.Sequential(nn.Linear(4, 5), RotationNeuron(1.0, estimator="expected"), nn.Linear(5, 2)).double()
    model(torch.randn(3, 4, dtype=torch.float64)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert "a=1, law='linear', bits=1, estimator='expected'" in repr(model)
    assert list(model.state_dict()) == ["0.weight", "0.bias", "1._extra_state", "2.weight", "2.bias"]
    assert "readings=2" in repr(WeakMeasurement(0.5, readings=2))


@pytest.mark.parametrize("estimator", ["expected", "mean_field", "score"])
@pytest.mark.parametrize(
    "kind", [lambda e: RotationNeuron(0, estimator=e), lambda e: WeakMeasurement(0.5, estimator=e)]
)
def test_estimators_without_a_slope_are_refused(kind, estimator):
    with pytest.raises(InvalidInputError, match="a step at a = 0"):
        kind(estimator)


def test_unknown_names_and_numbers_are_refused():
    for make, message in (
        (lambda: RotationNeuron(1, law="square"), "law must be one of"),
        (lambda: RotationNeuron(1, estimator="best"), "estimator must be one of"),
        (lambda: WeakMeasurement(1.0, ancilla="both"), "ancilla must be one of"),
        (lambda: WeakMeasurement(1.0, readings=0), "readings must be a positive integer"),
        (lambda: WeakMeasurement(1.0, a=1, readings=2, estimator="score"), "goes with one reading"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            make()


def test_neurons_that_share_a_generator_still_do_as_copies():
    shared = generator()
    model = nn.Sequential(RotationNeuron(2.0, generator=shared), nn.Identity(), RotationNeuron(2.0, generator=shared))
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert copied[0].generator is copied[2].generator
        assert copied[0].generator is not shared
        z = torch.zeros(500)
        first, second = copied[0](z), copied[2](z)
        assert not torch.equal(first, second)
    again = copy.deepcopy(copied)
    assert torch.equal(copied[0](z), again[0](z))
    with pytest.raises(InvalidInputError, match=r"generator must be a torch\.Generator"):
        RotationNeuron(0.5, generator=5)


@pytest.mark.parametrize(
    "neuron", [RotationNeuron(0.0), RotationNeuron(0.5), WeakMeasurement(0.5), RotationNeuron(0.5, bits=2)]
)
def test_nan_stays_nan(neuron):
    assert neuron(torch.tensor([math.nan, 0.3])).isnan().tolist() == [True, False]


@pytest.mark.parametrize("ancilla", ["symmetric", "asymmetric"])
def test_several_readings_have_their_distribution(ancilla):
    neuron = WeakMeasurement(0.6, a=1.0, readings=3, ancilla=ancilla, generator=generator())
    chance, levels = neuron.distribution(Z)
    torch.testing.assert_close(chance.sum(0), torch.ones_like(Z))
    torch.testing.assert_close(torch.tensordot(levels, chance, 1), neuron.mean(Z))
    count = 40_000
    found = neuron(Z.expand(count, -1))
    shares = (found - levels[:, None, None]).abs().lt(1e-9).double().mean(1)
    assert bool(((shares - chance).abs() <= 4.5 * (chance * (1 - chance) / count).sqrt() + 1e-9).all())


@pytest.mark.parametrize("neuron", [RotationNeuron(0.5), WeakMeasurement(0.5, a=1.0)])
def test_neurons_under_transforms_of_functions(neuron):
    z = torch.linspace(-1, 1, 12).reshape(3, 4)
    found = torch.func.vmap(neuron, randomness="different")(z)
    assert found.shape == (3, 4)
    assert set(found.unique().tolist()) <= {-1.0, 1.0}
    slope = torch.func.grad(lambda z: neuron(z).sum())(z)
    assert torch.equal(slope, torch.ones_like(z))


def test_weights_of_a_network_with_other_activations_are_loaded():
    relu = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    generator = torch.Generator().manual_seed(7)
    measured = nn.Sequential(nn.Linear(3, 4), RotationNeuron(0.5, generator=generator), nn.Linear(4, 2))
    before = generator.get_state()
    measured.load_state_dict(relu.state_dict())
    assert torch.equal(measured[0].weight, relu[0].weight)
    assert torch.equal(generator.get_state(), before)
    with pytest.raises(RuntimeError, match=r"Missing key.*2\.bias"):
        measured.load_state_dict({name: value for name, value in relu.state_dict().items() if name != "2.bias"})
