"""Settings that every test shares."""

import pytest
import torch
from hypothesis import settings

# Machines are noisy, so no example is timed; derandomized, so a failure in CI is the same failure at home.
settings.register_profile("unbraid", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("unbraid")

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def language_data(tmp_path_factory):
    """A tiny Llama and a tiny BERT with random weights, their tokenizers, and made-up text, where recipes look."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    folder = tmp_path_factory.mktemp("language")
    words = [first + last for first in ("ba", "ke", "lo", "mi", "nu", "pa", "so", "ti") for last in "dfglmnrst"]
    generator = torch.Generator().manual_seed(0)

    def sentence():
        count = int(torch.randint(6, 10, (), generator=generator))
        chosen = [words[int(k)] for k in torch.randint(len(words), (count,), generator=generator)]
        return f"{chosen[0].capitalize()} {' '.join(chosen[1:])}."

    def tokenizer(marks, single, **names):
        listed = {word: number for number, word in enumerate([*marks, ".", *words])}
        made = Tokenizer(models.WordLevel(listed, unk_token=names["unk_token"]))
        made.normalizer, made.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
        pairs = [(mark, listed[mark]) for mark in marks if mark in single]
        made.post_processor = processors.TemplateProcessing(single=single, special_tokens=pairs)
        return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **names)

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    torch.manual_seed(0)
    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=80, num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True, **sizes
        )
    )
    bert = transformers.BertModel(transformers.BertConfig(vocab_size=80, max_position_embeddings=32, **sizes))
    begun = tokenizer(("<unk>", "<s>"), "<s> $A", unk_token="<unk>", bos_token="<s>")
    marks = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    framed = tokenizer(tuple(marks.values()), "[CLS] $A [SEP]", **marks)
    for name, model, its in (("stories260k", llama, begun), ("all-MiniLM-L6-v2", bert, framed)):
        model.save_pretrained(folder / "models" / name)
        its.save_pretrained(folder / "models" / name)
    (folder / "text" / "stories260k").mkdir(parents=True)
    for part in ("train", "valid", "test"):
        stories = "\n<|endoftext|>\n".join(" ".join(sentence() for _ in range(4)) for _ in range(12))
        (folder / "text" / "stories260k" / f"{part}.txt").write_text(stories)
    for part in ("valid", "test"):
        lines = [" ".join(sentence() for _ in range(3)) for _ in range(20)]
        (folder / "text" / f"wikitext2-{part}.txt").write_text("\n".join([" = A title = ", *lines]))
    return folder
