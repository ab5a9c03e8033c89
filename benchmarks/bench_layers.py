"""An MPO layer and a circuit against ``nn.Linear`` of the same size: forward and backward, ratios of one run.

One thread, float32, 2^n -> 2^n on qubit sites. Peer: ``torch.nn.Linear``.
"""

import torch
from timing import median_seconds, print_rows
from torch import nn

from unbraid.circuits import Circuit, brickwall
from unbraid.nn import MPOLinear
from unbraid.tensors import MPO

BATCHES = (1, 64, 1024)
QUBITS = (6, 8, 10)


def training_step(module: nn.Module, x: torch.Tensor) -> None:
    module.zero_grad(set_to_none=True)
    module(x).square().sum().backward()


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for n in QUBITS:
        linear = nn.Linear(2**n, 2**n, bias=False)
        modules = {
            "MPO, bond 4": MPOLinear(MPO.random((2,) * n, (2,) * n, 4)),
            "MPO, bond 16": MPOLinear(MPO.random((2,) * n, (2,) * n, 16)),
            "circuit, depth 4": Circuit(brickwall(n, 4)),
        }
        for batch in BATCHES:
            x = torch.randn(batch, 2**n, requires_grad=True)
            with torch.no_grad():
                forward = median_seconds(lambda: linear(x))
            both = median_seconds(lambda: training_step(linear, x))
            for name, module in modules.items():
                with torch.no_grad():
                    ours = median_seconds(lambda: module(x))
                rows.append(
                    (2**n, batch, name, ours / forward, median_seconds(lambda: training_step(module, x)) / both)
                )
    print_rows(("size", "batch", "layer", "forward / nn.Linear", "forward+backward / nn.Linear"), rows)


if __name__ == "__main__":
    main()
