"""Layers of fixed gauge: the same weights of fewer numbers, in every kind of layer, through surgery and files."""

import copy
import json

import pytest
import torch
from torch import nn

import unbraid as ub
from unbraid.ground.errors import FileFormatError, InvalidInputError
from unbraid.ground.files import read_tensors, write_tensors
from unbraid.ground.manifest import hash_tensors
from unbraid.nn import (
    MPOConv2d,
    MPOEmbedding,
    MPOLinear,
    fix_gauge,
    get_layer_status,
    heal,
    load_pretrained,
    merge_back,
    model_bytes,
    quantize,
    save_pretrained,
    tensorize,
)
from unbraid.nn.cores import GaugeFixedCores
from unbraid.tensors import MPO
from unbraid.tensors.gauge import degrees_of_freedom


class Model(nn.Module):
    """A linear layer, a convolution and a table, one after the other."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(50, 64)
        self.wide = nn.Linear(64, 48)
        self.conv = nn.Conv2d(1, 8, 3, padding=1)

    def forward(self, index):
        return self.conv(self.wide(self.table(index))[:, None])


def operators(seed=0):
    torch.manual_seed(seed)
    return tensorize(Model(), ["wide", "conv", "table"], layer_options={"table": {"budget": 0.5}}, max_bond=16)


INDEX = torch.randint(0, 50, (2, 7), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("keeps", [True, False])
def test_every_kind_of_layer_keeps_its_weight_and_loses_the_squares_of_its_bonds(keeps):
    model = operators()
    fixed = fix_gauge(model)
    assert [type(module) for module in fixed.children()] == [MPOEmbedding, MPOLinear, MPOConv2d]
    for before, after in zip(model.children(), fixed.children(), strict=True):
        after.keeps_blocks = keeps
        assert isinstance(after.cores, GaugeFixedCores)
        assert isinstance(before.cores, nn.ParameterList)
        assert after.mpo.bond_dims == before.mpo.bond_dims
        saved = sum(bond**2 for bond in before.mpo.bond_dims)
        assert before.num_parameters - after.num_parameters == saved > 0
        assert torch.allclose(after.mpo.to_dense(), before.mpo.to_dense(), atol=1e-6)
    for _ in range(2):
        with torch.no_grad():
            assert torch.allclose(fixed.eval()(INDEX), model.eval()(INDEX), atol=1e-5)
    assert torch.allclose(fixed.train()(INDEX), model.train()(INDEX), atol=1e-5)
    old, new = ({each.name: each for each in get_layer_status(each)} for each in (model, fixed))
    assert new["wide"].parameters < old["wide"].parameters
    assert new["wide"].bytes < old["wide"].bytes
    assert model_bytes(fixed) < model_bytes(model)
    twin = merge_back(fixed)
    assert type(twin.wide) is nn.Linear
    assert torch.allclose(twin(INDEX), model(INDEX), atol=1e-5)


def test_a_full_rank_takes_no_more_than_the_matrix():
    layer = tensorize(nn.Linear(20, 20, bias=False), sites="low-rank", max_bond=20)
    assert layer.num_parameters == 800
    assert fix_gauge(layer).num_parameters == 400


def test_bonds_larger_than_their_legs_allow_become_smaller():
    generator = torch.Generator().manual_seed(0)
    cores = [torch.randn(shape, generator=generator) for shape in ((1, 2, 2, 9), (9, 3, 3, 1))]
    layer = MPOLinear(MPO(cores))
    fixed = fix_gauge(layer)
    assert fixed.mpo.bond_dims == (4,)
    assert fixed.num_parameters == degrees_of_freedom([core.shape for core in cores]) == 36
    for batch in (1, 7, 500):
        x = torch.randn(batch, 6, generator=generator)
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                assert torch.allclose(fixed(x), layer(x), atol=1e-4)


def test_disentangled_layers_keep_their_circuits():
    torch.manual_seed(0)
    layer = ub.disentangle_layers(
        tensorize(nn.Linear(16, 16), max_bond=4, sites="qubits"), "", 1, max_sweeps=5, core_bond=3
    )
    fixed = fix_gauge(layer)
    assert isinstance(fixed.cores, GaugeFixedCores)
    assert layer.num_parameters - fixed.num_parameters == sum(bond**2 for bond in layer.core.bond_dims)
    assert torch.allclose(fixed.weight, layer.weight, atol=1e-5)
    x = torch.randn(5, 16)
    assert torch.allclose(fixed(x), layer(x), atol=1e-5)


def test_what_is_left_is_trained():
    layer = fix_gauge(operators().wide.double())
    twin, x = merge_back(layer), torch.randn(40, 64, dtype=torch.float64, requires_grad=True)
    found = torch.autograd.grad(layer(x).sin().sum(), [x, layer.bias, *layer.cores.free])
    wanted = torch.autograd.grad(twin(x).sin().sum(), [x, twin.bias, twin.weight])
    assert all(torch.allclose(a, b) for a, b in zip(found[:2], wanted[:2], strict=True))
    step = [torch.randn_like(part) for part in layer.cores.free]
    moved, other = copy.deepcopy(layer), copy.deepcopy(layer)
    with torch.no_grad():
        for one, two, change in zip(moved.cores.free, other.cores.free, step, strict=True):
            one += 1e-6 * change
            two -= 1e-6 * change
    slope = float(((moved.weight - other.weight) * wanted[2]).sum().detach()) / 2e-6
    assert slope == pytest.approx(float(sum((a * b).sum() for a, b in zip(found[2:], step, strict=True))), rel=1e-5)
    with torch.no_grad():
        before = layer.eval()(x)  # keeps blocks, which the training must drop
    target = torch.randn(40, 48, dtype=torch.float64)
    history = heal(
        layer, [(x.detach(), target)], epochs=20, lr=0.02, loss=lambda m, b: (m(b[0]) - b[1]).square().mean()
    )
    assert history.train_loss[-1] < 0.9 * history.train_loss[0]
    with torch.no_grad():
        assert not torch.allclose(layer.eval()(x), before)


def test_compiled_exported_half_and_integers():
    layer = fix_gauge(operators().wide).eval()
    x = torch.randn(3, 64)
    with torch.no_grad():
        wanted = layer(x)
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        assert torch.allclose(compiled(x), wanted, atol=1e-5)
        exported = torch.export.export(layer, (x,)).module()
        assert torch.allclose(exported(x), wanted, atol=1e-5)
        half = copy.deepcopy(layer).to(torch.bfloat16)
        assert half.cores.orders.dtype == torch.int32
        assert torch.allclose(half(x.bfloat16()).float(), wanted, atol=0.1)
        integers = quantize(layer, bits=8)
        assert torch.allclose(integers(x), wanted, atol=0.1)


def test_frozen_layers_stay_frozen_and_inplace_changes_the_model():
    model = operators()
    model.wide.requires_grad_(False)
    assert fix_gauge(model, ["wide"], inplace=True) is model
    assert isinstance(model.wide.cores, GaugeFixedCores)
    assert not any(parameter.requires_grad for parameter in model.wide.parameters())
    assert isinstance(model.conv.cores, nn.ParameterList)


def test_what_has_no_gauge_to_fix():
    with pytest.raises(InvalidInputError, match="no MPO or disentangled layers"):
        fix_gauge(Model())
    model = operators()
    with pytest.raises(InvalidInputError, match=r"No .* layer matches"):
        fix_gauge(model, ["9"])
    with pytest.raises(InvalidInputError, match="'table' is fixed already"):
        fix_gauge(fix_gauge(model))
    with pytest.raises(InvalidInputError, match="not that of its integers"):
        fix_gauge(quantize(model))
    with torch.no_grad():
        model.wide.cores[0].fill_(torch.nan)
    with pytest.raises(InvalidInputError, match="must be finite"):
        fix_gauge(model)
    assert isinstance(model.table.cores, nn.ParameterList)


# files


def test_files_give_the_same_numbers_and_are_smaller(tmp_path):
    model, fixed = operators(), fix_gauge(operators())
    sizes = []
    for name, each in (("a", model), ("b", fixed)):
        save_pretrained(each, tmp_path / name)
        sizes.append((tmp_path / name / "model.safetensors").stat().st_size)
    assert sizes[1] < sizes[0]
    again = load_pretrained(tmp_path / "b", Model())
    for name, tensor in fixed.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert torch.equal(again(INDEX), fixed.eval()(INDEX))
    assert all(isinstance(module.cores, GaugeFixedCores) for module in again.children())


def rewritten(place, change, **configuration):
    """The file with other tensors and another configuration, as if it had been written so."""
    state, _ = read_tensors(place / "model.safetensors")
    change(state)
    content = json.loads((place / "config.json").read_text()) | configuration
    content["tensors"] = hash_tensors(*(state[name] for name in sorted(state)))
    (place / "config.json").write_text(json.dumps(content))
    write_tensors(place / "model.safetensors", state, {"config": json.dumps(content)})


def test_files_whose_rows_are_nowhere_are_refused(tmp_path):
    layer = fix_gauge(tensorize(nn.Sequential(nn.Linear(16, 16)), max_bond=4))
    save_pretrained(layer, tmp_path)

    def twice(state):
        state["0.cores.orders"][1] = state["0.cores.orders"][0]

    rewritten(tmp_path, twice)
    with pytest.raises(FileFormatError, match="does not say where rows"):
        load_pretrained(tmp_path)
    declaration = json.loads((tmp_path / "config.json").read_text())["declaration"]
    declaration["children"]["0"]["gauge"] = "loose"
    rewritten(tmp_path, lambda state: None, declaration=declaration)
    with pytest.raises(FileFormatError, match="unknown gauge 'loose'"):
        load_pretrained(tmp_path)
