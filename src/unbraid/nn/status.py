"""``get_layer_status``: what became of each layer of a model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from unbraid.nn.integers import count_numbers
from unbraid.nn.kinds import matrix_shape
from unbraid.nn.layers import DisentangledLinear
from unbraid.nn.operator import OperatorModule


@dataclass(frozen=True)
class LayerStatus:
    """One layer that is, or could be, an operator.

    Attributes:
        name: in ``model.named_modules()``.
        kind: its class: "MPOLinear", "MPOConv2d", "MPOEmbedding", "DisentangledLinear", or that of the plain layer.
        shape: of its weight as a matrix, (out, in).
        out_dims: output legs; None of a plain layer, as the next two.
        in_dims: input legs.
        bond_dims: of the operator, or of the core.
        parameters: trainable or not, bias included; of cores stored as integers their entries, without the scales.
        bytes: of its parameters and buffers.
        dense_parameters: of the plain layer.
        trainable: whether any parameter is.
        dtype: of its parameters.
        device: where they are.
    """

    name: str
    kind: str
    shape: tuple[int, int]
    out_dims: tuple[int, ...] | None
    in_dims: tuple[int, ...] | None
    bond_dims: tuple[int, ...] | None
    parameters: int
    bytes: int
    dense_parameters: int
    trainable: bool
    dtype: torch.dtype
    device: torch.device

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self) | {"dtype": str(self.dtype).removeprefix("torch."), "device": str(self.device)}


def get_layer_status(model: nn.Module) -> list[LayerStatus]:
    """The status of each layer that is an operator or could be written as one, in the order of the model.

    Args:
        model: any module; it is not changed.
    """
    found = []
    for name, module in model.named_modules():
        shape = matrix_shape(module)
        if shape is None:
            continue
        mpo = None
        if isinstance(module, (OperatorModule, DisentangledLinear)):
            mpo = module.mpo if isinstance(module, OperatorModule) else module.core
        parameters = list(module.parameters())
        bias = getattr(module, "bias", None)
        found.append(
            LayerStatus(
                name=name,
                kind=type(module).__name__,
                shape=shape,
                out_dims=None if mpo is None else mpo.out_dims,
                in_dims=None if mpo is None else mpo.in_dims,
                bond_dims=None if mpo is None else mpo.bond_dims,
                parameters=count_numbers(module),
                bytes=model_bytes(module),
                dense_parameters=shape[0] * shape[1] + (0 if bias is None else bias.numel()),
                trainable=any(parameter.requires_grad for parameter in parameters),
                dtype=parameters[0].dtype,
                device=parameters[0].device,
            )
        )
    return found


def model_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers, shared ones once. What layers keep between calls is not among them."""
    storages = {}
    for tensor in (*model.parameters(), *model.buffers()):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr() or id(tensor), tensor.device] = storage.nbytes()
    return sum(storages.values())


def describe_status(layers: list[LayerStatus]) -> str:
    """A table as text, with sums."""
    rows = [("layer", "kind", "shape", "bonds", "parameters", "of dense", "bytes")]
    for layer in layers:
        share = layer.parameters / max(layer.dense_parameters, 1)
        bonds = "-" if layer.bond_dims is None else " ".join(map(str, layer.bond_dims)) or "1 site"
        shape = f"{layer.shape[0]} x {layer.shape[1]}"
        sizes = (f"{layer.parameters:,}", f"{share:.1%}", f"{layer.bytes:,}")
        rows.append((layer.name or "(the model)", layer.kind, shape, bonds, *sizes))
    total, dense = sum(layer.parameters for layer in layers), sum(layer.dense_parameters for layer in layers)
    sizes = (f"{total:,}", f"{total / max(dense, 1):.1%}", f"{sum(layer.bytes for layer in layers):,}")
    rows.append(("total", "", "", "", *sizes))
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    left = [0, 1]
    lines = []
    for row in rows:
        cells = [c.ljust(w) if k in left else c.rjust(w) for k, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
