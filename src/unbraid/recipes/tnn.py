"""The small tensor network classifier of the paper's Fig. 3: an MPO layer 64 -> 64 trained from scratch.

Six sites of one qubit a side, all bonds 2, batch normalisation, ReLU, and a dense layer 64 -> 10. The MPO layer has no
bias, which batch normalisation would take away again.

The paper says 92.6 % and nothing of the training. The start of the cores decides how entangled the trained layer is,
and with that how well a given circuit disentangles it, so two starts are trained and both are shown. "near_identity":
every core is the identity between equal bond indices, plus Gaussian noise of the standard deviation that circuits near
the identity have. What entanglement there is has been learnt, and it is little: at almost the paper's accuracy a core
of bond 1 has an overlap of 0.88 to 0.97 with the layer before any gate is placed. "gaussian": independent Gaussian
entries of both signs (:meth:`unbraid.MPO.random`, its scale as of ``nn.Linear``). It is entangled from the beginning
and stays so, a little more accurate; the same core has 0.48 to 0.67. The overlaps of the paper's Table 1, from 62 %
for one layer of gates on two qubits to 96 % for six, are near those of the second start and far from the first's; its
94 % with deep circuits of gates on two qubits lies between.

Both are trained alike, by Adam with one cycle of the learning rate, and the weights of the epoch best on the validation
part are kept. The peak of 3e-3 is one that ends near the paper's accuracy; ten times as much gains about a point and
leaves the layers of the first start more entangled.
"""

from __future__ import annotations

import math
import statistics
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from unbraid.circuits import brickwall
from unbraid.circuits.circuit import NEAR_IDENTITY_NOISE
from unbraid.disentangling import disentangle
from unbraid.ground.errors import require_choice
from unbraid.ground.random import isolated
from unbraid.nn import MPOLinear, accuracy, heal
from unbraid.recipes.datasets import Dataset, load_dataset
from unbraid.recipes.recipe import Request, Task, counted, with_spread
from unbraid.tensors import MPO

SITES = (2,) * 6
MAX_BOND = 2
PAPER_ACCURACY = 0.926
STARTS = ("near_identity", "gaussian")
TRAINED, MIXED = "trained", "trained, mixed signs"  # how tables call them
START_OF = dict(zip((TRAINED, MIXED), STARTS, strict=True))
TITLES = {TRAINED: "trained, start near the identity", MIXED: "trained, Gaussian start of mixed signs"}  # of plots


@dataclass(frozen=True)
class Training:
    """How the network is trained.

    Attributes:
        epochs: passes over the training part.
        lr: peak of one cycle, with Adam.
        batch_size: rows.
    """

    epochs: int = 10
    lr: float = 3e-3
    batch_size: int = 64


MNIST_TRAINING = Training()
DIGITS_TRAINING = Training(epochs=100, lr=1e-2)  # a fiftieth of the images


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained network.

    Attributes:
        model: with the weights of its best epoch on the validation part.
        mpo: its MPO layer, detached, float64.
        accuracy: on the test part, a fraction.
        validation_accuracy: of the same weights.
    """

    model: nn.Sequential
    mpo: MPO
    accuracy: float
    validation_accuracy: float


def tnn(seed: int = 0, start: str = "near_identity") -> nn.Sequential:
    """The untrained network; its MPO layer is called "hidden".

    Args:
        seed: of the initial weights.
        start: of the cores, "near_identity" or "gaussian".

    Raises:
        InvalidInputError: if the start is unknown.

    Source:
        Fig. 3 of "Classical Neural Networks on Quantum Devices via Tensor Network Disentanglers".
    """
    require_choice(start, STARTS, "start of the cores")
    mpo = MPO.random(SITES, SITES, MAX_BOND, seed=seed)
    if start == "near_identity":
        mpo = _near_identity(mpo, seed)
    with isolated(seed, "tnn"):
        return nn.Sequential(
            OrderedDict(
                hidden=MPOLinear(mpo),
                norm=nn.BatchNorm1d(64),
                relu=nn.ReLU(),
                output=nn.Linear(64, 10),
            )
        )


def _near_identity(mpo: MPO, seed: int) -> MPO:
    """Cores of the same shapes: identities between equal bond indices, and noise."""
    generator = torch.Generator().manual_seed(seed)
    cores = []
    for core in mpo.cores:
        left, out, inward, right = core.shape
        identity = torch.einsum("lr,oi->loir", torch.eye(left, right), torch.eye(out, inward))
        cores.append(identity + NEAR_IDENTITY_NOISE * torch.randn(core.shape, generator=generator))
    return MPO(cores)


def train_tnn(data: Dataset, seed: int = 0, start: str = "near_identity", training: Training | None = None) -> Trained:
    """Train the network from scratch; the test part is looked at once, at the end.

    Args:
        data: 8x8 images of ten classes.
        seed: of the initial weights and the batches.
        start: of the cores, see :func:`tnn`.
        training: by default that of the data set.
    """
    chosen = training or (DIGITS_TRAINING if data.name == "digits" else MNIST_TRAINING)
    model = tnn(seed, start)
    history = heal(
        model, data.train, data.validation, epochs=chosen.epochs, lr=chosen.lr, batch_size=chosen.batch_size, seed=seed
    )
    return Trained(
        model=model,
        mpo=_layer(model).mpo.detach().to(torch.float64),
        accuracy=accuracy(model, *data.test),
        validation_accuracy=history.validation_accuracy[history.best_epoch],
    )


def _layer(model: nn.Sequential) -> MPOLinear:
    layer = model.get_submodule("hidden")
    assert isinstance(layer, MPOLinear)
    return layer


def load_images(request: Request, seed: int) -> Dataset:
    """MNIST scaled to 8x8 from ``--data-dir``, or without one the bundled 8x8 digits."""
    if request.data_dir is None:
        return load_dataset("digits", seed=seed)
    return request.load("mnist", seed=seed, size=8)


def training_task(seed: int, start: str = "near_identity") -> Task:
    """The task that others of the seed wait for: the trained MPO layer, see :func:`mpo_from_result`."""
    name = f"seed-{seed}-network-{start}".replace("_", "-")
    return Task(name, run_training, {"seed": seed, "start": start}, seed=seed)


def run_training(request: Request, seed: int, start: str) -> dict[str, Any]:
    """Train one network; the result is ready for JSON."""
    trained = train_tnn(load_images(request, seed), seed, start)
    return {
        "seed": seed,
        "start": start,
        "cores": [core.tolist() for core in trained.mpo.cores],
        "accuracy": trained.accuracy,
        "validation_accuracy": trained.validation_accuracy,
        "entropies": trained.mpo.entropies().tolist(),
        "bare_overlap": bare_overlap(trained.mpo),
    }


def bare_overlap(mpo: MPO) -> float:
    """What a core of bond 1 reaches without any circuits."""
    return disentangle(mpo, brickwall(len(SITES), 0)).overlap


def mpo_from_result(result: Mapping[str, Any]) -> MPO:
    """The MPO layer of :func:`run_training`, in float64."""
    return MPO([torch.tensor(core, dtype=torch.float64) for core in result["cores"]])


def describe_networks(request: Request, results: Sequence[Mapping[str, Any]]) -> str:
    """A few sentences on the trained networks: data, and for each start test accuracy and entanglement."""
    images = "MNIST scaled to 8x8"
    if request.data_dir is None:
        images = "the bundled 8x8 digits (not MNIST, which the paper takes: for that give --data-dir)"
    text = (
        f"The layers M are six-site MPOs of bond {MAX_BOND}, each trained from scratch within the network of Fig. 3 on "
        f"{images}. The paper says nothing of its training (test accuracy {100 * PAPER_ACCURACY:.1f} %); the start of "
        "the cores decides how entangled the layer ends, so two are shown; the learning rate is one that ends near "
        "that accuracy, and larger ones end more accurate and more entangled."
    )
    words = {
        "near_identity": f'Near the identity (noise {NEAR_IDENTITY_NOISE:g}; "{TRAINED}")',
        "gaussian": f'Gaussian ("{MIXED}")',
    }
    for start in STARTS:
        mine = [result for result in results if result["start"] == start]
        if mine:
            entropies = [statistics.fmean(result["entropies"]) for result in mine]
            text += (
                f" {words[start]}: {counted(len(mine), 'training')}, test accuracy "
                f"{with_spread([100 * result['accuracy'] for result in mine], 1)} %, mean bond entropy "
                f"{with_spread(entropies, 2)} nats of at most {math.log(MAX_BOND):.2f}; without any gates a core of "
                f"bond 1 reaches an overlap of {with_spread([result['bare_overlap'] for result in mine])}."
            )
    return text
