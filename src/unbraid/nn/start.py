"""``start_from``: a declared network with circuits that begins where a trained one of the same sizes has come to."""

from __future__ import annotations

import copy
import os
from typing import Any

import torch
from torch import nn

from unbraid.circuits import Ansatz, Circuit
from unbraid.disentangling import Disentangled, disentangle
from unbraid.ground import progress
from unbraid.ground.errors import InvalidInputError, require_finite
from unbraid.ground.files import make_directory
from unbraid.ground.random import stream_seed
from unbraid.nn.architecture import Architecture, TensorLayer
from unbraid.nn.kinds import check_weight
from unbraid.nn.layers import DisentangledLinear, MPOLinear
from unbraid.tensors import MPO


def start_from(
    model: nn.Module,
    architecture: Architecture,
    *,
    seed: int = 0,
    results: dict[str, Disentangled] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    **options: Any,
) -> nn.Sequential:
    """The network of ``architecture``, each layer disentangled explicitly from that of ``model``.

    Layers whose declaration has neither circuits nor a smaller bond are taken over. Circuits with nonlinearities cannot
    be disentangled explicitly: their gates start near the identity around the best core for no gates at all. Batch
    norms are taken over, with statistics of the activations before the change. What was frozen stays frozen, and modes
    (training, evaluation) are those of ``model``.

    Args:
        model: built from a declaration with the same legs, and trained; its layers are :class:`MPOLinear`.
        architecture: what to start.
        seed: of gates.
        results: if given, is filled with what the disentangling of a layer found.
        checkpoint: a folder that keeps the progress, a file a layer: the same call takes it up again.
        **options: of :func:`unbraid.disentangle`, but not ``core_bond``, which the declaration says.

    Returns:
        A network with the modules of ``architecture.build()``.

    Raises:
        InvalidInputError: if ``model`` is not of such a declaration or has smaller bonds, or a layer (named) is zero or
            not finite.

    Source:
        The explicit method (Sec. III) as the start of the implicit one (Sec. V) of "Classical Neural Networks on
        Quantum Devices via Tensor Network Disentanglers".
    """
    if not isinstance(model, nn.Module) or not isinstance(architecture, Architecture):
        raise InvalidInputError(
            "start_from takes a trained network and an Architecture; got "
            f"{type(model).__name__} and {type(architecture).__name__}."
        )
    if "core_bond" in options:
        raise InvalidInputError("The bonds of cores are those of the declaration; leave core_bond out.")
    kept = None if checkpoint is None else make_directory(checkpoint)
    started = architecture.build(seed, "near_identity", dtype=_dtype(model))
    wanted = [name for name, _ in started.named_children()]
    found = [name for name, _ in model.named_children()]
    if wanted != found:
        raise InvalidInputError(
            f"The model is of another declaration: it has the modules {', '.join(found)}; expected {', '.join(wanted)}."
        )
    with torch.no_grad():
        for number, layer in progress.track(enumerate(architecture.layers, 1), "start", len(architecture.layers)):
            name = f"layer{number}"
            trained = model.get_submodule(name)
            operator = _operator(trained, layer, name)
            place = {} if kept is None else {"checkpoint": kept / f"{name}.disentangling"}
            started.add_module(name, _start(trained, operator, layer, name, seed, results, {**options, **place}))
    for name, module in model.named_children():
        new = started.get_submodule(name)
        if isinstance(module, nn.BatchNorm1d):
            for key, value in module.state_dict().items():
                require_finite(value, f"{key!r} of {name}")
            new.load_state_dict(module.state_dict())
        new.train(module.training)
        if not any(parameter.requires_grad for parameter in module.parameters()):
            new.requires_grad_(False)
    started.training = model.training
    device = next(model.parameters()).device
    return started.to(device)


def _start(
    trained: nn.Module,
    operator: MPO,
    layer: TensorLayer,
    name: str,
    seed: int,
    results: dict[str, Disentangled] | None,
    options: dict[str, Any],
) -> nn.Module:
    bonds = tuple(shape[3] for shape in layer.core_shapes()[:-1])
    inward, output = layer.ansatze()
    for core in operator.cores:
        check_weight(core, name)
    if any(has < wants for has, wants in zip(operator.bond_dims, bonds, strict=True)):
        raise InvalidInputError(
            f"{name} of the model has bonds {operator.bond_dims}, smaller than {bonds} of the declaration. Declare no "
            "larger ones than those that were trained."
        )
    if not layer.has_circuits and operator.bond_dims == bonds:
        return copy.deepcopy(trained)
    linear = not (inward.joints or output.joints)
    pair = (output, inward) if linear else (Ansatz(output.wire_dims, ()), Ansatz(inward.wire_dims, ()))
    bond = min(layer.bond, max(operator.bond_dims, default=1))
    try:
        result = disentangle(operator, pair, core_bond=bond, seed=stream_seed(seed, "start", name), **options)
    except InvalidInputError as error:
        raise InvalidInputError(f"{name}: {error}") from error
    if results is not None:
        results[name] = result
    if not layer.has_circuits:
        return MPOLinear(result.core)
    if linear:
        return DisentangledLinear.from_disentangled(result)
    dtype = operator.dtype
    return DisentangledLinear(
        Circuit(output, seed=stream_seed(seed, name, "output"), dtype=dtype),
        result.core,
        Circuit(inward, seed=stream_seed(seed, name, "input"), mirrored=True, dtype=dtype),
    )


def _operator(trained: nn.Module, layer: TensorLayer, name: str) -> MPO:
    wanted = [(out, leg) for _, out, leg, _ in layer.core_shapes()]
    if not isinstance(trained, MPOLinear):
        raise InvalidInputError(f"{name} of the model must be an MPOLinear; got {type(trained).__name__}.")
    operator = trained.mpo.detach()
    legs = list(zip(operator.out_dims, operator.in_dims, strict=True))
    if legs != wanted:
        raise InvalidInputError(
            f"{name} of the model is of another declaration: its legs (out, in) are {legs}; expected {wanted}."
        )
    return operator


def _dtype(model: nn.Module) -> torch.dtype:
    parameter = next(model.parameters(), None)
    if parameter is None:
        raise InvalidInputError("The model has no parameters; give a trained network of the same declaration.")
    return parameter.dtype
