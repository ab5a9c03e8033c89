"""The law of a small network by enumeration: every outcome of every neuron, with its probability.

The slow and obvious twin of sampling. A network of N hidden qubits takes 2^N passes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from unbraid.circuits.neurons import Neuron
from unbraid.ground.errors import InvalidInputError
from unbraid.natural.network import NaturalMLP, check_rows

LARGEST = 16  # qubits


def outcome_law(network: NaturalMLP, x: Tensor) -> tuple[Tensor, Tensor]:
    """All ways that a shot can end, differentiable.

    Args:
        network: of at most 16 hidden qubits.
        x: shape (samples, inputs).

    Returns:
        Probabilities, shape (2^N, samples), summing to 1; and the last layer's numbers, shape (2^N, samples, classes).
        The first neuron of the first layer is the most significant digit of the row, and lower levels come first.

    Raises:
        InvalidInputError: if the network is too large, or ``x`` does not fit it.
    """
    check_rows(network, x)
    qubits = network.bits * sum(network.sizes[1:-1])
    if qubits > LARGEST:
        raise InvalidInputError(
            f"Enumeration takes 2^N passes and is for at most {LARGEST} hidden qubits; got {qubits}. Sample instead."
        )
    first, *others = network.layers
    z = first(x)[None]
    chance = torch.ones_like(z[..., 0])
    for neuron, layer in zip(network.neurons, others, strict=True):
        assert isinstance(neuron, Neuron)
        chances, levels = neuron.distribution(z)  # (levels, before, samples, n)
        which = torch.cartesian_prod(*[torch.arange(len(levels), device=z.device)] * z.shape[-1])
        which = which.reshape(-1, z.shape[-1])  # (patterns, n)
        each = torch.stack([chances[column, ..., k] for k, column in enumerate(which.mT)], -1)
        chance = (chance * each.prod(-1)).transpose(0, 1).flatten(0, 1)  # (before, patterns) as rows
        told = layer(levels[which])[:, None].expand(-1, x.shape[0], -1)
        z = told.repeat(len(z), 1, 1)
    return chance, z


def exact_probabilities(network: NaturalMLP, x: Tensor) -> Tensor:
    """The softmax averaged over all outcomes, shape (samples, classes): what infinitely many shots give."""
    chance, z = outcome_law(network, x)
    return (chance[..., None] * z.softmax(-1)).sum(0)


def exact_loss(network: NaturalMLP, x: Tensor, y: Tensor) -> Tensor:
    """The mean cross entropy of single shots, averaged over all outcomes; its gradient is the exact one."""
    check_rows(network, x, y)
    chance, z = outcome_law(network, x)
    losses = cross_entropy(z.flatten(0, 1), y.repeat(len(z)), reduction="none").reshape(chance.shape)
    return (chance * losses).sum(0).mean()
