"""Which layers are worth compressing and disentangling: ranks for an error, entropies, parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from unbraid.circuits.gates import cnot_cost
from unbraid.ground import progress
from unbraid.ground.errors import InvalidInputError
from unbraid.nn.calibration import InputMoments, linear_layers, moments_seen
from unbraid.nn.kinds import check_weight, matrix_of
from unbraid.nn.sensitivity import SensitivityPoint, sensitivity
from unbraid.nn.surgery import choose_sites
from unbraid.nn.targets import Sites, Targets
from unbraid.nn.task import Task, regression
from unbraid.tensors import MPO
from unbraid.tensors.entanglement import maximum_entropies
from unbraid.tensors.sites import qubits_for
from unbraid.tensors.weighted import weighted_error

ERRORS = (0.01, 0.05, 0.10)


@dataclass(frozen=True)
class RankForError:
    """The MPO that one relative error needs.

    Attributes:
        rel_error: allowed, in the Frobenius norm.
        bond_dims: of the MPO, one a bond.
        parameters: core entries.
        output_error: relative error of the layer's outputs on the sample inputs; None without moments of them.
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
        sensitivity: growth of the task's loss by bond; empty without a task.
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
    sensitivity: tuple[SensitivityPoint, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def scan(
    model: nn.Module,
    sample_inputs: Any = None,
    *,
    targets: Targets = "all-linear",
    rel_errors: Iterable[float] = ERRORS,
    sites: Sites = "qubits",
    task: Task | None = None,
    bonds: Iterable[int] | None = None,
    moments: Mapping[str, InputMoments] | None = None,
    seed: int = 0,
) -> list[LayerScan]:
    """Decompose each linear layer at several errors; the model is not changed.

    With a task, how much the loss grows is estimated for each layer at each bond, in three passes over the samples
    (:func:`unbraid.nn.sensitivity`); :func:`unbraid.nn.allocate` spends a global budget by it.

    Args:
        model: any module.
        sample_inputs: a tensor for ``model``, or a list of batches. Without a task the error of each layer's outputs
            on them is reported.
        targets: which layers, as in :func:`unbraid.nn.surgery.match_layers`.
        rel_errors: relative Frobenius errors to allow.
        sites: "auto", "low-rank", "qubits" or a pair, as in :func:`unbraid.tensorize`.
        task: what the outputs are.
        bonds: of the sensitivities; by default powers of two, as long as the operator is smaller than the weight.
        moments: of the layers' inputs (:func:`unbraid.nn.input_moments`): errors of outputs are reported from them, and
            sensitivities are those of operators that keep outputs, not entries.
        seed: of the outputs that sensitivities are averaged over.

    Returns:
        One entry a layer, in the order of the model.

    Raises:
        InvalidInputError: if nothing matches, a weight is empty, zero or not finite, or the samples do not fit.
    """
    layers = linear_layers(model, targets)
    if task is not None and sample_inputs is None:
        raise InvalidInputError("A task needs sample_inputs to run on: a list of batches.")
    if sample_inputs is not None and task is None and moments is None:
        moments = moments_seen(model, sample_inputs, layers, regression())
    found = []
    with torch.no_grad():
        for name, layer in progress.track(layers.items(), "scan", len(layers)):
            weight = matrix_of(layer)
            check_weight(weight, name)
            seen = None if moments is None else moments.get(name)
            found.append(_scan_layer(name, weight, seen, tuple(rel_errors), sites))
    if task is None:
        return found
    profile = sensitivity(
        model, sample_inputs, task, targets=targets, bonds=bonds, sites=sites, moments=moments, seed=seed
    )
    return [replace(each, sensitivity=layer.points) for each, layer in zip(found, profile, strict=True)]


def _scan_layer(
    name: str, weight: Tensor, seen: InputMoments | None, rel_errors: tuple[float, ...], sites: Sites
) -> LayerScan:
    rows, columns = weight.shape
    out_dims, in_dims = choose_sites(sites, rows, columns)
    whole = MPO.from_dense(weight, out_dims, in_dims)
    ranks = []
    for rel_error in rel_errors:
        mpo = MPO.from_dense(weight, out_dims, in_dims, rel_error=rel_error)
        output_error = None if seen is None else weighted_error(weight, mpo.to_dense(), seen.second)
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
