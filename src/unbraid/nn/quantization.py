"""``quantize``: the cores of layers as integers of eight or four bits.

Legend: core ``k`` has shape (left, out, in, right), as in :mod:`unbraid.tensors.mpo`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from unbraid.ground.errors import InvalidInputError
from unbraid.ground.random import stream
from unbraid.nn.integers import QuantizedCores, check_bits, core_of, rounded
from unbraid.nn.kinds import check_weight, is_linear, kind_of
from unbraid.nn.layers import DisentangledLinear
from unbraid.nn.operator import OperatorModule
from unbraid.nn.surgery import refuse_shared_weights, replace_layers
from unbraid.nn.targets import Targets, match_layers
from unbraid.tensors import MPO
from unbraid.tensors.mpo import inner

Model = TypeVar("Model", bound=nn.Module)
Rounded = tuple[Tensor, Tensor]  # integers and scales of a core


def quantize(model: Model, targets: Targets | None = None, *, bits: int = 8, inplace: bool = False) -> Model:
    """Store the cores of layers as integers, which are made into numbers where they are used.

    Entries share a scale in groups of 64 (:mod:`unbraid.nn.integers`). Cores are rounded one after another, from both
    ends towards one site; after each the next is fitted to what was rounded, so that it makes good what can be of the
    error. The site, and whether bonds are turned before, are those of the least error of the whole operator, which is
    never above that of rounding the cores as they are.

    Integers are not trained; biases, circuits and all other layers still are, and so are scales if one asks for it,
    ``layer.cores.scales.requires_grad_()``. In evaluation a layer keeps numbers from one call to the next as any other
    operator does, up to the whole weight in its full precision; ``layer.keeps_blocks = False`` keeps integers alone.

    Args:
        model: any module with MPO or disentangled layers; a copy is changed unless ``inplace``.
        targets: which layers, as in :func:`match_layers`; by default all MPO and disentangled ones. Those named may be
            plain linear layers too ("all-linear" is every one of all these): such a layer becomes an
            :class:`MPOLinear` of a single site, that is, its weight quantised.
        bits: 8 or 4 an entry; a scale adds a number to each group.
        inplace: change ``model`` itself.

    Returns:
        The model, its layers with :class:`~unbraid.nn.integers.QuantizedCores`.

    Raises:
        InvalidInputError: if nothing matches, a layer is quantised already, its weight is zero, not finite, on the meta
            device or shared with another module, or bits are others. The model is then unchanged.

    Source:
        Rounding with the error passed on to what is not yet rounded: GPTQ, arXiv:2210.17323, there within a matrix,
        here from core to core.
    """
    check_bits(bits)
    tensor_layers = (OperatorModule, DisentangledLinear)
    layers: dict[str, nn.Module]
    if targets is None:
        layers = {name: module for name, module in model.named_modules() if isinstance(module, tensor_layers)}
        if not layers:
            raise InvalidInputError(
                "There are no MPO or disentangled layers here. Write layers as MPOs first, tensorize(model, ...), or "
                "name plain linear layers: targets='all-linear'."
            )
    else:
        plain = dict.fromkeys(type(module) for module in model.modules() if is_linear(module))
        layers = match_layers(model, targets, (*tensor_layers, *plain))
    refuse_shared_weights(model, {name: layer for name, layer in layers.items() if is_linear(layer)})

    def convert(name: str, layer: nn.Module) -> nn.Module:
        kind = kind_of(layer)
        if kind is not None:
            matrix = kind.matrix(layer)
            check_weight(matrix, name)
            layer = kind.replaced(layer, MPO([matrix[None, :, :, None]]))
        assert isinstance(layer, tensor_layers)
        if isinstance(layer.cores, QuantizedCores):
            raise InvalidInputError(f"Layer {name!r} is quantised already. Leave it out, or take the original.")
        for core in layer.cores:
            check_weight(core, name)
        new = copy.deepcopy(layer)
        new.cores = _quantized(layer.core if isinstance(layer, DisentangledLinear) else layer.mpo, bits)
        if isinstance(new, OperatorModule):
            new.cores_changed()
        return new

    return replace_layers(model, layers, convert, inplace, "quantize")


def _quantized(mpo: MPO, bits: int) -> QuantizedCores:
    """The best of a few: cores rounded as they are, or one after another towards each site.

    The latter also with bonds turned at random, which spreads outliers.
    """
    shapes = [core.shape for core in mpo.cores]
    wide = mpo.detach().to(torch.device("cpu")).to(torch.float64)  # what solves where rank is missing runs on CPUs
    trials = [[rounded(core, bits, mpo.dtype) for core in wide.cores]]
    if mpo.num_sites > 1:
        for cores in (wide.cores, _turned(wide.cores)):
            trials += _swept(cores, bits, mpo.dtype)

    def error(trial: list[Rounded]) -> float:
        """Squared, but for a constant."""
        cores = [core_of(shape, *pair).double() for shape, pair in zip(shapes, trial, strict=True)]
        found = MPO(cores, shape=mpo.shape)
        return float(inner(found, found) - 2 * inner(found, wide))

    integers, scales = (torch.cat(parts).to(mpo.device) for parts in zip(*min(trials, key=error), strict=True))
    return QuantizedCores(shapes, integers, scales, bits)


def _turned(cores: Sequence[Tensor]) -> list[Tensor]:
    """Cores of the same operator, a random rotation and its inverse put on each bond."""
    generator = stream(0, "quantize")
    turned = list(cores)
    for k in range(len(turned) - 1):
        bond = turned[k].shape[3]
        rotation = torch.linalg.qr(torch.randn(bond, bond, generator=generator, dtype=torch.float64))[0]
        turned[k] = torch.tensordot(turned[k], rotation, 1)
        turned[k + 1] = torch.tensordot(rotation.mT, turned[k + 1], 1)
    return turned


def _swept(cores: Sequence[Tensor], bits: int, dtype: torch.dtype) -> Iterator[list[Rounded]]:
    """For each site: the cores before it rounded from the left, those behind it from the right, and it last."""
    last = len(cores) - 1
    left, left_fits = _rounded_on(cores, bits, dtype)
    right, right_fits = _rounded_on([_mirrored(core) for core in reversed(cores)], bits, dtype, mirrored=True)
    for k, core in enumerate(cores):
        fitted = torch.tensordot(torch.tensordot(left_fits[k], core, 1), right_fits[last - k].mT, 1)
        yield [*left[:k], rounded(fitted, bits, dtype), *reversed(right[: last - k])]


def _rounded_on(
    cores: Sequence[Tensor], bits: int, dtype: torch.dtype, *, mirrored: bool = False
) -> tuple[list[Rounded], list[Tensor]]:
    """All cores but the last rounded, each after it was fitted to those before it.

    Returns:
        The integers and scales, of mirrored cores those of the cores as they were; and for each core the matrix, to be
        put on its left bond, that fits it to those before it.
    """
    found, fits = [], [cores[0].new_ones(1, 1)]
    before = cores[0].new_ones(1, 1)  # has the inner products of what is rounded so far: shape (rank, left)
    for core in cores[:-1]:
        fitted = torch.tensordot(fits[-1], core, 1)
        matrix = fitted.reshape(-1, core.shape[3])
        rows, right = matrix.shape
        # a bond as large as all that stands before it carries no choice: unit vectors are rounded without error
        basis = torch.eye(rows, right).to(matrix) if rows <= right else torch.linalg.qr(matrix)[0]
        basis = basis.reshape(fitted.shape)
        turned = _mirrored(basis) if mirrored else basis
        found.append(rounded(turned, bits, dtype))
        made = core_of(turned.shape, *found[-1]).to(matrix.dtype)
        made = _mirrored(made) if mirrored else made
        has, wanted = (torch.tensordot(before, each, 1).reshape(-1, right) for each in (made, fitted))
        fits.append(torch.linalg.lstsq(has, wanted, driver="gelsd").solution)
        before = torch.linalg.qr(has, mode="r")[1]
    return found, fits


def _mirrored(core: Tensor) -> Tensor:
    """Left and right bond exchanged."""
    return core.transpose(0, 3)
