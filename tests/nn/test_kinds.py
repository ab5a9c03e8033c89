"""Convolutions, embeddings and Conv1D as operators: the same function, gradients, surgery, files."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from unbraid.ground.errors import InvalidInputError
from unbraid.nn import (
    MPOConv2d,
    MPOEmbedding,
    MPOLinear,
    describe_status,
    disentangle_layers,
    get_layer_status,
    input_moments,
    load_pretrained,
    match_layers,
    merge_back,
    quantize,
    save_pretrained,
    scan,
    tensorize,
)

WIDE = torch.float64


class Conv1D(nn.Module):
    """GPT-2's linear layer, as transformers has it."""

    def __init__(self, outs, ins):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(ins, outs))
        self.bias = nn.Parameter(torch.randn(outs))

    def forward(self, x):
        return x @ self.weight + self.bias


Conv1D.__module__ = "transformers.pytorch_utils"


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(50, 16, padding_idx=0)
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.wide = Conv1D(24, 16)
        self.head = nn.Linear(24, 5)

    def forward(self, index):
        x = self.table(index)
        x = x + self.conv(x[:, None]).mean(1)
        return self.head(torch.relu(self.wide(x)))


@settings(max_examples=40, deadline=None)
@given(
    channels=st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 2)),
    size=st.tuples(st.integers(1, 4), st.integers(1, 3)),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    padding=st.sampled_from([0, 1, (2, 1), "same", "valid"]),
    mode=st.sampled_from(["zeros", "reflect", "replicate", "circular"]),
    bias=st.booleans(),
    kernel=st.booleans(),
)
def test_convolutions_equal_their_dense_twins(channels, size, stride, dilation, padding, mode, bias, kernel):
    outs, ins, groups = channels
    conv = nn.Conv2d(
        ins * groups,
        outs * groups,
        size,
        1 if padding == "same" else stride,
        padding,
        dilation,
        groups,
        bias,
        mode,
        dtype=WIDE,
    )
    layer = tensorize(conv, "", sites="kernel" if kernel else "auto")
    assert isinstance(layer, MPOConv2d)
    x = torch.randn(2, ins * groups, 9, 8, dtype=WIDE, requires_grad=True)
    wanted = conv(x)
    assert torch.allclose(layer(x), wanted, atol=1e-12)
    probe = torch.randn_like(wanted)
    one, other = (torch.autograd.grad((f(x) * probe).sum(), x)[0] for f in (conv, layer))
    assert torch.allclose(one, other, atol=1e-11)
    with torch.no_grad():
        assert torch.allclose(layer.eval()(x), wanted, atol=1e-12)
    back = merge_back(layer)
    assert isinstance(back, nn.Conv2d)
    assert torch.allclose(back(x), wanted, atol=1e-12)
    assert back.extra_repr() == conv.extra_repr()


def test_cores_of_a_convolution_get_the_gradients_of_its_kernel():
    layer = tensorize(nn.Conv2d(4, 8, 3, dtype=WIDE), "", max_bond=3)
    x = torch.randn(2, 4, 6, 6, dtype=WIDE)
    cores = list(layer.cores)
    found = torch.autograd.grad(layer(x).sin().sum(), cores)
    wanted = torch.autograd.grad(nn.functional.conv2d(x, layer.weight, layer.bias).sin().sum(), cores)
    assert all(torch.allclose(a, b) for a, b in zip(found, wanted, strict=True))


def test_the_places_of_a_kernel_can_be_a_site():
    conv = nn.Conv2d(16, 32, 3)
    layer = tensorize(conv, "", sites="kernel", max_bond=4)
    assert (layer.mpo.out_dims[-1], layer.mpo.in_dims[-1]) == (1, 9)
    assert layer.mpo.shape == (32, 144)
    with pytest.raises(InvalidInputError, match="'kernel' is for convolutions, and this is none"):
        tensorize(nn.Linear(4, 4), sites="kernel")


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(2, 70),
    columns=st.integers(1, 20),
    shape=st.sampled_from([(), (0,), (5,), (2, 3)]),
    padding=st.sampled_from([None, 0, -1]),
    seed=st.integers(0, 99),
)
def test_embeddings_equal_their_dense_twins(rows, columns, shape, padding, seed):
    generator = torch.Generator().manual_seed(seed)
    table = nn.Embedding(rows, columns, padding, dtype=WIDE)
    with torch.no_grad():
        table.weight.normal_(generator=generator)
    layer = tensorize(table, "")
    assert isinstance(layer, MPOEmbedding)
    index = torch.randint(0, rows, shape, generator=generator)
    assert torch.allclose(layer(index), table(index), atol=1e-12)
    back = merge_back(layer)
    assert isinstance(back, nn.Embedding)
    assert back.padding_idx == table.padding_idx
    assert torch.allclose(back.weight, table.weight, atol=1e-12)


def test_gradients_of_an_embedding_leave_out_the_padding():
    layer = tensorize(nn.Embedding(30, 8, padding_idx=3, dtype=WIDE), "", max_bond=4)
    index = torch.tensor([[3, 3, 7], [29, 0, 7]])
    probe = torch.randn(2, 3, 8, dtype=WIDE)
    found = torch.autograd.grad((layer(index) * probe).sum(), list(layer.cores))
    masked = nn.functional.embedding(index, layer.weight) * (index != 3)[..., None]
    wanted = torch.autograd.grad((masked * probe).sum(), list(layer.cores))
    assert all(torch.allclose(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("index", [30, -1])
def test_rows_that_there_are_not(index):
    layer = tensorize(nn.Embedding(30, 8), "")  # padded to 32 rows
    with pytest.raises(InvalidInputError, match=f"from 0 to 29; got {index}"):
        layer(torch.tensor([2, index]))


def test_large_vocabularies_of_prime_factors_are_padded():
    layer = tensorize(nn.Embedding(50_257 // 16 + 2, 48), "", max_bond=4)  # 3143 = 7 x 449
    assert layer.num_embeddings == 3143
    assert layer.mpo.padded_shape[0] < 1.01 * 3143


@pytest.mark.parametrize("options", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}, {"sparse": True}])
def test_embeddings_that_do_more_are_refused(options):
    with pytest.raises(InvalidInputError, match=f"An MPOEmbedding has no {next(iter(options))}"):
        tensorize(nn.Embedding(8, 4, **options), "")


def test_conv1d_of_transformers_becomes_a_linear_operator():
    model = Model()
    x = torch.randn(3, 16)
    layer = tensorize(model.wide)
    assert isinstance(layer, MPOLinear)
    assert torch.allclose(layer(x), model.wide(x), atol=1e-5)
    pytest.importorskip("transformers")
    assert torch.allclose(merge_back(layer)(x), model.wide(x), atol=1e-5)


def test_all_linear_is_linear_layers_only_and_names_reach_every_kind():
    model = Model()
    assert list(match_layers(model, "all-linear")) == ["wide", "head"]
    assert list(match_layers(model, ["table", "conv"])) == ["table", "conv"]
    assert list(match_layers(model, ".*")) == ["table", "conv", "wide", "head"]
    with pytest.raises(InvalidInputError, match="No Linear, Conv1D, Conv2d, Embedding layer matches"):
        match_layers(nn.Sequential(nn.ReLU()), ["0"])
    whole = tensorize(model, ".*")
    index = torch.randint(0, 50, (2, 7))
    assert torch.allclose(whole(index), model(index), atol=1e-4)
    assert [type(layer).__name__ for layer in whole.children()] == [
        "MPOEmbedding",
        "MPOConv2d",
        "MPOLinear",
        "MPOLinear",
    ]


# options by layer


def test_one_key_counts_for_each_layer_names_before_last_parts_before_expressions():
    model = nn.ModuleDict(
        {"a": nn.ModuleDict({"q": nn.Linear(16, 16), "k": nn.Linear(16, 16)}), "q": nn.Linear(16, 16)}
    )
    options = {".*": {"max_bond": 1}, "[aq].*": {"max_bond": 7}, "q": {"max_bond": 2}, "a.q": {"max_bond": 3}}
    found = tensorize(model, "all-linear", max_bond=5, layer_options=options)
    bonds = {status.name: max(status.bond_dims) for status in get_layer_status(found)}
    assert bonds == {"a.q": 3, "a.k": 1, "q": 2}


def test_a_limit_of_a_layer_replaces_all_limits_above_and_other_options_stay():
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    found = tensorize(model, max_bond=2, sites="qubits", layer_options={"1": {"budget": 1.0}})
    assert found[0].mpo.bond_dims == (2, 2, 2)
    assert max(found[1].mpo.bond_dims) > 2
    assert found[1].mpo.num_sites == 4
    mixed = tensorize(model, max_bond=2, layer_options={"1": {"sites": "qubits"}})
    assert [layer.mpo.num_sites for layer in mixed] == [2, 4]
    assert mixed[1].mpo.bond_dims == (2, 2, 2)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"9": {"max_bond": 2}}, "layer_options\\['9'\\] matches no layer"),
        ({"0": {"bond": 2}}, "may have max_bond, rel_error, budget, sites, method; got 'bond'"),
        ({"0": {"budget": 2}}, "budget must be a fraction"),
        ({"(": {"budget": 0.5}}, "no regular expression"),
        ({"0": {"max_bond": "two"}}, "max_bond must be a positive integer"),
    ],
)
def test_impossible_layer_options(options, text):
    with pytest.raises(InvalidInputError, match=text):
        tensorize(nn.Sequential(nn.Linear(8, 8)), layer_options=options)


# status, files, bad weights


def test_status_counts_every_layer():
    model = tensorize(Model(), ["table", "wide"], max_bond=2)
    model.head.requires_grad_(False)
    layers = {status.name: status for status in get_layer_status(model)}
    assert list(layers) == ["table", "conv", "wide", "head"]
    assert layers["table"].kind == "MPOEmbedding"
    assert layers["table"].shape == (50, 16)
    assert layers["table"].parameters == sum(core.numel() for core in model.table.cores)
    assert layers["conv"].parameters == layers["conv"].dense_parameters == 80
    assert layers["conv"].bond_dims is None
    assert layers["wide"].dense_parameters == 16 * 24 + 24
    assert not layers["head"].trainable
    text = describe_status(list(layers.values()))
    assert "MPOEmbedding" in text
    assert f"{sum(status.parameters for status in layers.values()):,}" in text
    assert layers["head"].to_dict()["dtype"] == "float32"


def test_a_parametrised_weight_counts_as_it_is():
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(8, 4))
    assert get_layer_status(layer)[0].shape == (4, 8)
    x = torch.randn(3, 8)
    assert torch.allclose(tensorize(nn.Sequential(layer))(x), layer(x), atol=1e-5)


def test_every_kind_is_saved_and_read_again(tmp_path):
    model = Model()
    small = tensorize(model, ".*", max_bond=3)
    save_pretrained(small, tmp_path)
    again = load_pretrained(tmp_path, Model())
    index = torch.randint(0, 50, (2, 7))
    assert torch.equal(again(index), small(index))
    row = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    small = tensorize(row, "0", max_bond=2).eval()
    save_pretrained(small, tmp_path / "row")
    again = load_pretrained(tmp_path / "row")  # declared whole
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(again(x), small(x))
    dense = nn.Sequential(nn.Embedding(9, 4, padding_idx=1), nn.Linear(4, 2)).eval()
    save_pretrained(dense, tmp_path / "table")
    again = load_pretrained(tmp_path / "table")
    assert again[0].padding_idx == 1
    assert torch.equal(again(torch.arange(9)), dense(torch.arange(9)))


def test_a_file_of_another_kernel_is_refused(tmp_path):
    save_pretrained(tensorize(nn.Sequential(nn.Conv2d(2, 4, 3)), "0"), tmp_path)
    with pytest.raises(InvalidInputError, match=r"\(4, 8\); in .* it has \(4, 18\)"):
        load_pretrained(tmp_path, nn.Sequential(nn.Conv2d(2, 4, 2)))


class Quantised(torch.Tensor):
    """As the weights of quantisation libraries: a tensor of a class of its own."""


@pytest.mark.parametrize(
    ("weight", "text"),
    [
        (torch.empty(4, 4, device="meta"), "meta device"),
        (torch.ones(4, 4, dtype=torch.int8), "a weight of torch.int8: quantised"),
        (torch.ones(4, 4).as_subclass(Quantised), "a weight of Quantised: quantised"),
        (torch.full((4, 4), torch.nan), "must be finite"),
    ],
)
def test_weights_without_numbers_to_decompose(weight, text):
    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    model = nn.Sequential(layer, nn.Linear(4, 2))
    with pytest.raises(InvalidInputError, match=f"'0'.*{text}"):
        tensorize(model)
    assert type(model[0]) is nn.Linear


def test_the_name_of_conv1d_is_that_of_transformers():
    transformers = pytest.importorskip("transformers.pytorch_utils")
    layer = transformers.Conv1D(6, 4)
    assert isinstance(tensorize(layer), MPOLinear)


class Tripled(nn.Linear):
    def forward(self, x):
        return nn.functional.linear(x, 3 * self.weight, self.bias)


class Scaled(nn.Embedding):
    def forward(self, index):
        return 5 * super().forward(index)


class Standardised(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight - weight.mean(), bias)


class Named(nn.Linear):
    """Of another name alone."""


@pytest.mark.parametrize("layer", [Tripled(4, 3), Scaled(6, 4), Standardised(2, 3, 3)])
def test_layers_with_a_forward_of_their_own_are_left_alone(layer):
    model = nn.ModuleDict({"own": layer, "named": Named(4, 3)})
    assert list(match_layers(model, ".*")) == list(match_layers(model, "all-linear")) == ["named"]
    assert isinstance(tensorize(model, ["named"])["named"], MPOLinear)
    with pytest.raises(InvalidInputError, match=f"'own' is a {type(layer).__name__}, whose forward is its own"):
        tensorize(model, ["own"])


def test_operators_are_not_replaced_again():
    model = tensorize(nn.Sequential(nn.Linear(4, 4)))
    with pytest.raises(InvalidInputError, match=r"'0' is an operator already: merge_back"):
        tensorize(model)
    with pytest.raises(InvalidInputError, match="model must be a network"):
        tensorize(None)


def test_lazy_layers_and_weights_of_eight_bits_have_no_numbers():
    with pytest.raises(InvalidInputError, match="Run the model once"):
        tensorize(nn.Sequential(nn.LazyLinear(4)))
    model = nn.Sequential(nn.Linear(4, 4).to(torch.float8_e4m3fn))
    for call in (tensorize, scan, lambda each: quantize(each, "all-linear")):
        with pytest.raises(InvalidInputError, match=r"'0' has a weight of torch\.float8_e4m3fn: quantised"):
            call(model)


@pytest.mark.parametrize("inplace", [True, False])
def test_hooks_stay_with_their_layer(inplace):
    model, x, seen = nn.Sequential(nn.Linear(4, 4)), torch.randn(2, 4), []
    handle = model[0].register_forward_hook(lambda _, inputs, output: 2 * output)
    model[0].register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True)
    wanted = model(x)
    found = tensorize(model, inplace=inplace)
    assert torch.allclose(found(x), wanted, atol=1e-5)
    assert seen == [{}, {}]
    handle.remove()
    assert torch.allclose(model(x), wanted / 2, atol=1e-5)
    reparametrised = nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 4)))
    assert torch.allclose(tensorize(reparametrised)(x), reparametrised(x), atol=1e-5)


def test_parameters_lie_in_order():
    model = tensorize(nn.Sequential(nn.Linear(24, 36), nn.Linear(36, 6)), max_bond=4)
    assert all(parameter.is_contiguous() for parameter in model.parameters())
    assert nn.utils.parameters_to_vector(model.parameters()).numel() == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("weight", "bias"), [(True, False), (False, True), (False, False)])
def test_what_is_frozen_of_a_layer_stays_so(weight, bias):
    layer = nn.Linear(8, 8)
    layer.weight.requires_grad_(weight)
    layer.bias.requires_grad_(bias)
    operator = tensorize(layer, sites="qubits", max_bond=2)
    around = disentangle_layers(operator, "", 1, max_sweeps=1)
    for found in (operator, around):
        assert found.bias.requires_grad == bias
        assert {p.requires_grad for name, p in found.named_parameters() if name != "bias"} == {weight}


def test_conv1d_comes_back(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=20, n_embd=16, n_layer=1, n_head=2, n_positions=16)
    model = transformers.GPT2LMHeadModel(config).eval()
    tokens = torch.arange(8)[None]
    wanted = model(tokens).logits
    before = torch.get_rng_state()
    operators = tensorize(model, ["c_attn", "c_proj"], sites="qubits")
    save_pretrained(operators, tmp_path / "operators")
    loaded = load_pretrained(tmp_path / "operators")
    around = disentangle_layers(loaded, ["attn.c_proj"], 1, core_bond=16, max_sweeps=1)
    for network in (operators, loaded, around):
        plain = merge_back(network)
        torch.testing.assert_close(plain(tokens).logits, network(tokens).logits, atol=1e-4, rtol=1e-4)
        assert type(plain.transformer.h[0].attn.c_proj).__name__ == "Conv1D"
    assert torch.equal(torch.get_rng_state(), before)
    save_pretrained(merge_back(operators), tmp_path / "plain")
    torch.testing.assert_close(load_pretrained(tmp_path / "plain")(tokens).logits, wanted, atol=1e-4, rtol=1e-4)


def test_a_shared_bias_is_refused():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].bias = model[0].bias
    with pytest.raises(InvalidInputError, match="Layer '0' shares its bias with '1'"):
        tensorize(model)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"layer_options": {"0": 3}}, "layer_options must map names to options"),
        ({"layer_options": 5}, "layer_options must map layers to options"),
        ({"layer_options": {5: {}}}, "layer_options must map names to options"),
        ({"sites": ((4, "a"), (4, 4))}, "out_dims must be positive integers"),
        ({"moments": {"0": torch.eye(16)}}, "must be InputMoments; got Tensor"),
        ({"sites": "kernel"}, "is for convolutions, and this is none"),
    ],
)
def test_options_that_make_no_sense(options, text):
    with pytest.raises(InvalidInputError, match=text):
        tensorize(nn.Sequential(nn.Linear(16, 16)), **options)


def test_moments_of_other_layers_are_refused():
    model = nn.Sequential(nn.Linear(4, 4))
    moments = input_moments(model, torch.randn(8, 4))
    with pytest.raises(InvalidInputError, match=r"The moments are of '0', and none of the layers is called so: 'a\.0'"):
        tensorize(nn.ModuleDict({"a": model}), moments=moments)
