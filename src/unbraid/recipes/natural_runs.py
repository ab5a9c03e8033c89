"""What ``unbraid reproduce natural`` trains and measures, one function a task.

Errors are shares of wrong images. They are kept by setting and number of shots, of the validation part and of the test
part; what is published of the test part is chosen by the validation part.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from unbraid.circuits.neuron_laws import FULL
from unbraid.ground.random import isolated, stream
from unbraid.natural import NaturalMLP, NaturalStack, RotationNeuron, errors_together, train_together
from unbraid.nn import Architecture, TensorLayer, accuracy, heal
from unbraid.nn.modes import keeping_modes
from unbraid.recipes.datasets import load_dataset
from unbraid.recipes.recipe import Request

Part = tuple[Tensor, Tensor]

THRESHOLD = 0.3  # of a pooled pixel, which counts as +1 from there on
PARTS = ("validation", "test")
JOINTS = {
    "nothing": "+",
    "ReLU": "| relu |",
    "batch norm, ReLU": "| bn+relu |",
    "rotation, a = 0": "| bn+rotation(0) |",
    "rotation, a = 0.5": "| bn+rotation(0.5) |",
    "rotation, a = 1": "| bn+rotation(1) |",
    "means of a = 0.5": "| bn+mean(0.5) |",
    "means of a = 1": "| bn+mean(1) |",
    "weak, g = 0.7 pi/2": f"| bn+weak({0.7 * FULL:.4f}) |",
}


@dataclass(frozen=True)
class Settings:
    """What the results depend on.

    Attributes:
        train: images to learn from, of MNIST's training file.
        validation: images to choose by, of the same file.
        hidden: widths of the hidden layers.
        a: quantumness of rotations, 0 first.
        g: entangling angles over pi/2, below 1.
        shots: passes whose softmax is averaged when networks are judged; they are trained with one.
        epochs: passes over the images.
        lr: peak learning rate.
        batch_size: images.
        ensemble: classical networks that are averaged.
        dropout: rates of the networks with dropout, float and of signs.
        bits: qubits of neurons of more than one.
        bits_a: quantumness of those.
        bits_seeds: networks a setting, at most.
        noise: (depolarising probability a rotation, readout error) of devices.
        noise_a: quantumness that is looked at with noise.
        depths: hidden layers at which the loss of learning is located, of ``transition_width`` neurons.
        widths: neurons of a layer, likewise, of ``transition_depth`` layers.
        transition_depth: see ``widths``.
        transition_width: see ``depths``.
        transition_g: entangling angles over pi/2, falling from 1.
        transition_seeds: networks a point.
        transition_shots: passes that are averaged.
        joint_seeds: networks with each measured joint, at most.
        joint_images: of MNIST, that they learn from.
        joint_epochs: of them, on digits and on MNIST.
        joint_lr: peak learning rate.
        joint_batch_size: images.
        full_epochs: over all of MNIST.
        full_seeds: networks a setting, at most.
        full_a: quantumness, 0 first.
        full_g: an entangling angle over pi/2.
    """

    train: int = 1_000
    validation: int = 5_000
    hidden: tuple[int, ...] = (64, 64)
    a: tuple[float, ...] = (0.0, 0.1, 0.25, 0.5, 1.0, 1.5, 2.0)
    g: tuple[float, ...] = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
    shots: tuple[int, ...] = (1, 16)
    epochs: int = 40
    lr: float = 2e-3
    batch_size: int = 50
    ensemble: int = 6
    dropout: tuple[float, ...] = (0.1, 0.3)
    bits: tuple[int, ...] = (2, 3)
    bits_a: tuple[float, ...] = (0.0, 0.5, 1.0)
    bits_seeds: int = 5
    noise: tuple[tuple[float, float], ...] = ((0.02, 0.02), (0.1, 0.1))
    noise_a: tuple[float, ...] = (0.0, 0.25, 0.5, 1.0, 1.5)
    depths: tuple[int, ...] = (1, 2, 4, 6)
    widths: tuple[int, ...] = (8, 16, 32, 64, 128)
    transition_depth: int = 2
    transition_width: int = 32
    transition_g: tuple[float, ...] = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.15, 0.1, 0.05, 0.02)
    transition_seeds: int = 5
    transition_shots: tuple[int, ...] = (1, 16, 128)
    joint_seeds: int = 3
    joint_images: int = 3_000
    joint_epochs: tuple[int, int] = (30, 8)
    joint_lr: float = 2e-2
    joint_batch_size: int = 128
    full_epochs: int = 10
    full_seeds: int = 3
    full_a: tuple[float, ...] = (0.0, 0.25, 0.5, 1.0)
    full_g: float = 0.7


def setting(kind: str, value: float) -> str:
    """How a setting is called in results."""
    return f"{kind} {value:g}"


def kept(noise: Sequence[float]) -> float:
    """The factor by which a depolarising probability and a readout error shrink the mean of an outcome."""
    depolarising, readout = noise
    return (1 - depolarising) * (1 - 2 * readout)


def pixels(x: Tensor) -> Tensor:
    """Rows of 28 x 28 pixels to 14 x 14 signs."""
    pooled = avg_pool2d(x.reshape(-1, 1, 28, 28), 2).flatten(1)
    return 2.0 * (pooled >= THRESHOLD) - 1


def _subset(request: Request, seed: int) -> dict[str, Part]:
    """Another choice of images each seed; the test part is whole."""
    settings: Settings = request.settings
    data = request.load("mnist", seed=0)

    def some(part: Part, count: int, name: str) -> Part:
        rows = torch.randperm(len(part[1]), generator=stream(seed, "natural", name))[:count]
        return pixels(part[0][rows]), part[1][rows]

    return {
        "train": some(data.train, settings.train, "train"),
        "validation": some(data.validation, settings.validation, "validation"),
        "test": (pixels(data.test[0]), data.test[1]),
    }


def run_curves(request: Request, seed: int) -> dict[str, Any]:
    """Networks over quantumness, entangling angle and noise, and the controls: of one seed and one set of images."""
    settings: Settings = request.settings
    data = _subset(request, seed)
    sizes = (data["train"][0].shape[1], *settings.hidden, 10)
    rotations = {setting("a", a): NaturalMLP(sizes, a=a, seed=seed) for a in settings.a}
    weak = {setting("g", g): NaturalMLP(sizes, g=g * FULL, seed=seed) for g in settings.g}
    noisy = {
        with_noise(a, noise): NaturalMLP(sizes, a=a, g=_coupling(noise), seed=seed)
        for noise in settings.noise
        for a in settings.noise_a
    }
    others = [NaturalMLP(sizes, seed=1_000 * k + seed) for k in range(1, settings.ensemble)]
    trained = rotations | weak
    run: dict[str, Any] = {
        "epochs": settings.epochs,
        "lr": settings.lr,
        "batch_size": settings.batch_size,
        "seed": seed,
    }
    train_together([*trained.values(), *noisy.values(), *others], data["train"], scheduler="cosine", **run)
    classical = rotations[setting("a", settings.a[0])]
    superposed = {a: rotations[setting("a", a)] for a in settings.a if a > 0}
    only: tuple[str, ...] = ("validation",)
    tables = {
        "noisy": noisy,
        "noise added": {
            with_noise(a, noise): network.with_neurons(a=a, g=_coupling(noise), seed=seed)
            for noise in settings.noise
            for a, network in ((a, rotations[setting("a", a)]) for a in settings.noise_a)
        },
        "classical, read at a": {setting("a", a): classical.with_neurons(a=a, seed=seed) for a in superposed},
    }
    found: dict[str, Any] = {"trained": _judged(trained, data, settings.shots)}
    found |= {name: _judged(networks, data, settings.shots, only) for name, networks in tables.items()}
    found["read at a = 0"] = _judged(
        {setting("a", a): each.with_neurons() for a, each in superposed.items()}, data, (1,)
    )
    means = {setting("a", a): each.with_neurons(a=a, estimator="mean_field") for a, each in superposed.items()}
    found["mean field"] = _judged(means, data, (1,))
    x = data["validation"][0][:500]
    found["uncertainty"] = {name: float(network.uncertainty(x)) for name, network in trained.items()}
    ensemble = NaturalStack([classical, *others])
    controls = {"ensemble": {part: _ensemble_error(ensemble, data[part]) for part in PARTS}}
    for activation, rates in (("tanh", (0.0, *settings.dropout)), ("signs", settings.dropout)):
        for rate in rates:
            network = _plain_network(sizes, activation, rate, seed)
            heal(network, data["train"], scheduler="cosine", **run)
            controls[f"{activation}, dropout {rate:g}" if rate else activation] = {
                part: 1 - accuracy(network, *data[part]) for part in PARTS
            }
    return {**found, "controls": controls}


def _coupling(noise: Sequence[float]) -> float:
    """Noise acts as an ancilla that tells as little."""
    return math.asin(kept(noise))


def with_noise(a: float, noise: Sequence[float]) -> str:
    """How a quantumness with noise is called in results."""
    return f"{setting('a', a)}, noise {noise[0]:g} {noise[1]:g}"


def _judged(
    networks: Mapping[str, NaturalMLP], data: Mapping[str, Part], shots: Sequence[int], parts: Sequence[str] = PARTS
) -> dict[str, dict[str, dict[str, float]]]:
    """Errors by part, shots and name."""
    each = list(networks.values())
    return {
        part: {
            str(count): dict(zip(networks, errors_together(each, *data[part], shots=count).tolist(), strict=True))
            for count in shots
        }
        for part in parts
    }


@torch.no_grad()
def _ensemble_error(stack: NaturalStack, part: Part) -> float:
    x, y = part
    return float((stack(x, 1).logsumexp(0).argmax(-1) != y).float().mean())


def _plain_network(sizes: Sequence[int], activation: str, dropout: float, seed: int) -> nn.Module:
    """Of tanh or signs, and dropout, from the weights that the others start from."""
    start = NaturalMLP(sizes, seed=seed)
    first, *others = start.layers
    parts: list[nn.Module] = [first]
    for layer in others:
        parts.append(nn.Tanh() if activation == "tanh" else RotationNeuron(0))
        parts += [*([nn.Dropout(dropout)] if dropout else []), layer]
    return nn.Sequential(*parts)


def run_bits(request: Request, seed: int) -> dict[str, Any]:
    """Neurons of several qubits."""
    settings: Settings = request.settings
    data = _subset(request, seed)
    sizes = (data["train"][0].shape[1], *settings.hidden, 10)
    run: dict[str, Any] = {
        "epochs": settings.epochs,
        "lr": settings.lr,
        "batch_size": settings.batch_size,
        "seed": seed,
    }
    found = {}
    for bits in settings.bits:
        networks = {setting("a", a): NaturalMLP(sizes, a=a, bits=bits, seed=seed) for a in settings.bits_a}
        train_together(list(networks.values()), data["train"], scheduler="cosine", **run)
        found[str(bits)] = _judged(networks, data, settings.shots, ("validation",))
    return found


def run_transition(request: Request, depth: int, width: int) -> dict[str, Any]:
    """Errors on digits against the entangling angle: by shots, then by angle, one a seed."""
    settings: Settings = request.settings
    data = load_dataset("digits", seed=0)
    sizes = (64, *[width] * depth, 10)
    seeds = range(settings.transition_seeds)
    networks = [NaturalMLP(sizes, g=g * FULL, seed=seed) for g in settings.transition_g for seed in seeds]
    run: dict[str, Any] = {"epochs": settings.epochs, "lr": settings.lr, "batch_size": settings.batch_size, "seed": 0}
    train_together(networks, data.train, scheduler="cosine", **run)
    return {
        str(shots): errors_together(networks, *data.validation, shots=shots).reshape(-1, len(seeds)).tolist()
        for shots in settings.transition_shots
    }


def run_joints(request: Request, name: str, seed: int) -> dict[str, Any]:
    """A layer of circuits around an operator, with something between their segments, and a linear head: test errors."""
    settings: Settings = request.settings
    if name == "digits":
        data = load_dataset("digits", seed=seed)
        train, epochs, qubits = data.train, settings.joint_epochs[0], 6
    else:
        data = request.load("mnist", seed=0, size=16)
        rows = torch.randperm(len(data.train[1]), generator=stream(seed, "joints"))[: settings.joint_images]
        train, epochs, qubits = (data.train[0][rows], data.train[1][rows]), settings.joint_epochs[1], 8
    legs, size = (2,) * qubits, 2**qubits
    found = {}
    for joint, text in JOINTS.items():
        circuit = f"2b+2b {text} 2b+2b"
        layers = (
            TensorLayer(legs, legs, 4, circuit, circuit, norm=False, relu=False),
            TensorLayer((size,), (10,), 1, norm=False, relu=False),
        )
        network = Architecture(layers).build(seed, "near_identity")
        heal(
            network,
            train,
            epochs=epochs,
            lr=settings.joint_lr,
            batch_size=settings.joint_batch_size,
            seed=seed,
        )
        found[joint] = {str(shots): _sampled_error(network, data.test, shots, seed) for shots in settings.shots}
    return found


@torch.no_grad()
def _sampled_error(network: nn.Module, part: Part, shots: int, seed: int) -> float:
    """Of the softmax averaged over so many passes; networks draw from torch's own generator."""
    x, y = part
    with keeping_modes(network), isolated(seed, "joints"):
        network.eval()
        logs = torch.stack([torch.cat([network(rows) for rows in x.split(2048)]).log_softmax(-1) for _ in range(shots)])
    return float((logs.logsumexp(0).argmax(-1) != y).float().mean())


def run_full(request: Request, seed: int) -> dict[str, Any]:
    """All of MNIST's training file."""
    settings: Settings = request.settings
    data = request.load("mnist", seed=0)
    parts = {part: (pixels(getattr(data, part)[0]), getattr(data, part)[1]) for part in ("train", *PARTS)}
    sizes = (parts["train"][0].shape[1], *settings.hidden, 10)
    networks = {setting("a", a): NaturalMLP(sizes, a=a, seed=seed) for a in settings.full_a}
    networks[setting("g", settings.full_g)] = NaturalMLP(sizes, g=settings.full_g * FULL, seed=seed)
    run: dict[str, Any] = {
        "epochs": settings.full_epochs,
        "lr": settings.lr,
        "batch_size": 2 * settings.batch_size,
        "seed": seed,
    }
    train_together(list(networks.values()), parts["train"], scheduler="cosine", **run)
    network = _plain_network(sizes, "tanh", 0.0, seed)
    heal(network, parts["train"], scheduler="cosine", **run)
    tanh = {part: 1 - accuracy(network, *parts[part]) for part in PARTS}
    return {"trained": _judged(networks, parts, settings.shots), "tanh": tanh}
