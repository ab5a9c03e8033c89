"""State tomography: 3^n circuits a vector, and no global sign.

The density matrix is fitted by qiskit-experiments, as in the paper, or by linear inversion in torch: the same estimate
before the projection on positive matrices, which changes its top eigenvector little, and much faster.

A density matrix is the same for psi and -psi, so a rule chooses the sign. "largest" makes the component of largest
magnitude positive, which is wrong for about half of all vectors and must not precede a nonlinearity; it is what a
reader of the density matrix alone can do. "known" takes the sign from what the host knows of the input, see
:class:`unbraid.quantum.reading.Anchor`. Run both to see what the lost sign costs.

Legend: B vectors of N = 2^n entries; rho the density matrix.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unbraid.circuits import Circuit
from unbraid.ground import progress
from unbraid.ground.errors import ExecutionError, InvalidInputError, require_choice, require_extra
from unbraid.quantum.encode import Encoding, encode
from unbraid.quantum.execute import Executor, TorchExecutor, circuit_key, count_qubits, draw_seed
from unbraid.quantum.reading import Anchor, Reading, counts_of, followed_by, unfolded
from unbraid.quantum.samplers import SamplerExecutor

SIGNS = ("largest", "known")
FITTERS = ("qiskit-experiments", "inversion")
_LARGEST = 2**24  # counts held at once
_R = math.sqrt(0.5)
_TO_Z = {  # rotations of a basis to the computational one
    "X": torch.tensor([[_R, _R], [_R, -_R]], dtype=torch.complex128),
    "Y": torch.tensor([[_R, -_R * 1j], [_R, _R * 1j]], dtype=torch.complex128),
    "Z": torch.eye(2, dtype=torch.complex128),
}


@dataclass(frozen=True)
class Tomography:
    """State tomography, and the top eigenvector of the density matrix (of its real part, for a real circuit).

    Attributes:
        sign: "largest": the component of largest magnitude is made positive. "known": the input decides, with a
            little of a known vector mixed in where it does not.
        fitter: of the density matrix, "qiskit-experiments" | "inversion".
    """

    sign: str = "largest"
    fitter: str = "qiskit-experiments"

    def __post_init__(self) -> None:
        require_choice(self.sign, SIGNS, "sign")
        require_choice(self.fitter, FITTERS, "fitter")

    def __str__(self) -> str:
        return "tomography"

    def circuits(self, qubits: int) -> int:
        """One a Pauli basis, 3^n."""
        return int(3**qubits)

    def shots(self, total: int, qubits: int) -> int:
        """The same for each basis, at least 1."""
        return int(3**qubits * max(1, total // 3**qubits))

    def measured(self, circuit: Circuit) -> Iterator[Circuit]:
        """The circuit followed by rotations of each basis."""
        return (measured_in(circuit, basis) for basis in product("XYZ", repeat=count_qubits(circuit)))

    def check(self, executor: Executor) -> None:
        """Refuse an executor whose means this tomography would not use.

        Raises:
            InvalidInputError: if the fitter is qiskit-experiments' and the executor mitigates or extrapolates.
        """
        mitigates = getattr(executor, "mitigate_readout", False) or getattr(executor, "noise_factors", (1,)) != (1,)
        if self.fitter == "qiskit-experiments" and mitigates:
            raise InvalidInputError(
                "Tomography by qiskit-experiments takes counts as they are, without readout mitigation and noise "
                "factors. Use Tomography(fitter='inversion'), or an executor without these."
            )

    def read(
        self,
        circuit: Circuit,
        units: Tensor,
        shots: int,
        executor: Executor,
        generator: torch.Generator | None,
        encoding: Encoding,
    ) -> Reading:
        """See :meth:`unbraid.quantum.reading.Readout.read`."""
        self.check(executor)
        read = _by_inversion if self.fitter == "inversion" else _by_experiments
        if self.sign == "largest":
            return read(circuit, units, shots, executor, generator, encoding)
        anchor = Anchor(circuit, units)
        reading = read(circuit, anchor.states, shots, executor, generator, encoding)
        return replace(reading, vectors=anchor.settle(reading.vectors), errors=anchor.lengths * reading.errors)


def _by_experiments(
    circuit: Circuit,
    units: Tensor,
    shots: int,
    executor: Executor,
    generator: torch.Generator | None,
    encoding: Encoding,
) -> Reading:
    library = require_extra("qiskit_experiments.library", "tomography")
    framework = require_extra("qiskit_experiments.framework", "tomography")
    if isinstance(executor, TorchExecutor):
        from qiskit.primitives import StatevectorSampler

        seed = executor.seed if generator is None else draw_seed(generator)
        sampler = SamplerExecutor(StatevectorSampler(seed=seed), optimization_level=0)
    elif isinstance(executor, SamplerExecutor):
        sampler = executor
    else:
        raise InvalidInputError(
            f"Tomography measures in other bases and needs a SamplerExecutor or a TorchExecutor; got {executor!r}."
        )
    from unbraid.quantum.convert import to_qiskit

    qubits = sampler.check_width(circuit)
    bases = 3**qubits
    each = max(1, shots // bases)
    experiment = library.StateTomography(to_qiskit(circuit), target=None)
    tails = experiment.circuits()
    key = circuit_key(circuit)
    encoded = encode(units, encoding)
    vectors = torch.zeros(
        units.shape, dtype=torch.complex128 if circuit.is_complex else torch.float64, device=units.device
    )
    errors = units.new_zeros(len(units))
    part = max(1, _LARGEST // (bases * units.shape[1]))
    with progress.task("tomography", len(units)) as advance:
        for first in range(0, len(units), part):
            members = range(first, min(first + part, len(units)))
            preparations = [encoded.circuit(i) for i in members]
            programs = [(preparation, tail, (key, tail.name)) for preparation in preparations for tail in tails]
            counts, _ = sampler.sample(programs, [each] * len(programs), generator=generator)
            for i, rows in zip(members, counts.reshape(len(members), bases, -1), strict=True):
                data = framework.ExperimentData(experiment=experiment)
                data.add_data(
                    [
                        {"counts": _bitstrings(row, qubits), "metadata": tail.metadata, "shots": each, "meas_level": 2}
                        for row, tail in zip(rows, tails, strict=True)
                    ]
                )
                vector = _top_eigenvector(_fit(experiment, data), real=not circuit.is_complex)
                vectors[i] = torch.from_numpy(vector)
                errors[i] = math.sqrt(_tomography_variance(vector) / (each * bases))
                advance(1)
    return Reading(vectors, errors, bases * len(units), bases * each * len(units))


def _by_inversion(
    circuit: Circuit,
    units: Tensor,
    shots: int,
    executor: Executor,
    generator: torch.Generator | None,
    encoding: Encoding,
) -> Reading:
    n = count_qubits(circuit)
    bases = list(product("XYZ", repeat=n))
    each = max(1, shots // len(bases))
    circuits = [measured_in(circuit, basis) for basis in bases]
    encoded = encode(units, encoding)
    found, spent_circuits, spent_shots = [], 0, 0
    part = max(1, _LARGEST // (len(bases) * circuit.dimension))
    for first in range(0, len(units), part):
        states = encoded.part(first, first + part)
        execution = executor.run(circuits, states, each, generator=generator)
        counts, confusion = counts_of(execution, executor, units.device)
        clean = (
            counts
            if confusion is None
            else torch.stack([unfolded(*pair) for pair in zip(counts, confusion, strict=True)])
        )
        rho = invert(clean / clean.sum(dim=2, keepdim=True))
        found.append(torch.linalg.eigh(rho if circuit.is_complex else rho.real)[1][:, :, -1])
        spent_circuits += execution.circuits
        spent_shots += execution.shots
    vectors = torch.cat(found)
    largest = vectors.gather(1, vectors.abs().argmax(dim=1, keepdim=True))
    vectors = vectors * (largest.abs() / largest)
    errors = [math.sqrt(_tomography_variance(vector) / (each * len(bases))) for vector in vectors.cpu().numpy()]
    return Reading(vectors, units.new_tensor(errors), spent_circuits, spent_shots)


def measured_in(circuit: Circuit, basis: Sequence[str]) -> Circuit:
    """The circuit followed by rotations of the Pauli bases "X", "Y", "Z" to the computational one, detached.

    Args:
        circuit: without nonlinearities.
        basis: one a qubit, the most significant first.
    """
    return followed_by(circuit, [None if name == "Z" else _TO_Z[name] for name in basis])


def invert(frequencies: Tensor) -> Tensor:
    """Density matrices by linear inversion: the mean of the product over qubits of ``3 |b><b| - 1``.

    Args:
        frequencies: shape (3^n, B, 2^n), bases in the order of ``product("XYZ", repeat=n)``.

    Returns:
        Shape (B, 2^n, 2^n), Hermitian, of trace 1; not always positive.
    """
    bases, batch, size = frequencies.shape
    n = size.bit_length() - 1
    projectors = torch.stack([_projectors(_TO_Z[name]) for name in "XYZ"])
    dual = (3 * projectors - torch.eye(2, dtype=torch.complex128)) / 3  # (basis, outcome, row, column)
    dual = dual.to(frequencies.device)
    rho = frequencies.to(torch.complex128).permute(1, 0, 2).reshape(batch, 1, bases, size)
    for _ in range(n):  # the first qubit that is left, to rows and columns behind
        sites = rho.reshape(len(rho), -1, 3, rho.shape[2] // 3, 2, rho.shape[3] // 2)
        rho = torch.einsum("rmsagb,sgij->rmijab", sites, dual).flatten(1, 3)
    pairs = rho.reshape(batch, *[2] * (2 * n))
    order = [0, *range(1, 2 * n, 2), *range(2, 2 * n + 1, 2)]
    return pairs.permute(order).reshape(batch, size, size)


def _projectors(turn: Tensor) -> Tensor:
    """|b><b| of both outcomes behind a rotation, shape (2, 2, 2)."""
    return turn.conj()[:, :, None] * turn[:, None, :]


def _fit(experiment: Any, data: Any) -> np.ndarray:
    """The density matrix of qiskit-experiments' default fitter, shape (N, N)."""
    data = experiment.analysis.run(data).block_for_results()
    try:
        return np.asarray(data.analysis_results("state", dataframe=True).iloc[0].value)
    except Exception as error:  # the analysis runs in a thread and reports failure as a missing result
        raise ExecutionError(f"State tomography gave no state: {data.errors() or error}") from error


def _top_eigenvector(rho: np.ndarray, *, real: bool) -> np.ndarray:
    """The eigenvector of the largest eigenvalue; its component of largest magnitude is made positive."""
    _, vectors = np.linalg.eigh(rho.real if real else rho)
    top = vectors[:, -1]
    largest = top[np.argmax(np.abs(top))]
    return top * (np.abs(largest) / largest)


def _tomography_variance(psi: np.ndarray) -> float:
    """Expected squared L2 error of the top eigenvector, times the shots in all, to first order.

    One shot in a random Pauli basis estimates rho by the product over qubits of ``3 |b><b| - 1``. Averaged over bases
    and outcomes, its square acts on every qubit as ``sigma -> sigma + 2 tr(sigma)``; the square of its real part is
    half of that plus half of ``sigma -> (sigma + sigma^T + tr(sigma)) / 2``. The part along psi does not turn it and is
    subtracted. The fitter's constraint to positive matrices may lower the error further.
    """
    qubits = len(psi).bit_length() - 1
    rho = np.outer(psi, psi.conj())
    whole = _sitewise(rho, qubits, lambda sigma, identity: sigma + 2 * identity)
    second_moment = float((psi.conj() @ whole @ psi).real)
    if not np.iscomplexobj(psi):
        crossed = _sitewise(rho, qubits, lambda sigma, identity: (sigma + sigma.swapaxes(1, 4) + identity) / 2)
        second_moment = (second_moment + float(psi @ crossed @ psi)) / 2
    return max(second_moment - _fidelity_moment(psi), 0.0)


def _fidelity_moment(psi: np.ndarray) -> float:
    """Mean square of one shot's estimate of <psi|rho|psi>, over all Pauli bases."""
    qubits = len(psi).bit_length() - 1
    half = math.sqrt(0.5)
    bases = np.array([[[1, 0], [0, 1]], [[half, half], [half, -half]], [[half, -half * 1j], [half, half * 1j]]])
    amplitudes = psi.reshape(1, -1)  # shape (bases, N)
    for k in range(qubits):
        sites = amplitudes.reshape(len(amplitudes), 2**k, 2, -1)
        amplitudes = np.einsum("sab,mdbr->msdar", bases, sites).reshape(3 * len(amplitudes), -1)
    probabilities = np.abs(amplitudes) ** 2
    estimates = probabilities
    for k in range(qubits):
        sites = estimates.reshape(len(estimates), 2**k, 2, -1)
        estimates = np.einsum("ab,mdbr->mdar", np.array([[2, -1], [-1, 2]]), sites).reshape(len(estimates), -1)
    return float((probabilities * estimates**2).sum() / len(estimates))


def _sitewise(rho: np.ndarray, qubits: int, rule: Any) -> np.ndarray:
    """Apply ``rule(sigma, tr(sigma) times identity)`` to every qubit in turn."""
    size = len(rho)
    for k in range(qubits):
        before, after = 2**k, 2 ** (qubits - 1 - k)
        sigma = rho.reshape(before, 2, after, before, 2, after)
        trace = np.einsum("abcdbe->acde", sigma)
        identity = np.einsum("acde,bf->abcdfe", trace, np.eye(2))
        rho = rule(sigma, identity).reshape(size, size)
    return rho


def _bitstrings(row: np.ndarray, qubits: int) -> dict[str, int]:
    return {format(int(index), f"0{qubits}b"): int(row[index]) for index in row.nonzero()[0]}
