"""Starts, the race between restarts, the tail, and the choice of an engine."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unbraid.circuits import Ansatz, brickwall, scaffold
from unbraid.disentangling import disentangle, sweep
from unbraid.disentangling.greedy import greedy_gates
from unbraid.disentangling.problem import Problem, unit_mpo
from unbraid.disentangling.starts import first_gates
from unbraid.ground.errors import InvalidInputError
from unbraid.tensors import MPO

SEEDS = st.integers(0, 10_000)


def chain_mpo(n=4, bond=2, seed=0, dims=None, dtype=torch.float64):
    dims = dims or (2,) * n
    return MPO.random(dims, dims, bond, seed=seed, dtype=dtype)


def mean_entropy(mpo, gates):
    """Of O^dagger M I^dagger for gates on two sites of a four-site chain, densely."""
    dims = mpo.out_dims
    matrix = mpo.to_padded_dense().to(torch.complex128)
    sides = (brickwall(dims, 2), brickwall(dims, 2))
    circuits = []
    for side, matrices in zip(sides, gates, strict=True):
        whole = torch.eye(len(matrix), dtype=torch.complex128)
        for place, gate in zip(side.gates(), matrices, strict=True):
            before = int(torch.tensor(dims[: place.wires[0]]).prod())
            after = int(torch.tensor(dims[place.wires[-1] + 1 :]).prod())
            grown = torch.kron(torch.eye(before), torch.kron(gate.to(torch.complex128).contiguous(), torch.eye(after)))
            whole = grown @ whole if side is sides[0] else whole @ grown
        circuits.append(whole)
    return MPO.from_dense(circuits[0].mH @ matrix @ circuits[1].mH, dims, dims).entropies().mean()


@pytest.mark.parametrize("gate", ["so", "o", "u"])
@settings(max_examples=4, deadline=None)
@given(seed=SEEDS)
def test_greedy_gates_lower_the_entropy(gate, seed):
    mpo, _ = unit_mpo(chain_mpo(seed=seed))
    sides = (brickwall(4, 2, gate=gate),) * 2
    start = first_gates(mpo, sides, "near_identity", seed, 0)
    chosen = greedy_gates(mpo, sides, start)
    for side in chosen:
        for matrix in side:
            eye = torch.eye(4, dtype=matrix.dtype)
            torch.testing.assert_close(matrix @ matrix.mH, eye, rtol=0, atol=1e-12)
            if gate == "so":
                assert torch.linalg.det(matrix) > 0
    assert mean_entropy(mpo, chosen) < mean_entropy(mpo, start)


def test_greedy_starts_take_sites_of_several_qubits_and_refuse_other_wires():
    mpo = chain_mpo(dims=(4, 2, 2))
    assert disentangle(mpo, brickwall((4, 2, 2), 2), start="greedy", max_sweeps=5).overlap > 0.3
    with pytest.raises(InvalidInputError, match="needs a circuit on the legs"):
        disentangle(mpo, brickwall(4, 2), start="greedy")


def test_the_first_sweep_from_a_greedy_start_is_ahead():
    ahead = 0
    for seed in range(5):
        mpo = chain_mpo(6, seed=seed)
        greedy, near = (disentangle(mpo, brickwall(6, 3), start=s, max_sweeps=1) for s in ("greedy", "near_identity"))
        ahead += greedy.overlap > near.overlap
    assert ahead >= 4


@pytest.mark.parametrize("core", ["joint", "fixed"])
def test_an_earlier_result_grows_and_never_loses(core):
    mpo = chain_mpo(4, bond=3)
    result, overlaps = None, []
    for depth in range(1, 7):
        start = "near_identity" if result is None else result
        result = disentangle(mpo, brickwall(4, depth), core=core, start=start, max_sweeps=60)
        overlaps.append(result.overlap)
        assert result.output_circuit.ansatz.depth == depth
    assert overlaps == sorted(overlaps)
    again = disentangle(mpo, brickwall(4, 6), core=core, start=result, max_sweeps=1)
    assert again.overlap >= result.overlap - 1e-12


def test_only_a_fitting_result_can_be_grown():
    mpo = chain_mpo(4)
    result = disentangle(mpo, brickwall(4, 2), max_sweeps=5)
    for ansatz in (brickwall(4, 3, parity=1), brickwall(4, 1), brickwall(4, 3, body=3), scaffold(4, 3)):
        with pytest.raises(InvalidInputError, match="must be the inner layers"):
            disentangle(mpo, ansatz, start=result)
    with pytest.raises(InvalidInputError, match="of other legs"):
        disentangle(MPO.from_dense(mpo.to_dense(), (4, 4), (4, 4)), brickwall(4, 3), start=result)


def test_growth_with_fixed_gates_in_the_new_layers():
    mpo = chain_mpo(4)
    first = disentangle(mpo, scaffold(4, 1), max_sweeps=20)
    grown = disentangle(mpo, scaffold(4, 3), start=first, max_sweeps=20)
    assert grown.output_circuit.ansatz == scaffold(4, 3)


# the race


@settings(max_examples=6, deadline=None)
@given(seed=SEEDS, restarts=st.integers(2, 9))
def test_more_restarts_never_end_lower_than_one(seed, restarts):
    mpo, ansatz = chain_mpo(4, bond=4, seed=seed), brickwall(4, 2, gate="o")
    one = disentangle(mpo, ansatz, seed=seed, max_sweeps=80)
    many = disentangle(mpo, ansatz, seed=seed, max_sweeps=80, restarts=restarts)
    assert many.overlap >= one.overlap
    assert len(many.restarts) == restarts
    assert many.overlap == max(many.restarts)
    assert many.restarts[0] == one.overlap


def test_the_worse_half_is_given_up_and_so_are_twins():
    problem = Problem(unit_mpo(chain_mpo(4, bond=4))[0], 1, None, "dense")
    sides = (brickwall(4, 2, gate="o"),) * 2
    engine = problem.engine(sides)
    states = [engine.start(*first_gates(problem.unit, sides, "random", 0, k), None) for k in range(8)]
    states.append(states[0])  # a twin of the first
    runs = sweep.optimize(engine, sweep.Runs.starting(sweep_stack(states)), max_sweeps=7, tolerance=0.0)
    statuses = [run.status for run in runs.progress]
    assert statuses[0] == "out_of_sweeps"
    assert statuses[8] == "given up"
    assert 2 <= statuses.count("out_of_sweeps") <= 4
    lengths = {len(run.history) for run in runs.progress}
    assert lengths == {3, 6, 7}


def sweep_stack(states):
    from unbraid.disentangling.environments import stack

    return stack(states)


# the tail and how runs end


def test_the_tail_converges_to_a_stationary_point():
    mpo = chain_mpo(5, bond=3, seed=2)
    result = disentangle(mpo, brickwall(5, 2), max_sweeps=2000, tolerance=1e-10)
    assert result.status == "converged"
    problem = Problem(unit_mpo(mpo)[0], 1, None, "dense")
    engine = problem.engine((brickwall(5, 2),) * 2)
    gates = [[g.detach() for g in c.gate_matrices()] for c in (result.output_circuit, result.input_circuit)]
    core = [c.reshape(c.shape[0], -1, c.shape[3]) for c in unit_mpo(result.core)[0].cores]
    state, output, inward = engine.gradient(engine.start(*gates, core))
    assert float(torch.cat([output, inward], 1).norm()) < 1e-4
    assert abs(float(state.overlap) - result.overlap) < 1e-9


def test_a_saddle_is_called_stalled(monkeypatch):
    monkeypatch.setattr(sweep, "begin", lambda engine, state: (state, tail_with_gradient(state)))
    result = disentangle(chain_mpo(3), brickwall(3, 1), tolerance=1e-3)
    assert result.status == "stalled"


def tail_with_gradient(state):
    from unbraid.disentangling.tail import Tail

    return Tail(torch.ones(state.output.shape[1] + state.inward.shape[1], dtype=torch.float64))


# determinants and what they cost


def test_determinants_are_searched_and_priced():
    mpo = chain_mpo(4, bond=4, seed=1)
    so, o = (disentangle(mpo, brickwall(4, 2, gate=gate), restarts=8, seed=1) for gate in ("so", "o"))
    assert so.cnot_counts == (6, 6)
    negative = [
        sum(float(torch.linalg.det(gate.detach())) < 0 for gate in circuit.gate_matrices())
        for circuit in (o.output_circuit, o.input_circuit)
    ]
    assert o.cnot_counts == tuple(6 + count for count in negative)
    assert sum(negative) > 0
    assert o.overlap > so.overlap


# engines


def test_engines_agree_and_say_what_they_do():
    mpo = chain_mpo(6, seed=3)
    dense, chains = (disentangle(mpo, brickwall(6, 2), engine=name) for name in ("dense", "mpo"))
    assert dense.engine == "dense"
    assert "64 x 64" in dense.plan
    assert chains.engine == "mpo"
    assert chains.plan.startswith("exact, column by column")
    assert abs(dense.overlap - chains.overlap) < 1e-4


def test_the_engine_is_chosen_by_size_depth_and_wires():
    def chosen(n, depth, wires=None):
        unit = unit_mpo(MPO.random((2,) * n, (2,) * n, 2, dtype=torch.float64))[0]
        ansatz = brickwall(wires or n, depth)
        return Problem(unit, 1, None, "auto").engine((ansatz, ansatz))

    assert chosen(6, 3).name == "dense"
    assert chosen(11, 3).name == "mpo"
    assert "a sweep takes roughly" in chosen(11, 3).plan
    assert chosen(9, 10).name == "dense"
    assert chosen(10, 1, (4,) * 5).name == "dense"  # chains need wires that are legs
    assert chosen(20, 4).name == "mpo"


def test_long_chains_are_disentangled_and_have_no_known_ceiling():
    mpo = chain_mpo(24, dtype=torch.float32)
    result = disentangle(mpo, brickwall(24, 2), max_sweeps=4)
    assert result.ceiling is None
    assert result.engine == "mpo"
    assert result.core.dtype == torch.float32
    assert 0 < result.history[0] <= result.overlap
    assert result.core.num_sites == 24


def test_no_circuits_on_a_long_chain():
    mpo = chain_mpo(16, bond=3)
    empty = Ansatz((2,) * 16, ())
    result = disentangle(mpo, empty, core_bond=2, core="fixed")
    assert abs(result.overlap - float(mpo.compress(max_bond=2).norm() / mpo.norm())) < 1e-9


# what makes no sense


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"core_bond": 3}, "wider than the MPO"),
        ({"core": MPO.random((2,) * 3, (2,) * 3, 3, dtype=torch.float64)}, "wider than the MPO"),
        ({"core": MPO([torch.zeros(1, 2, 2, 1)] * 3)}, "zero"),
        ({"start": 3}, "start"),
        ({"tolerance": "much"}, "tolerance must be a number"),
        ({"max_sweeps": 0}, "max_sweeps must be a positive integer"),
        ({"dtype": torch.float16}, "dtype must be"),
        ({"dtype": torch.float32, "engine": "mpo"}, "double precision"),
        ({"engine": "gpu"}, "engine"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(InvalidInputError, match=message):
        disentangle(chain_mpo(3), brickwall(3, 1), **options)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_operators_and_cores_that_are_not_finite_are_refused(value):
    mpo = chain_mpo(3)
    broken = chain_mpo(3, bond=1)
    broken.cores[1][0, 0, 0, 0] = value
    with pytest.raises(InvalidInputError, match="not finite"):
        disentangle(mpo, brickwall(3, 1), core=broken)
    with pytest.raises(InvalidInputError, match="not finite"):
        disentangle(broken, brickwall(3, 1))


def test_truncated_chains_say_how_far_off_they_may_be(monkeypatch):
    from unbraid.disentangling import problem

    real = problem.MPOEngine
    monkeypatch.setattr(problem, "MPOEngine", lambda *a, **k: real(*a, **k, memory_limit=0, truncation=1e-3))
    mpo = chain_mpo(8, bond=4)
    result = disentangle(mpo, brickwall(8, 2), engine="mpo", max_sweeps=8)
    assert result.plan.startswith("truncated, layer by layer")
    assert 0 < result.overlap_error < 0.1
    dense = (result.output_circuit.matrix() @ result.core.to_dense() @ result.input_circuit.matrix()).detach()
    exact = float((mpo.to_dense() * dense).sum() / mpo.norm() / dense.norm())
    assert abs(exact - result.overlap) <= result.overlap_error
    assert disentangle(mpo, brickwall(8, 2), engine="dense", max_sweeps=2).overlap_error == 0


# what reviewers found


def test_legs_longer_on_one_side_here_and_on_the_other_there():
    mpo = MPO.random((2, 2, 4, 1), (1, 2, 2, 2), 3, seed=1, dtype=torch.float64)
    result = disentangle(mpo, (brickwall((2, 2, 4, 1), 1), brickwall((1, 2, 2, 2), 1)), max_sweeps=5)
    assert result.ceiling is None
    fixed = disentangle(mpo, (brickwall((2, 2, 4, 1), 1), brickwall((1, 2, 2, 2), 1)), core="fixed", max_sweeps=5)
    assert fixed.overlap <= fixed.ceiling


@pytest.mark.parametrize("log_scale", [600.0, -3000.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_scales_beyond_the_cores_stay_beside_them(log_scale, dtype):
    big = MPO(chain_mpo(3, dtype=dtype).cores, log_scale=log_scale)
    core = disentangle(big, brickwall(3, 1), max_sweeps=5).core
    assert all(bool(torch.isfinite(site).all()) and bool(site.any()) for site in core.cores)
    assert abs(float(core.canonicalize(0).log_scale) - log_scale) < 5


@pytest.mark.parametrize("options", [{"start": "growth"}, {}])
def test_the_callback_stops_wherever_it_says_so(options):
    mpo = chain_mpo(3, bond=3)
    ansatz = brickwall(3, 3, parity=0 if options else "auto")
    calls = []
    disentangle(mpo, ansatz, **options, callback=lambda *a: calls.append(a))
    last = next(k for k in range(1, len(calls)) if calls[k][0] < calls[k - 1][0])  # calls of the first optimisation
    again = []
    disentangle(mpo, ansatz, **options, callback=lambda *a: again.append(a) or len(again) != last)
    assert len(again) == last


def test_results_of_other_cores_and_kinds_are_refused_and_parities_found():
    mpo = chain_mpo(3, bond=3)
    wide = disentangle(mpo, brickwall(3, 1), core_bond=2, max_sweeps=5)
    with pytest.raises(InvalidInputError, match="wider than core_bond=1"):
        disentangle(mpo, brickwall(3, 2), start=wide)
    complex_mpo = chain_mpo(3, bond=3, dtype=torch.complex128)
    real = disentangle(mpo, brickwall(3, 1), max_sweeps=5)
    assert disentangle(complex_mpo, brickwall(3, 2), start=real, max_sweeps=5).overlap > 0
    with pytest.raises(InvalidInputError, match="complex and M real"):
        disentangle(mpo, brickwall(3, 2), start=disentangle(complex_mpo, brickwall(3, 1), max_sweeps=5))
    for parity in (0, 1):
        first = disentangle(mpo, brickwall(3, 1, parity=parity), max_sweeps=5)
        grown = disentangle(mpo, brickwall(3, 2, parity="auto"), start=first, max_sweeps=20)
        assert grown.overlap >= first.overlap
        assert grown.output_circuit.ansatz.layers[0] == first.output_circuit.ansatz.layers[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"core": chain_mpo(3, bond=1, dtype=torch.complex128)}, "complex and M is real"),
        ({"seed": 1.5}, "seed must be an integer"),
        ({"tolerance": float("inf")}, "tolerance must be a number"),
        ({"callback": 3}, "callback must be a function"),
        ({"checkpoint": 3}, "path of a file"),
        ({"checkpoint": "."}, "a file in a folder that exists"),
        ({"checkpoint": "not/there"}, "a file in a folder that exists"),
        ({"restarts": True}, "restarts must be a positive integer"),
    ],
)
def test_more_that_makes_no_sense(options, message):
    with pytest.raises(InvalidInputError, match=message):
        disentangle(chain_mpo(3), brickwall(3, 1), **options)


@pytest.mark.parametrize("group", ["o", "u"])
def test_an_earlier_result_of_rotations_starts_gates_of_larger_groups(group):
    mpo = MPO.random((2,) * 4, (2,) * 4, 2, seed=2, dtype=torch.float64)
    rotations = disentangle(mpo, brickwall(4, 2))
    free = disentangle(mpo, brickwall(4, 2, gate=group), start=rotations)
    assert free.overlap >= rotations.overlap - 1e-12
    assert free.history[0] >= rotations.overlap - 1e-9
    with pytest.raises(InvalidInputError, match="same group or a larger one"):
        disentangle(mpo, brickwall(4, 2), start=free)
