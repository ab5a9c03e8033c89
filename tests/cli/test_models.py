"""Models of transformers on the command line."""

import json

import pytest
import torch
from typer.testing import CliRunner

from unbraid.cli.app import app
from unbraid.ground.errors import InvalidInputError
from unbraid.nn import MPOLinear, load_pretrained

transformers = pytest.importorskip("transformers")


def call(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture
def folder(tmp_path):
    """A small Llama with tied weights, and files that stand for its tokenizer."""
    config = transformers.LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    place = tmp_path / "llama"
    transformers.LlamaForCausalLM(config).save_pretrained(place)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (place / name).write_text(json.dumps({"name": name}))
    (place / "modeling_own.py").write_text("raise SystemExit")
    return place


def test_a_folder_of_transformers_goes_through_the_verbs(folder, tmp_path):
    found = call("scan", folder, "--targets", "q_proj,up_proj", "--out", tmp_path / "scan")
    assert found.exit_code == 0, found.output

    found = call("compress", folder, "--targets", "q_proj,up_proj", "--budget", "0.5", "--out", tmp_path / "out")
    assert found.exit_code == 0, found.output
    report = json.loads((tmp_path / "out/report.json").read_text())
    sizes = report["extra"]["safetensors_bytes"]
    assert sizes["before"] == (folder / "model.safetensors").stat().st_size
    assert sizes["after"] == (tmp_path / "out/model/model.safetensors").stat().st_size
    assert f"{sizes['before']:,} before, {sizes['after']:,} after" in found.stdout
    assert report["parameters"]["mpo"] < report["parameters"]["before"]
    kept = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in (tmp_path / "out/model").iterdir()} == kept
    assert (tmp_path / "out/model/tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()

    model = load_pretrained(tmp_path / "out/model")
    assert isinstance(model.get_submodule("model.layers.0.mlp.up_proj"), MPOLinear)
    options = ["--targets", "down_proj", "--max-bond", "2", "--sites", "qubits"]
    found = call("compress", tmp_path / "out/model", *options, "--out", tmp_path / "more")
    assert found.exit_code == 0, found.output
    assert (tmp_path / "more/model/tokenizer.json").exists()
    options = ["--targets", "down_proj", "--depth", "1", "--max-sweeps", "2"]
    found = call("disentangle", tmp_path / "more/model", *options, "--out", tmp_path / "circuits")
    assert found.exit_code == 0, found.output
    found = call("export", tmp_path / "circuits/model", "--out", tmp_path / "export")
    assert found.exit_code == 0, found.output
    assert torch.isfinite(load_pretrained(tmp_path / "circuits/model")(torch.tensor([[1, 2, 3]])).logits).all()


def test_tied_weights_are_explained_and_weights_are_refused(folder, tmp_path):
    found = call("compress", folder, "--budget", "0.5", "--out", tmp_path / "out")
    assert isinstance(found.exception, InvalidInputError)
    assert "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj on the command line" in str(found.exception)
    assert not (tmp_path / "out/model").exists()
    found = call("scan", folder, "--weights", folder / "model.safetensors", "--out", tmp_path / "out")
    assert "a folder brings its own weights" in str(found.exception)


def test_the_bytes_before_are_those_of_the_weights_of_a_factory(tmp_path):
    from safetensors.torch import save_file

    from unbraid.recipes.models import digits_mlp

    save_file(digits_mlp().state_dict(), tmp_path / "w.safetensors")
    arguments = ["compress", "unbraid.recipes.models:digits_mlp", "--max-bond", "2", "--out", tmp_path / "out"]
    for more, names in (([], {"after"}), (["--weights", tmp_path / "w.safetensors"], {"before", "after"})):
        found = call(*arguments, *more)
        assert found.exit_code == 0, found.output
        sizes = json.loads((tmp_path / "out/report.json").read_text())["extra"]["safetensors_bytes"]
        assert set(sizes) == names
    assert sizes["before"] == (tmp_path / "w.safetensors").stat().st_size
