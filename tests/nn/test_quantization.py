"""Cores as integers: error against the dense twin, packing, gradients, surgery, files."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import unbraid as ub
from unbraid.ground.errors import FileFormatError, InvalidInputError
from unbraid.nn import (
    DisentangledLinear,
    MPOConv2d,
    MPOLinear,
    accuracy,
    describe_status,
    get_layer_status,
    heal,
    load_pretrained,
    merge_back,
    model_bytes,
    quantize,
    save_pretrained,
    tensorize,
)
from unbraid.nn.integers import GROUP, QuantizedCores, core_of, packed, rounded, unpacked
from unbraid.tensors import MPO

WIDE = torch.float64
dims = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=4)


@torch.no_grad()
def relative_error(found, wanted):
    return float(torch.linalg.vector_norm(found - wanted) / torch.linalg.vector_norm(wanted))


def rounded_as_it_is(mpo, bits):
    cores = [core_of(core.shape, *rounded(core, bits, core.dtype)) for core in mpo.cores]
    return MPO(cores, shape=mpo.shape)


@given(groups=st.integers(1, 5), seed=st.integers(0, 99))
def test_two_integers_in_a_byte_come_back(groups, seed):
    generator = torch.Generator().manual_seed(seed)
    integers = torch.randint(-8, 8, (groups, GROUP), generator=generator).to(torch.int8)
    pairs = packed(integers)
    assert (pairs.dtype, pairs.shape) == (torch.uint8, (groups, GROUP // 2))
    assert torch.equal(unpacked(pairs), integers)


@given(
    shape=st.tuples(*[st.integers(1, 6)] * 4),
    bits=st.sampled_from([8, 4]),
    size=st.sampled_from([1e-30, 1.0, 1e20]),
    seed=st.integers(0, 99),
)
def test_an_entry_moves_by_less_than_the_largest_of_its_group_allows(shape, bits, size, seed):
    core = size * torch.randn(shape, dtype=WIDE, generator=torch.Generator().manual_seed(seed))
    integers, scales = rounded(core, bits, WIDE)
    assert int(integers.min()) >= -(2 ** (bits - 1))
    assert int(integers.max()) < 2 ** (bits - 1)
    made = core_of(shape, integers, scales)
    assert made.shape == shape
    pieces = [each.permute(0, 3, 1, 2).flatten().split(GROUP) for each in (core, made)]
    for before, after in zip(*pieces, strict=True):
        # the plain scale, peak / 2^(bits - 1), moves an entry by half of it, one at the other end by the whole
        bound = float(before.abs().max()) / 2 ** (bits - 1)
        assert float((after - before).square().sum()) <= len(before) * bound**2


def test_unit_vectors_and_zeros_are_stored_exactly():
    for core in (torch.eye(12).reshape(1, 3, 4, 12), torch.zeros(2, 3, 4, 5)):
        for bits in (8, 4):
            assert torch.equal(core_of(core.shape, *rounded(core, bits, torch.float32)), core)


@settings(max_examples=40, deadline=None)
@given(legs=dims, bond=st.integers(1, 8), bits=st.sampled_from([8, 4]), seed=st.integers(0, 99))
def test_sweeps_are_never_worse_than_rounding_the_cores_as_they_are(legs, bond, bits, seed):
    outs, ins = zip(*legs, strict=True)
    mpo = MPO.random(outs, ins, bond, seed=seed, dtype=WIDE)
    layer = quantize(MPOLinear(mpo), bits=bits)
    wanted = mpo.to_dense()
    found = relative_error(layer.weight, wanted)
    assert found <= relative_error(rounded_as_it_is(mpo, bits).to_dense(), wanted) + 1e-9
    assert found <= {8: 0.02, 4: 0.35}[bits] * mpo.num_sites**0.5
    assert layer.mpo.bond_dims == mpo.bond_dims


def test_sweeps_pay_where_bonds_are_truncated():
    weight = torch.randn(64, 96, dtype=WIDE, generator=torch.Generator().manual_seed(0))
    layer = tensorize(nn.Linear(96, 64, dtype=WIDE), budget=0.5)
    mpo = MPO.from_dense(weight, layer.mpo.out_dims, layer.mpo.in_dims, max_parameters=3072)
    for bits in (8, 4):
        found = relative_error(quantize(MPOLinear(mpo), bits=bits).weight, mpo.to_dense())
        assert found < 0.85 * relative_error(rounded_as_it_is(mpo, bits).to_dense(), mpo.to_dense())


def test_the_last_core_alone_is_in_error_where_bonds_are_full():
    mpo = MPO.from_dense(torch.randn(36, 36, dtype=WIDE), (6, 6), (6, 6))
    found = relative_error(quantize(MPOLinear(mpo), bits=4).weight, mpo.to_dense())
    with torch.no_grad():
        dense = nn.Linear(36, 36, bias=False, dtype=WIDE)
        dense.weight.copy_(mpo.to_dense())
    one_core = quantize(dense, "", bits=4)
    assert found < 1.2 * relative_error(one_core.weight, dense.weight)


def test_bonds_larger_than_their_legs_allow_keep_their_size():
    core = torch.randn(1, 2, 2, 7, dtype=WIDE)
    mpo = MPO([core, torch.randn(7, 2, 2, 1, dtype=WIDE)])
    layer = quantize(MPOLinear(mpo), bits=8)
    assert layer.mpo.bond_dims == (7,)
    assert relative_error(layer.weight, mpo.to_dense()) < 0.02


# use


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(50, 16, padding_idx=0)
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.wide = nn.Linear(16, 24)
        self.head = nn.Linear(24, 5)

    def forward(self, index):
        x = self.table(index)
        x = x + self.conv(x[:, None]).mean(1)
        return self.head(torch.relu(self.wide(x)))


def of_every_kind(bits=8):
    torch.manual_seed(0)
    return quantize(tensorize(Model(), ["table", "conv", "wide"], max_bond=3), bits=bits).eval()


def disentangled():
    torch.manual_seed(0)
    linear = nn.Linear(16, 16)
    with torch.no_grad():
        linear.weight.copy_(MPO.random((2,) * 4, (2,) * 4, 2, seed=1).to_dense())
    layer = tensorize(linear, max_bond=2, sites="qubits")
    return ub.disentangle_layers(layer, "", 1, max_sweeps=5, core_bond=2)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("keeps", [True, False])
def test_every_kind_of_layer_acts_as_its_dense_twin(bits, keeps):
    model = of_every_kind(bits)
    for module in model.children():
        module.keeps_blocks = keeps
    twin = merge_back(model)
    assert not any(isinstance(module, QuantizedCores) for module in twin.modules())
    index = torch.randint(0, 50, (2, 7))
    for _ in range(2):
        with torch.no_grad():
            assert torch.allclose(model(index), twin(index), atol=1e-5)
    assert torch.allclose(model(index), twin(index), atol=1e-5)


def test_disentangled_layers_keep_their_circuits_trainable():
    layer = disentangled()
    small = quantize(layer, bits=8)
    assert isinstance(small, DisentangledLinear)
    assert relative_error(small.weight, layer.weight) < 0.03
    x = torch.randn(3, 16)
    small(x).sum().backward()
    assert all(generator.grad is not None for generator in small.input_circuit.parameters())
    assert small.cores.scales.grad is None


def test_gradients_reach_inputs_and_biases_and_scales_only_if_asked():
    dense = nn.Linear(24, 20, dtype=WIDE)
    layer = quantize(tensorize(dense, max_bond=4), bits=4)
    twin = merge_back(layer)
    x = torch.randn(5, 24, dtype=WIDE, requires_grad=True)
    found = torch.autograd.grad(layer(x).sin().sum(), [x, layer.bias])
    wanted = torch.autograd.grad(twin(x).sin().sum(), [x, twin.bias])
    assert all(torch.allclose(a, b) for a, b in zip(found, wanted, strict=True))
    layer.requires_grad_(True)  # integers stand aside
    (scales,) = torch.autograd.grad(layer(x).sin().sum(), [layer.cores.scales])
    step = torch.randn_like(scales)
    moved = copy.deepcopy(layer)
    with torch.no_grad():
        moved.cores.scales += 1e-6 * step
    slope = (moved(x).sin().sum() - layer(x).sin().sum()) / 1e-6
    assert torch.allclose(slope, (scales * step).sum(), rtol=1e-4)


def test_kept_blocks_follow_changes_and_take_no_gradients_along():
    layer = quantize(tensorize(nn.Linear(24, 20), max_bond=4)).eval()
    x = torch.randn(2, 24)
    first = layer(x)
    assert layer._kept._made
    with torch.no_grad():
        layer.cores.scales *= 2  # of both cores
        layer.bias *= 4
    assert torch.allclose(layer(x), 4 * first, atol=1e-5)
    with torch.no_grad():
        layer.cores.integers.zero_()
    assert torch.equal(layer(x), layer.bias.expand(2, -1))
    layer.keeps_blocks = False
    assert layer.train()._kept._made == {}
    layer(x)
    assert layer._kept._made == {}


def test_many_models_at_once():
    layers = [quantize(MPOLinear(MPO.random((3, 4), (4, 2), 3, seed=seed))) for seed in range(3)]
    numbers, integers = torch.func.stack_module_state(layers)
    x = torch.randn(5, 8)

    def call(numbers, integers):
        return torch.func.functional_call(layers[0], (numbers, integers), (x,))

    found = torch.func.vmap(call)(numbers, integers)
    assert torch.allclose(found, torch.stack([layer(x) for layer in layers]), atol=1e-5)


def test_compiled_in_one_graph():
    layer = quantize(tensorize(nn.Linear(24, 20), max_bond=4), bits=4).eval()
    x = torch.randn(3, 24)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(x), layer(x), atol=1e-5)


def test_moves_between_precisions_leave_the_integers():
    layer = quantize(tensorize(nn.Linear(24, 20), max_bond=4), bits=8)
    half = copy.deepcopy(layer).to(torch.bfloat16)
    assert half.cores.integers.dtype == torch.int8
    assert half.mpo.dtype == torch.bfloat16
    x = torch.randn(3, 24)
    assert torch.allclose(half(x.bfloat16()).float(), layer(x), atol=0.05)
    again = half.to(torch.float32)
    assert torch.equal(again.cores.integers, layer.cores.integers)


def test_half_precision_layers_are_quantised():
    dense = nn.Linear(64, 64, bias=False, dtype=torch.bfloat16)
    layer = quantize(tensorize(dense, budget=0.6), bits=8)
    wanted = tensorize(dense, budget=0.6).weight.float()
    assert layer.cores.scales.dtype == torch.bfloat16
    assert relative_error(layer.weight.float(), wanted) < 0.03


# surgery


def test_targets_reach_plain_layers_and_leave_the_model_alone():
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    mixed = tensorize(model, ["0"], max_bond=4)
    only = quantize(mixed)
    assert isinstance(only[0].cores, QuantizedCores)
    assert type(only[2]) is nn.Linear
    assert not isinstance(mixed[0].cores, QuantizedCores)
    both = quantize(mixed, "all-linear", bits=4)
    assert isinstance(both[2], MPOLinear)
    assert both[2].mpo.num_sites == 1
    assert relative_error(both[2].weight, model[2].weight) < 0.12
    assert quantize(mixed, ["2"], inplace=True) is mixed
    assert isinstance(mixed[2].cores, QuantizedCores)
    assert isinstance(mixed[0].cores, nn.ParameterList)


def test_what_cannot_be_quantised():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    with pytest.raises(InvalidInputError, match="no MPO or disentangled layers"):
        quantize(model)
    for bits in (2, 4.0, "8"):
        with pytest.raises(InvalidInputError, match="bits must be 8 or 4"):
            quantize(model, "all-linear", bits=bits)
    small = quantize(model, ["0"])
    with pytest.raises(InvalidInputError, match="'0' is quantised already"):
        quantize(small)
    with pytest.raises(InvalidInputError, match=r"No .* layer matches"):
        quantize(model, ["9"])
    model[1].weight = model[0].weight
    with pytest.raises(InvalidInputError, match="shares its weight"):
        quantize(model, ["0"])
    broken = tensorize(nn.Linear(8, 8), max_bond=2)
    with torch.no_grad():
        broken.cores[0].fill_(torch.nan)
    with pytest.raises(InvalidInputError, match="must be finite"):
        quantize(broken)


def test_healing_says_that_integers_are_not_trained():
    data = (torch.randn(20, 16), torch.randint(0, 4, (20,)))
    layer = quantize(tensorize(nn.Linear(16, 4, bias=False), max_bond=2))
    with pytest.raises(InvalidInputError, match="Integers are not trained"):
        heal(layer, data, epochs=1, lr=0.1)
    layer = quantize(tensorize(nn.Linear(16, 4), max_bond=2))
    integers, bias = layer.cores.integers.clone(), layer.bias.detach().clone()
    heal(layer, data, epochs=1, lr=0.1)
    assert torch.equal(layer.cores.integers, integers)
    assert not torch.equal(layer.bias, bias)
    assert 0 <= accuracy(layer, *data) <= 1


def test_status_and_bytes():
    torch.manual_seed(0)
    before = tensorize(Model(), ["wide"], max_bond=4)
    after = quantize(before, bits=4)
    old, new = ({each.name: each for each in get_layer_status(model)} for model in (before, after))
    assert new["wide"].parameters == old["wide"].parameters
    assert new["table"].bytes == old["table"].bytes
    integers, scales = after.wide.cores.integers, after.wide.cores.scales
    assert new["wide"].bytes == integers.numel() + 4 * scales.numel() + 4 * 24
    assert old["wide"].bytes - new["wide"].bytes == model_bytes(before) - model_bytes(after)
    assert f"{new['wide'].bytes:,}" in describe_status(list(new.values()))
    tied = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    tied[1].weight = tied[0].weight
    assert model_bytes(tied) == 4 * 64
    assert model_bytes(nn.Linear(8, 8, bias=False, device="meta")) == 4 * 64


# files


@pytest.mark.parametrize("bits", [8, 4])
def test_files_give_the_same_bits_and_are_smaller(bits, tmp_path):
    model = of_every_kind(bits)
    save_pretrained(model, tmp_path / "a")
    again = load_pretrained(tmp_path / "a", Model())
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
        assert again.state_dict()[name].dtype == tensor.dtype
    index = torch.randint(0, 50, (2, 7))
    assert torch.equal(again(index), model(index))
    assert isinstance(again.conv, MPOConv2d)
    assert again.conv.cores.bits == bits


def test_a_whole_declaration_of_integers_alone(tmp_path):
    small = tensorize(nn.Sequential(nn.Linear(128, 128, bias=False), nn.ReLU()), budget=0.5)
    sizes = []
    for name, model in (("a", small), ("b", quantize(small, bits=8)), ("c", quantize(small, bits=4))):
        model = model.to(WIDE) if name == "c" else model
        save_pretrained(model, tmp_path / name)
        again = load_pretrained(tmp_path / name)
        x = torch.randn(3, 128, dtype=WIDE if name == "c" else torch.float32)
        assert torch.equal(again(x), model.eval()(x))
        sizes.append((tmp_path / name / "model.safetensors").stat().st_size)
    assert sizes[0] > 2.5 * sizes[1] > 3 * sizes[2]


def test_disentangled_layers_are_read_again(tmp_path):
    layer = quantize(disentangled(), bits=4).eval()
    save_pretrained(layer, tmp_path)
    again = load_pretrained(tmp_path)
    x = torch.randn(3, 16)
    assert torch.equal(again(x), layer(x))


def test_files_of_other_bits_are_refused(tmp_path):
    save_pretrained(of_every_kind(8), tmp_path)
    with pytest.raises(InvalidInputError, match="another declaration"):
        load_pretrained(tmp_path, of_every_kind(4))
    from unbraid.nn.declaration import build_layer, describe_layer

    declaration = describe_layer(of_every_kind(8).wide)
    with pytest.raises(FileFormatError, match="bits must be 8 or 4"):
        build_layer(declaration | {"bits": 3})
