"""Entanglement of networks: weights, updates, adapters of several makes, attention."""

import math

import pytest
import torch
from torch import nn

from unbraid.ground.errors import InvalidInputError
from unbraid.ground.random import stream
from unbraid.nn import MPOLinear, attention_entropies, attention_profile, entanglement_profiles, tensorize
from unbraid.tensors import entropy_profile, low_rank_profile


class Conv1D(nn.Module):
    """GPT-2's linear layer, as transformers has it."""

    def __init__(self, outs, ins):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(ins, outs, generator=stream(0, "conv")))


Conv1D.__module__ = "transformers.pytorch_utils"


class Adapted(nn.Module):
    """A LoRA layer as PEFT makes it."""

    def __init__(self, linear, rank, adapters=("default",)):
        super().__init__()
        self.base_layer = linear
        self.lora_A = nn.ModuleDict({name: nn.Linear(linear.in_features, rank, bias=False) for name in adapters})
        self.lora_B = nn.ModuleDict({name: nn.Linear(rank, linear.out_features, bias=False) for name in adapters})
        self.scaling = dict.fromkeys(adapters, 2.0)
        for part in self.lora_B.values():
            nn.init.zeros_(part.weight)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(24, 16)
        self.wide = Conv1D(12, 16)
        self.mpo = MPOLinear.from_linear(nn.Linear(16, 16), (2,) * 4, (2,) * 4, max_bond=2)


@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Model()


@pytest.mark.parametrize("order", ["operator", "vector"])
def test_weights_of_all_kinds(model, order):
    found = {layer.name: layer for layer in entanglement_profiles(model, order=order)}
    assert list(found) == ["first", "wide", "mpo"]
    weights = {"first": model.first.weight, "wide": model.wide.weight.mT, "mpo": model.mpo.weight}
    for name, weight in weights.items():
        assert found[name].kind == "weight"
        assert found[name].shape == tuple(weight.shape)
        expected = entropy_profile(weight, order=order)
        assert found[name].profile.entropies == pytest.approx(expected.entropies, abs=1e-9)
        assert found[name].profile.out_dims == expected.out_dims
    assert [layer.name for layer in entanglement_profiles(model, ["wide"])] == ["wide"]


def test_updates_and_what_did_not_change(model):
    base = Model()
    base.load_state_dict(model.state_dict())
    with torch.no_grad():
        model.first.weight += 1e-4 * torch.outer(torch.arange(16.0), torch.ones(24))
    first, *others = entanglement_profiles(model, base=base, order="vector")
    assert first.kind == "update"
    assert first.profile.entropies[3] < 1e-3  # one vector times another
    assert [layer.profile for layer in others] == [None, None]
    assert others[0].to_dict() == {"name": "wide", "kind": "update", "shape": [12, 16], "profile": None}


def test_a_base_of_another_make_is_refused(model):
    with pytest.raises(InvalidInputError, match="no layer 'first'"):
        entanglement_profiles(model, base=nn.Linear(3, 3))
    other = Model()
    other.first = nn.Linear(24, 8)
    with pytest.raises(InvalidInputError, match=r"shape \(16, 24\), and \(8, 24\)"):
        entanglement_profiles(model, base=other)


def test_adapters_stand_for_their_layers(model):
    model.first = Adapted(model.first, 2)
    first, wide, _ = entanglement_profiles(model)
    assert (first.name, first.kind, first.shape, first.profile) == ("first", "adapter", (16, 24), None)
    assert wide.kind == "weight"
    b, a = model.first.lora_B["default"].weight, model.first.lora_A["default"].weight
    nn.init.normal_(b, generator=stream(0, "b"))
    (found,) = entanglement_profiles(model, ["first"])
    assert found.profile.entropies == pytest.approx(low_rank_profile(b, a).entropies, abs=1e-9)
    assert found.profile.rank == 2
    whole = entropy_profile(2.0 * b @ a)
    assert found.profile.entropies == pytest.approx(whole.entropies, abs=1e-6)


def test_several_adapters_and_plain_factors(model):
    model.first = Adapted(model.first, 2, ("one", "two"))
    names = [layer.name for layer in entanglement_profiles(model, "first")]
    assert names == ["first:one", "first:two"]
    plain = nn.Linear(24, 16)
    plain.lora_A = nn.Parameter(torch.randn(3, 24))
    plain.lora_B = nn.Parameter(torch.randn(16, 3))
    (found,) = entanglement_profiles(plain)
    assert (found.kind, found.profile.rank) == ("adapter", 3)
    plain.lora_A = nn.Parameter(torch.randn(3, 24, 1))
    with pytest.raises(InvalidInputError, match="no matrices lora_A"):
        entanglement_profiles(plain)


def test_zero_weights_and_missing_layers_are_named(model):
    nn.init.zeros_(model.first.weight)
    with pytest.raises(InvalidInputError, match="'first' is all zeros"):
        entanglement_profiles(model)
    with pytest.raises(InvalidInputError, match="matches the target"):
        entanglement_profiles(nn.ReLU())


def test_attention_that_is_known():
    same = torch.full((8, 8), 1 / 8)
    own = torch.eye(8)
    found = attention_profile(torch.stack([same, own]))
    assert found.rows.tolist() == pytest.approx([math.log(8), 0], abs=1e-6)
    assert found.matrix.tolist() == pytest.approx([0, math.log(8)], abs=1e-6)
    assert found.chain.shape == (2, 2)
    assert found.chain.abs().max() < 1e-6  # both are products of one matrix a qubit
    odd = torch.rand(3, 5, 5, generator=stream(0, "odd")).softmax(-1)
    assert attention_profile(odd).chain.shape == (3, 2)
    for row in odd[1]:
        assert row.sum() == pytest.approx(1)
    shannon = -(odd[1] * odd[1].log()).sum(-1).mean()
    assert float(attention_profile(odd).rows[1]) == pytest.approx(float(shannon), abs=1e-6)


@pytest.mark.parametrize(
    ("attention", "message"),
    [
        (torch.ones(3, 4), "must have shape"),
        (torch.ones(1, 1), "at least 2"),
        (torch.ones(0, 4, 4), "empty"),
        (torch.ones(4, 4), "sum to 1"),
        (torch.full((2, 2), math.nan), "must be finite"),
    ],
)
def test_what_is_no_attention(attention, message):
    with pytest.raises(InvalidInputError, match=message):
        attention_profile(attention)


@pytest.fixture(scope="module")
def llama():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        attn_implementation="eager",
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.LlamaForCausalLM(config)


def test_attention_of_a_transformer(llama):
    ids = torch.randint(32, (3, 12), generator=stream(0, "ids"))
    llama.train()
    short, whole = attention_entropies(llama, ids, lengths=(5, 12))
    assert llama.training
    assert whole.rows.shape == whole.matrix.shape == (2, 4)
    assert whole.chain.shape == (2, 4, 3)
    with torch.no_grad():
        weights = llama.eval()(ids, output_attentions=True).attentions
    expected = torch.stack([attention_profile(layer).matrix.mean(0) for layer in weights])
    torch.testing.assert_close(whole.matrix, expected)
    # earlier tokens do not see later ones
    expected = torch.stack([attention_profile(layer[..., :5, :5]).matrix.mean(0) for layer in weights])
    torch.testing.assert_close(short.matrix, expected, atol=1e-5, rtol=1e-5)
    assert whole.to_dict()["length"] == 12
    given = attention_entropies(llama, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    torch.testing.assert_close(given[0].matrix, whole.matrix)


def test_inputs_without_attention_are_refused(llama):
    ids = torch.ones(2, 6, dtype=torch.long)
    mask = torch.ones_like(ids)
    mask[0, 4:] = 0
    with pytest.raises(InvalidInputError, match="padded"):
        attention_entropies(llama, {"input_ids": ids, "attention_mask": mask})
    with pytest.raises(InvalidInputError, match="lengths must be"):
        attention_entropies(llama, ids, lengths=(7,))
    with pytest.raises(InvalidInputError, match="token numbers"):
        attention_entropies(llama, ids[0])
    with pytest.raises(InvalidInputError, match="cannot give its attention"):
        attention_entropies(llama, ids + 99)
    with pytest.raises(InvalidInputError, match="attn_implementation='eager'"):
        attention_entropies(nn.Linear(2, 2), ids)
    llama.set_attn_implementation("sdpa")
    try:
        with pytest.raises(InvalidInputError, match="'sdpa'"):
            attention_entropies(llama, ids)
    finally:
        llama.set_attn_implementation("eager")


def test_weights_of_a_transformer(llama):
    found = entanglement_profiles(llama, ["q_proj", "v_proj"], order="vector")
    assert len(found) == 4
    assert all(layer.profile.middle == 4 for layer in found)


def test_kernels_and_tables_are_matrices_too():
    model = nn.ModuleDict({"conv": nn.Conv2d(4, 8, 2), "table": nn.Embedding(16, 8), "head": nn.Linear(8, 4)})
    found = {each.name: each for each in entanglement_profiles(model, ".*")}
    assert {name: each.shape for name, each in found.items()} == {"conv": (8, 16), "table": (16, 8), "head": (4, 8)}
    kernel = entropy_profile(model["conv"].weight.detach().flatten(1), sites="qubits", order="operator")
    assert found["conv"].profile.entropies == pytest.approx(kernel.entropies)
    operators = {each.name: each for each in entanglement_profiles(tensorize(model, ".*"), ".*")}
    assert operators["conv"].profile.entropies == pytest.approx(kernel.entropies, abs=1e-4)
    assert [each.name for each in entanglement_profiles(model)] == ["head"]
