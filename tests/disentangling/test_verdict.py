import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unbraid.circuits import Circuit, brickwall
from unbraid.circuits.ansatz import Ansatz
from unbraid.circuits.gates import num_generators
from unbraid.disentangling import Disentangled, weight_verdict
from unbraid.disentangling.verdict.layouts import Layout, Side
from unbraid.disentangling.verdict.search import Search
from unbraid.disentangling.verdict.store import Store
from unbraid.ground.errors import InvalidInputError
from unbraid.tensors import MPO

QUICK = {"bodies": (2,), "max_depth": 2, "restarts": 2, "max_sweeps": 60}


def gaussian(rows=16, columns=16, seed=0):
    return torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def circuits_around_a_core(wires=4, depth=2, bond=1, seed=0):
    dims = (2,) * wires
    output = Circuit(brickwall(wires, depth), "random", seed, dtype=torch.float64).matrix()
    inward = Circuit(brickwall(wires, depth), "random", seed + 1, mirrored=True, dtype=torch.float64).matrix()
    return (output @ MPO.random(dims, dims, bond, seed=seed, dtype=torch.float64).to_dense() @ inward).detach()


@settings(max_examples=5, deadline=None)
@given(
    sizes=st.sampled_from([(8, 8), (7, 5), (4, 16), (2, 9)]),
    budget=st.floats(0.05, 0.8),
    seed=st.integers(0, 100),
)
def test_every_candidate_is_what_it_says(sizes, budget, seed):
    W = gaussian(*sizes, seed)
    found = weight_verdict(W, budget=budget, bodies=(2,), max_depth=1, restarts=1, max_sweeps=20)
    for each in found.candidates:
        if each.ruled_out:
            continue
        error = float((each.operator.to_dense() - W).norm() / W.norm())
        assert error <= budget * (1 + 1e-8)
        assert each.error == each.value == pytest.approx(error)
        chain, gates = each.operator, 0
        if isinstance(each.operator, Disentangled):
            chain = each.operator.core
            sides = each.operator.output_circuit, each.operator.input_circuit
            gates = sum(num_generators("so", 2 ** len(g.wires)) for side in sides for g in side.ansatz.gates())
        assert each.classical == chain.num_parameters
        assert each.circuit == gates
        assert each.at_budget <= each.classical
        assert min(each.free) >= 0
    smallest = min(each.classical for each in found.candidates if each.kind == "plain")
    assert found.plain.classical == smallest
    assert found.dense == W.numel()
    json.dumps(found.to_dict(), allow_nan=False)


def test_low_rank_is_the_truncated_svd():
    W = gaussian()
    found = weight_verdict(W, budget=0.3, bodies=(2,), max_depth=1, max_sweeps=5)
    values = torch.linalg.svdvals(W)
    rank = next(r for r in range(1, 17) if values[r:].norm() <= 0.3 * values.norm())
    assert found.low_rank.classical == rank * 32


def test_circuits_win_where_the_weight_is_circuits_around_a_small_core():
    found = weight_verdict(circuits_around_a_core(), budget=0.02, **QUICK)
    assert found.best.total < found.plain.classical / 2
    assert found.break_even > 1
    assert found.break_even_classical > 1
    assert found.break_even_free > 1
    assert "Circuits pay" in found.paragraph


def test_circuits_do_not_pay_for_noise_at_a_small_error():
    found = weight_verdict(gaussian(), budget=0.05, **QUICK)
    assert found.break_even_classical < 1
    assert found.best.total > found.dense


def test_low_rank_beats_circuits_where_the_rank_is_low():
    W = gaussian(16, 1) @ gaussian(1, 16, seed=1)
    found = weight_verdict(W, budget=0.05, **QUICK)
    assert found.low_rank.classical == 32
    assert found.break_even_classical <= 0
    assert "never pay" in found.paragraph


def test_a_price_is_where_the_costs_meet():
    found = weight_verdict(circuits_around_a_core(seed=3), budget=0.1, **QUICK)
    assert found.cost(1) == found.best.total
    assert found.cost(0) <= found.cost(1) <= found.cost(2)
    cheapest = found.cheapest
    least = min(each.at_budget for each in found.candidates if each.kind == "plain")
    assert least == pytest.approx(cheapest.at_budget + found.break_even * cheapest.circuit)
    for each in found.circuits:
        assert each.at_budget + found.break_even * each.circuit >= least - 1e-9


@settings(max_examples=40, deadline=None)
@given(
    dims=st.lists(st.sampled_from([1, 2, 4, 8]), min_size=2, max_size=4).filter(lambda d: 4 <= math.prod(d) <= 32),
    body=st.integers(2, 3),
    depth=st.integers(1, 3),
    parity=st.integers(0, 1),
    seed=st.integers(0, 50),
)
def test_circuits_keep_what_the_core_cannot_take_up_and_reach_no_further_than_said(dims, body, depth, parity, seed):
    side = Side.of(dims, depth, body, parity)
    wires = sum(dim.bit_length() - 1 for dim in dims)
    whole = brickwall(wires, depth, min(body, wires), parity=parity)
    assert side.parameters <= sum(num_generators("so", 2 ** len(gate.wires)) for gate in whole.gates())
    assert 0 <= side.gauge <= side.parameters
    if not side.parameters:
        return
    matrix = Circuit(side.ansatz, "random", seed, dtype=torch.float64).matrix().detach()
    for bond, cut in enumerate(side.cuts):
        left, right = 2**cut, 2 ** (wires - cut)
        unfolded = matrix.reshape(left, right, left, right).transpose(1, 2).reshape(left * left, -1)
        rank = int((torch.linalg.svdvals(unfolded) > 1e-9).sum())
        assert rank <= side.reach(bond)


def test_gauge_counts_the_directions_that_change_nothing():
    dims, wires = (2, 2, 2), 3
    core = MPO.random(dims, dims, 4, seed=0, dtype=torch.float64)
    side = Side.of(dims, 2, 2, 0)
    circuit = Circuit(side.ansatz, "random", 1, dtype=torch.float64)
    parameters = [p.detach() for p in circuit.parameters()]
    names = [name for name, _ in circuit.named_parameters()]
    sizes = [p.numel() for p in parameters]
    cores = [c.detach() for c in core.cores]

    def weight(flat):
        parts = flat.split([*sizes, *(c.numel() for c in cores)])
        gates = {name: part.view_as(p) for name, part, p in zip(names, parts, parameters, strict=False)}
        chain = MPO([part.view_as(c) for part, c in zip(parts[len(sizes) :], cores, strict=True)])
        state = chain.to_padded_dense()
        return torch.func.functional_call(circuit, gates, (state.mT,)).mT.reshape(-1)

    point = torch.cat([p.reshape(-1) for p in (*parameters, *cores)])
    jacobian = torch.autograd.functional.jacobian(weight, point)
    values = torch.linalg.svdvals(jacobian)
    rank = int((values > 1e-9 * values[0]).sum())
    gauge = sum(bond**2 for bond in core.bond_dims)
    assert rank == min(4**wires, sum(sizes) - side.gauge + core.num_parameters - gauge)


def test_no_gate_within_one_site_next_to_the_core_is_kept():
    side = Side.of((4, 4), 1, 2, 0)  # gates on wires 0, 1 and 2, 3: both within a site
    assert side.ansatz == Ansatz((2,) * 4, ())
    crossing = Side.of((4, 4), 1, 2, 1)
    assert [gate.wires for gate in crossing.ansatz.gates()] == [(1, 2)]
    assert crossing.gauge == 2  # the core takes up a rotation of either wire


def test_the_bound_on_the_bonds_holds_for_circuits_that_exist():
    W = circuits_around_a_core(bond=2)
    search = Search(W, 1e-6, None, 1, 10, 0, Store(None, ""))
    layout = Layout((2,) * 4, (2,) * 4)
    sides = Side.of(layout.out_dims, 2, 2, 0), Side.of(layout.in_dims, 2, 2, 0)
    assert all(bond <= 2 for bond in search.least_bonds(layout, sides))
    without = Side.of(layout.out_dims, 1, 2, 0), Side.of(layout.in_dims, 1, 2, 0)
    assert search.least_bonds(layout, without)[1] > 2  # no gate of one layer crosses the middle


def test_a_verdict_is_taken_up_where_it_stopped(tmp_path):
    W = gaussian(8, 16, seed=4)
    options = {"budget": 0.4, "bodies": (2,), "max_depth": 2, "restarts": 1, "max_sweeps": 10}
    whole = weight_verdict(W, **options)
    first = weight_verdict(W, checkpoint=tmp_path, **options)
    files = sorted(tmp_path.glob("*.candidate"))
    assert files
    for path in files[::2]:
        path.unlink()
    again = weight_verdict(W, checkpoint=tmp_path, **options)
    assert whole.to_dict() == first.to_dict() == again.to_dict()
    with pytest.raises(InvalidInputError, match="another problem"):
        weight_verdict(2 * W + 1, checkpoint=tmp_path, **options)


def test_a_judge_decides():
    W = gaussian(8, 8, seed=5)
    asked = []

    def judge(operator):
        asked.append(operator)
        return float((operator.to_dense() - W).abs().max())

    found = weight_verdict(W, budget=0.5, judge=judge, **QUICK)
    assert found.budget_kind == "loss"
    for each in (found.plain, found.low_rank, found.best):
        assert each.value <= 0.5
        assert judge(each.operator) == pytest.approx(each.value)
    assert any(isinstance(operator, Disentangled) for operator in asked)
    assert "loss" in found.paragraph


@pytest.mark.parametrize(
    ("weight", "options", "words"),
    [
        (torch.zeros(4, 4), {"budget": 0.1}, "zero"),
        (torch.ones(4, 4), {"budget": 0}, "budget"),
        (torch.ones(4, 4), {"budget": 1.0}, "budget"),
        (torch.ones(4, 4), {"budget": "much"}, "budget"),
        (torch.ones(4, 4), {"budget": 0.1, "bodies": (1,)}, "bodies"),
        (torch.ones(4, 4), {"budget": 0.1, "bodies": ()}, "bodies"),
        (torch.ones(4, 4), {"budget": 0.1, "max_depth": 0}, "max_depth"),
        (torch.ones(4, 4), {"budget": 0.1, "judge": lambda operator: math.nan}, "finite"),
        (torch.ones(4, 4), {"budget": -1.0, "judge": lambda operator: 0.0}, "budget"),
        (torch.ones(1, 4), {"budget": 0.1}, "2 x 4"),
        (torch.ones(4), {"budget": 0.1}, "matrix"),
        (torch.full((4, 4), math.nan), {"budget": 0.1}, "finite"),
        ([[1.0]], {"budget": 0.1}, "matrix"),
    ],
)
def test_bad_input_is_refused(weight, options, words):
    with pytest.raises(InvalidInputError, match=words):
        weight_verdict(weight, **options)
