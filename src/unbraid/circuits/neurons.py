"""Neurons as activations: ``z`` goes in, measured outcomes +1 and -1 come out, in training and evaluation alike.

A neuron of several qubits puts out one of 2^bits levels from -1 to 1 instead.

Gradients go around the measurement in one of four ways (``estimator``):

- "ste": as if the outcome were z, where |z| <= 1 (straight through).
- "expected": as if it were its own mean. Where nothing is superposed (a = 0) that has no slope, so it is refused.
- "mean_field": the mean itself is passed on, and nothing is sampled.
- "score": nothing passes; the logarithm of the outcomes' probability is kept, for
  :func:`unbraid.natural.score_loss`.
"""

from __future__ import annotations

import math
from typing import Any, Literal
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from unbraid.circuits.neuron_laws import (
    ANCILLAS,
    Ancilla,
    Law,
    Number,
    check_bits,
    check_coupling,
    check_law,
    check_quantumness,
    digit_weight,
    digits,
    observed,
    polarization,
    register_law,
    register_qubits,
)
from unbraid.ground.errors import InvalidInputError, require_choice

Estimator = Literal["ste", "expected", "mean_field", "score"]
ESTIMATORS = ("ste", "expected", "mean_field", "score")


class Neuron(nn.Module):
    """What both kinds of neurons share; use :class:`RotationNeuron` or :class:`WeakMeasurement`.

    Attributes:
        log_probability: of the last outcomes, shape as they; None unless the estimator is "score".
    """

    def __init__(
        self,
        a: float,
        g: float | None,
        law: Law,
        ancilla: Ancilla,
        readings: int,
        bits: int,
        estimator: Estimator,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        self.a = check_quantumness(a)
        self.bits = check_bits(bits)
        self.g = None if g is None else check_coupling(g)
        check_law(law)
        require_choice(ancilla, ANCILLAS, "ancilla")
        check_estimator(estimator, self.a)
        self.law, self.ancilla, self.readings, self.estimator = law, ancilla, readings, estimator
        self._stream = _shared(generator)
        self.log_probability: Tensor | None = None

    @property
    def generator(self) -> torch.Generator | None:
        """Of the outcomes; neurons that share one still do when they are copied together, or pickled."""
        return None if self._stream is None else self._stream.generator

    def mean(self, z: Tensor) -> Tensor:
        """Of the outcomes, exactly; shape as ``z``."""
        if self.bits > 1:
            chance, levels = self.distribution(z)
            return torch.tensordot(levels, chance, 1)
        return observed(polarization(z, self.a, self.law), self.g, self.ancilla)

    def distribution(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Of the outcomes: probabilities, shape (levels, ...), and levels from -1 up to 1, shape (levels,)."""
        if self.bits > 1:
            return register_law(z, self.a, self.bits, self.law)
        if self.readings > 1 and self.g is not None:
            return self._readings(z)
        m = self.mean(z)
        return torch.stack([1 - m, 1 + m]) / 2, z.new_tensor([-1.0, 1.0])

    def _readings(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Means of several readings: binomial for either outcome of the qubit."""
        m = polarization(z, self.a, self.law)
        total: Tensor | float = 0.0
        for qubit in (-1.0, 1.0):
            p = (1 + observed(torch.full_like(m, qubit), self.g, self.ancilla)) / 2
            each = [
                math.comb(self.readings, k) * p**k * (1 - p) ** (self.readings - k) for k in range(self.readings + 1)
            ]
            total = total + (1 + qubit * m) / 2 * torch.stack(each)
        assert isinstance(total, Tensor)
        return total, torch.linspace(-1, 1, self.readings + 1, dtype=z.dtype, device=z.device)

    def uncertainty(self, z: Tensor) -> Tensor:
        """``1 - m^2`` of the qubit, of several the mean: 0 without superposition, 1 in an equal one.

        Its mean tells how quantum a network is. The quantumness alone does not: with weights that are twice as large,
        twice of it gives the same network.
        """
        qubits = register_qubits(z, self.a, self.bits, self.law)
        return sum(((chance * (1 - m.square())).sum(0) for chance, m in qubits), torch.zeros_like(z)) / self.bits

    def forward(self, z: Tensor) -> Tensor:
        """Outcomes, or with "mean_field" their mean; shape as ``z``."""
        if self.bits > 1:
            return self._digits(z)
        mean = self.mean(z)
        if self.estimator == "mean_field":
            return mean
        outcome = self._sampled(z, mean)
        if self.estimator == "ste":
            return straight_through(z, outcome)
        if self.estimator == "expected":
            return passed_through(mean, outcome)
        self.log_probability = torch.log((1 + outcome * mean) / 2)
        return outcome

    def _digits(self, z: Tensor) -> Tensor:
        if self.estimator == "mean_field":
            return self.mean(z)
        uniform = uniforms(z, self.bits, self.generator)
        scored = self.estimator == "score"  # else nothing needs the slopes of probabilities
        value, log_probability = register_outcomes(z if scored else z.detach(), self.a, uniform, self.law)
        if self.estimator == "ste":
            return straight_through(z, value)
        if self.estimator == "expected":
            return passed_through(self.mean(z), value)
        self.log_probability = log_probability
        return value

    def _sampled(self, z: Tensor, mean: Tensor) -> Tensor:
        if self.readings == 1 or self.g is None:
            return drawn(mean, self.generator)
        qubit = drawn(polarization(z, self.a, self.law), self.generator)  # each reading has the same cause
        each = observed(qubit, self.g, self.ancilla)
        return torch.stack([drawn(each, self.generator) for _ in range(self.readings)]).mean(0)

    def get_extra_state(self) -> Tensor:
        """The generator's state: a training that is taken up again goes on with the outcomes that it would have had."""
        return state_of(self.generator)

    def set_extra_state(self, state: Tensor) -> None:
        """Set the generator's state."""
        set_state(self.generator, state)

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, strict: bool, missing_keys: list[str], *others: Any
    ) -> None:
        """A state without that of a generator, as of a network with other activations, leaves the generator alone."""
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, *others)
        key = f"{prefix}_extra_state"
        if key in missing_keys:
            missing_keys.remove(key)

    def __getstate__(self) -> dict[str, Any]:
        """What the last outcomes were like is not copied."""
        return self.__dict__ | {"log_probability": None}


class RotationNeuron(Neuron):
    """A qubit that is rotated and measured.

    Args:
        a: quantumness, 0 or more; 0 is the sign.
        law: of the angle, see :func:`unbraid.circuits.neuron_laws.angle`.
        bits: qubits of each neuron: its value is one of 2^bits levels from -1 to 1, see
            :func:`unbraid.circuits.neuron_laws.register_law`.
        estimator: how gradients pass, see :mod:`unbraid.circuits.neurons`.
        generator: of the outcomes; None for torch's own.

    Raises:
        InvalidInputError: if an argument is out of range, or an estimator has no slope because a is 0.

    Source:
        The first model of arXiv:2503.15482; the law is assumed, and so are several qubits.
    """

    def __init__(
        self,
        a: float,
        *,
        law: Law = "linear",
        bits: int = 1,
        estimator: Estimator = "ste",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(a, None, law, "symmetric", 1, bits, estimator, generator)

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return f"a={self.a:g}, law={self.law!r}, bits={self.bits}, estimator={self.estimator!r}"


class WeakMeasurement(Neuron):
    """A qubit that is rotated, and an ancilla that is coupled to it and measured in its place.

    Args:
        g: entangling angle, above 0; pi/2 is a full measurement.
        a: quantumness of the rotation.
        law: of the angle, see :func:`unbraid.circuits.neuron_laws.angle`.
        ancilla: "symmetric" or "asymmetric", see :func:`unbraid.circuits.neuron_laws.observed`.
        readings: ancillas one after another, without a reset of the qubit between; the output is their mean. Each acts
            back on the qubit (:func:`unbraid.circuits.neuron_laws.back_action`), so all of them ask the same question.
        estimator: how gradients pass, see :mod:`unbraid.circuits.neurons`.
        generator: of the outcomes; None for torch's own.

    Raises:
        InvalidInputError: if an argument is out of range, an estimator has no slope because a is 0, or "score" is
            asked for with several readings.

    Source:
        The second model of arXiv:2503.15482; gates of the ancilla are assumed.
    """

    def __init__(
        self,
        g: float,
        *,
        a: float = 0.0,
        law: Law = "linear",
        ancilla: Ancilla = "symmetric",
        readings: int = 1,
        estimator: Estimator = "ste",
        generator: torch.Generator | None = None,
    ) -> None:
        if isinstance(readings, bool) or not isinstance(readings, int) or readings < 1:
            raise InvalidInputError(f"readings must be a positive integer; got {readings!r}.")
        if readings > 1 and estimator == "score":
            raise InvalidInputError("The estimator 'score' goes with one reading; try 'expected'.")
        super().__init__(a, check_coupling(g), law, ancilla, readings, 1, estimator, generator)

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        told = f"g={self.g:g}, a={self.a:g}, law={self.law!r}, ancilla={self.ancilla!r}"
        return f"{told}, readings={self.readings}, estimator={self.estimator!r}"


def check_estimator(estimator: str, a: float) -> None:
    """Refuse an estimator that is unknown, or that nothing passes through.

    Raises:
        InvalidInputError: saying which.
    """
    require_choice(estimator, ESTIMATORS, "estimator")
    if estimator in ("expected", "score", "mean_field") and a == 0:
        raise InvalidInputError(
            f"The estimator {estimator!r} follows the slope of the outcomes' mean, which is a step at a = 0. Take "
            "a > 0, or the estimator 'ste'."
        )


class _Stream:
    """A generator, which cannot be copied as it is: a copy has one in the same state."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def __reduce__(self) -> tuple[Any, ...]:
        return _stream_in, (str(self.generator.device), self.generator.get_state())


_STREAMS: WeakValueDictionary[int, _Stream] = WeakValueDictionary()


def _shared(generator: torch.Generator | None) -> _Stream | None:
    """One object a generator."""
    if generator is None:
        return None
    if not isinstance(generator, torch.Generator):
        raise InvalidInputError(f"generator must be a torch.Generator or None; got {type(generator).__name__}.")
    found = _STREAMS.get(id(generator))
    if found is None:
        found = _STREAMS[id(generator)] = _Stream(generator)
    return found


def _stream_in(device: str, state: Tensor) -> _Stream:
    generator = torch.Generator(device=device)
    generator.set_state(state)
    found = _shared(generator)
    assert found is not None
    return found


def state_of(generator: torch.Generator | None) -> Tensor:
    """Of a generator, uint8; empty without one."""
    return torch.empty(0, dtype=torch.uint8) if generator is None else generator.get_state()


def set_state(generator: torch.Generator | None, state: Tensor) -> None:
    """Set the state of a generator, if there is one, and it is one."""
    if generator is not None and state.numel():
        generator.set_state(state.cpu().clone())  # torch crashes on a part of a tensor


def drawn(mean: Tensor, generator: torch.Generator | None) -> Tensor:
    """Outcomes +1 and -1 of these means, without gradients."""
    return outcomes((1 + mean.detach()) / 2, uniforms(mean, 1, generator)[0])


def uniforms(z: Tensor, bits: int, generator: torch.Generator | None) -> Tensor:
    """One number from [0, 1) a qubit, shape (bits, ...)."""
    device = z.device if generator is None else generator.device
    return torch.rand((bits, *z.shape), generator=generator, dtype=z.dtype, device=device).to(z.device)


def register_outcomes(z: Tensor, a: Number, uniform: Tensor, law: Law) -> tuple[Tensor, Tensor]:
    """Levels of registers, without gradients, and the logarithms of their probabilities.

    Args:
        z: inputs, any shape.
        a: quantumness, or a tensor of several that broadcasts.
        uniform: of :func:`uniforms`, shape (bits, ...).
        law: of the angles.
    """
    left, value, log_probability = z, torch.zeros_like(z), torch.zeros_like(z)
    bits = len(uniform)
    for digit, numbers in zip(digits(bits), uniform, strict=True):
        weight = digit_weight(digit, bits)
        m = polarization(left / weight, a, law)
        outcome = outcomes((1 + m.detach()) / 2, numbers.clone())
        log_probability = log_probability + torch.log((1 + outcome * m) / 2)
        value, left = value + weight * outcome, left - weight * outcome
    return value.detach(), log_probability


def outcomes(chance: Tensor, uniform: Tensor) -> Tensor:
    """+1 where a uniform number from [0, 1) is below this probability, else -1; written over ``uniform``.

    In place it takes a fraction of the time: memory that the system hands out anew costs more than what is done in it.
    """
    if torch._C._are_functorch_transforms_active():  # which write to no tensor of their own
        return (uniform < chance).to(chance.dtype) * 2 - 1 + 0 * chance
    return torch.lt(uniform, chance, out=uniform).mul_(2).sub_(1).add_(chance, alpha=0)  # NaN stays NaN


class _StraightThrough(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (z,) = ctx.saved_tensors
        return gradients[0] * (z.abs() <= 1), None


def straight_through(z: Tensor, value: Tensor) -> Tensor:
    """``value``, to the bit, whose gradient goes to ``z`` where that is between -1 and 1."""
    result: Tensor = _StraightThrough.apply(z, value)
    return result


class _PassedThrough(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(through: Tensor, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def passed_through(through: Tensor, value: Tensor) -> Tensor:
    """``value``, to the bit, whose gradient goes to ``through``."""
    result: Tensor = _PassedThrough.apply(through, value)
    return result
