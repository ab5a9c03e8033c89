"""Readouts: from counts back to the signed vector that a circuit produced.

A quantum state has neither norm nor sign: the norm is kept aside, and every readout says what becomes of the sign.

- "exact": the vector itself, from torch; nothing is measured.
- "reference": the plus/minus reference, two circuits a vector; measures magnitudes and signs, the global one included.
- "tomography": 3^n circuits a vector; the global sign is lost, and the largest component is made positive.

Legend: B vectors of N = 2^n entries; x the unit input, psi = Q x wanted, u uniform, r = Q^T u; S shots in all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unbraid.circuits import Circuit
from unbraid.circuits.circuit import apply_gate
from unbraid.ground import progress
from unbraid.ground.errors import ExecutionError, InvalidInputError, require_choice, require_extra, require_finite
from unbraid.quantum.encode import Encoding, encoding_of
from unbraid.quantum.execute import Executor, TorchExecutor, circuit_key, draw_seed
from unbraid.quantum.samplers import SamplerExecutor

READOUTS = ("exact", "reference", "tomography")
SIGNAL = 0.8  # c^2, the share of x in the prepared states; the rest is the reference


@dataclass(frozen=True)
class ReadOut:
    """A vector read back, and what that took.

    Attributes:
        vectors: circuit(x) with its norm, shape (..., N).
        standard_error: estimated root of the expected squared L2 error of each vector, from the finite number of shots
            alone (no gate errors, no error of the encoding), shape (...).
        circuits: circuits run for all vectors.
        shots: shots of all circuits.
    """

    vectors: Tensor
    standard_error: Tensor
    circuits: int
    shots: int


def read_out(
    circuit: Circuit,
    x: Tensor,
    *,
    readout: str = "reference",
    shots: int = 10_000,
    executor: Executor | None = None,
    generator: torch.Generator | None = None,
    encoding: str | Encoding = "amplitude",
) -> ReadOut:
    """Run ``circuit`` on ``x`` and read the result back, with norm and sign.

    Zero vectors give zeros without being run.

    Args:
        circuit: without nonlinearities.
        x: real, shape (..., N).
        readout: "exact": torch, no shots, differentiable. "reference": the plus/minus reference, for real circuits.
            "tomography": state tomography by qiskit-experiments and the top eigenvector of the density matrix (of its
            real part, for a real circuit). Tomography cannot see the global sign: the component of largest magnitude is
            made positive, which is wrong for about half of all vectors and must not precede a nonlinearity.
        shots: for one vector, over all circuits of its readout: "reference" splits them over 2, "tomography" over 3^n
            circuits, at least 1 each.
        executor: :class:`unbraid.TorchExecutor` by default, sampled with seed 0.
        generator: of the samples; equal generators give equal results (samplers other than Aer keep their own
            randomness).
        encoding: "amplitude" | "mps", or one with its settings; see :func:`unbraid.encode`.

    Returns:
        A :class:`ReadOut`.

    Raises:
        InvalidInputError: if the readout is unknown or does not suit circuit and executor, or sizes, entries or shots
            cannot be used.
        ExecutionError: if the executor fails.
        MissingExtraError: if qiskit-experiments is needed and not installed.
    """
    require_choice(readout, READOUTS, "readout")
    encoding = encoding_of(encoding)
    if not circuit.is_linear:
        raise InvalidInputError(
            "read_out takes linear circuits; this one carries nonlinearities. Read out its segments() one by one, or "
            "use to_quantum."
        )
    if x.dim() == 0 or x.shape[-1] != circuit.dimension:
        raise InvalidInputError(
            f"x must have {circuit.dimension} entries on its last axis; got shape {tuple(x.shape)}. Pad with zeros."
        )
    if x.is_complex() or not x.is_floating_point():
        raise InvalidInputError(f"x must be real and floating point; got {x.dtype}.")
    require_finite(x, "x")
    if readout != "exact" and (isinstance(shots, bool) or not isinstance(shots, int) or shots < 2):
        raise InvalidInputError(f"shots must be an integer of at least 2; got {shots!r}.")
    executor = TorchExecutor() if executor is None else executor
    flat = x.reshape(-1, circuit.dimension)
    if readout == "exact":
        vectors, circuits = _exact(circuit, flat, executor)
        errors = vectors.new_zeros(len(flat), dtype=vectors.real.dtype)
        return ReadOut(vectors.reshape(x.shape), errors.reshape(x.shape[:-1]), circuits, 0)
    if readout == "reference" and circuit.is_complex:
        raise InvalidInputError(
            "The plus/minus reference reads real vectors, and this circuit has unitary gates. Use readout='exact', or "
            "circuits of gate='so'."
        )
    with torch.no_grad():
        # Scaled by the largest entry, so that no square under- or overflows.
        largest = flat.abs().amax(dim=1).double()
        rows = largest > 0
        scaled = flat[rows].double() / largest[rows, None]
        lengths = torch.linalg.vector_norm(scaled, dim=1)
        units, norms = scaled / lengths[:, None], largest[rows] * lengths
        read = _reference if readout == "reference" else _tomography
        found, errors, circuits, spent = read(circuit, units, shots, executor, generator, encoding)
        dtype = torch.promote_types(x.dtype, torch.complex64) if found.is_complex() else x.dtype
        vectors = torch.zeros(flat.shape, dtype=dtype, device=x.device)
        vectors[rows] = (found * norms[:, None]).to(dtype)
        standard_error = torch.zeros_like(largest)
        standard_error[rows] = errors * norms
    return ReadOut(
        vectors.reshape(x.shape), standard_error.to(x.dtype).reshape(x.shape[:-1]), circuits, spent
    )  # fmt: skip


def solve_reference(plus: Tensor, minus: Tensor, shots: int, *, signal: float = SIGNAL) -> tuple[Tensor, Tensor]:
    """Maximum-likelihood unit vector from the counts of the plus/minus reference.

    Each amplitude a = c psi_b is a stationary point of the Poisson likelihood
    ``n+ log (a + w)^2 + n- log (a - w)^2 - S ((a + w)^2 + (a - w)^2) / 2``, a root of
    ``S a^3 - (S w^2 + n+ + n-) a + w (n+ - n-) = 0``, which always has three real roots.

    Args:
        plus: counts of the plus circuit, shape (B, N).
        minus: counts of the minus circuit, shape (B, N).
        shots: S, both circuits together, split in proportion to the squared norms of the states.
        signal: c^2.

    Returns:
        Unit vectors, float64, shape (B, N), and their estimated L2 errors, shape (B,).
    """
    plus, minus = plus.double(), minus.double()
    size = plus.shape[1]
    w = math.sqrt((1 - signal) / size)
    p = w**2 + (plus + minus) / shots  # a^3 - p a + q = 0
    q = w * (plus - minus) / shots
    radius = 2 * (p / 3).sqrt()
    # Rounding may push the argument beyond 1 where two roots meet.
    angle = torch.arccos((-3 * q / (p * radius)).clamp(-1, 1)) / 3
    turns = torch.arange(3, dtype=torch.float64, device=plus.device) * (2 * math.pi / 3)
    roots = radius * torch.cos(angle - turns[:, None, None])  # shape (3, B, N)
    likelihood = torch.xlogy(plus, (roots + w) ** 2) + torch.xlogy(minus, (roots - w) ** 2) - shots * (roots**2 + w**2)
    (best, second), order = likelihood.topk(2, dim=0)
    first, other = roots.gather(0, order)
    # Curvature 4 S around the chosen root, plus the odds of having chosen the wrong one.
    doubt = (second - best).exp()
    variance = (size - 1) / (4 * shots) + (doubt / (1 + doubt) * (first - other) ** 2).sum(dim=1)
    norm = torch.linalg.vector_norm(first, dim=1, keepdim=True)
    return first / norm.clamp(min=torch.finfo(torch.float64).tiny), (variance / signal).sqrt()


def reference_states(circuit: Circuit, units: Tensor) -> tuple[Tensor, Tensor]:
    """The states that the plus/minus reference prepares.

    Args:
        circuit: real, without nonlinearities.
        units: unit vectors x, shape (B, N).

    Returns:
        ``(c x + s r) / nu+`` and ``(c x - s r) / nu-``, float64, shape (2, B, N), and nu+^2 and nu-^2, shape (2, B).
    """
    size = units.shape[1]
    uniform = torch.full((1, size), size**-0.5, dtype=torch.float64, device=units.device)
    r = apply_transposed(circuit, uniform)
    mixed = math.sqrt(SIGNAL) * units.double() + math.sqrt(1 - SIGNAL) * torch.stack([r, -r])
    squares = mixed.square().sum(dim=2)
    return mixed / squares.sqrt()[:, :, None], squares


def apply_transposed(circuit: Circuit, x: Tensor) -> Tensor:
    """``Q^T x`` along the last axis, gate by gate.

    Args:
        circuit: without nonlinearities.
        x: shape (B, N).

    Returns:
        Shape (B, N).
    """
    matrices, gates = circuit.gate_matrices(), list(circuit.ansatz.gates())
    for step in reversed(circuit.schedule()):
        if isinstance(step, int):
            x = apply_gate(x, matrices[step].mT, gates[step].wires, circuit.ansatz.wire_dims)
    return x


def _exact(circuit: Circuit, flat: Tensor, executor: Executor) -> tuple[Tensor, int]:
    if not isinstance(executor, TorchExecutor):
        raise InvalidInputError(
            f"readout='exact' takes the vector from torch's simulation, and {executor!r} only counts outcomes. Use "
            "readout='reference', or executor=TorchExecutor()."
        )
    return circuit(flat), len(flat)


def _reference(
    circuit: Circuit,
    units: Tensor,
    shots: int,
    executor: Executor,
    generator: torch.Generator | None,
    encoding: Encoding,
) -> tuple[Tensor, Tensor, int, int]:
    if not len(units):
        return units, units.new_zeros(0), 0, 0
    states, squares = reference_states(circuit, units)
    first = (shots * squares[0] / 2).round().long().clamp(1, shots - 1)
    split = torch.cat([first, shots - first])
    execution = executor.run(circuit, states.flatten(0, 1), split, encoding=encoding, generator=generator)
    if execution.counts is None:
        raise ExecutionError(f"{executor!r} returned no counts.")
    plus, minus = execution.counts.to(units.device).chunk(2)
    vectors, errors = solve_reference(plus, minus, shots)
    return vectors, errors, execution.circuits, execution.shots


def _tomography(
    circuit: Circuit,
    units: Tensor,
    shots: int,
    executor: Executor,
    generator: torch.Generator | None,
    encoding: Encoding,
) -> tuple[Tensor, Tensor, int, int]:
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
    from unbraid.quantum.encode import encode

    qubits = sampler.check_width(circuit)
    settings = 3**qubits
    each = max(1, shots // settings)
    experiment = library.StateTomography(to_qiskit(circuit), target=None)
    tails = experiment.circuits()
    key = circuit_key(circuit)
    encoded = encode(units, encoding=encoding) if len(units) else None
    vectors = torch.zeros(
        units.shape, dtype=torch.complex128 if circuit.is_complex else torch.float64, device=units.device
    )
    errors = units.new_zeros(len(units))
    for i in progress.track(range(len(units)), "tomography"):
        assert encoded is not None
        preparation = encoded.circuit(i)
        programs = [(preparation, tail, (key, tail.name)) for tail in tails]
        counts, _ = sampler.sample(programs, [each] * settings, generator=generator)
        data = framework.ExperimentData(experiment=experiment)
        data.add_data(
            [
                {"counts": _bitstrings(row, qubits), "metadata": tail.metadata, "shots": each, "meas_level": 2}
                for row, tail in zip(counts, tails, strict=True)
            ]
        )
        vector = _top_eigenvector(_fit(experiment, data), real=not circuit.is_complex)
        vectors[i] = torch.from_numpy(vector)
        errors[i] = math.sqrt(_tomography_variance(vector) / (each * settings))
    return vectors, errors, settings * len(units), settings * each * len(units)


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
