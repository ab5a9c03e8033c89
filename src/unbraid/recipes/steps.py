"""The networks along a job of the command line: accuracy and parameters of each, and the report of all."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from unbraid.disentangling import Disentangled
from unbraid.ground.errors import InvalidInputError
from unbraid.ground.manifest import build_manifest
from unbraid.nn import InputMoments, Task, classification, fix_gauge, heal, input_moments, quantize, tensorize
from unbraid.nn.heal import History
from unbraid.nn.integers import count_numbers
from unbraid.nn.kinds import is_linear
from unbraid.nn.targets import Targets, exactly, match_layers
from unbraid.recipes.datasets import Dataset
from unbraid.recipes.scanning import read_allocation
from unbraid.report import Report, evaluate

BATCH_SIZE = 16  # of calibration
CALIBRATION_BATCHES = 32  # at most


@dataclass
class Steps:
    """Collects one entry a network; accuracies are of the test part, if there are data.

    Attributes:
        dataset: to heal on and to test with, or None.
        seed: of the job.
        device: where torch computes.
        optimizer: of healing, by name.
        accuracy: fraction right by the name of the step.
        parameters: trainable scalars by the name of the step.
        histories: of healings, by the name of the step.
    """

    dataset: Dataset | None
    seed: int
    device: str = "cpu"
    optimizer: str = "adam"
    accuracy: dict[str, float] = field(default_factory=dict)
    parameters: dict[str, int] = field(default_factory=dict)
    histories: dict[str, History] = field(default_factory=dict)

    def add(self, name: str, model: nn.Module) -> None:
        """Note a network.

        Raises:
            InvalidInputError: if the data do not fit it.
        """
        self.parameters[name] = count_numbers(model)
        if self.dataset is not None:
            (self.accuracy[name],) = evaluate(model, self.dataset.test).accuracy.values()

    def heal(self, name: str, model: nn.Module, epochs: int, lr: float, checkpoint_dir: str | os.PathLike[str]) -> None:
        """Heal a network on the training part, choose its best epoch on the validation part, and note it.

        An interrupted healing goes on where its checkpoint is.
        """
        if self.dataset is None:
            return
        validation = self.dataset.validation if len(self.dataset.validation[1]) else None
        self.histories[name] = heal(
            model,
            self.dataset.train,
            validation,
            epochs=epochs,
            lr=lr,
            seed=self.seed,
            optimizer=self.optimizer,
            checkpoint_dir=checkpoint_dir,
        )
        self.add(name, model)

    def calibration(self) -> tuple[list[Any], Task]:
        """Batches of the training part, and what the outputs on them are.

        Raises:
            InvalidInputError: if there are no data.
        """
        if self.dataset is None:
            raise InvalidInputError("There are no data to calibrate with.")
        x, y = self.dataset.train
        return list(zip(x.split(BATCH_SIZE), y.split(BATCH_SIZE), strict=True)), classification()

    def moments(self, model: nn.Module, targets: Targets) -> dict[str, InputMoments]:
        """What the linear layers among the targets see on part of the training data.

        Raises:
            InvalidInputError: if none is linear, one sees nothing, or there are no data.
        """
        names = [name for name, layer in match_layers(model, targets).items() if is_linear(layer)]
        if not names:
            raise InvalidInputError("Operators are fitted to the outputs of linear layers, and no target is one.")
        batches, task = self.calibration()
        step = math.ceil(len(batches) / CALIBRATION_BATCHES)  # from all parts: sentences come by length
        return input_moments(model, batches[::step], targets=exactly(names), task=task, slopes=True, seed=self.seed)

    def report(self, title: str, results: Mapping[str, Disentangled] | None = None) -> Report:
        """The report of all steps, with the outcomes of disentangled layers; of a single one also at the top level."""
        found = {} if results is None else dict(results)
        only = next(iter(found.values())) if len(found) == 1 else None
        outcomes = {
            name: {"overlap": result.overlap, "ceiling": result.ceiling, "status": result.status}
            for name, result in found.items()
        }
        data = None if self.dataset is None else self.dataset.describe()
        return Report(
            title=title,
            accuracy=dict(self.accuracy),
            parameters=dict(self.parameters),
            samples={} if self.dataset is None else dict.fromkeys(self.accuracy, len(self.dataset.test[1])),
            curves={f"{name}: training loss": history.train_loss for name, history in self.histories.items()},
            manifest=build_manifest(seeds={"seed": self.seed}, data=data, device=self.device),
            overlap=None if only is None else only.overlap,
            ceiling=None if only is None else only.ceiling,
            extra={"disentangling": outcomes} if outcomes else {},
        )

    def facts(self) -> list[tuple[str, str]]:
        """(name, value) pairs for people, beside those of the report."""
        return []


def compress_model(
    model: nn.Module,
    steps: Steps,
    *,
    targets: Targets = "all-linear",
    limits: Mapping[str, Any] | None = None,
    sites: str | None = None,
    allocation: str | os.PathLike[str] | None = None,
    aware: bool = False,
    without_gauge: bool = False,
    bits: int | None = None,
    epochs: int,
    lr: float,
    checkpoint_dir: str | os.PathLike[str],
) -> nn.Module:
    """Write layers as operators, heal them on what the steps have, store them as asked; every network is noted.

    Args:
        model: any module; it is not changed.
        steps: that judge and heal.
        targets: which layers, without an allocation.
        limits: ``max_bond``, ``rel_error``, ``budget`` of :func:`unbraid.tensorize`, without an allocation.
        sites: of :func:`unbraid.tensorize`; by default those of the allocation, else "auto".
        allocation: a file that ``unbraid scan --budget`` wrote, which says layers and their budgets.
        aware: whether operators are fitted to the layers' outputs on training samples.
        without_gauge: whether cores are stored without the numbers of their gauge.
        bits: of the integers; None for none.
        epochs: passes of the healing.
        lr: its peak learning rate.
        checkpoint_dir: from which an interrupted healing goes on.

    Returns:
        The compressed model.

    Raises:
        InvalidInputError: if an argument makes no sense, or the model or the data do not fit.
        FileFormatError: if the allocation is none.
    """
    options: dict[str, dict[str, Any]] = {}
    if allocation is not None:
        allocated_sites, options = read_allocation(allocation)
        targets, sites = _allocated(model, allocation, options), sites or allocated_sites
    after = tensorize(
        model,
        targets,
        **(limits or {}),
        sites=sites or "auto",
        layer_options=options,
        moments=steps.moments(model, targets) if aware else None,
    )
    steps.add("before", model)
    steps.add("mpo", after)
    steps.heal("healed", after, epochs, lr, checkpoint_dir)
    if without_gauge:
        after = fix_gauge(after)
        steps.add("gauge", after)
    if bits is not None:
        after = quantize(after, bits=bits)
        steps.add("quantized", after)
    return after


def _allocated(model: nn.Module, path: str | os.PathLike[str], options: Mapping[str, Any]) -> Targets:
    """The layers of an allocation as targets."""
    if not options:
        raise InvalidInputError(f"{path} leaves every layer dense: there is nothing to compress. Scan a lower budget.")
    known = dict(model.named_modules())
    missing = [name for name in options if name not in known]
    if missing:
        raise InvalidInputError(f"{path} names the layer {missing[0]!r}, which the model lacks. Scan this model.")
    return exactly(options)
