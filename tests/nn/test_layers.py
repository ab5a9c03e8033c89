import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from unbraid.circuits import Circuit, brickwall, parse_ansatz
from unbraid.disentangling import disentangle
from unbraid.ground.errors import InvalidInputError
from unbraid.nn import DisentangledLinear, MPOLinear
from unbraid.tensors import MPO
from unbraid.tensors.sites import qubit_sites

SIZES = st.integers(1, 21)


def disentangled(outs=8, ins=4, bias=True, dtype=torch.float64, bond=2, joints="", **sizes):
    text = f"2b+1b{joints}" + ("2b" if joints else "")
    dims = [(2,) * (n - 1).bit_length() for n in (outs, ins)]
    core = MPO.random(*dims, bond, dtype=dtype)
    output, inward = (
        Circuit(parse_ansatz(text, d), "random", seed=k, mirrored=bool(k), dtype=dtype) for k, d in enumerate(dims)
    )
    return DisentangledLinear(
        output, core, inward, out_features=outs, in_features=ins, bias=torch.randn(outs) if bias else None, **sizes
    )


@settings(max_examples=40)
@given(
    outs=SIZES,
    ins=SIZES,
    bias=st.booleans(),
    batch=st.sampled_from([(), (1,), (0,), (2, 3), (300,)]),
    qubits=st.booleans(),
)
def test_mpo_linear_equals_its_dense_twin(outs, ins, bias, batch, qubits):
    linear = nn.Linear(ins, outs, bias=bias, dtype=torch.float64)
    sites = qubit_sites(outs, ins) if qubits else (None, None)
    layer = MPOLinear.from_linear(linear, *sites)
    assert layer.num_parameters == sum(p.numel() for p in layer.parameters())
    x = torch.randn(*batch, ins, dtype=torch.float64)
    assert torch.allclose(layer(x), linear(x), atol=1e-12)
    assert torch.allclose(layer.weight, linear.weight, atol=1e-12)
    back = layer.to_linear()
    assert (back.bias is None) == (not bias)
    assert torch.allclose(back(x), linear(x), atol=1e-12)


@pytest.mark.parametrize("batch", [1, 2, 200])  # core by core, and through the dense weight
@pytest.mark.parametrize(("outs", "ins"), [(8, 8), (7, 5), (3, 16)])
def test_gradients_of_mpo_linear_equal_those_through_the_dense_weight(batch, outs, ins):
    layer = MPOLinear(MPO.random(*qubit_sites(outs, ins), 3, shape=(outs, ins), dtype=torch.float64), torch.randn(outs))
    x = torch.randn(batch, ins, dtype=torch.float64, requires_grad=True)
    probe = torch.randn(batch, outs, dtype=torch.float64)
    inputs = [x, *layer.parameters()]
    fast = torch.autograd.grad((layer(x) * probe).sum(), inputs)
    slow = torch.autograd.grad((nn.functional.linear(x, layer.weight, layer.bias) * probe).sum(), inputs)
    assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(fast, slow, strict=True))


@pytest.mark.parametrize(("outs", "ins"), [(8, 4), (7, 3), (4, 11)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [(), (3,), (0,), (2, 40)])
def test_disentangled_linear_equals_its_dense_twin(outs, ins, bias, batch):
    layer = disentangled(outs, ins, bias)
    x = torch.randn(*batch, ins, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    twin = nn.functional.linear(x, layer.weight, layer.bias)
    assert torch.allclose(y, twin, atol=1e-12)
    if x.numel():
        inputs = [x, *layer.parameters()]
        probe = torch.randn_like(y)
        pairs = zip(*(torch.autograd.grad((z * probe).sum(), inputs) for z in (y, twin)), strict=True)
        assert all(torch.allclose(a, b, atol=1e-10) for a, b in pairs)
    assert torch.allclose(layer.to_linear()(x), y, atol=1e-12)


def test_disentangled_gradients_equal_finite_differences():
    layer = disentangled(3, 4)
    names, values = zip(*layer.named_parameters(), strict=True)
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)

    def run(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *(v.detach().clone().requires_grad_() for v in values)), fast_mode=True)


def test_layer_of_a_disentangling_is_its_dense_matrix():
    mpo = MPO.from_dense(torch.randn(7, 5, dtype=torch.float64))
    result = disentangle(mpo, brickwall(3, 1), max_sweeps=10)
    layer = DisentangledLinear.from_disentangled(result, torch.randn(7, dtype=torch.float64))
    assert torch.allclose(layer.weight, result.to_dense(), atol=1e-12)
    assert (layer.out_features, layer.in_features) == (7, 5)
    assert layer.num_parameters == 7 + result.core.num_parameters + 2 * result.output_circuit.num_parameters


def test_joints_make_a_layer_nonlinear():
    layer = disentangled(8, 8, joints="| bn+relu |", dtype=torch.float32)
    assert not layer.is_linear
    x = torch.randn(30, 8)
    layer.train()(x).sum().backward()
    assert all(p.grad is not None for p in layer.parameters())
    layer.eval()
    assert not torch.allclose(
        layer(2 * x) - layer(torch.zeros(1, 8)), 2 * (layer(x) - layer(torch.zeros(1, 8))), atol=1e-3
    )
    with pytest.raises(InvalidInputError, match="no matrix"):
        layer.to_linear()


@pytest.mark.parametrize("make", [disentangled, lambda: MPOLinear(MPO.random((2, 3), (3, 2), 2, dtype=torch.float64))])
def test_layers_are_native_modules(make):
    layer = make()
    twin = copy.deepcopy(layer)
    x = torch.randn(3, layer.in_features, dtype=torch.float64)
    twin.load_state_dict(layer.state_dict())
    assert torch.equal(twin(x), layer(x))
    twin.to(torch.float32)
    assert twin(x.float()).dtype == torch.float32
    assert torch.allclose(twin(x.float()).double(), layer(x), atol=1e-4)
    for part in ("in_features", "out_features", "bias"):
        assert part in repr(layer)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    before = layer(x).detach()
    layer(x).square().sum().backward()
    optimizer.step()
    assert not torch.allclose(layer(x), before)


def test_log_scale_goes_into_the_cores():
    mpo = MPO.random((2, 2), (2, 2), 2, dtype=torch.float64)
    layer = MPOLinear(mpo.canonicalize(0) * 3.0)
    assert torch.allclose(layer.weight, 3 * mpo.to_dense())


def test_what_does_not_fit_is_refused():
    mpo = MPO.random((2, 2), (2, 2), 2)
    with pytest.raises(InvalidInputError, match="takes 4 features"):
        MPOLinear(mpo)(torch.ones(2, 5))
    with pytest.raises(InvalidInputError, match="takes 4 features"):
        disentangled(8, 4)(torch.ones(2, 8, dtype=torch.float64))
    padded = MPOLinear(MPO.random((2, 2), (2, 2), 2, shape=(3, 3)))
    with pytest.raises(InvalidInputError, match="takes 3 features"):
        padded(torch.ones(2, 4))
    with pytest.raises(InvalidInputError, match="bias must have shape"):
        MPOLinear(mpo, torch.ones(3))
    with pytest.raises(InvalidInputError, match="real MPO"):
        MPOLinear(mpo.to(torch.complex64))
    circuit = Circuit(brickwall(2, 1))
    with pytest.raises(InvalidInputError, match="core must map"):
        DisentangledLinear(circuit, MPO.random((2,) * 3, (2,) * 3, 1), circuit)
    with pytest.raises(InvalidInputError, match="must be at most"):
        DisentangledLinear(circuit, mpo, circuit, out_features=5)
    with pytest.raises(InvalidInputError, match="real circuits"):
        DisentangledLinear(Circuit(brickwall(2, 1, gate="u")), mpo, circuit)


@pytest.mark.parametrize(("outs", "ins"), [((2,) * 3, (2,) * 7), ((2,) * 7, (2,) * 3), ((2,) * 5, (2,) * 5)])
def test_the_dense_way_and_the_way_through_the_circuits_agree(outs, ins, monkeypatch):
    mpo = MPO.random(outs, ins, 2, seed=1, dtype=torch.float64)
    layer = DisentangledLinear(
        Circuit(parse_ansatz("1b+cnot+2b", outs), "random", 2, dtype=torch.float64),
        mpo,
        Circuit(parse_ansatz("2b+cnot+1b", ins), "random", 3, mirrored=True, dtype=torch.float64),
    )
    x = torch.randn(9, layer.in_features, dtype=torch.float64)
    found = []
    for dense in (True, False):
        monkeypatch.setattr(DisentangledLinear, "_dense_is_quicker", lambda *_, dense=dense: dense)
        layer.zero_grad()
        inputs = x.clone().requires_grad_()
        y = layer(inputs)
        (y**3).sum().backward()
        found.append([y.detach(), inputs.grad, *(parameter.grad for parameter in layer.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_whoever_hooks_on_to_a_circuit_sees_vectors():
    layer = DisentangledLinear(
        Circuit(parse_ansatz("4*(1b+cnot)", 6)),
        MPO.random((2,) * 6, (2,) * 6, 1),
        Circuit(parse_ansatz("4*(1b+cnot)", 6), mirrored=True),
    )
    assert layer._dense_is_quicker(2000)
    seen = []
    layer.input_circuit.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape))
    layer(torch.randn(2000, 64))
    assert seen == [(2000, 64)]
