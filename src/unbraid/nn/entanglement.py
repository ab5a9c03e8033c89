"""Entanglement of networks: entropy profiles of weights, of updates and of adapters; entropies of attention matrices.

What is measured and how it is read: :mod:`unbraid.tensors.profile`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unbraid.ground import progress
from unbraid.ground.errors import InvalidInputError, require_finite
from unbraid.nn.kinds import check_weight, is_linear, kind_of
from unbraid.nn.layers import MPOLinear
from unbraid.nn.modes import keeping_modes
from unbraid.nn.operator import OperatorModule
from unbraid.nn.targets import Sites, Targets, match_layers
from unbraid.tensors.entanglement import dense_entropies
from unbraid.tensors.profile import EntropyProfile, entropy_profile, low_rank_profile
from unbraid.tensors.sites import qubit_sites


@dataclass(frozen=True)
class LayerProfile:
    """The entropy profile of one layer.

    Attributes:
        name: in ``model.named_modules()``; of one of several adapters, with its name after a colon.
        kind: "weight"; "update", tuned minus base; "adapter", the product B A of its factors.
        shape: (out, in).
        profile: None where nothing changed: the update or the adapter is zero.
    """

    name: str
    kind: str
    shape: tuple[int, int]
    profile: EntropyProfile | None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON and for the section "Entanglement" of a report."""
        profile = None if self.profile is None else self.profile.to_dict()
        return {"name": self.name, "kind": self.kind, "shape": list(self.shape), "profile": profile}


@dataclass(frozen=True, eq=False)
class AttentionEntropies:
    """Entropies of attention matrices, in nats, float64; the most that ``rows`` and ``matrix`` can be is ln(length).

    Attributes:
        length: tokens.
        rows: mean Shannon entropy of the rows, shape (...,): how many tokens a token looks at.
        matrix: of the squared, normalised singular values, shape (...,): entanglement between the tokens that look and
            those that are looked at. 0 if all look at the same.
        chain: bond entropies of the matrix as an MPO of qubits, shape (..., bonds).
    """

    length: int
    rows: Tensor
    matrix: Tensor
    chain: Tensor

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON and for the section "Entanglement" of a report."""
        return {
            "length": self.length,
            "rows": self.rows.tolist(),
            "matrix": self.matrix.tolist(),
            "chain": self.chain.tolist(),
        }


def entanglement_profiles(
    model: nn.Module,
    targets: Targets = "all-linear",
    *,
    base: nn.Module | None = None,
    sites: Sites = "qubits",
    order: str = "operator",
) -> list[LayerProfile]:
    """Entropy profiles of the layers of a model, or of what fine-tuning did to them.

    Understood are ``nn.Linear``, ``Conv1D`` of transformers, ``nn.Conv2d`` (the matrix of its unfolded kernel),
    ``nn.Embedding`` (its table), operators in their places, and layers with factors ``lora_A`` (rank, in) and
    ``lora_B`` (out, rank), such as those of PEFT; of the latter it is always the product B A that is profiled. Its
    scaling does not matter to entropies.

    Args:
        model: any module; it is not changed.
        targets: which layers, as in :func:`match_layers`; "all-linear" leaves convolutions and embeddings out.
        base: the model before fine-tuning, with layers of the same names; the differences are profiled then.
        sites: "qubits", "auto" or a pair, as of :func:`entropy_profile`.
        order: "operator" or "vector", likewise.

    Returns:
        One entry a layer and adapter, in the order of the model.

    Raises:
        InvalidInputError: if nothing matches, a layer is not in ``base`` or has another shape there, or a weight is
            empty, zero (unless ``base`` is given) or not finite.
    """
    adapted = {name: module for name, module in model.named_modules() if _has_factors(module)}
    inner = tuple(f"{name}." if name else "" for name in adapted)
    fits = _is_linear if targets == "all-linear" else _is_readable
    kinds = {type(module) for module in model.modules() if fits(module)} or {nn.Linear, MPOLinear}
    matched = match_layers(model, targets, tuple(sorted(kinds, key=lambda kind: kind.__name__)))
    layers = {name: layer for name, layer in matched.items() if name in adapted or not name.startswith(inner)}
    others = None if base is None else dict(base.named_modules())
    found = []
    with torch.no_grad():
        for name, layer in progress.track(layers.items(), "entanglement", len(layers)):
            if name in adapted:
                found += [_adapter_profile(label, b, a, sites, order) for label, b, a in _factors(name, adapted[name])]
                continue
            weight = _weight(layer, name)
            if others is None:
                check_weight(weight, name)
                found.append(_layer_profile(name, "weight", weight, sites, order))
            else:
                found.append(_layer_profile(name, "update", _difference(name, weight, others), sites, order))
    return found


def attention_profile(attention: Tensor) -> AttentionEntropies:
    """Entropies of attention matrices.

    Args:
        attention: shape (..., T, T), T of at least 2: rows are probabilities over the tokens that are looked at.

    Raises:
        InvalidInputError: for other shapes, or rows that are negative, not finite or do not sum to 1.
    """
    if attention.ndim < 2 or attention.shape[-1] != attention.shape[-2] or attention.shape[-1] < 2:
        raise InvalidInputError(
            f"Attention must have shape (..., T, T) with T of at least 2; got {tuple(attention.shape)}."
        )
    if not attention.numel():
        raise InvalidInputError(f"Attention of shape {tuple(attention.shape)} is empty.")
    require_finite(attention, "Attention")
    weights = attention.detach().double()
    if bool((weights < 0).any()) or bool(((weights.sum(-1) - 1).abs() > 0.02).any()):
        raise InvalidInputError(
            "Rows of attention must be probabilities that sum to 1. Give the weights after softmax, without dropout."
        )
    length = attention.shape[-1]
    values = torch.linalg.svdvals(weights).square()
    out_dims, in_dims = qubit_sites(length, length)
    margin = 2 ** len(out_dims) - length
    padded = torch.nn.functional.pad(weights, (0, margin, 0, margin)).reshape(-1, length + margin, length + margin)
    chain = torch.stack([dense_entropies(matrix, out_dims, in_dims) for matrix in padded])
    return AttentionEntropies(
        length=length,
        rows=torch.special.entr(weights).sum(-1).mean(-1),
        matrix=torch.special.entr(values / values.sum(-1, keepdim=True)).sum(-1),
        chain=chain.reshape(*attention.shape[:-2], -1),
    )


def attention_entropies(
    model: nn.Module, inputs: Tensor | Mapping[str, Tensor], *, lengths: Iterable[int] | None = None
) -> list[AttentionEntropies]:
    """Entropies of the attention of a transformer, by layer and head.

    Args:
        model: of transformers, with eager attention; it is not changed.
        inputs: token numbers, shape (batch, length), or what a tokenizer returns; without padding.
        lengths: run on so many first tokens, one after the other; by default on all.

    Returns:
        One entry a length, with shape (layers, heads) where :class:`AttentionEntropies` has dots; means over the batch.

    Raises:
        InvalidInputError: if the model does not give its attention, cannot run on the inputs, or the inputs are padded.
    """
    way = getattr(getattr(model, "config", None), "_attn_implementation", None)
    if way != "eager":
        raise InvalidInputError(
            "Attention matrices are only formed by the eager attention of a model of transformers; this one has "
            f"{way!r}. Load it with from_pretrained(..., attn_implementation='eager'), or call "
            "model.set_attn_implementation('eager') before."
        )
    given = {"input_ids": inputs} if isinstance(inputs, Tensor) else dict(inputs)
    ids = given.get("input_ids")
    if ids is None or ids.ndim != 2 or ids.shape[1] < 2:
        raise InvalidInputError("inputs must be, or hold as 'input_ids', token numbers of shape (batch, length).")
    mask = given.get("attention_mask")
    if mask is not None and not bool(mask.all()):
        raise InvalidInputError(
            "The inputs are padded, and attention to padding is no attention. Give sequences of one length at a time."
        )
    whole = ids.shape[1]
    wanted = [whole] if lengths is None else list(lengths)
    if not wanted or any(not 2 <= length <= whole for length in wanted):
        raise InvalidInputError(f"lengths must be between 2 and the {whole} tokens of the inputs; got {wanted}.")
    found = []
    with torch.no_grad(), keeping_modes(model):
        model.eval()
        for length in progress.track(wanted, "attention", len(wanted)):
            part = {
                key: value[:, :length] if value.ndim == 2 and value.shape[1] == whole else value
                for key, value in given.items()
            }
            found.append(_averaged([attention_profile(layer) for layer in _attention_of(model, part)]))
    return found


def _attention_of(model: nn.Module, inputs: Mapping[str, Tensor]) -> Sequence[Tensor]:
    try:
        attentions = model(**inputs, output_attentions=True).attentions
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise InvalidInputError(f"The model cannot give its attention on these inputs: {error}") from error
    if not attentions or any(layer is None for layer in attentions):
        raise InvalidInputError("The model gives no attention matrices, though its attention is said to be eager.")
    return tuple(attentions)


def _averaged(layers: Sequence[AttentionEntropies]) -> AttentionEntropies:
    """Layers of (batch, heads) to (layers, heads)."""
    rows, matrix, chain = (
        torch.stack([getattr(layer, key).mean(0) for layer in layers]) for key in ("rows", "matrix", "chain")
    )
    return AttentionEntropies(layers[0].length, rows, matrix, chain)


def _is_linear(module: nn.Module) -> bool:
    return is_linear(module) or isinstance(module, MPOLinear) or _has_factors(module)


def _is_readable(module: nn.Module) -> bool:
    return kind_of(module) is not None or isinstance(module, OperatorModule) or _has_factors(module)


def _has_factors(module: nn.Module) -> bool:
    return hasattr(module, "lora_A") and hasattr(module, "lora_B")


def _factors(name: str, module: nn.Module) -> list[tuple[str, Tensor, Tensor]]:
    """(label, B, A) of each adapter: dictionaries of linear layers as in PEFT, single layers, or parameters.

    Raises:
        InvalidInputError: if they are something else.
    """
    ups, downs = module.lora_B, module.lora_A
    if not isinstance(downs, nn.ModuleDict):
        pairs = {name: (ups, downs)}
    else:
        assert isinstance(ups, nn.ModuleDict)
        pairs = {
            name if len(downs) == 1 else f"{name}:{adapter}": (ups[adapter], down) for adapter, down in downs.items()
        }
    found = []
    for label, pair in pairs.items():
        b, a = (part if isinstance(part, Tensor) else getattr(part, "weight", None) for part in pair)
        if not isinstance(b, Tensor) or not isinstance(a, Tensor) or b.ndim != 2 or a.ndim != 2:
            raise InvalidInputError(
                f"The adapter of layer {label!r} has no matrices lora_A (rank, in), lora_B (out, rank). Leave it out."
            )
        found.append((label, b, a))
    return found


def _adapter_profile(name: str, b: Tensor, a: Tensor, sites: Sites, order: str) -> LayerProfile:
    zero = not (bool(torch.any(b)) and bool(torch.any(a)))
    profile = None if zero else low_rank_profile(b, a, sites=sites, order=order)
    return LayerProfile(name, "adapter", (b.shape[0], a.shape[1]), profile)


def _layer_profile(name: str, kind: str, matrix: Tensor, sites: Sites, order: str) -> LayerProfile:
    profile = entropy_profile(matrix, sites=sites, order=order) if bool(torch.any(matrix)) else None
    return LayerProfile(name, kind, (matrix.shape[0], matrix.shape[1]), profile)


def _weight(layer: nn.Module, name: str) -> Tensor:
    if isinstance(layer, OperatorModule):
        return layer.mpo.to_dense().detach()
    kind = kind_of(layer)
    if kind is None:
        raise InvalidInputError(f"Layer {name!r} has no weight that is a matrix; got {type(layer).__name__}.")
    return kind.matrix(layer).detach()


def _difference(name: str, weight: Tensor, others: Mapping[str, nn.Module]) -> Tensor:
    other = others.get(name)
    if other is None or not _is_readable(other) or _has_factors(other):
        raise InvalidInputError(
            f"The base model has no layer {name!r} to compare with. Give the model that was fine-tuned, with "
            "the same names."
        )
    before = _weight(other, name)
    if before.shape != weight.shape:
        raise InvalidInputError(
            f"Layer {name!r} has shape {tuple(weight.shape)}, and {tuple(before.shape)} in the base model. Give the "
            "model that was fine-tuned."
        )
    for each in (weight, before):
        require_finite(each, f"The weight of layer {name!r}")
    return weight.double() - before.to(weight.device).double()
