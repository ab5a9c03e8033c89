"""Ways to compress a language model and heal it, shared by the recipes that compare them.

Every way ends with the same number of passes over the same text: fine-tuning against the original's outputs, or first
slice by slice and then so.
"""

from __future__ import annotations

import copy
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unbraid.nn import (
    InputMoments,
    LayerSensitivity,
    MPOLinear,
    SensitivityPoint,
    Task,
    allocate,
    heal,
    heal_slices,
    sensitivity,
    tensorize,
)
from unbraid.nn.calibration import linear_layers
from unbraid.nn.gauge import fix_gauge
from unbraid.nn.heal import History
from unbraid.nn.kinds import matrix_of
from unbraid.nn.modes import keeping_modes
from unbraid.nn.task import Lesson
from unbraid.tensors.gauge import degrees_of_freedom
from unbraid.tensors.ladder import ladder
from unbraid.tensors.sites import low_rank_sites

_TRIALS = 3  # of filling a budget
_FULL = 0.995  # of it is enough
_HALVINGS = 12
KEPT_BYTES = 2 * 2**30  # of what a teacher puts out


@dataclass(frozen=True)
class Way:
    """How layers are written before they are healed.

    Attributes:
        kind: of the row in the table.
        meaning: in words.
        sites: of :func:`unbraid.tensorize`.
        aware: whether the moments of the inputs count.
        slopes: whether those of the loss's slopes in the outputs count too.
        allocated: whether the budget is spent by sensitivity, or equally.
        sliced: whether a part of the healing is slice by slice, and hidden states are targets of the rest.
        lean: whether the gauge is fixed afterwards, and what that saves is spent on larger bonds.
    """

    kind: str
    meaning: str
    sites: str = "auto"
    aware: bool = False
    slopes: bool = False
    allocated: bool = False
    sliced: bool = False
    lean: bool = False


WAYS = {
    "low rank": Way("control", "truncated SVD, every layer the same fraction", "low-rank"),
    "low rank, slice by slice": Way(
        "control", "the same, healed slice by slice, then as a whole", "low-rank", sliced=True
    ),
    "low rank, data-aware": Way(
        "control", "truncated SVD of the weight times the root of its inputs' covariance", "low-rank", aware=True
    ),
    "operators": Way("hybrid", "MPOs by TT-SVD, every layer the same fraction"),
    "operators, data-aware": Way(
        "hybrid", "MPOs fitted to the layers' outputs, every layer the same fraction", aware=True
    ),
    "operators, data-aware, allocated": Way(
        "hybrid",
        "the best of three layouts a layer, fitted to its outputs as the loss sees them, the budget spent by "
        "sensitivity, healed slice by slice, then as a whole",
        "best",
        aware=True,
        slopes=True,
        allocated=True,
        sliced=True,
    ),
    "operators, data-aware, allocated, gauge fixed": Way(
        "hybrid",
        "the same with larger bonds, whose gauge is fixed once they are healed: as many numbers are stored",
        "best",
        aware=True,
        slopes=True,
        allocated=True,
        sliced=True,
        lean=True,
    ),
}


def profile_from(content: Sequence[Mapping[str, Any]]) -> list[LayerSensitivity]:
    """A profile from the JSON of its :meth:`~unbraid.nn.LayerSensitivity.to_dict`."""
    return [
        LayerSensitivity(
            each["name"],
            (each["shape"][0], each["shape"][1]),
            each["parameters"],
            tuple(SensitivityPoint(**{**p, "bond_dims": tuple(p["bond_dims"])}) for p in each["points"]),
        )
        for each in content
    ]


def profiled(
    model: nn.Module,
    batches: Sequence[Any],
    task: Task,
    targets: str,
    bonds: Sequence[int],
    moments: Mapping[str, InputMoments] | None = None,
) -> list[dict[str, Any]]:
    """The sensitivity of every layer to low ranks, ready for JSON; with moments, to those that keep outputs."""
    found = sensitivity(model, batches, task, targets=targets, bonds=bonds, sites="low-rank", moments=moments)
    return [layer.to_dict() for layer in found]


@torch.no_grad()
def brute_force(
    model: nn.Module, targets: str, bonds: Sequence[int], loss: Callable[[], float]
) -> dict[str, list[float]]:
    """The growth of ``loss()`` with each linear layer alone at each rank; the model is as before afterwards."""
    exact, found = loss(), {}
    for name, layer in linear_layers(model, targets).items():
        weight, stored = matrix_of(layer), layer.weight.data
        growths = []
        for mpo in ladder(weight, *low_rank_sites(*weight.shape), bonds):
            dense = mpo.to_dense()
            layer.weight.data = dense if isinstance(layer, nn.Linear) else dense.mT  # Conv1D's is (in, out)
            growths.append(loss() - exact)
        layer.weight.data = stored
        found[name] = growths
    return found


def compressed(
    model: nn.Module,
    way: Way,
    budget: float,
    targets: str,
    moments: Mapping[str, InputMoments],
    profile: Sequence[LayerSensitivity],
) -> nn.Module:
    """A copy of the model with its layers written as operators, within the budget of their weights.

    Where the gauge is to be fixed, entries are such that what is left of them then is within the budget.
    """
    known = None
    if way.aware:
        known = moments if way.slopes else {name: replace(each, slopes=None) for name, each in moments.items()}
    if not way.allocated:
        return tensorize(model, targets, budget=budget, sites=way.sites, moments=known)

    def allocated(share: float) -> nn.Module:
        options = allocate(profile, share).options
        return tensorize(model, list(options), sites=way.sites, layer_options=options, moments=known)

    return _filled(allocated, budget, profile) if way.lean else allocated(budget)


def _filled(build: Callable[[float], nn.Module], budget: float, profile: Sequence[LayerSensitivity]) -> nn.Module:
    """The largest of a few ``build(share)`` whose layers hold at most the budget once their gauge is fixed."""
    weights = sum(layer.parameters for layer in profile)

    def kept(model: nn.Module) -> float:
        layers = [model.get_submodule(layer.name) for layer in profile]
        cores = [tuple(layer.mpo.cores) for layer in layers if isinstance(layer, MPOLinear)]
        dense = sum(matrix_of(layer).numel() for layer in layers if not isinstance(layer, MPOLinear))
        return (dense + sum(degrees_of_freedom([core.shape for core in each]) for each in cores)) / weights

    share, best, most = _share_of_low_ranks(budget, profile), None, 0.0
    for _ in range(_TRIALS):
        trial = build(share)
        found = kept(trial)
        if most < found <= budget:
            best, most = trial, found
        if _FULL * budget <= found <= budget:
            break
        share = min(1.0, share * 0.5 * (1 + _FULL) * budget / found)
    return build(budget) if best is None else best


def _share_of_low_ranks(budget: float, profile: Sequence[LayerSensitivity]) -> float:
    """What low ranks may have in both factors, of the weights, to have no more than the budget with a fixed gauge."""

    def kept(share: float) -> float:
        options, total = allocate(profile, share).options, 0.0
        for layer in profile:
            entries = options[layer.name]["budget"] * layer.parameters if layer.name in options else layer.parameters
            rank = entries / sum(layer.shape) if layer.name in options else 0
            total += entries - rank * rank
        return total / sum(layer.parameters for layer in profile)

    low, high = budget, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if kept(middle) <= budget else (low, middle)
    return low


def distil(
    model: nn.Module,
    teacher: nn.Module,
    task: Task,
    train: Sequence[Any],
    validation: Sequence[Any],
    *,
    epochs: int,
    lr: float,
    seed: int,
    optimizer: str = "adam",
    scheduler: str = "onecycle",
    slices: Sequence[str] = (),
    checkpoint_dir: str | os.PathLike[str] | None = None,
) -> History:
    """Heal in place towards the teacher's outputs, and those of slices; the best pass on validation data stays.

    What the teacher puts out is computed once for as many batches as fit into 2 GiB, and at every pass for the others.
    Validation looks at the outputs of the whole alone.
    """
    left = KEPT_BYTES

    def lesson(batch: Any, training: bool) -> Lesson:
        return task.lesson(teacher, batch, slices if training else ()).halved()

    def kept(batch: Any, training: bool) -> tuple[Any, Lesson | None]:
        nonlocal left
        if left <= 0:
            return batch, None
        known = lesson(batch, training)
        left -= known.nbytes
        return batch, known

    exams = [kept(batch, training=False) for batch in validation]
    lessons = [kept(batch, training=True) for batch in train]

    def loss(network: nn.Module, pair: tuple[Any, Lesson | None]) -> Tensor:
        batch, known = pair
        return task.imitation(network, batch, known or lesson(batch, network.training))

    return heal(
        model,
        lessons,
        exams,
        epochs=epochs,
        lr=lr,
        loss=loss,
        seed=seed,
        optimizer=optimizer,
        scheduler=scheduler,
        checkpoint_dir=checkpoint_dir,
        dropout=False,
    )


def healed(
    model: nn.Module,
    teacher: nn.Module,
    way: Way,
    task: Task,
    train: Sequence[Any],
    validation: Sequence[Any],
    slices: Sequence[str],
    *,
    epochs: int,
    sliced_epochs: int,
    lr: float,
    sliced_lr: float,
    rest_lr: float,
    optimizer: str,
    scheduler: str,
    seed: int,
    checkpoint_dir: Path,
) -> nn.Module:
    """A healed copy, after ``epochs`` passes in all; an interrupted healing goes on where its checkpoint is."""
    student = copy.deepcopy(model)
    options: dict[str, Any] = {"seed": seed, "optimizer": optimizer, "scheduler": scheduler}
    whole = partial(distil, student, teacher, task, train, validation, checkpoint_dir=checkpoint_dir, **options)
    if way.sliced:
        options |= {"task": task, "checkpoint_dir": checkpoint_dir / "slices"}
        heal_slices(student, teacher, train, slices, epochs=sliced_epochs, lr=sliced_lr, **options)
        whole(epochs=epochs - sliced_epochs, lr=rest_lr, slices=slices)
    else:
        whole(epochs=epochs, lr=lr)
    return fix_gauge(student) if way.lean else student


def relative_time(model: nn.Module, original: nn.Module, run: Callable[[nn.Module], Any], repeats: int = 7) -> float:
    """Median time of ``run(model)`` over that of ``run(original)``, taken in turns on the CPU."""
    times: dict[int, list[float]] = {0: [], 1: []}
    with torch.no_grad(), keeping_modes(model), keeping_modes(original):
        pair = (model.cpu().eval(), original.cpu().eval())
        for number in range(repeats + 1):
            for which, each in enumerate(pair):
                start = time.perf_counter()
                run(each)
                if number:  # the first warms up
                    times[which].append(time.perf_counter() - start)
    return statistics.median(times[0]) / statistics.median(times[1])


def count(model: nn.Module) -> int:
    """Numbers of all parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def agreement(profile: Sequence[LayerSensitivity], measured: Mapping[str, Sequence[float]]) -> float:
    """Spearman correlation of estimated growths with measured ones, over all layers and bonds."""
    from scipy.stats import spearmanr

    estimates = [point.growth for layer in profile for point in layer.points]
    return float(spearmanr(estimates, [growth for layer in profile for growth in measured[layer.name]]).statistic)


def mean(values: Sequence[float]) -> float:
    """Arithmetic."""
    return statistics.fmean(values)
