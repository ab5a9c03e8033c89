"""Hybrid networks against the classical networks that they copy."""

import pytest
import torch
from torch import nn

from unbraid.circuits import Circuit, brickwall, parse_ansatz
from unbraid.ground.errors import ExecutionError, InvalidInputError
from unbraid.nn import Architecture, TensorLayer
from unbraid.nn.layers import DisentangledLinear
from unbraid.quantum.cost import estimate_cost
from unbraid.quantum.encode import MPSEncoding, encode
from unbraid.quantum.execute import TorchExecutor
from unbraid.quantum.hybrid import QuantumLinear, merged, to_quantum
from unbraid.quantum.samplers import AerExecutor, SamplerExecutor
from unbraid.quantum.signs import Signs
from unbraid.tensors import MPO


def disentangled(
    in_features: int = 8,
    out_features: int = 4,
    depth: int = 2,
    text: str | None = None,
    *,
    bias: bool = True,
    seed: int = 0,
) -> DisentangledLinear:
    """A layer with random circuits on the padded sizes and a random core."""
    widths = [(size - 1).bit_length() for size in (out_features, in_features)]
    circuits = [
        Circuit(
            brickwall(width, depth) if text is None else parse_ansatz(text, width),
            init="random",
            seed=seed + k,
            mirrored=k == 1,
        )
        for k, width in enumerate(widths)
    ]
    core = MPO.random((2,) * widths[0], (2,) * widths[1], 3, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    return DisentangledLinear(
        circuits[0],
        core,
        circuits[1],
        out_features=out_features,
        in_features=in_features,
        bias=torch.randn(out_features, generator=generator) if bias else None,
    )


def network() -> nn.Sequential:
    first, second = disentangled(7, 4), disentangled(4, 3, bias=False, seed=5)
    return nn.Sequential(nn.Linear(6, 7), nn.ReLU(), first, nn.Tanh(), second)


def data(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def test_exact_hybrid_equals_the_classical_network() -> None:
    model = network().eval()
    hybrid = to_quantum(model, readout="exact")
    x = data(5, 3, 6)
    x[0, 0] = 0
    assert torch.allclose(hybrid(x), model(x), atol=1e-5)
    hybrid(x).sum().backward()
    assert all(parameter.grad is not None for parameter in hybrid.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_model_itself_stays_as_it_is() -> None:
    model = network().train()
    hybrid = to_quantum(model, readout="exact")
    assert isinstance(model[2], DisentangledLinear)
    assert isinstance(hybrid[2], QuantumLinear)
    assert not hybrid.training
    assert model.training
    with torch.no_grad():
        hybrid[2].layers[0].bias.add_(1)
    assert not torch.equal(hybrid[2].layers[0].bias, model[2].bias)


@pytest.mark.parametrize("sizes", [(8, 4), (7, 3), (5, 6), (16, 10)])
def test_sampled_layers_come_close_and_closer(sizes: tuple[int, int]) -> None:
    layer = disentangled(*sizes)
    x = data(40, sizes[0])
    exact = layer(x).detach()
    distances = []
    for shots in (1_000, 1_000_000):
        out = to_quantum(layer, shots=shots)(x).detach()
        assert out.shape == exact.shape
        distances.append(float((out - exact).norm() / (exact - layer.bias.detach()).norm()))
    assert distances[1] < 0.02
    assert distances[1] < distances[0] / 10


@pytest.mark.parametrize("joint", ["relu", "bn+relu"])
def test_nonlinearities_between_segments(joint: str) -> None:
    layer = disentangled(8, 8, text=f"2b+1b | {joint} | 2b | {joint} | 1b").train()
    for _ in range(20):
        layer(data(30, 8))
    layer.eval()
    x = data(6, 8)
    exact = layer(x).detach()
    assert torch.allclose(to_quantum(layer, readout="exact")(x), exact, atol=1e-5)
    sampled = to_quantum(layer, shots=1_000_000)
    assert float((sampled(x).detach() - exact).norm() / exact.norm()) < 0.03
    assert [stage.name for stage in sampled.stages()] == [
        f"layer.{side}.{k}" for side in ("input", "output") for k in range(3)
    ]


def test_stages_multiply_to_the_layer() -> None:
    layer = disentangled(8, 4)
    first, last = QuantumLinear(layer, name="fc", shots=500).stages()
    assert (first.name, last.name) == ("fc.input", "fc.output")
    assert (str(first.readout), first.shots, str(first.encoding)) == ("reference", 500, "amplitude")
    assert isinstance(first.executor, TorchExecutor)
    x = data(3, 8)
    assert torch.allclose(last.circuit(layer.core.apply(first.circuit(x))) + layer.bias, layer(x), atol=1e-5)


def test_spent_counts_what_was_run() -> None:
    hybrid = to_quantum(disentangled(8, 4), shots=100)
    x = data(5, 8)
    x[2] = 0
    hybrid(x)
    # Two stages of two circuits for each vector that is not zero.
    assert (hybrid.spent.circuits, hybrid.spent.shots) == (16, 800)
    hybrid(data(1, 8))
    assert (hybrid.spent.circuits, hybrid.spent.shots) == (20, 1000)


def test_empty_circuits_are_not_run() -> None:
    layer = disentangled(8, 4, depth=0)
    hybrid = to_quantum(layer, shots=10)
    assert hybrid.stages() == []
    x = data(5, 8)
    assert torch.allclose(hybrid(x), layer(x), atol=1e-6)
    assert hybrid.spent.circuits == 0


def test_equal_seeds_give_equal_numbers() -> None:
    model, x = network(), data(4, 6)
    first, again, other = (to_quantum(model, shots=100, seed=seed) for seed in (1, 1, 2))
    values = [hybrid(x) for hybrid in (first, again, other)]
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])
    second = first(x)
    assert not torch.equal(values[0], second)
    assert torch.equal(second, again(x))


def test_other_layers_do_not_change_a_layers_samples() -> None:
    layer, x = disentangled(8, 4), data(3, 8)
    alone = to_quantum(nn.ModuleDict({"a": layer}), shots=50)["a"](x)
    both = to_quantum(nn.ModuleDict({"b": disentangled(8, 4, seed=9), "a": layer}), shots=50)
    both["b"](x)
    assert torch.equal(both["a"](x), alone)


def test_hybrid_on_aer() -> None:
    pytest.importorskip("qiskit_aer")
    layer, x = disentangled(8, 4), data(3, 8)
    runs = [to_quantum(layer, AerExecutor(), shots=20_000)(x).detach() for _ in range(2)]
    assert torch.equal(*runs)
    exact = layer(x).detach()
    assert float((runs[0] - exact).norm() / (exact - layer.bias.detach()).norm()) < 0.1


class Broken:
    """A sampler without a connection."""

    def run(self, pubs: list, *, shots: int | None = None) -> object:
        raise TimeoutError("no answer")


def test_wrong_uses_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="DisentangledLinear"):
        to_quantum(nn.Linear(4, 4))
    layer = disentangled(8, 4)
    with pytest.raises(InvalidInputError, match="readout"):
        to_quantum(layer, readout="guess")
    with pytest.raises(InvalidInputError, match="encoding"):
        to_quantum(layer, encoding="basis")
    with pytest.raises(InvalidInputError, match="shots"):
        to_quantum(layer, shots=0)
    with pytest.raises(InvalidInputError, match="TorchExecutor"):
        to_quantum(layer, SamplerExecutor(Broken()), readout="exact")
    for executor in (3, "aer", TorchExecutor):
        with pytest.raises(InvalidInputError, match="executor must be"):
            to_quantum(layer, executor)
    for wrong in (torch.ones(2), [], [layer, nn.Linear(4, 4)], nn.Linear(4, 4), 3):
        with pytest.raises(InvalidInputError, match="takes a DisentangledLinear"):
            QuantumLinear(wrong)
    with pytest.raises(InvalidInputError, match="settings=2"):
        to_quantum(layer, readout=Signs(2))
    with pytest.raises(InvalidInputError, match="8 features"):
        to_quantum(layer)(data(2, 7))
    with pytest.raises(InvalidInputError, match="finite"):
        to_quantum(layer)(data(2, 8) * float("inf"))
    with pytest.raises(ExecutionError, match="no answer"):
        to_quantum(layer, SamplerExecutor(Broken()))(data(2, 8))


def test_a_layer_used_twice_runs_and_costs_twice():
    layer = DisentangledLinear(
        Circuit(brickwall(2, 1)), MPO.random((2, 2), (2, 2), 1), Circuit(brickwall(2, 1), mirrored=True)
    )
    hybrid = to_quantum(nn.Sequential(layer, nn.Sigmoid(), layer), TorchExecutor(), shots=100)
    assert hybrid[0] is hybrid[2]
    with torch.no_grad():
        hybrid(torch.rand(5, 4))
    cost = estimate_cost(hybrid, 5)
    assert (cost.circuits, cost.shots) == (hybrid[0].spent.circuits, hybrid[0].spent.shots) == (40, 2000)
    tokens = estimate_cost(hybrid, 5, vectors_per_sample=3)
    assert tokens.circuits == 120
    assert "3 vectors each" in tokens.describe()


@pytest.mark.parametrize("readout", ["reference", "signs"])
def test_shifted_parameters_give_the_gradients_of_exact_circuits(readout) -> None:
    layer = disentangled(4, 4).double()
    x = data(3, 4).double().requires_grad_()
    weight = data(3, 4).double()
    gradients = []
    for hybrid in (
        to_quantum(layer, readout="exact"),
        to_quantum(layer, readout=readout, shots=4_000_000, gradient="parameter-shift"),
    ):
        x.grad = None
        (hybrid(x) * weight).sum().backward()
        gradients.append([x.grad, *(parameter.grad for parameter in hybrid.parameters())])
    assert len(gradients[0]) > 4
    for exact, shifted in zip(*gradients, strict=True):
        assert float((exact - shifted).norm()) < 0.03 * float(exact.norm()) + 0.01


def test_gradients_through_nonlinearities_between_segments() -> None:
    layer = DisentangledLinear(
        Circuit(parse_ansatz("2b | relu | 1b", 2), init="random", seed=1, dtype=torch.float64),
        MPO.random((2, 2), (2, 2), 1, seed=2, dtype=torch.float64),
        Circuit(parse_ansatz("2b", 2), init="random", seed=3, mirrored=True, dtype=torch.float64),
    )
    gradients = []
    for hybrid in (
        to_quantum(layer, readout="exact"),
        to_quantum(layer, readout="signs", shots=2_000_000, gradient="parameter-shift"),
    ):
        hybrid(data(2, 4).double()).sum().backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in hybrid.parameters()]))
    torch.testing.assert_close(*gradients, atol=0.03, rtol=0.03)


def test_a_gradient_that_is_not_there_is_an_error() -> None:
    layer = disentangled(4, 4)
    with pytest.raises(InvalidInputError, match="no gradient of its own"):
        to_quantum(layer)(data(2, 4)).sum().backward()
    with pytest.raises(InvalidInputError, match="gradient must be one of"):
        to_quantum(layer, gradient="guess")
    with pytest.raises(InvalidInputError, match="gradients of its own"):
        to_quantum(layer, readout="exact", gradient="parameter-shift")
    with pytest.raises(InvalidInputError, match="loses them"):
        to_quantum(layer, readout="tomography", gradient="parameter-shift")


def two_in_a_row() -> nn.Sequential:
    return nn.Sequential(disentangled(8, 8), nn.Dropout(), disentangled(8, 8), nn.ReLU(), disentangled(8, 4)).eval()


def test_joined_layers_give_the_same_for_less() -> None:
    model, x = two_in_a_row(), data(6, 8)
    apart, joined = (to_quantum(model, readout="exact", join=join) for join in (False, True))
    torch.testing.assert_close(joined(x), model(x), atol=1e-5, rtol=1e-4)
    assert [stage.name for stage in joined[0].stages()] == ["0.input", "0.output+2.input", "2.output"]
    assert isinstance(joined[2], nn.Identity)
    stages = [sum(len(module.stages()) for module in hybrid if hasattr(module, "stages")) for hybrid in (apart, joined)]
    assert stages == [6, 5]
    sampled = to_quantum(model, shots=4_000_000, join=True)
    with torch.no_grad():
        assert float((sampled(x) - model(x)).norm() / model(x).norm()) < 0.02
    costs = [estimate_cost(to_quantum(model, shots=1000, join=join), 10) for join in (False, True)]
    assert (costs[0].circuits, costs[1].circuits) == (120, 100)
    assert costs[1].shots < costs[0].shots
    assert costs[1].two_qubit_gates < costs[0].two_qubit_gates


def test_gates_on_the_same_wires_become_one() -> None:
    first, second = (Circuit(brickwall(4, 2), init="random", seed=seed, dtype=torch.float64) for seed in (1, 2))
    turned = Circuit(second.ansatz, mirrored=True, init="random", seed=3, dtype=torch.float64)
    whole = [*first.segment_gates()[0], *turned.segment_gates()[0]]
    short = merged(whole)
    assert (len(whole), len(short)) == (6, 5)
    torch.testing.assert_close(
        Circuit.from_gates(4, short, dtype=torch.float64).matrix(), turned.matrix() @ first.matrix()
    )


def test_layers_that_cannot_be_joined_stay_apart_or_are_refused() -> None:
    model = nn.Sequential(disentangled(8, 6), disentangled(6, 8))
    hybrid = to_quantum(model.eval(), readout="exact", join=True)
    assert isinstance(hybrid[1], QuantumLinear)
    with pytest.raises(InvalidInputError, match="in a row"):
        QuantumLinear(list(model))
    shared = disentangled(8, 8)
    hybrid = to_quantum(nn.Sequential(shared, shared).eval(), readout="exact", join=True)
    torch.testing.assert_close(hybrid(data(2, 8)), shared(shared(data(2, 8))), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dims", [(2, 2, 1), (1, 2, 2), (2, 1, 2)])
def test_wires_that_hold_nothing_do_not_keep_layers_apart(dims: tuple[int, ...]) -> None:
    circuit = Circuit(parse_ansatz("2b+1b+2b", dims), init="random", seed=1)
    other = Circuit(parse_ansatz("1b+2b", 2), init="random", seed=2, mirrored=True)
    first = DisentangledLinear(
        circuit, MPO.random(dims, dims, 2, seed=1), Circuit(parse_ansatz("", dims), mirrored=True)
    )
    second = DisentangledLinear(Circuit(parse_ansatz("", 2)), MPO.random((2, 2), (2, 2), 2, seed=2), other)
    model, x = nn.Sequential(first, second).eval(), data(5, 4)
    hybrid = to_quantum(model, readout="exact", join=True)
    assert [stage.name for stage in hybrid[0].stages()] == ["0.output+1.input"]
    torch.testing.assert_close(hybrid(x), model(x), atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        sampled = to_quantum(model, shots=4_000_000, join=True)(x)
        assert float((sampled - model(x)).norm() / model(x).norm()) < 0.02


def test_a_layer_that_cannot_run_is_named() -> None:
    declared = Architecture((TensorLayer((2, 5), (2, 2), 1, "1b", norm=False, relu=False),)).build()
    with pytest.raises(InvalidInputError, match=r"layer1\.input: .* got \(2, 5\).*input_wires"):
        to_quantum(declared)
    broken = disentangled()
    broken.output_circuit.generators["so4"].data[0, 0] = float("nan")
    with pytest.raises(InvalidInputError, match=r"'output_circuit.generators.so4' of layer must be finite"):
        to_quantum(broken)


def test_shots_in_the_padding_are_counted() -> None:
    layer = disentangled(8, 5)
    hybrid = to_quantum(layer, shots=1000)
    hybrid(data(50, 8))
    lost = hybrid.spent.padding_shots
    assert 0 < lost < 50 * 1000
    with torch.no_grad():
        x = data(50, 8)
        whole = layer.output_circuit(layer.core.apply(layer.input_circuit(x))).square()
        share = float((whole[:, 5:].sum(dim=1) / whole.sum(dim=1)).sum())
    assert lost == pytest.approx(1000 * share, rel=0.1)


def test_centers_lower_the_error_and_leave_exact_results_alone() -> None:
    model = nn.Sequential(disentangled(8, 8), nn.ReLU(), disentangled(8, 4)).eval()
    x = data(40, 8) + 3  # a large mean, small differences
    exact = model(x).detach()
    torch.testing.assert_close(to_quantum(model, readout="exact", center=x)(x), exact, atol=1e-5, rtol=1e-4)
    errors = []
    for center in (None, x):
        hybrid = to_quantum(model, shots=20_000, center=center)
        assert all(len(layer.centers) == (0 if center is None else 2) for layer in (hybrid[0], hybrid[2]))
        with torch.no_grad():
            errors.append(float((hybrid(x) - exact).norm()))
        assert hybrid[0].spent.circuits == 160  # centers cost nothing
    assert errors[1] < errors[0] / 2


def test_centers_work_for_joined_layers_and_inner_nonlinearities() -> None:
    x = data(20, 8) + 1
    for model in (two_in_a_row(), disentangled(8, 8, text="2b | relu | 2b")):
        hybrid = to_quantum(model.eval(), shots=3_000_000, join=True, center=x)
        with torch.no_grad():
            assert float((hybrid(x) - model(x)).norm() / model(x).norm()) < 0.03


def test_wrong_centers_are_refused() -> None:
    for center in (3, torch.zeros(0, 8), torch.full((2, 8), float("nan"))):
        with pytest.raises(InvalidInputError, match="center"):
            to_quantum(disentangled(8, 4), center=center)


@pytest.mark.parametrize("join", [False, True])
def test_shifted_parameters_count_the_image_of_the_center(join) -> None:
    model = two_in_a_row()[:3].double() if join else nn.Sequential(disentangled(4, 4)).double()
    x = (data(3, 8) if join else data(3, 4)).double() + 1
    gradients = []
    for options in ({"readout": "exact"}, {"shots": 4_000_000, "gradient": "parameter-shift"}):
        hybrid = to_quantum(model.eval(), center=x, join=join, **options)
        hybrid(x).square().sum().backward()
        found = [parameter.grad.flatten() for name, parameter in hybrid.named_parameters() if "generators" in name]
        gradients.append(torch.cat(found))
    assert float((gradients[0] - gradients[1]).norm() / gradients[0].norm()) < 0.05


def test_nan_is_refused_by_exact_hybrids_too() -> None:
    x = data(2, 8)
    x[0, 0] = float("nan")
    with pytest.raises(InvalidInputError, match="finite"):
        to_quantum(disentangled(8, 4), readout="exact")(x)


def test_joined_circuits_are_prepared_once_even_if_the_first_has_no_gates() -> None:
    first, second = disentangled(16, 16, depth=0), disentangled(16, 16)
    model, x = nn.Sequential(first, second).eval(), data(4, 16)
    joined = to_quantum(model, readout="exact", encoding=MPSEncoding(layers=1, sweeps=0), join=True)
    encoded = encode(first.core.apply(x), MPSEncoding(layers=1, sweeps=0))
    between = second.input_circuit(encoded.norm[:, None] * encoded.vectors) + second.input_circuit(first.bias)
    encoded = encode(second.core.apply(between), MPSEncoding(layers=1, sweeps=0))
    expected = second.output_circuit(encoded.norm[:, None] * encoded.vectors) + second.bias
    torch.testing.assert_close(joined(x), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("readout", ["exact", "reference"])
def test_neurons_between_segments_draw_from_the_hybrids_stream(readout):
    ansatz = parse_ansatz("2b | bn+rotation(0.5) | 2b", 3)
    circuits = Circuit(ansatz, "random", 1), Circuit(ansatz, "random", 2, mirrored=True)
    layer = DisentangledLinear(circuits[0], MPO.random((2,) * 3, (2,) * 3, 2), circuits[1])
    model = nn.Sequential(layer)
    model(torch.randn(50, 8))  # the norms get statistics
    x = torch.randn(6, 8)
    found = []
    for number in range(2):
        torch.manual_seed(number)
        hybrid = to_quantum(model, TorchExecutor(0), readout=readout, shots=1_000, seed=4)
        found.append((hybrid(x), hybrid(x)))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert not torch.equal(found[0][0], found[0][1])
