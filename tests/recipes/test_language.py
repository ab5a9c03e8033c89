"""Text as batches of language models, and how models are compared on it."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unbraid.ground.errors import InvalidInputError
from unbraid.recipes.language import (
    DOCUMENT,
    document_tokens,
    documents,
    embed,
    find_model,
    find_text,
    hashes,
    open_language_model,
    perplexity,
    read_text,
    sentence_batches,
    sentences,
    similarity,
    token_rows,
    windows,
)


@pytest.fixture(scope="module")
def llama(language_data):
    return open_language_model(language_data / "models/stories260k")


@pytest.fixture(scope="module")
def bert(language_data):
    return open_language_model(language_data / "models/all-MiniLM-L6-v2")


@given(st.lists(st.text("ab .\n", min_size=1).filter(str.strip)))
def test_documents_are_what_the_mark_separates(parts):
    assert documents(DOCUMENT.join(parts)) == parts


def test_sentences_are_long_enough_each_once_without_headings():
    lines = [" = Valkyria =  ", "", 'The first one is here. "A second stands here." Too short.']
    lines += ["The first one is here. Is a third? Not so.", "lower case e.g. stays whole"]
    found = ["The first one is here.", '"A second stands here." Too short.', "lower case e.g. stays whole"]
    assert sentences("\n".join(lines)) == found


def test_documents_begin_with_the_mark_of_a_beginning(llama):
    begin = llama.tokenizer.bos_token_id
    found = document_tokens(llama.tokenizer, f"bad bag{DOCUMENT}lod")
    assert [len(ids) for ids in found] == [3, 2]
    assert all(ids[0] == begin for ids in found)
    assert llama.tokenizer.decode(found[0][1:]) == "bad bag"


@pytest.mark.parametrize("length", [2, 5, 16])
def test_rows_are_the_documents_one_after_another(llama, language_data, length):
    text = read_text(language_data / "text/stories260k/valid.txt")
    flat = [token for ids in document_tokens(llama.tokenizer, text) for token in ids]
    rows = token_rows(llama.tokenizer, text, length)
    assert rows.shape == (len(flat) // length, length)
    assert rows.flatten().tolist() == flat[: rows.numel()]


def test_batches_hold_all_sentences_of_like_length_together(bert):
    texts = ["bad", "bad bag bal", "bad bag", "ked kef keg kel kem"]
    batches = sentence_batches(bert.tokenizer, texts, 5, batch_size=2)
    assert [batch["input_ids"].shape for batch in batches] == [(2, 4), (2, 5)]
    assert [batch["attention_mask"].sum(1).tolist() for batch in batches] == [[3, 4], [5, 5]]  # the last one was cut
    assert batches[0]["input_ids"][0, -1] == bert.tokenizer.pad_token_id


def test_a_model_tells_what_its_samples_are(llama, bert, language_data):
    text = read_text(language_data / "text/wikitext2-valid.txt")
    assert (llama.causal, llama.task.kind) == (True, "classes")
    assert (bert.causal, bert.task.kind) == (False, "vectors")
    assert llama.samples(text, 3, 1000).shape == (3, llama.longest)  # no longer than it takes
    assert [len(batch) for batch in llama.batches(llama.samples(text, 5, 8), 8, batch_size=2)] == [2, 2, 1]
    assert bert.samples(text, 3, 8) == sentences(text)[:3]
    assert len(bert.samples(text, 10**6, 8)) == 60


def test_perplexity_is_that_of_probabilities_taken_one_by_one(llama):
    lists = [[1, 5, 9, 3], [1, 7], [4]]
    total = count = 0
    with torch.no_grad():
        for tokens in lists[:2]:
            for place in range(1, len(tokens)):
                logits = llama.model(input_ids=torch.tensor([tokens[:place]])).logits[0, -1]
                total -= float(logits.double().softmax(-1)[tokens[place]].log())
                count += 1
    assert perplexity(llama.model, lists) == pytest.approx(math.exp(total / count), rel=1e-5)
    assert perplexity(llama.model, lists, longest=2) != pytest.approx(perplexity(llama.model, lists), rel=1e-5)
    with pytest.raises(InvalidInputError, match="two tokens"):
        perplexity(llama.model, lists[2:])


def test_vectors_do_not_depend_on_the_company_of_a_sentence(bert):
    texts = ["Bad bag bal.", "Ked kef keg kel kem ken ker kes.", "Lod."]
    together = embed(bert.model, sentence_batches(bert.tokenizer, texts, 16))
    alone = torch.cat([embed(bert.model, sentence_batches(bert.tokenizer, [text], 16)) for text in texts])
    torch.testing.assert_close(together, alone[[2, 0, 1]], atol=1e-5, rtol=0)
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(3))


def test_similarity_is_of_vectors_and_of_the_order_of_their_pairs():
    one = torch.nn.functional.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    turn, _ = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1)))
    assert similarity(one, one) == pytest.approx((1, 1))
    cosine, spearman = similarity(one, one @ turn)
    assert cosine < 0.9
    assert spearman == pytest.approx(1)


def test_models_are_found_and_known_by_their_files(language_data, tmp_path):
    folder = find_model("stories260k", language_data)
    assert folder == language_data / "models/stories260k"
    texts = {name: language_data / name for name in ("text/stories260k/valid.txt", "text/absent.txt")}
    found = hashes(folder, texts)
    names = {"config.json", "model.safetensors", "tokenizer.json"}
    assert set(found) == {f"stories260k/{name}" for name in names} | {"text/stories260k/valid.txt"}
    assert find_text(language_data, "text/stories260k/valid.txt", "valid.txt") == texts["text/stories260k/valid.txt"]
    assert (
        find_text(language_data / "text/stories260k", "text/a/valid.txt", "valid.txt")
        == texts["text/stories260k/valid.txt"]
    )
    assert find_text(tmp_path, "a/valid.txt", "valid.txt") == tmp_path / "a/valid.txt"  # the name that errors tell
    with pytest.raises(InvalidInputError, match=r"models/stories260k\.$"):
        find_model("stories260k", tmp_path)
    with pytest.raises(InvalidInputError, match="pip install no-such-package"):
        find_model("stories260k", None, "no_such_package")


def test_texts_and_tokenizers_that_are_none_are_refused(llama, bert, language_data, tmp_path):
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    for name, word in (("empty", "is empty"), ("latin", "cannot be read as text"), ("absent", "cannot be read")):
        with pytest.raises(InvalidInputError, match=word):
            read_text(tmp_path / f"{name}.txt")
    with pytest.raises(InvalidInputError, match="3 tokens, less than one row of 8"):
        token_rows(llama.tokenizer, "bad bag", 8)
    with pytest.raises(InvalidInputError, match="no sentences"):
        bert.batches(bert.samples("= Title =", 5, 8), 8)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((language_data / "models/stories260k" / name).read_bytes())
    with pytest.raises(InvalidInputError, match="holds no tokenizer"):
        open_language_model(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InvalidInputError, match="holds no tokenizer"):
        open_language_model(tmp_path)


@given(st.integers(0, 99), st.integers(1, 4), st.integers(0, 5))
def test_windows_are_pieces_of_the_running_text(seed, least, more):
    texts = ["a b c d", "e f", "g h i j k"]
    found = windows(texts, 7, (least, least + more), torch.Generator().manual_seed(seed))
    assert len(found) == 7
    assert all(piece in "a b c d e f g h i j k" for piece in found)
    assert all(least <= len(piece.split()) <= least + more for piece in found)
    assert found == windows(texts, 7, (least, least + more), torch.Generator().manual_seed(seed))


def test_windows_need_as_many_words():
    with pytest.raises(InvalidInputError, match="The text has 2 words; pieces of up to 3 need more"):
        windows(["a", "b"], 1, (1, 3), torch.Generator())
    whole = [windows(["a b c"], 1, (3, 3), torch.Generator().manual_seed(seed)) for seed in range(5)]
    assert whole == [["a b c"]] * 5
