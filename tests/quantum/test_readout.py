"""Readouts: norm and sign come back, and errors shrink as they should."""

import math

import pytest
import torch

from unbraid.circuits import Circuit, brickwall, parse_ansatz
from unbraid.ground.errors import ExecutionError, InvalidInputError
from unbraid.nn import DisentangledLinear
from unbraid.quantum.encode import MPSEncoding, encode
from unbraid.quantum.execute import Execution, sample_counts
from unbraid.quantum.hybrid import to_quantum
from unbraid.quantum.reading import apply_transposed
from unbraid.quantum.readout import read_out
from unbraid.quantum.reference import Reference, reference_states, solve_reference
from unbraid.quantum.samplers import AerExecutor
from unbraid.quantum.signs import Signs, _hadamards, settings_of, solve_signs
from unbraid.quantum.tomography import Tomography
from unbraid.tensors import MPO


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def haar_circuit(qubits: int, seed: int = 1, gate: str = "so") -> Circuit:
    return Circuit(brickwall(qubits, 4, gate=gate), init="random", seed=seed, dtype=torch.float64)


def inputs(count: int, size: int, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(count, size, dtype=torch.float64, generator=generator(seed))


def relative_squares(read: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    return ((read - exact).norm(dim=-1) / exact.norm(dim=-1)) ** 2


def test_exact_is_the_circuit() -> None:
    circuit, x = haar_circuit(3), inputs(6, 8).reshape(2, 3, 8)
    read = read_out(circuit, x, readout="exact")
    assert torch.equal(read.vectors, circuit(x))
    assert read.vectors.requires_grad
    assert read.shots == 0
    assert read.standard_error.shape == (2, 3)
    assert not read.standard_error.any()


@pytest.mark.parametrize(("qubits", "shots"), [(4, 10_000), (6, 100_000), (8, 1_000_000)])
def test_reference_recovers_norm_and_sign_near_the_optimum(qubits: int, shots: int) -> None:
    size = 2**qubits
    circuit, x = haar_circuit(qubits), inputs(200, size)
    exact = circuit(x).detach()
    read = read_out(circuit, x, shots=shots, generator=generator(2))
    squares = relative_squares(read.vectors, exact)
    optimum = (size - 1) / (4 * shots)
    # with c^2 = .8 whatever the shots it is 1.25 and more
    assert 1.0 < float(squares.mean()) / optimum < 1.2
    assert (torch.cosine_similarity(read.vectors, exact, dim=1) > 0.9).all()
    assert torch.allclose(read.vectors.norm(dim=1), x.norm(dim=1))
    claimed = (read.standard_error / x.norm(dim=1)) ** 2
    assert 0.85 < float(claimed.mean() / squares.mean()) < 1.1
    assert (read.circuits, read.shots) == (400, 200 * shots)


def test_reference_converges_like_one_over_root_shots() -> None:
    circuit, x = haar_circuit(6), inputs(100, 64)
    exact = circuit(x).detach()
    reads = [read_out(circuit, x, shots=shots, generator=generator(1)) for shots in (10_000, 1_000_000)]
    errors = [math.sqrt(float(relative_squares(read.vectors, exact).mean())) for read in reads]
    assert 8 < errors[0] / errors[1] < 13


def test_opposite_inputs_read_opposite_outputs() -> None:
    circuit, x = haar_circuit(5), inputs(20, 32)
    plus = read_out(circuit, x, shots=100_000, generator=generator(1)).vectors
    minus = read_out(circuit, -x, shots=100_000, generator=generator(2)).vectors
    assert (torch.cosine_similarity(plus, minus, dim=1) < -0.99).all()


def test_inputs_along_the_reference_are_no_trouble() -> None:
    circuit = haar_circuit(4)
    uniform = torch.full((1, 16), 0.25, dtype=torch.float64)
    r = apply_transposed(circuit, uniform).detach()
    for x, readout in ((r, "reference"), (-r, "reference"), (r, Reference(0.5)), (-r, Reference(0.5))):
        read = read_out(circuit, x, readout=readout, shots=100_000, generator=generator())
        assert torch.allclose(read.vectors, circuit(x).detach(), atol=0.02)


def test_transposed_circuit_is_the_inverse() -> None:
    for mirrored in (False, True):
        ansatz = parse_ansatz("2b+cnot+1b+3b", 4)
        circuit = Circuit(ansatz, init="random", seed=2, mirrored=mirrored, dtype=torch.float64)
        x = inputs(3, 16)
        assert torch.allclose(apply_transposed(circuit, circuit(x)), x)


@pytest.mark.parametrize("share", [0.02, 0.2, 0.7])
@pytest.mark.parametrize("flat", [True, False])
def test_noiseless_counts_are_inverted_exactly(share: float, flat: bool) -> None:
    circuit, x = haar_circuit(5), inputs(10, 32)
    unit = x / x.norm(dim=1, keepdim=True)
    u = torch.full((1, 32), 32**-0.5, dtype=torch.float64)
    with torch.no_grad():
        r, image = (apply_transposed(circuit, u), u) if flat else (u, circuit(u))
        states, squares = reference_states(unit, r, share)
        assert torch.allclose(squares.sum(dim=0), torch.full((10,), 2.0, dtype=torch.float64))
        weights = torch.tensor([[3e11], [5e11]], dtype=torch.float64) / squares
        plus, minus = circuit(states) ** 2 * (weights * squares)[:, :, None]
        vectors, _ = solve_reference(plus, minus, weights, share**0.5 * image, 1 - share)
        assert torch.allclose(vectors, circuit(unit), atol=1e-6)


@pytest.mark.parametrize(("qubits", "shots"), [(1, 2_000), (2, 3_000), (4, 10_000), (6, 50_000)])
def test_signs_recover_norm_and_sign_near_the_optimum(qubits: int, shots: int) -> None:
    size = 2**qubits
    circuit, x = haar_circuit(qubits) if qubits > 1 else one_qubit(), inputs(100, size)
    x[0] = x[0] - x[0].mean()  # orthogonal to the uniform vector, which decides the sign
    exact = circuit(x).detach()
    read = read_out(circuit, x, readout="signs", shots=shots, generator=generator(2))
    squares = relative_squares(read.vectors, exact)
    optimum = (size - 1) / (4 * shots)
    assert float(squares.mean()) / optimum < 1.3
    assert (torch.cosine_similarity(read.vectors, exact, dim=1) > 0.9).all()
    claimed = (read.standard_error / x.norm(dim=1)) ** 2
    assert 0.7 < float(claimed.mean() / squares.mean()) < 1.4
    assert read.circuits == 100 * (qubits + 1)
    assert read.shots == 100 * (qubits + 1) * (shots // (qubits + 1))


def one_qubit() -> Circuit:
    return Circuit(parse_ansatz("1b", 1), init="random", seed=3, dtype=torch.float64)


def test_signs_on_wires_of_several_qubits() -> None:
    circuit, x = Circuit(brickwall((4, 2, 4), 2), init="random", seed=2, dtype=torch.float64), inputs(5, 32)
    read = read_out(circuit, x, readout=Signs(settings=12), shots=1_000_000, generator=generator())
    assert float(relative_squares(read.vectors, circuit(x).detach()).max()) < 1e-4


@pytest.mark.parametrize("shots", [1_000, 10_000])
@pytest.mark.parametrize("kind", ["dense", "uneven", "sparse"])
def test_the_error_of_signs_holds_the_doubt_about_signs(kind, shots) -> None:
    psi = inputs(100, 64)
    if kind == "uneven":
        psi = psi**3
    elif kind == "sparse":
        psi = psi * (torch.rand(psi.shape, generator=generator()) < 0.15)
    psi = torch.nn.functional.normalize(psi, dim=1)
    settings = settings_of(6)
    counts = torch.stack([sample_counts(_hadamards(psi, s), shots // 7, generator(k)) for k, s in enumerate(settings)])
    found, _, doubt = solve_signs(counts.double(), None, settings)
    squares = (found * (found * psi).sum(dim=1, keepdim=True).sign() - psi).square().sum(dim=1)
    claimed = doubt + 63 / (4 * shots)
    assert 0.4 < float(squares.mean() / claimed.mean()) < 1.5
    if kind == "dense" and shots == 10_000:
        assert float(doubt.mean()) < 0.1 * 63 / (4 * shots)
    if kind == "sparse":
        assert float(doubt.mean()) > 10 * 63 / (4 * shots)


@pytest.mark.parametrize(("qubits", "shots"), [(4, 2_000), (6, 10_000), (8, 10_000)])
def test_the_error_of_signs_holds_the_doubt_about_the_overall_sign(qubits, shots) -> None:
    """Outcomes of a single entry, which little of the anchor's image meets."""
    circuit = Circuit(brickwall(qubits, 2), init="random", seed=1, dtype=torch.float64)
    psi = torch.eye(2**qubits, dtype=torch.float64).repeat(2**8 // 2**qubits * 2, 1)[:300]
    read = read_out(circuit, psi @ circuit.matrix().detach(), readout="signs", shots=shots, generator=generator())
    squares = (read.vectors - psi).square().sum(dim=1)
    assert 0.5 < float(squares.mean().sqrt() / read.standard_error.square().mean().sqrt()) < 1.6


def test_tomography_refuses_what_it_would_not_use() -> None:
    layer = DisentangledLinear(Circuit(brickwall(2, 1)), MPO.random((2, 2), (2, 2), 1), Circuit(brickwall(2, 1)))
    for options in ({"mitigate_readout": True}, {"noise_factors": (1, 3)}):
        run = AerExecutor(**options)
        with pytest.raises(InvalidInputError, match="fitter='inversion'"):
            read_out(haar_circuit(2), inputs(1, 4), readout="tomography", executor=run)
        with pytest.raises(InvalidInputError, match="fitter='inversion'"):
            to_quantum(layer, run, readout="tomography")
        to_quantum(layer, run, readout=Tomography(fitter="inversion"))


def test_more_settings_average_the_noise_of_a_device() -> None:
    # a depolarised state with a coherent part that differs from setting to setting
    size, settings = 16, settings_of(4, 10)
    psi = torch.nn.functional.normalize(inputs(30, size), dim=1)
    counts = []
    for setting in settings:
        rotated = _hadamards(psi, setting)
        other = torch.nn.functional.normalize(inputs(30, size, seed=7 + len(counts)), dim=1)
        counts.append(1e6 * (0.6 * rotated**2 + 0.3 / size + 0.1 * other**2))
    errors = []
    for count in (5, 10):
        vectors, noise, _ = solve_signs(torch.stack(counts[:count]), None, settings[:count])
        vectors = vectors * (vectors * psi).sum(dim=1, keepdim=True).sign()
        errors.append(float((vectors - psi).norm(dim=1).mean()))
        assert ((noise > 0.2) & (noise < 0.5)).all()
    assert errors[1] < errors[0] < 0.2


def test_few_shots_give_finite_unit_vectors() -> None:
    circuit, x = haar_circuit(6), inputs(50, 64)
    for shots in (2, 3, 20):
        read = read_out(circuit, x, shots=shots, generator=generator(3))
        assert torch.isfinite(read.vectors).all()
        assert torch.isfinite(read.standard_error).all()
        assert torch.allclose(read.vectors.norm(dim=1), x.norm(dim=1))
        assert read.shots == 50 * 2 * (shots // 2)


def test_zero_vectors_give_zeros_and_cost_nothing() -> None:
    circuit, x = haar_circuit(3), inputs(3, 8)
    x[1] = 0
    read = read_out(circuit, x, shots=100, generator=generator())
    assert not read.vectors[1].any()
    assert float(read.standard_error[1]) == 0
    assert (read.circuits, read.shots) == (4, 200)
    nothing = read_out(circuit, torch.zeros(8, dtype=torch.float64))
    assert (nothing.circuits, nothing.shots) == (0, 0)
    assert torch.equal(nothing.vectors, torch.zeros(8, dtype=torch.float64))
    assert read_out(circuit, torch.zeros(0, 8)).vectors.shape == (0, 8)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_extreme_norms_survive(scale: float) -> None:
    circuit = haar_circuit(3).float()
    x = inputs(2, 8).float()
    big = read_out(circuit, x * scale, shots=1000, generator=generator())
    plain = read_out(circuit, x, shots=1000, generator=generator())
    assert torch.allclose(big.vectors / scale, plain.vectors, rtol=1e-4)
    assert big.vectors.dtype == torch.float32


def test_equal_generators_give_equal_results() -> None:
    circuit, x = haar_circuit(3), inputs(4, 8)
    first, again, other = (read_out(circuit, x, shots=100, generator=generator(seed)).vectors for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_reference_through_aer() -> None:
    pytest.importorskip("qiskit_aer")
    circuit, x = haar_circuit(3), inputs(4, 8)
    read = read_out(circuit, x, shots=20_000, executor=AerExecutor(), generator=generator())
    squares = relative_squares(read.vectors, circuit(x).detach())
    assert float(squares.mean()) < 3 * 7 / (4 * 20_000)


@pytest.mark.parametrize("gate", ["so", "u"])
def test_tomography_finds_the_state_up_to_its_sign(gate: str) -> None:
    pytest.importorskip("qiskit_experiments")
    circuit, x = haar_circuit(2, seed=4, gate=gate), inputs(6, 4)
    read = read_out(circuit, x, readout="tomography", shots=90_009, generator=generator())
    exact = circuit(x).detach()
    largest = exact.gather(1, exact.abs().argmax(dim=1, keepdim=True))
    exact = exact * largest.conj() / largest.abs()
    assert float(relative_squares(read.vectors, exact).mean().sqrt()) < 0.02
    assert (read.circuits, read.shots) == (54, 6 * 9 * 10_001)
    assert read.vectors.is_complex() == (gate == "u")


def test_tomography_gets_its_sign_from_what_the_host_knows() -> None:
    pytest.importorskip("qiskit_experiments")
    for gate in ("so", "u"):
        circuit, x = haar_circuit(2, seed=4, gate=gate), inputs(6, 4)
        read = read_out(circuit, x, readout=Tomography(sign="known"), shots=90_000, generator=generator())
        assert float(relative_squares(read.vectors, circuit(x).detach()).max()) < 0.01


@pytest.mark.parametrize("readout", ["reference", "signs"])
def test_readouts_of_staircases_find_what_was_prepared(readout: str) -> None:
    circuit, x = haar_circuit(4), inputs(20, 16)
    exact = circuit(x).detach()
    read = read_out(circuit, x, readout=readout, encoding="mps", shots=10**6, generator=generator())
    assert float(relative_squares(read.vectors, exact).max()) < 1e-3


def test_exact_readout_shows_the_error_of_the_encoding() -> None:
    circuit, x = haar_circuit(4), inputs(3, 16)
    read = read_out(circuit, x, readout="exact", encoding=MPSEncoding(layers=1))
    encoded = encode(x, "mps", layers=1)
    expected = 2 - 2 * encoded.fidelity.sqrt()
    torch.testing.assert_close(relative_squares(read.vectors, circuit(x)), expected)


def test_tomography_states_its_error() -> None:
    pytest.importorskip("qiskit_experiments")
    circuit, x = haar_circuit(2, seed=4), inputs(20, 4)
    read = read_out(circuit, x, readout="tomography", shots=9_000, generator=generator())
    exact = circuit(x).detach()
    exact = exact * (exact * read.vectors).sum(dim=1, keepdim=True).sign()
    measured = relative_squares(read.vectors, exact).mean().sqrt()
    claimed = ((read.standard_error / x.norm(dim=1)) ** 2).mean().sqrt()
    assert 0.7 < float(claimed / measured) < 1.5


def test_tomography_through_aer() -> None:
    pytest.importorskip("qiskit_experiments")
    pytest.importorskip("qiskit_aer")
    circuit, x = haar_circuit(2, seed=4), inputs(1, 4)
    read = read_out(circuit, x, readout="tomography", shots=45_000, executor=AerExecutor(), generator=generator())
    exact = circuit(x).detach()
    assert float(torch.cosine_similarity(read.vectors, exact).abs()) > 0.999


class Silent:
    """An executor that returns no counts."""

    def run(self, circuit: Circuit, vectors: torch.Tensor, shots: object = None, **options: object) -> Execution:
        return Execution(None, vectors, 0, 0, (), 0.0)


def test_wrong_uses_are_refused() -> None:
    circuit, x = haar_circuit(3), inputs(2, 8)
    with pytest.raises(InvalidInputError, match="'exact', 'reference', 'signs', 'tomography'"):
        read_out(circuit, x, readout="guess")
    for readout in ("reference", "signs"):
        with pytest.raises(InvalidInputError, match="unitary"):
            read_out(haar_circuit(3, gate="u"), x, readout=readout)
    for count in (3, 9):
        with pytest.raises(InvalidInputError, match="from 4 to 8 settings"):
            read_out(circuit, x, readout=Signs(settings=count))
    with pytest.raises(InvalidInputError, match="number of circuits"):
        Signs(settings=2.5)
    for share in (0, 1, "x"):
        with pytest.raises(InvalidInputError, match="share"):
            Reference(share=share)
    with pytest.raises(InvalidInputError, match="sign must be one of"):
        Tomography(sign="guess")
    complex_circuit = haar_circuit(3, gate="u")
    assert torch.equal(read_out(complex_circuit, x, readout="exact").vectors, complex_circuit(x))
    for shots in (1, 0, 2.5, True):
        with pytest.raises(InvalidInputError, match="shots"):
            read_out(circuit, x, shots=shots)
    with pytest.raises(InvalidInputError, match="8 entries"):
        read_out(circuit, x[:, :4])
    with pytest.raises(InvalidInputError, match="real"):
        read_out(circuit, x.to(torch.complex128))
    with pytest.raises(InvalidInputError, match="finite"):
        read_out(circuit, x * float("nan"))
    for readout in ("exact", "reference", "signs", "tomography"):
        with pytest.raises(InvalidInputError, match="nonlinearities"):
            read_out(Circuit(parse_ansatz("2b | relu | 2b", 3)), x.float(), readout=readout)
    for readout in ("reference", "signs", "tomography"):
        with pytest.raises((ExecutionError, InvalidInputError)):
            read_out(circuit, x, readout=readout, executor=Silent())
    with pytest.raises(InvalidInputError, match="TorchExecutor"):
        read_out(circuit, x, readout="exact", executor=Silent())


@pytest.mark.parametrize("readout", [Signs(), Tomography(sign="known", fitter="inversion")])
def test_inputs_orthogonal_to_the_uniform_vector_keep_their_sign(readout: object) -> None:
    circuit, x = haar_circuit(3), inputs(40, 8)
    x = x - x.mean(dim=1, keepdim=True) * (1 + 0.1 * torch.randn(40, 1, dtype=torch.float64, generator=generator()))
    read = read_out(circuit, x, readout=readout, shots=300_000, generator=generator())
    assert float(relative_squares(read.vectors, circuit(x).detach()).max()) < 1e-3


def test_linear_inversion_agrees_with_the_fitter() -> None:
    pytest.importorskip("qiskit_experiments")
    circuit, x = haar_circuit(2, gate="u"), inputs(3, 4)
    ways = [Tomography(fitter=fitter) for fitter in ("inversion", "qiskit-experiments")]
    first, second = (read_out(circuit, x, readout=way, shots=900_000, generator=generator()) for way in ways)
    assert float((first.vectors - second.vectors).norm() / second.vectors.norm()) < 0.01
    assert (first.circuits, first.shots) == (second.circuits, second.shots)


@pytest.mark.parametrize("readout", ["reference", "signs", Tomography(fitter="inversion")])
def test_nothing_to_read_is_no_trouble(readout: object) -> None:
    for x in (torch.zeros(0, 8), torch.zeros(3, 8), torch.zeros(8)):
        read = read_out(haar_circuit(3), x, readout=readout)
        assert read.vectors.shape == x.shape
        assert (read.circuits, read.shots) == (0, 0)
        assert not read.vectors.any()
