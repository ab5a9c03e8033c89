"""Which layers are worth compressing and disentangling: ranks for an error, entropies, parameters."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unbraid.circuits.gates import cnot_cost
from unbraid.ground import progress
from unbraid.ground.errors import InvalidInputError
from unbraid.nn.kinds import check_weight
from unbraid.nn.layers import MPOLinear
from unbraid.nn.modes import keeping_modes
from unbraid.nn.surgery import choose_sites
from unbraid.nn.targets import Sites, Targets, match_layers
from unbraid.tensors import MPO
from unbraid.tensors.entanglement import maximum_entropies
from unbraid.tensors.sites import qubits_for

ERRORS = (0.01, 0.05, 0.10)


@dataclass(frozen=True)
class RankForError:
    """The MPO that one relative error needs.

    Attributes:
        rel_error: allowed, in the Frobenius norm.
        bond_dims: of the MPO, one a bond.
        parameters: core entries.
        output_error: relative error of the layer's outputs on the sample inputs; None without them.
    """

    rel_error: float
    bond_dims: tuple[int, ...]
    parameters: int
    output_error: float | None


@dataclass(frozen=True)
class LayerScan:
    """What a scan tells of one layer.

    Attributes:
        name: in ``model.named_modules()``.
        shape: (out, in).
        qubits: (out, in) qubits that hold the padded sizes.
        parameters: entries of the dense weight.
        ranks: what 1, 5 and 10 % error need.
        entropies: bond entropies of the weight, in nats.
        maximum_entropies: log of its bond dimensions.
        cnots: what circuits for it would take: "preparation" of a generic input vector (2^n - n - 1), and one "layer"
            of two-body SO(4) gates on both sides, counted without a device's connections.
        verdict: one sentence.
    """

    name: str
    shape: tuple[int, int]
    qubits: tuple[int, int]
    parameters: int
    ranks: tuple[RankForError, ...]
    entropies: tuple[float, ...]
    maximum_entropies: tuple[float, ...]
    cnots: dict[str, int]
    verdict: str

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def scan(
    model: nn.Module,
    sample_inputs: Tensor | None = None,
    *,
    targets: Targets = "all-linear",
    rel_errors: Iterable[float] = ERRORS,
    sites: Sites = "qubits",
) -> list[LayerScan]:
    """Decompose each linear layer at several errors; the model is not changed.

    Args:
        model: any module.
        sample_inputs: a batch for ``model``; the error of each layer's outputs on it is then reported too.
        targets: which layers, as in :func:`unbraid.nn.surgery.match_layers`.
        rel_errors: relative Frobenius errors to allow.
        sites: as in :func:`unbraid.tensorize`.

    Returns:
        One entry a layer, in the order of the model.

    Raises:
        InvalidInputError: if nothing matches, or a weight is empty, zero or not finite.
    """
    layers = match_layers(model, targets, (nn.Linear, MPOLinear))
    inputs = {} if sample_inputs is None else _collect_inputs(model, sample_inputs, layers)
    found = []
    with torch.no_grad():
        for name, layer in progress.track(layers.items(), "scan", len(layers)):
            assert isinstance(layer, (nn.Linear, MPOLinear))
            weight = layer.weight.detach()
            check_weight(weight, name)
            found.append(_scan_layer(name, weight, inputs.get(name), tuple(rel_errors), sites))
    return found


def _scan_layer(
    name: str, weight: Tensor, inputs: Tensor | None, rel_errors: tuple[float, ...], sites: Sites
) -> LayerScan:
    rows, columns = weight.shape
    out_dims, in_dims = choose_sites(sites, rows, columns)
    whole = MPO.from_dense(weight, out_dims, in_dims)
    ranks = []
    for rel_error in rel_errors:
        mpo = MPO.from_dense(weight, out_dims, in_dims, rel_error=rel_error)
        output_error = None
        if inputs is not None:
            exact = inputs @ weight.mT
            output_error = float(
                torch.dist(mpo.apply(inputs), exact) / torch.linalg.vector_norm(exact).clamp_min(1e-30)
            )
        ranks.append(RankForError(rel_error, mpo.bond_dims, mpo.num_parameters, output_error))
    return LayerScan(
        name=name,
        shape=(rows, columns),
        qubits=(qubits_for(rows), qubits_for(columns)),
        parameters=weight.numel(),
        ranks=tuple(ranks),
        entropies=tuple(float(entropy) for entropy in whole.entropies()),
        maximum_entropies=tuple(maximum_entropies(whole.bond_dims)),
        cnots={
            "preparation": max(0, 2 ** qubits_for(columns) - qubits_for(columns) - 1),
            "layer": sum(cnot_cost("so", 4) * (qubits_for(size) // 2) for size in (rows, columns)),
        },
        verdict=_verdict(weight.numel(), ranks),
    )


def _verdict(dense: int, ranks: list[RankForError]) -> str:
    fitting = [rank for rank in ranks if rank.parameters < dense]
    if not fitting:
        return "full of entanglement: truncate to a small bond and heal"
    first = min(fitting, key=lambda rank: rank.rel_error)
    return (
        f"an MPO of {first.parameters} entries ({first.parameters / dense:.0%} of dense) is within "
        f"{first.rel_error:.0%} without healing"
    )


def _collect_inputs(model: nn.Module, sample_inputs: Tensor, layers: dict[str, nn.Module]) -> dict[str, Tensor]:
    """The inputs of each layer while ``model`` runs on the samples, flattened to (rows, in)."""
    collected: dict[str, Tensor] = {}
    hooks = []
    for name, layer in layers.items():

        def keep(_: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
            collected[name] = inputs[0].detach().reshape(-1, inputs[0].shape[-1])

        hooks.append(layer.register_forward_pre_hook(keep))
    try:
        with torch.no_grad(), keeping_modes(model):
            model.eval()(sample_inputs)
    except (RuntimeError, TypeError, ValueError) as error:
        raise InvalidInputError(f"The model cannot run on sample_inputs: {error}") from error
    finally:
        for hook in hooks:
            hook.remove()
    return collected
