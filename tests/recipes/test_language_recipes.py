"""The recipes on pretrained language models, on tiny ones with random weights and made-up text."""

import importlib
import json
import shutil

import pytest
import torch

from unbraid.ground.errors import InvalidInputError
from unbraid.nn import fix_gauge, get_layer_status, input_moments, tensorize
from unbraid.recipes import compressing, minilm, pretrained, stories
from unbraid.recipes.compressing import WAYS, profile_from, profiled
from unbraid.recipes.language import open_language_model, read_text
from unbraid.recipes.reproduce import reproduce

transformers = pytest.importorskip("transformers")
pytest.importorskip("matplotlib")


TARGETS = r"encoder\.layer\..*"
OURS = pretrained.OURS
heal_module = importlib.import_module("unbraid.nn.heal")  # the package names the function so


def remade(name, language_data, out, **options):
    outcome = reproduce(name, out, quick=True, data_dir=language_data, **options)
    content = json.loads((out / f"{name}.json").read_text())
    assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert len(outcome.sections) == 4
    assert all(section.heading in (out / f"{name}.md").read_text() for section in outcome.sections)
    assert all(len(value) == 64 for value in content["files"].values())
    rows = {row["way"]: row for row in content["rows"]}
    assert list(rows) == [way for way in WAYS if way in (minilm if name == "minilm" else stories).STUDY.ways]
    original = content["original"]
    dense = original["parameters"] - original["compressed"]
    figures = set(original["figures"])
    for way, row in rows.items():
        assert row["parameters"] - dense <= row["budget"] * original["compressed"]
        assert row["bytes"] < original["bytes"]
        assert (row["kind"], row["description"]) == (WAYS[way].kind, WAYS[way].meaning)
        assert all(time > 0 for time in row["time"])
        (before,), (healed,), (integers,) = row["before"], row["healed"], row["integers"]
        assert set(before) == set(healed) == figures
        assert row["mean"] in healed.values()
        assert all(set(integers[bits]) == figures | {"bytes"} for bits in ("8", "4"))
        assert integers["4"]["bytes"] < integers["8"]["bytes"] < row["bytes"]
    assert original["integers"]["4"]["bytes"] < original["integers"]["8"]["bytes"] < original["bytes"]
    assert -1 <= content["sensitivity"]["spearman"] <= 1
    assert all(len(layer["points"]) == 2 for layer in content["sensitivity"]["profile"])
    assert {len(trend["growth"]) for trend in content["depth"]} == {3}  # blocks
    return content, rows


def test_stories_on_a_tiny_llama(language_data, tmp_path):
    content, rows = remade("stories", language_data, tmp_path)
    assert len(content["sensitivity"]["profile"]) == 3 * 7
    assert set(content["files"]) == {f"stories260k/{name}" for name in ("config.json", "model.safetensors")} | {
        "stories260k/tokenizer.json",
        *stories.STUDY.texts.values(),
    }
    assert set(content["original"]["figures"]) == {"valid", "test"}
    assert all(row["values"][0] >= 1 for row in rows.values())  # perplexities
    circuits = content["circuits"]
    assert (circuits["layer"], circuits["shape"]) == ("model.layers.1.self_attn.q_proj", [16, 16])
    assert (circuits["dense"], circuits["truncated_core"]) == (16 * 16, 4 * 4)
    (found,) = circuits["circuits"]
    assert (found["body"], found["depth"], found["core"]) == (2, 1, 4 * 4)
    assert 0 < found["overlap"] <= 1
    assert circuits["layer"] in (tmp_path / "stories.md").read_text()


def test_minilm_on_a_tiny_bert(language_data, tmp_path):
    content, rows = remade("minilm", language_data, tmp_path)
    assert len(content["sensitivity"]["profile"]) == 3 * 6
    assert content["original"]["figures"] == pytest.approx({"cosine": 1, "Spearman": 1})
    assert all(-1 <= value <= 1 for row in rows.values() for value in row["healed"][0].values())
    circuits = content["circuits"]
    assert circuits["layer"] == "encoder.layer.0.intermediate.dense"
    assert (circuits["shape"], circuits["qubits"], circuits["padding"]) == ([32, 16], [5, 4], 1)
    (found,) = circuits["depths"]
    assert found["depth"] == 1
    assert found["shots"] >= 10_000
    assert found["core"] == circuits["truncated"]["core"]
    assert found["seconds"] > 0
    assert set(circuits["unpadded"]["figures"]) == {"cosine", "Spearman"}
    assert circuits["layer"] in (tmp_path / "minilm.md").read_text()


def test_another_language_model_and_texts_by_short_names(language_data, tmp_path):
    # GPT-2, whose linear layers are Conv1D
    config = transformers.GPT2Config(
        vocab_size=80, n_embd=16, n_layer=3, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=1
    )
    folder = tmp_path / "tiny-gpt2"
    torch.manual_seed(0)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(language_data / "models/stories260k" / name, folder / name)
    texts = tmp_path / "texts"
    shutil.copytree(language_data / "text/stories260k", texts)
    content, _ = remade("stories", texts, tmp_path / "out", model=folder)
    assert content["title"] == "A language model (tiny-gpt2), compressed"
    assert len(content["sensitivity"]["profile"]) == 3 * 4
    assert content["circuits"]["layer"] == "transformer.h.1.attn.c_attn"
    assert "tiny-gpt2/model.safetensors" in content["files"]


def test_models_of_the_other_kind_and_recipes_without_one_are_refused(language_data, tmp_path):
    llama, bert = (language_data / "models" / name for name in ("stories260k", "all-MiniLM-L6-v2"))
    for name, model, message in (
        ("stories", bert, "takes causal language models; .* holds a BertModel"),
        ("minilm", llama, "takes encoders, .* holds a LlamaForCausalLM"),
        ("table1", llama, r"table1 takes no other model\. Those that do: minilm, stories"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            reproduce(name, tmp_path, quick=True, data_dir=language_data, model=model)


@pytest.mark.parametrize("name", ["stories", "minilm"])
def test_missing_models_and_texts_are_named(name, language_data, tmp_path):
    with pytest.raises(InvalidInputError, match=r"Put its folder .*models/"):
        reproduce(name, tmp_path / "out", quick=True, data_dir=tmp_path)
    (tmp_path / "models").symlink_to(language_data / "models")
    with pytest.raises(InvalidInputError, match=r"\.txt cannot be read"):
        reproduce(name, tmp_path / "out", quick=True, data_dir=tmp_path)


@pytest.mark.parametrize("slices", [(), ("encoder.layer.0",)])
def test_lessons_that_are_not_kept_teach_the_same(language_data, monkeypatch, slices):
    language = open_language_model(language_data / "models/all-MiniLM-L6-v2")
    text = read_text(language_data / "text/wikitext2-valid.txt")
    batches = language.batches(language.samples(text, 40, 16), 16, batch_size=8)
    losses, weights = [], []
    for kept in (compressing.KEPT_BYTES, 10_000, 0):
        monkeypatch.setattr(compressing, "KEPT_BYTES", kept)
        model = tensorize(language.model, TARGETS, budget=0.4)
        options = {"epochs": 2, "lr": 1e-3, "seed": 0, "slices": slices}
        history = compressing.distil(model, language.model, language.task, batches[:3], batches[3:5], **options)
        losses.append((history.train_loss, history.validation_loss))
        weights.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    for k in (1, 2):
        torch.testing.assert_close(torch.tensor(losses[k]), torch.tensor(losses[0]))
        torch.testing.assert_close(weights[k], weights[0])
    alone, both = (
        language.task.distillation(language.model),
        language.task.distillation(language.model, ["encoder.layer.0"]),
    )
    assert float(both(model, batches[3]).detach()) > float(alone(model, batches[3]).detach())
    validation = sum(float(alone(model.eval(), batch).detach()) for batch in batches[3:5]) / 2
    assert min(losses[0][1]) == pytest.approx(validation, rel=1e-4)  # slices do not count there


def test_larger_bonds_fill_what_a_fixed_gauge_leaves_of_the_budget(language_data):
    language = open_language_model(language_data / "models/all-MiniLM-L6-v2")
    text = read_text(language_data / "text/wikitext2-valid.txt")
    batches = language.batches(language.samples(text, 40, 16), 16, batch_size=8)
    profile = profile_from(profiled(language.model, batches, language.task, TARGETS, (1, 2, 3, 4, 6, 8)))
    moments = input_moments(language.model, batches, targets=TARGETS, task=language.task, slopes=True)
    weights, numbers = sum(layer.parameters for layer in profile), []
    for name in ("operators, data-aware, allocated", OURS):
        model = compressing.compressed(language.model, compressing.WAYS[name], 0.5, TARGETS, moments, profile)
        found = fix_gauge(model) if name == OURS else model
        status = [layer for layer in get_layer_status(found) if layer.name in {each.name for each in profile}]
        biases = sum(layer.shape[0] for layer in status)
        numbers.append((sum(layer.parameters for layer in status) - biases, compressing.count(model)))
        assert numbers[-1][0] <= 0.5 * weights
    assert numbers[1][0] > 0.9 * numbers[0][0]
    assert numbers[1][1] > numbers[0][1]


def test_a_way_that_was_interrupted_goes_on_from_its_last_pass(language_data, tmp_path, monkeypatch):
    epoch, passes = heal_module._train_epoch, []
    out, folder = tmp_path / "out", tmp_path / "out/minilm.tasks"

    def run(last):
        def counted(*args):
            if len(passes) == last:
                raise KeyboardInterrupt
            passes.append(None)
            return epoch(*args)

        passes.clear()
        monkeypatch.setattr(heal_module, "_train_epoch", counted)
        reproduce("minilm", out, quick=True, data_dir=language_data)
        return len(passes), json.loads((out / "minilm.json").read_text())["rows"]

    whole, wanted = run(None)
    shutil.rmtree(out)
    first = 3 + 1  # passes of the first way: a slice each of three blocks, then the whole
    with pytest.raises(KeyboardInterrupt):
        run(first - 1)
    (kept,) = folder.glob("*.progress")
    assert kept.name.startswith(OURS)
    rest, rows = run(None)
    assert rest == whole - (first - 1)
    assert not list(folder.glob("*.progress"))
    for row, before in zip(rows, wanted, strict=True):
        assert row | {"time": None} == before | {"time": None}
