"""Whole models of transformers: described by class and configuration, built again without their original weights.

A class that a file names is looked up in the tables of transformers' auto classes, by the model's type, and nowhere
else; no code of a repository is ever run. transformers is imported inside the functions.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unbraid.ground.errors import FileFormatError, require_extra
from unbraid.ground.files import read_json

MOST_LAYERS = 1000  # that a configuration may ask for beyond the tensors of its file
CONFIG_NAME = "config.json"


def describe_transformers(model: nn.Module) -> dict[str, Any] | None:
    """Class, configuration and generation settings as plain data; None for what is no whole model of transformers.

    Quantised models and those whose class transformers' auto classes do not know are none either.
    """
    modeling = sys.modules.get("transformers.modeling_utils")  # without it there can be no such model
    if modeling is None or not isinstance(model, modeling.PreTrainedModel):
        return None
    config, name = model.config, type(model).__name__
    if type(model) is not _find_class(config.model_type, name) or getattr(config, "quantization_config", None):
        return None
    found = {"class": name, "config": json.loads(config.to_json_string(use_diff=False))}
    found["config"].pop("_name_or_path", None)  # a place on this computer
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        found["generation_config"] = json.loads(generation.to_json_string())
    return found


def build_transformers(description: dict[str, Any], num_tensors: int) -> nn.Module:
    """The model of a description, with arbitrary numbers in what its file holds.

    Args:
        description: from :func:`describe_transformers`.
        num_tensors: of the file; a model has no more layers than tensors.

    Raises:
        FileFormatError: if the description is malformed or its class is none of transformers.
        MissingExtraError: if transformers is not installed.
    """
    transformers = require_extra("transformers", "transformers")
    try:
        name, content = description["class"], description["config"]
        config = _configuration(content)
        cls = _find_class(config.model_type, name)
        generation = description.get("generation_config")
        generation = None if generation is None else transformers.GenerationConfig.from_dict(dict(generation))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, FileFormatError):
            raise
        raise FileFormatError(f"The description of a transformers model is malformed: {error!r}.") from error
    if cls is None:
        raise FileFormatError(
            f"The file names the class {name!r}, which is no {config.model_type!r} model of transformers "
            f"{transformers.__version__}. Was it written with another version?"
        )
    most = max((size for key, size in _integers(content) if "layer" in key), default=0)
    if most > max(MOST_LAYERS, num_tensors):
        raise FileFormatError(f"The file declares {most} layers and holds {num_tensors} tensors.")
    try:
        with torch.random.fork_rng(devices=[]), _uninitialised():
            model: nn.Module = cls(config)
    except Exception as error:  # of transformers' own code, for a configuration that it cannot build
        raise FileFormatError(f"transformers cannot build {name} from the configuration: {error}") from error
    if generation is not None:
        model.generation_config = generation  # type: ignore[assignment]
    return model


def is_transformers_folder(directory: str | os.PathLike[str]) -> bool:
    """Whether ``save_pretrained`` of transformers wrote a folder."""
    path = Path(directory) / CONFIG_NAME
    content = read_json(path) if path.exists() else None
    return isinstance(content, dict) and "model_type" in content and "format" not in content


def load_transformers(directory: str | os.PathLike[str]) -> nn.Module:
    """Read a folder that ``save_pretrained`` of transformers wrote, without a network: safetensors only.

    Returns:
        The model in evaluation mode, of the class that its ``architectures`` name, else of ``AutoModel``.

    Raises:
        FileFormatError: if files are missing or damaged, weights are missing, or its code is not of transformers.
        MissingExtraError: if transformers is not installed.
    """
    transformers = require_extra("transformers", "transformers")
    place = Path(directory)
    content = read_json(place / CONFIG_NAME)
    if not any(place.glob("*.safetensors")):
        raise FileFormatError(
            f"{place} has no safetensors file; a pickle of torch.save is never loaded. Write the model with "
            "save_pretrained of transformers, which makes one."
        )
    try:
        config = _configuration(content)
        names = content.get("architectures") or [None]
        cls = _find_class(config.model_type, names[0]) or transformers.AutoModel
        with torch.random.fork_rng(devices=[]), _without_bars():
            model, info = cls.from_pretrained(
                place,
                config=config,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # they are told below
                output_loading_info=True,
            )
    except FileFormatError:
        raise
    except Exception as error:  # of transformers' own code, on whatever the folder holds
        raise FileFormatError(f"transformers cannot load {place}: {error}") from error
    named = cls is not transformers.AutoModel  # else heads that the file may have are left out
    wrong = {
        "missing": sorted(info["missing_keys"]),
        "of another shape": sorted(str(each[0]) for each in info["mismatched_keys"]),
        "surplus": sorted(info["unexpected_keys"]) if named else [],
    }
    if any(wrong.values()):
        told = [
            f"{kind}: {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}"
            for kind, names in wrong.items()
            if names
        ]
        raise FileFormatError(f"The safetensors in {place} do not fit {type(model).__name__}; {'; '.join(told)}.")
    loaded: nn.Module = model.eval()
    return loaded


def _find_class(model_type: str, name: Any) -> Any | None:
    """A class of transformers that its auto classes list under this type of model."""
    import transformers
    from transformers.models.auto import modeling_auto

    for table_name, table in vars(modeling_auto).items():
        if table_name.startswith("MODEL_") and table_name.endswith("_MAPPING_NAMES"):
            listed = table.get(model_type, ())
            if name in ((listed,) if isinstance(listed, str) else listed):
                return getattr(transformers, name, None)
    return None


def _configuration(content: dict[str, Any]) -> Any:
    """A configuration of transformers' own.

    Raises:
        FileFormatError: if it is of an unknown type or malformed.
    """
    import transformers

    kind = content["model_type"]
    if kind not in transformers.CONFIG_MAPPING:
        raise FileFormatError(
            f"transformers {transformers.__version__} has no model type {kind!r}. Update it; models with code of their "
            "own are not loaded from files: name a factory."
        )
    try:
        return transformers.CONFIG_MAPPING[kind].from_dict(json.loads(json.dumps(content), object_hook=_tidied))
    except Exception as error:  # of transformers' own checks
        raise FileFormatError(f"transformers cannot read the configuration of a {kind!r} model: {error}") from error


def _tidied(entries: dict[str, Any]) -> Any:
    """Infinities as transformers writes them become numbers; names of kernels, which could be fetched, are dropped."""
    if set(entries) == {"__float__"}:
        return float(entries["__float__"])
    return {key: value for key, value in entries.items() if "_implementation" not in key}


def _integers(content: Any) -> Iterator[tuple[str, int]]:
    """Whole numbers of a configuration by their names, those of its parts too."""
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _integers(value)
        elif isinstance(value, int):
            yield str(key), value


@contextmanager
def _uninitialised() -> Iterator[None]:
    """Constructors draw no numbers for parameters; what they compute, such as frequencies, is there all the same."""
    try:
        from transformers.initialization import no_init_weights
    except ImportError:  # before transformers 5
        from transformers.modeling_utils import no_init_weights

    with no_init_weights():
        yield


@contextmanager
def _without_bars() -> Iterator[None]:
    """The library prints nothing."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
