"""Compiled programs against the gates one by one, on any wires, gradients and inverses included."""

from math import prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unbraid.circuits import Ansatz, Circuit, Gate, brickwall, parse_ansatz
from unbraid.circuits.program import Group, Permutation, apply_gate
from unbraid.ground.errors import InvalidInputError

FROZEN = {"cnot": 2, "cz": 2, "swap": 2, "h": 1, "x": 1, "z": 1}


@st.composite
def ansatze(draw):
    dims = tuple(draw(st.lists(st.sampled_from((1, 2, 2, 2, 4)), min_size=2, max_size=8)))
    qubits = [wire for wire, dim in enumerate(dims) if dim > 1]
    layers = []
    for _ in range(draw(st.integers(0, 8))):
        name = draw(st.sampled_from(("so", "o", "u", *FROZEN)))
        count = FROZEN.get(name) or draw(st.integers(1, 2))
        wires = draw(st.permutations(range(len(dims)) if name in ("so", "o", "u") else qubits))[:count]
        if len(wires) == count and (prod(dims[wire] for wire in wires) > 1):
            layers.append((Gate(name, tuple(wires)),))
    return Ansatz(dims, tuple(layers))


def one_by_one(circuit, x):
    matrices, gates = circuit.gate_matrices(), list(circuit.ansatz.gates())
    for step in circuit.schedule():
        x = apply_gate(x, matrices[step], gates[step].wires, circuit.ansatz.wire_dims)
    return x


@given(ansatze(), st.booleans(), st.sampled_from((1, 3, 700)))
def test_a_program_equals_the_gates_one_by_one(ansatz, mirrored, rows):
    circuit = Circuit(ansatz, "random", mirrored=mirrored, dtype=torch.float64)
    x = torch.randn(rows, ansatz.dimension, dtype=torch.float64)
    weights = torch.randn(rows, ansatz.dimension, dtype=torch.float64)
    found = []
    for function in (circuit, lambda x: one_by_one(circuit, x)):
        circuit.zero_grad()
        inputs = x.clone().requires_grad_()
        y = function(inputs)
        (torch.view_as_real(y.to(torch.complex128)).sum(-1) * weights).sum().backward()
        found.append([y.detach().to(torch.complex128), inputs.grad, *(p.grad for p in circuit.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(circuit.adjoint(circuit(x)).real, x)
    matrix = circuit.matrix()
    torch.testing.assert_close(circuit(x), x.to(matrix.dtype) @ matrix.mT)


@pytest.mark.parametrize("n", [3, 7, 8])
@pytest.mark.parametrize("grammar", ["2b+2b", "1b+cnot+3b", "4*(1b+cnot)", "3*(cnot)+h+cz+2b"])
def test_both_ways_give_the_same(grammar, n):
    circuit = Circuit(parse_ansatz(grammar, n), "random", dtype=torch.float64)
    program = circuit._program(circuit._whole())
    assert program.price(10) < program.price_dense(10)
    x = torch.randn(3000, 2**n, dtype=torch.float64)
    torch.testing.assert_close(circuit(x)[:7], circuit(x[:7]))


def test_rows_of_frozen_gates_are_one_permutation():
    for n in (4, 8):
        circuit = Circuit(parse_ansatz("5*(cnot)+swap+x+cz", n))
        steps = circuit._program(circuit._whole()).steps
        assert len(steps) == 1
        assert isinstance(steps[0], Permutation)


def test_gates_are_packed_as_early_as_wires_allow():
    gates = [Gate("so", (0, 1)), Gate("so", (2, 3)), Gate("so", (1, 2)), Gate("so", (4,)), Gate("cnot", (5, 6))]
    circuit = Circuit(Ansatz((2,) * 8, tuple((gate,) for gate in gates)))
    steps = circuit._program(circuit._whole()).steps
    moments = [type(step) for step in steps]
    # gates on (0, 1), (2, 3), (4,) in two groups; gate on (1, 2) behind; the CNOT by itself
    assert sorted(moments, key=str) == sorted([Group, Group, Group, Permutation], key=str)


def test_a_copy_on_another_dtype_runs():
    circuit = Circuit(parse_ansatz("cnot+1b+cz+h+2b", 4), "random")
    x = torch.randn(5, 16)
    single = circuit(x)
    torch.testing.assert_close(circuit.double()(x.double()).float(), single)


def test_no_inverse_with_nonlinearities():
    circuit = Circuit(parse_ansatz("1b | relu | 1b", 3))
    with pytest.raises(InvalidInputError, match="no matrix"):
        circuit.adjoint(torch.ones(1, 8))
    assert Circuit(brickwall(3, 0)).adjoint(torch.ones(1, 8)).sum() == 8
