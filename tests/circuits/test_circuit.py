import copy
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unbraid.circuits import Circuit, brickwall, parse_ansatz, scaffold
from unbraid.circuits.gates import FIXED_GATES, fixed_gate, haar
from unbraid.circuits.joints import Normalized
from unbraid.ground.errors import InvalidInputError

SEEDS = st.integers(0, 10_000)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def embedded(matrix, wires, dims):
    """The dense matrix of one gate, entry by entry."""
    total = prod(dims)
    full = torch.zeros(total, total, dtype=matrix.dtype)
    for column in range(total):
        index = digits(column, dims)
        local = 0
        for wire in wires:
            local = local * dims[wire] + index[wire]
        for row in range(len(matrix)):
            out, rest = list(index), row
            for wire in reversed(wires):
                out[wire] = rest % dims[wire]
                rest //= dims[wire]
            target = 0
            for digit, dim in zip(out, dims, strict=True):
                target = target * dim + digit
            full[target, column] += matrix[row, local]
    return full


def digits(index, dims):
    found = []
    for dim in reversed(dims):
        found.append(index % dim)
        index //= dim
    return found[::-1]


def dense(circuit):
    wide = torch.complex128 if circuit.is_complex else torch.float64
    product = torch.eye(circuit.dimension, dtype=wide)
    gates = list(zip(circuit.gate_matrices(), circuit.ansatz.gates(), strict=True))
    for matrix, gate in reversed(gates) if circuit.mirrored else gates:
        product = embedded(matrix.detach().to(wide), gate.wires, circuit.ansatz.wire_dims) @ product
    return product


ANSAETZE = [
    brickwall(3, 3),
    brickwall(4, 2, body=3, gate="o"),
    brickwall(3, 2, gate="u"),
    brickwall((4, 1, 2), 3),
    brickwall((3, 2), 1),
    scaffold((2, 4), 2),
    parse_ansatz("1b+cnot+2b+h+cz+swap@odd+x+z", 3),
    brickwall(1, 2, body=1),
    brickwall(3, 0),
]


@pytest.mark.parametrize("ansatz", ANSAETZE)
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("init", ["random", "near_identity"])
def test_matrix_and_forward_equal_the_dense_twin(ansatz, mirrored, dtype, init):
    circuit = Circuit(ansatz, init, seed=3, mirrored=mirrored, dtype=dtype)
    tolerance = 20 * torch.finfo(dtype).eps
    exact = dense(circuit)
    matrix = circuit.matrix().to(exact.dtype)
    assert (matrix - exact).abs().max() < tolerance
    assert (matrix @ matrix.mH - torch.eye(len(exact))).abs().max() < 3 * tolerance
    for batch in ((), (2,), (3, 50), (0,)):  # the large one goes through the matrix
        x = torch.randn(*batch, circuit.dimension, dtype=dtype, generator=seeded(1))
        y = circuit(x)
        assert y.shape == x.shape
        assert torch.allclose(y.to(exact.dtype), x.to(exact.dtype) @ exact.mT, atol=10 * tolerance)


@settings(max_examples=40)
@given(seed=SEEDS, data=st.data(), dims=st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, max_size=4))
def test_gates_on_any_wires_in_any_order(seed, data, dims):
    gates, product = [], torch.eye(prod(dims), dtype=torch.complex128)
    for k in range(data.draw(st.integers(1, 4))):
        wires = tuple(data.draw(st.permutations(range(len(dims))))[: data.draw(st.integers(1, len(dims)))])
        group = data.draw(st.sampled_from(["so", "o", "u"]))
        matrix = haar(group, prod(dims[w] for w in wires), 1, seeded(seed + k))[0]
        gates.append((matrix, wires))
        product = embedded(matrix.to(torch.complex128), wires, dims) @ product
    for mirrored in (False, True):
        circuit = Circuit.from_gates(tuple(dims), gates, mirrored=mirrored, dtype=torch.float64)
        assert (circuit.matrix() - product).abs().max() < 1e-12
        x = torch.randn(2, prod(dims), dtype=torch.float64)
        assert (circuit(x) - x.to(torch.complex128) @ product.mT).abs().max() < 1e-11


def test_named_gates_act_in_the_given_order():
    order = [
        ("h", (0,)),
        ("cnot", (0, 2)),
        ("cnot", (2, 1)),
        ("x", (1,)),
        ("swap", (1, 0)),
        ("cz", (2, 0)),
        ("z", (2,)),
    ]
    product = torch.eye(8, dtype=torch.float64)
    for name, wires in order:
        product = embedded(torch.tensor(FIXED_GATES[name], dtype=torch.float64), wires, (2, 2, 2)) @ product
    circuit = Circuit.from_gates(3, order, dtype=torch.float64)
    assert torch.allclose(circuit.matrix(), product)
    assert circuit.cnot_count == 6
    assert circuit.num_parameters == 0


def test_mirrored_runs_layers_backwards():
    ansatz = brickwall(3, 3)
    forward = Circuit(ansatz, "random", dtype=torch.float64)
    backward = Circuit(ansatz, "random", mirrored=True, dtype=torch.float64)
    backward.set_gates([gate.mT for gate in forward.gate_matrices()])
    assert torch.allclose(backward.matrix(), forward.matrix().mT)


@pytest.mark.parametrize("mirrored", [False, True])
def test_segments_and_joints_compose_to_the_whole(mirrored):
    ansatz = parse_ansatz("2b+cnot | bn+relu | 1b+2b | relu | 2b", 3)
    circuit = Circuit(ansatz, "random", mirrored=mirrored)
    circuit.train()(torch.randn(64, 8))  # the running statistics become something
    circuit.eval()
    x = torch.randn(5, 8)
    segments, joints = circuit.segments(), circuit.joint_modules()
    assert len(segments) == len(joints) + 1 == 3
    assert isinstance(joints[1 if mirrored else 0], Normalized)
    y = segments[0](x)
    for joint, segment in zip(joints, segments[1:], strict=True):
        y = segment(joint(y))
    assert torch.allclose(y, circuit(x), atol=1e-5)
    with pytest.raises(InvalidInputError, match="no matrix"):
        circuit.matrix()
    assert not circuit.is_linear
    assert circuit.num_parameters == 3 * 6 + 3 + 6 - 6 + 2 * 8


def test_a_joint_of_means_is_a_sine():
    joined = Circuit(parse_ansatz("2b | mean(0.5) | 2b", 2), "random")
    first, second = joined.segments()
    x = torch.randn(6, 4)
    torch.testing.assert_close(joined(x), second(torch.sin(torch.pi / 2 * (first(x) / 0.5).clamp(-1, 1))))
    assert torch.equal(joined(x), joined(x))


@pytest.mark.parametrize("joint", ["rotation(0.5)", "bn+rotation(1)", "weak(0.7)", "bn+weak(0.7,0.5)"])
def test_measurements_between_segments(joint):
    circuit = Circuit(parse_ansatz(f"2b+1b | {joint} | 2b", 3), "random")
    x = torch.randn(40, 8)
    circuit.train()(x)[:, 0].sum().backward()  # of outcomes, past which gradients go
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in circuit.parameters())
    assert circuit.num_parameters == 6 + 3 + 6 + (16 if joint.startswith("bn+") else 0)
    circuit.eval()
    first, last = circuit.segments()
    (module,) = circuit.joint_modules()
    torch.manual_seed(5)
    measured = module(first(x))
    assert set(measured.unique().tolist()) == {-1.0, 1.0}
    torch.manual_seed(5)
    assert torch.allclose(circuit(x), last(measured), atol=1e-5)
    assert not torch.equal(circuit(x), circuit(x))


def test_a_circuit_without_joints_is_its_only_segment():
    circuit = Circuit(scaffold(3, 2), "random", mirrored=True)
    (segment,) = circuit.segments()
    assert torch.allclose(segment.matrix(), circuit.matrix(), atol=1e-6)
    assert circuit.joint_modules() == []
    assert not any(p.requires_grad and p.grad_fn for p in segment.parameters())


@pytest.mark.parametrize(
    "ansatz", [brickwall(3, 2), brickwall(2, 2, gate="u"), scaffold((1, 2, 2), 2), brickwall(2, 2, gate="o")]
)
@pytest.mark.parametrize("mirrored", [False, True])
def test_gradients_equal_finite_differences(ansatz, mirrored):
    circuit = Circuit(ansatz, "random", mirrored=mirrored, dtype=torch.float64)
    names = [name for name, _ in circuit.named_parameters()]
    values = [0.3 * torch.randn_like(p) for p in circuit.parameters()]
    x = torch.randn(2, circuit.dimension, dtype=torch.float64)
    many = torch.randn(circuit.dimension + 1, circuit.dimension, dtype=torch.float64)

    def run(x, *values):
        return torch.func.functional_call(circuit, dict(zip(names, values, strict=True)), (x,))

    for inputs in (x, many):
        assert torch.autograd.gradcheck(
            run, (inputs.requires_grad_(), *(v.requires_grad_() for v in values)), fast_mode=True
        )


@pytest.mark.parametrize("gate", ["so", "o", "u"])
def test_conversion_keeps_the_function(gate):
    circuit = Circuit(brickwall(3, 2, gate=gate), "random")
    before = circuit.matrix().detach()
    for converted in (copy.deepcopy(circuit).to(torch.float64), copy.deepcopy(circuit).double()):
        assert converted.dtype == torch.float64
        assert converted.matrix().dtype == (torch.complex128 if gate == "u" else torch.float64)
        assert (converted.matrix() - before).abs().max() < 1e-6
        back = converted.to(torch.float32)
        assert torch.allclose(back.matrix(), before, atol=1e-6)
        assert list(back.state_dict()) == list(circuit.state_dict())


def test_deepcopy_is_independent():
    circuit = Circuit(brickwall(3, 2), "random")
    twin = copy.deepcopy(circuit)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1.0)
    assert not torch.allclose(twin.matrix(), circuit.matrix())


@pytest.mark.parametrize("ansatz", [*ANSAETZE, parse_ansatz("2b | bn+relu | 2b", 3)])
def test_state_dict_round_trip(ansatz):
    first, second = Circuit(ansatz, "random", seed=1), Circuit(ansatz, "identity")
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    second.load_state_dict(first.state_dict())
    x = torch.randn(4, ansatz.dimension)
    assert torch.equal(first.eval()(x), second.eval()(x))


def test_set_gates_sets_exactly_these():
    circuit = Circuit(parse_ansatz("1b+cnot+2b", 3), "near_identity", dtype=torch.float64)
    wanted = [haar("so", len(m), 1, seeded(k))[0] for k, m in enumerate(circuit.gate_matrices()) if k != 3]
    circuit.set_gates(wanted)
    found = [matrix for k, matrix in enumerate(circuit.gate_matrices()) if k != 3]
    assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))
    assert not any(p.any() for p in circuit.parameters())
    before = circuit.matrix().detach()
    for bad in (wanted[:-1], [*wanted[:-1], torch.eye(3)], [*wanted[:-1], torch.eye(4, dtype=torch.complex128)]):
        with pytest.raises(InvalidInputError):
            circuit.set_gates(bad)
        assert torch.equal(circuit.matrix(), before)


def test_identity_init_is_the_identity_and_seeds_decide_the_others():
    assert torch.equal(Circuit(brickwall(3, 2), "identity").matrix(), torch.eye(8))
    for init in ("random", "near_identity"):
        a, b, c = (Circuit(brickwall(3, 2), init, seed=seed).matrix() for seed in (1, 1, 2))
        assert torch.equal(a, b)
        assert not torch.allclose(a, c)
    near = Circuit(brickwall(3, 2), "near_identity").matrix().detach() - torch.eye(8)
    assert 0.01 < float(near.abs().max()) < 0.5


def test_parameter_and_cnot_counts():
    assert Circuit(brickwall(4, 2)).num_parameters == 18
    assert Circuit(brickwall(4, 2)).cnot_count == 6
    assert Circuit(scaffold(4, 2)).num_parameters == 12
    assert Circuit(scaffold(4, 2)).cnot_count == 3
    assert Circuit(brickwall(3, 1, body=3)).cnot_count == 13
    assert Circuit(brickwall(2, 1, gate="u")).num_parameters == 16
    reflection = torch.diag(torch.tensor([1.0, 1.0, 1.0, -1.0]))
    assert Circuit.from_gates(2, [(reflection, (0, 1))]).cnot_count == 3


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        ((torch.ones(2, 2), (0,)), "orthogonal or unitary 2 x 2"),
        ((1.01 * torch.eye(2), (0,)), "orthogonal or unitary"),
        ((torch.eye(2), (0, 1)), "orthogonal or unitary 4 x 4"),
        ((torch.full((2, 2), float("nan")), (0,)), "orthogonal or unitary"),
        ((torch.eye(2), (3,)), "from 0 to 2"),
        ((torch.eye(2), (-1,)), "from 0 to 2"),
        ((torch.eye(4), (1, 1)), "different wires"),
        (("cnot", (0,)), "acts on 2 wires"),
        (("h", (0, 1)), "acts on 1 wires"),
        (("ccx", (0, 1, 2)), "Unknown gate"),
    ],
)
def test_impossible_gates_are_refused(gate, message):
    with pytest.raises(InvalidInputError, match=message):
        Circuit.from_gates(3, [gate])


def test_wrong_sizes_and_names_are_refused():
    with pytest.raises(InvalidInputError, match="vectors of 8 entries"):
        Circuit(brickwall(3, 1))(torch.ones(7))
    with pytest.raises(InvalidInputError, match="init must be"):
        Circuit(brickwall(3, 1), "haar")
    with pytest.raises(InvalidInputError, match="needs wires of qubits"):
        Circuit(parse_ansatz("cnot", (3, 2)))
    assert fixed_gate("h", (2,)).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_circuits_are_those_of_single_precision_rounded(dtype):
    circuit = Circuit(brickwall(3, 3), "near_identity", seed=2, dtype=torch.float32)
    half = Circuit(brickwall(3, 3), "near_identity", seed=2, dtype=dtype)
    assert torch.dist(half.matrix().float(), circuit.matrix()) < 0.1
    assert torch.dist(circuit.to(dtype).matrix().float(), half.matrix().float()) < 0.1


def test_gates_that_no_memory_holds_are_refused():
    with pytest.raises(InvalidInputError, match="16,777,216 rows; at most 1,024"):
        Circuit(parse_ansatz("6b", (16,) * 6))
