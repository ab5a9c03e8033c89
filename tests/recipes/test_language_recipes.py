"""The recipes on pretrained language models, on tiny ones with random weights and made-up text."""

import json

import pytest
import torch

from unbraid.ground.errors import InvalidInputError
from unbraid.nn import fix_gauge, get_layer_status, input_moments, tensorize
from unbraid.recipes import compressing, minilm, stories
from unbraid.recipes.compressing import WAYS, profile_from, profiled
from unbraid.recipes.language import open_language_model, read_text
from unbraid.recipes.reproduce import reproduce

pytest.importorskip("transformers")
pytest.importorskip("matplotlib")


def remade(name, language_data, out):
    outcome = reproduce(name, out, quick=True, data_dir=language_data)
    content = json.loads((out / f"{name}.json").read_text())
    assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert len(outcome.sections) == 3
    assert all(section.heading in (out / f"{name}.md").read_text() for section in outcome.sections)
    assert all(len(value) == 64 for value in content["files"].values())
    rows = {row["way"]: row for row in content["rows"]}
    assert list(rows) == list(WAYS)
    original = content["original"]
    dense = original["parameters"] - original["compressed"]
    for way, row in rows.items():
        assert row["parameters"] - dense <= row["budget"] * original["compressed"]
        assert row["bytes"] < original["bytes"]
        assert (row["kind"], row["description"]) == (WAYS[way].kind, WAYS[way].meaning)
        assert all(time > 0 for time in row["time"])
    assert -1 <= content["sensitivity"]["spearman"] <= 1
    assert all(len(layer["points"]) == 2 for layer in content["sensitivity"]["profile"])
    assert {len(trend["growth"]) for trend in content["depth"]} == {3}  # blocks
    return content, rows


def test_stories_on_a_tiny_llama(language_data, tmp_path):
    content, rows = remade("stories", language_data, tmp_path)
    assert len(content["sensitivity"]["profile"]) == 3 * 7
    assert set(content["files"]) == {f"stories260k/{name}" for name in ("config.json", "model.safetensors")} | {
        "stories260k/tokenizer.json",
        *stories.TEXTS.values(),
    }
    for row in rows.values():
        assert row["values"][0] >= 1  # a perplexity
        (before,) = row["before"]
        assert set(before) == {"valid", "test"}
        assert {bits: set(found) for bits, found in row["integers"][0].items()} == {
            bits: {"bytes", "valid", "test"} for bits in ("8", "4")
        }
        assert row["integers"][0]["4"]["bytes"] < row["integers"][0]["8"]["bytes"] < row["bytes"]
    circuits = content["circuits"]
    assert circuits["dense"] == 16 * 16
    (found,) = circuits["circuits"]
    assert (found["body"], found["depth"], found["core"]) == (2, 1, 4 * 4)
    assert 0 < found["overlap"] <= 1
    assert stories.LAYER in (tmp_path / "stories.md").read_text()


def test_minilm_on_a_tiny_bert(language_data, tmp_path):
    content, rows = remade("minilm", language_data, tmp_path)
    assert len(content["sensitivity"]["profile"]) == 3 * 6
    for row in rows.values():
        for pair in (*row["before"], (row["mean"], row["spearman"][0]), *(v[:2] for v in row["integers"][0].values())):
            assert all(-1 <= value <= 1 for value in pair)
        assert row["integers"][0]["4"][2] < row["integers"][0]["8"][2] < row["bytes"]
    circuits = content["circuits"]
    assert (circuits["shape"], circuits["qubits"], circuits["padding"]) == ([32, 16], [5, 4], 1)
    (found,) = circuits["depths"]
    assert found["depth"] == 1
    assert found["shots"] >= 10_000
    assert found["core"] == circuits["truncated"]["core"]
    assert minilm.FEED_FORWARD in (tmp_path / "minilm.md").read_text()


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
        model = tensorize(language.model, minilm.TARGETS, budget=0.4)
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
    profile = profile_from(profiled(language.model, batches, language.task, minilm.TARGETS, (1, 2, 3, 4, 6, 8)))
    moments = input_moments(language.model, batches, targets=minilm.TARGETS, task=language.task, slopes=True)
    weights, numbers = sum(layer.parameters for layer in profile), []
    for name in ("operators, data-aware, allocated", minilm.OURS):
        model = compressing.compressed(language.model, compressing.WAYS[name], 0.5, minilm.TARGETS, moments, profile)
        found = fix_gauge(model) if name == minilm.OURS else model
        status = [layer for layer in get_layer_status(found) if layer.name in {each.name for each in profile}]
        biases = sum(layer.shape[0] for layer in status)
        numbers.append((sum(layer.parameters for layer in status) - biases, compressing.count(model)))
        assert numbers[-1][0] <= 0.5 * weights
    assert numbers[1][0] > 0.9 * numbers[0][0]
    assert numbers[1][1] > numbers[0][1]
