"""``fix_gauge``: layers without the numbers that their operators do not need.

An operator does not change if any invertible matrix is put on a bond and its inverse behind it. Fixing that choice so
that cores hold identities saves the square of every bond, and changes nothing else. A rank r of an (m, n) matrix then
takes r (m + n - r) numbers, not r (m + n), and never more than the matrix.
"""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn

from unbraid.ground.errors import InvalidInputError
from unbraid.nn.cores import GaugeFixedCores
from unbraid.nn.kinds import check_weight
from unbraid.nn.layers import DisentangledLinear
from unbraid.nn.operator import OperatorModule
from unbraid.nn.surgery import replace_layers
from unbraid.nn.targets import Targets, match_layers
from unbraid.tensors.gauge import fixed_gauge

Model = TypeVar("Model", bound=nn.Module)


def fix_gauge(model: Model, targets: Targets | None = None, *, inplace: bool = False) -> Model:
    """Store the cores of layers without identities; weights stay as they are, but for rounding.

    What is left can still be trained.

    Args:
        model: any module with MPO or disentangled layers; a copy is changed unless ``inplace``.
        targets: which layers, as in :func:`match_layers`; by default all MPO and disentangled ones.
        inplace: change ``model`` itself.

    Returns:
        The model, its layers with :class:`~unbraid.nn.cores.GaugeFixedCores`.

    Raises:
        InvalidInputError: if nothing matches, a layer's gauge is fixed already, its cores are integers, zero, not
            finite or on the meta device. The model is then unchanged.

    Source:
        :func:`unbraid.tensors.gauge.fixed_gauge`.
    """
    kinds = (OperatorModule, DisentangledLinear)
    layers: dict[str, nn.Module] = (
        {name: module for name, module in model.named_modules() if isinstance(module, kinds)}
        if targets is None
        else match_layers(model, targets, kinds)
    )
    if not layers:
        raise InvalidInputError("There are no MPO or disentangled layers here. Write layers as MPOs first: tensorize.")

    def convert(name: str, layer: nn.Module) -> nn.Module:
        assert isinstance(layer, kinds)
        if not isinstance(layer.cores, nn.ParameterList):
            why = "is fixed already" if isinstance(layer.cores, GaugeFixedCores) else "is not that of its integers"
            raise InvalidInputError(f"The gauge of layer {name!r} {why}. Leave it out, or take the model before.")
        for core in layer.cores:
            check_weight(core, name)
        new = copy.deepcopy(layer)
        new.cores = GaugeFixedCores(fixed_gauge(tuple(layer.cores)))
        if isinstance(new, OperatorModule):
            new.cores_changed()
        return new

    return replace_layers(model, layers, convert, inplace, "fix gauge")
