"""Executors: exact vectors, samples, index order, faults."""

import pytest
import torch
from scipy.stats import chi2

from unbraid.circuits import Circuit, brickwall, parse_ansatz
from unbraid.ground.errors import ExecutionError, InvalidInputError
from unbraid.quantum.encode import encode
from unbraid.quantum.execute import TorchExecutor, sample_counts
from unbraid.quantum.programs import Compiler
from unbraid.quantum.samplers import AerExecutor, SamplerExecutor

qiskit_primitives = pytest.importorskip("qiskit.primitives")


def lopsided(qubits: int = 3, seed: int = 3) -> Circuit:
    """A circuit whose outcomes tell every qubit from every other."""
    return Circuit(brickwall(qubits, 2), init="random", seed=seed, dtype=torch.float64)


def units(count: int, size: int, seed: int = 0) -> torch.Tensor:
    x = torch.randn(count, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x / x.norm(dim=1, keepdim=True)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def chi_square(counts: torch.Tensor, probabilities: torch.Tensor) -> tuple[float, int]:
    """Statistic and degrees of freedom, over outcomes expected at least five times."""
    expected = probabilities * counts.sum(dim=-1, keepdim=True)
    seen = expected >= 5
    statistic = ((counts - expected) ** 2 / expected)[seen].sum()
    return float(statistic), int(seen.sum()) - counts.reshape(-1, counts.shape[-1]).shape[0]


def assert_same_law(counts: torch.Tensor, probabilities: torch.Tensor) -> None:
    statistic, freedom = chi_square(counts, probabilities)
    low, high = chi2.ppf([1e-4, 1 - 1e-4], freedom)
    assert low < statistic < high


def test_exact_run_is_the_circuit_and_differentiable() -> None:
    circuit, x = lopsided(), units(4, 8)
    execution = TorchExecutor().run(circuit, x)
    assert execution.counts is None
    assert execution.vectors is not None
    assert torch.equal(execution.vectors, circuit(x))
    assert execution.vectors.requires_grad
    assert (execution.circuits, execution.shots) == (4, 0)


@pytest.mark.parametrize(("qubits", "shots"), [(6, 1_000), (6, 1_000_000), (10, 1_000_000)])
def test_torch_samples_follow_the_exact_probabilities(qubits: int, shots: int) -> None:
    circuit, x = lopsided(qubits), units(8, 2**qubits)
    counts = TorchExecutor().run(circuit, x, shots, generator=generator(1)).counts
    assert counts is not None
    assert (counts.sum(dim=1) == shots).all()
    assert_same_law(counts.double(), circuit(x).detach() ** 2)


def test_shots_may_differ_from_vector_to_vector() -> None:
    shots = torch.tensor([1, 10, 1_000_000])
    execution = TorchExecutor().run(lopsided(), units(3, 8), shots, generator=generator())
    assert execution.counts is not None
    assert torch.equal(execution.counts.sum(dim=1), shots)
    assert execution.shots == 1_000_011


def test_impossible_outcomes_never_appear() -> None:
    vectors = torch.eye(4)[:2]
    assert torch.equal(sample_counts(vectors, 1000, generator()), 1000 * torch.eye(4)[:2].long())


def test_equal_generators_give_equal_samples_and_calls_differ() -> None:
    circuit, x = lopsided(), units(2, 8)
    executor = TorchExecutor(seed=5)
    first = executor.run(circuit, x, 500).counts
    second = executor.run(circuit, x, 500).counts
    again = TorchExecutor(seed=5).run(circuit, x, 500).counts
    assert first is not None
    assert second is not None
    assert again is not None
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    pair = [executor.run(circuit, x, 500, generator=generator(7)).counts for _ in range(2)]
    assert torch.equal(*pair)


@pytest.mark.parametrize("seed", [3, 4])
def test_aer_counts_agree_with_torch(seed: int) -> None:
    pytest.importorskip("qiskit_aer")
    circuit, x = lopsided(3, seed), units(4, 8, seed)
    execution = AerExecutor().run(circuit, x, 4000, generator=generator(seed))
    assert execution.counts is not None
    assert_same_law(execution.counts.double(), circuit(x).detach() ** 2)
    assert execution.circuits == 4
    assert execution.shots == 16_000
    assert len(execution.job_ids) == 1


def test_wide_wires_and_wires_of_one_keep_their_order() -> None:
    circuit = Circuit(parse_ansatz("2b+1b", (4, 1, 2)), init="random", seed=1, dtype=torch.float64)
    x = units(3, 8)
    counts = SamplerExecutor(qiskit_primitives.StatevectorSampler(seed=1)).run(circuit, x, 4000).counts
    assert counts is not None
    assert_same_law(counts.double(), circuit(x).detach() ** 2)


def test_aer_is_reproducible_and_does_not_repeat_its_noise() -> None:
    pytest.importorskip("qiskit_aer")
    circuit, x = lopsided(), units(1, 8).repeat(2, 1)
    shots = torch.tensor([5000, 5001])
    first = AerExecutor(seed=2).run(circuit, x, shots).counts
    again = AerExecutor(seed=2).run(circuit, x, shots).counts
    assert first is not None
    assert again is not None
    assert torch.equal(first, again)
    # With one seed for both, Aer returns the same 5000 outcomes twice.
    assert int((first[0] - first[1]).abs().sum()) > 10


def test_noise_models_spread_the_counts() -> None:
    noise = pytest.importorskip("qiskit_aer.noise")
    model = noise.NoiseModel()
    model.add_all_qubit_quantum_error(noise.depolarizing_error(0.5, 2), ["cx"])
    x = torch.zeros(1, 8)
    x[0, 5] = 1
    circuit = Circuit(parse_ansatz("1b+2b+2b", 3), init="identity")
    clean = AerExecutor().run(circuit, x, 1000).counts
    noisy = AerExecutor(model).run(circuit, x, 1000).counts
    assert clean is not None
    assert noisy is not None
    assert int(clean[0, 5]) == 1000
    assert int(noisy[0, 5]) < 900


def test_backends_route_and_keep_the_order() -> None:
    from qiskit.primitives import BackendSamplerV2
    from qiskit.providers.fake_provider import GenericBackendV2

    pytest.importorskip("qiskit_aer")
    backend = GenericBackendV2(5, coupling_map=[[0, 1], [1, 0], [1, 2], [2, 1], [1, 3], [3, 1], [3, 4], [4, 3]], seed=1)
    executor = SamplerExecutor(BackendSamplerV2(backend=backend))
    assert executor.backend is backend
    circuit, x = lopsided(4), units(2, 16)
    counts = executor.run(circuit, x, 20_000).counts
    assert counts is not None
    # Gate errors of this backend are small; a wrong qubit order is not.
    distance = (counts / 20_000 - circuit(x).detach() ** 2).abs().sum(dim=1) / 2
    assert (distance < 0.1).all()
    with pytest.raises(InvalidInputError, match="6 qubits"):
        executor.run(lopsided(6), units(1, 64), 10)


def test_circuits_are_transpiled_once_for_all_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    executor = SamplerExecutor(qiskit_primitives.StatevectorSampler(seed=1), max_circuits=4)
    calls = []
    transpile = Compiler.transpile
    monkeypatch.setattr(Compiler, "transpile", lambda *arguments: calls.append(1) or transpile(*arguments))
    circuit = lopsided()
    execution = executor.run(circuit, units(10, 8), 10)
    assert len(calls) == 1
    assert len(execution.job_ids) == 3
    executor.run(circuit, units(5, 8, seed=9), 10)
    assert len(calls) == 1
    executor.run(lopsided(seed=8), units(1, 8), 10)
    assert len(calls) == 2


def test_sparse_and_negative_vectors_are_prepared_right() -> None:
    x = torch.zeros(4, 8, dtype=torch.float64)
    x[0, 0], x[1, 3], x[2, 7] = 1.0, -1.0, 1.0
    x[3, [1, 6]] = torch.tensor([0.6, -0.8], dtype=torch.float64)
    circuit = lopsided()
    counts = SamplerExecutor(qiskit_primitives.StatevectorSampler(seed=4)).run(circuit, x, 5000).counts
    assert counts is not None
    assert_same_law(counts.double(), circuit(x).detach() ** 2)


class Faulty:
    """A sampler that does something wrong."""

    def __init__(self, fault: str) -> None:
        self.fault = fault
        self.sampler = qiskit_primitives.StatevectorSampler(seed=1)

    def run(self, pubs: list, *, shots: int | None = None) -> object:
        if self.fault == "raises":
            raise ConnectionError("the queue is closed")
        if self.fault == "fewer shots":
            pubs = [(circuit, values, number - 1) for circuit, values, number in pubs]
        if self.fault == "fewer circuits":
            pubs = pubs[:-1]
        if self.fault == "other register":
            pubs = [(renamed(circuit), values, number) for circuit, values, number in pubs]
        return self.sampler.run(pubs)


def renamed(circuit: object) -> object:
    from qiskit import ClassicalRegister, QuantumCircuit

    other = QuantumCircuit(*circuit.qregs, ClassicalRegister(len(circuit.clbits), "elsewhere"))
    return other.compose(circuit, other.qubits, other.clbits)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("raises", "the queue is closed"),
        ("fewer shots", "99 shots where 100"),
        ("fewer circuits", "2 results for 3"),
        ("other register", "no counts"),
    ],
)
def test_faulty_samplers_give_one_clear_error(fault: str, message: str) -> None:
    with pytest.raises(ExecutionError, match=message):
        SamplerExecutor(Faulty(fault), backoff=0).run(lopsided(), units(3, 8), 100)


@pytest.mark.parametrize("make", [TorchExecutor, lambda: SamplerExecutor(qiskit_primitives.StatevectorSampler())])
def test_inputs_that_cannot_be_run_are_refused(make: type) -> None:
    executor, circuit, x = make(), lopsided(), units(2, 8)
    nan = x.clone()
    nan[1, 2] = float("nan")
    for vectors, shots, message in [
        (nan, 10, "finite"),
        (2 * x, 10, "normalised"),
        (x[:, :4], 10, "shape"),
        (x[0], 10, "shape"),
        (x, 0, "positive"),
        (x, -3, "positive"),
        (x, 2.5, "positive"),
        (x, True, "positive"),
        (x, torch.tensor([1, 2, 3]), "positive"),
        (x, torch.tensor([1, 0]), "positive"),
    ]:
        with pytest.raises(InvalidInputError, match=message):
            executor.run(circuit, vectors, shots)
    with pytest.raises(InvalidInputError, match="nonlinearities"):
        executor.run(Circuit(parse_ansatz("2b | relu | 2b", 3)), x, 10)
    for circuits in ([], [circuit, lopsided(2)]):
        with pytest.raises(InvalidInputError, match="one size"):
            executor.run(circuits, x, 10)


def test_wrong_makings_of_executors_are_refused() -> None:
    for wrong, message in [
        ({"backend": "fake_montreal"}, "BackendV2"),
        ({"method": "exactly"}, "'matrix_product_state'"),
        ({"seed": "a"}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"optimization_level": 7}, "optimization_level"),
    ]:
        with pytest.raises(InvalidInputError, match=message):
            AerExecutor(**wrong)
    with pytest.raises(InvalidInputError, match="seed"):
        TorchExecutor("a")


@pytest.mark.parametrize("executor", [TorchExecutor, AerExecutor])
def test_several_circuits_run_on_every_vector(executor) -> None:
    circuits, x = [lopsided(seed=1), lopsided(seed=2)], units(3, 8)
    shots = torch.tensor([[100, 200, 300], [400, 500, 600]])
    execution = executor().run(circuits, encode(x, "mps", layers=1), shots)
    assert execution.counts is not None
    assert execution.counts.shape == (2, 3, 8)
    assert torch.equal(execution.counts.sum(dim=2), shots)
    assert (execution.circuits, execution.shots) == (6, 2100)
    many = executor().run(circuits, encode(x, "mps", layers=1), 50_000).counts
    for circuit, counts in zip(circuits, many, strict=True):
        assert_same_law(counts, circuit(x).detach() ** 2)


def test_samplers_refuse_what_only_torch_can() -> None:
    executor = SamplerExecutor(qiskit_primitives.StatevectorSampler())
    with pytest.raises(InvalidInputError, match="TorchExecutor"):
        executor.run(lopsided(), units(1, 8))
    with pytest.raises(InvalidInputError, match="wires"):
        executor.run(Circuit(brickwall((3, 2), 1)), units(1, 6), 10)
    with pytest.raises(InvalidInputError, match="BaseSamplerV2"):
        SamplerExecutor("aer")


@pytest.mark.parametrize(("qubits", "index"), [(3, 1), (10, 515)])
def test_counts_are_integers_in_our_index_order(qubits: int, index: int) -> None:
    # Ten qubits take two bytes a shot.
    x = torch.zeros(1, 2**qubits)
    x[0, index] = 1
    circuit = Circuit(brickwall(qubits, 0))
    counts = SamplerExecutor(qiskit_primitives.StatevectorSampler()).run(circuit, x, 7).counts
    assert counts is not None
    assert counts.dtype == torch.int64
    assert torch.equal(counts, 7 * x.long())


@pytest.mark.parametrize("method", ["statevector", "matrix_product_state", "density_matrix"])
def test_methods_of_aer_agree(method: str) -> None:
    circuit, x = lopsided(), units(2, 8)
    counts = AerExecutor(method=method).run(circuit, x, 20_000).counts
    assert counts is not None
    assert_same_law(counts, circuit(x).detach() ** 2)
