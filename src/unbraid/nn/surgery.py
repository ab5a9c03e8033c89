"""Surgery on models: replace layers by name, suffix or regular expression, and put plain layers back."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from unbraid.circuits import Ansatz, brickwall
from unbraid.disentangling import Disentangled, disentangle
from unbraid.ground import progress
from unbraid.ground.errors import InvalidInputError, require_finite
from unbraid.ground.files import make_directory
from unbraid.nn.layers import DisentangledLinear, MPOLinear
from unbraid.tensors.sites import align, auto_sites, qubit_sites

Model = TypeVar("Model", bound=nn.Module)
Targets = str | Iterable[str]
Sites = str | tuple[Sequence[int], Sequence[int]]


def match_layers(
    model: nn.Module, targets: Targets, kinds: tuple[type[nn.Module], ...] = (nn.Linear,)
) -> dict[str, nn.Module]:
    """The layers of given kinds that ``targets`` names, in the order of ``model.named_modules()``.

    Args:
        model: any module; it may be such a layer itself, whose name is then "".
        targets: "all-linear" for every one; a string is a regular expression that must match the whole name or its part
            after a dot; a list holds names or their last parts.
        kinds: classes to look for.

    Raises:
        InvalidInputError: if nothing matches, listing the candidates, or the expression is none.
    """
    if not isinstance(targets, Iterable):
        raise InvalidInputError(f"targets must be a string or a list of names; got {targets!r}.")
    candidates = {name: module for name, module in model.named_modules() if isinstance(module, kinds)}
    if isinstance(targets, str):
        if targets == "all-linear":
            found = candidates
        else:
            try:
                re.compile(targets)  # by itself first, so that an error's position is the user's
                pattern = re.compile(rf"(?:.*\.)?(?:{targets})")
            except re.error as error:
                raise InvalidInputError(f"The target {targets!r} is no regular expression: {error}.") from error
            found = {name: module for name, module in candidates.items() if pattern.fullmatch(name)}
    else:
        wanted = list(targets)
        found = {
            name: module for name, module in candidates.items() if any(_ends_with(name, suffix) for suffix in wanted)
        }
        idle = [suffix for suffix in wanted if not any(_ends_with(name, suffix) for name in found)]
        if found and idle:
            raise InvalidInputError(f"The target {idle[0]!r} matches no layer, though others do. Correct or drop it.")
    if not found:
        names = ", ".join(repr(name) for name in list(candidates)[:20]) or "none"
        kinds_text = " or ".join(kind.__name__ for kind in kinds)
        if kinds == (MPOLinear,) and not candidates:
            raise InvalidInputError(
                "There are no MPO layers here. Write layers as MPOs first: tensorize(model, ..., sites='qubits'), or "
                "`unbraid compress --sites qubits` on the command line."
            )
        raise InvalidInputError(
            f"No {kinds_text} layer matches the target {targets!r}. Layers of that kind here: {names}. "
            "Give a name, a list of name endings, a regular expression, or 'all-linear'."
        )
    return found


def _ends_with(name: str, suffix: str) -> bool:
    return name == suffix or name.endswith(f".{suffix}")


def check_weight(weight: Tensor, name: str) -> None:
    """Refuse a weight that is empty, not finite or all zeros.

    Raises:
        InvalidInputError: naming the layer.
    """
    if weight.numel() == 0:
        raise InvalidInputError(
            f"Layer {name!r} has a weight of shape {tuple(weight.shape)}: it is empty. Leave it out."
        )
    require_finite(weight, f"The weight of layer {name!r}")
    if not bool(weight.any()):
        raise InvalidInputError(
            f"Layer {name!r} is all zeros: there is nothing to decompose. Train it, or leave it out."
        )


def tensorize(
    model: Model,
    targets: Targets = "all-linear",
    *,
    max_bond: int | None = None,
    rel_error: float | None = None,
    budget: float | None = None,
    sites: Sites = "auto",
    inplace: bool = False,
    method: str = "auto",
    seed: int = 0,
) -> Model:
    """Write linear layers as matrix product operators.

    Args:
        model: any module; a copy is changed unless ``inplace``.
        targets: which layers, as in :func:`match_layers`.
        max_bond: cap of every bond dimension.
        rel_error: largest relative Frobenius error of a weight.
        budget: core entries as a fraction of the dense weight's, 0 < budget <= 1; layers of 1e5 weights or more come
            within 2 % below it, smaller ones as near as their ranks allow.
        sites: "auto" (few sites of about four, without padding where the primes permit), "qubits" (one qubit a site, as
            circuits need), or (out_dims, in_dims).
        inplace: change ``model`` itself.
        method: of the decomposition, as of :meth:`unbraid.MPO.from_dense`.
        seed: of its random sketches.

    Returns:
        The model with :class:`MPOLinear` layers (the new layer itself, if ``model`` is a layer).

    Raises:
        InvalidInputError: if nothing matches, a weight is empty, zero or not finite, or limits do not fit. The model is
            then unchanged.
    """
    if budget is not None and not 0 < budget <= 1:
        raise InvalidInputError(f"budget must be a fraction above 0 and at most 1; got {budget!r}.")
    layers = match_layers(model, targets)
    _refuse_shared_weights(model, layers)
    for name, layer in layers.items():
        check_weight(layer.get_parameter("weight"), name)

    def convert(name: str, layer: nn.Module) -> nn.Module:
        assert isinstance(layer, nn.Linear)
        out_dims, in_dims = choose_sites(sites, layer.out_features, layer.in_features)
        limit = None if budget is None else max(1, int(budget * layer.weight.numel()))
        outs, ins = align(out_dims, in_dims)
        smallest = sum(o * i for o, i in zip(outs, ins, strict=True))
        if limit is not None and limit < smallest:
            raise InvalidInputError(
                f"Layer {name!r} cannot come down to a budget of {budget}: with all bonds 1 it has {smallest} entries, "
                f"{smallest / layer.weight.numel():.3g} of its weight. Allow more, or choose other sites."
            )
        try:
            return MPOLinear.from_linear(
                layer,
                out_dims,
                in_dims,
                max_bond=max_bond,
                rel_error=rel_error,
                max_parameters=limit,
                method=method,
                seed=seed,
            )
        except InvalidInputError as error:
            raise InvalidInputError(f"Layer {name!r}: {error}") from error

    return _replace(model, layers, convert, inplace, "tensorize")


def disentangle_layers(
    model: Model,
    targets: Targets,
    ansatz_or_depth: Ansatz | tuple[Ansatz, Ansatz] | int,
    *,
    inplace: bool = False,
    results: dict[str, Disentangled] | None = None,
    gate: str = "so",
    checkpoint: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Model:
    """Disentangle MPO layers explicitly: :class:`MPOLinear` to :class:`DisentangledLinear`.

    Args:
        model: a module with MPO layers; a copy is changed unless ``inplace``.
        targets: which layers, as in :func:`match_layers`.
        ansatz_or_depth: an ansatz for both sides, a pair (output side, input side), or the depth of a two-body
            brickwall, whose parity is searched.
        inplace: change ``model`` itself.
        results: if given, is filled with the outcome a layer: overlap, ceiling, entropies.
        gate: group of the brickwall's gates: "so", "o" (searches determinants) or "u".
        checkpoint: a folder that keeps the progress, a file a layer: the same call takes it up again.
        **options: of :func:`unbraid.disentangle`: ``core_bond``, ``core``, ``start``, ``seed``, ``restarts``, ...

    Returns:
        The model with :class:`DisentangledLinear` layers.

    Raises:
        InvalidInputError: if no MPO layer matches, or circuits do not fit a layer. The model is then unchanged.
    """
    layers = match_layers(model, targets, (MPOLinear,))
    return disentangle_these(
        model, layers, ansatz_or_depth, inplace=inplace, results=results, gate=gate, checkpoint=checkpoint, **options
    )


def disentangle_these(
    model: Model,
    layers: Mapping[str, nn.Module],
    ansatz_or_depth: Ansatz | tuple[Ansatz, Ansatz] | int,
    *,
    inplace: bool = False,
    results: dict[str, Disentangled] | None = None,
    gate: str = "so",
    checkpoint: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Model:
    """:func:`disentangle_layers` of the MPO layers that are given, by name, and of no others."""
    kept = None if checkpoint is None else make_directory(checkpoint)

    def convert(name: str, layer: nn.Module) -> nn.Module:
        assert isinstance(layer, MPOLinear)
        check_weight(layer.weight.detach(), name)
        mpo = layer.mpo.detach()
        ansatz = ansatz_or_depth
        if isinstance(ansatz, int):
            depth = ansatz
            output, inward = (_brickwall_on(dims, depth, gate) for dims in (mpo.out_dims, mpo.in_dims))
            ansatz = output if output == inward else (output, inward)
        elif gate != "so":
            raise InvalidInputError("gate= goes with a depth; the ansatz given has gates of its own.")
        if kept is not None:
            options["checkpoint"] = kept / f"{name or 'layer'}.disentangling"
        try:
            result = disentangle(mpo, ansatz, **options)
        except InvalidInputError as error:
            raise InvalidInputError(f"Layer {name!r}: {error}") from error
        if results is not None:
            results[name] = result
        return DisentangledLinear.from_disentangled(result, layer.bias)

    return _replace(model, layers, convert, inplace, "disentangle layers")


def merge_back(model: Model, *, inplace: bool = False) -> Model:
    """Turn every MPO and disentangled layer back into a plain ``nn.Linear`` of the same function.

    Raises:
        InvalidInputError: if a disentangled layer carries nonlinearities within its circuits.
    """
    layers: dict[str, nn.Module] = {
        name: module for name, module in model.named_modules() if isinstance(module, (MPOLinear, DisentangledLinear))
    }

    def convert(name: str, layer: nn.Module) -> nn.Module:
        assert isinstance(layer, (MPOLinear, DisentangledLinear))
        if isinstance(layer, DisentangledLinear) and not layer.is_linear:
            raise InvalidInputError(f"Layer {name!r} has nonlinearities within its circuits: no nn.Linear equals it.")
        return layer.to_linear()

    return _replace(model, layers, convert, inplace, "merge back")


def choose_sites(sites: Sites, out_features: int, in_features: int) -> tuple[Sequence[int], Sequence[int]]:
    """Leg dimensions for a layer, from "auto", "qubits" or a pair.

    Raises:
        InvalidInputError: for anything else.
    """
    if sites == "auto":
        return auto_sites(out_features, in_features)
    if sites == "qubits":
        return qubit_sites(out_features, in_features)
    if not isinstance(sites, str) and len(sites) == 2 and not any(isinstance(side, int) for side in sites):
        return sites
    raise InvalidInputError(f"sites must be 'auto', 'qubits' or a pair (out_dims, in_dims); got {sites!r}.")


def replace_modules(model: Model, replacements: dict[nn.Module, nn.Module]) -> Model:
    """Put new modules in the place of old ones, wherever they are referred to; returns the model."""
    if model in replacements:
        return replacements[model]  # type: ignore[return-value]
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # named_children() lists a shared child only once
            if child is not None and child in replacements:
                parent._modules[name] = replacements[child]
    return model


def _refuse_shared_weights(model: nn.Module, layers: dict[str, nn.Module]) -> None:
    """A weight that another module uses too would silently be untied."""
    for name, layer in layers.items():
        weight = layer.get_parameter("weight")
        for other_name, other in model.named_modules():
            if other is not layer and any(parameter is weight for parameter in other.parameters(recurse=False)):
                raise InvalidInputError(
                    f"Layer {name!r} shares its weight with {other_name!r}: as an MPO it would no longer. Leave it "
                    "out of the targets, or untie the two first."
                )


def _brickwall_on(dims: Sequence[int], depth: int, gate: str) -> Ansatz:
    wires = tuple(dim for dim in dims if dim > 1) or (1,)
    return brickwall(wires, depth, min(2, len(wires)), gate, parity="auto")


def _replace(
    model: Model,
    layers: Mapping[str, nn.Module],
    convert: Callable[[str, nn.Module], nn.Module],
    inplace: bool,
    description: str,
) -> Model:
    """Convert the layers first, so that an error leaves the model as it was; then swap them in."""
    replacements: dict[nn.Module, nn.Module] = {}
    with torch.no_grad():
        for name, layer in progress.track(layers.items(), description, len(layers)):
            new = convert(name, layer).train(layer.training)
            if not any(parameter.requires_grad for parameter in layer.parameters()):
                new.requires_grad_(False)  # a frozen layer stays frozen
            replacements[layer] = new
    if not inplace:
        memo: dict[int, Any] = {id(layer): new for layer, new in replacements.items()}  # swapped while copying
        return copy.deepcopy(model, memo)
    return replace_modules(model, replacements)
