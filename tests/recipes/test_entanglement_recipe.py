"""The study of entanglement on a tiny made-up model, and on one that lies in a folder."""

import dataclasses
import json
import math

import pytest
import torch

from unbraid.ground.errors import InvalidInputError
from unbraid.recipes import entanglement
from unbraid.recipes import reproduce as module
from unbraid.recipes.recipe import Request
from unbraid.recipes.reproduce import reproduce
from unbraid.tensors.profile import ORDERS

pytest.importorskip("transformers")


@pytest.fixture
def tiny(monkeypatch):
    small = dataclasses.replace(entanglement.QUICK, steps=3)
    monkeypatch.setitem(module.RECIPES, "entanglement", dataclasses.replace(entanglement.RECIPE, quick=small))


def test_rows_without_data(tiny, tmp_path):
    outcome = reproduce("entanglement", tmp_path, quick=True, seeds=2)
    content = json.loads((tmp_path / "entanglement.json").read_text())
    assert "figures mean nothing" in (tmp_path / "entanglement.md").read_text()
    assert (tmp_path / "entanglement.png").read_bytes().startswith(b"\x89PNG")
    rows = content["rows"]
    updates = [row for row in rows if row["kind"] == "update"]
    assert len(updates) == len(entanglement.WAYS) * 2 * len(ORDERS)
    assert all(len(row["values"]) == 2 and row["layers"] == 2 for row in updates)
    middle = {row["name"]: row for row in updates if row["order"] == "vector"}["LoRA, rank 4, q_proj"]
    assert middle["maximum"][4] == pytest.approx(math.log(4))
    assert middle["entropies"][4] <= math.log(4)
    attention = [row for row in rows if row["kind"] == "attention"]
    assert [row["name"] for row in attention] == ["made, trained", "made, random weights"]
    for row in attention:
        assert all(0 <= s <= math.log(n) for s, n in zip(row["values"], row["lengths"], strict=True))
        assert sum(row["laws"]["matrix"].values()) == 8
    assert len(outcome.sections) == 6


@pytest.mark.parametrize(("way", "counted"), [("q and v", 2 * 2 * 32 * 32), ("LoRA, rank 4", 2 * 2 * 2 * 4 * 32)])
def test_only_what_a_way_names_is_trained(way, counted):
    request = Request("entanglement", dataclasses.replace(entanglement.QUICK, steps=2), 1)
    base = entanglement._load(request, "made")
    model = entanglement._load(request, "made")
    sequences = torch.randint(64, (5, 16), generator=torch.Generator().manual_seed(0))
    entanglement._tune(model, sequences, entanglement.WAYS[way], request.settings, 0)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == counted
    plain = {name.replace("base_layer.", ""): value for name, value in model.state_dict().items()}
    changed = {name for name, value in base.state_dict().items() if not torch.equal(plain[name], value)}
    assert changed == (
        set()
        if "LoRA" in way
        else {f"model.layers.{k}.self_attn.{p}.weight" for k in (0, 1) for p in ("q_proj", "v_proj")}
    )


def test_a_folder_without_the_data_is_refused(tmp_path):
    with pytest.raises(InvalidInputError, match=r"models/stories260k/config\.json"):
        reproduce("entanglement", tmp_path / "out", quick=True, data_dir=tmp_path)


def test_models_and_texts_of_a_folder(tmp_path):
    """Read as they were written: weights, tokens, and the mark of a beginning."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    request = Request("entanglement", entanglement.QUICK, 1, tmp_path)
    made = entanglement._untrained(dataclasses.replace(request, data_dir=None), "made")
    folder = tmp_path / "models" / entanglement.TUNED
    made.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({"<s>": 0, "<unk>": 1, "a": 2, "b": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>").save_pretrained(folder)
    for text in (entanglement.STORIES, entanglement.PLAYS):
        (tmp_path / text).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / text).write_text("a b b a\n<|endoftext|>\nb a a b a")
    assert entanglement._found(request) == [entanglement.TUNED]
    tokens = entanglement._tokens(request, entanglement.TUNED, entanglement.STORIES)
    assert tokens.tolist() == [2, 3, 3, 2, 3, 2, 2, 3, 2]
    sequences = entanglement._sequences(request, entanglement.TUNED, tokens, 5)
    assert sequences.tolist() == [[0, 2, 3, 3, 2], [0, 3, 2, 2, 3]]
    loaded = entanglement._load(request, entanglement.TUNED)
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in made.state_dict().items())
    other = entanglement._untrained(request, entanglement.TUNED)
    assert not torch.equal(other.lm_head.weight, made.lm_head.weight)
    assert other.config.hidden_size == 32
