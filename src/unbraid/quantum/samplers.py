"""Executors over Qiskit's samplers: complete circuits, transpiled once, with the input's angles as parameters.

Legend: B vectors of N = 2^n entries; counts are (B, N) in the order of our flat index.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from unbraid.circuits import Circuit
from unbraid.ground import progress
from unbraid.ground.errors import ExecutionError, InvalidInputError, require_extra
from unbraid.ground.random import stream, stream_seed
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

if TYPE_CHECKING:
    from qiskit import QuantumCircuit

PLAIN_BASIS = ("u", "cx")

_LARGEST_CACHE = 20_000
_ROTATIONS = ("rx", "ry", "rz", "p", "u")


class SamplerExecutor:
    """Complete circuits (state preparation, circuit, measurement) on any Qiskit ``BaseSamplerV2``.

    Circuits that differ only in the angles of their state preparation share one parametrised circuit, which is
    transpiled once and kept; the angles travel as parameter values.

    Args:
        sampler: from Qiskit, qiskit-aer, qiskit-ibm-runtime or another provider; its randomness is its own.
        backend: a ``BackendV2`` to transpile to; give it for qiskit-ibm-runtime. Taken from ``sampler.backend`` where
            there is such an attribute; without any, circuits are only translated to ``basis_gates``.
        optimization_level: of Qiskit's transpiler, 0 to 3.
        seed: of Qiskit's transpiler.
        basis_gates: gates to translate to where there is no backend.
        max_circuits: PUBs a job.

    Raises:
        InvalidInputError: if the sampler has no ``run`` method, or a number is out of range.
    """

    def __init__(
        self,
        sampler: Any,
        *,
        backend: Any = None,
        optimization_level: int = 1,
        seed: int = 0,
        basis_gates: Sequence[str] = PLAIN_BASIS,
        max_circuits: int = 100,
    ) -> None:
        if not callable(getattr(sampler, "run", None)):
            raise InvalidInputError(
                "SamplerExecutor needs a BaseSamplerV2, such as qiskit.primitives.StatevectorSampler(); got "
                f"{sampler!r}."
            )
        if optimization_level not in (0, 1, 2, 3):
            raise InvalidInputError(f"optimization_level must be 0, 1, 2 or 3; got {optimization_level!r}.")
        if isinstance(max_circuits, bool) or not isinstance(max_circuits, int) or max_circuits < 1:
            raise InvalidInputError(f"max_circuits must be a positive integer; got {max_circuits!r}.")
        self.sampler = sampler
        self.backend = _backend_of(sampler) if backend is None else backend
        self.optimization_level = optimization_level
        self.seed = seed
        self.basis_gates = tuple(basis_gates)
        self.max_circuits = max_circuits
        self._templates: dict[Hashable, Any] = {}

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
            An :class:`Execution` with ``counts`` on the device of ``vectors``.

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
        counts, job_ids = self.sample(programs, split.flatten().tolist(), generator=generator)
        found = torch.from_numpy(counts).reshape(len(circuits), *states.shape).to(states.device)
        return Execution(
            found[0] if isinstance(circuit, Circuit) else found,
            None,
            len(programs),
            int(split.sum()),
            job_ids,
            time.perf_counter() - start,
        )

    def _tail(self, circuit: Circuit) -> QuantumCircuit:
        """What follows a preparation: the circuit and a measurement of all its qubits."""
        from qiskit import ClassicalRegister, QuantumCircuit, QuantumRegister

        from unbraid.quantum.convert import to_qiskit

        qubits = self.check_width(circuit)
        tail = QuantumCircuit(QuantumRegister(qubits, "q"), ClassicalRegister(qubits, "meas"))
        tail.compose(to_qiskit(circuit), range(qubits), inplace=True)
        tail.measure(range(qubits), range(qubits))
        return tail

    def check_width(self, circuit: Circuit) -> int:
        """Number of qubits of ``circuit``.

        Raises:
            InvalidInputError: if its wires are no qubits, or the backend has fewer.
        """
        qubits = count_qubits(circuit)
        available = getattr(self.backend, "num_qubits", None)
        if available is not None and qubits > available:
            raise InvalidInputError(
                f"The circuit has {qubits} qubits, but the backend {getattr(self.backend, 'name', self.backend)!r} has "
                f"only {available}. Use a wider backend, or smaller layers."
            )
        return qubits

    def sample(
        self,
        programs: Sequence[tuple[QuantumCircuit, QuantumCircuit, Hashable]],
        shots: Sequence[int],
        *,
        generator: torch.Generator | None = None,
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
        pubs = [(*self._bind(*program), number) for program, number in zip(programs, shots, strict=True)]
        counts = np.zeros((len(pubs), 2 ** programs[0][1].num_qubits), dtype=np.int64)
        job_ids: list[str] = []
        with progress.task("circuits", len(pubs)) as advance:
            for first in range(0, len(pubs), self.max_circuits):
                chunk = pubs[first : first + self.max_circuits]
                try:
                    results, ids = self._submit(chunk, generator)
                except Exception as error:  # whatever a foreign sampler raises
                    raise ExecutionError(
                        f"{type(self.sampler).__name__} failed on circuits {first} to {first + len(chunk) - 1}: "
                        f"{type(error).__name__}: {error}"
                    ) from error
                job_ids += ids
                for row, (pub, result) in enumerate(zip(chunk, results, strict=True), start=first):
                    _read_counts(result, pub, counts[row])
                advance(len(chunk))
        return counts, tuple(job_ids)

    def transpile(self, circuit: QuantumCircuit) -> QuantumCircuit:
        """``circuit`` for the backend, or in ``basis_gates`` where there is none."""
        from qiskit import transpile

        settings = {"optimization_level": self.optimization_level, "seed_transpiler": self.seed}
        if self.backend is None:
            return transpile(circuit, basis_gates=list(self.basis_gates), **settings)
        return transpile(circuit, backend=self.backend, **settings)

    def _submit(self, pubs: list[Any], generator: torch.Generator | None) -> tuple[list[Any], list[str]]:
        """Run one job; its results in order, and its id."""
        job = self.sampler.run(pubs)
        results = list(job.result())
        if len(results) != len(pubs):
            raise ExecutionError(f"it returned {len(results)} results for {len(pubs)} circuits")
        return results, [str(job.job_id())]

    def _bind(self, preparation: QuantumCircuit, tail: QuantumCircuit, tail_key: Hashable) -> tuple[Any, Any]:
        """A transpiled circuit and the values of its parameters."""
        structure, values = _structure(preparation)
        if structure is None:
            return self._assemble(preparation, tail), []
        key = (structure, tail_key)
        if key not in self._templates:
            if len(self._templates) >= _LARGEST_CACHE:
                self._templates.clear()
            from qiskit.circuit import ParameterVector

            angles = ParameterVector("angle", len(values))
            template = self._assemble(_with_angles(preparation, angles), tail)
            # The transpiler may drop or reorder parameters.
            self._templates[key] = (template, [parameter.index for parameter in template.parameters])
        template, order = self._templates[key]
        return template, [values[index] for index in order]

    def _assemble(self, preparation: QuantumCircuit, tail: QuantumCircuit) -> QuantumCircuit:
        whole = tail.copy_empty_like()
        whole.compose(preparation, whole.qubits, inplace=True)
        whole.compose(tail, inplace=True)
        transpiled = self.transpile(whole)
        transpiled.global_phase = 0  # counts do not see it, and it would carry parameters
        return transpiled


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
        max_circuits: int = 100,
    ) -> None:
        primitives = require_extra("qiskit_aer.primitives", "aer")
        aer = require_extra("qiskit_aer", "aer")
        if noise_model is None and backend is not None:
            noise_model = require_extra("qiskit_aer.noise", "aer").NoiseModel.from_backend(backend)
        options = {} if noise_model is None else {"noise_model": noise_model}
        self._simulator = aer.AerSimulator(method=method, **options)
        self._sampler_class = primitives.SamplerV2
        self.noise_model = noise_model
        self._calls = 0
        super().__init__(
            primitives.SamplerV2.from_backend(self._simulator),
            backend=backend,
            optimization_level=optimization_level,
            seed=seed,
            basis_gates=PLAIN_BASIS if noise_model is None else noise_model.basis_gates,
            max_circuits=max_circuits,
        )

    def _submit(self, pubs: list[Any], generator: torch.Generator | None) -> tuple[list[Any], list[str]]:
        if generator is None:
            generator = stream(self.seed, "aer executor", self._calls)
            self._calls += 1
        base = draw_seed(generator)
        results: list[Any] = [None] * len(pubs)
        ids = []
        groups: dict[int, list[int]] = {}
        for position, pub in enumerate(pubs):
            groups.setdefault(pub[-1], []).append(position)
        for shots, members in groups.items():
            seed = stream_seed(base, "shots", shots) % 2**31
            job = self._sampler_class.from_backend(self._simulator, seed=seed).run([pubs[k] for k in members])
            for position, result in zip(members, job.result(), strict=True):
                results[position] = result
            ids.append(str(job.job_id()))
        return results, ids


def _backend_of(sampler: Any) -> Any:
    """The backend that a sampler is bound to and names in public, as Qiskit's ``BackendSamplerV2`` does."""
    backend = getattr(sampler, "backend", None)
    return backend if hasattr(backend, "target") else None


def _read_counts(result: Any, pub: tuple[Any, Any, int], row: np.ndarray) -> None:
    circuit, _, shots = pub
    try:
        bits = getattr(result.data, circuit.cregs[0].name)
        # get_int_counts() of BitArray says the same, twenty times slower
        digits = bits.array.reshape(-1, bits.array.shape[-1]).astype(np.int64)
        outcomes = digits @ 256 ** np.arange(digits.shape[1], dtype=np.int64)[::-1]
        row[:] = np.bincount(outcomes, minlength=len(row))
        number = len(outcomes)
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise ExecutionError(f"The sampler returned no counts of all qubits, but {result!r}.") from error
    if number != shots:
        raise ExecutionError(
            f"The sampler returned {number} shots where {shots} were asked for. Check its options, such as a cap."
        )


def _structure(preparation: QuantumCircuit) -> tuple[Hashable | None, list[float]]:
    """What a preparation is apart from the angles of its rotations, and these; None if it holds unknown gates."""
    from qiskit.circuit.library import get_standard_gate_name_mapping

    standard = get_standard_gate_name_mapping()
    places: list[Hashable] = []
    angles: list[float] = []
    for step in preparation.data:
        operation = step.operation
        if operation.name not in standard or preparation.parameters:
            return None, []
        fixed: tuple[float, ...] = ()
        if operation.name in _ROTATIONS:
            angles += [float(angle) for angle in operation.params]
        else:
            fixed = tuple(float(angle) for angle in operation.params)
        state = getattr(operation, "ctrl_state", None)
        places.append((operation.name, state, fixed, tuple(preparation.find_bit(qubit).index for qubit in step.qubits)))
    return (preparation.num_qubits, tuple(places)), angles


def _with_angles(preparation: QuantumCircuit, angles: Any) -> QuantumCircuit:
    template = preparation.copy_empty_like()
    cursor = 0
    for step in preparation.data:
        operation = step.operation
        if operation.name in _ROTATIONS:
            count = len(operation.params)
            operation = operation.to_mutable()
            operation.params = list(angles[cursor : cursor + count])
            cursor += count
        template.append(operation, step.qubits)
    return template
