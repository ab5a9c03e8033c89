"""Networks of natural neurons as dynamic circuits: measure a layer, feed forward, use the qubits again.

Three forms:

- "parallel": one qubit a neuron (and its ancilla beside it); a layer's outcomes choose the angles of the next by a
  switch with a case for each pattern, 2^n of them.
- "sequential": the same on one qubit (and one ancilla), which is reset after each neuron.
- "layers": for wider layers. Each layer is circuits of its own, of at most eight neurons; the host works out the angles
  from the outcomes before. Shots with the same outcomes share circuits.

The last layer is classical: its softmax is averaged over the patterns of the last hidden layer that were seen.

Legend: bit k of a register is neuron k of its layer; 1 is the outcome +1.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import ClassicalRegister, ParameterExpression, ParameterVector, QuantumRegister
from torch import Tensor

from unbraid.ground.errors import InvalidInputError, require_choice
from unbraid.ground.manifest import hash_tensors
from unbraid.ground.random import stream
from unbraid.natural import NaturalMLP
from unbraid.natural.laws import FULL, angle
from unbraid.natural.network import averaged, check_shots
from unbraid.natural.neurons import Neuron
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
        counts: how often each pattern of the last hidden layer was seen, shape (samples, 2^n); None where circuits are
            of single layers, or there are none.
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
        network: of hidden layers of at most eight neurons, whose outcomes are sampled.
        form: "parallel" or "sequential".

    Raises:
        InvalidInputError: if a layer is too wide, the form is "layers" or unknown, or the network passes means.
    """
    require_choice(form, ("parallel", "sequential"), "form")
    _check(network)
    widths = network.sizes[1:-1]
    if max(widths) > WIDEST:
        raise InvalidInputError(
            f"A switch over n outcomes has 2^n cases: a circuit takes layers of at most {WIDEST} neurons; this network "
            f"has one of {max(widths)}. Take form='layers'."
        )
    weak = network.neurons[0].g is not None
    places = max(widths) if form == "parallel" else 1
    neurons = QuantumRegister(places, "neuron")
    ancillas = QuantumRegister(places if weak else 0, "ancilla")
    names = [f"layer{k}" for k in range(len(widths) - 1)] + ["meas"]
    outcomes = [ClassicalRegister(width, name) for width, name in zip(widths, names, strict=True)]
    circuit = QuantumCircuit(neurons, *([ancillas] if weak else []), *outcomes)
    first = ParameterVector("input", widths[0])
    _add_layer(circuit, network, form, list(first), None, outcomes[0])
    for k, register in enumerate(outcomes[1:]):
        angles = _angles_by_pattern(network, k + 1)
        _add_layer(circuit, network, form, angles, outcomes[k], register)
    return circuit


Angles = Sequence[float | ParameterExpression]


def _add_layer(
    circuit: QuantumCircuit,
    network: NaturalMLP,
    form: str,
    angles: Angles | np.ndarray,
    before: ClassicalRegister | None,
    register: ClassicalRegister,
) -> None:
    """Rotate, couple, measure and reset one layer; ``angles`` of all patterns of the layer before, if there is one."""
    neuron = network.neurons[0]
    neurons, ancillas = circuit.qregs[0], circuit.qregs[1] if len(circuit.qregs) > 1 else None
    groups = [range(len(register))] if form == "parallel" else [range(k, k + 1) for k in range(len(register))]
    for group in groups:
        if before is None:
            for place, k in enumerate(group):
                circuit.ry(angles[k], neurons[place])
        else:
            with circuit.switch(before) as case:
                for pattern in range(2 ** len(before)):
                    with case(pattern):
                        for place, k in enumerate(group):
                            circuit.ry(float(angles[pattern][k]), neurons[place])  # type: ignore[index, arg-type]
        for place, k in enumerate(group):
            if ancillas is not None:
                if neuron.ancilla == "symmetric":
                    circuit.ry(FULL - neuron.g, ancillas[place])  # type: ignore[operator]
                circuit.cry(2 * neuron.g, neurons[place], ancillas[place])  # type: ignore[operator]
                circuit.measure(ancillas[place], register[k])
                circuit.reset(ancillas[place])
            else:
                circuit.measure(neurons[place], register[k])
            circuit.reset(neurons[place])


def _angles_by_pattern(network: NaturalMLP, layer: int) -> np.ndarray:
    """Of the neurons of a hidden layer, shape (2^n of the layer before, neurons)."""
    width = network.sizes[layer]
    return _angles(network, layer, _outcomes_of(torch.arange(2**width), width))


@torch.no_grad()
def _angles(network: NaturalMLP, layer: int, x: Tensor) -> np.ndarray:
    """Of the neurons of a hidden layer, for what it gets, shape (rows, neurons), float64."""
    linear, neuron = network.layers[layer], network.neurons[layer]
    assert isinstance(neuron, Neuron)
    z = linear(x.to(next(network.parameters())))
    return angle(z, neuron.a, neuron.law).double().cpu().numpy()


def _outcomes_of(numbers: Tensor, width: int) -> Tensor:
    """Numbers of a register as outcomes +1 and -1, shape (rows, width): bit k is neuron k."""
    return (2 * ((numbers[:, None] >> torch.arange(width)) & 1) - 1).float()


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
        x: shape (samples, inputs).
        executor: of the circuits; :class:`TorchExecutor` samples the same law without circuits.
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
    if x.dim() != 2 or x.shape[1] != network.sizes[0]:
        raise InvalidInputError(f"x must be of shape (samples, {network.sizes[0]}); got {tuple(x.shape)}.")
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
    width = network.sizes[-2]
    key = ("natural", form, hash_tensors(*network.parameters()), _told(network))
    counts, jobs = executor.sample_bound(
        [(circuit, key, row.tolist()) for row in angles], [shots] * len(x), 2**width, generator=generator
    )
    with torch.no_grad():
        patterns = _outcomes_of(torch.arange(2**width), width).to(x)
        z = network.layers[-1](patterns).log_softmax(-1)  # (patterns, classes)
        found = torch.from_numpy(counts).to(x.device)
        logs = (found.to(z) / shots @ z.exp()).log()
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
    circuits, spent, qubits = 0, 0, 0
    ids: list[str] = []
    for layer, width in enumerate(network.sizes[1:-1]):
        angles = _angles(network, layer, rows)
        found = torch.empty(len(rows), width)
        for first in range(0, width, WIDEST):
            part = slice(first, min(first + WIDEST, width))
            size = part.stop - part.start
            circuit = _layer_circuit(network, size)
            # shots with the same angles share a circuit, and its outcomes in any order
            distinct, which, times = np.unique(angles[:, part], axis=0, return_inverse=True, return_counts=True)
            programs = [(circuit, ("natural layer", size, _told(network)), row.tolist()) for row in distinct]
            counts, jobs = executor.sample_bound(programs, times.tolist(), 2**size, generator=generator)
            for number, row in enumerate(counts):
                seen = torch.from_numpy(np.repeat(np.arange(2**size), row))
                seen = seen[torch.randperm(len(seen), generator=generator)]
                found[torch.from_numpy(which.reshape(-1) == number), part] = _outcomes_of(seen, size)
            circuits, spent, qubits = circuits + len(programs), spent + len(rows), max(qubits, circuit.num_qubits)
            ids += jobs
        rows = found.to(x)
    with torch.no_grad():
        logs = averaged(network.layers[-1](rows).reshape(len(x), shots, -1), 1)
    return NaturalExecution(logs, None, circuits, spent, qubits, tuple(ids), time.perf_counter() - start)


def _layer_circuit(network: NaturalMLP, width: int) -> QuantumCircuit:
    """Some neurons of a layer, side by side, their angles as parameters."""
    weak = network.neurons[0].g is not None
    register = ClassicalRegister(width, "meas")
    ancillas = [QuantumRegister(width, "ancilla")] if weak else []
    circuit = QuantumCircuit(QuantumRegister(width, "neuron"), *ancillas, register)
    _add_layer(circuit, network, "parallel", list(ParameterVector("input", width)), None, register)
    return circuit


def _told(network: NaturalMLP) -> tuple[float | str | None, ...]:
    """All that circuits depend on beside weights, to the last digit."""
    neuron = network.neurons[0]
    assert isinstance(neuron, Neuron)
    return neuron.a, neuron.g, neuron.law, neuron.ancilla


def _check(network: NaturalMLP) -> None:
    if not isinstance(network, NaturalMLP):
        raise InvalidInputError(f"Circuits are made of a NaturalMLP; got {type(network).__name__}.")
    if network.estimator == "mean_field":
        raise InvalidInputError(
            "With estimator='mean_field' nothing is measured: there is no circuit of it. Take with_neurons(a=..., "
            "estimator='ste')."
        )
