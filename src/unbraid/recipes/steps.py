"""The networks along a job of the command line: accuracy and parameters of each, and the report of all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from unbraid.disentangling import Disentangled
from unbraid.ground.manifest import build_manifest
from unbraid.nn import heal
from unbraid.nn.heal import History
from unbraid.nn.integers import count_numbers
from unbraid.recipes.datasets import Dataset
from unbraid.report import Report, evaluate


@dataclass
class Steps:
    """Collects one entry a network; accuracies are of the test part, if there are data.

    Attributes:
        dataset: to heal on and to test with, or None.
        seed: of the job.
        accuracy: fraction right by the name of the step.
        parameters: trainable scalars by the name of the step.
        histories: of healings, by the name of the step.
    """

    dataset: Dataset | None
    seed: int
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
            checkpoint_dir=checkpoint_dir,
        )
        self.add(name, model)

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
            manifest=build_manifest(seeds={"seed": self.seed}, data=data),
            overlap=None if only is None else only.overlap,
            ceiling=None if only is None else only.ceiling,
            extra={"disentangling": outcomes} if outcomes else {},
        )
