"""scan and compress with text, allocations and samples."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from unbraid.cli.app import app
from unbraid.ground.errors import UnbraidError
from unbraid.nn import MPOLinear, heal, load_pretrained
from unbraid.recipes.models import digits_mlp

transformers = pytest.importorskip("transformers")
LLAMA, BERT = "models/stories260k", "models/all-MiniLM-L6-v2"
BLOCKS = {LLAMA: r"model\.layers\.\d+", BERT: r"encoder\.layer\.\d+"}
TEXT = "text/wikitext2-valid.txt"
FACTORY = "unbraid.recipes.models:digits_mlp"


def call(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


def done(*arguments):
    found = call(*arguments)
    assert found.exit_code == 0, found.output
    return found.stdout


def report_of(folder):
    return json.loads((folder / "report.json").read_text())


@pytest.mark.parametrize("model", [LLAMA, BERT])
def test_a_language_model_is_healed_on_a_text(language_data, tmp_path, model):
    text = ["--text", language_data / TEXT, "--length", "16"]
    options = ["--targets", "q_proj|.*query", "--budget", "0.5", "--aware", "--bits", "8"]
    healing = ["--slices", BLOCKS[model], "--epochs", "2"]
    said = done("compress", language_data / model, *options, *text, *healing, "--out", tmp_path / "a")
    report = report_of(tmp_path / "a")
    held = report["extra"]["held_out"]
    assert held.pop("samples") == report["manifest"]["data"]["held"] == report["manifest"]["data"]["samples"] // 10
    assert set(held) == ({"perplexity"} if model == LLAMA else {"cosine", "spearman"})
    for quantity, values in held.items():
        assert list(values) == ["before", "mpo", "healed", "quantized"]
        assert f"{values['healed']:.4f} healed" in said
        assert values["before"] == pytest.approx(1) or quantity == "perplexity"
    assert set(report["parameters"]) == {"before", "mpo", "healed", "quantized"}
    assert "chosen on the same ones" in report["notes"][0]
    assert len(report["curves"]["healed: training loss"]) == 1  # the other pass went slice by slice
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "model",
        "report.html",
        "report.json",
        "training.svg",
    ]

    # SOAP steps elsewhere, the slices' one as well
    soap = ["--optimizer", "soap", "--bits", "8"]
    options = ["--targets", "q_proj|.*query", "--budget", "0.5", "--aware", *soap]
    done("compress", language_data / model, *options, *text, *healing, "--out", tmp_path / "soap")
    other = report_of(tmp_path / "soap")
    assert other["curves"]["healed: training loss"] != report["curves"]["healed: training loss"]

    # what was saved is a MODEL for texts, too
    options = ["--targets", "k_proj|.*key", "--budget", "0.5", "--epochs", "1"]
    done("compress", tmp_path / "a/model", *options, *text, "--out", tmp_path / "b")
    again = report_of(tmp_path / "b")["extra"]["held_out"]
    assert again["samples"] > 0
    if model == LLAMA:
        assert again["perplexity"]["before"] == pytest.approx(held["perplexity"]["quantized"], rel=1e-5)


def test_a_scan_spends_a_budget_and_compress_takes_it(language_data, tmp_path):
    model, targets = language_data / LLAMA, r"model\.layers\..*"
    text = ["--text", language_data / "text/stories260k/valid.txt", "--samples", "24", "--length", "16"]
    scanning = ["--targets", targets, "--sites", "low-rank", "--budget", "0.4"]
    said = done("scan", model, *scanning, *text, "--entanglement", "--out", tmp_path / "scan")
    assert "In the tables model.layers. is left out of names." in said
    assert "21 layers" in said
    assert said.count("model.layers.") == 1
    extra = report_of(tmp_path / "scan")["extra"]
    assert {"depth", "allocation", "entanglement"} <= set(extra)
    assert len(extra["entanglement"]["layers"]) == 21
    assert extra["entanglement"]["attention"]

    file = tmp_path / "scan/allocation.json"
    content = json.loads(file.read_text())
    assert content["layer_options"] == extra["allocation"]["options"]
    spent = ["--allocation", file, *text[:2], "--length", "16", "--epochs", "1"]
    for more, sites in (([], "low-rank"), (["--sites", "best", "--aware"], "best")):
        done("compress", model, *spent, *more, "--out", tmp_path / sites)
        small = load_pretrained(tmp_path / sites / "model")
        layers = {name: layer for name, layer in small.named_modules() if isinstance(layer, MPOLinear)}
        assert set(layers) == set(content["layer_options"])
        for name, layer in layers.items():
            dense = layer.out_features * layer.in_features
            assert layer.mpo.num_parameters <= content["layer_options"][name]["budget"] * dense
            assert sites == "best" or len(layer.mpo.out_dims) == 2


def test_attention_is_looked_at_within_the_positions_of_a_model(language_data, tmp_path):
    # the model has 32 of them, less than are looked at where there are more
    text = ["--text", language_data / TEXT, "--samples", "24", "--length", "16"]
    options = ["--targets", ".*query", "--sites", "low-rank", "--entanglement", "--out", tmp_path]
    done("scan", language_data / BERT, *options, *text)
    attention = report_of(tmp_path)["extra"]["entanglement"]["attention"]
    assert {each["length"] for each in attention} == {8, 16, 32}


@pytest.mark.parametrize("verb", ["scan", "compress", "disentangle"])
def test_devices_that_are_not_there_are_refused(verb, tmp_path):
    found = call(verb, FACTORY, "--device", "cuda:99", "--out", tmp_path / "out")
    assert isinstance(found.exception, UnbraidError)
    assert "the device 'cuda:99'" in str(found.exception)
    assert not (tmp_path / "out").exists()


def test_aware_operators_keep_more_of_what_a_network_puts_out(tmp_path):
    from unbraid.nn import save_pretrained
    from unbraid.recipes.datasets import load_dataset

    network, data = digits_mlp(), load_dataset("digits", seed=0)
    heal(network, data.train, epochs=3, lr=1e-2)
    save_pretrained(network, tmp_path / "dense")
    options = ["--targets", "hidden", "--budget", "0.2", "--data", "digits", "--epochs", "1"]
    accuracies = []
    for name, more in (("plain", []), ("aware", ["--aware"])):
        done("compress", tmp_path / "dense", *options, *more, "--out", tmp_path / name)
        accuracies.append(report_of(tmp_path / name)["accuracy"]["mpo"])
    assert accuracies[1] > accuracies[0]


def test_the_difference_to_a_base_is_profiled(language_data, tmp_path):
    model = transformers.LlamaForCausalLM.from_pretrained(language_data / LLAMA)
    layer = model.get_submodule("model.layers.1.self_attn.q_proj")
    with torch.no_grad():
        layer.weight += torch.outer(torch.arange(16.0), torch.ones(16))
    model.save_pretrained(tmp_path / "tuned")
    options = ["--targets", "q_proj", "--out", tmp_path / "out"]
    done("scan", tmp_path / "tuned", "--base", language_data / LLAMA, *options)
    found = report_of(tmp_path / "out")["extra"]["entanglement"]["layers"]
    assert [each["kind"] for each in found] == ["update"] * 3
    assert [each["profile"] is None for each in found] == [True, False, True]


def test_an_interrupted_healing_goes_on(language_data, tmp_path, monkeypatch):
    healing = sys.modules[heal.__module__]  # the package's name of it is the function's
    save, calls = healing._save, []

    def interrupted(*arguments):
        save(*arguments)
        calls.append(arguments)
        if len(calls) == 3:  # in the second of three slices
            raise KeyboardInterrupt

    def counted(*arguments):
        save(*arguments)
        calls.append(arguments)

    arguments = ["compress", language_data / BERT, "--targets", r"encoder\..*", "--budget", "0.5"]
    arguments += ["--text", language_data / TEXT, "--slices", BLOCKS[BERT], "--epochs", "4", "--length", "12"]
    done(*arguments, "--out", tmp_path / "whole")
    monkeypatch.setattr(healing, "_save", interrupted)
    found = call(*arguments, "--out", tmp_path / "cut")
    assert found.exit_code != 0
    assert not (tmp_path / "cut/model").exists()
    monkeypatch.setattr(healing, "_save", counted)
    done(*arguments, "--out", tmp_path / "cut")
    assert len(calls) == 3 * 2 + 2  # no pass is made twice: two a slice, two of the whole
    whole, cut = (load_file(tmp_path / name / "model/model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


@pytest.fixture
def bad(language_data, tmp_path):
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "short.txt").write_text("Bad bag bal bam.")
    (tmp_path / "foreign.json").write_text('{"format": "other"}')
    options = {"no.such.layer": {"budget": 0.5}}
    content = {"format": "unbraid-allocation", "sites": "low-rank", "layer_options": options}
    (tmp_path / "other.json").write_text(json.dumps(content))
    (tmp_path / "none.json").write_text(json.dumps(content | {"layer_options": {}}))
    return {
        "model": language_data / LLAMA,
        "bert": language_data / BERT,
        "text": language_data / TEXT,
        "here": tmp_path,
    }


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((FACTORY, "--text", "{text}"), "holds no tokenizer"),
        (("{model}", "--text", "{here}/absent.txt"), "cannot be read"),
        (("{model}", "--text", "{here}/empty.txt"), "is empty"),
        (("{model}", "--text", "{here}/short.txt"), "less than one row of 64"),
        (("{model}", "--text", "{text}", "--samples", "9"), "takes 10 rows of 64 tokens"),
        (("{bert}", "--text", "{here}/short.txt"), "takes 30 sentences"),
        (("{model}", "--text", "{text}", "--samples", "0"), "--samples must be at least 1"),
        (("{model}", "--text", "{text}", "--length", "1"), "--length must be at least 2"),
        (("{model}", "--text", "{text}", "--data", "digits"), "not both"),
        (
            ("{model}", "--text", "{text}", "--length", "16", "--slices", "nothing"),
            r"Blocks of this model: model.layers.\d+",
        ),
        (("{model}", "--text", "{text}", "--length", "16", "--slices", "("), "regular expression"),
        (("{bert}", "--text", "{text}", "--aware", "--targets", ".*word_embeddings"), "no target is one"),
        (("{model}", "--allocation", "{here}/foreign.json"), "no allocation"),
        (("{model}", "--allocation", "{here}/absent.json"), "Cannot read"),
        (("{model}", "--allocation", "{here}/other.json"), "'no.such.layer', which the model lacks"),
        (("{model}", "--allocation", "{here}/none.json"), "every layer dense"),
    ],
)
def test_bad_input_gives_one_clear_message_and_no_files(bad, tmp_path, arguments, word):
    given = [argument.format(**bad) for argument in arguments]
    limits = [] if "--allocation" in given else ["--budget", "0.5"]
    targets = [] if {"--allocation", "--targets"} & set(given) or FACTORY in given else ["--targets", "q_proj|.*query"]
    found = call("compress", *given, *limits, *targets, "--epochs", "1", "--out", tmp_path / "out")
    assert isinstance(found.exception, UnbraidError), found.output
    assert word in str(found.exception)
    assert "\n" not in str(found.exception)
    assert not any(path.is_file() for path in (tmp_path / "out").rglob("*"))


@pytest.mark.parametrize(
    "arguments",
    [
        ("compress", "m", "--allocation", "a", "--budget", "0.5"),
        ("compress", "m", "--allocation", "a", "--targets", "all-linear"),
        ("compress", "m", "--budget", "0.5", "--aware"),
        ("compress", "m", "--budget", "0.5", "--slices", "x", "--data", "digits"),
        ("scan", "m", "--sites", "best"),
        ("scan", "m", "--budget", "0.5"),
    ],
)
def test_options_that_do_not_go_together_are_wrong_usage(tmp_path, arguments):
    assert call(*arguments, "--out", tmp_path).exit_code == 2
