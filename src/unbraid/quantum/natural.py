"""Networks of natural neurons as dynamic circuits: measure a layer, feed forward, use the qubits again.

Three forms:

- "parallel": one qubit a neuron (and its ancilla beside it); a layer's outcomes choose the angles of the next by a
  switch with a case for each pattern, 2^n of them.
- "sequential": the same on one qubit (and one ancilla), which is reset after each neuron.
- "layers": for wider layers. Each layer is circuits of its own, of at most eight neurons; the host works out the angles
  from the outcomes before. Shots with the same outcomes share circuits.

The last layer is classical: its softmax is averaged over the patterns of the last hidden layer that were seen.

A neuron of several qubits has them side by side in both forms. Its most significant qubit is rotated first, each other
by an angle that depends on those before it: RY with several controls, of RY and CNOT (Mottonen et al.,
arXiv:quant-ph/0407010).

Legend: bit k of a register is neuron k of its layer; 1 is the outcome +1. Of B qubits a neuron, bits kB to kB + B - 1
are its digits, the least significant first.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import ClassicalRegister, ParameterExpression, ParameterVector, QuantumRegister, Qubit
from qiskit.transpiler import TranspilerError
from torch import Tensor, nn

from unbraid.circuits.neuron_laws import FULL, angle, digit_weight, digits
from unbraid.circuits.neurons import Neuron
from unbraid.ground.errors import InvalidInputError, require_choice, require_finite
from unbraid.ground.manifest import hash_tensors
from unbraid.ground.random import stream
from unbraid.natural import BinaryLinear, NaturalMLP
from unbraid.natural.network import averaged, check_network, check_rows, check_shots
from unbraid.quantum.execute import TorchExecutor
from unbraid.quantum.samplers import SamplerExecutor

Form = Literal["parallel", "sequential", "layers"]
FORMS = ("parallel", "sequential", "layers")
WIDEST = 8  # a register that a switch is over, or that one circuit of a wide layer measures


@dataclass(frozen=True)
class NaturalExecution:
    """What came back, and what it took.

    Attributes:
        logs: logarithms of the averaged softmax, shape (samples, classes).
        counts: how often each pattern of the last hidden layer's n qubits was seen, shape (samples, 2^n); None where
            circuits are of single layers, or there are none.
        circuits: that were run.
        shots: in all; of the form "layers" each circuit's count.
        qubits: of the widest circuit.
        job_ids: of the sampler's jobs; empty for torch.
        seconds: wall-clock time.
    """

    logs: Tensor
    counts: Tensor | None
    circuits: int
    shots: int
    qubits: int
    job_ids: tuple[str, ...]
    seconds: float


def natural_circuit(network: NaturalMLP, *, form: Form = "parallel") -> QuantumCircuit:
    """The hidden layers as one dynamic circuit; the angles of the first are the parameters ``input``.

    Registers ``layer0``, ``layer1``, ... hold the outcomes of all hidden layers but the last, ``meas`` those of that.

    Args:
        network: of hidden layers of at most eight qubits, whose outcomes are sampled.
        form: "parallel" or "sequential".

    Raises:
        InvalidInputError: if a layer is too wide, the form is "layers" or unknown, or the network passes means.
    """
    require_choice(form, ("parallel", "sequential"), "form")
    _check(network)
    bits = network.bits
    widths = [bits * width for width in network.sizes[1:-1]]
    if max(widths) > WIDEST:
        raise InvalidInputError(
            f"A register of n qubits has 2^n outcomes to switch over or to count: a circuit takes layers of at most "
            f"{WIDEST} qubits; this network has one of {max(widths)}. Take run_natural(..., form='layers')."
        )
    weak = network.neurons[0].g is not None
    places = max(widths) if form == "parallel" else bits
    neurons = QuantumRegister(places, "neuron")
    ancillas = QuantumRegister(places if weak else 0, "ancilla")
    names = [f"layer{k}" for k in range(len(widths) - 1)] + ["meas"]
    outcomes = [ClassicalRegister(width, name) for width, name in zip(widths, names, strict=True)]
    circuit = QuantumCircuit(neurons, *([ancillas] if weak else []), *outcomes)
    first = ParameterVector("input", network.sizes[1] * (2**bits - 1))
    last = len(outcomes) - 1
    _add_layer(circuit, network, form, list(first), None, outcomes[0], last=last == 0)
    for k, register in enumerate(outcomes[1:]):
        angles = _angles_by_pattern(network, k + 1)
        _add_layer(circuit, network, form, angles, outcomes[k], register, last=k + 1 == last)
    return circuit


Angles = Sequence[float | ParameterExpression]


def _add_layer(
    circuit: QuantumCircuit,
    network: NaturalMLP,
    form: str,
    angles: Angles | np.ndarray,
    before: ClassicalRegister | None,
    register: ClassicalRegister,
    *,
    last: bool,
) -> None:
    """Rotate, couple and measure one layer; ``angles`` of all patterns of the layer before, if there is one.

    Qubits are reset where they are used again: not behind the last neurons of the last layer.
    """
    neuron, bits = network.neurons[0], network.bits
    neurons, ancillas = circuit.qregs[0], circuit.qregs[1] if len(circuit.qregs) > 1 else None
    width = len(register) // bits
    groups = [range(width)] if form == "parallel" else [range(k, k + 1) for k in range(width)]
    for group in groups:
        if before is None:
            _rotate(circuit, neurons, group, bits, angles)  # type: ignore[arg-type]
        else:
            with circuit.switch(before) as case:
                for pattern in range(2 ** len(before)):
                    with case(pattern):
                        _rotate(circuit, neurons, group, bits, angles[pattern].tolist())  # type: ignore[union-attr]
        for place, k in enumerate(range(group[0] * bits, (group[-1] + 1) * bits)):
            if ancillas is not None:
                if neuron.ancilla == "symmetric":
                    circuit.ry(FULL - neuron.g, ancillas[place])  # type: ignore[operator]
                circuit.cry(2 * neuron.g, neurons[place], ancillas[place])  # type: ignore[operator]
                circuit.measure(ancillas[place], register[k])
            else:
                circuit.measure(neurons[place], register[k])
            if not last or group != groups[-1]:
                circuit.reset(neurons[place])
                if ancillas is not None:
                    circuit.reset(ancillas[place])


def _rotate(circuit: QuantumCircuit, qubits: QuantumRegister, group: range, bits: int, angles: Angles) -> None:
    """Rotate the qubits of some neurons, from the first qubit on; ``angles`` of all neurons as :func:`_angles`."""
    each = 2**bits - 1
    for place, k in enumerate(group):
        own = qubits[place * bits : (place + 1) * bits]
        start = k * each
        for digit in range(bits - 1, -1, -1):
            count = 2 ** (bits - 1 - digit)
            _multiplexed(circuit, own[digit], own[digit + 1 :], angles[start : start + count])
            start += count


def _multiplexed(circuit: QuantumCircuit, target: Qubit, controls: Sequence[Qubit], angles: Angles) -> None:
    """RY with controls, whose angles were transformed by :func:`_transformed`."""
    if not controls:
        circuit.ry(angles[0], target)
        return
    half = len(angles) // 2
    for part in (angles[:half], angles[half:]):
        _multiplexed(circuit, target, controls[:-1], part)
        circuit.cx(controls[-1], target)


def _transformed(angles: np.ndarray) -> np.ndarray:
    """Angles by the controls' number, on the last axis, to those of the single rotations: half sums and differences."""
    if angles.shape[-1] == 1:
        return angles
    low, high = np.split(angles, 2, axis=-1)
    return np.concatenate([_transformed((low + high) / 2), _transformed((low - high) / 2)], axis=-1)


def _angles_by_pattern(network: NaturalMLP, layer: int) -> np.ndarray:
    """Of the neurons of a hidden layer, for all patterns of the qubits of the one before."""
    width, bits = network.sizes[layer], network.bits
    return _angles(network, layer, _outcomes_of(torch.arange(2 ** (width * bits)), width, bits))


@torch.no_grad()
def _angles(network: NaturalMLP, layer: int, x: Tensor) -> np.ndarray:
    """Of the rotations of a hidden layer, for what it gets, shape (rows, neurons * (2^bits - 1)), float64.

    Of a neuron's digits the most significant comes first; of one digit angles come as :func:`_multiplexed` takes them.
    """
    linear, neuron = network.layers[layer], network.neurons[layer]
    assert isinstance(neuron, Neuron)
    z = linear(x.to(next(network.parameters())))
    left, found = z[..., None], []
    for digit in digits(neuron.bits):
        weight = digit_weight(digit, neuron.bits)
        found.append(_transformed(angle(left / weight, neuron.a, neuron.law).double().cpu().numpy()))
        left = torch.stack([left + weight, left - weight], -1).flatten(-2)
    return np.concatenate(found, -1).reshape(len(x), -1)


def _outcomes_of(numbers: Tensor, width: int, bits: int) -> Tensor:
    """Numbers of a register as what the neurons put out, shape (rows, width)."""
    outcomes = (2 * ((numbers[:, None] >> torch.arange(width * bits)) & 1) - 1).double()
    weights = torch.tensor([digit_weight(digit, bits) for digit in range(bits)], dtype=torch.float64)
    return outcomes.reshape(len(numbers), width, bits) @ weights


def run_natural(
    network: NaturalMLP,
    x: Tensor,
    executor: SamplerExecutor | TorchExecutor,
    *,
    shots: int | None = None,
    form: Form = "parallel",
    generator: torch.Generator | None = None,
) -> NaturalExecution:
    """Run a network's hidden layers as circuits, and average its softmax over the shots.

    Args:
        network: whose outcomes are sampled.
        x: shape (samples, inputs). Equal rows share a run.
        executor: of the circuits; :class:`TorchExecutor` samples the same law without circuits, from the network's own
            generator.
        shots: a sample; the network's own by default.
        form: "parallel", "sequential" or "layers".
        generator: seeds the simulators; of "layers" also which shots of a layer's circuits belong together.

    Raises:
        InvalidInputError: if a layer is too wide for the form, ``x`` does not fit, or an option makes no sense.
        ExecutionError: if the sampler fails.
    """
    start = time.perf_counter()
    require_choice(form, FORMS, "form")
    _check(network)
    shots = check_shots(network.shots if shots is None else shots)
    check_rows(network, x)
    if not isinstance(executor, (SamplerExecutor, TorchExecutor)):
        raise InvalidInputError(f"executor must be one of unbraid.quantum, such as AerExecutor(); got {executor!r}.")
    like = next(network.parameters())
    x = x.to(like.device, like.dtype)
    require_finite(x, "x")
    for parameter in network.parameters():
        require_finite(parameter.detach(), "A weight of the network")
    if isinstance(executor, TorchExecutor):
        with torch.no_grad():
            logs = averaged(network.each_shot(x, shots), 0)
        return NaturalExecution(logs, None, 0, shots * len(x), 0, (), time.perf_counter() - start)
    if executor.mitigate_readout or executor.noise_factors != (1,):
        raise InvalidInputError(
            "Readout mitigation and noise factors are for circuits that are measured once, at their end. Give an "
            "executor without them."
        )
    if form == "layers":
        return _by_layers(network, x, executor, shots, generator or stream(0, "natural", "layers"), start)
    circuit = natural_circuit(network, form=form)
    angles = _angles(network, 0, x)
    width = network.sizes[-2] * network.bits
    key = ("natural", form, hash_tensors(*_weights(network)), _told(network))
    try:
        counts, jobs = executor.sample_bound(
            [(circuit, key, row.tolist()) for row in angles], [shots] * len(x), 2**width, generator=generator
        )
    except TranspilerError as error:
        if "switch_case" not in str(error):
            raise
        raise InvalidInputError(
            "This backend cannot choose gates by outcomes (switch_case). Take form='layers', whose circuits are not "
            "dynamic."
        ) from error
    with torch.no_grad():
        patterns = _outcomes_of(torch.arange(2**width), network.sizes[-2], network.bits).to(x)
        z = network.layers[-1](patterns).log_softmax(-1)  # (patterns, classes)
        found = torch.from_numpy(counts).to(x.device)
        logs = (z + (found.to(z) / shots).log()[:, :, None]).logsumexp(1)
    spent = time.perf_counter() - start
    return NaturalExecution(logs, found, len(x), shots * len(x), circuit.num_qubits, jobs, spent)


def _by_layers(
    network: NaturalMLP,
    x: Tensor,
    executor: SamplerExecutor,
    shots: int,
    generator: torch.Generator,
    start: float,
) -> NaturalExecution:
    rows = x.repeat_interleave(shots, 0)  # one a shot
    circuits, spent, qubits, bits = 0, 0, 0, network.bits
    each = 2**bits - 1  # angles of a neuron
    ids: list[str] = []
    for layer, width in enumerate(network.sizes[1:-1]):
        angles = _angles(network, layer, rows)
        found = torch.empty(len(rows), width, dtype=torch.float64)
        for first in range(0, width, WIDEST // bits):
            part = slice(first, min(first + WIDEST // bits, width))
            size = (part.stop - part.start) * bits
            circuit = _layer_circuit(network, part.stop - part.start)
            # shots with the same angles share a circuit, and its outcomes in any order
            distinct, which, times = np.unique(
                angles[:, part.start * each : part.stop * each], axis=0, return_inverse=True, return_counts=True
            )
            programs = [(circuit, ("natural layer", size, _told(network)), row.tolist()) for row in distinct]
            counts, jobs = executor.sample_bound(programs, times.tolist(), 2**size, generator=generator)
            for number, row in enumerate(counts):
                seen = torch.from_numpy(np.repeat(np.arange(2**size), row))
                seen = seen[torch.randperm(len(seen), generator=generator)]
                found[torch.from_numpy(which.reshape(-1) == number), part] = _outcomes_of(seen, size // bits, bits)
            circuits, spent, qubits = circuits + len(programs), spent + len(rows), max(qubits, circuit.num_qubits)
            ids += jobs
        rows = found.to(x)
    with torch.no_grad():
        logs = averaged(network.layers[-1](rows).reshape(len(x), shots, -1), 1)
    return NaturalExecution(logs, None, circuits, spent, qubits, tuple(ids), time.perf_counter() - start)


def _layer_circuit(network: NaturalMLP, width: int) -> QuantumCircuit:
    """Some neurons of a layer, side by side, their angles as parameters."""
    weak = network.neurons[0].g is not None
    qubits, angles = width * network.bits, width * (2**network.bits - 1)
    register = ClassicalRegister(qubits, "meas")
    ancillas = [QuantumRegister(qubits, "ancilla")] if weak else []
    circuit = QuantumCircuit(QuantumRegister(qubits, "neuron"), *ancillas, register)
    _add_layer(circuit, network, "parallel", list(ParameterVector("input", angles)), None, register, last=True)
    return circuit


def _weights(network: NaturalMLP) -> list[Tensor]:
    """As they are used: those of a network of signs are no parameters."""
    found: list[Tensor] = []
    for layer in network.layers:
        assert isinstance(layer, nn.Linear)
        found += [layer.binary() if isinstance(layer, BinaryLinear) else layer.weight, layer.bias]
    return found


def _told(network: NaturalMLP) -> tuple[float | str | int | None, ...]:
    """All that circuits depend on beside weights, to the last digit."""
    neuron = network.neurons[0]
    assert isinstance(neuron, Neuron)
    return neuron.a, neuron.g, neuron.law, neuron.ancilla, neuron.bits


def _check(network: NaturalMLP) -> None:
    check_network(network)
    if network.estimator == "mean_field":
        raise InvalidInputError(
            "With estimator='mean_field' nothing is measured: there is no circuit of it. Take with_neurons(a=..., "
            "estimator='ste')."
        )
