"""What the verbs are given: models and data named on the command line."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from unbraid.ground.errors import InvalidInputError
from unbraid.ground.files import read_tensors, write_bytes
from unbraid.nn import load_pretrained
from unbraid.nn.transformers_models import is_transformers_folder, load_transformers
from unbraid.recipes.datasets import DATASETS, Dataset, load_dataset, load_tensors_dataset, split_tensors_dataset
from unbraid.recipes.language import with_tokenizer
from unbraid.recipes.language_steps import LanguageSteps, match_modules, split_text
from unbraid.recipes.scanning import Samples, check_count, samples_of_dataset, samples_of_text
from unbraid.recipes.steps import Steps


@dataclass(frozen=True)
class Source:
    """Data, or a text, that a verb is given, or neither.

    Attributes:
        data: a data set's name, or a safetensors file.
        data_dir: where the data set's files are.
        size: side that images are scaled to.
        download: whether it may be fetched.
        text: a text file instead.
        samples: of it, at most.
        length: tokens of a sample, at most.
        seed: of the data's split.
        device: that data are put on.
    """

    data: str | None
    data_dir: Path | None
    size: int | None
    download: bool
    text: Path | None
    samples: int
    length: int
    seed: int
    device: str

    def check(self) -> None:
        """Refuse both data and text, and numbers that make no sense.

        Raises:
            InvalidInputError: saying which.
        """
        check_count(self.samples, self.length)
        if self.data is not None and self.text is not None:
            raise InvalidInputError("Give --data or --text, not both.")

    def dataset(self) -> Dataset | None:
        """The data, on the device.

        Raises:
            InvalidInputError: if they are unknown or their files are not there.
            FileFormatError: if a file is damaged.
        """
        if self.data is None:
            return None
        return load_data(self.data, self.data_dir, self.seed, self.size, self.download).to(self.device)


def load_model(name: str, weights: Path | None) -> nn.Module:
    """A model from a folder that ``save_pretrained`` wrote, ours or that of transformers, or from a factory.

    Args:
        name: the folder, or ``package.module:factory``, called without arguments; ``FOLDER@package.module:factory``
            loads a folder of ours into what the factory makes.
        weights: a safetensors file with the factory's ``state_dict``.

    Raises:
        InvalidInputError: if there is no such folder or factory, or weights do not fit.
        FileFormatError: if a file is damaged.
        MissingExtraError: if it is a model of transformers and that is not installed.
    """
    folder, at, factory = name.rpartition("@")
    if at and ":" in factory:
        if weights is not None:
            raise InvalidInputError("--weights goes with package.module:factory; a folder brings its own weights.")
        return load_pretrained(folder, _make(factory))
    if Path(name).is_dir():
        if weights is not None:
            raise InvalidInputError("--weights goes with package.module:factory; a folder brings its own weights.")
        inner = Path(name) / "model"
        if not (Path(name) / "config.json").exists() and (inner / "config.json").exists():
            raise InvalidInputError(f"{name} is the folder of a job; its model is {inner}.")
        return load_transformers(name) if is_transformers_folder(name) else load_pretrained(name)
    if ":" not in name:
        raise InvalidInputError(
            f"{name!r} is neither a folder written by save_pretrained nor package.module:factory. Check the path."
        )
    model = _make(name)
    if weights is not None:
        tensors, _ = read_tensors(weights)
        try:
            model.load_state_dict(tensors)
        except RuntimeError as error:
            raise InvalidInputError(f"{weights} does not fit the model of {name}: {error}") from error
    return model.eval()


TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
)


def copy_tokenizer(name: str, place: Path) -> None:
    """Copy the tokenizer files of a MODEL that is a folder beside the model that was made of it."""
    for file in TOKENIZER_FILES:
        source = _folder(name) / file
        if source.is_file():
            write_bytes(place / file, source.read_bytes())


def weight_bytes(name: str, weights: Path | None) -> int:
    """Bytes of the safetensors that a MODEL was read from; 0 if a factory made its weights."""
    files = _folder(name).glob("*.safetensors") if weights is None else [weights]
    return sum(file.stat().st_size for file in files)


def _folder(name: str) -> Path:
    """The folder that a MODEL names; nothing lies in it where it names a factory."""
    folder, at, factory = name.rpartition("@")
    return Path(folder if at and ":" in factory else name)


def load_data(name: str, data_dir: Path | None, seed: int, size: int | None, download: bool) -> Dataset:
    """A data set of the recipes, or a safetensors file with ``x`` and ``y``, split by class.

    Raises:
        InvalidInputError: if it is unknown or its files are not there.
        FileFormatError: if a file is damaged.
    """
    _check_name(name)
    if _is_file(name):
        if size is not None:
            raise InvalidInputError(
                "--size scales the images of a named data set; scale those of a file before writing it."
            )
        return split_tensors_dataset(name, seed=seed)
    return load_dataset(name, data_dir=data_dir, seed=seed, size=size, download=download)


def load_rows(name: str, data_dir: Path | None, seed: int, size: int | None, download: bool) -> tuple[Tensor, Tensor]:
    """Rows and labels to evaluate on: a data set's test part, or a safetensors file with ``x`` and ``y``.

    Raises:
        InvalidInputError: if it is unknown or its files are not there.
        FileFormatError: if a file is damaged.
    """
    _check_name(name)
    if _is_file(name):
        _refuse_size(size)
        return load_tensors_dataset(name)
    return load_data(name, data_dir, seed, size, download).test


def load_samples(
    model_name: str,
    model: nn.Module,
    source: Source,
) -> Samples | None:
    """What a scan runs a model on: rows of a data set, or the beginning of a text; None without either.

    Raises:
        InvalidInputError: if both are given, or the model has no tokenizer for a text.
    """
    source.check()
    dataset = source.dataset()
    if dataset is not None:
        return samples_of_dataset(dataset, source.samples)
    if source.text is None:
        return None
    return samples_of_text(with_tokenizer(model, _folder(model_name)), source.text, source.samples, source.length)


def load_steps(
    model_name: str,
    model: nn.Module,
    source: Source,
    slices: str | None,
) -> Steps:
    """What judges and heals the networks of a job: a data set, a text, or neither.

    Raises:
        InvalidInputError: if both are given, data or text do not do, or the model has no tokenizer for a text.
    """
    source.check()
    if source.text is None:
        return Steps(source.dataset(), source.seed, source.device)
    language = with_tokenizer(model, _folder(model_name))
    found = split_text(language, source.text, source.samples, source.length)
    names = [] if slices is None else match_modules(model, slices)
    return LanguageSteps(None, source.seed, source.device, language=language, text=found, slices=names)


def _is_file(name: str) -> bool:
    return name not in DATASETS and (name.endswith(".safetensors") or Path(name).is_file())


def _refuse_size(size: int | None) -> None:
    if size is not None:
        raise InvalidInputError(
            "--size scales the images of a named data set; scale those of a file before writing it."
        )


def _check_name(name: str) -> None:
    if name not in DATASETS and not _is_file(name):
        raise InvalidInputError(
            f"--data must be one of {', '.join(DATASETS)}, or a safetensors file with x and y; got {name!r}."
        )


def split_targets(text: str) -> str | list[str]:
    """``"a,b"`` is a list of name endings; anything else is "all-linear" or a regular expression."""
    return [part.strip() for part in text.split(",")] if "," in text else text


def _make(name: str) -> nn.Module:
    """Call the factory of ``package.module:factory``; modules of the working directory can be named too."""
    module_name, _, attribute = name.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
        factory: Callable[[], Any] = getattr(module, attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidInputError(f"Cannot find the factory {name!r}: {error}.") from error
    try:
        model = factory()
    except Exception as error:  # the user's own code
        raise InvalidInputError(f"The factory {name!r} raised {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise InvalidInputError(f"The factory {name!r} must return an nn.Module; got {type(model).__name__}.")
    return model
