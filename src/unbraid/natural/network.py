"""``NaturalMLP``: a perceptron whose hidden neurons are qubits that are measured."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from unbraid.circuits.neuron_laws import ANCILLAS, Ancilla, Law, signs
from unbraid.circuits.neurons import Estimator, Neuron, RotationNeuron, WeakMeasurement, straight_through
from unbraid.ground.errors import InvalidInputError, require_choice
from unbraid.ground.random import isolated, stream


class BinaryLinear(nn.Linear):
    """A linear layer whose weights are +1 or -1 times the mean magnitude of their row; biases are real.

    Gradients go to the real weights behind them where those are between -1 and 1.

    Source:
        Signs with straight-through gradients: Courbariaux et al., arXiv:1602.02830; the factor of a row: Rastegari et
        al., arXiv:1603.05279.
    """

    def binary(self) -> Tensor:
        """The weights that are used, shape (out, in), differentiable."""
        return binarized(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (..., in) to (..., out)."""
        return functional.linear(x, self.binary(), self.bias)


def binarized(weight: Tensor) -> Tensor:
    """Signs times the mean magnitude of their row, shape (..., out, in), differentiable."""
    return straight_through(weight, signs(weight.detach())) * weight.abs().mean(-1, keepdim=True)


def averaged(z: Tensor, shots: int) -> Tensor:
    """Numbers of all shots, which the dimension ``shots`` counts, to logarithms of their averaged softmax."""
    logs = z.log_softmax(-1)
    count = z.shape[shots]
    return logs.squeeze(shots) if count == 1 else logs.logsumexp(shots) - math.log(count)


class NaturalMLP(nn.Module):
    """Linear layers with measured neurons between them.

    Each hidden layer gets the outcomes of the one before; the last layer's numbers go through a softmax, which is
    averaged over shots. One shot costs one classical pass: neurons are never entangled with each other, so this is a
    classical stochastic network, and a computer samples it as cheaply as a quantum one.

    Args:
        sizes: inputs, hidden widths, classes.
        a: quantumness of the rotations, 0 or more.
        g: entangling angle of ancillas that are measured in the qubits' place; None to measure the qubits.
        law: of the rotation's angle.
        ancilla: "symmetric" or "asymmetric".
        bits: qubits of a neuron, which then has 2^bits levels from -1 to 1; 1 where ancillas are measured.
        estimator: how gradients pass, see :mod:`unbraid.circuits.neurons`.
        shots: passes whose softmax is averaged.
        binary: whether weights are signs (:class:`BinaryLinear`).
        seed: of the weights, and of the outcomes where there is no generator.
        generator: of the outcomes of all layers.

    Raises:
        InvalidInputError: if sizes, shots or an option make no sense.

    Source:
        arXiv:2503.15482; what is assumed says :mod:`unbraid.circuits.neuron_laws`.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        a: float = 0.0,
        g: float | None = None,
        law: Law = "linear",
        ancilla: Ancilla = "symmetric",
        bits: int = 1,
        estimator: Estimator = "ste",
        shots: int = 1,
        binary: bool = False,
        seed: int = 0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.sizes = _checked_sizes(sizes)
        self.shots = check_shots(shots)
        kind = BinaryLinear if binary else nn.Linear
        with isolated(seed, "natural"):
            self.layers = nn.ModuleList([kind(a, b) for a, b in zip(self.sizes[:-1], self.sizes[1:], strict=True)])
        generator = stream(seed, "outcomes") if generator is None else generator
        self.neurons = nn.ModuleList(
            [_neuron(a, g, law, ancilla, bits, estimator, generator) for _ in self.sizes[1:-1]]
        )

    @property
    def generator(self) -> torch.Generator | None:
        """Of the outcomes."""
        return self.neurons[0].generator  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        """Logarithms of the averaged softmax, (..., inputs) to (..., classes): a cross entropy takes them as scores.

        Raises:
            InvalidInputError: if it is to be trained so with the estimator "score", past which no gradient goes.
        """
        if self.estimator == "score" and self.training and torch.is_grad_enabled():
            raise InvalidInputError(
                "With estimator='score' no gradient passes the neurons: train with loss=lambda network, batch: "
                "unbraid.natural.score_loss(network, *batch)."
            )
        return averaged(self.each_shot(x, self.shots), 0)

    def each_shot(self, x: Tensor, shots: int) -> Tensor:
        """The last layer's numbers, shape (shots, ..., classes); with "mean_field" of one shot, since all are alike."""
        first, *others = self.layers
        z = first(x)
        z = z.expand(1 if self.estimator == "mean_field" else shots, *z.shape)
        for neuron, layer in zip(self.neurons, others, strict=True):
            z = layer(neuron(z))
        return z

    @property
    def estimator(self) -> Estimator:
        """How gradients pass."""
        return self.neurons[0].estimator  # type: ignore[return-value]

    @property
    def bits(self) -> int:
        """Qubits of a neuron."""
        return self.neurons[0].bits  # type: ignore[return-value]

    @torch.no_grad()
    def uncertainty(self, x: Tensor) -> Tensor:
        """Mean of ``1 - m^2`` over neurons, samples and shots: how quantum it is, at any scale of its weights."""
        found: list[Tensor] = []

        def see(neuron: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            assert isinstance(neuron, Neuron)
            found.append(neuron.uncertainty(inputs[0]).flatten())

        hooks = [neuron.register_forward_hook(see) for neuron in self.neurons]
        try:
            self.each_shot(x, self.shots)
        finally:
            for hook in hooks:
                hook.remove()
        return torch.cat(found).mean()

    def with_neurons(
        self,
        *,
        a: float = 0.0,
        g: float | None = None,
        law: Law | None = None,
        ancilla: Ancilla | None = None,
        bits: int | None = None,
        estimator: Estimator = "ste",
        shots: int = 1,
        seed: int = 0,
    ) -> NaturalMLP:
        """A copy with the same weights and other neurons: how a trained network does in another regime.

        By default that is the classical limit with one shot; law, ancilla and bits are those that it has.
        """
        other = copy.deepcopy(self)
        other.shots = check_shots(shots)
        generator = stream(seed, "outcomes")
        first = self.neurons[0]
        assert isinstance(first, Neuron)
        law, ancilla, bits = law or first.law, ancilla or first.ancilla, bits or first.bits
        other.neurons = nn.ModuleList([_neuron(a, g, law, ancilla, bits, estimator, generator) for _ in self.neurons])
        return other

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return f"sizes={self.sizes}, shots={self.shots}"


def _neuron(
    a: float,
    g: float | None,
    law: Law,
    ancilla: Ancilla,
    bits: int,
    estimator: Estimator,
    generator: torch.Generator,
) -> Neuron:
    require_choice(ancilla, ANCILLAS, "ancilla")
    if g is None:
        return RotationNeuron(a, law=law, bits=bits, estimator=estimator, generator=generator)
    if bits != 1:
        raise InvalidInputError(
            f"Neurons of several qubits are measured themselves: give bits or g, not both; got {bits!r}."
        )
    return WeakMeasurement(g, a=a, law=law, ancilla=ancilla, estimator=estimator, generator=generator)


def check_network(network: NaturalMLP) -> None:
    """Refuse what is none.

    Raises:
        InvalidInputError: saying what it is.
    """
    if not isinstance(network, NaturalMLP):
        raise InvalidInputError(f"This needs a NaturalMLP; got {type(network).__name__}.")


def check_rows(network: NaturalMLP, x: Tensor, y: Tensor | None = None) -> None:
    """Refuse rows that do not fit a network, or labels that do not fit the rows.

    Raises:
        InvalidInputError: naming the shapes.
    """
    check_network(network)
    if not isinstance(x, Tensor) or x.dim() != 2 or x.shape[1] != network.sizes[0] or not len(x):
        raise InvalidInputError(
            f"x must be a tensor of shape (samples, {network.sizes[0]}), not empty; got {_shape_of(x)}."
        )
    if y is None:
        return
    whole = isinstance(y, Tensor) and not y.is_floating_point() and not y.is_complex() and y.dtype != torch.bool
    if not whole or y.shape != x.shape[:1]:
        raise InvalidInputError(f"y must be class numbers of shape ({len(x)},); got {_shape_of(y)}.")
    if not 0 <= int(y.min()) <= int(y.max()) < network.sizes[-1]:
        raise InvalidInputError(
            f"Class numbers of this network go from 0 to {network.sizes[-1] - 1}; y goes from {int(y.min())} to "
            f"{int(y.max())}."
        )


def _shape_of(value: object) -> str:
    return f"{tuple(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__


def check_shots(shots: int) -> int:
    """Refuse what is no number of shots.

    Raises:
        InvalidInputError: if it is not a positive integer.
    """
    if isinstance(shots, bool) or not isinstance(shots, int) or shots < 1:
        raise InvalidInputError(f"shots must be a positive integer; got {shots!r}.")
    return shots


def _checked_sizes(sizes: Sequence[int]) -> tuple[int, ...]:
    listed = isinstance(sizes, Sequence) and not isinstance(sizes, str) and len(sizes) >= 3
    if not listed or not all(type(size) is int and size > 0 for size in sizes):
        raise InvalidInputError(
            f"sizes must be positive integers, inputs, at least one hidden width, classes; got {sizes!r}. Try "
            "(196, 64, 64, 10)."
        )
    return tuple(sizes)
