"""Seconds an image through both circuits of a six-qubit layer: torch, Aer, and the paper's pipeline as it is written.

The layer is 64 x 64 with two layers of SO(4) gates a side. The paper's pipeline prepares the vector, appends the
circuit as one unitary, runs qiskit-experiments' ``StateTomography`` on Aer with 1,000 shots for each of the 729
circuits, and takes the top eigenvector; it is run on a few images. Ours reads by the plus/minus reference with 10,000
shots a stage. One core, one run, as ratios. A second table has the error of the readouts against shots.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import statistics
import time
import warnings

import numpy as np
import torch
from timing import print_rows

from unbraid import AerExecutor, Circuit, TorchExecutor, brickwall, to_qiskit
from unbraid.quantum.encode import prepare_state
from unbraid.quantum.execute import sample_counts
from unbraid.quantum.readout import read_out
from unbraid.quantum.tomography import invert

SHOTS = 10_000
IMAGES = 10_000  # in torch
AER_IMAGES = 100
NAIVE_IMAGES = 2
TOMOGRAPHY = {6: (200, 10), 8: (200, 2), 10: (40, 1)}  # qubits to shots a basis, and vectors
GOAL = 0.05  # L2 error


def circuits() -> tuple[Circuit, Circuit]:
    """Input and output circuit."""
    first, second = (Circuit(brickwall(6, 2), init="random", seed=seed, dtype=torch.float64) for seed in (1, 2))
    return first, second


def vectors(count: int, n: int = 6) -> torch.Tensor:
    """Unit vectors."""
    x = torch.randn(count, 2**n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return x / x.norm(dim=1, keepdim=True)


def sampled(executor: object, count: int) -> float:
    """Seconds an image with the reference readout, transpilation and the first use included once."""
    x = vectors(count)
    start = time.perf_counter()
    for circuit in circuits():
        x = read_out(circuit, x, shots=SHOTS, executor=executor).vectors  # type: ignore[arg-type]
    return (time.perf_counter() - start) / count


def naive(count: int) -> float:
    """Seconds an image of the paper's pipeline."""
    from qiskit.quantum_info import Operator
    from qiskit_aer import AerSimulator
    from qiskit_experiments.library import StateTomography

    warnings.simplefilter("ignore")
    backend = AerSimulator(seed_simulator=0)
    unitaries = [Operator(to_qiskit(circuit)) for circuit in circuits()]
    start = time.perf_counter()
    for vector in vectors(count):
        state = vector.numpy()
        for unitary in unitaries:
            qc = prepare_state(torch.from_numpy(state))
            qc.append(unitary.to_instruction(), range(6))
            data = StateTomography(qc, target=None).run(backend, shots=1000).block_for_results()
            rho = np.asarray(data.analysis_results("state", dataframe=True).iloc[0].value)
            state = np.linalg.eigh(rho.real)[1][:, -1].copy()
    return (time.perf_counter() - start) / count


def errors() -> list[list[object]]:
    """Squared error times 4 S / (2^n - 1), and shots for an error of 0.05."""
    rows: list[list[object]] = []
    for n, shots, count in ((6, 8_100, 400), (8, 35_000, 100), (10, 120_000, 30)):
        circuit = Circuit(brickwall(n, 3), init="random", seed=1, dtype=torch.float64)
        x = vectors(count, n)
        exact = circuit(x).detach()
        for readout in ("reference", "signs"):
            read = read_out(circuit, x, readout=readout, shots=shots).vectors
            rows.append(error_row(n, readout, shots, read - exact))
        each, some = TOMOGRAPHY[n]
        for name, read in tomography(exact[:some], each).items():
            signs = (read.conj() * exact[:some]).sum(dim=1, keepdim=True)
            rows.append(error_row(n, name, each * 3**n, read * signs / signs.abs() - exact[:some]))
    return rows


def error_row(n: int, name: str, shots: int, differences: torch.Tensor) -> list[object]:
    """A line of the table."""
    squared = float(differences.abs().square().sum(dim=1).mean())
    optimum = (2**n - 1) / (4 * shots)
    return [n, name, f"{shots:,}", squared**0.5, squared / optimum, f"{shots * squared / GOAL**2:,.0f}"]


def tomography(psi: torch.Tensor, shots: int) -> dict[str, torch.Tensor]:
    """Top eigenvectors of the density matrix as the paper has it, and of its real part, which uses that psi is real.

    Ten qubits take 4 GB and most of a minute.
    """
    half = 0.5**0.5
    turns = [[[half, half], [half, -half]], [[half, -half * 1j], [half, half * 1j]], [[1, 0], [0, 1]]]
    to_z = torch.tensor(turns, dtype=torch.complex128)  # X, Y, Z
    found: dict[str, list[torch.Tensor]] = {"tomography, complex": [], "tomography, real": []}
    for vector in psi:
        behind = vector.to(torch.complex128)[None]  # shape (bases, N)
        for k in range(len(vector).bit_length() - 1):
            pairs = behind.reshape(len(behind), 2**k, 2, -1)
            behind = torch.einsum("sab,mdbr->msdar", to_z, pairs).reshape(3 * len(behind), -1)
        counts = sample_counts(behind, shots, torch.Generator().manual_seed(0))
        del behind
        rho = invert((counts / shots)[:, None])[0]
        found["tomography, complex"].append(torch.linalg.eigh(rho)[1][:, -1])
        found["tomography, real"].append(torch.linalg.eigh(rho.real)[1][:, -1].to(rho.dtype))
    return {name: torch.stack(vectors) for name, vectors in found.items()}


def main() -> None:
    """Both tables."""
    torch.set_num_threads(1)
    fast = statistics.median(sampled(TorchExecutor(), IMAGES) for _ in range(3))
    aer = statistics.median(sampled(AerExecutor(), AER_IMAGES) for _ in range(3))
    paper = naive(NAIVE_IMAGES)
    rows = [
        ["paper's pipeline, Aer", NAIVE_IMAGES, paper, 1.0],
        ["reference, Aer", AER_IMAGES, aer, paper / aer],
        ["reference, torch", IMAGES, fast, paper / fast],
    ]
    print_rows(["six qubits, two stages", "images", "seconds an image", "times faster"], rows)
    print()
    print_rows(["qubits", "readout", "shots", "L2 error", "of the optimum", f"shots for {GOAL:g}"], errors())


if __name__ == "__main__":
    main()
