"""The network of Fig. 3: its geometry, and that training it works and can be repeated."""

import pytest
import torch

from unbraid.circuits.circuit import NEAR_IDENTITY_NOISE
from unbraid.ground.errors import InvalidInputError
from unbraid.nn import MPOLinear
from unbraid.recipes.datasets import load_dataset
from unbraid.recipes.recipe import Request
from unbraid.recipes.tnn import (
    STARTS,
    Training,
    describe_networks,
    load_images,
    mpo_from_result,
    run_training,
    tnn,
    train_tnn,
)


@pytest.mark.parametrize("start", STARTS)
def test_geometry(start):
    model = tnn(3, start)
    assert isinstance(model.hidden, MPOLinear)
    assert model.hidden.mpo.bond_dims == (2,) * 5
    assert model.hidden.mpo.shape == (64, 64)
    assert sum(parameter.numel() for parameter in model.parameters()) == 80 + 128 + 650
    assert model(torch.zeros(2, 64)).shape == (2, 10)
    torch.testing.assert_close(tnn(3, start).hidden.weight, model.hidden.weight)
    assert not torch.equal(tnn(4, start).hidden.weight, model.hidden.weight)


def test_the_start_near_the_identity_is_the_identity_and_noise():
    for core in tnn(3).hidden.mpo.cores:
        left, out, inward, right = core.shape
        noise = core.detach() - torch.einsum("lr,oi->loir", torch.eye(left, right), torch.eye(out, inward))
        assert 0 < noise.abs().max() < 5 * NEAR_IDENTITY_NOISE
    entropies = [float(tnn(3, start).hidden.mpo.detach().entropies().mean()) for start in STARTS]
    assert entropies[0] < 0.1 < entropies[1]


def test_unknown_starts_are_refused():
    with pytest.raises(InvalidInputError, match="near_identity"):
        tnn(0, "positive")


def test_training_learns_and_repeats():
    data = load_dataset("digits")
    first = train_tnn(data, 1, training=Training(epochs=4, lr=3e-2))
    again = train_tnn(data, 1, training=Training(epochs=4, lr=3e-2))
    assert first.accuracy > 0.6
    assert first.accuracy == again.accuracy
    assert first.mpo.dtype == torch.float64
    torch.testing.assert_close(first.mpo.to_dense(), again.mpo.to_dense(), rtol=0, atol=0)


def test_results_go_through_json(mnist_dir, monkeypatch):
    monkeypatch.setattr("unbraid.recipes.tnn.MNIST_TRAINING", Training(epochs=1))
    request = Request("table1", None, 1, mnist_dir)
    results = [run_training(request, 0, start) for start in STARTS]
    for result in results:
        mpo = mpo_from_result(result)
        assert mpo.bond_dims == (2,) * 5
        assert mpo.entropies().tolist() == pytest.approx(result["entropies"])
        assert 0 <= result["accuracy"] <= 1
    assert results[0]["bare_overlap"] > results[1]["bare_overlap"] > 0
    text = describe_networks(request, results)
    assert "Near the identity" in text
    assert "Gaussian" in text


def test_images_are_mnist_only_if_its_folder_is_given(mnist_dir):
    assert load_images(Request("table1", None, 1), 0).name == "digits"
    assert load_images(Request("table1", None, 1, mnist_dir), 0).name == "mnist"
