import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from unbraid.circuits import brickwall
from unbraid.ground.errors import InvalidInputError
from unbraid.nn import DisentangledLinear, MPOLinear, disentangle_layers, match_layers, merge_back, scan, tensorize
from unbraid.tensors import MPO
from unbraid.tensors.entanglement import bond_entropy


class Block(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.fc1 = nn.Linear(width, 2 * width)
        self.fc2 = nn.Linear(2 * width, width, bias=False)

    def forward(self, x):
        return x + self.fc2(torch.relu(self.fc1(x)))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def kinds(model):
    return {
        name: type(m).__name__
        for name, m in model.named_modules()
        if isinstance(m, (nn.Linear, MPOLinear, DisentangledLinear))
    }


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("all-linear", ["blocks.0.fc1", "blocks.0.fc2", "blocks.1.fc1", "blocks.1.fc2", "head"]),
        (["fc1"], ["blocks.0.fc1", "blocks.1.fc1"]),
        (["1.fc1", "head"], ["blocks.1.fc1", "head"]),
        ("fc1", ["blocks.0.fc1", "blocks.1.fc1"]),
        (r"fc\d", ["blocks.0.fc1", "blocks.0.fc2", "blocks.1.fc1", "blocks.1.fc2"]),
        (r"blocks\.0\..*|head", ["blocks.0.fc1", "blocks.0.fc2", "head"]),
        (("blocks.0.fc2",), ["blocks.0.fc2"]),
    ],
)
def test_targets_name_layers(targets, expected):
    assert list(match_layers(Net(), targets)) == expected
    replaced = [name for name, kind in kinds(tensorize(Net(), targets)).items() if kind == "MPOLinear"]
    assert replaced == expected


@pytest.mark.parametrize("targets", ["c1", "fc", [], ["c1"], "blocks", ["blocks.0"]])
def test_targets_that_match_nothing_list_the_candidates(targets):
    with pytest.raises(InvalidInputError, match=r"'blocks\.0\.fc1'"):
        tensorize(Net(), targets)


def test_broken_expression_is_refused():
    with pytest.raises(InvalidInputError, match="no regular expression"):
        match_layers(Net(), "fc(")


def test_tensorize_without_limits_keeps_the_function_and_the_original():
    model = Net()
    state, x = copy.deepcopy(model.state_dict()), torch.randn(5, 8)
    changed = tensorize(model, "all-linear")
    assert changed is not model
    assert torch.allclose(changed(x), model(x), atol=1e-5)
    assert set(kinds(model).values()) == {"Linear"}
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.zero_()
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())


def test_inplace_changes_the_model_itself():
    model = Net()
    assert tensorize(model, ["fc1"], inplace=True) is model
    assert set(kinds(model).values()) == {"Linear", "MPOLinear"}


@settings(max_examples=25)
@given(
    outs=st.integers(4, 40),
    ins=st.integers(4, 40),
    budget=st.floats(0.3, 1),
    sites=st.sampled_from(["auto", "qubits"]),
    seed=st.integers(0, 99),
)
def test_budget_is_honoured(outs, ins, budget, sites, seed):
    torch.manual_seed(seed)
    layer = nn.Linear(ins, outs)
    limit = int(budget * outs * ins)
    try:
        changed = tensorize(layer, budget=budget, sites=sites)
    except InvalidInputError as error:
        assert "cannot come down" in str(error)  # noqa: PT017
        return
    assert sum(core.numel() for core in changed.cores) <= limit
    assert isinstance(changed, MPOLinear)


def test_limits_and_sites_reach_the_decomposition():
    layer = nn.Linear(12, 20)
    assert max(tensorize(layer, max_bond=2).mpo.bond_dims) == 2
    loose = tensorize(layer, rel_error=0.4)
    assert 0 < float((torch.dist(loose.weight, layer.weight) / layer.weight.norm()).detach()) <= 0.4
    assert tensorize(layer, sites="qubits").mpo.out_dims == (2,) * 5
    assert tensorize(layer, sites=((5, 4), (3, 4))).mpo.in_dims == (3, 4)
    assert tensorize(layer, rel_error=1e-3, budget=0.6).mpo.num_parameters <= 144


def test_shared_layers_stay_shared():
    shared = nn.Linear(8, 8)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.Sequential(shared))
    x = torch.randn(3, 8)
    for changed in (tensorize(model), tensorize(copy.deepcopy(model), inplace=True)):
        assert changed[0] is changed[2] is changed[3][0]
        assert isinstance(changed[0], MPOLinear)
        assert torch.allclose(changed(x), model(x), atol=1e-5)
        merged = merge_back(changed)
        assert merged[0] is merged[2] is merged[3][0]
        assert torch.allclose(merged(x), model(x), atol=1e-5)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("problem", ["nan", "zero", "sites", "budget"])
def test_an_error_leaves_the_model_as_it_was(inplace, problem):
    model = Net()
    options = {"sites": {"sites": ((2, 4), (2, 4))}, "budget": {"budget": 0.01}}.get(problem, {})
    with torch.no_grad():
        if problem == "nan":
            model.head.weight[1, 2] = torch.nan
        if problem == "zero":
            model.head.weight.zero_()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InvalidInputError, match=r"ayer '(head|blocks\.0\.fc1)'"):
        tensorize(model, "all-linear", inplace=inplace, **options)
    assert set(kinds(model).values()) == {"Linear"}
    assert all(
        torch.equal(a, b) or problem == "nan" for a, b in zip(before.values(), model.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize(
    "options", [{"budget": 0}, {"budget": 1.5}, {"max_bond": 0}, {"rel_error": 2}, {"sites": "bits"}, {"sites": (4, 4)}]
)
def test_impossible_options_are_refused(options):
    with pytest.raises(InvalidInputError):
        tensorize(nn.Linear(8, 8), **options)


def test_disentangle_layers_and_merge_back_keep_the_outputs():
    model = tensorize(Net(), "fc.", sites="qubits", max_bond=4)
    results = {}
    changed = disentangle_layers(model, ["fc1", "fc2"], 1, results=results, max_sweeps=5, core_bond=2)
    assert list(results) == ["blocks.0.fc1", "blocks.0.fc2", "blocks.1.fc1", "blocks.1.fc2"]
    assert list(kinds(changed).values()) == ["DisentangledLinear"] * 4 + ["Linear"]
    assert "DisentangledLinear" not in kinds(model).values()
    x = torch.randn(4, 8)
    merged = merge_back(changed)
    assert set(kinds(merged).values()) == {"Linear"}
    assert torch.allclose(merged(x), changed(x), atol=1e-5)
    assert merged.blocks[0].fc2.bias is None
    layer = changed.blocks[0].fc1
    assert torch.allclose(layer.weight, results["blocks.0.fc1"].to_dense(), atol=1e-5)
    assert merge_back(changed, inplace=True) is changed


def test_disentangle_layers_takes_an_ansatz_and_names_a_layer_that_does_not_fit():
    model = nn.Sequential(tensorize(nn.Linear(8, 8), sites="qubits"), tensorize(nn.Linear(8, 4), sites="qubits"))
    changed = disentangle_layers(model, ["0"], brickwall(3, 2), max_sweeps=3)
    assert changed[0].input_circuit.ansatz == brickwall(3, 2)
    with pytest.raises(InvalidInputError, match="Layer '1'"):
        disentangle_layers(model, "all-linear", brickwall(3, 1), max_sweeps=3, inplace=True)
    assert isinstance(model[0], MPOLinear)
    with pytest.raises(InvalidInputError, match="no MPO layers"):
        disentangle_layers(nn.Linear(4, 4), "all-linear", 1)


def test_training_mode_survives_surgery():
    model = Net().eval()
    assert not any(m.training for m in tensorize(model).modules())
    assert all(m.training for m in tensorize(Net().train()).modules())


# scan


def test_scan_figures_equal_direct_computation():
    model, x = Net(), torch.randn(6, 8)
    before = copy.deepcopy(model.state_dict())
    found = scan(model, x, rel_errors=(0.1, 0.5))
    assert [layer.name for layer in found] == list(match_layers(model, "all-linear"))
    first = found[0]
    weight = model.blocks[0].fc1.weight.detach()
    assert (first.shape, first.qubits, first.parameters) == ((16, 8), (4, 3), 128)
    for rank in first.ranks:
        mpo = MPO.from_dense(weight, rel_error=rank.rel_error)
        assert (rank.bond_dims, rank.parameters) == (mpo.bond_dims, mpo.num_parameters)
        exact = x @ weight.mT
        assert abs(rank.output_error - float(torch.dist(x @ mpo.to_dense().mT, exact) / exact.norm())) < 1e-5
    matrix = weight.reshape(2, 8, 2, 4).permute(0, 2, 1, 3).reshape(4, 32)
    assert abs(first.entropies[0] - float(bond_entropy(torch.linalg.svdvals(matrix)))) < 1e-5
    assert all(a <= b + 1e-6 for a, b in zip(first.entropies, first.maximum_entropies, strict=True))
    assert first.to_dict()["name"] == "blocks.0.fc1"
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert model.training
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_scan_without_samples_has_no_output_error_and_reads_mpo_layers():
    plain, changed = (scan(m)[0] for m in (nn.Linear(8, 8), tensorize(nn.Linear(8, 8), max_bond=1, sites="qubits")))
    assert plain.ranks[0].output_error is None
    assert "truncate" in plain.verdict
    assert max(changed.entropies, default=0) < 1e-5
    assert "without healing" in changed.verdict


def test_scan_keeps_the_modes_of_all_parts():
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8).eval())
    model.training = True
    scan(model, torch.randn(4, 8))
    assert [m.training for m in model.modules()] == [True, True, False]


def test_scan_refuses_what_it_cannot_run():
    with pytest.raises(InvalidInputError, match="cannot run on sample_inputs"):
        scan(Net(), torch.randn(3, 5))
    zero = nn.Linear(4, 4)
    nn.init.zeros_(zero.weight)
    with pytest.raises(InvalidInputError, match="all zeros"):
        scan(zero)


def test_a_name_of_a_list_that_matches_nothing_is_an_error_even_beside_one_that_does():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    with pytest.raises(InvalidInputError, match="'typo'"):
        tensorize(model, ["0", "typo"])


def test_frozen_layers_stay_frozen():
    model = nn.Sequential(nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 4))
    found = tensorize(model, "all-linear", sites="qubits")
    assert not any(parameter.requires_grad for parameter in found[0].parameters())
    assert all(parameter.requires_grad for parameter in found[1].parameters())
    circuits = disentangle_layers(found, ["0"], 1, max_sweeps=2)
    assert not any(parameter.requires_grad for parameter in circuits[0].parameters())


def test_a_weight_that_another_module_shares_is_refused():
    model = nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 8, bias=False))
    model[1].weight = model[0].weight
    with pytest.raises(InvalidInputError, match="shares its weight with '0'"):
        tensorize(model, ["1"])
