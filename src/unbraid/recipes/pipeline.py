"""The main job on 8x8 digits, step by step: train, scan, tensorize, heal, disentangle, heal with circuits.

Hyperparameters were chosen on the validation part; the test part is only reported on.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from unbraid.disentangling import Disentangled
from unbraid.nn import LayerScan, disentangle_layers, heal, scan, tensorize
from unbraid.nn.heal import History
from unbraid.recipes.datasets import Dataset, load_dataset
from unbraid.recipes.models import digits_mlp

TARGET = "hidden"
SHOTS = 20_000  # a vector and stage, where circuits are sampled


@dataclass(frozen=True)
class Settings:
    """What the pipeline is run with.

    Attributes:
        train_epochs: of the dense network.
        train_lr: its peak learning rate.
        heal_epochs: of the MPO network.
        circuit_epochs: of healing with trainable gates.
        heal_lr: peak learning rate of both healings.
        max_bond: of the MPO.
        depth: layers of two-body SO(4) gates a side.
        max_sweeps: of the explicit disentangling.
        tolerance: of the explicit disentangling.
    """

    train_epochs: int = 60
    train_lr: float = 1e-2
    heal_epochs: int = 120
    circuit_epochs: int = 80
    heal_lr: float = 3e-2
    max_bond: int = 4
    depth: int = 4
    max_sweeps: int = 200
    tolerance: float = 1e-5


@dataclass(frozen=True)
class Networks:
    """The networks along the way and how they came about.

    Attributes:
        data: the digits of this seed.
        dense: trained.
        scanned: what ``scan`` says of its layers.
        truncated: with the MPO layer, before healing.
        healed: after.
        explicit: with the disentangled layer, before healing.
        result: of the disentangling.
        disentangled: after healing with trainable gates.
        histories: of the three trainings.
        seconds: a step.
    """

    data: Dataset
    dense: nn.Sequential
    scanned: list[LayerScan]
    truncated: nn.Sequential
    healed: nn.Sequential
    explicit: nn.Sequential
    result: Disentangled
    disentangled: nn.Sequential
    histories: dict[str, History]
    seconds: dict[str, float]


@contextmanager
def timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    """Note the seconds of a block under the name of its step."""
    start = time.perf_counter()
    yield
    seconds[step] = time.perf_counter() - start


def build_networks(seed: int = 0, settings: Settings | None = None) -> Networks:
    """Run the classical half of the pipeline; the same seed gives the same networks.

    Args:
        seed: of the split, the initial weights, the batches and the circuits.
        settings: hyperparameters.
    """
    settings = settings or Settings()
    seconds: dict[str, float] = {}
    histories: dict[str, History] = {}
    data = load_dataset("digits", seed=seed)
    with timed(seconds, "train"):
        dense = digits_mlp(seed)
        histories["dense"] = heal(
            dense, data.train, data.validation, epochs=settings.train_epochs, lr=settings.train_lr, seed=seed
        )
    with timed(seconds, "scan"):
        scanned = scan(dense, data.validation[0])
    with timed(seconds, "tensorize"):
        truncated = tensorize(dense, [TARGET], max_bond=settings.max_bond, sites="qubits")
    with timed(seconds, "heal"):
        healed = copy.deepcopy(truncated)
        histories["healed"] = heal(
            healed,
            data.train,
            data.validation,
            epochs=settings.heal_epochs,
            lr=settings.heal_lr,
            teacher=dense,
            seed=seed,
        )
    with timed(seconds, "disentangle"):
        results: dict[str, Disentangled] = {}
        explicit = disentangle_layers(
            healed,
            [TARGET],
            settings.depth,
            results=results,
            seed=seed,
            max_sweeps=settings.max_sweeps,
            tolerance=settings.tolerance,
        )
    with timed(seconds, "heal with circuits"):
        disentangled = copy.deepcopy(explicit)
        histories["disentangled"] = heal(
            disentangled,
            data.train,
            data.validation,
            epochs=settings.circuit_epochs,
            lr=settings.heal_lr,
            teacher=dense,
            seed=seed,
        )
    return Networks(
        data=data,
        dense=dense,
        scanned=scanned,
        truncated=truncated,
        healed=healed,
        explicit=explicit,
        result=results[TARGET],
        disentangled=disentangled,
        histories=histories,
        seconds=seconds,
    )
