"""Noise in training is that of sampled circuits, and is gone afterwards."""

import copy

import pytest
import torch
from torch import nn

from unbraid.circuits import Circuit, parse_ansatz
from unbraid.ground.errors import InvalidInputError
from unbraid.nn import DisentangledLinear, heal
from unbraid.quantum.hybrid import to_quantum
from unbraid.quantum.shot_noise import shot_noise
from unbraid.tensors import MPO


def layer(text: str = "2b + 2b") -> DisentangledLinear:
    ansatz = parse_ansatz(text, 4)
    circuits = [Circuit(ansatz, init="random", seed=seed, mirrored=seed == 1) for seed in (0, 1)]
    return DisentangledLinear(circuits[0], MPO.random((2,) * 4, (2,) * 4, 1, seed=2), circuits[1])


def rows(count: int = 3000) -> torch.Tensor:
    return torch.randn(count, 16, generator=torch.Generator().manual_seed(0)) + 2


@pytest.mark.parametrize("centered", [False, True])
def test_noise_is_as_large_as_that_of_sampled_circuits(centered: bool) -> None:
    model, x = layer(), rows()
    exact = model(x).detach()
    sampled = to_quantum(model, shots=2_000, center=x if centered else None)(x).detach()
    with shot_noise(model, 2_000, centered=centered):
        noisy = model.train()(x).detach()
    squares = [float((found - exact).square().mean()) for found in (sampled, noisy)]
    assert squares[0] / squares[1] == pytest.approx(1, abs=0.15)
    assert torch.equal(model(x), exact)


def test_noise_stands_in_front_of_every_segment_and_only_in_training() -> None:
    model, x = layer("2b | relu | 2b"), rows(50)
    exact = model(x).detach()
    with shot_noise(model, 100):
        assert torch.equal(model.eval()(x), exact)
        model.train()
        assert float((model(x) - exact).detach().norm()) > 0.1
        assert not torch.equal(model(x), model(x))
        model(x).sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_noisy_healing_repeats_by_its_seed() -> None:
    x, y = rows(60), torch.arange(60) % 3
    found = []
    for shots in (500, 500, None):
        model = nn.Sequential(layer(), nn.ReLU(), nn.Linear(16, 3, bias=False))
        nn.init.ones_(model[2].weight)
        if shots is None:
            heal(model, (x, y), epochs=2, lr=1e-2, seed=5)
        else:
            with shot_noise(model, shots):
                heal(model, (x, y), epochs=2, lr=1e-2, seed=5)
        found.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_copies_that_are_made_in_the_block_are_quiet_after_it(tmp_path) -> None:
    model, x = layer().train(), rows(5)
    exact = model(x).detach()
    with shot_noise(model, 50):
        copied, hybrid = copy.deepcopy(model), to_quantum(model, readout="exact")
        assert not torch.equal(copied(x), copied(x))
        torch.save(model, tmp_path / "model.pt")
        with shot_noise(model, 1):  # the inner one counts
            assert float((model(x) - exact).detach().norm()) > 5
    for each in (copied, hybrid, torch.load(tmp_path / "model.pt", weights_only=False)):
        torch.testing.assert_close(each.train()(x), exact, rtol=1e-5, atol=1e-5)


def test_an_error_in_the_block_leaves_no_noise_behind() -> None:
    model, x = layer().train(), rows(5)
    exact = model(x).detach()
    with pytest.raises(RuntimeError, match="stop"), shot_noise(model, 10):
        raise RuntimeError("stop")
    assert torch.equal(model(x), exact)


def test_wrong_uses_are_refused() -> None:
    for wrong in (nn.Linear(2, 2), to_quantum(layer()), None):
        with pytest.raises(InvalidInputError, match="DisentangledLinear"), shot_noise(wrong, 10):
            pass
    for shots in (0, -1, 1.5, True, "many"):
        with pytest.raises(InvalidInputError, match="shots"), shot_noise(layer(), shots):
            pass
