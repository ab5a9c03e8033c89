import json
import shutil
import socket
import sys

import pytest
import torch
from torch import nn

from unbraid.ground.errors import FileFormatError, InvalidInputError, MissingExtraError
from unbraid.ground.files import read_tensors, write_tensors
from unbraid.nn import MPOLinear, disentangle_layers, load_pretrained, merge_back, save_pretrained, tensorize
from unbraid.nn.transformers_models import is_transformers_folder, load_transformers

transformers = pytest.importorskip("transformers")
IDS = torch.randint(0, 40, (2, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def llama(tie=True, dtype=torch.float32):
    config = transformers.LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        tie_word_embeddings=tie,
        rope_theta=500.0,
    )
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config).to(dtype).eval()


def bert():
    config = transformers.BertConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        num_labels=3,
        id2label={0: "a", 1: "b", 2: "c"},
    )
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification(config).eval()


def gpt2():
    config = transformers.GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(config).eval()


def outputs(model):
    with torch.no_grad():
        return model(IDS).logits


MODELS = {
    "Llama, tied": lambda: tensorize(llama(), ["q_proj", "down_proj"], max_bond=4),
    "Llama": lambda: tensorize(llama(tie=False), "all-linear", max_bond=4),
    "Llama in double precision": lambda: tensorize(llama(dtype=torch.float64), ["o_proj"], max_bond=4),
    "Llama in circuits": lambda: disentangle_layers(
        tensorize(llama(), ["q_proj"], max_bond=2, sites="qubits"), ["q_proj"], 1, max_sweeps=2
    ),
    "BERT": lambda: tensorize(bert(), "all-linear", max_bond=4),
    "BERT, its tables too": lambda: tensorize(bert(), ["word_embeddings", "classifier"], max_bond=4),
    "GPT-2": lambda: tensorize(gpt2(), ["c_attn", "c_fc"], max_bond=4),
    "not changed": bert,
}


@pytest.mark.parametrize("name", MODELS)
def test_a_loaded_model_equals_the_saved_one(tmp_path, name):
    model = MODELS[name]()
    save_pretrained(model, tmp_path)
    state = torch.get_rng_state()
    loaded = load_pretrained(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert type(loaded) is type(model)
    assert repr(loaded) == repr(model)
    first, second = model.state_dict(), loaded.state_dict()
    assert list(first) == list(second)
    assert all(torch.equal(first[key], second[key]) and first[key].dtype == second[key].dtype for key in first)
    assert torch.equal(outputs(loaded), outputs(model))
    assert not loaded.training
    config = loaded.config.to_dict()
    assert config.items() >= {k: v for k, v in model.config.to_dict().items() if k != "_name_or_path"}.items()


def test_half_precision_keeps_exact_frequencies(tmp_path):
    source = tmp_path / "source"
    llama(dtype=torch.bfloat16).save_pretrained(source)
    model = tensorize(load_transformers(source), ["q_proj"], max_bond=4)
    save_pretrained(model, tmp_path / "model")
    loaded = load_pretrained(tmp_path / "model")
    assert loaded.lm_head.weight.dtype == torch.bfloat16
    assert torch.equal(loaded.model.rotary_emb.inv_freq, llama().model.rotary_emb.inv_freq)
    assert torch.equal(outputs(loaded), outputs(model))


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path):
    model = tensorize(llama(), ["q_proj"], max_bond=4)
    save_pretrained(model, tmp_path)
    tensors, _ = read_tensors(tmp_path / "model.safetensors")
    assert sum(tensor.numel() for tensor in tensors.values()) == sum(p.numel() for p in model.parameters())
    loaded = load_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_a_model_untied_by_hand_comes_back_untied(tmp_path):
    model = llama()
    model.lm_head.weight = nn.Parameter(2 * model.lm_head.weight.detach())
    save_pretrained(tensorize(model, ["lm_head"], max_bond=4), tmp_path)
    loaded = load_pretrained(tmp_path)
    assert isinstance(loaded.lm_head, MPOLinear)
    assert torch.equal(outputs(loaded), outputs(tensorize(model, ["lm_head"], max_bond=4)))
    save_pretrained(model, tmp_path)
    assert torch.equal(outputs(load_pretrained(tmp_path)), outputs(model))


def test_settings_of_generation_are_kept(tmp_path):
    model = tensorize(llama(), ["q_proj"], max_bond=4)
    model.generation_config.update(eos_token_id=[3, 5], pad_token_id=0, repetition_penalty=1.5)
    save_pretrained(model, tmp_path)
    loaded = load_pretrained(tmp_path)
    assert loaded.generation_config.to_dict() == model.generation_config.to_dict()
    again = [each.generate(IDS[:1], max_new_tokens=5, do_sample=False) for each in (model, loaded)]
    assert torch.equal(*again)


def test_the_original_architecture_may_be_passed(tmp_path):
    model = tensorize(llama(), ["q_proj"], max_bond=4)
    save_pretrained(model, tmp_path)
    other = llama()
    assert load_pretrained(tmp_path, other) is other
    assert torch.equal(outputs(other), outputs(model))


def test_a_tied_layer_is_refused_with_the_targets_that_are_left():
    with pytest.raises(InvalidInputError, match=r"'lm_head' shares its weight with 'model\.embed_tokens'") as caught:
        tensorize(llama(), max_bond=4)
    assert "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj on the command line" in str(caught.value)


class Subclass(transformers.BertForSequenceClassification):
    pass


def test_classes_of_ones_own_need_their_architecture(tmp_path):
    model = Subclass(bert().config)
    save_pretrained(model, tmp_path)
    with pytest.raises(InvalidInputError, match="pass its original architecture"):
        load_pretrained(tmp_path)
    assert torch.equal(outputs(load_pretrained(tmp_path, Subclass(model.config))), outputs(model.eval()))


def rewrite(place, change):
    content = json.loads((place / "config.json").read_text())
    change(content)
    (place / "config.json").write_text(json.dumps(content))
    tensors, _ = read_tensors(place / "model.safetensors")
    write_tensors(place / "model.safetensors", tensors, {"config": json.dumps(content)})


def config(**change):
    return lambda c: c["transformers"]["config"].update(change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["transformers"].update({"class": "system"}), "'system', which is no 'llama' model"),
        (lambda c: c["transformers"].update({"class": "os.system"}), "'os.system', which is no 'llama' model"),
        (lambda c: c["transformers"].update({"class": "BertModel"}), "'BertModel', which is no 'llama' model"),
        (lambda c: c["transformers"].update({"class": "LlamaConfig"}), "'LlamaConfig', which is no 'llama' model"),
        (lambda c: c["transformers"].update({"class": ["x"]}), "which is no 'llama' model"),
        (lambda c: c["transformers"].pop("class"), "malformed"),
        (lambda c: c["transformers"].update(config=3), "malformed"),
        (lambda c: c["transformers"].update(generation_config=3), "malformed"),
        (config(model_type="mine"), "no model type 'mine'"),
        (config(hidden_size="wide"), "transformers cannot"),
        (config(num_hidden_layers=10**9), "1000000000 layers"),
        (config(num_hidden_layers=3), r"missing: model\.layers\.2"),
        (config(num_hidden_layers=1), "contradicts itself"),
        (config(intermediate_size=25), "of another shape|contradicts itself"),
        (lambda c: c["layers"].pop("model.layers.0.self_attn.q_proj"), "does not fit the model; missing"),
    ],
)
def test_hostile_or_foreign_descriptions_are_refused(tmp_path, change, message):
    save_pretrained(tensorize(llama(), ["q_proj"], max_bond=4), tmp_path)
    rewrite(tmp_path, change)
    with pytest.raises(FileFormatError, match=message):
        load_pretrained(tmp_path)


def test_kernels_are_not_taken_from_files(tmp_path):
    model = tensorize(llama(), ["q_proj"], max_bond=4)
    save_pretrained(model, tmp_path)
    rewrite(tmp_path, config(attn_implementation="someone/kernel", _attn_implementation="someone/kernel"))
    assert torch.equal(outputs(load_pretrained(tmp_path)), outputs(model))


def test_without_transformers_the_extra_is_named(tmp_path, monkeypatch):
    save_pretrained(tensorize(llama(), ["q_proj"], max_bond=4), tmp_path / "ours")
    llama().save_pretrained(tmp_path / "theirs")
    monkeypatch.setitem(sys.modules, "transformers", None)
    for call in (lambda: load_pretrained(tmp_path / "ours"), lambda: load_transformers(tmp_path / "theirs")):
        with pytest.raises(MissingExtraError, match=r"unbraid\[transformers\]"):
            call()


@pytest.mark.parametrize("make", [llama, bert, gpt2])
def test_a_plain_folder_of_transformers_loads(tmp_path, make):
    model = make()
    model.save_pretrained(tmp_path)
    assert is_transformers_folder(tmp_path)
    loaded = load_transformers(tmp_path)
    assert type(loaded) is type(model)
    assert torch.equal(outputs(loaded), outputs(model))
    with pytest.raises(FileFormatError, match="load the folder with its from_pretrained"):
        load_pretrained(tmp_path)
    save_pretrained(merge_back(tensorize(nn.Linear(4, 4))), tmp_path)
    assert not is_transformers_folder(tmp_path)


def test_sharded_folders_load(tmp_path):
    model = bert()
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert torch.equal(outputs(load_transformers(tmp_path)), outputs(model))


def change_config(place, **change):
    content = json.loads((place / "config.json").read_text()) | change
    (place / "config.json").write_text(json.dumps(content))


def test_damaged_and_foreign_folders_give_one_clear_message(tmp_path):
    bert().save_pretrained(tmp_path / "whole")

    def folder(name):
        return shutil.copytree(tmp_path / "whole", tmp_path / name)

    unknown = folder("unknown")
    change_config(unknown, model_type="mine", auto_map={"AutoModel": "modeling_mine.Mine"})
    (unknown / "modeling_mine.py").write_text("raise SystemExit('this code must not run')")
    with pytest.raises(FileFormatError, match="no model type 'mine'"):
        load_transformers(unknown)

    pickled = folder("pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(FileFormatError, match="has no safetensors file"):
        load_transformers(pickled)

    cut = folder("cut")
    content = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(FileFormatError, match="transformers cannot load"):
        load_transformers(cut)

    lacking = folder("lacking")
    tensors, _ = read_tensors(lacking / "model.safetensors")
    del tensors["classifier.weight"]
    write_tensors(lacking / "model.safetensors", tensors, {"format": "pt"})
    with pytest.raises(FileFormatError, match=r"BertForSequenceClassification; missing: classifier\.weight"):
        load_transformers(lacking)


def test_a_class_that_is_not_known_falls_back_to_the_auto_class(tmp_path):
    bert().bert.save_pretrained(tmp_path)
    change_config(tmp_path, architectures=["Foreign"])
    assert type(load_transformers(tmp_path)) is transformers.BertModel


def test_surplus_keys_and_other_shapes_in_a_folder_of_transformers_are_named(tmp_path):
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    model = transformers.BertModel(config)
    model.save_pretrained(tmp_path)
    state, header = read_tensors(tmp_path / "model.safetensors")
    name = "encoder.layer.0.output.dense.weight"
    for changed, message in (
        (state | {"more.weight": torch.zeros(2)}, "surplus: more.weight"),
        (state | {name: torch.zeros(3, 3)}, f"of another shape: {name}"),
    ):
        write_tensors(tmp_path / "model.safetensors", changed, header)
        with pytest.raises(FileFormatError, match=message):
            load_transformers(tmp_path)
