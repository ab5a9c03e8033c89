"""``evaluate``: its numbers equal direct computations."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unbraid.circuits import brickwall
from unbraid.ground.errors import InvalidInputError
from unbraid.ground.manifest import hash_tensors
from unbraid.nn import DisentangledLinear, disentangle_layers, tensorize
from unbraid.report import evaluate


@pytest.fixture(scope="module")
def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 4))


@pytest.fixture(scope="module")
def disentangled(network: nn.Sequential) -> nn.Sequential:
    mpo = tensorize(network, ["0"], max_bond=4, sites="qubits")
    return disentangle_layers(mpo, ["0"], brickwall(4, 2), max_sweeps=5)


@pytest.fixture(scope="module")
def data(network: nn.Sequential) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(37, 16, generator=generator)
    y = network.eval()(x).argmax(-1)
    y[::5] = (y[::5] + 1) % 4  # some are wrong
    return x, y


@pytest.mark.parametrize("batch_size", [1, 10, 1024])
def test_accuracy_is_the_fraction_right(network: nn.Module, data: tuple[Tensor, Tensor], batch_size: int) -> None:
    report = evaluate(network, data, batch_size=batch_size)
    assert report.accuracy == {"dense": 29 / 37}
    assert report.samples == {"dense": 37}
    assert report.parameters == {"dense": 16 * 17 + 4 * 17}
    assert report.manifest["data"]["sha256"] == hash_tensors(*data)
    assert report.to_dict()["cost"] == {}


def test_layers_and_sizes(network: nn.Module, disentangled: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    report = evaluate(disentangled, data, name="mine")
    right = (disentangled.eval()(data[0]).argmax(-1) == data[1]).double().mean()
    assert report.accuracy == {"disentangled": pytest.approx(float(right))}
    assert report.title == "Evaluation of mine"
    dense = sum(parameter.numel() for parameter in network.parameters())
    assert report.parameters == {"dense": dense, "disentangled": sum(p.numel() for p in disentangled.parameters())}
    (row,) = report.layers
    layer = disentangled.get_submodule("0")
    assert isinstance(layer, DisentangledLinear)
    assert row["name"] == "0"
    assert row["shape"] == [16, 16]
    assert row["bond_dims"] == [1, 1, 1]
    assert row["gates"] == 6
    assert row["cnots"] == layer.output_circuit.cnot_count + layer.input_circuit.cnot_count
    assert row["dense_parameters"] == 16 * 17


def test_modes_and_hooks_are_left_as_they_were(network: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    network.train()
    network.get_submodule("0").eval()
    evaluate(network, data)
    with pytest.raises(InvalidInputError):
        evaluate(network, (data[0], data[1] + 4))
    assert [module.training for module in network.modules()] == [True, False, True, True, True]
    assert not network._forward_hooks
    network.eval()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x[:0], y[:0]), "at least 1"),
        (lambda x, y: (x, y[:-1]), "shapes"),
        (lambda x, y: (x, y.float()), "integer"),
        (lambda x, y: (x, y[:, None]), "shapes"),
        (lambda x, y: (x.index_fill(0, torch.tensor([3]), float("nan")), y), "NaN"),
        (lambda x, y: (x, y - 1), "-1"),
        (lambda x, y: (x, y + 1), "4 classes"),
        (lambda x, y: (x[:, :5], y), "cannot run"),
        (lambda x, y: x, "pair"),
    ],
)
def test_data_that_cannot_be_used(network: nn.Module, data: tuple[Tensor, Tensor], change: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        evaluate(network, change(*data))


class Shaped(nn.Module):
    """Gives outputs of another kind than a classifier's."""

    def __init__(self, change: Any) -> None:
        super().__init__()
        self.change = change

    def forward(self, x: Tensor) -> Any:
        return self.change(x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[:, 0], "classes"),
        (lambda x: x[:, None], "classes"),
        (lambda x: x[:-1], "classes"),
        (lambda x: (x, x), "tuple"),
        (lambda x: x / 0, "finite"),
    ],
)
def test_outputs_that_are_no_classification(data: tuple[Tensor, Tensor], change: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        evaluate(Shaped(change), data)


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, True])
def test_batch_size(network: nn.Module, data: tuple[Tensor, Tensor], batch_size: Any) -> None:
    with pytest.raises(InvalidInputError, match="batch_size"):
        evaluate(network, data, batch_size=batch_size)


def test_hybrid_counts_what_it_spent(disentangled: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    from unbraid.quantum.cost import estimate_cost
    from unbraid.quantum.hybrid import QuantumLinear, to_quantum

    hybrid = to_quantum(disentangled, shots=500)
    layer = hybrid.get_submodule("0")
    assert isinstance(layer, QuantumLinear)
    hybrid(data[0])  # spent before, and not part of the evaluation
    report = evaluate(hybrid, data)
    estimate = estimate_cost(hybrid, 37)
    assert list(report.accuracy) == ["hybrid"]
    assert report.cost["shots"] == estimate.shots == layer.spent.shots // 2
    assert report.cost["circuits"] == estimate.circuits == layer.spent.circuits // 2
    assert report.cost["depth"] == estimate.depth
    assert report.cost["two_qubit_gates"] == estimate.two_qubit_gates
    assert report.layers[0]["kind"] == "quantum"
    assert report.layers[0]["name"] == "0"
    logical = report.gates["logical"]
    assert set(logical) == {"input", "output", "total"}
    assert logical["total"]["two_qubit"] == report.layers[0]["cnots"]
    assert report.parameters["disentangled"] == sum(p.numel() for p in disentangled.parameters())
    assert set(report.drawings) == {"0.input", "0.output"}
    report.to_dict()


def test_exact_hybrid_agrees_with_torch(disentangled: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    from unbraid.quantum.hybrid import to_quantum

    report = evaluate(to_quantum(disentangled, readout="exact"), data)
    assert report.accuracy["exact"] == evaluate(disentangled, data).accuracy["disentangled"]
    assert report.cost["shots"] == 0


def test_plain_models_do_not_load_qiskit() -> None:
    code = (
        "import sys, torch; from unbraid.report import evaluate;"
        "evaluate(torch.nn.Linear(4, 2), (torch.ones(3, 4), torch.zeros(3, dtype=torch.long)));"
        "assert 'qiskit' not in sys.modules and 'matplotlib' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
