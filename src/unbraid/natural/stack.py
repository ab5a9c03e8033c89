"""Many networks of the same sizes as one: settings and seeds trained side by side, as if one by one.

Weights of all networks stand in one tensor a layer. The first layer is one product, since all networks get the same
rows; the others are batched products. Each network draws its outcomes from its own generator, as it would alone.

Legend: K networks, S shots, n rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, nll_loss

from unbraid.circuits.neuron_laws import FULL, Ancilla, observed, polarization, register_law, signs
from unbraid.circuits.neurons import (
    Neuron,
    outcomes,
    passed_through,
    register_outcomes,
    set_state,
    state_of,
    straight_through,
    uniforms,
)
from unbraid.ground.errors import InvalidInputError
from unbraid.natural.network import BinaryLinear, NaturalMLP, averaged, binarized, check_rows, check_shots
from unbraid.nn import History, heal

_ENTRIES = 2**18  # of a layer in an evaluation, at once: they stay in a core's cache


class NaturalStack(nn.Module):
    """Several networks as one module; its parameters are theirs, stacked.

    Args:
        networks: that differ in weights, quantumness, entangling angle and generators only.

    Raises:
        InvalidInputError: if there are none, they differ in something else, or their estimator is "score".
    """

    def __init__(self, networks: Sequence[NaturalMLP]) -> None:
        super().__init__()
        _check(networks)
        self.networks = list(networks)  # not registered: a list is no module
        first = self.networks[0]
        self.shots, self.estimator = first.shots, first.estimator
        self.binary = isinstance(first.layers[0], BinaryLinear)
        layers = [[network.layers[k] for network in networks] for k in range(len(first.layers))]
        self.weights = nn.ParameterList([_stacked([layer.weight for layer in each]) for each in layers])  # type: ignore[misc]
        self.biases = nn.ParameterList([_stacked([layer.bias for layer in each]) for each in layers])  # type: ignore[misc]
        neurons = [_neuron_of(network) for network in networks]
        self.law, self.bits = neurons[0].law, neurons[0].bits
        self.ancilla: Ancilla = next((each.ancilla for each in neurons if each.g is not None), "symmetric")
        like = self.weights[0]
        self.register_buffer("a", like.new_tensor([each.a for each in neurons])[:, None, None, None], persistent=False)
        self.register_buffer("divisor", torch.where(self.a == 0, 1, self.a), persistent=False)
        classical = torch.tensor([k for k, each in enumerate(neurons) if each.a == 0], dtype=torch.long)
        self.register_buffer("classical", classical.to(like.device), persistent=False)
        couplings = [FULL if each.g is None else each.g for each in neurons]
        self.register_buffer("g", like.new_tensor(couplings)[:, None, None, None], persistent=False)
        bare = torch.tensor([each.g is None or each.g == FULL for each in neurons], device=like.device)
        self.all_bare = bool(bare.all())
        self.register_buffer("bare", bare[:, None, None, None], persistent=False)

    a: Tensor
    divisor: Tensor
    classical: Tensor
    g: Tensor
    bare: Tensor

    def __len__(self) -> int:
        return len(self.networks)

    def forward(self, x: Tensor, shots: int | None = None) -> Tensor:
        """Rows (n, inputs) to logarithms of the averaged softmax, shape (K, n, classes)."""
        shots = 1 if self.estimator == "mean_field" else shots or self.shots
        weights = [binarized(weight) if self.binary else weight for weight in self.weights]
        z = linear(x, weights[0].flatten(0, 1), self.biases[0].flatten())  # (n, K h)
        z = z.view(len(x), len(self), -1).transpose(0, 1).contiguous()[:, None]  # (K, 1, n, h), alike in all shots
        for weight, bias in zip(weights[1:], self.biases[1:], strict=True):
            z = torch.baddbmm(bias[:, None], self._measured(z, shots).flatten(1, 2), weight.mT)
            z = z.unflatten(1, (shots, len(x)))  # (K, S, n, h)
        return averaged(z, 1)

    def _measured(self, z: Tensor, shots: int) -> Tensor:
        """What the neurons of a layer put out, shape (K, S, n, h)."""
        every = z.expand(-1, shots, -1, -1)
        if self.bits > 1:
            return self._registers(every)
        if self.estimator == "ste":
            return straight_through(every, outcomes(self._chances(z), self._uniforms(every)))
        mean = polarization(z, self.a, self.law)
        if not self.all_bare:
            mean = torch.where(self.bare, mean, observed(mean, self.g, self.ancilla))
        if self.estimator == "mean_field":
            return mean
        outcome = outcomes((1 + mean.detach()) / 2, self._uniforms(every))
        return passed_through(mean.expand_as(every), outcome)

    @torch.no_grad()
    def _chances(self, z: Tensor) -> Tensor:
        """Probabilities of +1; the laws' numbers with little new memory, which costs more than what is done in it."""
        chance = (z / self.divisor).clamp_(-1, 1)
        if self.law == "linear":
            chance.mul_(FULL).sin_()
        if len(self.classical):
            chance.index_copy_(0, self.classical, signs(z.index_select(0, self.classical)))
        if not self.all_bare:
            if self.ancilla == "symmetric":
                chance.mul_(torch.sin(self.g))
            else:
                chance = torch.where(self.bare, chance, observed(chance, self.g, self.ancilla))
        return chance.add_(1).mul_(0.5)

    def _uniforms(self, like: Tensor) -> Tensor:
        """Each network's numbers are those that it would draw alone, (S, n, h)."""
        uniform = torch.empty(like.shape, dtype=like.dtype)
        for row, network in zip(uniform, self.networks, strict=True):
            generator = network.generator
            if generator is None or generator.device.type == "cpu":
                torch.rand(row.shape, generator=generator, out=row)
            else:
                row.copy_(torch.rand(row.shape, generator=generator, dtype=row.dtype, device=generator.device))
        return uniform.to(like.device)

    def _registers(self, z: Tensor) -> Tensor:
        """The same of neurons of several qubits."""
        mean = None
        if self.estimator != "ste":
            chance, levels = register_law(z, self.a, self.bits, self.law)
            mean = torch.tensordot(levels, chance, 1)
            if self.estimator == "mean_field":
                return mean
        uniform = torch.stack(
            [uniforms(row, self.bits, network.generator) for row, network in zip(z, self.networks, strict=True)], 1
        )
        value, _ = register_outcomes(z.detach(), self.a, uniform, self.law)
        return straight_through(z, value) if mean is None else passed_through(mean, value)

    def get_extra_state(self) -> Tensor:
        """The generators' states, shape (K, bytes)."""
        return torch.stack([state_of(network.generator) for network in self.networks])

    def set_extra_state(self, state: Tensor) -> None:
        """Set the generators' states."""
        for network, each in zip(self.networks, state, strict=True):
            set_state(network.generator, each)

    def write_back(self) -> None:
        """Give each network its weights."""
        with torch.no_grad():
            for k, (weights, biases) in enumerate(zip(self.weights, self.biases, strict=True)):
                for network, weight, bias in zip(self.networks, weights, biases, strict=True):
                    layer: Any = network.layers[k]
                    layer.weight.copy_(weight)
                    layer.bias.copy_(bias)


def train_together(
    networks: Sequence[NaturalMLP], train_data: tuple[Tensor, Tensor], *, epochs: int, lr: float, **options: Any
) -> History:
    """Train networks in place, as ``ub.heal(network, train_data, ...)`` would each, in a fraction of the time.

    To the same weights, up to rounding, where that is given the cross entropy as ``loss=``; without one it looks first
    whether data fit, which takes outcomes.

    Args:
        networks: that differ in weights, quantumness, entangling angle and generators only.
        train_data: (x, y), for all of them; ``seed`` orders the batches.
        epochs: passes.
        lr: peak learning rate.
        **options: others of :func:`unbraid.heal`, such as ``seed``, ``batch_size``, ``scheduler``.

    Returns:
        The history; its losses are sums over the networks.

    Raises:
        InvalidInputError: as of :class:`NaturalStack` and :func:`unbraid.heal`.
    """
    stack = NaturalStack(networks)
    if options.keys() & {"loss", "teacher"}:
        raise InvalidInputError("A stack is trained by the cross entropy: it takes no loss and no teacher.")
    for name in ("train_data", "validation_data"):
        data = train_data if name == "train_data" else options.get(name)
        if data is None and name == "validation_data":
            continue
        if not isinstance(data, (tuple, list)) or len(data) != 2:
            raise InvalidInputError(f"{name} of a stack must be (x, y); got {type(data).__name__}.")
        check_rows(networks[0], *data)
    if options.get("optimizer") == "soap":
        raise InvalidInputError("SOAP would mix the networks of a stack. Take 'adam', or train them one by one.")
    if options.get("optimizer", "adam") == "adam":
        # fused: one pass over the memory of all weights, where Adam by default takes ten
        decay = options.get("weight_decay", 0.0)
        options["optimizer"] = lambda parameters: torch.optim.Adam(parameters, lr, weight_decay=decay, fused=True)
    history = heal(stack, train_data, epochs=epochs, lr=lr, loss=summed_loss, **options)
    stack.write_back()
    return history


def summed_loss(stack: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The sum of the networks' mean cross entropies: each gets the gradient of its own."""
    x, y = batch
    logs = stack(x)
    return nll_loss(logs.flatten(0, 1), y.repeat(len(logs)), reduction="sum") / len(y)


@torch.no_grad()
def errors_together(networks: Sequence[NaturalMLP], x: Tensor, y: Tensor, *, shots: int | None = None) -> Tensor:
    """The share of wrong rows, shape (K,).

    Args:
        networks: of the same kind.
        x: shape (n, inputs).
        y: class numbers, shape (n,).
        shots: whose softmax is averaged; the networks' own by default.
    """
    stack = NaturalStack(networks)
    shots = check_shots(stack.shots if shots is None else shots)
    check_rows(networks[0], x, y)
    x = x.to(stack.weights[0].dtype)
    wrong = torch.zeros(len(stack), device=x.device)
    size = max(1, _ENTRIES // (len(stack) * max(networks[0].sizes[1:-1]) * shots))
    for rows, labels in zip(x.split(size), y.split(size), strict=True):
        wrong += (stack(rows, shots).argmax(-1) != labels).sum(1)
    return wrong / len(y)


def _neuron_of(network: NaturalMLP) -> Neuron:
    neuron = network.neurons[0]
    assert isinstance(neuron, Neuron)
    return neuron


def _settings_of(neuron: nn.Module) -> tuple[object, ...]:
    assert isinstance(neuron, Neuron)
    return neuron.a, neuron.g, neuron.law, neuron.ancilla, neuron.bits, neuron.estimator


def _stacked(parameters: Sequence[Tensor]) -> nn.Parameter:
    return nn.Parameter(torch.stack([parameter.detach() for parameter in parameters]))


def _check(networks: Sequence[NaturalMLP]) -> None:
    listed = isinstance(networks, (list, tuple)) and len(networks) > 0
    if not listed or not all(isinstance(network, NaturalMLP) for network in networks):
        raise InvalidInputError("Give a list of NaturalMLP, one or more.")
    for network in networks:
        if len({_settings_of(neuron) for neuron in network.neurons}) > 1:
            raise InvalidInputError("The neurons of a network of a stack must be alike in all of its layers.")
        if not all(parameter.requires_grad for parameter in network.parameters()):
            raise InvalidInputError("Networks of a stack are trained as a whole; one has frozen layers.")
    if len({id(network.generator) for network in networks}) < len(networks):
        raise InvalidInputError("Each network needs a generator of its own: give each another seed, or copy it.")
    neurons = [_neuron_of(network) for network in networks]
    alike: dict[str, set[object]] = {
        "sizes": {network.sizes for network in networks},
        "shots": {network.shots for network in networks},
        "binary": {isinstance(network.layers[0], BinaryLinear) for network in networks},
        "precision": {str(next(network.parameters()).dtype) for network in networks},
        "law": {neuron.law for neuron in neurons},
        "bits": {neuron.bits for neuron in neurons},
        "estimator": {neuron.estimator for neuron in neurons},
        "ancilla": {neuron.ancilla for neuron in neurons if neuron.g is not None},
    }
    for name, values in alike.items():
        if len(values) > 1:
            raise InvalidInputError(f"Networks of one stack have the same {name}; got {', '.join(map(str, values))}.")
    if "score" in alike["estimator"]:
        raise InvalidInputError("The estimator 'score' is not trained in a stack; use score_loss network by network.")
