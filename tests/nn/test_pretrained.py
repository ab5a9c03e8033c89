import copy
import errno
import json
import os
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from unbraid.circuits import Circuit, parse_ansatz
from unbraid.ground.errors import FileFormatError, InvalidInputError, OutputError, UnbraidError
from unbraid.ground.files import read_tensors, write_tensors
from unbraid.ground.manifest import hash_tensors
from unbraid.nn import (
    Architecture,
    DisentangledLinear,
    TensorLayer,
    disentangle_layers,
    load_pretrained,
    save_pretrained,
    tensorize,
)
from unbraid.tensors import MPO


class Custom(nn.Module):
    def __init__(self, dtype=None):
        super().__init__()
        self.first = nn.Linear(8, 8, dtype=dtype)
        self.second = nn.Linear(8, 8, dtype=dtype)
        self.scale = nn.Parameter(torch.tensor(2.0, dtype=dtype))

    def forward(self, x):
        return self.scale * self.second(torch.tanh(self.first(x))) + x


def joints(dtype=None):
    ansatz = parse_ansatz("2b | bn+relu | cnot+1b | relu | 2b", 3)
    layer = DisentangledLinear(
        Circuit(ansatz, "random", 1, dtype=dtype),
        MPO.random((2,) * 3, (2,) * 3, 2, dtype=dtype),
        Circuit(ansatz, "random", 2, mirrored=True, dtype=dtype),
        out_features=7,
        in_features=8,
        bias=torch.randn(7),
    )
    model = nn.Sequential(nn.Flatten(), layer)
    model(torch.randn(50, 8, dtype=dtype))
    return model


def plain():
    relu = nn.ReLU()
    model = nn.Sequential(
        nn.Linear(8, 8),
        nn.BatchNorm1d(8, eps=1e-3, momentum=None),
        relu,
        nn.Linear(8, 6, bias=False),
        relu,
        nn.Dropout(0.3),
        nn.LayerNorm(6),
        nn.LayerNorm((6,), bias=False),
        nn.LayerNorm(6, elementwise_affine=False),
        nn.GELU("tanh"),
        nn.Sequential(nn.LeakyReLU(0.3), nn.Linear(6, 4), nn.ELU(0.5)),
        nn.Softmax(-1),
        nn.BatchNorm1d(4, affine=False),
    )
    model(torch.randn(50, 8))
    return model


def shared():
    layer = nn.Linear(8, 8)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Sequential(nn.SiLU(), layer))


MODELS = {
    "plain": plain,
    "shared": shared,
    "shared and tensorized": lambda: tensorize(shared()),
    "tensorized": lambda: tensorize(plain(), max_bond=2),
    "a layer alone": lambda: tensorize(nn.Linear(8, 5, bias=False)),
    "disentangled": lambda: disentangle_layers(tensorize(shared(), sites="qubits"), "all-linear", 2, max_sweeps=3),
    "float64": lambda: tensorize(plain(), max_bond=2).double(),
    "joints": joints,
    "joints in float64": lambda: joints(torch.float64),
    "no parameters": lambda: nn.Sequential(nn.ReLU()),
    "mixed dtypes": lambda: nn.Sequential(nn.BatchNorm1d(8), tensorize(nn.Linear(8, 8).double())),
}


@pytest.mark.parametrize("name", MODELS)
def test_loaded_model_equals_the_saved_one(tmp_path, name):
    model = MODELS[name]().eval()
    save_pretrained(model, tmp_path / "m")
    loaded = load_pretrained(tmp_path / "m")
    first, second = model.state_dict(), loaded.state_dict()
    assert list(first) == list(second)
    assert all(torch.equal(first[key], second[key]) and first[key].dtype == second[key].dtype for key in first)
    assert repr(loaded) == repr(model)
    assert not loaded.training
    if name != "mixed dtypes":
        dtype = next((p.dtype for p in model.parameters()), torch.float32)
        x = torch.randn(5, 8, dtype=dtype)
        assert torch.equal(loaded(x), model(x))
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("step", ["none", "tensorized", "disentangled"])
def test_custom_modules_load_into_their_architecture(tmp_path, dtype, step):
    model = Custom(dtype)
    if step != "none":
        model = tensorize(model, ["first"], sites="qubits")
    if step == "disentangled":
        model = disentangle_layers(model, ["first"], 1, max_sweeps=3)
    save_pretrained(model, tmp_path)
    with pytest.raises(InvalidInputError, match="pass its original architecture"):
        load_pretrained(tmp_path)
    for architecture in (Custom(dtype), Custom()):
        loaded = load_pretrained(tmp_path, architecture)
        assert loaded is architecture
        x = torch.randn(4, 8, dtype=dtype)
        assert torch.equal(loaded(x), model.eval()(x))
    with pytest.raises(UnbraidError):
        load_pretrained(tmp_path, nn.Linear(3, 3))


def test_models_behave_the_same_in_training_after_loading(tmp_path):
    model = plain()
    save_pretrained(model, tmp_path)
    loaded = load_pretrained(tmp_path).train()
    x = torch.randn(20, 8)
    outputs = []
    for m in (model.train(), loaded):
        torch.manual_seed(0)
        outputs.append(m(x))
    assert torch.equal(*outputs)


def test_saving_replaces_and_a_refused_model_leaves_the_old_files(tmp_path):
    save_pretrained(plain(), tmp_path)
    model = tensorize(nn.Linear(8, 8))
    save_pretrained(model, tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    bad = nn.Linear(2, 2)
    nn.init.constant_(bad.weight, torch.nan)
    with pytest.raises(InvalidInputError, match="'weight' must be finite"):
        save_pretrained(bad, tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError):
        save_pretrained(model, tmp_path / "file")


def saved(tmp_path):
    model = disentangle_layers(tensorize(nn.Sequential(nn.Linear(8, 8)), sites="qubits"), "0", 1, max_sweeps=2)
    save_pretrained(model, tmp_path)
    return model


def refused(tmp_path, message):
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(FileFormatError, match=message):
        load_pretrained(tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def rewrite(tmp_path, change, header=True):
    """Change the configuration, in both places."""
    content = json.loads((tmp_path / "config.json").read_text())
    change(content)
    (tmp_path / "config.json").write_text(json.dumps(content))
    if header:
        tensors, _ = read_tensors(tmp_path / "model.safetensors")
        write_tensors(tmp_path / "model.safetensors", tensors, {"config": json.dumps(content)})


def test_missing_cut_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(FileFormatError, match="no folder"):
        load_pretrained(tmp_path / "nowhere")
    refused(tmp_path, "Cannot read")
    saved(tmp_path)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    for length in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        refused(tmp_path, "no complete safetensors")
    path.write_bytes(b"PK\x03\x04" * 100)
    refused(tmp_path, "no complete safetensors")
    path.unlink()
    refused(tmp_path, "no such file")
    path.write_bytes(whole)
    config = (tmp_path / "config.json").read_text()
    for text, message in (
        (config[: len(config) // 2], "no valid JSON"),
        ("[]", "no configuration"),
        ('{"model_type": "bert"}', "no configuration"),
        ("null", "no configuration"),
        ('{"model_type": "bert"}', "load the folder with its from_pretrained"),
        ("[" * 50_000, "no valid JSON"),
    ):
        (tmp_path / "config.json").write_text(text)
        refused(tmp_path, message)


def test_a_flipped_bit_is_noticed(tmp_path):
    saved(tmp_path)
    path = tmp_path / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-2] ^= 64
    path.write_bytes(bytes(content))
    refused(tmp_path, "not those that were written")


def test_an_interrupted_save_leaves_a_folder_that_loads_as_a_whole(tmp_path):
    model = saved(tmp_path)
    config = (tmp_path / "config.json").read_bytes()
    other = tensorize(nn.Linear(8, 3))
    save_pretrained(other, tmp_path)
    (tmp_path / "config.json").write_bytes(config)  # new tensors, old configuration
    x = torch.randn(2, 8)
    assert torch.equal(load_pretrained(tmp_path)(x), other(x))
    assert not torch.equal(load_pretrained(tmp_path)(x)[:, :1], model(x)[:, :1])


def test_a_pair_of_files_that_do_not_belong_together_is_refused(tmp_path):
    saved(tmp_path)
    write_tensors(tmp_path / "model.safetensors", {"weight": torch.zeros(2, 2)})
    refused(tmp_path, "do not belong together")


def declare(kind, **options):
    """Another declaration in the place of the saved one."""
    return lambda c: c.update(declaration={"type": kind, "options": options})


def layer(change):
    return lambda c: c["declaration"]["children"]["0"].update(change)


def core(**change):
    return lambda c: c["declaration"]["children"]["0"]["core"].update(change)


def circuit(**change):
    return lambda c: c["declaration"]["children"]["0"]["output_circuit"].update(change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(version=4), "Update unbraid"),
        (lambda c: c.pop("layers"), "layers"),
        (lambda c: c.pop("declaration"), "declaration"),
        (lambda c: c.update(surprise=1), "surprise"),
        (lambda c: c.update(dtype="os.system"), "Unknown dtype"),
        (lambda c: c.update(dtype="nn"), "Unknown dtype"),
        (lambda c: c["declaration"].update(type="os.system"), "unknown type"),
        (lambda c: c["declaration"].pop("type"), "malformed"),
        (lambda c: c["declaration"].update(children=3), "malformed"),
        (lambda c: c["declaration"]["children"]["0"].pop("core"), "malformed"),
        (lambda c: c["declaration"]["children"]["0"].pop("bias"), "malformed"),
        (layer({"bias": False}), "does not fit the model; surplus: 0.bias"),
        (core(bond_dims=[2]), "malformed"),
        (core(bond_dims=[0, 1]), "positive"),
        (core(out_dims=[2, 2, "x"]), "malformed"),
        (core(dtype="int64"), "malformed"),
        (core(out_dims=[10**9] * 3), "more numbers than"),
        (core(out_dims=[-(10**9)] * 3), "positive"),
        (core(out_dims=[4, 2, 2]), "impossible layer"),
        (layer({"out_features": 10**12}), "more numbers than"),
        (circuit(wire_dims=[4096, 2, 2]), "more numbers than|large gate|impossible layer"),
        (circuit(layers=[[["cnot", [0]]]]), "no description"),
        (declare("Linear", in_features=10**6, out_features=10**6, bias=True), "more numbers"),
        (declare("Linear", in_features=-4, out_features=-4, bias=True), "."),
        (
            declare("LayerNorm", normalized_shape=[10**6] * 3, eps=1.0, elementwise_affine=True, bias=True),
            "more numbers",
        ),
        (declare("ReLU", hook=1), "ReLU takes"),
        (declare("ReLU"), "does not fit the model; surplus"),
    ],
)
def test_hostile_or_newer_configurations_are_refused(tmp_path, change, message):
    saved(tmp_path)
    rewrite(tmp_path, change)
    refused(tmp_path, message)


def test_a_deeply_nested_declaration_is_refused(tmp_path):
    saved(tmp_path)
    nested = {"type": "ReLU", "options": {}}
    for _ in range(300):
        nested = {"type": "Sequential", "children": {"0": nested}}
    rewrite(tmp_path, lambda c: c.update(declaration=nested))
    with pytest.raises(FileFormatError):
        load_pretrained(tmp_path)


def test_missing_and_wrong_tensors_are_named(tmp_path):
    save_pretrained(Custom(), tmp_path)
    more, wider = Custom(), Custom()
    more.third = nn.Parameter(torch.zeros(1))
    wider.second = nn.Linear(9, 8)
    with pytest.raises(FileFormatError, match="missing: third"):
        load_pretrained(tmp_path, more)
    with pytest.raises(FileFormatError, match=r"of another shape: second\.weight"):
        load_pretrained(tmp_path, wider)
    save_pretrained(tensorize(Custom(), ["first"]), tmp_path)
    with pytest.raises(InvalidInputError, match="no layer 'first'"):
        load_pretrained(tmp_path, nn.Sequential(nn.Linear(8, 8)))


def test_a_model_that_the_file_does_not_fit_stays_as_it_was(tmp_path):
    class Wide(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.first, self.second = nn.Linear(8, 8), nn.Linear(8, width)

    save_pretrained(tensorize(Wide(4), ["first"], max_bond=2, sites="qubits"), tmp_path)
    other = Wide(5)
    with pytest.raises(FileFormatError, match=r"of another shape: second\.weight"):
        load_pretrained(tmp_path, other)
    assert type(other.first) is nn.Linear


def test_a_layer_of_another_size_or_declaration_is_refused(tmp_path):
    def declared(text, legs=(2, 2, 2)):
        return Architecture((TensorLayer(legs, (2, 2), 1, text, norm=False, relu=False),)).build()

    class Wide(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.first = layer

    save_pretrained(Wide(declared("1b").layer1), tmp_path)
    same = Wide(nn.Linear(8, 4, bias=False))
    assert isinstance(load_pretrained(tmp_path, same).first, DisentangledLinear)
    for other in (nn.Linear(16, 4), nn.Linear(8, 5), declared("1b", (2,) * 4).layer1, nn.Identity()):
        with pytest.raises(InvalidInputError, match=r"'first' of the model has \(outputs, inputs\)"):
            load_pretrained(tmp_path, Wide(other))
    with pytest.raises(InvalidInputError, match="'first' of the model is of another declaration"):
        load_pretrained(tmp_path, Wide(declared("1b+cnot").layer1))


@pytest.mark.parametrize("version", [2.0, "2", True, None])
def test_a_version_that_is_no_whole_number_is_refused(tmp_path, version):
    save_pretrained(nn.Sequential(nn.Linear(2, 2)), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"version": version}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(FileFormatError, match="version"):
        load_pretrained(tmp_path)


def test_a_hostile_bias_is_refused_before_memory_is_given_to_it(tmp_path):
    save_pretrained(nn.Sequential(nn.Linear(2, 2)), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["declaration"]["children"]["1"] = {
        "type": "Linear",
        "options": {"in_features": 0, "out_features": 2**40, "bias": True},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(FileFormatError):
        load_pretrained(tmp_path)


def test_a_declaration_is_no_model(tmp_path):
    save_pretrained(nn.Sequential(nn.Linear(2, 2)), tmp_path)
    with pytest.raises(InvalidInputError, match=r"model must be a network; got tuple.* what its build"):
        load_pretrained(tmp_path, (2, 2))


def test_the_parametrization_of_gates_is_kept(tmp_path):
    layer = TensorLayer((2,) * 3, (2,) * 3, 1, input_circuit="2b+1b", norm=False, relu=False)
    model = Architecture((layer,)).build(3, parametrization="cayley", dtype=torch.float64)
    for parameter in model.parameters():
        parameter.data += 0.5 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    save_pretrained(model, tmp_path)
    loaded = load_pretrained(tmp_path)
    x = torch.randn(4, 8, dtype=torch.float64)
    torch.testing.assert_close(loaded(x), model(x))
    assert loaded.layer1.input_circuit.parametrization == "cayley"


class Tied(nn.Module):
    """A table that is also the last layer, and a layer that stands at two places."""

    def __init__(self, tie=True):
        super().__init__()
        self.table, self.head = nn.Embedding(6, 8), nn.Linear(8, 6, bias=False)
        self.first = self.second = nn.Linear(8, 8)
        if tie:
            self.head.weight = self.table.weight

    def forward(self, x):
        return self.head(self.second(torch.tanh(self.first(self.table(x)))))


def test_shared_parameters_are_stored_once_and_come_back_shared(tmp_path):
    model = tensorize(Tied(), ["first"], max_bond=2)
    save_pretrained(model, tmp_path)
    stored, _ = read_tensors(tmp_path / "model.safetensors")
    assert sum(tensor.numel() for tensor in stored.values()) == sum(p.numel() for p in model.parameters())
    for architecture in (Tied(), Tied(tie=False)):
        loaded = load_pretrained(tmp_path, architecture)
        assert loaded.head.weight is loaded.table.weight
        assert loaded.first is loaded.second
        assert list(loaded.state_dict()) == list(model.state_dict())
        x = torch.arange(6)
        assert torch.equal(loaded(x), model.eval()(x))


def test_parameters_of_their_own_are_not_shared_by_a_tied_architecture(tmp_path):
    model = Tied(tie=False)
    save_pretrained(model, tmp_path)
    loaded = load_pretrained(tmp_path, Tied())
    assert loaded.head.weight is not loaded.table.weight
    x = torch.arange(6)
    assert torch.equal(loaded(x), model(x))


def test_files_of_the_first_version_load(tmp_path):
    model = tensorize(Tied(), ["first"], max_bond=2)
    save_pretrained(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    everything = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    config["tensors"] = hash_tensors(*(everything[name] for name in sorted(everything)))
    config["version"] = 1
    del config["tied"], config["transformers"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    write_tensors(tmp_path / "model.safetensors", everything, {"config": json.dumps(config)})
    loaded = load_pretrained(tmp_path, Tied())
    assert loaded.head.weight is loaded.table.weight
    assert torch.equal(loaded(torch.arange(6)), model.eval()(torch.arange(6)))


SHARED = {"head.weight": "table.weight", "second.weight": "first.weight", "second.bias": "first.bias"}


@pytest.mark.parametrize(
    ("tied", "message"),
    [
        ({"head.weight": "nowhere"}, "lacks 'nowhere'"),
        (SHARED | {"first.bias": "first.bias"}, "'second.bias' is shared"),
        ({"head.weight": "first.weight"}, "missing: second.bias, second.weight; of another shape: head.weight"),
        (SHARED | {"first.other": "first.weight"}, r"surplus: first\.other"),
    ],
)
def test_hostile_names_of_shared_parameters_are_refused(tmp_path, tied, message):
    model = Tied()
    save_pretrained(model, tmp_path)
    rewrite(tmp_path, lambda c: c.update(tied=tied))
    with pytest.raises(FileFormatError, match=message):
        load_pretrained(tmp_path, Tied())


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_models_without_plain_numbers_are_refused_and_the_old_files_stay(tmp_path):
    save_pretrained(plain(), tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with torch.device("meta"):
        empty = nn.Sequential(nn.Linear(4, 4))
    integers = nn.Linear(4, 4)
    integers.register_buffer("codes", torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8))

    class Packed(nn.Linear):
        def get_extra_state(self):
            return {"packed": (1, 2)}

    for model, message in (
        (empty, "'0.weight' is on the meta device"),
        (integers, "'codes' is a torch.qint8, and only plain tensors"),
        (Packed(4, 4), "'_extra_state' is a dict"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            save_pretrained(model, tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize("step", [(Path, "write_bytes"), (Path, "replace"), (os, "fsync")])
@pytest.mark.parametrize("call", [1, 2])
def test_a_full_disk_leaves_the_earlier_model(tmp_path, monkeypatch, step, call):
    model = saved(tmp_path)
    x = torch.randn(2, 8)
    place, name = step
    real, calls = getattr(place, name), []

    def full(*arguments):
        calls.append(arguments)
        if len(calls) == call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments)

    monkeypatch.setattr(place, name, full)
    with pytest.raises(OutputError, match="No space left on device"):
        save_pretrained(tensorize(nn.Linear(8, 3)), tmp_path)
    monkeypatch.undo()
    assert len(calls) == call
    assert torch.equal(load_pretrained(tmp_path)(x), model(x))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_measured_joints_come_back(tmp_path):
    ansatz = parse_ansatz("2b | bn+rotation(0.5) | 2b | weak(0.9) | 1b", 3)
    core = MPO.random((2,) * 3, (2,) * 3, 2)
    model = nn.Sequential(
        DisentangledLinear(Circuit(ansatz, "random", 1), core, Circuit(ansatz, "random", 2, mirrored=True))
    )
    model(torch.randn(50, 8))
    save_pretrained(model, tmp_path)
    loaded, x = load_pretrained(tmp_path), torch.randn(9, 8)
    found = []
    for each in (model.eval(), loaded):
        torch.manual_seed(3)
        found.append(each(x))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("known", [True, False])
def test_keys_that_lack_or_are_too_many_are_named(tmp_path, known):
    model = saved(tmp_path)
    state, header = read_tensors(tmp_path / "model.safetensors")
    name = next(iter(state))
    other = None if known else copy.deepcopy(model)
    for changed, message in (
        ({key: value for key, value in state.items() if key != name}, f"missing: {re.escape(name)}"),
        (state | {"more": torch.zeros(2)}, "surplus: more"),
    ):
        write_tensors(tmp_path / "model.safetensors", changed, header)
        with pytest.raises(FileFormatError, match=message):
            load_pretrained(tmp_path, other)
