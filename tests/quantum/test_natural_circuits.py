"""Dynamic circuits of natural networks on Aer, beside the law by enumeration."""

import math

import pytest
import torch
from torch.nn.functional import one_hot

from unbraid.circuits.neuron_laws import FULL
from unbraid.ground.errors import InvalidInputError
from unbraid.natural import NaturalMLP, exact_probabilities, outcome_law
from unbraid.quantum import AerExecutor, SamplerExecutor, TorchExecutor, natural_circuit, run_natural

pytest.importorskip("qiskit_aer")

SIZES = (4, 3, 3, 2)
NEURONS = {
    "A": {"a": 0.8},
    "A, arcsine": {"a": 0.8, "law": "arcsine"},
    "B": {"a": 0.0, "g": 0.7},
    "B, rotated": {"a": 0.8, "g": 0.7},
    "B'": {"a": 0.5, "g": 0.9, "ancilla": "asymmetric"},
}
REGISTERS = {"two qubits": {"a": 0.8, "bits": 2}, "three qubits": {"a": 0.5, "law": "arcsine", "bits": 3}}
SHOTS = 8_000


def inputs(count=2):
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(1))


def shares_of_patterns(network, x):
    """Exact probabilities of the last hidden layer's patterns, shape (samples, 2^n), bit k for neuron k."""
    chance, _ = outcome_law(network, x)
    width, hidden = network.sizes[-2], sum(network.sizes[1:-1])
    rows = torch.arange(2**hidden)
    bits = (rows[:, None] >> torch.arange(width - 1, -1, -1)) & 1  # of the last layer, neuron 0 first
    number = (bits << torch.arange(width)).sum(1)
    return (one_hot(number, 2**width).to(chance).T @ chance).T.detach()


@pytest.mark.parametrize("form", ["parallel", "sequential"])
@pytest.mark.parametrize("options", NEURONS.values(), ids=NEURONS)
def test_circuits_follow_the_law(form, options):
    network, x = NaturalMLP(SIZES, **options, seed=2), inputs()
    found = run_natural(network, x, AerExecutor(seed=3), shots=SHOTS, form=form)
    exact = shares_of_patterns(network, x)
    variation = (found.counts / SHOTS - exact).abs().sum(1) / 2
    expected = torch.sqrt(2 * exact * (1 - exact) / (math.pi * SHOTS)).sum(1) / 2  # mean deviation of each share
    assert bool((variation < 2.5 * expected + 1e-9).all())
    assert found.counts.sum(1).tolist() == [SHOTS, SHOTS]
    torch.testing.assert_close(found.logs.exp(), exact_probabilities(network, x).detach(), atol=0.03, rtol=0)
    weak = 2 if "g" in options else 1
    assert found.qubits == weak * (3 if form == "parallel" else 1)
    assert (found.circuits, found.shots) == (2, 2 * SHOTS)


@pytest.mark.parametrize("options", [NEURONS["A"], NEURONS["B'"]], ids=["A", "B'"])
def test_layers_of_circuits_follow_the_law(options):
    network, x = NaturalMLP(SIZES, **options, seed=2), inputs()
    found = run_natural(network, x, AerExecutor(seed=3), shots=4_000, form="layers")
    torch.testing.assert_close(found.logs.exp(), exact_probabilities(network, x).detach(), atol=0.03, rtol=0)
    assert found.shots == 2 * 2 * 4_000
    assert found.circuits <= 2 + 2 * 8  # of the second layer at most one a pattern and sample
    again = run_natural(network, x, AerExecutor(seed=3), shots=4_000, form="layers")
    assert torch.equal(found.logs, again.logs)


@pytest.mark.parametrize("form", ["parallel", "sequential", "layers"])
@pytest.mark.parametrize("options", REGISTERS.values(), ids=REGISTERS)
def test_circuits_of_several_qubits_a_neuron_follow_the_law(form, options):
    network, x = NaturalMLP((4, 2, 2, 2), **options, seed=2), inputs()
    bits = network.bits
    found = run_natural(network, x, AerExecutor(seed=3), shots=SHOTS, form=form)
    torch.testing.assert_close(found.logs.exp(), exact_probabilities(network, x).detach(), atol=0.03, rtol=0)
    assert found.qubits == (bits if form == "sequential" else 2 * bits)
    if form == "layers":
        return
    chance, _ = outcome_law(network, x)
    # of the second layer's patterns, whose first neuron counts most there and least in the register
    shares = chance.reshape(4**bits, 2**bits, 2**bits, 2).sum(0).transpose(0, 1).flatten(0, 1).T.detach()
    variation = (found.counts / SHOTS - shares).abs().sum(1) / 2
    expected = torch.sqrt(2 * shares * (1 - shares) / (math.pi * SHOTS)).sum(1) / 2
    assert bool((variation < 2.5 * expected + 1e-9).all())


def test_registers_without_superposition_are_rounded():
    network, x = NaturalMLP((4, 5, 4, 3), bits=3, seed=4), inputs(5)
    found = run_natural(network, x, AerExecutor(), shots=2, form="layers")
    torch.testing.assert_close(found.logs, network(x).detach())
    assert found.qubits == 6


def test_the_classical_limit_is_the_sign_network():
    network, x = NaturalMLP((4, 10, 9, 3), seed=4), inputs(5)
    expected = network(x)
    wide = run_natural(network, x, AerExecutor(), shots=3, form="layers")
    torch.testing.assert_close(wide.logs, expected.detach())
    assert wide.qubits == 8
    weak = NaturalMLP(SIZES, g=FULL, seed=4)
    for form in ("parallel", "sequential"):
        found = run_natural(weak, x, AerExecutor(), shots=5, form=form)
        torch.testing.assert_close(found.logs, weak(x).detach())


def test_networks_that_differ_in_a_digit_have_circuits_of_their_own():
    executor, x = AerExecutor(seed=0), inputs(1)
    first, near = (NaturalMLP((4, 3, 3, 2), a=0.8, g=g, seed=2) for g in (0.5, 0.5000001))
    for form in ("parallel", "layers"):
        for network in (first, near):
            run_natural(network, x, executor, shots=10, form=form)
    keys = {key for key in executor._compiler._templates if "natural" in str(key)}
    assert len(keys) == 4


def test_finished_circuits_are_not_run_again(tmp_path):
    network, x = NaturalMLP(SIZES, a=0.8, seed=2), inputs()
    found = []
    for _ in range(2):
        executor = AerExecutor(seed=3, store=tmp_path / "results.sqlite")
        found.append(run_natural(network, x, executor, shots=100))
        network(x)  # draws outcomes, which the circuits do not depend on
    assert torch.equal(found[0].counts, found[1].counts)
    assert found[0].job_ids
    assert not found[1].job_ids


def test_torch_samples_the_same_law_without_circuits():
    network, x = NaturalMLP(SIZES, a=0.8, seed=2), inputs()
    found = run_natural(network, x, TorchExecutor(), shots=SHOTS)
    torch.testing.assert_close(found.logs.exp(), exact_probabilities(network, x).detach(), atol=0.03, rtol=0)
    assert (found.counts, found.circuits, found.shots, found.job_ids) == (None, 0, 2 * SHOTS, ())


def test_depolarising_noise_moves_outcomes_to_chance():
    from qiskit_aer.noise import NoiseModel, depolarizing_error

    noise = NoiseModel()
    noise.add_all_qubit_quantum_error(depolarizing_error(1.0, 1), ["ry", "rx", "sx", "x", "u", "h"])
    noise.add_basis_gates(["rz"])
    network, x = NaturalMLP((4, 3, 2), seed=2), inputs(1)
    found = run_natural(network, x, AerExecutor(noise, seed=0, optimization_level=0), shots=SHOTS)
    torch.testing.assert_close(found.counts / SHOTS, torch.full((1, 8), 1 / 8), atol=0.03, rtol=0)


def test_registers_and_parameters_have_their_names():
    circuit = natural_circuit(NaturalMLP((5, 3, 2, 4, 2), a=1.0, g=0.5))
    assert [register.name for register in circuit.cregs] == ["layer0", "layer1", "meas"]
    assert [register.size for register in circuit.cregs] == [3, 2, 4]
    assert [parameter.name for parameter in circuit.parameters] == ["input[0]", "input[1]", "input[2]"]
    assert [(register.name, register.size) for register in circuit.qregs] == [("neuron", 4), ("ancilla", 4)]
    alone = natural_circuit(NaturalMLP((5, 3, 2, 4, 2), a=1.0), form="sequential")
    assert alone.num_qubits == 1
    assert alone.count_ops()["measure"] == 3 + 2 + 4
    assert alone.count_ops()["reset"] == 3 + 2 + 3  # the last neuron's qubit is not used again


def test_what_is_no_circuit_is_refused():
    x, aer = inputs(), AerExecutor()
    for network, options, message in (
        (NaturalMLP((4, 9, 2)), {}, "layers of at most 8 qubits; this network has one of 9"),
        (NaturalMLP(SIZES, a=1.0, estimator="mean_field"), {}, "nothing is measured"),
        (NaturalMLP(SIZES), {"form": "spiral"}, "form must be one of"),
        (NaturalMLP(SIZES), {"shots": 0}, "shots must be a positive integer"),
        (NaturalMLP((5, 3, 2)), {}, r"shape \(samples, 5\), not empty; got \(2, 4\)"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            run_natural(network, x, aer, **options)
    with pytest.raises(InvalidInputError, match="form must be one of 'parallel', 'sequential'"):
        natural_circuit(NaturalMLP(SIZES), form="layers")
    with pytest.raises(InvalidInputError, match="needs a NaturalMLP; got Linear"):
        natural_circuit(torch.nn.Linear(2, 2))
    with pytest.raises(InvalidInputError, match="measured once, at their end"):
        run_natural(NaturalMLP(SIZES), x, AerExecutor(mitigate_readout=True))


def test_noise_of_a_device_acts_as_an_ancilla_that_tells_less():
    """Depolarisation after a rotation and misread outcomes shrink means: (1 - p)(1 - 2e) is the sine of such a g."""
    from qiskit_aer.noise import NoiseModel, ReadoutError, depolarizing_error

    p, misread = 0.2, 0.1
    noise = NoiseModel()
    noise.add_all_qubit_quantum_error(depolarizing_error(p, 1), ["ry"])
    noise.add_all_qubit_readout_error(ReadoutError([[1 - misread, misread], [misread, 1 - misread]]))
    network, x = NaturalMLP(SIZES, a=0.8, seed=2), inputs()
    found = run_natural(network, x, AerExecutor(noise, seed=0, optimization_level=0), shots=SHOTS)
    law = network.with_neurons(a=0.8, g=math.asin((1 - p) * (1 - 2 * misread)))
    exact = shares_of_patterns(law, x)
    variation = (found.counts / SHOTS - exact).abs().sum(1) / 2
    expected = torch.sqrt(2 * exact * (1 - exact) / (math.pi * SHOTS)).sum(1) / 2
    assert bool((variation < 2.5 * expected).all())


def test_networks_of_signs_have_circuits_of_their_own():
    """Their parameters may be those of a network of real weights; what they do with them is not."""
    executor, x = AerExecutor(seed=3), inputs(1)
    for binary in (True, False):
        network = NaturalMLP(SIZES, a=0.8, binary=binary, seed=2)
        found = run_natural(network, x, executor, shots=SHOTS)
        torch.testing.assert_close(found.logs.exp(), exact_probabilities(network, x).detach(), atol=0.03, rtol=0)


def test_logs_of_large_numbers_stay_finite():
    network, x = NaturalMLP(SIZES, a=0.8, seed=2), inputs(2)
    with torch.no_grad():
        network.layers[-1].bias[0] += 1_000
    found = run_natural(network, x, AerExecutor(seed=3), shots=100)
    assert torch.isfinite(found.logs).all()
    assert float(found.logs.detach().min()) < -100


def test_what_is_not_finite_is_refused_and_other_precisions_are_taken():
    network, x = NaturalMLP(SIZES, a=0.8, seed=2), inputs(2)
    executor = AerExecutor(seed=0)
    expected = run_natural(network, x, executor, shots=50).counts
    assert torch.equal(run_natural(network, x.double(), AerExecutor(seed=0), shots=50).counts, expected)
    for bad, what in ((x * math.nan, "not empty|NaN"), (x[:0], "not empty"), (x.numpy(), "got ndarray")):
        with pytest.raises(InvalidInputError, match=what):
            run_natural(network, bad, executor)
    with pytest.raises(InvalidInputError, match="executor must be one of"):
        run_natural(network, x, "aer")
    with torch.no_grad():
        network.layers[0].weight[0, 0] = math.nan
    with pytest.raises(InvalidInputError, match="weight of the network"):
        run_natural(network, x, executor)


def test_a_backend_that_cannot_choose_gates_says_which_form_it_runs():
    fake = pytest.importorskip("qiskit_ibm_runtime.fake_provider")
    network, x = NaturalMLP((4, 2, 2, 2), a=0.8, seed=2), inputs(1)
    executor = AerExecutor(backend=fake.FakeMontrealV2(), seed=0)
    with pytest.raises(InvalidInputError, match="Take form='layers'"):
        run_natural(network, x, executor, shots=10)
    assert run_natural(network, x, executor, shots=10, form="layers").circuits > 1


def test_layers_run_on_samplers_that_measure_at_the_end_only():
    from qiskit.primitives import StatevectorSampler

    network, x = NaturalMLP((4, 3, 3, 2), a=0.8, seed=2), inputs(1)
    found = run_natural(network, x, SamplerExecutor(StatevectorSampler(seed=0)), shots=4_000, form="layers")
    torch.testing.assert_close(found.logs.exp(), exact_probabilities(network, x).detach(), atol=0.03, rtol=0)
