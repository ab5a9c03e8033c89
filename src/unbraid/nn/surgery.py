"""Surgery on models: replace layers by name, suffix or regular expression, and put plain layers back."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from unbraid.circuits import Ansatz, brickwall
from unbraid.disentangling import Disentangled, disentangle
from unbraid.ground import progress
from unbraid.ground.errors import InvalidInputError
from unbraid.ground.files import make_directory
from unbraid.nn.calibration import InputMoments
from unbraid.nn.convolution import kernel_sites
from unbraid.nn.kinds import check_weight, is_linear, kind_of, restored
from unbraid.nn.layers import DisentangledLinear, MPOLinear
from unbraid.nn.operator import OperatorModule
from unbraid.nn.targets import LayerOptions, Sites, Targets, match_layers, options_by_layer
from unbraid.tensors import MPO
from unbraid.tensors.sites import align, auto_sites, check_dims, low_rank_sites, qubit_sites, split_sites
from unbraid.tensors.weighted import damped_error, weighted_error

Model = TypeVar("Model", bound=nn.Module)

SHRINKAGE = 0.1  # of moments towards the unit matrix, times features a vector seen: what kept held-out outputs best


def tensorize(
    model: Model,
    targets: Targets = "all-linear",
    *,
    max_bond: int | None = None,
    rel_error: float | None = None,
    budget: float | None = None,
    sites: Sites = "auto",
    inplace: bool = False,
    layer_options: Mapping[str, Mapping[str, Any]] | None = None,
    method: str = "auto",
    seed: int = 0,
    moments: Mapping[str, InputMoments] | None = None,
) -> Model:
    """Write layers as matrix product operators: linear ones, convolutions and embeddings.

    Args:
        model: any module; a copy is changed unless ``inplace``.
        targets: which layers, as in :func:`match_layers`.
        max_bond: cap of every bond dimension.
        rel_error: largest relative Frobenius error of a weight.
        budget: core entries as a fraction of the dense weight's, 0 < budget <= 1; layers of 1e5 weights or more with
            enough rank come within 2 % below it, others, and those of two sites, as near as their ranks allow.
        sites: "auto" (few sites of about four, without padding where the primes permit), "low-rank" (two sites, all
            outputs at one, all inputs at the other), "best" (of these two and one between, that with the least error
            at the budget, or the fewest entries at the error), "qubits" (one qubit a site, as circuits need), "kernel"
            (as "auto", and one more site for the places of a convolution's kernel), or (out_dims, in_dims). The matrix
            of a convolution is (out, in x height x width), that of an embedding its table.
        inplace: change ``model`` itself.
        layer_options: other limits, sites or methods by layer, as ``{"head": {"budget": 0.5}, "layer.[01].*": {...}}``.
            A key is a name, the last parts of one, or a regular expression as in ``targets``. For each layer one key
            counts: its name before a last part, that before an expression, and the first of several. What the key does
            not give stays as above; a limit replaces the limits above.
        method: of the decomposition, as of :meth:`unbraid.MPO.from_dense`.
        seed: of its random sketches.
        moments: of the inputs of linear layers, by name, as :func:`unbraid.nn.input_moments` collects them. The errors
            of those layers' outputs on such inputs are then made small, and bounded by ``rel_error``; a bias takes
            over the mean of what is lost.

    Returns:
        The model with :class:`MPOLinear`, :class:`MPOConv2d` and :class:`MPOEmbedding` layers (the new layer itself, if
        ``model`` is a layer).

    Raises:
        InvalidInputError: if nothing matches; a weight is empty, zero, not finite, quantised, on the meta device or
            shared with another module; or limits do not fit. The model is then unchanged.
    """
    default = LayerOptions(max_bond=max_bond, rel_error=rel_error, budget=budget, sites=sites, method=method)
    layers = match_layers(model, targets)
    check_moments(moments, layers)
    options = options_by_layer(layers, default, layer_options or {})
    refuse_shared_weights(model, layers)
    kinds = {name: kind for name, layer in layers.items() if (kind := kind_of(layer)) is not None}
    for name, layer in layers.items():
        check_weight(kinds[name].matrix(layer), name)

    def convert(name: str, layer: nn.Module) -> nn.Module:
        kind, chosen = kinds[name], options[name]
        matrix = kind.matrix(layer).detach()
        inputs = None if moments is None else moments.get(name)
        if inputs is not None and not is_linear(layer):
            raise InvalidInputError(f"Layer {name!r} is no linear layer: moments of inputs are taken of those alone.")
        try:
            slopes = None if inputs is None else inputs.slopes
            mpo = _decomposed(matrix, layer, chosen, seed, output_metric(layer, inputs), slopes)
            new = kind.replaced(layer, mpo)
        except InvalidInputError as error:
            raise InvalidInputError(f"Layer {name!r}: {error}") from error
        if inputs is not None and isinstance(new.bias, Tensor):
            new.bias += lost_mean(matrix, mpo, inputs.mean).to(new.bias.dtype)
        return new

    return replace_layers(model, layers, convert, inplace, "tensorize")


def check_moments(moments: Mapping[str, InputMoments] | None, layers: Iterable[str]) -> None:
    """Refuse moments that are none, or of no layer at all.

    Raises:
        InvalidInputError: saying which layers there are.
    """
    if moments is None:
        return
    for name, each in moments.items():
        if not isinstance(each, InputMoments):
            raise InvalidInputError(f"moments[{name!r}] must be InputMoments; got {type(each).__name__}.")
    names = list(layers)
    if moments and not set(moments) & set(names):
        raise InvalidInputError(
            f"The moments are of {', '.join(map(repr, list(moments)[:3]))}, and none of the layers is called so: "
            f"{', '.join(map(repr, names[:3]))}. Collect them from this model, with the same targets."
        )


def output_metric(layer: nn.Module, inputs: InputMoments | None) -> Tensor | None:
    """What weights the error of a layer's matrix: the moment of its inputs, around their mean where a bias takes that.

    Inputs that are all the same have no moment left; then the mean counts.
    """
    if inputs is None:
        return None
    covariance = inputs.covariance
    fixed = float(covariance.trace()) <= 1e-9 * float(inputs.second.trace())
    chosen = inputs.second if fixed or getattr(layer, "bias", None) is None else covariance
    shrinkage = min(1.0, SHRINKAGE * len(chosen) / inputs.count)
    return chosen + shrinkage * chosen.diagonal().mean() * torch.eye(
        len(chosen), dtype=chosen.dtype, device=chosen.device
    )


def lost_mean(matrix: Tensor, mpo: MPO, mean: Tensor) -> Tensor:
    """What an operator lacks of a layer's outputs on the mean of its inputs, float64."""
    return (matrix.double() - mpo.to_dense().double()) @ mean.to(matrix.device, torch.float64)


def _decomposed(
    matrix: Tensor, layer: nn.Module, chosen: LayerOptions, seed: int, metric: Tensor | None, slopes: Tensor | None
) -> MPO:
    """The operator that the options ask for; of several layouts the best."""
    rows, columns = matrix.shape
    limit = None
    if chosen.budget is not None:
        limit = max(1, int(chosen.budget * matrix.numel() * (1 + 1e-12)))  # 29 / 100 * 100 is less than 29

    def on(outs: Sequence[int], ins: Sequence[int], rival: float | None = None) -> MPO:
        outs, ins = align(check_dims(outs, rows, "out_dims"), check_dims(ins, columns, "in_dims"))
        smallest = sum(o * i for o, i in zip(outs, ins, strict=True))
        if limit is not None and limit < smallest:
            raise InvalidInputError(
                f"it cannot come down to a budget of {chosen.budget}: with all bonds 1 it has {smallest} entries, "
                f"{smallest / matrix.numel():.3g} of its weight. Allow more, or choose other sites."
            )
        return MPO.from_dense(
            matrix,
            outs,
            ins,
            max_bond=chosen.max_bond,
            rel_error=chosen.rel_error,
            max_parameters=limit,
            method=chosen.method,
            seed=seed,
            covariance=metric,
            slopes=slopes,
            rival=rival,
        )

    if chosen.sites != "best":
        return on(*_sites_of(chosen.sites, layer, rows, columns))
    if chosen.budget is None and chosen.rel_error is None:
        raise InvalidInputError("sites='best' compares layouts at a budget or a rel_error; give one.")
    found: list[MPO] = []
    rival: float | None = None
    layouts = (low_rank_sites, split_sites, auto_sites)  # the first is known in closed form
    for layout in layouts:
        try:
            found.append(on(*layout(rows, columns), rival))
        except InvalidInputError:
            if layout is layouts[-1] and not found:
                raise
            continue
        if chosen.budget is not None and metric is not None:
            error = damped_error(matrix, found[-1].to_dense(), metric, slopes)
            rival = error if rival is None else min(rival, error)
    if chosen.budget is None:
        return min(found, key=lambda mpo: mpo.num_parameters)
    return min(found, key=lambda mpo: weighted_error(matrix, mpo.to_dense(), metric, slopes))


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
        new = DisentangledLinear.from_disentangled(result, layer.bias)
        new.was_conv1d = layer.was_conv1d
        return new

    return replace_layers(model, layers, convert, inplace, "disentangle layers")


def merge_back(model: Model, *, inplace: bool = False) -> Model:
    """Turn every MPO and disentangled layer back into a plain one of the same function.

    Those that were ``Conv1D`` of transformers become that again.

    Raises:
        InvalidInputError: if a disentangled layer carries nonlinearities within its circuits.
        MissingExtraError: if a layer was ``Conv1D`` and transformers is not installed.
    """
    layers: dict[str, nn.Module] = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (OperatorModule, DisentangledLinear))
    }

    def convert(name: str, layer: nn.Module) -> nn.Module:
        return restored(layer, name)

    return replace_layers(model, layers, convert, inplace, "merge back")


def choose_sites(sites: Sites, out_features: int, in_features: int) -> tuple[Sequence[int], Sequence[int]]:
    """Leg dimensions for a matrix, from "auto", "low-rank", "qubits" or a pair.

    Raises:
        InvalidInputError: for anything else.
    """
    if sites == "auto":
        return auto_sites(out_features, in_features)
    if sites == "low-rank":
        return low_rank_sites(out_features, in_features)
    if sites == "qubits":
        return qubit_sites(out_features, in_features)
    if isinstance(sites, (tuple, list)) and len(sites) == 2 and all(isinstance(side, Sequence) for side in sites):
        return sites[0], sites[1]
    if sites == "kernel":
        raise InvalidInputError("sites='kernel' is for convolutions, and this is none. Take 'auto'.")
    if sites == "best":
        raise InvalidInputError(
            "sites='best' is of tensorize alone, which compares layouts. Take 'low-rank' or 'auto'."
        )
    raise InvalidInputError(
        "sites must be 'auto', 'low-rank', 'best', 'qubits', 'kernel' (of convolutions) or a pair (out_dims, in_dims); "
        f"got {sites!r}."
    )


def _sites_of(sites: Sites, layer: nn.Module, rows: int, columns: int) -> tuple[Sequence[int], Sequence[int]]:
    if sites == "kernel" and isinstance(layer, nn.Conv2d):
        size = (layer.kernel_size[0], layer.kernel_size[1])
        return kernel_sites(rows, columns // (size[0] * size[1]), size)
    return choose_sites(sites, rows, columns)


def replace_modules(model: Model, replacements: dict[nn.Module, nn.Module]) -> Model:
    """Put new modules in the place of old ones, wherever they are referred to; returns the model."""
    if model in replacements:
        return replacements[model]  # type: ignore[return-value]
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # named_children() lists a shared child only once
            if child is not None and child in replacements:
                parent._modules[name] = replacements[child]
    return model


def refuse_shared_weights(model: nn.Module, layers: dict[str, nn.Module]) -> None:
    """A weight or bias that another module uses too would silently be untied."""
    users: dict[nn.Parameter, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            users.setdefault(parameter, []).append(name)
    shared: dict[str, tuple[str, str]] = {}
    for name, layer in layers.items():
        for kind, parameter in layer.named_parameters(recurse=False):
            for user in users.get(parameter, []):
                if user != name:
                    shared.setdefault(name, (kind, user))
    if shared:
        name, (kind, user) = next(iter(shared.items()))
        own = {layer.rpartition(".")[2] for layer in shared}
        rest = [end for end in dict.fromkeys(layer.rpartition(".")[2] for layer in layers) if end not in own]
        others = f": {rest} ({','.join(rest)} on the command line)" if rest else ""
        raise InvalidInputError(
            f"Layer {name!r} shares its {kind} with {user!r}: as an MPO it would no longer. Leave it out of the targets"
            f"{others}, or untie the two first."
        )


def _brickwall_on(dims: Sequence[int], depth: int, gate: str) -> Ansatz:
    wires = tuple(dim for dim in dims if dim > 1) or (1,)
    return brickwall(wires, depth, min(2, len(wires)), gate, parity="auto")


def _keep_frozen(layer: nn.Module, new: nn.Module) -> None:
    """What is made of a frozen weight is frozen, and so is a frozen bias."""
    bias, new_bias = (module._parameters.get("bias") for module in (layer, new))
    free = any(parameter.requires_grad for parameter in layer.parameters() if parameter is not bias)
    for parameter in new.parameters():
        if parameter is not new_bias:
            parameter.requires_grad_(parameter.requires_grad and free)
        elif bias is not None:
            parameter.requires_grad_(bias.requires_grad)


_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)


def _keep_hooks(layer: nn.Module, new: nn.Module, inplace: bool) -> None:
    """Hooks on what a layer gets and puts out stay; those that make its weight, as of weight_norm, have done so."""
    if any(hasattr(hook, "compute_weight") for hook in layer._forward_pre_hooks.values()):
        return
    for name in _HOOKS:
        hooks = getattr(layer, name)
        setattr(new, name, hooks if inplace else copy.copy(hooks))  # the same in place, so that handles still remove


def replace_layers(
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
            _keep_frozen(layer, new)
            _keep_hooks(layer, new, inplace)
            replacements[layer] = new
    if not inplace:
        memo: dict[int, Any] = {id(layer): new for layer, new in replacements.items()}  # swapped while copying
        return copy.deepcopy(model, memo)
    return replace_modules(model, replacements)
