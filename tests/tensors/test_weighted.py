"""Operators that keep outputs, against the closed form where there is one, and against plain ones."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unbraid.ground.errors import InvalidInputError
from unbraid.tensors import MPO
from unbraid.tensors.decompose import Limits, decompose
from unbraid.tensors.ladder import ladder, powers_below
from unbraid.tensors.sites import auto_sites, check_dims, low_rank_sites, qubit_sites, split_sites
from unbraid.tensors.weighted import OutputProblem, damped, damped_error, weighted_error

WIDE = torch.float64
DTYPES = [torch.float32, torch.float64, torch.bfloat16]
LAYOUTS = [auto_sites, qubit_sites, split_sites, low_rank_sites]
SHAPES = st.tuples(st.integers(2, 24), st.integers(2, 24)) | st.just((7, 10))


def matrix(rows, columns, seed, dtype=WIDE):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=WIDE).to(dtype)


def moment(size, seed, rank=None, scale=1.0):
    """Of inputs that are strong in some directions and weak in others; singular below full rank."""
    x = matrix(rank or 3 * size, size, seed + 1) * torch.logspace(1, -1, size, dtype=WIDE)
    return scale * x.mT @ x / len(x)


def closed_form(weight, covariance, rank):
    values, vectors = torch.linalg.eigh(damped(covariance))
    root = (vectors * values.sqrt()) @ vectors.mT
    u, s, vh = torch.linalg.svd(weight @ root, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vh[:rank] @ torch.linalg.inv(root)


def close(mpo, weight, covariance):
    return weighted_error(weight, mpo.to(WIDE).to_dense(), damped(covariance))


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_low_rank_sites_give_the_closed_form(rank):
    weight, covariance = matrix(9, 14, 0), moment(14, 0)
    mpo = MPO.from_dense(weight, *low_rank_sites(9, 14), max_bond=rank, covariance=covariance)
    assert torch.allclose(mpo.to_dense(), closed_form(weight, covariance, rank), atol=1e-10)


@settings(max_examples=60)
@given(
    shape=SHAPES,
    layout=st.sampled_from(LAYOUTS),
    bond=st.integers(1, 6),
    rank=st.sampled_from([None, 1, 2]),
    dtype=st.sampled_from(DTYPES),
    scale=st.sampled_from([1.0, 1e-30, 1e30]),
    seed=st.integers(0, 999),
)
def test_outputs_are_not_worse_than_those_of_the_plain_operator(shape, layout, bond, rank, dtype, scale, seed):
    weight, covariance = matrix(*shape, seed, dtype), moment(shape[1], seed, rank, scale)
    plain = MPO.from_dense(weight, *layout(*shape), max_bond=bond)
    mpo = MPO.from_dense(weight, *layout(*shape), max_bond=bond, covariance=covariance)
    assert mpo.dtype == dtype
    assert all(ours <= theirs for ours, theirs in zip(mpo.bond_dims, plain.bond_dims, strict=True))
    rounding = max(
        4 * torch.finfo(dtype).eps, 1e-12
    )  # a local optimum may lie above: one in 2000 such cases, of bond 1
    assert close(mpo, weight, covariance) <= close(plain, weight, covariance) * (1 + 1e-6) + rounding


@settings(max_examples=40)
@given(
    shape=SHAPES,
    layout=st.sampled_from(LAYOUTS),
    rel_error=st.sampled_from([0.0, 1e-6, 0.01, 0.1, 0.3, 0.7]),
    rank=st.sampled_from([None, 1]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_rel_error_bounds_the_outputs(shape, layout, rel_error, rank, dtype, seed):
    weight, covariance = matrix(*shape, seed, dtype), moment(shape[1], seed, rank)
    mpo = MPO.from_dense(weight, *layout(*shape), rel_error=rel_error, covariance=covariance)
    assert close(mpo, weight, covariance) <= rel_error + 1e-15
    if rank == 1 and rel_error == 0.1 and layout is low_rank_sites:  # one direction has nearly all power
        assert mpo.bond_dims == (1,)


def test_rel_error_is_spent_and_takes_fewer_entries_than_the_plain_bound():
    weight, covariance = matrix(32, 48, 0), moment(48, 0)
    for layout in LAYOUTS:
        mpo = MPO.from_dense(weight, *layout(32, 48), rel_error=0.2, covariance=covariance)
        plain = MPO.from_dense(weight, *layout(32, 48), rel_error=0.2)
        assert 0.15 < close(mpo, weight, covariance) <= 0.2
        assert mpo.num_parameters < plain.num_parameters


@settings(max_examples=30)
@given(
    shape=SHAPES,
    layout=st.sampled_from(LAYOUTS),
    bond=st.integers(1, 5) | st.none(),
    more=st.integers(0, 300) | st.none(),
    rel_error=st.sampled_from([None, 0.01, 0.4]),
    seed=st.integers(0, 99),
)
def test_caps_are_kept_and_win_over_the_error(shape, layout, bond, more, rel_error, seed):
    weight, covariance = matrix(*shape, seed), moment(shape[1], seed)
    outs, ins = layout(*shape)
    most = None if more is None else more + sum(o * i for o, i in zip(outs, ins, strict=True))
    limits = {"max_bond": bond, "max_parameters": most, "rel_error": rel_error}
    if not any(limits.values()):
        with pytest.raises(InvalidInputError, match="say how far"):
            MPO.from_dense(weight, outs, ins, covariance=covariance)
        return
    mpo = MPO.from_dense(weight, outs, ins, covariance=covariance, **limits)
    assert bond is None or max(mpo.bond_dims, default=1) <= bond
    assert most is None or mpo.num_parameters <= most


def test_caps_that_bind_are_used_up():
    weight, covariance = matrix(24, 30, 0), moment(30, 0)
    for limits in ({"max_bond": 4}, {"max_parameters": 300}):
        caps = MPO.from_dense(weight, *auto_sites(24, 30), covariance=covariance, **limits)
        for part in (0.99, 0.5):  # of the error that the caps allow
            error = part * close(caps, weight, covariance)
            both = MPO.from_dense(weight, *auto_sites(24, 30), covariance=covariance, rel_error=error, **limits)
            assert torch.equal(caps.to_dense(), both.to_dense())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_white_inputs_give_the_plain_error(layout):
    weight = matrix(20, 24, 3)
    plain = MPO.from_dense(weight, *layout(20, 24), max_bond=3)
    mpo = MPO.from_dense(weight, *layout(20, 24), max_bond=3, covariance=torch.eye(24))
    assert mpo.bond_dims == plain.bond_dims
    ours, theirs = (torch.dist(each.to_dense(), weight) for each in (mpo, plain))
    assert 0.9 * theirs < ours <= theirs * (1 + 1e-9)  # sweeps improve a little on truncations one after the other


@settings(max_examples=15)
@given(shape=SHAPES, layout=st.sampled_from(LAYOUTS), rank=st.sampled_from([None, 1]), seed=st.integers(0, 99))
def test_more_sweeps_never_raise_the_error(shape, layout, rank, seed):
    weight, covariance = matrix(*shape, seed, torch.float32), moment(shape[1], seed, rank)
    outs, ins = layout(*shape)
    problem = OutputProblem(weight, covariance, outs, ins, torch.float32)
    cores = decompose(problem.target, outs, ins, Limits(2), "auto", 0)
    errors = [problem.error(cores)]
    for _ in range(4):
        cores = problem.improved(cores, sweeps=1)
        errors.append(problem.error(cores))
    assert all(after <= before + 1e-7 for before, after in pairwise(errors))  # levelling the cores rounds


def test_the_scale_of_weights_and_inputs_does_not_matter():
    weight, covariance = matrix(12, 18, 0), moment(18, 0)
    one = MPO.from_dense(weight, (3, 4), (3, 6), max_bond=3, covariance=covariance).to_dense()
    for scale in (1e-150, 1e-30, 1e30, 1e150):
        other = MPO.from_dense(weight * scale, (3, 4), (3, 6), max_bond=3, covariance=covariance).to_dense()
        assert torch.allclose(other / scale, one, rtol=1e-6, atol=1e-8)
    single = MPO.from_dense((weight * 1e-30).float(), (3, 4), (3, 6), max_bond=3, covariance=covariance).to_dense()
    assert torch.allclose(single.double() / 1e-30, one, atol=1e-4)


@pytest.mark.parametrize(
    ("covariance", "match"),
    [
        (torch.eye(3), r"shape \(4, 4\).*got torch.float32, \(3, 3\)"),
        (torch.eye(4, dtype=torch.int64), "torch.int64"),
        (torch.eye(4, dtype=torch.complex64), "complex64"),
        ([[1.0]], "must be a real matrix"),
        (torch.full((4, 4), math.nan), "NaN"),
        (torch.zeros(4, 4), "all zeros"),
        (torch.eye(4) + torch.tensor([0.0, 0.5, 0.0, 0.0]), "symmetric"),
        (torch.eye(4) * torch.tensor([1.0, -1.0, 1.0, 1.0]), "negative eigenvalues"),
        (torch.ones(4, 4) - torch.eye(4), "negative eigenvalues"),
        (-torch.eye(4), "negative eigenvalues"),
    ],
)
def test_what_is_no_second_moment_is_refused(covariance, match):
    with pytest.raises(InvalidInputError, match=match):
        MPO.from_dense(torch.ones(4, 4), max_bond=1, covariance=covariance)
    with pytest.raises(InvalidInputError, match=match):
        ladder(torch.ones(4, 4), (2, 2), (2, 2), [1], covariance=covariance)


def test_complex_weights_are_refused_and_rounding_of_singular_moments_is_not():
    with pytest.raises(InvalidInputError, match="complex"):
        MPO.from_dense(torch.ones(4, 4, dtype=torch.complex64), max_bond=1, covariance=torch.eye(4))
    x = torch.ones(50, 1) @ matrix(1, 40, 0, torch.float32)
    rounded = x.mT @ x / 50 - 1e-7 * torch.eye(40)
    assert MPO.from_dense(matrix(8, 40, 1), max_bond=2, covariance=rounded).shape == (8, 40)


@settings(max_examples=25)
@given(
    shape=SHAPES,
    layout=st.sampled_from(LAYOUTS),
    rank=st.sampled_from([None, 1]),
    dtype=st.sampled_from(DTYPES),
    weighted=st.booleans(),
    seed=st.integers(0, 99),
)
def test_ladders_have_the_caps_and_falling_errors(shape, layout, rank, dtype, weighted, seed):
    weight, covariance = matrix(*shape, seed, dtype), moment(shape[1], seed, rank) if weighted else None
    outs, ins = layout(*shape)
    caps = powers_below(outs, ins, weight.numel())
    assert caps == [2**k for k in range(len(caps))]
    found = ladder(weight, outs, ins, caps, covariance=covariance)
    assert all(mpo.dtype == dtype and mpo.shape == shape for mpo in found)
    assert all(max(mpo.bond_dims, default=1) <= cap for mpo, cap in zip(found, caps, strict=True))
    metric = torch.eye(shape[1]) if covariance is None else covariance
    errors = [close(mpo, weight, metric) for mpo in found]
    assert all(after <= before + 4 * torch.finfo(dtype).eps for before, after in pairwise(errors))
    best = MPO.from_dense(weight, outs, ins, max_bond=caps[-1], covariance=covariance)
    assert errors[-1] <= 1.2 * close(best, weight, metric) + 4 * torch.finfo(dtype).eps


@settings(max_examples=60)
@given(rows=st.integers(1, 200), columns=st.integers(1, 200))
def test_two_sites_hold_every_size(rows, columns):
    for layout in (low_rank_sites, split_sites):
        outs, ins = layout(rows, columns)
        assert len(outs) == len(ins) == 2
        check_dims(outs, rows, "out_dims")
        check_dims(ins, columns, "in_dims")


@pytest.mark.parametrize("rank", [1, 4])
def test_slopes_give_the_closed_form_on_low_rank_sites(rank):
    weight, covariance, slopes = matrix(9, 14, 0), moment(14, 0), moment(9, 5)
    mpo = MPO.from_dense(weight, *low_rank_sites(9, 14), max_bond=rank, covariance=covariance, slopes=slopes)
    values, vectors = torch.linalg.eigh(damped(slopes, 0.1))
    root = (vectors * values.sqrt()) @ vectors.mT
    expected = torch.linalg.inv(root) @ closed_form(root @ weight, covariance, rank)
    assert torch.allclose(mpo.to_dense(), expected, atol=1e-10)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_slopes_lower_the_error_that_they_weight(layout):
    weight, covariance, slopes = matrix(24, 36, 0), moment(36, 0), moment(24, 5)
    outs, ins = layout(24, 36)
    without = MPO.from_dense(weight, outs, ins, max_bond=3, covariance=covariance)
    mpo = MPO.from_dense(weight, outs, ins, max_bond=3, covariance=covariance, slopes=slopes)
    metrics = damped(covariance), damped(slopes, 0.1)
    assert weighted_error(weight, mpo.to_dense(), *metrics) < weighted_error(weight, without.to_dense(), *metrics)
    (same,) = ladder(weight, outs, ins, [3], covariance=covariance, slopes=torch.eye(24, dtype=WIDE))
    assert close(same, weight, covariance) == pytest.approx(close(without, weight, covariance), rel=0.1)


def test_slopes_that_fit_nothing_are_refused():
    weight, covariance = matrix(6, 8, 0), moment(8, 0)
    with pytest.raises(InvalidInputError, match="give their covariance"):
        MPO.from_dense(weight, max_bond=2, slopes=moment(6, 1))
    with pytest.raises(InvalidInputError, match=r"slopes must be .* \(6, 6\)"):
        MPO.from_dense(weight, max_bond=2, covariance=covariance, slopes=moment(8, 1))


@pytest.mark.parametrize("layout", [auto_sites, split_sites])
def test_operators_that_can_beat_a_rival_are_seldom_given_up(layout):
    lost = 0
    for seed in range(30):
        weight, covariance = matrix(24, 24, seed), moment(24, seed, 2 + seed % 23)
        options = {"max_parameters": 120 + 10 * seed, "covariance": covariance}
        whole = MPO.from_dense(weight, *layout(24, 24), **options)
        error = damped_error(weight, whole.to_dense(), covariance)
        found = MPO.from_dense(weight, *layout(24, 24), **options, rival=1.05 * error)
        lost += damped_error(weight, found.to_dense(), covariance) > 1.001 * error
        unhurried = MPO.from_dense(weight, *layout(24, 24), **options, rival=100.0)
        torch.testing.assert_close(unhurried.to_dense(), whole.to_dense())
    assert lost <= 2


def test_an_operator_that_cannot_beat_a_rival_is_given_up_early():
    weight, covariance = matrix(24, 24, 0), moment(24, 0)
    options = {"max_parameters": 300, "covariance": covariance}
    whole, early = (MPO.from_dense(weight, *auto_sites(24, 24), **options, rival=rival) for rival in (None, 1e-9))
    errors = [damped_error(weight, mpo.to_dense(), covariance) for mpo in (whole, early)]
    assert errors[0] < errors[1] < 2 * errors[0]
