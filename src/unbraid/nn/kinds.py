"""The layers that can be written as operators: what their matrix is, what replaces them, and what they go back to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unbraid.ground.errors import InvalidInputError, require_extra, require_finite
from unbraid.nn.convolution import MPOConv2d, conv_options
from unbraid.nn.embedding import MPOEmbedding
from unbraid.nn.layers import DisentangledLinear, MPOLinear
from unbraid.nn.operator import OperatorModule
from unbraid.tensors import MPO


@dataclass(frozen=True)
class Kind:
    """One kind of layer.

    Attributes:
        name: as its users call it.
        matches: whether a module is of it.
        matrix: its weight, shape (out, in).
        replaced: the layer that has an operator in the matrix's place.
    """

    name: str
    matches: Callable[[nn.Module], bool]
    matrix: Callable[[nn.Module], Tensor]
    replaced: Callable[[nn.Module, MPO], OperatorModule]


def _linear(layer: nn.Module, mpo: MPO) -> OperatorModule:
    return MPOLinear(mpo, layer.bias if isinstance(layer.bias, Tensor) else None)


def _convolution(layer: nn.Module, mpo: MPO) -> OperatorModule:
    assert isinstance(layer, nn.Conv2d)
    return MPOConv2d(mpo, (layer.kernel_size[0], layer.kernel_size[1]), layer.bias, **conv_options(layer))


def _linear_of_conv1d(layer: nn.Module, mpo: MPO) -> OperatorModule:
    new = MPOLinear(mpo, layer.bias if isinstance(layer.bias, Tensor) else None)
    new.was_conv1d = True
    return new


def _embedding(layer: nn.Module, mpo: MPO) -> OperatorModule:
    assert isinstance(layer, nn.Embedding)
    for name, usual in (("max_norm", None), ("scale_grad_by_freq", False), ("sparse", False)):
        if getattr(layer, name) != usual:
            raise InvalidInputError(f"An MPOEmbedding has no {name}; this embedding has {getattr(layer, name)}.")
    return MPOEmbedding(mpo, layer.padding_idx)


def _weight(layer: nn.Module) -> Tensor:
    """A parameter, or what a parametrisation makes of some."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if isinstance(weight, nn.UninitializedParameter):
        raise InvalidInputError(f"{layer} has no weight before it has seen inputs. Run the model once.")
    return weight


def is_plain(module: nn.Module) -> bool:
    """Whether a linear layer, convolution or embedding computes what torch's own does.

    A subclass with a forward of its own may scale, shift or normalise.
    """
    own: type[Any] = type(module)
    if isinstance(module, nn.Conv2d) and own._conv_forward is not nn.Conv2d._conv_forward:
        return False
    bases: tuple[type[Any], ...] = (nn.Linear, nn.Conv2d, nn.Embedding)
    return all(own.forward is base.forward for base in bases if isinstance(module, base))


def is_conv1d(module: nn.Module) -> bool:
    """GPT-2's linear layer, whose weight is (in, out); known by its name, since transformers may not be installed."""
    return type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils"


def _of(kind: type[nn.Module]) -> Callable[[nn.Module], bool]:
    return lambda module: isinstance(module, kind) and is_plain(module)


LINEAR = Kind("Linear", _of(nn.Linear), _weight, _linear)
CONV1D = Kind("Conv1D", is_conv1d, lambda m: _weight(m).mT, _linear_of_conv1d)
CONV2D = Kind("Conv2d", _of(nn.Conv2d), lambda m: _weight(m).flatten(1), _convolution)
EMBEDDING = Kind("Embedding", _of(nn.Embedding), _weight, _embedding)
KINDS = (LINEAR, CONV1D, CONV2D, EMBEDDING)


def kind_of(module: nn.Module) -> Kind | None:
    """The kind of a layer; None if it cannot be written as an operator."""
    return next((kind for kind in KINDS if kind.matches(module)), None)


def is_linear(module: nn.Module) -> bool:
    """Whether it is a linear layer: ``nn.Linear``, or ``Conv1D`` of transformers."""
    return kind_of(module) in (LINEAR, CONV1D)


def matrix_shape(layer: nn.Module) -> tuple[int, int] | None:
    """(out, in) of a layer's weight as a matrix, plain or not; None where there is none."""
    if isinstance(layer, OperatorModule):
        return layer.mpo.shape
    if isinstance(layer, DisentangledLinear):
        return layer.out_features, layer.in_features
    kind = kind_of(layer)
    if kind is None:
        return None
    rows, columns = kind.matrix(layer).shape
    return rows, columns


def matrix_of(layer: nn.Module) -> Tensor:
    """The weight (out, in) of a linear layer, plain or an operator, without gradients."""
    kind = kind_of(layer)
    if kind is not None:
        return kind.matrix(layer).detach()
    assert isinstance(layer, MPOLinear)
    return layer.weight.detach()


def restored(layer: nn.Module, name: str) -> nn.Module:
    """The plain layer of the same function.

    Raises:
        InvalidInputError: if a disentangled layer carries nonlinearities within its circuits.
    """
    if isinstance(layer, MPOConv2d):
        return layer.to_conv()
    if isinstance(layer, MPOEmbedding):
        return layer.to_embedding()
    assert isinstance(layer, (MPOLinear, DisentangledLinear))
    if isinstance(layer, DisentangledLinear) and not layer.is_linear:
        raise InvalidInputError(f"Layer {name!r} has nonlinearities within its circuits: no nn.Linear equals it.")
    plain = layer.to_linear()
    return _conv1d_of(plain) if layer.was_conv1d else plain


def _conv1d_of(layer: nn.Linear) -> nn.Module:
    conv1d = require_extra("transformers.pytorch_utils", "transformers").Conv1D
    with torch.device("meta"):  # it would draw numbers
        new: nn.Module = conv1d(layer.out_features, layer.in_features)
    new = new.to_empty(device=layer.weight.device).to(layer.weight.dtype)
    with torch.no_grad():
        _weight(new).copy_(layer.weight.mT)
        new.get_parameter("bias").copy_(torch.zeros(()) if layer.bias is None else layer.bias)
    return new


def check_weight(weight: Tensor, name: str) -> None:
    """Refuse a weight that holds no numbers to decompose.

    Raises:
        InvalidInputError: naming the layer, if its weight is on the meta device, quantised, empty, not finite or zero.
    """
    if weight.is_meta:
        raise InvalidInputError(
            f"Layer {name!r} is on the meta device: its weight has a shape and no numbers. Load the weights first."
        )
    if not weight.is_floating_point() or weight.element_size() < 2 or type(weight.data) is not Tensor:
        kind = weight.dtype if type(weight.data) is Tensor else type(weight.data).__name__
        raise InvalidInputError(
            f"Layer {name!r} has a weight of {kind}: quantised or distributed weights cannot be decomposed. Load the "
            "layer in floating point, or leave it out."
        )
    if weight.numel() == 0:
        raise InvalidInputError(
            f"Layer {name!r} has a weight of shape {tuple(weight.shape)}: it is empty. Leave it out."
        )
    require_finite(weight, f"The weight of layer {name!r}")
    if not bool(torch.any(weight)):
        raise InvalidInputError(
            f"Layer {name!r} is all zeros: there is nothing to decompose. Train it, or leave it out."
        )
