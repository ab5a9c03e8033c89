"""Riemannian Adam: steps on the group, and the same in every chart."""

import copy

import pytest
import torch
from torch import nn

from unbraid.circuits import Circuit, brickwall, parse_ansatz
from unbraid.ground.errors import InvalidInputError
from unbraid.nn import RiemannianAdam, heal


def fitted(circuit, steps, lr=0.03, optimizer=RiemannianAdam):
    target = Circuit(circuit.ansatz, "random", 7, dtype=torch.float64).matrix().detach()
    arguments = (circuit,) if optimizer is RiemannianAdam else ()
    chosen = optimizer(circuit.parameters(), *arguments, lr=lr)
    for _ in range(steps):
        chosen.zero_grad()
        loss = (circuit.matrix() - target).square().sum()
        loss.backward()
        chosen.step()
    return float(loss.detach())


def test_the_gates_stay_orthogonal_and_the_generators_at_zero():
    circuit = Circuit(brickwall(3, 2), "random", 1, dtype=torch.float32)
    target = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)))[0]
    optimizer = RiemannianAdam(circuit.parameters(), circuit, lr=0.1)
    for _ in range(500):
        optimizer.zero_grad()
        (circuit.matrix() - target).square().sum().backward()
        optimizer.step()
    for gate in circuit.gate_matrices():
        assert torch.dist(gate @ gate.mT, torch.eye(4)) < 1e-5
    assert not any(bool(parameter.any()) for parameter in circuit.generators.values())


def test_it_reaches_a_target():
    assert fitted(Circuit(brickwall(2, 1), "random", 3, dtype=torch.float64), 600) < 1e-6


def test_charts_agree_on_the_first_step():
    gates = []
    for parametrization in ("exp", "cayley", "givens"):
        circuit = Circuit(brickwall(2, 1), "random", 3, dtype=torch.float64, parametrization=parametrization)
        fitted(circuit, 1, lr=1e-4)
        gates.append(circuit.matrix().detach())
    torch.testing.assert_close(gates[1], gates[0], atol=1e-9, rtol=0)
    torch.testing.assert_close(gates[2], gates[0], atol=1e-7, rtol=0)


def test_rebasing_changes_nothing_that_the_circuit_does():
    for parametrization in ("exp", "cayley", "givens"):
        circuit = Circuit(
            parse_ansatz("2b+cnot+1b", 4), "near_identity", 2, dtype=torch.float64, parametrization=parametrization
        )
        before = circuit.matrix().detach()
        circuit.rebase()
        torch.testing.assert_close(circuit.matrix(), before)


def test_an_interrupted_healing_equals_an_uninterrupted_one(tmp_path):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(64, 8, generator=generator), torch.randint(0, 8, (64,), generator=generator)
    start = nn.Sequential(Circuit(brickwall(3, 2), "random", 1), nn.Linear(8, 8))

    def run(model, callbacks=(), folder=None):
        heal(
            model,
            (x, y),
            epochs=4,
            lr=1e-2,
            optimizer=lambda parameters: RiemannianAdam(parameters, model, lr=1e-2),
            callbacks=callbacks,
            checkpoint_dir=folder,
        )
        return model.state_dict()

    whole = run(copy.deepcopy(start))
    run(copy.deepcopy(start), [lambda epoch, _: epoch < 2], tmp_path)
    resumed = run(copy.deepcopy(start), folder=tmp_path)
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


def test_a_model_without_gates_is_refused():
    layer = nn.Linear(2, 2)
    with pytest.raises(InvalidInputError, match="no circuit"):
        RiemannianAdam(layer.parameters(), layer)
    with pytest.raises(InvalidInputError, match="got NoneType"):
        RiemannianAdam(layer.parameters(), None)
