"""Declared networks: counts before building equal those after, and what cannot be is refused."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unbraid.ground.errors import InvalidInputError
from unbraid.nn import DisentangledLinear, MPOLinear
from unbraid.nn.architecture import COUNTING_RULE, Architecture, TensorLayer

Q = (2,)


def fig3() -> Architecture:
    return Architecture((TensorLayer(Q * 6, Q * 6, 2), TensorLayer((64,), (10,), 1, norm=False, relu=False)))


def candidate_a(disentangled: bool) -> Architecture:
    bond = 1 if disentangled else 2
    return Architecture(
        (
            TensorLayer((7, 4, 7, 4), (4,) * 4, 1, output_wires=Q * 8),
            TensorLayer(Q * 8, Q * 6 + (1, 1), bond),
            TensorLayer(Q * 6, Q * 4, bond),
            TensorLayer(Q * 4, (10,), bond, relu=False),
        )
    )


def candidate_b(disentangled: bool) -> Architecture:
    bond = 1 if disentangled else 2
    return Architecture(
        (
            TensorLayer((4, 4) + Q * 6, Q * 8, 2),
            TensorLayer(Q * 8, (1,) + Q * 6 + (1,), bond),
            TensorLayer(Q * 6, Q * 3, bond),
            TensorLayer(Q * 3, (2, 5), bond, norm=False, relu=False),
        )
    )


@pytest.mark.parametrize(
    ("architecture", "parameters"),
    [
        (fig3(), 848),
        (candidate_a(False), 1008),
        (candidate_a(True), 854),
        (candidate_b(False), 1008),
        (candidate_b(True), 854),
        # Table 4: one-body gates add 22
        (candidate_a(True).with_circuits({2: ("1b+cnot+1b+5*(cnot)", "cnot"), 3: ("1b", "cnot")}), 876),
        # two-body gates add 109: on eight wires behind the first operator, and one gate of SO(2) on a trivial leg
        (
            candidate_a(True).with_circuits(
                {1: ("", "cnot+2b@even"), 2: ("3*(cnot+2b@even)", "cnot@even+2b@odd"), 3: ("cnot", "cnot")}
            ),
            963,
        ),
    ],
)
def test_the_papers_counts(architecture, parameters):
    assert architecture.num_parameters == parameters
    network = architecture.build()
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    assert network(torch.randn(3, architecture.in_features)).shape == (3, 10)


layers = st.builds(
    TensorLayer,
    in_legs=st.just(Q * 3),
    out_legs=st.sampled_from([Q * 3, (4, 2), (8,), (2, 1, 4)]),
    bond=st.integers(1, 5),
    input_circuit=st.sampled_from(["", "1b", "2b+cnot", "2b | relu | 1b", "1b | bn+relu | 2b+2b"]),
    output_circuit=st.sampled_from(["", "1b"]),
    norm=st.booleans(),
    relu=st.booleans(),
)


@given(st.lists(layers, min_size=1, max_size=3), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_counts_before_building_equal_those_after(chosen, seed):
    architecture = Architecture(tuple(chosen))
    network = architecture.build(seed).double()
    assert sum(parameter.numel() for parameter in network.parameters()) == architecture.num_parameters
    assert network.eval()(torch.randn(2, 8, dtype=torch.float64)).shape == (2, 8)
    assert architecture.describe().splitlines()[-2].split()[-1] == f"{architecture.num_parameters:,}"
    for layer, declared in zip((m for n, m in network.named_children() if n.startswith("layer")), chosen, strict=True):
        assert isinstance(layer, DisentangledLinear if declared.has_circuits else MPOLinear)
        mpo = layer.core if declared.has_circuits else layer.mpo
        assert [tuple(core.shape) for core in mpo.cores] == declared.core_shapes()


def test_a_declaration_survives_json_and_seeds_repeat():
    architecture = candidate_b(True).with_circuits({2: ("cnot+2b", "cnot"), 3: ("1b | relu | 2b", "")})
    again = Architecture.from_dict(json.loads(json.dumps(architecture.to_dict())))
    assert again == architecture
    first, second, other = (again.build(seed).state_dict() for seed in (4, 4, 5))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_the_table_reads_well():
    text = candidate_b(False).describe()
    assert text.splitlines()[-1] == COUNTING_RULE
    assert text.splitlines()[2].split() == ["2", "2^8", "1", "2^6", "1", "2^7", "104", "0", "0", "128", "232"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TensorLayer((2, 0), (2,), 1), "in_legs"),
        (lambda: TensorLayer((), (2,), 1), "in_legs"),
        (lambda: TensorLayer("22", (2,), 1), "in_legs"),
        (lambda: TensorLayer((2,), (True,), 1), "out_legs"),
        (lambda: TensorLayer((2,), (2,), 0), "bond"),
        (lambda: TensorLayer((2,), (2,), 1, norm="yes"), "norm"),
        (lambda: TensorLayer((4,), (4,), 1, input_wires=(2, 3)), "input_wires must hold the 4 numbers.*hold 6"),
        (lambda: TensorLayer((4,), (4,), 1, output_wires=(2, -2)), "output_wires"),
        (
            lambda: TensorLayer((2, 2), (2, 2), 1, input_circuit="1b+3b"),
            r"input circuit on wires \(2, 2\).*character 4",
        ),
        (lambda: TensorLayer((2, 2), (2, 2), 1, output_circuit="1b+what"), r"output circuit.*character 4"),
        (lambda: Architecture(()), "at least one layer"),
        (lambda: Architecture((3,)), "TensorLayers"),
        (lambda: Architecture((TensorLayer((2,), (4,), 1), TensorLayer((2,), (2,), 1))), "Layer 1 gives 4.*takes 2"),
        (lambda: fig3().with_circuits({3: ("1b", "")}), "layers 1 to 2"),
        (lambda: fig3().with_circuits({1: ("1b", "7b")}), "Layer 1: .*output circuit.*character 1"),
        (lambda: fig3().with_circuits({1: "1b"}), "Layer 1 takes a pair"),
        (lambda: fig3().with_circuits({1: ("1b",)}), "Layer 1 takes a pair"),
        (lambda: fig3().with_circuits([]), "by the numbers of layers.*got list"),
        (lambda: fig3().build(dtype=torch.int32), "floating-point"),
        (lambda: fig3().build(dtype="float32"), "floating-point"),
        (lambda: Architecture.from_dict([]), "'layers'"),
        (lambda: Architecture.from_dict({"layers": [{"in_legs": [2], "bonds": 2}]}), "missing.*bond.*unknown.*bonds"),
        (lambda: Architecture.from_dict({"layers": [3]}), "Layer 1 needs"),
        (lambda: Architecture.from_dict({"layers": [{"in_legs": [2], "out_legs": [2], "bond": -1}]}), "Layer 1: bond"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(InvalidInputError, match=f"(?s){message}"):
        make()


@pytest.mark.parametrize("options", [{"init": "haar"}, {"parametrization": "euler"}])
def test_unknown_names_are_refused_without_circuits_too(options):
    with pytest.raises(InvalidInputError, match="must be one of"):
        fig3().build(**options)
