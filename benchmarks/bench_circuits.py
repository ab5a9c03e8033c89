"""One circuit layer forward, and forward with backward, beside PennyLane, TensorCircuit and Qiskit Machine Learning.

A brickwall of two layers of SO(4) gates acts on batches of input vectors (amplitude encoding); its output vector is
wanted, and the gradient of a sum by the gates' angles. Peers get the same gates as Ry and CNOT, six and two a gate. On
one core; medians, as ratios of one run, with the peak memory that a case adds in a process of its own. Double precision
throughout. Cases that a peer cannot hold in memory are left out, as are those of Qiskit Machine Learning that take
hours.

PennyLane comes with the extra ``pennylane``; ``tensorcircuit-ng`` and ``qiskit-machine-learning`` are used where they
are installed, see ``peers.txt``. TorchQuantum 0.1.8 does not import with Qiskit 2.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import json
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from timing import print_rows

DEPTH = 2
QUBITS = (6, 10, 14)
BATCHES = (1, 64, 1024)
PEERS = ("pennylane", "tensorcircuit", "qiskit-ml")
LARGEST_SECONDS = 60.0
LARGEST_BYTES = 16e9


def ours(n: int, batch: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Forward, and forward with backward."""
    from unbraid import Circuit, brickwall

    circuit = Circuit(brickwall(n, DEPTH), init="random", dtype=torch.float64)
    x = vectors(n, batch)

    def forward() -> Any:
        with torch.no_grad():
            return circuit(x)

    def backward() -> Any:
        circuit.zero_grad()
        circuit(x).sum().backward()

    return forward, backward


def vectors(n: int, batch: int) -> torch.Tensor:
    """Normalised inputs."""
    x = torch.randn(batch, 2**n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return x / x.norm(dim=1, keepdim=True)


def places(n: int) -> list[int]:
    """First wires of the gates, layer by layer."""
    return [wire for layer in range(DEPTH) for wire in range(layer % 2, n - 1, 2)]


def angles(n: int) -> torch.Tensor:
    """Six a gate."""
    return torch.randn(len(places(n)), 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def pennylane(n: int, batch: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """default.qubit with torch: broadcasts over the batch, differentiates by backpropagation."""
    import pennylane as qml

    device = qml.device("default.qubit", wires=n)

    @qml.qnode(device, interface="torch", diff_method="backprop")
    def run(x: torch.Tensor, t: torch.Tensor) -> Any:
        qml.StatePrep(x, wires=range(n))
        for gate, wire in enumerate(places(n)):
            for column in range(3):
                if column:
                    qml.CNOT([wire, wire + 1])
                qml.RY(t[gate, 2 * column], wire)
                qml.RY(t[gate, 2 * column + 1], wire + 1)
        return qml.state()

    return both(lambda x, t: run(x, t).real, n, batch)


def tensorcircuit(n: int, batch: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """TensorCircuit-NG with its torch backend, vectorised over the batch."""
    import tensorcircuit as tc

    backend = tc.set_backend("pytorch")
    tc.set_dtype("complex128")

    def one(x: torch.Tensor, t: torch.Tensor) -> Any:
        circuit = tc.Circuit(n, inputs=x)
        for gate, wire in enumerate(places(n)):
            for column in range(3):
                if column:
                    circuit.cnot(wire, wire + 1)
                circuit.ry(wire, theta=t[gate, 2 * column])
                circuit.ry(wire + 1, theta=t[gate, 2 * column + 1])
        return backend.real(circuit.state())

    many = backend.vmap(one, vectorized_argnums=0)
    return both(lambda x, t: many(x.to(torch.complex128), t), n, batch)


def qiskit_ml(n: int, batch: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """TorchConnector over a SamplerQNN: probabilities, since it has no vectors; one circuit a sample, of angles."""
    from qiskit import QuantumCircuit
    from qiskit.circuit import ParameterVector
    from qiskit.primitives import StatevectorSampler
    from qiskit_machine_learning.connectors import TorchConnector
    from qiskit_machine_learning.neural_networks import SamplerQNN

    inputs, weights = ParameterVector("x", n), ParameterVector("t", 6 * len(places(n)))
    circuit = QuantumCircuit(n)
    for wire in range(n):
        circuit.ry(inputs[wire], wire)
    for gate, wire in enumerate(places(n)):
        for column in range(3):
            if column:
                circuit.cx(wire, wire + 1)
            circuit.ry(weights[6 * gate + 2 * column], wire)
            circuit.ry(weights[6 * gate + 2 * column + 1], wire + 1)
    network = SamplerQNN(
        circuit=circuit, input_params=inputs, weight_params=weights, sampler=StatevectorSampler(), input_gradients=False
    )
    layer = TorchConnector(network)
    x = torch.randn(batch, n, generator=torch.Generator().manual_seed(0))

    def forward() -> Any:
        with torch.no_grad():
            return layer(x)

    def backward() -> Any:
        layer.zero_grad()
        layer(x).sum().backward()

    return forward, backward


def both(run: Callable[..., Any], n: int, batch: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Forward, and forward with backward by the angles."""
    x, t = vectors(n, batch), angles(n).requires_grad_()

    def forward() -> Any:
        with torch.no_grad():
            return run(x, t)

    def backward() -> Any:
        t.grad = None
        run(x, t).sum().backward()

    return forward, backward


MAKERS = {"ours": ours, "pennylane": pennylane, "tensorcircuit": tensorcircuit, "qiskit-ml": qiskit_ml}


def measure(name: str, n: int, batch: int, what: str) -> None:
    """Print the median seconds of a case and the memory that it added, as JSON; run in a process of its own."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    function = MAKERS[name](n, batch)[0 if what == "forward" else 1]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    function()
    once = time.perf_counter() - start
    times = []
    while len(times) < 7 and sum(times) < 5 and once < LARGEST_SECONDS:
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    median = sorted(times)[len(times) // 2] if times else once
    print(json.dumps([median, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024]))


def case(name: str, n: int, batch: int, what: str) -> tuple[float, float] | None:
    """Seconds and MiB, or None where it fails or takes too long."""
    needed = batch * 2**n * 16 * (8 * len(places(n)) if what == "backward" else 4)
    if name != "ours" and needed > LARGEST_BYTES:
        return None
    command = [sys.executable, __file__, name, str(n), str(batch), what]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5 * LARGEST_SECONDS, check=False)
        seconds, memory = json.loads(done.stdout.strip().splitlines()[-1])
    except (subprocess.TimeoutExpired, IndexError, ValueError):
        return None
    return seconds, memory


def main() -> None:
    """All cases."""
    rows = []
    for what in ("forward", "backward"):
        for n in QUBITS:
            for batch in BATCHES:
                mine = case("ours", n, batch, what)
                assert mine is not None
                row = [what, n, batch, f"{mine[0]:.2e}", f"{mine[1]:.0f}"]
                for peer in PEERS:
                    found = case(peer, n, batch, what) if peer != "qiskit-ml" or batch * 2**n <= 2**12 else None
                    row.append("-" if found is None else f"{found[0] / mine[0]:.1f}x, {found[1]:.0f}")
                rows.append(row)
                print(*row, flush=True)
    print()
    print_rows(["", "qubits", "batch", "ours: s", "MiB", *(f"{peer}: times ours, MiB" for peer in PEERS)], rows)


if __name__ == "__main__":
    if len(sys.argv) == 5:
        measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
    else:
        main()
