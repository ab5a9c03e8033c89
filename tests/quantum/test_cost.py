import math
import sys
from types import SimpleNamespace

import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit.library import UnitaryGate
from qiskit.providers.fake_provider import GenericBackendV2
from qiskit_ibm_runtime.fake_provider import FakeMontrealV2
from torch import nn

from unbraid.circuits import Circuit, brickwall
from unbraid.circuits.gates import haar
from unbraid.ground.errors import InvalidInputError, MissingExtraError
from unbraid.ground.random import stream
from unbraid.nn.surgery import disentangle_layers, tensorize
from unbraid.quantum.backends import fake_backend
from unbraid.quantum.convert import to_qiskit
from unbraid.quantum.cost import (
    MEASUREMENT,
    SECONDS_PER_JOB,
    SECONDS_PER_LAYER,
    WAIT,
    count_gates,
    estimate_cost,
    gate_counts,
)
from unbraid.quantum.hybrid import to_quantum
from unbraid.quantum.readout import readout_of
from unbraid.quantum.samplers import AerExecutor
from unbraid.quantum.tomography import Tomography


class Layer(nn.Module):
    def __init__(self, *stages):
        super().__init__()
        self._stages = stages

    def stages(self):
        return list(self._stages)


def stage(n, depth, readout="reference", shots=1000, backend=None, name="fc.input"):
    circuit = Circuit(brickwall(n, depth), init="random", dtype=torch.float64)
    executor = SimpleNamespace(backend=backend)
    return SimpleNamespace(
        name=name,
        circuit=circuit,
        readout=readout_of(readout),
        shots=shots,
        encoding="amplitude",
        executor=executor,
        shifted=None,
    )


def test_gates_are_counted_by_their_qubits():
    qc = QuantumCircuit(3, 3)
    qc.h(0)
    qc.cx(0, 1)
    qc.barrier()
    qc.ry(0.2, 2)
    qc.id(1)
    qc.cz(1, 2)
    qc.delay(10, 0)
    qc.measure(range(3), range(3))
    assert gate_counts(qc) == {"one_qubit": 2, "two_qubit": 2, "depth": 4, "total": 4}
    assert gate_counts(QuantumCircuit(2)) == {"one_qubit": 0, "two_qubit": 0, "depth": 0, "total": 0}


def test_large_and_composite_gates_are_counted_by_their_parts():
    qc = QuantumCircuit(3)
    qc.ccx(0, 1, 2)
    assert gate_counts(qc)["two_qubit"] == 6
    qc = QuantumCircuit(4)
    qc.append(UnitaryGate(haar("u", 8, 1, stream(0, "gate"))[0].numpy()), [0, 1, 2])
    assert gate_counts(qc)["two_qubit"] == 19
    qc = QuantumCircuit(2)
    qc.append(UnitaryGate(haar("u", 4, 1, stream(0, "gate"))[0].numpy()), [0, 1])
    assert gate_counts(qc) == {"one_qubit": 8, "two_qubit": 3, "depth": 7, "total": 11}  # Table 1 of the paper: 8 / 3


def test_logical_counts_are_ry_and_cx_and_transpiled_ones_are_the_backends():
    circuit = Circuit(brickwall(3, 2), init="random", seed=1, dtype=torch.float64)
    line = GenericBackendV2(3, basis_gates=["rz", "sx", "x", "cx"], coupling_map=[[0, 1], [1, 2]], seed=0)
    counts = count_gates(circuit, line, optimization_level=1)
    assert counts["logical"] == {"one_qubit": 12, "two_qubit": 4, "depth": 10, "total": 16}
    assert counts["transpiled"]["two_qubit"] == 4
    assert counts["transpiled"]["one_qubit"] > 12
    assert counts == count_gates(to_qiskit(circuit), line, optimization_level=1)
    with pytest.raises(InvalidInputError, match="4 qubits"):
        count_gates(Circuit(brickwall(4, 1)), line)


def test_the_default_backend_is_montreal():
    pytest.importorskip("qiskit_ibm_runtime")
    circuit = Circuit(brickwall(4, 1, body=4), init="random", dtype=torch.float64)
    counts = count_gates(circuit, optimization_level=1)
    assert counts["logical"]["two_qubit"] == 60
    assert counts["transpiled"]["two_qubit"] == 60  # on a line; 185 in Table 1


def test_a_missing_backend_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "qiskit_ibm_runtime.fake_provider", None)
    with pytest.raises(MissingExtraError, match=r"unbraid\[ibm\]"):
        count_gates(Circuit(brickwall(2, 1)))


def test_cost_of_the_reference_readout():
    hybrid = nn.Sequential(Layer(stage(4, 2), stage(3, 1, shots=500, name="fc.output")), nn.ReLU())
    cost = estimate_cost(hybrid, 100)
    first, second = cost.stages
    # state preparation of n qubits takes 2^n - n - 1 CNOTs, an SO(4) gate two
    assert first.two_qubit_gates_per_circuit == 11 + 3 * 2
    assert second.two_qubit_gates_per_circuit == 4 + 1 * 2
    assert (first.circuits, second.circuits, cost.circuits) == (200, 200, 400)
    assert (first.shots, second.shots, cost.shots) == (100_000, 50_000, 150_000)
    assert cost.two_qubit_gates == 200 * 17 + 200 * 6
    assert (first.jobs, second.jobs, cost.jobs) == (1, 1, 2)
    assert cost.depth == first.depth > second.depth
    expected = 2 * SECONDS_PER_JOB + 150_000 * (WAIT + MEASUREMENT)
    expected += (100_000 * first.depth + 50_000 * second.depth) * SECONDS_PER_LAYER
    assert cost.seconds == pytest.approx(expected)
    assert not first.transpiled


def test_jobs_keep_within_both_limits():
    gates = estimate_cost(Layer(stage(4, 2, shots=10)), 3000).stages[0]
    assert gates.jobs == math.ceil(6000 / (10_000 // 17))
    shots = estimate_cost(Layer(stage(4, 2, shots=1_000_000)), 100).stages[0]
    assert shots.jobs == 100 / 5
    huge = estimate_cost(Layer(stage(4, 2, shots=10**8)), 3).stages[0]
    assert huge.jobs == 6


def test_cost_of_tomography_and_of_exact_readout():
    tomography = estimate_cost(Layer(stage(3, 1, "tomography", shots=100)), 10)
    assert (tomography.circuits, tomography.shots) == (270, 10 * 27 * 3)
    assert tomography.two_qubit_gates == 270 * 6
    assert estimate_cost(Layer(stage(3, 1, "tomography", shots=10)), 10).shots == 270
    exact = estimate_cost(Layer(stage(3, 1, "exact")), 10)
    assert (exact.circuits, exact.shots, exact.jobs, exact.seconds) == (10, 0, 0, 0.0)


def test_cost_on_a_backend_is_transpiled():
    line = GenericBackendV2(4, basis_gates=["rz", "sx", "x", "cx"], coupling_map=[[0, 1], [1, 2], [2, 3]], seed=0)
    plain, routed = (estimate_cost(Layer(stage(4, 2, backend=backend)), 10) for backend in (None, line))
    assert routed.stages[0].transpiled
    assert routed.two_qubit_gates > plain.two_qubit_gates
    assert routed.depth > plain.depth
    assert "transpiled to the backend" in routed.describe()
    assert "all qubits connected" in plain.describe()


@pytest.mark.parametrize("readout", ["reference", "signs", "tomography"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"noise_factors": (1, 3)},
        {"noise_factors": (1, 3, 5)},
        {"mitigate_readout": True},
        {"backend": fake_backend("fake_manila"), "optimization_level": 3, "mitigate_readout": True},
    ],
    ids=["plain", "two factors", "three factors", "mitigated", "device"],
)
@pytest.mark.parametrize("shots", [20, 999])
def test_the_estimate_is_what_a_run_takes(readout, options, shots):
    """Circuits, shots, gates and jobs, at limits that bind, for circuits of two widths."""
    layer = disentangle_layers(tensorize(nn.Linear(8, 4), "all-linear", max_bond=2, sites="qubits"), "all-linear", 1)
    run = AerExecutor(max_circuits=7, max_two_qubit_gates=40, max_shots=400, **options)
    chosen = Tomography(fitter="inversion") if readout == "tomography" else readout
    hybrid = to_quantum(layer, run, readout=chosen, shots=shots)
    cost = estimate_cost(hybrid, 3)
    seen = []
    submission = run._submission

    def watched(generator):
        submit, salt = submission(generator)

        def one(pubs, number):
            seen.append([(gate_counts(pub[0]), pub[2]) for pub in pubs])
            return submit(pubs, number)

        return one, salt

    run._submission = watched
    hybrid(torch.randn(3, 8, generator=torch.Generator().manual_seed(0)))
    pubs = [pub for job in seen for pub in job]
    assert cost.circuits == len(pubs)
    assert cost.shots == sum(shots for _, shots in pubs)
    if readout != "tomography" or "backend" not in options:  # there, some circuits stand for all
        assert cost.jobs == len(seen)
        assert cost.two_qubit_gates == sum(counts["two_qubit"] for counts, _ in pubs)
        if "noise_factors" not in options and readout != "tomography":
            assert cost.one_qubit_gates == sum(counts["one_qubit"] for counts, _ in pubs)
    else:
        assert cost.two_qubit_gates == pytest.approx(sum(counts["two_qubit"] for counts, _ in pubs), rel=0.1)


def test_a_backward_pass_is_estimated_when_asked_for():
    layer = disentangle_layers(tensorize(nn.Linear(4, 4), "all-linear", max_bond=2, sites="qubits"), "all-linear", 1)
    run = AerExecutor()
    hybrid = to_quantum(layer, run, shots=100, gradient="parameter-shift")
    forward, both = (estimate_cost(hybrid, 3, backward=backward) for backward in (False, True))
    assert [stage.name for stage in both.stages] == [
        "layer.input",
        "layer.output",
        "layer.input (gradient)",
        "layer.output (gradient)",
    ]
    x = torch.randn(3, 4, requires_grad=True)
    hybrid(x).square().sum().backward()
    assert (both.circuits, both.shots) == (hybrid.spent.circuits, hybrid.spent.shots)
    # one SO(4) a circuit: 6 angles
    assert both.circuits == (1 + 2 * 6 + 1) * forward.circuits
    with pytest.raises(InvalidInputError, match="parameter-shift"):
        estimate_cost(to_quantum(layer, run), 3, backward=True)
    layer.output_circuit.requires_grad_(False)  # its input still needs a gradient
    hybrid = to_quantum(layer, run, shots=100, gradient="parameter-shift")
    hybrid(x).square().sum().backward()
    assert estimate_cost(hybrid, 3, backward=True).circuits == hybrid.spent.circuits


def test_the_description_has_a_row_a_stage_and_a_total():
    lines = estimate_cost(Layer(stage(3, 1), stage(2, 1, "exact", name="fc.output")), 1000).describe().splitlines()
    assert lines[0].startswith("1,000 samples: 15,000 two-qubit gates")
    assert [line.split()[0] for line in lines[1:5]] == ["stage", "fc.input", "fc.output", "total"]
    assert "1,000,000" in lines[2]
    assert len({len(line) for line in lines[1:5]}) == 1


def test_models_without_quantum_layers_and_wrong_sizes_are_refused():
    class Vision(nn.Module):
        def __init__(self):
            super().__init__()
            self.stages = nn.ModuleList([nn.Linear(2, 2)])

    with pytest.raises(InvalidInputError, match="to_quantum"):
        estimate_cost(Vision(), 1)
    assert estimate_cost(nn.Sequential(Vision(), Layer(stage(2, 1))), 1).circuits == 2
    for samples in (0, -1, True, 1.5):
        with pytest.raises(InvalidInputError, match="n_samples"):
            estimate_cost(Layer(stage(2, 1)), samples)
    with pytest.raises(InvalidInputError, match="readout"):
        estimate_cost(Layer(stage(2, 1, "shadows")), 1)


def test_seconds_are_those_that_the_backend_tells():
    device = FakeMontrealV2()
    told = estimate_cost(nn.Sequential(Layer(stage(3, 2, backend=device))), 10)
    untold = estimate_cost(nn.Sequential(Layer(stage(3, 2, backend=GenericBackendV2(5, seed=0)))), 10)
    wait = device.default_rep_delay * told.shots + SECONDS_PER_JOB * told.jobs
    assert wait < told.seconds < 1.1 * wait
    assert untold.seconds > SECONDS_PER_JOB * untold.jobs + WAIT * untold.shots
    assert told.money is None


def test_money_is_seconds_times_the_price():
    model = nn.Sequential(Layer(stage(3, 1)))
    cost = estimate_cost(model, 10, price_per_second=1.6)
    assert cost.money == pytest.approx(1.6 * cost.seconds)
    assert "cost" in cost.describe().splitlines()[-1]
    for price in (-1, float("nan"), "x"):
        with pytest.raises(InvalidInputError, match="price_per_second"):
            estimate_cost(model, 10, price_per_second=price)


def test_calibration_is_counted_once_an_executor():
    pytest.importorskip("qiskit_aer")
    first, second = stage(3, 1), stage(2, 1)
    first.executor = second.executor = AerExecutor(mitigate_readout=True)
    cost = estimate_cost(nn.Sequential(Layer(first, second)), 5)
    assert [each.name for each in cost.stages].count("readout calibration") == 1
    assert (cost.circuits, cost.shots) == (2 * 5 * 2 + 2, 2 * 5 * 1000 + 200_000)
