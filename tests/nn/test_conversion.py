"""Layer by layer: what each step is, that it resumes, that bad input is told."""

import pytest
import torch
from torch import nn

from unbraid.circuits import brickwall, parse_ansatz
from unbraid.ground.errors import InvalidInputError
from unbraid.nn import DisentangledLinear, MPOLinear, convert_layers, describe_conversions, heal
from unbraid.tensors import MPO


@pytest.fixture(scope="module")
def problem():
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(4, 16, generator=generator)

    def part(count):
        y = torch.randint(0, 4, (count,), generator=generator)
        return centers[y] + 0.7 * torch.randn(count, 16, generator=generator), y

    train, validation = part(400), part(200)
    model = nn.Sequential(
        MPOLinear(MPO.random((2,) * 4, (2,) * 4, 3, seed=1)),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        MPOLinear(MPO.random((2,) * 2, (2,) * 4, 3, seed=2)),
    )
    heal(model, train, validation, epochs=8, lr=3e-2, seed=0)
    return model, train, validation


CIRCUITS = {"3": (parse_ansatz("1b+cnot", 2), parse_ansatz("1b+cnot+1b", 4)), "0": brickwall(4, 2)}


def convert(problem, **options):
    return convert_layers(problem[0], CIRCUITS, problem[1], problem[2], epochs=3, lr=1e-2, **options)


def test_each_step_swaps_one_layer_and_says_what_it_cost(problem):
    before = {name: value.clone() for name, value in problem[0].state_dict().items()}
    converted, steps = convert(problem)
    assert all(torch.equal(value, before[name]) for name, value in problem[0].state_dict().items())
    assert [step.layer for step in steps] == ["", "3", "0"]
    assert isinstance(converted[0], DisentangledLinear)
    assert isinstance(converted[3], DisentangledLinear)
    assert steps[-1].parameters == sum(parameter.numel() for parameter in converted.parameters())
    assert steps[0].parameters > steps[1].parameters
    assert [step.cnots for step in steps] == [0, 1 + 2, 3 + 2 * 2 * (2 + 1)]
    assert 0.5 < steps[1].overlap <= 1
    assert all(step.accuracy >= step.swapped - 0.02 for step in steps)
    table = describe_conversions(steps).splitlines()
    assert len(table) == 4
    assert "(given)" in table[1]


def test_cores_may_keep_a_bond_of_their_own(problem):
    converted, _ = convert(problem, core_bond={"3": 1, "0": 2})
    assert converted[0].core.bond_dims == (2, 2, 2)
    assert converted[3].core.bond_dims == (1, 1, 1)


def test_it_resumes_to_the_same_result(problem, tmp_path):
    whole, steps = convert(problem)

    def stop(epoch, history):
        if len(list(tmp_path.iterdir())) == 2 and epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(problem, checkpoint_dir=tmp_path, callbacks=[stop])
    resumed, again = convert(problem, checkpoint_dir=tmp_path)
    assert again == steps
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())


@pytest.mark.parametrize(
    ("circuits", "options", "message"),
    [
        ({}, {}, "no names"),
        ({"1": 2}, {}, "MPO layers of this model, which has 0, 3"),
        (CIRCUITS, {"core_bond": {"0": 1}}, "core_bond"),
        ({"0": brickwall(5, 1)}, {}, "Layer '0'"),
        (["0"], {}, "by the names of layers; got list"),
        (CIRCUITS, {"core_bond": "a"}, "core_bond"),
        (CIRCUITS, {"disentangling": {"seed": 1}}, "cannot have seed"),
        (CIRCUITS, {"lr": "a"}, "lr must be a positive number"),
    ],
)
def test_bad_input_is_told(problem, circuits, options, message):
    with pytest.raises(InvalidInputError, match=message):
        convert_layers(problem[0], circuits, problem[1], problem[2], **({"epochs": 1, "lr": 1e-2} | options))


def test_layers_of_the_same_last_name_are_apart(problem):
    inner = nn.Sequential()
    inner.add_module("fc", MPOLinear(MPO.random((2,) * 4, (2,) * 4, 2, seed=2)))
    model = nn.Sequential()
    model.add_module("fc", MPOLinear(MPO.random((2,) * 4, (2,) * 4, 2, seed=1)))
    model.add_module("inner", inner)
    converted, steps = convert_layers(model, {"fc": 1}, problem[1], problem[2], epochs=1, lr=1e-2)
    assert isinstance(converted.fc, DisentangledLinear)
    assert isinstance(converted.inner.fc, MPOLinear)
    converted, steps = convert_layers(model, {"fc": 1, "inner.fc": 1}, problem[1], problem[2], epochs=1, lr=1e-2)
    assert isinstance(converted.inner.fc, DisentangledLinear)
    assert [step.layer for step in steps] == ["", "fc", "inner.fc"]


def test_wires_that_are_no_qubits_have_no_cnots(problem):
    model = nn.Sequential(MPOLinear(MPO.random((2, 5), (4, 4), 2, seed=1)))
    _, steps = convert_layers(model, {"0": 1}, problem[1], problem[2], epochs=1, lr=1e-2)
    assert steps[1].cnots is None
    assert " - " in describe_conversions(steps).splitlines()[2]
