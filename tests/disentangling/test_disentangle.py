import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unbraid.circuits import Circuit, brickwall, parse_ansatz, scaffold
from unbraid.disentangling import disentangle, spectral_ceiling
from unbraid.disentangling.environments import DenseEngine, Gates
from unbraid.disentangling.fit import fit_chain
from unbraid.disentangling.objective import joint_ceiling
from unbraid.ground.errors import FileFormatError, InvalidInputError
from unbraid.tensors import MPO, chain

SEEDS = st.integers(0, 10_000)


def random_mpo(rows=8, columns=8, dtype=torch.float64, seed=0, **limits):
    generator = torch.Generator().manual_seed(seed)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return MPO.from_dense(torch.randn(rows, columns, dtype=wide, generator=generator).to(dtype), **limits)


def assert_sound(result, mpo, tolerance=1e-9):
    """What holds for every outcome."""
    wide = torch.complex128
    left, core, right = (
        result.output_circuit.matrix().detach().to(wide),
        result.core.to_padded_dense().to(wide),
        result.input_circuit.matrix().detach().to(wide),
    )
    for matrix in (left, right):
        assert (matrix @ matrix.mH - torch.eye(len(matrix))).abs().max() < tolerance
    M, built = mpo.to_padded_dense().to(wide), left @ core @ right
    overlap = float((M.conj() * built).sum().real / M.norm() / built.norm())
    assert abs(overlap - result.overlap) < tolerance
    assert abs(float((M - built).norm() / M.norm()) - result.rel_error) < math.sqrt(tolerance)
    assert torch.allclose(
        result.to_dense().to(wide), built[: mpo.shape[0], : mpo.shape[1]], atol=tolerance * float(M.norm())
    )
    assert result.shape == mpo.shape
    assert result.overlap <= result.ceiling + 1e-9
    history = result.history
    assert all(later >= earlier for earlier, later in pairwise(history))
    assert history[-1] == result.overlap
    assert len(result.entropies_before) == len(result.entropies_after) == mpo.num_sites - 1


@settings(max_examples=16)
@given(
    seed=SEEDS,
    core=st.sampled_from(["joint", "fixed"]),
    bond=st.integers(1, 3),
    gate=st.sampled_from(["so", "o", "u"]),
    start=st.sampled_from(["near_identity", "identity", "random", "growth"]),
    dtype=st.sampled_from([torch.float64, torch.complex128]),
)
def test_every_outcome_is_sound(seed, core, bond, gate, start, dtype):
    mpo = random_mpo(seed=seed, dtype=dtype)
    ansatz = brickwall(3, 2, gate=gate, parity=seed % 2)
    result = disentangle(mpo, ansatz, core=core, core_bond=bond, start=start, seed=seed, max_sweeps=12)
    assert_sound(result, mpo)
    assert max(result.core.bond_dims) <= bond


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
@pytest.mark.parametrize("gate", ["so", "u"])
def test_results_have_the_dtype_of_the_operator(dtype, gate):
    mpo = random_mpo(dtype=dtype)
    result = disentangle(mpo, brickwall(3, 2, gate=gate), max_sweeps=10)
    assert_sound(result, mpo, 1e-5)
    assert result.output_circuit.dtype == torch.float32
    assert result.core.dtype == (torch.complex64 if gate == "u" else dtype)


@pytest.mark.parametrize(("rows", "columns"), [(4, 16), (8, 2), (5, 11), (7, 7)])
@pytest.mark.parametrize("core", ["joint", "fixed"])
def test_rectangular_and_padded_operators(rows, columns, core):
    mpo = random_mpo(rows, columns)
    sides = tuple(brickwall(size.bit_length() - 1, 2, body=min(2, size.bit_length() - 1)) for size in mpo.padded_shape)
    result = disentangle(mpo, sides, core=core, core_bond=2, max_sweeps=15)
    assert_sound(result, mpo)


def test_wires_of_other_dimensions_and_fixed_gates():
    mpo = MPO.from_dense(random_mpo().to_dense(), (4, 1, 2), (4, 1, 2))
    assert_sound(disentangle(mpo, brickwall((4, 1, 2), 2), max_sweeps=10), mpo)
    mpo = random_mpo()
    assert_sound(disentangle(mpo, scaffold(3, 3), max_sweeps=20), mpo)
    frozen = disentangle(mpo, parse_ansatz("cnot", 3), max_sweeps=20)
    assert_sound(frozen, mpo)
    assert frozen.output_circuit.num_parameters == 0


def test_no_circuit_leaves_the_best_core():
    mpo = random_mpo()
    fixed, joint = (
        disentangle(mpo, brickwall(3, 0), core=core, core_bond=2, max_sweeps=30) for core in ("fixed", "joint")
    )
    truncated = mpo.compress(max_bond=2)
    assert abs(fixed.overlap - float(truncated.norm() / mpo.norm())) < 1e-9
    assert joint.overlap >= fixed.overlap - 1e-9
    assert torch.allclose(fixed.entropies_after, fixed.entropies_before, atol=1e-9)


def realisable(ansatz, bond=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    n = len(ansatz.wire_dims)
    cores = [
        torch.randn(1 if k == 0 else bond, 2, 2, 1 if k == n - 1 else bond, dtype=torch.float64, generator=generator)
        for k in range(n)
    ]
    core = MPO(cores)
    left = Circuit(ansatz, "random", seed=seed + 1, dtype=torch.float64)
    right = Circuit(ansatz, "random", seed=seed + 2, mirrored=True, dtype=torch.float64)
    return MPO.from_dense((left.matrix() @ core.to_dense() @ right.matrix()).detach()), core


@pytest.mark.parametrize("bond", [1, 2])
def test_a_realisable_target_is_found_and_loses_its_entanglement(bond):
    mpo, _ = realisable(brickwall(4, 1), bond)
    result = disentangle(mpo, brickwall(4, 1), core_bond=bond, start="random", restarts=4, max_sweeps=300)
    assert result.overlap > 0.999
    assert_sound(result, mpo)
    assert float(result.entropies_after.sum()) < float(result.entropies_before.sum())
    if bond == 1:
        assert float(result.entropies_after.sum()) < 0.1 * float(result.entropies_before.sum())


def test_a_core_of_ones_own_is_used_up_to_its_scale():
    mpo, core = realisable(brickwall(3, 2))
    result = disentangle(mpo, brickwall(3, 2), core=core * -3.0, start="random", restarts=3, max_sweeps=200)
    assert_sound(result, mpo)
    assert abs(spectral_ceiling(mpo, core) - 1) < 1e-9
    direction = result.core.to_dense() / result.core.norm() + core.to_dense() / core.norm()
    assert direction.abs().max() < 1e-9


def test_fixed_core_is_the_canonical_truncation():
    mpo = random_mpo(16, 16)
    result = disentangle(mpo, brickwall(4, 1), core="fixed", core_bond=3, max_sweeps=3)
    truncated = mpo.compress(max_bond=3)
    a, b = result.core.to_dense(), truncated.to_dense()
    assert torch.allclose(a / a.norm(), b / b.norm(), atol=1e-10)


@settings(max_examples=15)
@given(seed=SEEDS, rows=st.integers(1, 9), columns=st.integers(1, 9))
def test_spectral_ceiling_equals_the_dense_bound_and_is_reached(seed, rows, columns):
    a, b = random_mpo(rows, columns, seed=seed), random_mpo(rows, columns, seed=seed + 1)
    first, second = a.to_padded_dense(), b.to_padded_dense()
    ceiling = spectral_ceiling(a, b)
    s, t = torch.linalg.svdvals(first), torch.linalg.svdvals(second)
    assert abs(ceiling - float((s * t).sum() / first.norm() / second.norm())) < 1e-12
    u, _, vh = torch.linalg.svd(first)
    x, _, yh = torch.linalg.svd(second)
    best = u @ x.mT @ second @ yh.mT @ vh
    assert abs(float((first * best).sum() / first.norm() / best.norm()) - ceiling) < 1e-10
    assert (
        ceiling == spectral_ceiling(a * -5.0, b * 1e-3) or abs(ceiling - spectral_ceiling(a * -5.0, b * 1e-3)) < 1e-12
    )


def test_joint_ceiling_is_between_that_of_the_truncation_and_one_and_grows():
    mpo = random_mpo()
    ceilings = [joint_ceiling(mpo, bond) for bond in (1, 2, 4)]
    assert ceilings == sorted(ceilings)
    assert 0 < ceilings[0] < ceilings[-1] <= 1
    assert joint_ceiling(mpo, 1) >= spectral_ceiling(mpo, mpo.compress(max_bond=1)) - 1e-6
    product, _ = realisable(brickwall(3, 2))
    assert joint_ceiling(product, 1) > 0.99


def test_ceilings_refuse_zero_and_other_shapes():
    mpo = random_mpo()
    with pytest.raises(InvalidInputError, match="zero MPO"):
        spectral_ceiling(mpo, mpo * 0.0)
    with pytest.raises(InvalidInputError, match="one padded shape"):
        spectral_ceiling(mpo, random_mpo(4, 8))


@settings(max_examples=15)
@given(seed=SEEDS, gate=st.sampled_from(["so", "o", "u"]), fixed=st.booleans())
def test_a_sweep_never_lowers_the_overlap(seed, gate, fixed):
    target = random_mpo(8, 4, seed=seed, dtype=torch.complex128).to_dense()
    output, inward = brickwall(3, 2, gate=gate), brickwall(2, 2, gate=gate)
    engine = DenseEngine(target / target.norm(), output, inward, (2, 2, 2), (2, 2, 1), fixed_core=fixed)
    sides = [Circuit(a, "random", seed, dtype=torch.float64).gate_matrices() for a in (output, inward)]
    gates = Gates(*([g.detach() for g in side] for side in sides), [], 0.0)
    gates = engine.evaluate(Gates(gates.output, gates.input, engine.truncated_core(gates, 1), 0.0))
    for _ in range(4):
        swept = engine.sweep(gates)
        assert swept.overlap >= gates.overlap - 1e-12
        gates = swept
    assert abs(engine.evaluate(gates).overlap - gates.overlap) < (1e-12 if fixed else 1e-2)


@settings(max_examples=15)
@given(seed=SEEDS, bond=st.integers(1, 5), passes=st.integers(1, 4))
def test_fitted_chain_is_a_projection_that_only_gets_better(seed, bond, passes):
    generator = torch.Generator().manual_seed(seed)
    legs = (2, 3, 2, 2)
    target = torch.randn(24, dtype=torch.complex128, generator=generator)
    bonds = [1, bond, bond, bond, 1]
    cores = [
        torch.randn(a, leg, b, dtype=torch.complex128, generator=generator)
        for a, leg, b in zip(bonds, legs, bonds[1:], strict=False)
    ]
    last = 0.0
    for _ in range(passes):
        cores, size = fit_chain(target, cores, 1)
        dense = chain.contract(cores)
        assert torch.allclose(dense.norm(), size)
        assert torch.allclose((dense.conj() * target).sum(), (size**2).to(torch.complex128), atol=1e-10)
        assert float(size) >= last - 1e-12
        last = float(size)


# determinism, restarts, status


def same(a, b):
    return (
        a.history == b.history
        and a.overlap == b.overlap
        and torch.equal(a.to_dense(), b.to_dense())
        and all(torch.equal(x, y) for x, y in zip(a.core.cores, b.core.cores, strict=True))
    )


def test_one_seed_gives_one_result_whatever_the_global_state():
    mpo, ansatz = random_mpo(), brickwall(3, 2, gate="o")
    torch.manual_seed(1)
    first = disentangle(mpo, ansatz, seed=5, restarts=2, max_sweeps=10)
    torch.manual_seed(2)
    assert same(first, disentangle(mpo, ansatz, seed=5, restarts=2, max_sweeps=10))
    assert not same(first, disentangle(mpo, ansatz, seed=6, restarts=2, max_sweeps=10))


def test_more_restarts_and_the_other_parity_never_lose():
    mpo = random_mpo()
    overlaps = [disentangle(mpo, brickwall(3, 1, gate="o"), restarts=n, max_sweeps=15).overlap for n in (1, 3)]
    assert overlaps[1] >= overlaps[0]
    both = disentangle(mpo, brickwall(3, 1, parity="auto"), max_sweeps=15)
    assert both.overlap >= disentangle(mpo, brickwall(3, 1), max_sweeps=15).overlap
    shifted, _ = realisable(brickwall(4, 1, parity=1))
    found = disentangle(shifted, brickwall(4, 1, parity="auto"), start="random", restarts=3, max_sweeps=200)
    assert found.overlap > 0.999
    assert found.output_circuit.ansatz == brickwall(4, 1, parity=1)


def test_status_tells_how_it_ended():
    mpo, ansatz = random_mpo(), brickwall(3, 1)
    assert disentangle(mpo, ansatz, max_sweeps=1000, tolerance=1e-3).status == "converged"
    short = disentangle(mpo, ansatz, max_sweeps=2, tolerance=0)
    assert (short.status, len(short.history)) == ("out_of_sweeps", 2)
    seen = []
    stopped = disentangle(mpo, ansatz, restarts=3, callback=lambda n, overlap: seen.append((n, overlap)) or n < 4)
    assert (stopped.status, len(stopped.history)) == ("stopped", 4)
    assert [n for n, _ in seen] == [1, 2, 3, 4]
    assert tuple(overlap for _, overlap in seen) == stopped.history


def test_growth_ends_at_full_depth_and_is_at_least_as_good_as_its_first_depth():
    mpo = random_mpo(16, 16)
    grown = disentangle(mpo, brickwall(4, 3), start="growth", max_sweeps=15)
    first = disentangle(mpo, brickwall(4, 1), start="growth", max_sweeps=15)
    assert grown.output_circuit.ansatz.depth == 3
    assert grown.overlap >= first.overlap
    assert_sound(grown, mpo)


# checkpoints


@pytest.mark.parametrize(
    "options",
    [
        {"ansatz": brickwall(3, 2), "restarts": 2},
        {"ansatz": brickwall(3, 2, gate="o", parity="auto"), "core_bond": 2},
        {"ansatz": brickwall(3, 2, gate="u"), "core": "fixed"},
        {"ansatz": brickwall(3, 2), "start": "growth"},
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, options):
    options = {"max_sweeps": 30, "tolerance": 1e-4, "seed": 3} | options
    mpo = random_mpo()
    calls = []
    whole = disentangle(mpo, **options, callback=lambda n, overlap: calls.append(n))
    for number, stop in enumerate(sorted({1, 2, len(calls) // 2, len(calls) - 1, len(calls)})):
        place = tmp_path / f"checkpoint{number}"
        left = iter(range(stop - 1))
        disentangle(mpo, **options, checkpoint=place, callback=lambda n, o, left=left: next(left, None) is not None)
        resumed = disentangle(mpo, **options, checkpoint=place)
        assert same(resumed, whole)
        assert resumed.status == whole.status
        assert same(disentangle(mpo, **options, checkpoint=place), whole)


def test_a_run_that_crashed_resumes_from_its_last_save(tmp_path, monkeypatch):
    monkeypatch.setattr("unbraid.disentangling.search.SAVE_EVERY", 0.0)
    mpo, place = random_mpo(), tmp_path / "c"
    options = {"max_sweeps": 50, "tolerance": 0.0}

    def crash(n, overlap):
        if n == 33:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        disentangle(mpo, brickwall(3, 2), **options, checkpoint=place, callback=crash)
    calls = []
    resumed = disentangle(mpo, brickwall(3, 2), **options, checkpoint=place, callback=lambda n, o: calls.append(n))
    assert calls[0] == 33
    assert same(resumed, disentangle(mpo, brickwall(3, 2), **options))


def test_checkpoints_of_other_problems_and_broken_ones_are_refused(tmp_path):
    mpo, place = random_mpo(), tmp_path / "c"
    options = {"max_sweeps": 25, "tolerance": 0.0}
    disentangle(mpo, brickwall(3, 1), **options, checkpoint=place, callback=lambda n, o: n < 5)
    before = place.read_bytes()
    others = [
        ((random_mpo(seed=1), brickwall(3, 1)), {}),
        ((mpo, brickwall(3, 2)), {}),
        ((mpo, brickwall(3, 1)), {"seed": 1}),
        ((mpo, brickwall(3, 1)), {"core_bond": 2}),
        ((mpo, brickwall(3, 1)), {"core": "fixed"}),
    ]
    for arguments, change in others:
        with pytest.raises(InvalidInputError, match="another problem"):
            disentangle(*arguments, **(options | change), checkpoint=place)
    assert place.read_bytes() == before
    place.write_bytes(before[:-10])
    with pytest.raises(FileFormatError, match="truncated"):
        disentangle(mpo, brickwall(3, 1), **options, checkpoint=place)


# errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ansatz": brickwall(4, 1)}, "output circuit must act on 8 amplitudes"),
        ({"ansatz": (brickwall(3, 1), brickwall(2, 1))}, "input circuit must act on 8"),
        ({"ansatz": 3}, "pair"),
        ({"ansatz": (brickwall(3, 1),)}, "pair"),
        ({"ansatz": "2b"}, "pair"),
        ({"ansatz": parse_ansatz("2b | relu | 2b", 3)}, "without nonlinearities"),
        ({"core": "free"}, "core"),
        ({"core": 3}, "core must be"),
        ({"core": random_mpo(4, 8)}, "must have the legs"),
        ({"core": random_mpo() * 0.0}, "core is zero"),
        ({"start": "warm"}, "start .if no earlier result. must be"),
        ({"engine": "sparse"}, "engine must be"),
        ({"core_bond": 0}, "core_bond must be"),
        ({"restarts": 0}, "restarts must be"),
        ({"max_sweeps": 0}, "max_sweeps must be"),
        ({"max_sweeps": 2.5}, "max_sweeps must be"),
        ({"tolerance": -1.0}, "tolerance must be"),
        ({"tolerance": math.nan}, "tolerance must be"),
        ({"seed": 0.5}, "seed must be"),
        ({"mpo": random_mpo() * 0.0}, "zero"),
        ({"mpo": torch.eye(8)}, "must be an MPO"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message):
    with pytest.raises(InvalidInputError, match=message):
        disentangle(**({"mpo": random_mpo(), "ansatz": brickwall(3, 1)} | options))


def test_the_dense_engine_refuses_what_is_too_large_before_any_work():
    mpo = MPO.random((2,) * 14, (2,) * 14, 2)
    with pytest.raises(InvalidInputError, match="Use engine='mpo' or 'auto'"):
        disentangle(mpo, brickwall(14, 1), engine="dense")
    assert spectral_ceiling(mpo, mpo) is None


def test_scales_beyond_floats_do_not_matter():
    mpo = random_mpo()
    scaled = MPO(mpo.cores, log_scale=600.0)
    assert (
        abs(
            disentangle(scaled, brickwall(3, 1), max_sweeps=5).overlap
            - disentangle(mpo, brickwall(3, 1), max_sweeps=5).overlap
        )
        < 1e-9
    )


@pytest.mark.parametrize("factor", [1e-300, 1e-160, 1e160, 1e300])
def test_the_overlap_does_not_depend_on_the_scale_of_a_core(factor):
    plain = MPO.random((2,) * 4, (2,) * 4, 2, seed=0, dtype=torch.float64)
    scaled = MPO([plain.cores[0] * factor, *plain.cores[1:]])
    first, second = (disentangle(mpo, brickwall(4, 1), max_sweeps=50) for mpo in (plain, scaled))
    assert second.overlap == pytest.approx(first.overlap, abs=1e-9)
