from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unbraid.circuits import Circuit, parse_ansatz
from unbraid.disentangling import disentangle, search_placement
from unbraid.disentangling.problem import unit_mpo
from unbraid.disentangling.units import UnitProblem
from unbraid.ground.errors import FileFormatError, InvalidInputError
from unbraid.tensors import MPO

SEEDS = st.integers(0, 10_000)


def random_mpo(rows=8, columns=8, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return MPO.from_dense(torch.randn(rows, columns, dtype=torch.float64, generator=generator).to(dtype))


def random_units(problem, seed, count=3):
    random = np.random.default_rng(seed)
    units = problem.empty()
    for _ in range(count):
        for side in (0, 1):
            wires = problem.wires(side)
            code = 2 * int(random.choice(wires)) + (0 if problem.angles else int(random.integers(2)))
            turns = random.normal(size=2) if problem.angles else np.zeros(2)
            units = problem.add(units, side, int(random.integers(units.counts[side] + 1)), code, turns, np.zeros(2))
    return units


def dense_twin(problem, units):
    """O C I and its overlap with M by matrices."""
    core = MPO(problem.core(units)).to_padded_dense()
    built = problem.circuit(units, 0).matrix() @ core @ problem.circuit(units, 1).matrix()
    return float((built * problem.dense).sum().detach() / built.norm().detach())


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, angles=st.booleans(), bond=st.integers(1, 3))
def test_moves_give_the_overlap_that_environments_promise(seed, angles, bond):
    mpo, _ = unit_mpo(random_mpo(8, (8, 4)[seed % 2], seed=seed))
    problem = UnitProblem(mpo, bond, 6, angles)
    units = random_units(problem, seed)
    for moves, change in ((problem.additions(units, 4), 1), (problem.removals(units, 4), -1)):
        assert moves
        assert all(a >= b for (a, _), (b, _) in pairwise(moves))
        for value, moved in moves[:: max(1, len(moves) // 4)]:
            assert moved.total == units.total + change
            assert abs(dense_twin(problem, moved) - value) < 1e-10


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, angles=st.booleans(), bond=st.integers(1, 2))
def test_sweeps_never_lower_the_overlap_that_matrices_give(seed, angles, bond):
    mpo, _ = unit_mpo(random_mpo(4 << seed % 2, 8, seed=seed))
    problem = UnitProblem(mpo, bond, 4, angles)
    units = random_units(problem, seed)
    last = dense_twin(problem, units)
    for _ in range(3):
        (units,) = problem.improve([units], 4)
        assert abs(dense_twin(problem, units) - units.overlap) < 1e-10
        assert units.overlap >= last - 1e-10
        last = units.overlap


def test_a_unit_update_is_the_best_of_all_angles():
    problem = UnitProblem(unit_mpo(random_mpo(4, 4))[0], 1, 2, True)
    units = problem.add(problem.empty(), 0, 0, 0, np.zeros(2), np.zeros(2))
    ((found, _),) = problem.removals(units, 1)  # rotations alone, best in closed form
    stripped = problem.dense @ problem.circuit(units, 1).matrix().detach().mT
    core = MPO(problem.core(units)).to_padded_dense()
    angles = torch.linspace(0, 2 * torch.pi, 181, dtype=torch.float64)
    turns = torch.stack([angles.cos(), -angles.sin(), angles.sin(), angles.cos()], -1).reshape(-1, 2, 2)
    kron = torch.einsum("aij,bkl->abikjl", turns, turns).reshape(181, 181, 4, 4)
    grid = torch.einsum("abij,jk,ik->ab", kron, core, stripped)
    assert float(grid.max()) - 1e-9 <= found <= float(grid.max()) + 1e-3


def test_the_orientation_of_a_cnot_is_immaterial_up_to_rotations_and_signs():
    mpo = random_mpo(8, 8, seed=3)
    for text in ("cnot+1b", "cnot+1b+cnot+1b"):
        ansatz = parse_ansatz(text, 3)
        layers = tuple(
            tuple(type(g)(g.name, g.wires[::-1]) if g.name == "cnot" else g for g in layer) for layer in ansatz.layers
        )
        flipped = type(ansatz)(ansatz.wire_dims, layers)
        options = {"start": "random", "restarts": 8, "max_sweeps": 400}
        overlaps = [disentangle(mpo, each, **options).overlap for each in (ansatz, flipped)]
        assert abs(overlaps[0] - overlaps[1]) < 2e-3


def assert_sound(front, mpo, budget):
    M = mpo.to_padded_dense().double()
    for point in front.points:
        result = point.result
        sides = (circuit.matrix().detach().double() for circuit in (result.output_circuit, result.input_circuit))
        W = next(sides) @ result.core.to_padded_dense().double() @ next(sides)
        assert abs(float((M * W).sum() / M.norm() / W.norm()) - point.overlap) < 1e-6
        assert abs(float((M - W).norm() / M.norm()) - result.rel_error) < 1e-3
        assert point.cnots == result.cnot_counts
        assert max(point.cnots) <= budget
        assert point.overlap <= result.ceiling + 1e-9
        assert torch.allclose(result.to_dense().double(), W[: mpo.shape[0], : mpo.shape[1]], atol=1e-5)
        assert result.core.dtype == mpo.dtype
    assert front.points[0].cnots == (0, 0)
    for before, after in pairwise(front.points):
        assert after.overlap > before.overlap
        assert sum(after.cnots) > sum(before.cnots)


@pytest.mark.parametrize("angles", [True, False])
@pytest.mark.parametrize(
    ("rows", "columns", "dtype"), [(8, 8, torch.float64), (8, 4, torch.float32), (7, 6, torch.float64)]
)
def test_fronts_are_sound(angles, rows, columns, dtype):
    mpo = random_mpo(rows, columns, dtype=dtype)
    front = search_placement(mpo, 2, angles=angles, core_bond=1)
    assert_sound(front, mpo, 2)
    assert front.status == "converged"
    assert front.at(0).cnots == (0, 0)
    assert front.at(9) == front.points[-1]


def test_a_placement_is_at_least_as_good_as_the_regular_scaffold():
    mpo = random_mpo(16, 16, seed=5)
    front = search_placement(mpo, 3)
    for text in ("1b+cnot@even+1b+cnot@odd+1b", "1b+cnot@odd+1b+cnot@even+1b"):
        regular = disentangle(mpo, parse_ansatz(text, 4), restarts=4)
        assert front.at(max(regular.cnot_counts)).overlap >= regular.overlap - 1e-4


def test_a_hidden_placement_is_found():
    ansatz = parse_ansatz("cnot@even+1b", 4)
    sides = [
        Circuit(ansatz, "random", seed, mirrored=bool(seed), dtype=torch.float64).matrix().detach() for seed in (0, 1)
    ]
    core = MPO.random((2,) * 4, (2,) * 4, 1, seed=3, dtype=torch.float64)
    mpo = MPO.from_dense(sides[0] @ core.to_dense() @ sides[1])
    assert search_placement(mpo, 2).at(2).overlap > 0.999


def test_a_point_is_a_start_for_disentangle():
    mpo = random_mpo()
    point = search_placement(mpo, 2).points[-1]
    more = disentangle(mpo, point.ansatz, start=point.result)
    assert more.overlap >= point.overlap - 1e-9
    assert more.cnot_counts == point.cnots


def same(a, b):
    return (
        a.status == b.status
        and len(a.points) == len(b.points)
        and all(
            x.cnots == y.cnots and x.overlap == y.overlap and torch.equal(x.result.to_dense(), y.result.to_dense())
            for x, y in zip(a.points, b.points, strict=True)
        )
    )


def test_one_seed_gives_one_front_and_a_resumed_one_equals_it(tmp_path):
    mpo, calls = random_mpo(), []
    whole = search_placement(mpo, 2, seed=4, callback=lambda n, o: calls.append((n, o)))
    torch.manual_seed(1)
    assert same(whole, search_placement(mpo, 2, seed=4))
    assert [n for n, _ in calls] == list(range(1, len(calls) + 1))
    assert all(b >= a for (_, a), (_, b) in pairwise(calls))
    for stop in range(1, len(calls)):
        place = tmp_path / str(stop)
        stopped = search_placement(mpo, 2, seed=4, checkpoint=place, callback=lambda n, o, stop=stop: n < stop)
        assert stopped.status == "stopped"
        assert same(whole, search_placement(mpo, 2, seed=4, checkpoint=place))
    with pytest.raises(InvalidInputError, match="another problem"):
        search_placement(mpo, 2, seed=5, checkpoint=place)
    place.write_bytes(place.read_bytes()[:-9])
    with pytest.raises(FileFormatError, match="truncated"):
        search_placement(mpo, 2, seed=4, checkpoint=place)


def test_more_effort_never_loses():
    mpo = random_mpo(seed=7)
    once, twice = (search_placement(mpo, 2, effort=effort) for effort in (1, 2))
    for cnots in range(3):
        assert twice.at(cnots).overlap >= once.at(cnots).overlap - 1e-9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 0}, "budget must be a positive integer .CNOTs a side"),
        ({"budget": -3}, "budget must be"),
        ({"budget": 2.0}, "budget must be"),
        ({"effort": 0}, "effort must be"),
        ({"core_bond": 0}, "core_bond must be"),
        ({"core_bond": 9}, "wider than the MPO"),
        ({"angles": 1}, "angles must be"),
        ({"seed": 0.5}, "seed must be"),
        ({"mpo": random_mpo() * 0.0}, "zero"),
        ({"mpo": torch.eye(8)}, "must be an MPO"),
        ({"mpo": MPO.from_dense(torch.eye(8, dtype=torch.complex128))}, "complex"),
        ({"mpo": MPO.from_dense(torch.eye(9), (3, 3), (3, 3))}, "no place for a CNOT"),
        ({"mpo": MPO.random((2,) * 14, (2,) * 14, 2)}, "Use disentangle"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message):
    with pytest.raises(InvalidInputError, match=message):
        search_placement(**({"mpo": random_mpo(), "budget": 2} | options))


@pytest.mark.parametrize("cnots", [-1, "a", None, 1.5, True])
def test_a_front_refuses_what_is_no_number_of_cnots(cnots):
    with pytest.raises(InvalidInputError, match="cnots must be"):
        search_placement(random_mpo(4, 4), 1).at(cnots)


def test_rounding_makes_no_points_and_no_overlap_above_one():
    front = search_placement(MPO.random((2,) * 3, (2,) * 3, 1, seed=0, dtype=torch.float64), 3)
    (point,) = front.points
    assert point.cnots == (0, 0)
    assert point.overlap <= 1
    assert point.result.status == "converged"


def test_options_of_long_runs_are_checked_first(tmp_path):
    for options in (
        {"callback": 3},
        {"checkpoint": 3},
        {"checkpoint": tmp_path},
        {"checkpoint": tmp_path / "no" / "x"},
    ):
        with pytest.raises(InvalidInputError, match=r"callback|checkpoint"):
            search_placement(random_mpo(4, 4), 1, **options)
