"""Your own module, compressed and disentangled: tensorize, heal, disentangle, heal again, about ten lines in all.

Runs offline on the 8x8 digits that scikit-learn brings along; simulated, without shots.
"""

import torch
from torch import nn

import unbraid as ub
from unbraid.nn import accuracy
from unbraid.recipes.datasets import load_dataset


class OwnModule(nn.Module):
    """A network of your own; any module with linear layers will do."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 64)
        self.last = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shape (B, 64) to (B, 10)."""
        return self.last(torch.relu(self.first(x)))


def main() -> None:
    """Train, then the ten lines, then a table."""
    torch.set_num_threads(1)  # small layers are fastest on one thread
    torch.manual_seed(0)
    data = load_dataset("digits", seed=0)
    model = OwnModule()
    ub.heal(model, data.train, data.validation, epochs=12, lr=1e-2)  # or your own training

    # The ten lines.
    targets = ["first"]
    mpo = ub.tensorize(model, targets, max_bond=4, sites="qubits")
    ub.heal(mpo, data.train, data.validation, epochs=10, lr=1e-2, teacher=model)
    results: dict[str, ub.Disentangled] = {}
    circuits = ub.disentangle_layers(mpo, targets, 3, results=results, max_sweeps=60, tolerance=1e-5)
    ub.heal(circuits, data.train, data.validation, epochs=12, lr=3e-2, teacher=model)
    hybrid = ub.to_quantum(circuits, readout="exact")

    networks: dict[str, nn.Module] = {"dense": model, "MPO": mpo, "circuits and core": circuits, "hybrid": hybrid}
    for name, network in networks.items():
        count = sum(parameter.numel() for parameter in network.parameters())
        print(f"{name:>17}: {accuracy(network, *data.test):6.1%} of the test images, {count:5,} parameters")
    result = results["first"]
    print(f"overlap {result.overlap:.3f}, ceiling {result.ceiling:.3f}, {result.status}")


if __name__ == "__main__":
    main()
