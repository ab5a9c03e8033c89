"""Many natural networks as one: the same as one by one."""

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy

from unbraid.circuits.neuron_laws import FULL
from unbraid.ground.errors import InvalidInputError
from unbraid.natural import NaturalMLP, NaturalStack, RotationNeuron, errors_together, train_together
from unbraid.nn import heal

SIZES = (12, 8, 6, 4)


def data(count=60):
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(4, 12, generator=generator, dtype=torch.float64)
    y = torch.arange(count) % 4
    return centers[y] + 0.5 * torch.randn(count, 12, generator=generator, dtype=torch.float64), y


def networks(settings=None, **options):
    settings = settings or [{"a": 0.0}, {"a": 0.5}, {"a": 1.0, "g": 0.7}, {"g": 1.0}, {"g": FULL}]
    return [NaturalMLP(SIZES, **each, **options, seed=seed).double() for seed in (0, 1) for each in settings]


def cross_entropy_of(network, batch):
    return cross_entropy(network(batch[0]), batch[1])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"shots": 3},
        {"binary": True},
        {"law": "arcsine"},
        {"ancilla": "asymmetric", "shots": 2},
        {"bits": 3, "shots": 2},
    ],
)
def test_a_stack_gives_what_its_networks_give(options):
    together = networks([{"a": 0.0}, {"a": 0.7}] if "bits" in options else None, **options)
    alone = copy.deepcopy(together)
    x, _ = data()
    for _ in range(2):  # generators go on alike
        torch.testing.assert_close(NaturalStack(together)(x), torch.stack([network(x) for network in alone]))


@pytest.mark.parametrize("estimator", ["ste", "expected", "mean_field"])
@pytest.mark.parametrize("options", [{}, {"shots": 2}, {"binary": True}, {"bits": 2}])
def test_training_together_is_training_one_by_one(estimator, options):
    settings = [{"a": 0.3}, {"a": 1.0}, {"a": 0.5} if "bits" in options else {"a": 0.5, "g": 0.9}]
    together = networks(settings, estimator=estimator, **options)
    alone = copy.deepcopy(together)
    run = {"epochs": 3, "lr": 1e-2, "batch_size": 16, "seed": 5, "scheduler": "cosine"}
    history = train_together(together, data(), **run)
    histories = [heal(network, data(), loss=cross_entropy_of, **run) for network in alone]
    for mine, theirs in zip(together, alone, strict=True):
        torch.testing.assert_close(mine.state_dict(), theirs.state_dict())
    assert history.train_loss == pytest.approx(
        [sum(losses) for losses in zip(*(h.train_loss for h in histories), strict=True)]
    )


@pytest.mark.parametrize("stacked", [False, True])
def test_an_interrupted_training_goes_on_with_the_same_outcomes(stacked, tmp_path):
    def train(nets, **more):
        run = {"epochs": 4, "lr": 1e-2, "batch_size": 16} | more
        if stacked:
            return train_together(nets, data(), **run)
        return heal(nets[0], data(), loss=cross_entropy_of, **run)

    whole, cut, again = (networks([{"a": 0.5}, {"a": 1.0}]) for _ in range(3))
    train(whole)
    train(cut, checkpoint_dir=tmp_path, callbacks=[lambda epoch, _: epoch < 2])
    train(again, checkpoint_dir=tmp_path)
    for mine, theirs in zip(again[: len(whole) if stacked else 1], whole, strict=False):
        assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), theirs.parameters(), strict=True))


def test_errors_are_shares_of_wrong_rows():
    together = networks()
    alone = copy.deepcopy(together)
    x, y = data()
    found = errors_together(together, x, y, shots=4)
    for network, error in zip(alone, found.tolist(), strict=True):
        network.shots = 4
        assert error == pytest.approx(float((network(x).argmax(-1) != y).double().mean()))


def test_what_does_not_go_together_is_refused():
    one = NaturalMLP(SIZES, a=1.0)
    for others, message in (
        ([], "one or more"),
        ([NaturalMLP((12, 8, 4), a=1.0)], "the same sizes"),
        ([NaturalMLP(SIZES, a=1.0, shots=2)], "the same shots"),
        ([NaturalMLP(SIZES, a=1.0, law="arcsine")], "the same law"),
        ([NaturalMLP(SIZES, a=1.0, estimator="expected")], "the same estimator"),
        ([NaturalMLP(SIZES, binary=True)], "the same binary"),
        ([NaturalMLP(SIZES, a=1.0, bits=2)], "the same bits"),
        ([one], "a generator of its own"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            NaturalStack([one, *others] if others else [])
    with pytest.raises(InvalidInputError, match="SOAP would mix the networks"):
        train_together([one], data(), epochs=1, lr=0.1, optimizer="soap")
    with pytest.raises(InvalidInputError, match="score_loss network by network"):
        NaturalStack([NaturalMLP(SIZES, a=1.0, estimator="score")])


def test_networks_whose_layers_differ_or_are_frozen_are_refused():
    mixed, frozen, double = (NaturalMLP(SIZES, a=1.0, seed=seed) for seed in range(3))
    mixed.neurons[1] = RotationNeuron(0.5)
    frozen.layers[0].requires_grad_(False)
    for others, message in (([mixed], "alike in all"), ([frozen], "frozen"), ([double.double()], "the same precision")):
        with pytest.raises(InvalidInputError, match=message):
            NaturalStack([NaturalMLP(SIZES, a=1.0), *others])


def test_errors_are_of_rows_with_labels_and_of_shots():
    (one,) = networks([{"a": 0.5}])[:1]
    x, y = data()
    assert errors_together([one], x.float(), y).shape == (1,)
    for arguments, options, message in (
        ((x, y[:-1]), {}, "class numbers of shape"),
        ((x[:0], y[:0]), {}, "not empty"),
        ((x[:, :5], y), {}, r"\(samples, 12\)"),
        ((x, y), {"shots": 0}, "shots must be a positive integer"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            errors_together([one], *arguments, **options)
    with pytest.raises(InvalidInputError, match="Give a list of NaturalMLP"):
        errors_together(one, x, y)


def test_options_and_data_that_a_stack_does_not_take_are_refused():
    x, y = torch.randn(6, 5), torch.arange(6) % 3
    networks = [NaturalMLP((5, 4, 3), seed=seed) for seed in range(2)]
    for data, options, message in (
        ((x, y), {"loss": lambda model, batch: model(batch[0]).sum()}, "takes no loss and no teacher"),
        ((x, y), {"teacher": networks[0]}, "takes no loss and no teacher"),
        ((x, y), {"weight_decay": -1.0}, "weight_decay must be a number, at least 0"),
        ((x, y.float()), {}, "y must be class numbers"),
        ([x], {}, r"train_data of a stack must be \(x, y\)"),
        ((x, y), {"validation_data": (x[:, :2], y)}, "x must be a tensor"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            train_together(networks, data, epochs=1, lr=1e-2, **options)
