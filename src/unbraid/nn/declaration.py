"""Declarations: models of known building blocks as plain data, so that reading a file runs nobody's code.

A declaration is a tree, ``{"type": "Sequential", "children": {"0": {...}}}`` or
``{"type": "Linear", "options": {...}}``. Names in files are looked up in the tables below and never imported.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import nn

from unbraid.circuits import Ansatz, Circuit
from unbraid.circuits.joints import count_joint
from unbraid.ground.errors import FileFormatError, InvalidInputError
from unbraid.nn.convolution import MPOConv2d, conv_options
from unbraid.nn.cores import GaugeFixedCores, stored
from unbraid.nn.embedding import MPOEmbedding
from unbraid.nn.integers import QuantizedCores, check_bits, stored_numbers
from unbraid.nn.layers import DisentangledLinear, MPOLinear
from unbraid.nn.operator import OperatorModule
from unbraid.tensors import MPO
from unbraid.tensors.gauge import degrees_of_freedom

_CONVOLUTION = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
# What a plain module is rebuilt from: constructor arguments that are attributes of the same name.
_PLAIN: dict[str, tuple[type[nn.Module], tuple[str, ...]]] = {
    "Linear": (nn.Linear, ("in_features", "out_features", "bias")),
    "BatchNorm1d": (nn.BatchNorm1d, ("num_features", "eps", "momentum", "affine", "track_running_stats")),
    "BatchNorm2d": (nn.BatchNorm2d, ("num_features", "eps", "momentum", "affine", "track_running_stats")),
    "MaxPool2d": (nn.MaxPool2d, ("kernel_size", "stride", "padding", "dilation", "ceil_mode")),
    "AvgPool2d": (nn.AvgPool2d, ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")),
    "AdaptiveAvgPool2d": (nn.AdaptiveAvgPool2d, ("output_size",)),
    "Conv2d": (nn.Conv2d, ("in_channels", "out_channels", *_CONVOLUTION, "bias")),
    "Embedding": (nn.Embedding, ("num_embeddings", "embedding_dim", "padding_idx")),
    "LayerNorm": (nn.LayerNorm, ("normalized_shape", "eps", "elementwise_affine", "bias")),
    "Dropout": (nn.Dropout, ("p",)),
    "Flatten": (nn.Flatten, ("start_dim", "end_dim")),
    "Identity": (nn.Identity, ()),
    "ReLU": (nn.ReLU, ()),
    "LeakyReLU": (nn.LeakyReLU, ("negative_slope",)),
    "GELU": (nn.GELU, ("approximate",)),
    "SiLU": (nn.SiLU, ()),
    "ELU": (nn.ELU, ("alpha",)),
    "Tanh": (nn.Tanh, ()),
    "Sigmoid": (nn.Sigmoid, ()),
    "Softmax": (nn.Softmax, ("dim",)),
    "LogSoftmax": (nn.LogSoftmax, ("dim",)),
}
TENSOR_LAYERS = (MPOLinear, MPOConv2d, MPOEmbedding, DisentangledLinear)
_TENSOR_LAYER_NAMES = tuple(layer.__name__ for layer in TENSOR_LAYERS)
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
}
LARGEST_FIXED_GATE = 2**20  # entries of its matrix; two wires of five qubits each
LARGEST_LAYER = 2**28  # entries; a file that asks for more is refused before memory is


def describe_model(module: nn.Module) -> dict[str, Any] | None:
    """The declaration of a module, or None if some part of it is no known building block."""
    if isinstance(module, TENSOR_LAYERS):
        return describe_layer(module)
    if type(module) is nn.Sequential:
        # named_children() lists a module that stands at two places only once
        children = {name: describe_model(child) for name, child in module._modules.items() if child is not None}
        if any(child is None for child in children.values()):
            return None
        return {"type": "Sequential", "children": children}
    entry = _PLAIN.get(type(module).__name__)
    if entry is None or type(module) is not entry[0]:
        return None
    options = {name: getattr(module, name) for name in entry[1]}
    if "bias" in options:
        options["bias"] = module.bias is not None
    if isinstance(module, nn.Embedding) and (module.max_norm is not None or module.scale_grad_by_freq or module.sparse):
        return None
    options = {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
    return {"type": type(module).__name__, "options": options}


def describe_layer(layer: nn.Module) -> dict[str, Any]:
    """The declaration of an MPO or disentangled layer: its geometry, without numbers."""
    assert isinstance(layer, (OperatorModule, DisentangledLinear))
    described = _describe_operator(layer)
    if isinstance(layer.cores, QuantizedCores):
        return described | {"bits": layer.cores.bits}
    return described | ({"gauge": "fixed"} if isinstance(layer.cores, GaugeFixedCores) else {})


def _describe_operator(layer: OperatorModule | DisentangledLinear) -> dict[str, Any]:
    if isinstance(layer, MPOLinear):
        return {"type": "MPOLinear", "core": _describe_mpo(layer.mpo), "bias": layer.bias is not None}
    if isinstance(layer, MPOConv2d):
        options = {name: list(v) if isinstance(v, tuple) else v for name, v in conv_options(layer).items()}
        options["kernel_size"] = list(layer.kernel_size)
        return {
            "type": "MPOConv2d",
            "core": _describe_mpo(layer.mpo),
            "bias": layer.bias is not None,
            "options": options,
        }
    if isinstance(layer, MPOEmbedding):
        return {"type": "MPOEmbedding", "core": _describe_mpo(layer.mpo), "padding_idx": layer.padding_idx}
    assert isinstance(layer, DisentangledLinear)
    return {
        "type": "DisentangledLinear",
        "core": _describe_mpo(layer.core),
        "output_circuit": _describe_circuit(layer.output_circuit),
        "input_circuit": _describe_circuit(layer.input_circuit),
        "out_features": layer.out_features,
        "in_features": layer.in_features,
        "bias": layer.bias is not None,
    }


def build_model(declaration: Any) -> nn.Module:
    """The module of a declaration, with arbitrary numbers.

    Raises:
        FileFormatError: if the declaration is malformed or names an unknown type.
    """
    try:
        kind = declaration["type"]
        if kind == "Sequential":
            model = nn.Sequential()
            for name, child in declaration["children"].items():
                model.add_module(name, build_model(child))
            return model
        if kind in _PLAIN:
            cls, names = _PLAIN[kind]
            options = declaration["options"]
            if set(options) - set(names):
                raise FileFormatError(f"{kind} takes {', '.join(names)}; the file gives {', '.join(options)}.")
            if kind == "Linear" and max(options["in_features"], 1) * options["out_features"] > LARGEST_LAYER:
                raise FileFormatError("The file declares an unreasonably large layer.")
            options = {name: tuple(v) if isinstance(v, list) else v for name, v in options.items()}
            if kind in ("Conv2d", "Embedding") and _plain_entries(kind, options) > LARGEST_LAYER:
                raise FileFormatError("The file declares an unreasonably large layer.")
            return cls(**options)
        if kind in _TENSOR_LAYER_NAMES:
            return build_layer(declaration)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, RecursionError) as error:
        if isinstance(error, FileFormatError):
            raise
        raise FileFormatError(f"The model declaration is malformed: {error!r}.") from error
    raise FileFormatError(f"The model declaration names an unknown type {kind!r}. Was it written by a newer version?")


def build_layer(declaration: Any) -> nn.Module:
    """The MPO or disentangled layer of a declaration, with zeros for numbers.

    Raises:
        FileFormatError: if the declaration is malformed.
    """
    try:
        layer = _build_operator(declaration)
        if "bits" in declaration:
            shapes, dtype = [core.shape for core in layer.cores], stored(layer.cores)[0].dtype
            layer.cores = QuantizedCores.zeros(shapes, check_bits(declaration["bits"]), dtype)
        elif "gauge" in declaration:
            if declaration["gauge"] != "fixed":
                raise FileFormatError(f"The file declares an unknown gauge {declaration['gauge']!r}.")
            cores = list(layer.cores)
            layer.cores = GaugeFixedCores.zeros([core.shape for core in cores], cores[0].dtype)
        return layer
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, FileFormatError):
            raise
        if isinstance(error, InvalidInputError):
            raise FileFormatError(f"The file declares an impossible layer: {error}") from error
        raise FileFormatError(f"The layer declaration is malformed: {error!r}.") from error


def _build_operator(declaration: Any) -> OperatorModule | DisentangledLinear:
    core = _build_mpo(declaration["core"])
    if declaration["type"] == "MPOLinear":
        return MPOLinear(core, torch.zeros(core.shape[0], dtype=core.dtype) if declaration["bias"] else None)
    if declaration["type"] == "MPOConv2d":
        options: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in declaration["options"].items()
        }
        size = options.pop("kernel_size")
        return MPOConv2d(
            core, size, torch.zeros(core.shape[0], dtype=core.dtype) if declaration["bias"] else None, **options
        )
    if declaration["type"] == "MPOEmbedding":
        return MPOEmbedding(core, declaration["padding_idx"])
    if declaration["type"] != "DisentangledLinear":
        raise FileFormatError(f"Unknown layer type {declaration['type']!r}. Was it written by a newer version?")
    output = _build_circuit(declaration["output_circuit"], core.dtype, mirrored=False)
    inward = _build_circuit(declaration["input_circuit"], core.dtype, mirrored=True)
    out_features = int(declaration["out_features"])
    bias = torch.zeros(out_features, dtype=core.dtype) if declaration["bias"] else None
    in_features = int(declaration["in_features"])
    return DisentangledLinear(output, core, inward, out_features=out_features, in_features=in_features, bias=bias)


def count_entries(declaration: Any) -> int:
    """Numbers that the module of a declaration holds, at least; counted before memory is given to them.

    Raises:
        FileFormatError: if the declaration is malformed.
    """
    try:
        kind = declaration["type"]
        if kind == "Sequential":
            return sum(count_entries(child) for child in declaration["children"].values())
        if kind in _TENSOR_LAYER_NAMES:
            core = declaration["core"]
            bonds = [1, *core["bond_dims"], 1]
            shapes = list(zip(bonds[:-1], core["out_dims"], core["in_dims"], bonds[1:], strict=True))
            if "gauge" in declaration:
                total = degrees_of_freedom(shapes)
            else:
                total = sum(stored_numbers(shape, declaration.get("bits")) for shape in shapes)
            if declaration.get("bias"):
                total += declaration["out_features"] if kind == "DisentangledLinear" else core["shape"][0]
            return total + sum(
                _count_gates(declaration[side]) for side in ("output_circuit", "input_circuit") if side in declaration
            )
        options = declaration.get("options", {})
        if kind in ("Conv2d", "Embedding"):
            return _plain_entries(kind, options)
        if kind == "Linear":
            return options["in_features"] * options["out_features"] + options["out_features"] * bool(options["bias"])
        if kind in ("BatchNorm1d", "BatchNorm2d") and (options["affine"] or options["track_running_stats"]):
            return options["num_features"]
        if kind == "LayerNorm" and options["elementwise_affine"]:
            return prod(options["normalized_shape"])
        return 0
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        if isinstance(error, FileFormatError):
            raise
        raise FileFormatError(f"The model declaration is malformed: {error!r}.") from error


def _plain_entries(kind: str, options: dict[str, Any]) -> int:
    """Of a dense convolution or embedding, from its constructor's arguments."""
    if kind == "Embedding":
        return int(options["num_embeddings"]) * int(options["embedding_dim"])
    size = options["kernel_size"]
    inside = prod(size) if isinstance(size, (list, tuple)) else size**2
    bias = options["out_channels"] if options["bias"] else 0
    return int(options["in_channels"] // max(options["groups"], 1) * options["out_channels"] * inside + bias)


def _count_gates(data: Any) -> int:
    ansatz = Ansatz.from_dict(data)
    total = sum(count_joint(name, ansatz.dimension) for _, name in ansatz.joints)
    for gate in ansatz.gates():
        size = prod(ansatz.gate_dims(gate)) ** 2
        if size > LARGEST_LAYER:
            raise FileFormatError("The file declares an unreasonably large gate.")
        if gate.is_trainable:
            total += size
        elif size > LARGEST_FIXED_GATE:
            raise FileFormatError("The file declares an unreasonably large fixed gate.")
    return total


def _describe_circuit(circuit: Circuit) -> dict[str, Any]:
    """A parametrisation other than the default is told."""
    chosen = circuit.parametrization
    return circuit.ansatz.to_dict() | ({} if chosen == "exp" else {"parametrization": chosen})


def _build_circuit(data: Any, dtype: torch.dtype, *, mirrored: bool) -> Circuit:
    chosen = str(data.get("parametrization", "exp"))
    return Circuit(Ansatz.from_dict(data), "identity", mirrored=mirrored, dtype=dtype, parametrization=chosen)


def _describe_mpo(mpo: MPO) -> dict[str, Any]:
    return {
        "out_dims": list(mpo.out_dims),
        "in_dims": list(mpo.in_dims),
        "bond_dims": list(mpo.bond_dims),
        "shape": list(mpo.shape),
        "dtype": str(mpo.dtype).removeprefix("torch."),
    }


def _build_mpo(data: Any) -> MPO:
    out_dims, in_dims, bonds, shape = (
        [int(dim) for dim in data[key]] for key in ("out_dims", "in_dims", "bond_dims", "shape")
    )
    if min([*out_dims, *in_dims, *bonds, *shape], default=0) < 1 or len(shape) != 2:
        raise FileFormatError("Dimensions in a file must be positive.")
    shapes = list(zip([1, *bonds], out_dims, in_dims, [*bonds, 1], strict=True))
    if sum(a * b * c * d for a, b, c, d in shapes) > LARGEST_LAYER:
        raise FileFormatError("The file declares an unreasonably large layer.")
    dtype = _DTYPES[data["dtype"]]
    return MPO([torch.zeros(*core, dtype=dtype) for core in shapes], shape=(shape[0], shape[1]))
