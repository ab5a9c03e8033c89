"""Gradients by the score function: unbiased, whatever the neurons do.

The gradient of an average over outcomes is the average of loss times the slope of the log-probability. Each shot's loss
is taken relative to the mean of the others (a leave-one-out baseline), which changes no average and calms it.

Source:
    Williams, Machine Learning 8, 229 (1992); the baseline: Kool, van Hoof, Welling, "Buy 4 REINFORCE samples, get a
    baseline for free!" (2019).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from unbraid.circuits.neurons import Neuron
from unbraid.ground.errors import InvalidInputError
from unbraid.natural.network import NaturalMLP, check_rows, check_shots


def score_loss(network: NaturalMLP, x: Tensor, y: Tensor, *, shots: int = 8) -> Tensor:
    """The mean cross entropy of single shots, a scalar, with a gradient that is unbiased.

    Args:
        network: whose estimator is "score".
        x: shape (samples, inputs).
        y: class numbers, shape (samples,).
        shots: two or more.

    Raises:
        InvalidInputError: for another estimator, a single shot, or rows and labels that do not fit.
    """
    check_rows(network, x, y)
    if network.estimator != "score":
        raise InvalidInputError(f"score_loss needs estimator='score'; this network has {network.estimator!r}.")
    if check_shots(shots) < 2:
        raise InvalidInputError(f"The baseline is the mean of the other shots: take 2 or more; got {shots}.")
    z = network.each_shot(x, shots)
    losses = cross_entropy(z.flatten(0, 1), y.repeat(shots), reduction="none").reshape(shots, -1)
    log_chance = sum(_log_chance(neuron) for neuron in network.neurons)
    known = losses.detach()
    advantage = known - (known.sum(0) - known) / (shots - 1)
    surrogate = (advantage * log_chance).mean()
    return losses.mean() + surrogate - surrogate.detach()


def _log_chance(neuron: nn.Module) -> Tensor:
    assert isinstance(neuron, Neuron)
    assert neuron.log_probability is not None
    return neuron.log_probability.sum(-1)
