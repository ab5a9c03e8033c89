"""What running on a quantum device takes, before anything runs: gates of circuits, and circuits, shots, jobs and time.

Two-qubit gates are counted as built (CX, any two qubits connected) or as transpiled to a backend, and always said
which.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from qiskit import ClassicalRegister, QuantumCircuit, transpile
from qiskit.exceptions import QiskitError
from torch import nn

from unbraid.circuits import Circuit
from unbraid.ground.errors import InvalidInputError, require_extra
from unbraid.ground.random import stream
from unbraid.quantum.convert import is_standard, num_qubits, to_qiskit, unrolled
from unbraid.quantum.encode import encode
from unbraid.quantum.limits import CALIBRATION_SHOTS, SHOTS_PER_JOB, TWO_QUBIT_GATES_PER_JOB, Limits
from unbraid.quantum.mitigation import folded
from unbraid.quantum.programs import measured_qubits

if TYPE_CHECKING:
    from unbraid.quantum.hybrid import Stage

TRANSPILER_SEED = 0
_MOST_COMPILED = 32  # circuits of a readout that are compiled for an estimate; only tomography has more

# A rough model of IBM's devices, for backends that do not tell. The wait between shots, in which qubits relax to |0>,
# is by default 250 microseconds and dwarfs the rest; Falcon processors measure in 5 microseconds and take 0.44 for a
# CX, Heron ones less.
WAIT = 250e-6
MEASUREMENT = 5e-6
SECONDS_PER_LAYER = 0.44e-6
# Loading and starting a job; the order of magnitude of the smallest usage that is billed. Queues are not counted.
SECONDS_PER_JOB = 2.0

_IGNORED = frozenset({"barrier", "measure", "reset", "delay", "id"})


class GateCounts(TypedDict):
    """Gates of a circuit; measurements, resets, delays, barriers and identities are not counted.

    Attributes:
        one_qubit: gates on one qubit, virtual ones (rz) included.
        two_qubit: gates on two qubits.
        depth: longest chain of gates that wait for each other (a barrier makes them wait).
        total: all gates.
    """

    one_qubit: int
    two_qubit: int
    depth: int
    total: int


class CircuitCounts(TypedDict):
    """Gates as built, any two qubits connected, and as transpiled to a backend."""

    logical: GateCounts
    transpiled: GateCounts


@dataclass(frozen=True)
class StageCost:
    """Cost of one circuit of a hybrid network, over all samples.

    Attributes:
        name: of the stage, such as "fc1.input".
        qubits: of its circuits.
        readout: "exact" | "reference" | "signs" | "tomography".
        circuits: circuits to run.
        shots: of all circuits together.
        one_qubit_gates_per_circuit: of the preparation of a generic vector and of the circuit, virtual ones included.
        two_qubit_gates_per_circuit: likewise, without repetitions that raise noise; means over a readout's circuits.
        one_qubit_gates: of all circuits together.
        two_qubit_gates: of all circuits together, repetitions included.
        depth: of the deepest circuit, without its measurement.
        jobs: jobs within IBM's guaranteed limits; 0 for "exact", which is simulated.
        seconds: on a device, without queueing and host time; 0 for "exact".
        transpiled: whether gates are those of the executor's backend; if not, CX between any two qubits.
    """

    name: str
    qubits: int
    readout: str
    circuits: int
    shots: int
    one_qubit_gates_per_circuit: int
    two_qubit_gates_per_circuit: int
    one_qubit_gates: int
    two_qubit_gates: int
    depth: int
    jobs: int
    seconds: float
    transpiled: bool


@dataclass(frozen=True)
class Cost:
    """Cost of running a hybrid network, over all samples.

    Attributes:
        samples: vectors through the network.
        circuits: circuits to run.
        shots: of all circuits together.
        one_qubit_gates: of all circuits together, each counted once whatever its shots.
        two_qubit_gates: likewise.
        depth: of the deepest circuit.
        jobs: jobs within IBM's guaranteed limits.
        seconds: on a device, by its own durations where it tells them and a rough model elsewhere; without queueing and
            host time.
        stages: the same for every circuit of every layer, in the order in which they run.
        vectors_per_sample: vectors that each layer is taken to get from one sample.
        money: ``seconds`` times a price a second, in its currency; None without a price.
    """

    samples: int
    circuits: int
    shots: int
    one_qubit_gates: int
    two_qubit_gates: int
    depth: int
    jobs: int
    seconds: float
    stages: tuple[StageCost, ...]
    vectors_per_sample: int = 1
    money: float | None = None

    def describe(self) -> str:
        """A small table as text."""
        columns = (
            *("stage", "qubits", "readout", "circuits", "shots"),
            *("1q/circuit", "2q/circuit", "depth", "jobs", "seconds"),
        )
        rows = [
            (
                *(stage.name, str(stage.qubits), stage.readout, f"{stage.circuits:,}", f"{stage.shots:,}"),
                *(
                    f"{stage.one_qubit_gates_per_circuit:,}",
                    f"{stage.two_qubit_gates_per_circuit:,}",
                    f"{stage.depth:,}",
                    f"{stage.jobs:,}",
                    f"{stage.seconds:,.1f}",
                ),
            )
            for stage in self.stages
        ]
        total = (
            "total",
            "",
            "",
            f"{self.circuits:,}",
            f"{self.shots:,}",
            "",
            "",
            "",
            f"{self.jobs:,}",
            f"{self.seconds:,.1f}",
        )
        table = [columns, *rows, total]
        widths = [max(len(row[k]) for row in table) for k in range(len(columns))]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in table]
        gates = {stage.transpiled for stage in self.stages}
        kind = {True: "transpiled to the backend", False: "as built, all qubits connected"}
        counted = " or ".join(kind[transpiled] for transpiled in sorted(gates))
        vectors = "" if self.vectors_per_sample == 1 else f" of {self.vectors_per_sample:,} vectors each"
        head = f"{self.samples:,} samples{vectors}: {self.two_qubit_gates:,} two-qubit gates in all ({counted})."
        foot = (
            f"Jobs hold up to {TWO_QUBIT_GATES_PER_JOB:,} two-qubit gates and {SHOTS_PER_JOB:,} shots. Seconds are an "
            "estimate for a device, without queueing and host time."
        )
        if self.money is not None:
            foot += f" At the price given they cost {self.money:,.2f}."
        return "\n".join([head, *lines, foot])


def gate_counts(qc: QuantumCircuit) -> GateCounts:
    """Count the gates of a circuit; gates on three or more qubits, and composite ones, by their parts.

    Args:
        qc: any circuit without control flow.

    Returns:
        A dictionary with the keys ``one_qubit``, ``two_qubit``, ``depth``, ``total``.

    Raises:
        InvalidInputError: if the circuit has control flow, or a gate on more than two qubits has no definition.
    """
    plain = unrolled(qc, _is_counted)
    sizes = [len(item.qubits) for item in plain.data if item.operation.name not in _IGNORED]
    one, two = sizes.count(1), sizes.count(2)
    depth = plain.depth(lambda item: item.operation.name not in _IGNORED)
    return {"one_qubit": one, "two_qubit": two, "depth": depth, "total": len(sizes)}


def _is_counted(gate: Any) -> bool:
    """Whether a gate counts as it is; a swap counts as the three CX that it takes."""
    return gate.num_qubits <= 2 and gate.name != "swap" and (is_standard(gate) or gate.definition is None)


def count_gates(
    circuit: Circuit | QuantumCircuit, backend: Any = None, *, optimization_level: int = 3, seed: int = TRANSPILER_SEED
) -> CircuitCounts:
    """Gates of a circuit as built, and as transpiled to a device.

    Args:
        circuit: linear; ours or Qiskit's.
        backend: a Qiskit ``BackendV2``; ``FakeMontrealV2`` (27 qubits, heavy hexagon, cx) by default, as in the paper.
        optimization_level: of Qiskit's transpiler, 0 to 3.
        seed: of the transpiler.

    Returns:
        A dictionary with the keys ``logical`` and ``transpiled``, each as from :func:`gate_counts`.

    Raises:
        InvalidInputError: if the circuit has nonlinearities or more qubits than the backend.
        MissingExtraError: if the default backend is not installed.
    """
    if backend is None:
        backend = require_extra("qiskit_ibm_runtime.fake_provider", "ibm").FakeMontrealV2()
    qc = circuit if isinstance(circuit, QuantumCircuit) else to_qiskit(circuit)
    return {
        "logical": gate_counts(qc),
        "transpiled": gate_counts(_transpiled(qc, backend, optimization_level, seed)),
    }


def estimate_cost(
    hybrid: nn.Module,
    n_samples: int,
    *,
    vectors_per_sample: int = 1,
    price_per_second: float | None = None,
    backward: bool = False,
) -> Cost:
    """What running a hybrid network on ``n_samples`` vectors takes; nothing is run.

    Every stage (a linear circuit of a layer) is taken to act on ``vectors_per_sample`` vectors a sample: 1 for a plain
    network, the number of tokens or positions where a layer acts on each of them. Its circuits prepare a generic
    vector and run the circuit; they are compiled as the executor will, for its ``backend`` if it has one. Of tomography
    a few circuits stand for all. Jobs are those of one call with all samples; smaller calls (and tomography, in pieces
    of millions of outcomes) may fill theirs less. What a results store holds, and that equal vectors run once, is not
    foreseen.

    Args:
        hybrid: a model with :class:`~unbraid.QuantumLinear` layers.
        n_samples: inputs to run, at least 1.
        vectors_per_sample: vectors that each layer gets from one input.
        price_per_second: of the device, in any currency; vendors publish it, backends do not tell it.
        backward: add a backward pass by shifted parameters, the gradient by the inputs of every circuit included.

    Returns:
        A :class:`Cost`. "exact" counts one simulated circuit a vector, without shots, jobs and device time.

    Raises:
        InvalidInputError: if there is nothing quantum in the model, ``n_samples`` is no positive integer, the price no
            number of at least 0, or ``backward`` is asked of a hybrid without ``gradient="parameter-shift"``.
    """
    is_number = isinstance(price_per_second, int | float) and not isinstance(price_per_second, bool)
    if price_per_second is not None and not (is_number and 0 <= price_per_second < math.inf):
        raise InvalidInputError(f"price_per_second must be a number of at least 0; got {price_per_second!r}.")
    for value, name in ((n_samples, "n_samples"), (vectors_per_sample, "vectors_per_sample")):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            told = repr(value) if isinstance(value, int | float | str) else type(value).__name__
            raise InvalidInputError(f"{name} must be a positive integer; got {told}.")
    if not isinstance(hybrid, nn.Module):
        raise InvalidInputError(f"estimate_cost takes a hybrid model; got {type(hybrid).__name__}.")
    layers = list(_quantum_layers(hybrid))
    if not layers:
        raise InvalidInputError(
            "This model has no quantum layers. Make it a hybrid first: unbraid.to_quantum(model, executor)."
        )
    runs = [_Run.of(stage) for layer in layers for stage in layer.stages()]
    vectors = n_samples * vectors_per_sample
    stages = [run.cost(vectors) for run in runs]
    if backward:
        shifted = [run for run in runs if run.stage.shifted is not None]
        if not shifted:
            raise InvalidInputError(
                "backward=True counts circuits with shifted parameters, and this hybrid has none. Make it with "
                "to_quantum(..., gradient='parameter-shift')."
            )
        # two for each angle, and the transposed circuit for the input
        stages += [run.cost(vectors, 2 * (run.stage.shifted or 0) + 1) for run in shifted]
    stages += _calibrations(runs)
    seconds = sum(stage.seconds for stage in stages)
    return Cost(
        samples=n_samples,
        circuits=sum(stage.circuits for stage in stages),
        shots=sum(stage.shots for stage in stages),
        one_qubit_gates=sum(stage.one_qubit_gates for stage in stages),
        two_qubit_gates=sum(stage.two_qubit_gates for stage in stages),
        depth=max((stage.depth for stage in stages), default=0),
        jobs=sum(stage.jobs for stage in stages),
        seconds=seconds,
        stages=tuple(stages),
        vectors_per_sample=vectors_per_sample,
        money=None if price_per_second is None else price_per_second * seconds,
    )


def _quantum_layers(hybrid: nn.Module) -> Iterator[Any]:
    for _, module in hybrid.named_modules(remove_duplicate=False):  # a layer used twice runs twice
        stages = getattr(module, "stages", None)
        # Vision models have a ModuleList of that name, and modules are callable.
        if callable(stages) and not isinstance(stages, nn.Module):
            yield module


@dataclass(frozen=True)
class _Run:
    """A stage and the circuits that it runs.

    Attributes:
        stage: of a layer.
        circuits: with the preparation of a generic vector; those that a readout measures one vector by, in their order.
            Of tomography some stand for all.
        counts: gates of each.
    """

    stage: Stage
    circuits: list[QuantumCircuit]
    counts: list[GateCounts]

    @classmethod
    def of(cls, stage: Stage) -> _Run:
        """As the executor compiles them, where it does."""
        n = num_qubits(stage.circuit.ansatz.wire_dims)
        generic = torch.randn(2**n, dtype=torch.float64, generator=stream(0, "generic vector", n))
        preparation = encode(generic, stage.encoding).circuit(0)
        measured = list(islice(stage.readout.measured(stage.circuit), _MOST_COMPILED))
        compiled = getattr(stage.executor, "compiled", None)
        if compiled is not None:
            circuits = compiled(preparation, measured)
        else:
            backend = getattr(stage.executor, "backend", None)
            circuits = [preparation.compose(to_qiskit(each)) for each in measured]
            if backend is not None:
                circuits = [_transpiled(each, backend, 1, TRANSPILER_SEED) for each in circuits]
        return cls(stage, circuits, [gate_counts(each) for each in circuits])

    def cost(self, vectors: int, shifts: int = 0) -> StageCost:
        """Of so many vectors; or of that many runs of them with shifted parameters."""
        stage, n = self.stage, num_qubits(self.stage.circuit.ansatz.wire_dims)
        backend = getattr(stage.executor, "backend", None)
        runs, per_vector = max(1, shifts), stage.readout.circuits(n)
        shots_per_circuit = stage.readout.shots(stage.shots, n) / per_vector
        factors = getattr(stage.executor, "noise_factors", (1,))
        number = vectors * per_vector
        one, two = (_mean([counts[key] for counts in self.counts]) for key in ("one_qubit", "two_qubit"))
        limits = getattr(stage.executor, "limits", Limits(circuits=number))
        shots = depth = jobs = 0
        seconds = 0.0
        for factor in factors:
            each = shots_per_circuit if len(factors) == 1 else max(1, int(shots_per_circuit) // len(factors))
            taken = round(number * each) * runs
            packed = runs * _jobs([factor * counts["two_qubit"] for counts in self.counts], number, each, limits)
            packed = packed if taken else 0
            noisy = [folded(circuit, factor) for circuit in self.circuits]
            depths = [gate_counts(circuit)["depth"] for circuit in noisy]
            per_shot = [_seconds_per_shot(*pair, backend) for pair in zip(noisy, depths, strict=True)]
            shots, jobs, depth = shots + taken, jobs + packed, max(depth, *depths)
            seconds += packed * SECONDS_PER_JOB + taken * _mean(per_shot)
        return StageCost(
            name=stage.name + (" (gradient)" if shifts else ""),
            qubits=n,
            readout=str(stage.readout),
            circuits=runs * number * len(factors),
            shots=shots,
            one_qubit_gates_per_circuit=round(one),
            two_qubit_gates_per_circuit=round(two),
            one_qubit_gates=round(runs * number * len(factors) * one),
            two_qubit_gates=round(runs * number * sum(factors) * two),
            depth=depth,
            jobs=jobs,
            seconds=seconds,
            transpiled=backend is not None,
        )

    def physical_qubits(self) -> set[int]:
        """That are measured."""
        return {qubit for circuit in self.circuits for qubit in measured_qubits(circuit)}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _calibrations(runs: Sequence[_Run]) -> Iterator[StageCost]:
    """What measuring how qubits are misread takes: two circuits whenever there are qubits that are not known yet."""
    known: dict[int, set[int]] = {}
    for run in runs:
        executor = run.stage.executor
        if not getattr(executor, "mitigate_readout", False):
            continue
        new = run.physical_qubits() - known.setdefault(id(executor), set())
        if not new:
            continue
        known[id(executor)] |= new
        backend, shots = getattr(executor, "backend", None), 2 * CALIBRATION_SHOTS
        wait = getattr(backend, "default_rep_delay", None) or WAIT
        jobs = _jobs([0], 2, CALIBRATION_SHOTS, getattr(executor, "limits", Limits()))
        yield StageCost(
            name="readout calibration",
            qubits=len(new),
            readout="calibration",
            circuits=2,
            shots=shots,
            one_qubit_gates_per_circuit=len(new),
            two_qubit_gates_per_circuit=0,
            one_qubit_gates=len(new),  # of one circuit; the other has none
            two_qubit_gates=0,
            depth=1,
            jobs=jobs,
            seconds=jobs * SECONDS_PER_JOB + shots * (wait + MEASUREMENT),
            transpiled=backend is not None,
        )


def _seconds_per_shot(circuit: QuantumCircuit, depth: int, backend: Any) -> float:
    """By the backend's own durations and its wait between shots, where it tells them; by the rough model elsewhere."""
    modelled = MEASUREMENT + depth * SECONDS_PER_LAYER
    wait = getattr(backend, "default_rep_delay", None)
    if backend is not None:
        measured = circuit.copy()
        if not measured_qubits(circuit):
            active = {circuit.find_bit(qubit).index for item in circuit.data for qubit in item.qubits}
            measured.add_register(ClassicalRegister(len(active)))
            measured.measure(sorted(active), range(len(active)))
        with suppress(QiskitError):  # a device that does not tell how long its gates take
            modelled = measured.estimate_duration(backend.target, unit="s")
    return modelled + (WAIT if wait is None else wait)


def _transpiled(qc: QuantumCircuit, backend: Any, optimization_level: int, seed: int) -> QuantumCircuit:
    available = getattr(backend, "num_qubits", None)
    if available is not None and qc.num_qubits > available:
        raise InvalidInputError(
            f"The circuit has {qc.num_qubits} qubits, but the backend {getattr(backend, 'name', backend)!r} has only "
            f"{available}. Use a wider backend, or smaller layers."
        )
    return transpile(qc, backend, optimization_level=optimization_level, seed_transpiler=seed)


def _jobs(two_qubit_gates: Sequence[int], circuits: int, shots: float, limits: Limits) -> int:
    """Jobs that hold circuits within the limits, at least one circuit each.

    Args:
        two_qubit_gates: of different circuits, each of which stands for an equal part of all, one after the other.
        circuits: how many there are in all.
        shots: of each.
        limits: of a job.
    """
    if circuits % len(two_qubit_gates):
        two_qubit_gates = [math.ceil(_mean(two_qubit_gates))]
    jobs = held = gates_held = 0
    for gates in two_qubit_gates:
        left = circuits // len(two_qubit_gates)
        while left:
            room = min(limits.circuits - held, int(limits.shots / shots) - held if shots else left)
            if gates:
                room = min(room, (limits.two_qubit_gates - gates_held) // gates)
            if jobs == 0 or room < 1:  # a new job, of one circuit at least
                jobs, held, gates_held = jobs + 1, 0, 0
                full = min(limits.circuits, int(limits.shots / shots) if shots else left)
                room = max(1, min(full, limits.two_qubit_gates // gates if gates else full))
            taken = min(room, left)
            left, held, gates_held = left - taken, held + taken, gates_held + taken * gates
    return jobs
