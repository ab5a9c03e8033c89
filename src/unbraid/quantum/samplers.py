"""Executors over Qiskit's samplers: complete circuits, transpiled once, with the input's angles as parameters.

What runs is built by :mod:`unbraid.quantum.programs` and run by :mod:`unbraid.quantum.jobs`; results can be kept in a
:class:`~unbraid.quantum.store.ResultsStore`.

Legend: B vectors of N = 2^n entries; counts are (B, N), or (M, B, N) of M circuits, in the order of our flat index.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Self

import numpy as np
import torch
from qiskit import ClassicalRegister, QuantumCircuit, QuantumRegister
from qiskit.circuit.library import get_standard_gate_name_mapping
from torch import Tensor

from unbraid.circuits import Circuit
from unbraid.ground.errors import InvalidInputError, require_choice, require_extra
from unbraid.ground.random import stream, stream_seed
from unbraid.quantum.convert import qubit_of, to_qiskit
from unbraid.quantum.encode import Encoded, encode
from unbraid.quantum.execute import (
    Circuits,
    Execution,
    as_list,
    check_run,
    check_shots,
    circuit_key,
    count_qubits,
    draw_seed,
)
from unbraid.quantum.fingerprint import fingerprint, plain
from unbraid.quantum.jobs import JobRunner
from unbraid.quantum.limits import (
    CALIBRATION_SHOTS,
    CIRCUITS_PER_JOB,
    SHOTS_PER_JOB,
    TWO_QUBIT_GATES_PER_JOB,
    Limits,
    Patience,
)
from unbraid.quantum.mitigation import Extrapolator, Learned, Polynomial, check_factors
from unbraid.quantum.programs import Compiler, Program, with_noise
from unbraid.quantum.reading import unfolded
from unbraid.quantum.store import ResultsStore

PLAIN_BASIS = ("u", "cx")

Programs = Sequence[tuple[QuantumCircuit, QuantumCircuit, Hashable]]


class SamplerExecutor:
    """Complete circuits (state preparation, circuit, measurement) on any Qiskit ``BaseSamplerV2``.

    Circuits that differ only in the angles of their state preparation share one parametrised circuit, which is
    transpiled once and kept; the angles travel as parameter values. As a context manager it closes the session or batch
    of its sampler at the end.

    Args:
        sampler: from Qiskit, qiskit-aer, qiskit-ibm-runtime (whose ``SamplerV2`` takes a backend, a session or a
            batch as its mode) or another provider; its randomness is its own.
        backend: a ``BackendV2`` to transpile to; give it for qiskit-ibm-runtime. Taken from ``sampler.backend`` where
            there is such an attribute; without any, circuits are only translated to ``basis_gates``.
        optimization_level: of Qiskit's transpiler, 0 to 3.
        seed: of Qiskit's transpiler.
        basis_gates: gates to translate to where there is no backend.
        max_circuits: PUBs a job.
        max_two_qubit_gates: of all circuits of a job.
        max_shots: of all circuits of a job.
        store: a file (or a :class:`~unbraid.quantum.store.ResultsStore`) that keeps jobs and counts: a run that was
            killed goes on with what is there, and what was measured is not measured again. Without it, circuits that
            are equal in everything run once in a call of :meth:`run`.
        retrieve: finds a job of an earlier process by its id; by default ``backend.service.job``, where the backend
            has that (IBM's do). Without it, jobs that were under way are submitted anew.
        retries: further tries of a job that fails.
        backoff: seconds before the first of them; doubled each time.
        timeout: seconds to wait for a job; by default for ever.
        jobs_at_once: jobs under way at most; more than one lets a batch run them side by side.
        mitigate_readout: measure how often each qubit is misread (two circuits, once for each qubit in use) and let
            readouts take that into account. All circuits of a width then share the layout of the first.
        noise_factors: how often every two-qubit gate is repeated; several, such as (1, 3), share the shots and are
            extrapolated to zero. Counts are then numbers that need not be whole.
        extrapolate: how; :class:`~unbraid.quantum.mitigation.Polynomial` by default, or a
            :class:`~unbraid.quantum.mitigation.Learned` one, see :meth:`learn`.

    Raises:
        InvalidInputError: if the sampler has no ``run`` method, or a number is out of range.
        FileFormatError: if the store is damaged.
        OutputError: if the store cannot be written to.
    """

    def __init__(
        self,
        sampler: Any,
        *,
        backend: Any = None,
        optimization_level: int = 1,
        seed: int = 0,
        basis_gates: Sequence[str] = PLAIN_BASIS,
        max_circuits: int = CIRCUITS_PER_JOB,
        max_two_qubit_gates: int = TWO_QUBIT_GATES_PER_JOB,
        max_shots: int = SHOTS_PER_JOB,
        store: str | os.PathLike[str] | ResultsStore | None = None,
        retrieve: Callable[[str], Any] | None = None,
        retries: int = 3,
        backoff: float = 1.0,
        timeout: float | None = None,
        jobs_at_once: int = 1,
        mitigate_readout: bool = False,
        noise_factors: Sequence[int] = (1,),
        extrapolate: Extrapolator | None = None,
    ) -> None:
        if isinstance(sampler, type) or not callable(getattr(sampler, "run", None)):
            raise InvalidInputError(
                "SamplerExecutor needs a BaseSamplerV2, such as qiskit.primitives.StatevectorSampler(); got "
                f"{sampler!r}."
            )
        if isinstance(optimization_level, bool) or optimization_level not in (0, 1, 2, 3):
            raise InvalidInputError(f"optimization_level must be 0, 1, 2 or 3; got {optimization_level!r}.")
        if retrieve is not None and not callable(retrieve):
            raise InvalidInputError(
                f"retrieve must be a function of a job's id, such as service.job; got {retrieve!r}."
            )
        if backend is not None and not hasattr(backend, "target"):
            raise InvalidInputError(
                f"backend must be a Qiskit BackendV2, such as service.backend(name) returns; got {backend!r}."
            )
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise InvalidInputError(f"seed must be an integer of at least 0; got {seed!r}.")
        if not isinstance(mitigate_readout, bool):
            raise InvalidInputError(f"mitigate_readout must be True or False; got {mitigate_readout!r}.")
        if extrapolate is not None and not callable(extrapolate):
            raise InvalidInputError(f"extrapolate must be one such as Polynomial() or Learned(); got {extrapolate!r}.")
        unknown = [gate for gate in basis_gates if gate not in get_standard_gate_name_mapping()]
        if backend is None and unknown:
            raise InvalidInputError(f"basis_gates must be names of Qiskit's gates; got {unknown}.")
        self.sampler = sampler
        self.backend = _backend_of(sampler) if backend is None else backend
        self.optimization_level = optimization_level
        self.seed = seed
        self.limits = Limits(max_circuits, max_two_qubit_gates, max_shots)
        self.store = store if store is None or isinstance(store, ResultsStore) else ResultsStore(store)
        self.mitigate_readout = mitigate_readout
        self._compiler = Compiler(self.backend, optimization_level, seed, basis_gates, one_layout=mitigate_readout)
        self._patience = Patience(retries, backoff, timeout)
        if isinstance(jobs_at_once, bool) or not isinstance(jobs_at_once, int) or jobs_at_once < 1:
            raise InvalidInputError(f"jobs_at_once must be a positive integer; got {jobs_at_once!r}.")
        self.jobs_at_once = jobs_at_once
        self._retrieve = _job_of(self.backend) if retrieve is None else retrieve
        self.noise_factors = check_factors(noise_factors)
        if extrapolate is not None and self.noise_factors == (1,):
            raise InvalidInputError("extrapolate needs noise factors to extrapolate from: noise_factors=(1, 3).")
        self.extrapolate: Extrapolator = Polynomial() if extrapolate is None else extrapolate
        self._exact: np.ndarray | None = None  # what an extrapolator learns from
        self._misread: dict[int, np.ndarray] = {}  # physical qubit to (seen, true) probabilities

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the session or batch that the sampler runs in, where it tells one; jobs under way go on."""
        close = getattr(getattr(self.sampler, "mode", None), "close", None)
        if callable(close):
            close()

    def __repr__(self) -> str:
        backend = "" if self.backend is None else f", backend={getattr(self.backend, 'name', self.backend)!r}"
        return f"{type(self).__name__}({type(self.sampler).__name__}{backend})"

    def run(
        self,
        circuit: Circuits,
        vectors: Tensor | Encoded,
        shots: int | Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Execution:
        """Prepare each vector, run ``circuit``, measure all qubits.

        Args:
            circuit: without nonlinearities, on qubits; or a list of M of them, each of which runs on every vector.
            vectors: real, normalised, shape (B, N), prepared exactly; or encoded ones.
            shots: shots a vector, one integer or an integer tensor of shape (B,), or (M, B) for a list of circuits.
            generator: seeds the sampler where this package can (:class:`AerExecutor`); other samplers ignore it.

        Returns:
            An :class:`Execution` with ``counts`` on the device of ``vectors``. Its circuits and shots are those that
            the counts stand for; ``job_ids`` names the jobs that ran now, none where the store had all.

        Raises:
            InvalidInputError: if sizes, norms, entries or shots cannot be used, or the backend has too few qubits.
            ExecutionError: if the sampler fails or does not return the shots that were asked for.
        """
        start = time.perf_counter()
        circuits = as_list(circuit)
        states = check_run(circuits, vectors)
        if shots is None:
            raise InvalidInputError(
                "A sampler returns counts, not vectors: give shots a positive integer, or use TorchExecutor() for "
                "exact vectors."
            )
        split = check_shots(shots, len(circuits), len(states))
        encoded = vectors if isinstance(vectors, Encoded) else encode(states.detach())
        programs = []
        for each in circuits:
            tail, key = self._tail(each), circuit_key(each)
            programs += [(encoded.circuit(i), tail, key) for i in range(len(states))]
        bound = self._programs(programs, split.flatten().tolist())
        if self.noise_factors != (1,) and bound:
            found, spent = self._extrapolated(bound, states.shape[1], generator)
            found = found.reshape(len(circuits), *states.shape).to(states.device)
            return Execution(
                found[0] if isinstance(circuit, Circuit) else found, None, *spent, time.perf_counter() - start
            )
        counts, job_ids = self._counts(bound, states.shape[1], generator)
        confusion: Tensor | None = None
        extra: tuple[int, int, tuple[str, ...]] = (0, 0, ())
        if self.mitigate_readout and bound:
            confusion, extra = self._confusion(bound, generator)
            confusion = confusion.reshape(len(circuits), len(states), *confusion.shape[1:])
        found = torch.from_numpy(counts).reshape(len(circuits), *states.shape).to(states.device)
        only = isinstance(circuit, Circuit)
        return Execution(
            found[0] if only else found,
            None,
            len(bound) + extra[0],
            int(split.sum()) + extra[1],
            job_ids + extra[2],
            time.perf_counter() - start,
            confusion[0] if only and confusion is not None else confusion,
        )

    def _tail(self, circuit: Circuit) -> QuantumCircuit:
        """What follows a preparation: the circuit and a measurement of all its qubits."""
        qubits = self.check_width(circuit)
        tail = QuantumCircuit(QuantumRegister(qubits, "q"), ClassicalRegister(qubits, "meas"))
        tail.compose(to_qiskit(circuit), range(qubits), inplace=True)
        tail.measure(range(qubits), range(qubits))
        return tail

    def compiled(self, preparation: QuantumCircuit, circuits: Sequence[Circuit]) -> list[QuantumCircuit]:
        """Circuits as they will run behind a preparation, with its angles as parameters; kept for the run.

        Args:
            preparation: of the state.
            circuits: linear.
        """
        return [
            self._compiler.program(preparation, self._tail(each), circuit_key(each), 1).template.circuit
            for each in circuits
        ]

    @property
    def two_qubit_gates(self) -> int:
        """Of the largest circuit that was transpiled so far, preparation included."""
        return self._compiler.largest

    def check_width(self, circuit: Circuit) -> int:
        """Number of qubits of ``circuit``.

        Raises:
            InvalidInputError: if its wires are no qubits, or the backend has fewer.
        """
        qubits = count_qubits(circuit)
        self._check_qubits(qubits)
        return qubits

    def _check_qubits(self, qubits: int) -> None:
        available = getattr(self.backend, "num_qubits", None)
        if available is not None and qubits > available:
            raise InvalidInputError(
                f"The circuit has {qubits} qubits, but the backend {getattr(self.backend, 'name', self.backend)!r} has "
                f"only {available}. Use a wider backend, or smaller layers."
            )

    def sample(
        self, programs: Programs, shots: Sequence[int], *, generator: torch.Generator | None = None
    ) -> tuple[np.ndarray, tuple[str, ...]]:
        """Run Qiskit circuits, each a preparation followed by a tail that measures all its qubits.

        Args:
            programs: (preparation, tail, key of the tail); equal keys mean equal tails.
            shots: shots a program.
            generator: as in :meth:`run`.

        Returns:
            Counts, int64, shape (programs, 2^n), and the ids of the jobs.

        Raises:
            ExecutionError: if the sampler fails or does not return the shots that were asked for.
        """
        if not programs:
            return np.zeros((0, 0), dtype=np.int64), ()
        return self._counts(self._programs(programs, shots), 2 ** programs[0][1].num_qubits, generator)

    def sample_bound(
        self,
        programs: Sequence[tuple[QuantumCircuit, Hashable, Sequence[float]]],
        shots: Sequence[int],
        size: int,
        *,
        generator: torch.Generator | None = None,
    ) -> tuple[np.ndarray, tuple[str, ...]]:
        """Run whole circuits with parameters, such as dynamic ones.

        Args:
            programs: (circuit whose parameters are of one vector, key of the circuit, values); equal keys mean equal
                circuits. Their register ``meas`` is counted.
            shots: shots a program.
            size: of the counts, 2 to the bits of ``meas``.
            generator: as in :meth:`run`.

        Returns:
            Counts, int64, shape (programs, size), and the ids of the jobs.

        Raises:
            InvalidInputError: if the backend has too few qubits.
            ExecutionError: if the sampler fails or does not return the shots that were asked for.
        """
        for circuit, _, _ in programs:
            self._check_qubits(circuit.num_qubits)
        made = [self._compiler.bound(*each, number) for each, number in zip(programs, shots, strict=True)]
        return self._counts(made, size, generator)

    def _programs(self, programs: Programs, shots: Sequence[int]) -> list[Program]:
        return [
            self._compiler.program(preparation, tail, key, number)
            for (preparation, tail, key), number in zip(programs, shots, strict=True)
        ]

    def _counts(
        self, programs: Sequence[Program], size: int, generator: torch.Generator | None
    ) -> tuple[np.ndarray, tuple[str, ...]]:
        submit, salt = self._submission(generator)
        runner = JobRunner(
            type(self.sampler).__name__,
            submit,
            self.limits,
            self._patience,
            self.store,
            self._retrieve,
            self.jobs_at_once,
        )
        return runner.run(programs, size, salt)

    def _submission(self, generator: torch.Generator | None) -> tuple[Callable[[list[Any], int], Any], str]:
        """What submits a job, and what tells its results from those of other runs of the same circuits."""
        if self.store is None:
            told = ""
        else:
            told = fingerprint(self.sampler, self.backend, simulated=self._retrieve is None)
        return lambda pubs, number: self.sampler.run(pubs), told

    def learn(
        self,
        circuit: Circuits,
        vectors: Tensor | Encoded,
        shots: int,
        *,
        generator: torch.Generator | None = None,
    ) -> Execution:
        """Teach a :class:`~unbraid.quantum.mitigation.Learned` extrapolator from circuits whose result the host knows.

        It runs every circuit on every vector at every noise factor; :func:`unbraid.estimate_cost` does not foresee it.

        Args:
            circuit: as of :meth:`run`, small enough to be simulated here.
            vectors: as of :meth:`run`; other ones than will be asked about.
            shots: a vector and circuit, over all noise factors.
            generator: as of :meth:`run`.

        Returns:
            What it took; its counts are extrapolated by what was learnt.

        Raises:
            InvalidInputError: if the executor was made without noise factors or with another extrapolator.
        """
        if not isinstance(self.extrapolate, Learned) or len(self.noise_factors) < 2:
            raise InvalidInputError(
                "Learning needs noise factors and an extrapolator that learns: SamplerExecutor(..., noise_factors=(1, "
                "3), extrapolate=Learned())."
            )
        circuits = as_list(circuit)
        states = check_run(circuits, vectors)
        with torch.no_grad():
            exact = torch.stack([each(states).abs().square() for each in circuits])
        self._exact = exact.flatten(0, 1).double().cpu().numpy()
        try:
            return self.run(circuits, vectors, shots, generator=generator)
        finally:
            self._exact = None

    def _extrapolated(
        self, programs: Sequence[Program], size: int, generator: torch.Generator | None
    ) -> tuple[Tensor, tuple[int, int, tuple[str, ...]]]:
        """Counts as if there were no noise, float64, shape (programs, size); and circuits, shots and jobs spent."""
        factors = self.noise_factors
        confusion: Tensor | None = None
        spent: tuple[int, int, tuple[str, ...]] = (0, 0, ())
        if self.mitigate_readout:
            confusion, spent = self._confusion(programs, generator)
        circuits, shots, jobs = spent[0] + len(factors) * len(programs), spent[1], list(spent[2])
        seen = []
        for factor in factors:
            part = [with_noise(each, factor, max(1, each.shots // len(factors))) for each in programs]
            counts, ids = self._counts(part, size, generator)
            clean = unfolded(torch.from_numpy(counts).double(), confusion).numpy()
            seen.append(clean / clean.sum(axis=1, keepdims=True))
            shots += sum(each.shots for each in part)
            jobs += ids
        probabilities = np.stack(seen)
        if self._exact is not None and isinstance(self.extrapolate, Learned):
            self.extrapolate.fit(probabilities, self._exact)
        found = torch.from_numpy(self.extrapolate(probabilities, factors)).clamp(min=0)
        asked = torch.tensor([[each.shots] for each in programs], dtype=torch.float64)
        return found * (asked / found.sum(dim=1, keepdim=True).clamp(min=1e-12)), (circuits, shots, tuple(jobs))

    def _confusion(
        self, programs: Sequence[Program], generator: torch.Generator | None
    ) -> tuple[Tensor, tuple[int, int, tuple[str, ...]]]:
        """Probabilities (seen, true) of each program's qubits, shape (programs, n, 2, 2), and what they took.

        The last axis but two counts sites, the most significant digit of the index first.
        """
        missing = sorted({qubit for program in programs for qubit in program.template.measured} - set(self._misread))
        spent: tuple[int, int, tuple[str, ...]] = (0, 0, ())
        if missing:
            counts, jobs = self._counts(self._calibration(missing), 2 ** len(missing), generator)
            shape = (2,) * len(missing)
            for k, qubit in enumerate(missing):
                axis = len(missing) - 1 - k  # classical bit k is the k-th digit from the right
                others = tuple(j for j in range(len(missing)) if j != axis)
                self._misread[qubit] = np.stack(
                    [row.reshape(shape).sum(axis=others) / CALIBRATION_SHOTS for row in counts], axis=1
                )
            spent = (2, 2 * CALIBRATION_SHOTS, jobs)
        n = len(programs[0].template.measured)
        rows = [
            np.stack([self._misread[program.template.measured[qubit_of(site, n)]] for site in range(n)])
            for program in programs
        ]
        return torch.from_numpy(np.stack(rows)), spent

    def _calibration(self, qubits: Sequence[int]) -> list[Program]:
        """All these qubits in 0, and all in 1."""
        width = max(qubits) + 1 if self.backend is None else self.backend.num_qubits
        programs = []
        for value in (0, 1):
            circuit = QuantumCircuit(QuantumRegister(width, "q"), ClassicalRegister(len(qubits), "meas"))
            if value:
                circuit.x(list(qubits))
            circuit.barrier(list(qubits))
            circuit.measure(list(qubits), range(len(qubits)))
            programs.append(self._compiler.placed(circuit, CALIBRATION_SHOTS))
        return programs


class AerExecutor(SamplerExecutor):
    """qiskit-aer's simulator, without or with noise.

    Every group of circuits with equal shots gets a seed of its own: Aer restarts its generator at every run, so that
    one seed for all would repeat the same shot noise.

    Args:
        noise_model: a ``qiskit_aer.noise.NoiseModel``; circuits are translated to its basis gates. With ``backend``
            alone, that backend's own noise model.
        backend: a ``BackendV2`` to transpile to.
        method: of ``AerSimulator``, such as "statevector", "density_matrix" or "matrix_product_state".
        seed: of the samples (where a run gets no ``generator``) and of the transpiler.
        optimization_level: of Qiskit's transpiler, 0 to 3.
        max_circuits: PUBs a job.
        options: ``store``, ``mitigate_readout`` and the others of :class:`SamplerExecutor`.

    Raises:
        MissingExtraError: if qiskit-aer is not installed.
    """

    def __init__(
        self,
        noise_model: Any = None,
        *,
        backend: Any = None,
        method: str = "automatic",
        seed: int = 0,
        optimization_level: int = 1,
        max_circuits: int = CIRCUITS_PER_JOB,
        **options: Any,
    ) -> None:
        primitives = require_extra("qiskit_aer.primitives", "aer")
        aer = require_extra("qiskit_aer", "aer")
        if noise_model is not None and not hasattr(noise_model, "basis_gates"):
            raise InvalidInputError(f"noise_model must be a qiskit_aer.noise.NoiseModel; got {noise_model!r}.")
        if noise_model is None and hasattr(backend, "target"):
            noise_model = require_extra("qiskit_aer.noise", "aer").NoiseModel.from_backend(backend)
        methods = ("automatic", *aer.AerSimulator().available_methods())
        require_choice(method, tuple(dict.fromkeys(methods)), "method")
        noise = {} if noise_model is None else {"noise_model": noise_model}
        self._simulator = aer.AerSimulator(method=method, **noise)
        self._sampler_class = primitives.SamplerV2
        self.noise_model = noise_model
        self._simulation: str | None = None
        self._calls = 0
        super().__init__(
            primitives.SamplerV2.from_backend(self._simulator),
            backend=backend,
            optimization_level=optimization_level,
            seed=seed,
            basis_gates=PLAIN_BASIS if noise_model is None else noise_model.basis_gates,
            max_circuits=max_circuits,
            **options,
        )

    def __repr__(self) -> str:
        name = None if self.backend is None else getattr(self.backend, "name", str(self.backend))
        noise = "" if self.noise_model is None else ", with noise"
        return "AerExecutor(" + (f"backend={name!r}" if name else "simulator") + noise + ")"

    def _submission(self, generator: torch.Generator | None) -> tuple[Callable[[list[Any], int], Any], str]:
        if generator is None:
            generator = stream(self.seed, "aer executor", self._calls)
            self._calls += 1
        base = draw_seed(generator)

        def submit(pubs: list[Any], number: int) -> Any:
            return _AerJob(self._sampler_class, self._simulator, pubs, stream_seed(base, "job", number))

        if self.store is None:
            return submit, ""
        if self._simulation is None:  # takes a second for large devices
            method = self._simulator.options.method
            self._simulation = hashlib.sha256(repr((method, plain(self.noise_model))).encode()).hexdigest()
        return submit, f"{base} {self._simulation}"


class _AerJob:
    """PUBs in groups of equal shots, each with a seed of its own."""

    def __init__(self, sampler_class: Any, simulator: Any, pubs: list[Any], seed: int) -> None:
        self._groups: list[tuple[list[int], Any]] = []
        for shots in dict.fromkeys(pub[-1] for pub in pubs):
            members = [position for position, pub in enumerate(pubs) if pub[-1] == shots]
            sampler = sampler_class.from_backend(simulator, seed=stream_seed(seed, "shots", shots) % 2**31)
            self._groups.append((members, sampler.run([pubs[k] for k in members])))
        self._count = len(pubs)

    def job_id(self) -> str:
        """That of the first group."""
        return str(self._groups[0][1].job_id())

    def result(self) -> list[Any]:
        """In the order of the PUBs."""
        results: list[Any] = [None] * self._count
        for members, job in self._groups:
            for position, result in zip(members, job.result(), strict=True):
                results[position] = result
        return results


def _job_of(backend: Any) -> Callable[[str], Any] | None:
    """What finds a job by its id, where a backend tells of its service as IBM's do."""
    job = getattr(getattr(backend, "service", None), "job", None)
    return job if callable(job) else None


def _backend_of(sampler: Any) -> Any:
    """The backend that a sampler is bound to and names in public, as Qiskit's ``BackendSamplerV2`` does."""
    backend = getattr(sampler, "backend", None)
    return backend if hasattr(backend, "target") else None
