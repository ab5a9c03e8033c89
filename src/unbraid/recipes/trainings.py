"""``unbraid reproduce trainings``: one network with circuits, trained in many ways.

The network is our best one of Table 3. Varied, one at a time: where the gates begin, how they follow from their
generators, the optimizer, the schedule, what is learnt from, and whether layers are swapped at once or in turn.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn
from torch.optim.swa_utils import update_bn

from unbraid.nn import Architecture, RiemannianAdam, accuracy, convert_layers, heal, start_from
from unbraid.recipes.datasets import Dataset
from unbraid.recipes.implicit import Training, original_from, train_original
from unbraid.recipes.recipe import (
    Outcome,
    Recipe,
    Request,
    Row,
    Section,
    Task,
    counted,
    make_row,
    plot_accuracies,
    with_spread,
)
from unbraid.recipes.table3 import OURS, STUDY

STATISTICS = 10_000  # training images from which batch norms get statistics for an accuracy without training


@dataclass(frozen=True)
class Way:
    """A way to train.

    Attributes:
        name: of the row.
        start: "explicit", "near_identity", "identity" or "random".
        parametrization: of the gates.
        riemannian: whether gates take Riemannian steps.
        scheduler: of the learning rate.
        factor: times the usual peak of the learning rate.
        distilled: whether the original network teaches.
        in_turn: whether layers are swapped one after another, each followed by its share of the epochs.
    """

    name: str
    start: str = "explicit"
    parametrization: str = "exp"
    riemannian: bool = False
    scheduler: str = "onecycle"
    factor: float = 1.0
    distilled: bool = False
    in_turn: bool = False

    @property
    def scratch(self) -> bool:
        """Whether the network starts from random cores; it is then trained for the epochs of the original too."""
        return self.start != "explicit"


WAYS = (
    Way("explicit start, Adam, one cycle"),
    Way("start near the identity", start="near_identity"),
    Way("start at the identity", start="identity"),
    Way("Haar-random start", start="random"),
    Way("Cayley transform", parametrization="cayley"),
    Way("plane rotations", parametrization="givens"),
    Way("Riemannian Adam", riemannian=True),
    Way("cosine", scheduler="cosine"),
    Way("constant rate", scheduler="constant", factor=0.25),
    Way("half the rate", factor=0.5),
    Way("twice the rate", factor=2.0),
    Way("taught by the original", distilled=True),
    Way("layers in turn", in_turn=True),
)


@dataclass(frozen=True)
class Settings:
    """What the results depend on.

    Attributes:
        training: of all networks; the peak is the healing's.
    """

    training: Training = field(default_factory=lambda: Training(epochs=20, healing=20))


def _declared() -> Architecture:
    found = STUDY.line(OURS).architecture
    assert found is not None
    return found


def run_original(request: Request, seed: int) -> dict[str, Any]:
    """The network of Fig. 5 (i)."""
    return train_original(STUDY, request.settings.training, STUDY.data(request, seed), seed)


def run_way(request: Request, given: Mapping[str, Any], way: str, seed: int) -> dict[str, Any]:
    """Train in one way; accuracies."""
    chosen = next(each for each in WAYS if each.name == way)
    training: Training = request.settings.training
    data = STUDY.data(request, seed)
    original = original_from(STUDY, given)
    declared = _declared()
    options: dict[str, Any] = {
        "lr": chosen.factor * training.healing_lr,
        "scheduler": chosen.scheduler,
        "batch_size": training.healing_batch_size,
        "seed": seed,
        "teacher": original if chosen.distilled else None,
    }
    before = None
    if chosen.in_turn:
        model = _in_turn(original, declared, data, training, options)
    else:
        model = _started(original, declared, chosen, training, seed)
        before = _accuracy_at_the_start(model, data)
        if chosen.riemannian:
            options["optimizer"] = lambda parameters: RiemannianAdam(parameters, model, lr=options["lr"])
        epochs = training.healing + (training.epochs if chosen.scratch else 0)
        heal(model, data.train, data.validation, epochs=epochs, **options)
    return {
        "accuracy": accuracy(model, *data.test),
        "validation": accuracy(model, *data.validation),
        "before": before,
    }


def _started(original: nn.Sequential, declared: Architecture, way: Way, training: Training, seed: int) -> nn.Sequential:
    if way.scratch:
        return declared.build(seed, way.start, parametrization=way.parametrization)
    found = start_from(original, declared, seed=seed, max_sweeps=training.sweeps)
    if way.parametrization == "exp":
        return found
    model = declared.build(seed, "identity", parametrization=way.parametrization)
    model.load_state_dict(found.state_dict())  # gates that a sweep found are bases, whatever the chart around them
    return model


def _accuracy_at_the_start(model: nn.Module, data: Dataset) -> float:
    """On validation images, batch norms with statistics of this network and not of the one that it came from."""
    fresh = copy.deepcopy(model)
    update_bn(data.train[0][:STATISTICS].split(1_000), fresh)
    return accuracy(fresh, *data.validation)


def _in_turn(
    original: nn.Sequential, declared: Architecture, data: Dataset, training: Training, options: dict[str, Any]
) -> nn.Module:
    """From the last layer with circuits to the first, each healed for its share of the epochs."""
    circuits, bonds = {}, {}
    for number, layer in reversed(list(enumerate(declared.layers, 1))):
        if layer.has_circuits:
            inward, output = layer.ansatze()
            circuits[f"layer{number}"], bonds[f"layer{number}"] = (output, inward), layer.bond
    epochs = max(1, training.healing // len(circuits))
    model, _ = convert_layers(
        original,
        circuits,
        data.train,
        data.validation,
        epochs=epochs,
        core_bond=bonds,
        disentangling={"max_sweeps": training.sweeps},
        **options,
    )
    return model


def _tasks(request: Request) -> list[Task]:
    found = []
    for seed in range(request.seeds):
        first = f"seed-{seed}-original"
        original = STUDY.lines[0].to_dict()
        found.append(Task(first, run_original, {"seed": seed}, seed=seed, depends=original))
        for number, way in enumerate(WAYS):
            name = f"seed-{seed}-way-{number}"
            arguments, depends = {"way": way.name, "seed": seed}, [asdict(way), _declared().to_dict()]
            found.append(Task(name, run_way, arguments, after=first, seed=seed, depends=depends))
    return found


def _assemble(request: Request, results: Mapping[str, Any]) -> Outcome:
    training: Training = request.settings.training
    seeds = range(request.seeds)
    originals = [results[f"seed-{seed}-original"] for seed in seeds]
    rows = [
        make_row(
            "original",
            "original",
            [each["accuracy"] for each in originals],
            seeds=seeds,
            parameters=originals[0]["parameters"],
            validation=[each["validation"] for each in originals],
            before=None,
        )
    ]
    for number, way in enumerate(WAYS):
        found = [results[f"seed-{seed}-way-{number}"] for seed in seeds]
        rows.append(
            make_row(
                way.name,
                "hybrid" if number == 0 else "control",
                [each["accuracy"] for each in found],
                seeds=seeds,
                parameters=_declared().num_parameters,
                validation=[each["validation"] for each in found],
                before=None if way.in_turn else [each["before"] for each in found],
            )
        )
    return Outcome(
        title="One network with circuits, trained in many ways",
        note=(
            f"The network '{OURS}' of Table 3 on MNIST, {counted(request.seeds, 'seed')}: mean and sample standard "
            f"deviation. The first way: explicit start from the original of {training.epochs} epochs, gates as "
            f"exponentials, Adam, one cycle with a peak of {training.healing_lr:g}, batches of "
            f"{training.healing_batch_size}, {training.healing} epochs. Every other way differs in what its name says; "
            f"those that do not start from the original have {training.epochs} epochs more. Accuracies at the start: "
            f"batch norms with statistics of the started network, from {STATISTICS:,} training images."
        ),
        rows=rows,
        sections=(_section(rows),),
    )


def _section(rows: Sequence[Row]) -> Section:
    cells = [
        (
            row["name"],
            "-" if row["before"] is None else with_spread([100 * value for value in row["before"]], 1),
            with_spread([100 * value for value in row["validation"]], 2),
            with_spread([100 * value for value in row["values"]], 2),
        )
        for row in rows
    ]
    return Section(("way", "validation % at the start", "validation %", "test %"), tuple(cells))


RECIPE = Recipe(
    settings=Settings(),
    quick=Settings(Training(epochs=1, healing=1, batch_size=1024, healing_batch_size=1024, sweeps=20)),
    seeds=5,
    quick_seeds=1,
    data=STUDY.data,
    tasks=_tasks,
    assemble=_assemble,
    plot=plot_accuracies,
)
