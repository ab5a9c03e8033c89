"""A training step of the paper's networks, beside the same networks of ``nn.Linear`` and PennyLane's TorchLayer.

A step is forward, cross entropy and backward on one core, or on a GPU (``--device cuda``), single precision; medians,
as ratios of one run, with the peak memory that a case adds in a process of its own. The networks are those of Fig. 5
(1024 -> 256 -> 64 -> 8 -> 10, candidate B) and of Fig. 6 (3072 -> 256 -> 256 -> 64 -> 10), original and with
circuits. PennyLane gets the network of Fig. 3 with circuits on six qubits around a core of bond 1, as ``TorchLayer``
with amplitude embedding, backpropagation on default.qubit, and the same core in torch; it comes with the extra
``pennylane`` and runs on the CPU alone.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

import argparse
import json
import resource
import subprocess
import sys
import warnings
from collections import OrderedDict
from itertools import pairwise
from typing import Any

import torch
from timing import median_seconds, print_rows
from torch import nn
from torch.nn.functional import cross_entropy

BATCHES = (1, 32, 256, 1024)
DEPTH = 3  # rows of CNOTs and rotations of the network of Fig. 3


def ours(name: str) -> nn.Module:
    """A network of this package."""
    from unbraid.nn import Architecture, TensorLayer
    from unbraid.recipes.networks import TABLE4, fig5_b, fig6
    from unbraid.recipes.table5 import STUDY

    text = "+".join(["cnot+1b"] * DEPTH)
    fig3 = (
        TensorLayer((2,) * 6, (2,) * 6, 1, text, text),
        TensorLayer((64,), (10,), 1, norm=False, relu=False),
    )
    line = STUDY.line("ours").architecture
    assert line is not None
    return {
        "Fig. 3, circuits": Architecture(fig3),
        "Fig. 5": fig5_b(),
        "Fig. 5, circuits": fig5_b(1).with_circuits(TABLE4["CNOTs + 1&2b"]),
        "Fig. 6": fig6(),
        "Fig. 6, circuits": line,
    }[name].build()


def plain(name: str) -> nn.Module:
    """The same sizes with ``nn.Linear`` layers."""
    sizes = {"Fig. 3": (64, 64, 10), "Fig. 5": (1024, 256, 64, 8, 10), "Fig. 6": (3072, 256, 256, 64, 10)}
    chosen = sizes[name.split(",")[0]]
    layers: list[nn.Module] = []
    for number, (one, other) in enumerate(pairwise(chosen), 1):
        layers.append(nn.Linear(one, other, bias=False))
        if number < len(chosen) - 1:
            layers += [nn.BatchNorm1d(other), nn.ReLU()]
    return nn.Sequential(*layers)


def pennylane(name: str) -> nn.Module:
    """The network of Fig. 3 with its circuits as TorchLayers."""
    import pennylane as qml

    def layer(mirrored: bool) -> nn.Module:
        @qml.qnode(qml.device("default.qubit", wires=6), interface="torch", diff_method="backprop")
        def run(inputs: torch.Tensor, angles: torch.Tensor) -> Any:
            qml.AmplitudeEmbedding(inputs, wires=range(6), normalize=True)
            rows = range(DEPTH)
            for row in reversed(rows) if mirrored else rows:
                cnots = [(wire, wire + 1) for wire in range(row % 2, 5, 2)]
                if not mirrored:
                    for pair in cnots:
                        qml.CNOT(pair)
                for wire in range(6):
                    qml.RY(angles[row, wire], wire)
                if mirrored:
                    for pair in cnots:
                        qml.CNOT(pair)
            return qml.state()

        return qml.qnn.TorchLayer(run, {"angles": (DEPTH, 6)})

    class Circuit(nn.Module):
        def __init__(self, mirrored: bool) -> None:
            super().__init__()
            self.layer = layer(mirrored)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x).real.to(x.dtype) * torch.linalg.vector_norm(x, dim=-1, keepdim=True)

    class Core(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cores = nn.Parameter(torch.randn(6, 2, 2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.reshape(-1, *(2,) * 6)
            return torch.einsum("zabcdef,Aa,Bb,Cc,Dd,Ee,Ff->zABCDEF", x, *self.cores).reshape(-1, 64)

    return nn.Sequential(
        OrderedDict(
            first=Circuit(True),
            core=Core(),
            last=Circuit(False),
            norm=nn.BatchNorm1d(64),
            relu=nn.ReLU(),
            output=nn.Linear(64, 10, bias=False),
        )
    )


KINDS = {"ours": ours, "nn.Linear": plain, "PennyLane": pennylane}
INPUTS = {"Fig. 3": 64, "Fig. 5": 1024, "Fig. 6": 3072}


def measure(kind: str, name: str, batch: int, device: str) -> None:
    """Print seconds of a step and added peak memory in MB (of the GPU, if there); in a process of its own."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    model = KINDS[kind](name).to(device)
    x = torch.randn(batch, INPUTS[name.split(",")[0]]).to(device)
    y = torch.randint(0, 10, (batch,)).to(device)
    on_gpu = x.is_cuda
    model.train(batch > 1)  # batch normalisation cannot train on one row

    def step() -> None:
        model.zero_grad(set_to_none=True)
        cross_entropy(model(x), y).backward()
        if on_gpu:
            torch.cuda.synchronize()

    def peak() -> float:
        return torch.cuda.max_memory_allocated() / 2**20 if on_gpu else _resident_peak()

    before = peak()
    step()
    seconds = median_seconds(step)
    print(json.dumps([seconds, peak() - before]))


def _resident_peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(device: str) -> None:
    rows = []
    cases = [(name, "nn.Linear") for name in ("Fig. 5", "Fig. 5, circuits", "Fig. 6", "Fig. 6, circuits")]
    cases.append(("Fig. 3, circuits", "nn.Linear"))
    if device == "cpu":
        cases.append(("Fig. 3, circuits", "PennyLane"))
    for name, peer in cases:
        for batch in BATCHES:
            found = []
            for kind in ("ours", peer):
                command = [sys.executable, __file__, "--device", device, "--one", kind, name, str(batch)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                found.append(json.loads(done.stdout.splitlines()[-1]))
            (mine, memory), (theirs, their_memory) = found
            rows.append((name, peer, batch, f"{1000 * mine:.2f}", theirs / mine, memory, their_memory))
    columns = ("network", "peer", "batch", "ours ms", "peer / ours", "ours MB", "peer MB")
    print_rows(columns, rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--one", nargs=3, metavar=("KIND", "NETWORK", "BATCH"), help="a single measurement, as JSON")
    chosen = parser.parse_args()
    if chosen.one:
        kind, name, batch = chosen.one
        measure(kind, name, int(batch), chosen.device)
    else:
        main(chosen.device)
