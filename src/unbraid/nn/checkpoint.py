"""``save_pretrained`` and ``load_pretrained``: a folder with ``config.json`` and ``model.safetensors``.

The configuration holds the geometry of MPO and disentangled layers, and the whole model where it consists of known
building blocks or is one of transformers. It also stands in the header of the tensors, so that a folder whose writing
was cut off between the two files still loads as a whole.
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
from unbraid.ground.files import make_directory, read_json, read_tensors, write_json, write_tensors, written_beside
from unbraid.ground.manifest import hash_tensors, versions
from unbraid.nn.cores import GaugeFixedCores
from unbraid.nn.declaration import (
    TENSOR_LAYERS,
    build_layer,
    build_model,
    count_entries,
    describe_layer,
    describe_model,
)
from unbraid.nn.kinds import is_conv1d, matrix_shape
from unbraid.nn.layers import DisentangledLinear, MPOLinear
from unbraid.nn.surgery import replace_modules
from unbraid.nn.transformers_models import build_transformers, describe_transformers

FORMAT_VERSION = 3  # 2 had no cores of fixed gauge; 1 no models of transformers, and shared parameters several times
CONFIG_NAME = "config.json"
TENSORS_NAME = "model.safetensors"
_LACKING = 2  # times the numbers that a file holds, at most, if some were cut out of it


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
    transformers: dict[str, Any] | None = None
    tied: dict[str, str] | None = None  # names of a parameter to the one that it is stored under; None: each by itself


def save_pretrained(model: nn.Module, directory: str | os.PathLike[str]) -> Path:
    """Write a model: every parameter and buffer, and how its MPO and disentangled layers are built.

    Args:
        model: any module. One made of ``nn.Sequential`` and common layers, or a whole one of transformers, loads
            without further help; any other is passed to :func:`load_pretrained` again.
        directory: created if needed; files of an earlier model there are replaced, each whole or not at all.

    Returns:
        The directory.

    Raises:
        OutputError: if it cannot be written to. An earlier model there then stays as it was.
        InvalidInputError: if a parameter is NaN, infinite, quantised or on the meta device, or the model is a hybrid.
    """
    if any(getattr(module, "runs_circuits", False) for module in model.modules()):
        raise InvalidInputError(
            "This is a hybrid, and an executor cannot be saved. Save the network that to_quantum was given; to_quantum "
            "makes the hybrid again."
        )
    place = make_directory(directory)
    state = _numbers(model)
    declaration = describe_model(model)
    tied = None if declaration is not None else _tied(model, state)
    for name in tied or ():
        del state[name]
    layers = {name: describe_layer(each) for name, each in model.named_modules() if isinstance(each, TENSOR_LAYERS)}
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    configuration = Configuration(
        format="unbraid-model",
        version=FORMAT_VERSION,
        written_by={name: version for name, version in versions().items() if name in ("unbraid", "torch")},
        dtype=str(dtype).removeprefix("torch."),
        tensors=hash_tensors(*(state[name] for name in sorted(state))),
        declaration=declaration,
        layers=layers,
        transformers=describe_transformers(model),
        tied=tied,
    )
    content = configuration.model_dump()
    with written_beside(place / CONFIG_NAME) as beside:
        write_json(beside, content)  # a full disk is noticed before the tensors replace those of an earlier model
        write_tensors(place / TENSORS_NAME, state, {"config": json.dumps(content)})
    return place


def load_pretrained(directory: str | os.PathLike[str], model: nn.Module | None = None) -> nn.Module:
    """Read what :func:`save_pretrained` wrote.

    Args:
        directory: with ``config.json`` and ``model.safetensors``.
        model: the original architecture (its linear layers in place), where the file does not tell the whole model.
            It is changed and returned, unless the file does not fit: then it stays as it was.

    Returns:
        The model in evaluation mode. Buffers that its ``state_dict`` leaves out are those of a new one.

    Raises:
        FileFormatError: if a file is missing, truncated, foreign, or from a newer version.
        InvalidInputError: if ``model`` is needed, or does not fit the file.
        MissingExtraError: if it is a model of transformers and that is not installed.
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
    damage = None
    if digest != configuration.tensors:  # said only if the names, which tell more, are as they should be
        damage = FileFormatError(
            f"The tensors in {place / TENSORS_NAME} are not those that were written. Copy them again."
        )
    described = configuration.transformers if model is None else None
    whole = model is None and described is None
    for name, owner in (configuration.tied or {}).items():
        if owner not in state:
            raise FileFormatError(f"{place / TENSORS_NAME} lacks {owner!r}, which {name!r} shares.")
        state[name] = state[owner]
    declared = [configuration.declaration or {}] if whole else [*configuration.layers.values()]
    held = sum(tensor.numel() for tensor in state.values()) * (1 if damage is None else _LACKING)
    if sum(count_entries(part) for part in declared if part) > held:
        raise FileFormatError(f"{place / CONFIG_NAME} declares more numbers than {TENSORS_NAME} holds.")
    if whole:
        if configuration.declaration is None:
            raise InvalidInputError(
                f"The model in {place} is not made of known building blocks alone: pass its original architecture, "
                "load_pretrained(directory, model=...), or FOLDER@package.module:factory on the command line."
            )
        model = build_model(configuration.declaration).to(_dtype(configuration.dtype))
    elif described is not None:
        model = build_transformers(described, len(state))
        try:
            model = _with_layers(model, configuration.layers, state, place, damage)
        except InvalidInputError as error:
            raise FileFormatError(f"{place / CONFIG_NAME} contradicts itself. {error}") from error
    else:
        assert model is not None
        model = _with_layers(model, configuration.layers, state, place, damage)
    if damage is not None:
        _check_names(model, {}, state, place)
        raise damage
    _load_state(model, state, configuration.tied, place)
    return model.eval()


def _numbers(model: nn.Module) -> dict[str, Tensor]:
    """The ``state_dict``, if it is one of plain tensors that can be written.

    Raises:
        InvalidInputError: naming the entry, if not.
    """
    state = {}
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor) or type(tensor.detach()) is not Tensor or tensor.is_quantized:
            kind = tensor.dtype if type(tensor) is Tensor else type(tensor).__name__
            raise InvalidInputError(
                f"{name!r} is a {kind}, and only plain tensors are saved. Quantised and distributed models are saved "
                "by what made them."
            )
        if tensor.is_meta:
            raise InvalidInputError(
                f"{name!r} is on the meta device: it has a shape and no numbers. Load the weights before saving."
            )
        if tensor.is_floating_point():
            require_finite(tensor, f"{name!r}")
        state[name] = tensor.detach()
    return state


def _tied(model: nn.Module, state: dict[str, Tensor]) -> dict[str, str]:
    """For each further name of a parameter its first."""
    first: dict[nn.Parameter, str] = {}
    names = {name: first.setdefault(each, name) for name, each in model.named_parameters(remove_duplicate=False)}
    return {name: owner for name, owner in names.items() if name != owner and name in state}


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
        hint = ""
        if isinstance(content, dict) and "model_type" in content:
            hint = " It is one of transformers: load the folder with its from_pretrained, then tensorize the model."
        raise FileFormatError(
            f"{path} is no configuration of an unbraid model: {where}: {first['msg']}.{hint}"
        ) from error


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise FileFormatError(f"Unknown dtype {name!r} in the configuration.")
    return dtype


def _with_layers(
    model: nn.Module,
    layers: dict[str, dict[str, Any]],
    state: dict[str, Tensor],
    place: Path,
    damage: FileFormatError | None,
) -> nn.Module:
    """The model with the layers of the file in the place of its own; checked before anything is changed."""
    modules = dict(model.named_modules(remove_duplicate=False))
    missing = [name for name in layers if name not in modules]
    if missing:
        raise InvalidInputError(
            f"The model has no layer {missing[0]!r}, which {place} replaces. Pass the same architecture."
        )
    built = {name: build_layer(layer) for name, layer in layers.items()}
    for name, layer in built.items():
        _check_replaced(modules[name], layer, name, place)
        if isinstance(layer, (MPOLinear, DisentangledLinear)):
            layer.was_conv1d = is_conv1d(modules[name]) or getattr(modules[name], "was_conv1d", False)
    replacements = {modules[name]: layer for name, layer in built.items()}
    everywhere = {name: replacements[module] for name, module in modules.items() if module in replacements}
    _check_names(model, everywhere, state, place)
    if damage is not None:
        raise damage
    return replace_modules(model, replacements)


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


def _load_state(model: nn.Module, state: dict[str, Tensor], tied: dict[str, str] | None, place: Path) -> None:
    _check_names(model, {}, state, place)
    for name, module in model.named_modules():
        if isinstance(module, GaugeFixedCores) and not module.says_where_rows_are(state[f"{name}.orders"]):
            raise FileFormatError(
                f"{f'{name}.orders'!r} in {place / TENSORS_NAME} does not say where rows of cores are."
            )
    if tied is not None:
        _tie(model, tied)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name in state and tensor.is_floating_point() and state[name].is_floating_point():  # as they were saved
            tensor.data = tensor.data.to(state[name].dtype)
    model.load_state_dict(state)


def _tie(model: nn.Module, tied: dict[str, str]) -> None:
    """Share parameters as the saved model did, and no others.

    Raises:
        FileFormatError: if the names are not those of parameters.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    wrong = [name for name, owner in tied.items() if owner in tied or not {name, owner} <= set(parameters)]
    if wrong:
        raise FileFormatError(f"The file says that {wrong[0]!r} is shared, which this model cannot have.")
    wanted: dict[str, nn.Parameter] = {}
    taken: set[nn.Parameter] = set()
    for name, parameter in parameters.items():
        if name not in tied:
            alone = parameter not in taken
            wanted[name] = parameter if alone else nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
            taken.add(parameter)
    for name, parameter in parameters.items():
        new = wanted[tied.get(name, name)]
        if new is not parameter:
            module, _, key = name.rpartition(".")
            setattr(model.get_submodule(module), key, new)
