"""NaturalMLP: its classical limit, its law by enumeration, and its gradients beside the exact one."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cosine_similarity, cross_entropy

from unbraid.circuits.neuron_laws import FULL, signs
from unbraid.ground.errors import InvalidInputError
from unbraid.natural import BinaryLinear, NaturalMLP, exact_loss, exact_probabilities, outcome_law, score_loss
from unbraid.nn import heal

SIZES = (4, 3, 3, 2)


def inputs(count=5, size=4, seed=0):
    return torch.randn(count, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def network(**options):
    return NaturalMLP(SIZES, **({"a": 0.8} | options)).double()


def sign_network(layers, x):
    first, *others = layers
    z = first(x)
    for layer in others:
        z = layer(signs(z))
    return z


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("options", [{}, {"g": FULL}, {"g": FULL, "ancilla": "asymmetric"}, {"law": "arcsine"}])
def test_the_classical_limit_is_the_sign_network_to_the_bit(options, binary):
    model = NaturalMLP((20, 16, 16, 5), a=0.0, binary=binary, seed=3, **options)
    x = inputs(50, 20).float()
    expected = sign_network(model.layers, x)
    assert torch.equal(model.each_shot(x, 3), expected.expand(3, -1, -1))
    assert torch.equal(model(x), expected.log_softmax(-1))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"law": "arcsine"},
        {"a": 0.0, "g": 0.7},
        {"g": 0.7},
        {"g": 0.7, "ancilla": "asymmetric"},
        {"binary": True},
        {"bits": 2},
    ],
)
def test_sampling_follows_the_law(options):
    """Chi-square of last-layer numbers over 30 seeds: the sum of 30 statistics is within 4 sigma of its mean."""
    sizes = (4, 2, 3, 2) if "bits" in options else SIZES
    model = NaturalMLP(sizes, **({"a": 0.8} | options)).double()
    x, shots, total, freedom = inputs(1), 4_000, 0.0, 0
    chance, z = outcome_law(model, x)
    keys, group = torch.unique(z[:, 0].detach().round(decimals=9), dim=0, return_inverse=True)
    expected = shots * torch.zeros(len(keys), dtype=torch.float64).index_add_(0, group, chance[:, 0].detach())
    for seed in range(30):
        model.neurons[0].generator.manual_seed(seed)
        found = model.each_shot(x, shots)[:, 0].detach().round(decimals=9)
        nearest = torch.cdist(found, keys).argmin(1)
        counts = torch.bincount(nearest, minlength=len(keys)).double()
        assert bool((counts[expected < 1e-9] == 0).all())
        common = expected >= 5
        rest = torch.stack([counts[~common].sum(), expected[~common].sum()])
        total += float(((counts - expected).square() / expected)[common].sum())
        freedom += int(common.sum()) - 1
        if rest[1] >= 5:
            total, freedom = total + float((rest[0] - rest[1]) ** 2 / rest[1]), freedom + 1
    assert abs(total - freedom) < 4 * math.sqrt(2 * freedom) + 1


def test_the_law_sums_to_one_and_many_shots_come_near_its_average():
    model, x = network(shots=20_000), inputs(3)
    chance, z = outcome_law(model, x)
    assert chance.shape == (2**6, 3)
    assert z.shape == (2**6, 3, 2)
    torch.testing.assert_close(chance.sum(0), torch.ones(3, dtype=torch.float64))
    exact = exact_probabilities(model, x)
    assert float((model(x).exp() - exact).detach().abs().max()) < 0.015
    logs = network(shots=7)(x)
    torch.testing.assert_close(logs.exp().sum(-1), torch.ones(3, dtype=torch.float64))


def test_rows_of_the_law_are_outcomes_in_order():
    model, x = NaturalMLP((4, 2, 2, 2), a=0.8).double(), inputs(1)
    _, z = outcome_law(model, x)
    last = model.layers[2]
    for row, pattern in enumerate([(-1, -1), (-1, 1), (1, -1), (1, 1)] * 4):
        torch.testing.assert_close(z[row, 0], last(torch.tensor(pattern, dtype=torch.float64)))


def gradient(model, loss):
    model.zero_grad()
    loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def test_gradients_beside_the_exact_one():
    x, y = inputs(6, seed=1), torch.arange(6) % 2
    cosines = {}
    for estimator in ("ste", "expected", "score"):
        model = network(estimator=estimator, seed=2)
        exact = gradient(model, exact_loss(model, x, y))
        if estimator == "score":
            rounds = [gradient(model, score_loss(model, x, y, shots=8)) for _ in range(4_000)]
        else:
            rounds = [gradient(model, cross_entropy(model.each_shot(x, 1)[0], y)) for _ in range(4_000)]
        cosines[estimator] = float(cosine_similarity(torch.stack(rounds).mean(0), exact, dim=0))
    assert cosines["score"] >= 0.99
    assert cosines["score"] > cosines["expected"] > 0.8
    assert cosines["ste"] > 0.2


def test_score_says_the_loss_and_needs_its_neurons():
    x, y = inputs(4), torch.arange(4) % 2
    model = network(estimator="score")
    found, exact = score_loss(model, x, y, shots=4_000).detach(), exact_loss(model, x, y).detach()
    assert float(found) == pytest.approx(float(exact), abs=0.02)
    with pytest.raises(InvalidInputError, match="needs estimator='score'"):
        score_loss(network(), x, y)
    with pytest.raises(InvalidInputError, match="2 or more"):
        score_loss(model, x, y, shots=1)


def test_seeds_copies_and_other_neurons():
    x = inputs(30)
    model, same, other = network(), network(), network(seed=1)
    assert torch.equal(model(x), same(x))
    assert not torch.equal(model(x), other(x))
    copied = copy.deepcopy(model)
    assert copied.generator is not model.generator
    assert all(neuron.generator is copied.generator for neuron in copied.neurons)
    assert torch.equal(copied(x), model(x))
    classical = model.with_neurons()
    assert torch.equal(classical(x), sign_network(model.layers, x).log_softmax(-1))
    assert model.neurons[0].a == 0.8
    mean = model.with_neurons(a=0.8, estimator="mean_field", shots=50)
    assert torch.equal(mean(x), mean(x))


def test_uncertainty_does_not_see_the_scale_of_weights():
    model, x = network(shots=4), inputs(40)
    scaled = copy.deepcopy(model).with_neurons(a=1.6, shots=4)
    with torch.no_grad():
        for layer in scaled.layers[:-1]:
            layer.weight *= 2
            layer.bias *= 2
    assert float(model.uncertainty(x)) == pytest.approx(float(scaled.uncertainty(x)))
    assert float(model.with_neurons().uncertainty(x)) == 0
    assert 0 < float(model.uncertainty(x)) < float(model.with_neurons(a=2.0).uncertainty(x)) < 1


def test_mean_field_is_the_network_of_means():
    model, x = network(estimator="mean_field", law="arcsine", a=1.0, shots=5), inputs()
    z = model.layers[0](x)
    for layer in model.layers[1:]:
        z = layer(nn.functional.hardtanh(z))
    torch.testing.assert_close(model(x), z.log_softmax(-1))


def test_binary_weights_are_signs_times_a_row_factor():
    layer = BinaryLinear(3, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.5, -1.5, 1.0], [-0.0, 0.2, -0.4]]))
    expected = torch.tensor([[1.0, -1.0, 1.0], [1.0, 1.0, -1.0]]) * torch.tensor([[1.0], [0.2]])
    torch.testing.assert_close(layer.binary(), expected)
    layer(torch.ones(1, 3))[0, 0].backward()
    assert layer.weight.grad[0].tolist() != [0, 0, 0]
    assert layer.weight.grad[1].tolist() == [0, 0, 0]


def test_it_learns_with_the_training_loop_of_all_networks():
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(4, 16, generator=generator)
    y = torch.arange(240) % 4
    x = centers[y] + 0.4 * torch.randn(240, 16, generator=generator)
    model = NaturalMLP((16, 24, 4), a=0.5, shots=4)
    history = heal(model, (x, y), (x, y), epochs=12, lr=1e-2, seed=0)
    assert history.validation_accuracy[-1] > 0.9


@pytest.mark.parametrize("sizes", [(4, 2), 5, "abc", (4, 0, 2), (4, 2.0, 2), (), None])
def test_bad_sizes_are_refused(sizes):
    with pytest.raises(InvalidInputError, match="sizes must be positive integers"):
        NaturalMLP(sizes)


def test_bad_shots_and_large_enumerations_are_refused():
    for shots in (0, -1, 1.5, True):
        with pytest.raises(InvalidInputError, match="shots must be a positive integer"):
            NaturalMLP(SIZES, shots=shots)
    with pytest.raises(InvalidInputError, match="at most 16 hidden qubits; got 20"):
        outcome_law(NaturalMLP((4, 10, 10, 2)), inputs().float())


def test_the_score_of_several_qubits_is_unbiased():
    model = NaturalMLP((4, 2, 2, 2), a=0.8, bits=2, estimator="score", seed=1).double()
    x, y = inputs(3), torch.tensor([0, 1, 0])
    exact = torch.autograd.grad(exact_loss(model, x, y), list(model.parameters()))
    found = torch.autograd.grad(score_loss(model, x, y, shots=20_000), list(model.parameters()))
    one, other = (torch.cat([part.flatten() for part in parts]) for parts in (exact, found))
    assert float(cosine_similarity(one, other, dim=0)) >= 0.99


def test_several_qubits_are_measured_themselves():
    with pytest.raises(InvalidInputError, match="give bits or g, not both; got 2"):
        NaturalMLP(SIZES, bits=2, g=0.5)
    with pytest.raises(InvalidInputError, match="at most 16 hidden qubits; got 18"):
        outcome_law(network(bits=3), inputs(1))


def test_other_neurons_have_the_law_of_the_first():
    model = NaturalMLP((4, 2, 2, 2), a=0.5, law="arcsine", bits=2, shots=7)
    other = model.with_neurons(a=1.0)
    assert (other.neurons[0].law, other.bits, other.shots) == ("arcsine", 2, 1)
    assert model.with_neurons(bits=1, g=0.5).bits == 1


def test_the_score_is_not_trained_by_the_loss_of_outputs():
    model = network(estimator="score")
    with pytest.raises(InvalidInputError, match=r"unbraid\.natural\.score_loss"):
        heal(model, (inputs(8), torch.arange(8) % 2), epochs=1, lr=0.1)
    model.eval()(inputs(2))
    heal(model, (inputs(8), torch.arange(8) % 2), epochs=1, lr=0.1, loss=lambda m, batch: score_loss(m, *batch))


def test_an_unknown_ancilla_is_refused_though_none_is_measured():
    with pytest.raises(InvalidInputError, match="ancilla must be one of"):
        NaturalMLP(SIZES, ancilla="bogus")


def test_what_does_not_fit_a_network_is_refused():
    model, x = network(estimator="score"), inputs()
    for call in (exact_loss, score_loss):
        for y, message in (
            (torch.zeros(5), "class numbers of shape"),
            (torch.zeros(4, dtype=torch.long), "class numbers of shape"),
            ([0] * 5, "got list"),
            (torch.full((5,), 2), "go from 0 to 1; y goes from 2 to 2"),
        ):
            with pytest.raises(InvalidInputError, match=message):
                call(model, x, y)
    for call in (outcome_law, exact_probabilities):
        with pytest.raises(InvalidInputError, match="needs a NaturalMLP; got Linear"):
            call(nn.Linear(4, 2), x)
        with pytest.raises(
            InvalidInputError, match=r"x must be a tensor of shape \(samples, 4\), not empty; got .*5, 3"
        ):
            call(model, x[:, :3])
    for shots in (1.5, True, 0):
        with pytest.raises(InvalidInputError, match="shots must be a positive integer"):
            score_loss(model, x, torch.zeros(5, dtype=torch.long), shots=shots)
