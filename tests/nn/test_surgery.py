import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from unbraid.circuits import brickwall
from unbraid.ground.errors import InvalidInputError
from unbraid.nn import (
    DisentangledLinear,
    InputMoments,
    MPOLinear,
    disentangle_layers,
    input_moments,
    match_layers,
    merge_back,
    scan,
    tensorize,
)
from unbraid.tensors import MPO
from unbraid.tensors.entanglement import bond_entropy
from unbraid.tensors.weighted import weighted_error


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
    with pytest.raises(InvalidInputError, match=r"cannot run on a batch of shape \(3, 5\)"):
        scan(Net(), torch.randn(3, 5))
    zero = nn.Linear(4, 4)
    nn.init.zeros_(zero.weight)
    with pytest.raises(InvalidInputError, match="all zeros"):
        scan(zero)


def test_scan_passes_over_what_no_error_of_outputs_needs():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(6, 4), nn.Linear(6, 4)

        def forward(self, x):
            return {"loss": self.used(x).sum()}

    for x in (torch.ones(6), torch.ones(2, 6), [torch.ones(2, 6)]):
        used, idle = scan(Odd(), x)
        assert used.ranks[0].output_error < 1
        assert idle.ranks[0].output_error is None


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


# moments of inputs


def calibrated(dtype=torch.float32, bias=True):
    """Two layers, and inputs with a mean that fill few directions."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 32, bias=bias), nn.ReLU(), nn.Linear(32, 12, bias=bias)).to(dtype)
    x = (torch.randn(200, 6) @ torch.randn(6, 24) + 0.1 * torch.randn(200, 24) + torch.linspace(-1, 2, 24)).to(dtype)
    return model, x, input_moments(model, x)


def output_error(layer, other, x):
    with torch.no_grad():
        wanted = layer(x).double()
        return float(torch.linalg.vector_norm(other(x).double() - wanted) / torch.linalg.vector_norm(wanted))


@pytest.mark.parametrize("sites", ["auto", "low-rank", "qubits", "best"])
@pytest.mark.parametrize("bias", [True, False])
def test_moments_keep_outputs_where_plain_operators_keep_entries(sites, bias):
    model, x, moments = calibrated(bias=bias)
    state = copy.deepcopy(model.state_dict())
    aware = tensorize(model, budget=0.4, sites=sites, moments=moments)
    plain = tensorize(model, budget=0.4, sites=sites)
    for name, inputs in (("0", x), ("2", model[:2](x).detach())):
        layer, ours, theirs = (each.get_submodule(name) for each in (model, aware, plain))
        assert output_error(layer, ours, inputs) < 0.8 * output_error(layer, theirs, inputs)
        if bias:
            wanted, mean = (each(inputs).mean(0).detach() for each in (layer, ours))
            assert torch.allclose(mean, wanted, atol=1e-5)
            assert not torch.allclose(theirs(inputs).mean(0), wanted, atol=1e-3)
        assert ours.mpo.num_parameters <= int(0.4 * layer.weight.numel())
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("bias", [True, False])
def test_what_a_bias_takes_over_does_not_weigh_on_the_matrix(bias):
    model, x, _ = calibrated(bias=bias)
    layer = model[0]
    one, two = (tensorize(layer, max_bond=3, moments=input_moments(layer, x + shift)).weight for shift in (0, 10))
    assert torch.allclose(one, two, atol=1e-4) == bias


def test_layers_without_moments_are_decomposed_as_ever():
    model, _, moments = calibrated()
    aware = tensorize(model, budget=0.4, moments={"0": moments["0"]})
    plain = tensorize(model, budget=0.4)
    assert torch.equal(aware[2].weight, plain[2].weight)
    assert torch.equal(aware[2].bias, model[2].bias)
    assert not torch.equal(aware[0].weight, plain[0].weight)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_moments_serve_every_dtype(dtype):
    model, x, moments = calibrated(dtype)
    aware = tensorize(model, rel_error=0.1, moments=moments)
    assert aware[0].bias.dtype == aware[0].weight.dtype == dtype
    assert output_error(model[0], aware[0], x) < 0.15


def test_inputs_that_are_all_the_same_are_kept():
    model, x, _ = calibrated()
    same = x[:1].expand(5, -1)
    aware = tensorize(model, budget=0.4, moments=input_moments(model, same))
    assert torch.allclose(aware(same), model(same), atol=1e-4)
    assert output_error(model[0], aware[0], x) < 1.5 * output_error(model[0], tensorize(model[0], budget=0.4), x)


@pytest.mark.parametrize("aware", [True, False])
def test_the_best_layout_is_not_worse_than_its_candidates(aware):
    model, _, moments = calibrated()
    given = moments if aware else None
    candidates = ("auto", "low-rank", ((8, 4), (4, 6)))  # the last is the split of (32, 24)
    for budget in (0.3, 0.6):
        best = tensorize(model, ["0"], budget=budget, sites="best", moments=given)[0]
        others = [tensorize(model, ["0"], budget=budget, sites=sites, moments=given)[0] for sites in candidates]
        errors = [
            weighted_error(model[0].weight.detach(), each.weight.detach(), moments["0"].covariance if aware else None)
            for each in (best, *others)
        ]
        assert errors[0] <= min(errors[1:]) + 1e-7
    best = tensorize(model, ["0"], rel_error=0.3, sites="best", moments=given)[0]
    others = [tensorize(model, ["0"], rel_error=0.3, sites=sites, moments=given)[0] for sites in candidates]
    assert best.mpo.num_parameters <= min(each.mpo.num_parameters for each in others)


def test_the_best_layout_needs_a_measure_and_passes_errors_on():
    model, _, _ = calibrated()
    with pytest.raises(InvalidInputError, match="budget or a rel_error"):
        tensorize(model, max_bond=2, sites="best")
    with pytest.raises(InvalidInputError, match="cannot come down to a budget"):
        tensorize(model, budget=0.001, sites="best")
    tight = tensorize(nn.Linear(64, 64), budget=64 / 4096, sites="best")  # too little for two sites
    assert tight.mpo.num_sites == 3


def test_moments_that_do_not_fit_are_refused_by_name():
    model, _, moments = calibrated()
    with pytest.raises(InvalidInputError, match=r"Layer '2': covariance must be.*\(32, 32\)"):
        tensorize(model, budget=0.4, moments={"2": moments["0"]})
    empty = InputMoments(torch.zeros(24), torch.zeros(24, 24), 3)
    with pytest.raises(InvalidInputError, match="Layer '0': covariance is all zeros"):
        tensorize(model, budget=0.4, moments={"0": empty})
    with pytest.raises(InvalidInputError, match="Layer '0': With a covariance, say how far"):
        tensorize(model, moments=moments)
    convolution = nn.Sequential(nn.Conv2d(2, 4, 3))
    with pytest.raises(InvalidInputError, match="Layer '0' is no linear layer"):
        tensorize(convolution, ["0"], budget=0.9, moments={"0": InputMoments(torch.zeros(18), torch.eye(18), 3)})


def test_a_budget_that_is_a_rounded_quotient_gives_the_whole_number():
    assert int(15 / 26 * 26) == 14
    assert tensorize(nn.Linear(13, 2), budget=15 / 26, sites="low-rank").mpo.num_parameters == 15
