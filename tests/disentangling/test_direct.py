from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unbraid.circuits import Circuit, brickwall
from unbraid.disentangling import direct_circuits
from unbraid.ground.errors import InvalidInputError


def matrix(rows=8, columns=8, seed=0):
    return torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 1000),
    route=st.sampled_from(["svd", "qr"]),
    joint=st.booleans(),
    sizes=st.sampled_from([(8, 8), (7, 5), (4, 16), (16, 4), (3, 9)]),
)
def test_every_outcome_is_sound(seed, route, joint, sizes):
    W = matrix(*sizes, seed)
    sides = tuple(brickwall((size - 1).bit_length(), 1) for size in sizes)
    found = direct_circuits(W, sides, route=route, joint=joint, seed=seed, max_sweeps=10)
    built = found.to_dense()
    assert built.shape == W.shape
    padded = found.output_circuit.matrix() @ found.middle @ found.input_circuit.matrix()
    wide = torch.zeros_like(padded)
    wide[: sizes[0], : sizes[1]] = W
    assert abs(float((padded * wide).sum().detach() / padded.norm().detach() / W.norm()) - found.overlap) < 1e-9
    kept = found.middle.triu() if route == "qr" else torch.diag_embed(found.middle.diagonal())
    assert found.middle.norm() == pytest.approx(float(kept.norm()))
    assert all(after >= before for before, after in pairwise(found.history))
    assert found.history[-1] == found.overlap
    assert len(found.factor_overlaps) == (2 if route == "svd" else 1)
    assert all(-1e-9 <= overlap <= 1 + 1e-9 for overlap in found.factor_overlaps)


def test_the_middle_is_the_best_for_its_circuits():
    W = matrix()
    for route, count in (("svd", 8), ("qr", 36)):
        found = direct_circuits(W, brickwall(3, 1), route=route, max_sweeps=10)
        assert found.num_classical == count
        left, right = found.output_circuit.matrix().detach(), found.input_circuit.matrix().detach()
        residual = left.mT @ W @ right.mT - found.middle
        assert abs(float((residual * found.middle).sum())) < 1e-9
        assert residual[found.middle != 0].abs().max() < 1e-9


@pytest.mark.parametrize("route", ["svd", "qr"])
def test_a_gate_on_all_wires_makes_a_route_exact(route):
    W = matrix()
    found = direct_circuits(W, brickwall(3, 1, body=3), route=route)
    assert min(found.factor_overlaps) > 1 - 1e-6 or route == "svd"
    full = direct_circuits(W, brickwall(3, 1, body=3, gate="o"), route=route, restarts=4)
    assert min(full.factor_overlaps) > 1 - 1e-6
    assert full.overlap > 1 - 1e-6


def test_a_joint_refit_gains_where_the_factors_are_out_of_reach():
    W = matrix(16, 16)
    for route in ("svd", "qr"):
        apart, joint = (
            direct_circuits(W, brickwall(4, 1), route=route, joint=j, max_sweeps=100) for j in (False, True)
        )
        assert joint.history[0] == apart.overlap
        assert joint.overlap > apart.overlap + 0.01
        assert apart.cnot_counts == ((4, 4) if route == "svd" else (4, 0))


def test_factors_that_are_circuits_are_found():
    ansatz = brickwall(4, 1)
    left, right = (
        Circuit(ansatz, "random", seed, mirrored=bool(seed), dtype=torch.float64).matrix().detach() for seed in (1, 0)
    )
    W = left @ torch.diag(torch.linspace(2, 1, 16, dtype=torch.float64)) @ right
    found = direct_circuits(W, ansatz, start="random", restarts=6, joint=True)
    assert found.overlap > 0.97


def test_results_have_the_dtype_of_the_weight():
    found = direct_circuits(matrix().float(), brickwall(3, 1), max_sweeps=5)
    assert found.to_dense().dtype == found.middle.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"route": "lu"}, "route must be"),
        ({"weight": torch.zeros(8, 8)}, "zero"),
        ({"weight": torch.full((8, 8), torch.nan)}, "finite"),
        ({"weight": torch.eye(8, dtype=torch.complex64)}, "real matrix"),
        ({"weight": torch.ones(8)}, "real matrix"),
        ({"weight": torch.ones(1, 8192)}, "up to 4096"),
        ({"ansatz": 3}, "pair"),
        ({"ansatz": brickwall(4, 1)}, "must act on 8"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message):
    with pytest.raises(InvalidInputError, match=message):
        direct_circuits(**({"weight": matrix(), "ansatz": brickwall(3, 1)} | options))
