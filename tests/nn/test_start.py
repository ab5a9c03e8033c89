"""A declared network that starts from a trained one: the same function where nothing is given up."""

import pytest
import torch
from torch import nn

from unbraid.ground.errors import InvalidInputError
from unbraid.nn import Architecture, DisentangledLinear, MPOLinear, TensorLayer, start_from

Q = (2,)


def declared(bond, **circuits):
    return Architecture(
        (
            TensorLayer(Q * 4, Q * 3, bond, **circuits),
            TensorLayer(Q * 3, (2, 3), 2, norm=False, relu=False),
        )
    )


@pytest.fixture
def trained():
    model = declared(4).build(1, dtype=torch.float64)
    model(torch.randn(100, 16, dtype=torch.float64))  # moves the running statistics
    return model.eval()


def test_what_needs_no_change_is_taken_over(trained):
    started = start_from(trained, declared(4))
    x = torch.randn(5, 16, dtype=torch.float64)
    torch.testing.assert_close(started(x), trained(x))
    started.layer1.cores[0].data.zero_()
    assert bool(trained.layer1.cores[0].any())


def test_full_bonds_around_circuits_keep_the_function(trained):
    results = {}
    started = start_from(
        trained, declared(4, input_circuit="2b+1b", output_circuit="1b"), results=results, max_sweeps=50
    )
    assert isinstance(started.layer1, DisentangledLinear)
    assert results["layer1"].overlap == pytest.approx(1)
    x = torch.randn(5, 16, dtype=torch.float64)
    torch.testing.assert_close(started(x), trained(x), atol=1e-6, rtol=1e-6)


def test_circuits_help_and_counts_are_those_of_the_declaration(trained):
    overlaps = []
    for text in ("", "2b+2b"):
        results = {}
        architecture = declared(1, input_circuit=text, output_circuit=text)
        started = start_from(trained, architecture, results=results, max_sweeps=100)
        assert sum(parameter.numel() for parameter in started.parameters()) == architecture.num_parameters
        overlaps.append(results["layer1"].overlap)
    assert overlaps[0] < overlaps[1]
    assert isinstance(start_from(trained, declared(1)).layer1, MPOLinear)


def test_circuits_with_nonlinearities_start_near_the_identity(trained):
    started = start_from(trained, declared(1, input_circuit="1b | relu | 1b"))
    plain = start_from(trained, declared(1))
    for one, other in zip(started.layer1.cores, plain.layer1.cores, strict=True):
        torch.testing.assert_close(one, other)
    assert max(float(p.detach().abs().max()) for p in started.layer1.input_circuit.parameters()) < 0.5


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (declared(2).build()[:2], "modules layer1, norm1; expected"),
        (nn.Sequential(), "no parameters"),
        (Architecture((TensorLayer((4, 4), Q * 3, 2), declared(2).layers[1])).build(), "another declaration"),
        (declared(2, input_circuit="1b").build(), "must be an MPOLinear"),
        (Architecture((declared(2).layers[0], TensorLayer(Q * 3, (2, 3), 1, norm=False, relu=False))).build(), "bonds"),
        (3, "got int and Architecture"),
    ],
)
def test_a_model_of_another_declaration_is_refused(model, message):
    with pytest.raises(InvalidInputError, match=message):
        start_from(model, declared(1))


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("layer1.cores.0", float("nan"), "'layer1' must be finite"),
        ("layer2.cores.1", float("inf"), "'layer2' must be finite"),
        ("layer2.cores.0", 0.0, "'layer2' is all zeros"),
        ("norm1.running_var", float("nan"), "'running_var' of norm1 must be finite"),
    ],
)
@pytest.mark.parametrize("circuit", ["", "1b"])
def test_a_layer_that_is_no_number_is_named(place, value, message, circuit):
    model = declared(2).build()
    model.state_dict()[place].fill_(value)
    with pytest.raises(InvalidInputError, match=message):
        start_from(model, declared(2, input_circuit=circuit))


def test_options_that_are_not_its_own_are_refused(trained):
    with pytest.raises(InvalidInputError, match="core_bond"):
        start_from(trained, declared(1), core_bond=2)


def test_modes_and_what_was_frozen_stay(trained):
    trained.layer1.requires_grad_(False)
    trained.norm1.train()
    started = start_from(trained, declared(1, input_circuit="1b"))
    assert not any(parameter.requires_grad for parameter in started.layer1.parameters())
    assert all(parameter.requires_grad for parameter in started.layer2.parameters())
    modes = {name: module.training for name, module in trained.named_children()}
    assert {name: module.training for name, module in started.named_children()} == modes
    assert not started.training


def test_two_layers_keep_their_progress_apart(trained, tmp_path):
    both = Architecture(
        (
            declared(1, input_circuit="2b").layers[0],
            TensorLayer(Q * 3, (2, 3), 1, "2b+1b", norm=False, relu=False),
        )
    )
    started = start_from(trained, both, checkpoint=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    again = start_from(trained, both, checkpoint=tmp_path)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in started.state_dict().items())
