"""``save_pretrained`` and ``load_pretrained``: a folder with ``config.json`` and ``model.safetensors``.

The configuration holds the geometry of MPO and disentangled layers, and the whole model where it consists of known
building blocks. It also stands in the header of the tensors, so that a folder whose writing was cut off between the two
files still loads as a whole.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, StrictInt, ValidationError
from torch import Tensor, nn

from unbraid.ground.errors import FileFormatError, InvalidInputError, require_finite
from unbraid.ground.files import make_directory, read_json, read_tensors, write_json, write_tensors
from unbraid.ground.manifest import hash_tensors, versions
from unbraid.nn.declaration import (
    TENSOR_LAYERS,
    build_layer,
    build_model,
    count_entries,
    describe_layer,
    describe_model,
)
from unbraid.nn.kinds import matrix_shape
from unbraid.nn.surgery import replace_modules

FORMAT_VERSION = 1
CONFIG_NAME = "config.json"
TENSORS_NAME = "model.safetensors"


class Configuration(BaseModel):
    """What ``config.json`` holds."""

    model_config = ConfigDict(extra="forbid")

    format: Literal["unbraid-model"]
    version: StrictInt
    written_by: dict[str, str]
    dtype: str
    tensors: str  # SHA-256 over all tensors: ties the two files together
    declaration: dict[str, Any] | None
    layers: dict[str, dict[str, Any]]


def save_pretrained(model: nn.Module, directory: str | os.PathLike[str]) -> Path:
    """Write a model: every parameter and buffer, and how its MPO and disentangled layers are built.

    Args:
        model: any module. One made of ``nn.Sequential`` and common layers loads without further help; any other is
            passed to :func:`load_pretrained` again.
        directory: created if needed; files of an earlier model there are replaced, each whole or not at all.

    Returns:
        The directory.

    Raises:
        OutputError: if it cannot be written to.
        InvalidInputError: if a parameter is NaN or infinite, or the model is a hybrid.
    """
    if any(getattr(module, "runs_circuits", False) for module in model.modules()):
        raise InvalidInputError(
            "This is a hybrid, and an executor cannot be saved. Save the network that to_quantum was given; to_quantum "
            "makes the hybrid again."
        )
    place = make_directory(directory)
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    for name, tensor in state.items():
        if tensor.is_floating_point():
            require_finite(tensor, f"{name!r}")
    layers = {name: describe_layer(each) for name, each in model.named_modules() if isinstance(each, TENSOR_LAYERS)}
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    configuration = Configuration(
        format="unbraid-model",
        version=FORMAT_VERSION,
        written_by={name: version for name, version in versions().items() if name in ("unbraid", "torch")},
        dtype=str(dtype).removeprefix("torch."),
        tensors=hash_tensors(*(state[name] for name in sorted(state))),
        declaration=describe_model(model),
        layers=layers,
    )
    content = configuration.model_dump()
    write_tensors(place / TENSORS_NAME, state, {"config": json.dumps(content)})
    write_json(place / CONFIG_NAME, content)
    return place


def load_pretrained(directory: str | os.PathLike[str], model: nn.Module | None = None) -> nn.Module:
    """Read what :func:`save_pretrained` wrote.

    Args:
        directory: with ``config.json`` and ``model.safetensors``.
        model: the original architecture (its linear layers in place), where the file does not declare the whole model.
            It is changed and returned, unless the file does not fit: then it stays as it was.

    Returns:
        The model in evaluation mode.

    Raises:
        FileFormatError: if a file is missing, truncated, foreign, or from a newer version.
        InvalidInputError: if ``model`` is needed, or does not fit the file.
    """
    if model is not None and not isinstance(model, nn.Module):
        raise InvalidInputError(
            f"model must be a network; got {type(model).__name__}. Of a declaration give what its build() makes."
        )
    place = Path(directory)
    if not place.is_dir():
        raise FileFormatError(f"{place} is no folder. Give one that save_pretrained wrote.")
    configuration = _parse(read_json(place / CONFIG_NAME), place / CONFIG_NAME)
    state, metadata = read_tensors(place / TENSORS_NAME)
    digest = hash_tensors(*(state[name] for name in sorted(state)))
    if digest != configuration.tensors:
        try:
            configuration = _parse(json.loads(metadata["config"]), place / TENSORS_NAME)
        except (KeyError, ValueError) as error:
            raise FileFormatError(f"{CONFIG_NAME} and {TENSORS_NAME} in {place} do not belong together.") from error
        if digest != configuration.tensors:
            raise FileFormatError(
                f"The tensors in {place / TENSORS_NAME} are not those that were written. Copy them again."
            )
    declared = [*configuration.layers.values()] if model is not None else [configuration.declaration or {}]
    if sum(count_entries(part) for part in declared if part) > sum(tensor.numel() for tensor in state.values()):
        raise FileFormatError(f"{place / CONFIG_NAME} declares more numbers than {TENSORS_NAME} holds.")
    if model is None:
        if configuration.declaration is None:
            raise InvalidInputError(
                f"The model in {place} is not made of known building blocks alone: pass its original architecture, "
                "load_pretrained(directory, model=...), or FOLDER@package.module:factory on the command line."
            )
        model = build_model(configuration.declaration).to(_dtype(configuration.dtype))
    else:
        modules = dict(model.named_modules())
        missing = [name for name in configuration.layers if name not in modules]
        if missing:
            raise InvalidInputError(
                f"The model has no layer {missing[0]!r}, which {place} replaces. Pass the same architecture."
            )
        built = {name: build_layer(layer) for name, layer in configuration.layers.items()}
        for name, layer in built.items():
            _check_replaced(modules[name], layer, name, place)
        _check_names(model, built, state, place)  # before anything is changed
        model = replace_modules(model, {modules[name]: layer for name, layer in built.items()})
    _load_state(model, state, place)
    return model.eval()


def _parse(content: Any, path: Path) -> Configuration:
    if isinstance(content, dict) and content.get("format") == "unbraid-model":
        version = content.get("version")
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise FileFormatError(
                f"{path} has format version {version}; this unbraid reads up to {FORMAT_VERSION}. Update unbraid."
            )
    try:
        return Configuration.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise FileFormatError(f"{path} is no configuration of an unbraid model: {where}: {first['msg']}.") from error


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise FileFormatError(f"Unknown dtype {name!r} in the configuration.")
    return dtype


def _check_replaced(module: nn.Module, layer: nn.Module, name: str, place: Path) -> None:
    """Whether a layer of the file may stand where ``module`` stands."""
    sizes = [matrix_shape(each) for each in (module, layer)]
    if sizes[0] != sizes[1]:
        raise InvalidInputError(
            f"Layer {name!r} of the model has (outputs, inputs) = {sizes[0]}; in {place} it has {sizes[1]}. Pass the "
            "same architecture."
        )
    if type(module) is type(layer) and describe_layer(module) != describe_layer(layer):
        raise InvalidInputError(
            f"Layer {name!r} of the model is of another declaration than in {place}: legs, bonds or circuits differ. "
            "Pass the same architecture, or its linear layers."
        )


def _check_names(model: nn.Module, built: dict[str, nn.Module], state: dict[str, Tensor], place: Path) -> None:
    """Whether names and shapes in the file are those of ``model`` once the ``built`` layers stand in it."""
    inside = tuple(f"{name}." if name else "" for name in built)
    expected = {name: t.shape for name, t in model.state_dict().items() if not inside or not name.startswith(inside)}
    for name, layer in built.items():
        expected |= {f"{name}.{key}" if name else key: tensor.shape for key, tensor in layer.state_dict().items()}
    missing, surplus = sorted(set(expected) - set(state)), sorted(set(state) - set(expected))
    wrong = [name for name in expected if name in state and expected[name] != state[name].shape]
    if missing or surplus or wrong:
        parts = [
            f"{label}: {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}"
            for label, names in (("missing", missing), ("surplus", surplus), ("of another shape", wrong))
            if names
        ]
        raise FileFormatError(f"{place / TENSORS_NAME} does not fit the model; {'; '.join(parts)}.")


def _load_state(model: nn.Module, state: dict[str, Tensor], place: Path) -> None:
    _check_names(model, {}, state, place)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name in state:  # the numbers come back in the dtype in which they were saved
            tensor.data = tensor.data.to(state[name].dtype)
    model.load_state_dict(state)
