import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unbraid.ground.errors import InvalidInputError
from unbraid.tensors import MPO, inner, overlap
from unbraid.tensors.chain import least_ranks
from unbraid.tensors.sites import auto_sites, qubit_sites
from unbraid.tensors.subspace import METHODS

DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128, torch.bfloat16]
SEEDS = st.integers(0, 10_000)
SIZES = st.integers(1, 23)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def random_matrix(rows, columns, dtype=torch.float64, seed=0, decay=0.0):
    wide = torch.complex128 if dtype.is_complex else torch.float64
    matrix = torch.randn(rows, columns, dtype=wide, generator=seeded(seed))
    if decay:
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        matrix = u @ torch.diag(torch.exp(-decay * torch.arange(len(s), dtype=torch.float64))).to(wide) @ vh
    return matrix.to(dtype)


def random_mpo(dtype=torch.float64, seed=0, outs=(2, 3, 2), ins=(3, 1, 2), bond=3, shape=None):
    generator = seeded(seed)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    bonds = [1] + [bond] * (len(outs) - 1) + [1]
    cores = [
        torch.randn(a, o, i, b, dtype=wide, generator=generator).to(dtype)
        for a, o, i, b in zip(bonds[:-1], outs, ins, bonds[1:], strict=True)
    ]
    return MPO(cores, shape=shape)


def dense_by_index(mpo):
    """Entry by entry, straight from the definition."""
    dense = torch.zeros(mpo.padded_shape, dtype=mpo.dtype)
    for row in range(mpo.padded_shape[0]):
        for column in range(mpo.padded_shape[1]):
            value = torch.eye(1, dtype=mpo.dtype)
            outs, ins = digits(row, mpo.out_dims), digits(column, mpo.in_dims)
            for core, o, i in zip(mpo.cores, outs, ins, strict=True):
                value = value @ core[:, o, i, :]
            dense[row, column] = value[0, 0]
    return dense


def digits(index, dims):
    found = []
    for dim in reversed(dims):
        found.append(index % dim)
        index //= dim
    return found[::-1]


def bond_matrix(dense, outs, ins, bond):
    n = len(outs)
    tensor = dense.reshape(*outs, *ins).permute([axis for k in range(n) for axis in (k, n + k)])
    return tensor.reshape(math.prod(outs[: bond + 1]) * math.prod(ins[: bond + 1]), -1)


def rel(a, b):
    a, b = (x.detach().to(torch.complex128) for x in (a, b))
    return float(torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b))


# the definition


def test_site_zero_is_the_most_significant_digit_and_columns_are_inputs():
    mpo = random_mpo(torch.complex128, seed=3)
    assert torch.allclose(mpo.to_dense(), dense_by_index(mpo))
    a, b = torch.randn(2, 3), torch.randn(4, 2)
    product = MPO([a.reshape(1, 2, 3, 1), b.reshape(1, 4, 2, 1)])
    assert torch.allclose(product.to_dense(), torch.kron(a, b))


def test_transpose_is_dense_transpose():
    mpo = random_mpo(shape=(11, 5))
    torch.testing.assert_close(mpo.mT.to_dense(), mpo.to_dense().mT, rtol=1e-13, atol=1e-13)
    assert mpo.mT.shape == (5, 11)


# round trips and the padding rule


@settings(max_examples=60)
@given(rows=SIZES, columns=SIZES, dtype=st.sampled_from(DTYPES), seed=SEEDS, decay=st.sampled_from([0.0, 2.0]))
def test_uncapped_round_trip_is_exact(rows, columns, dtype, seed, decay):
    weight = random_matrix(rows, columns, dtype, seed, decay)
    for sites in ((None, None), auto_sites(rows, columns)):
        mpo = MPO.from_dense(weight, *sites)
        assert mpo.shape == (rows, columns)
        assert mpo.dtype == dtype
        assert rel(mpo.to_dense(), weight) <= max(8 * torch.finfo(dtype).eps, 2e-14)


@settings(max_examples=40)
@given(
    legs=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=4),
    short=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    seed=SEEDS,
)
def test_mixed_and_rectangular_sites_round_trip(legs, short, seed):
    outs, ins = (tuple(leg[side] for leg in legs) for side in (0, 1))
    rows, columns = (max(1, math.prod(dims) - less) for dims, less in zip((outs, ins), short, strict=True))
    if any(math.prod(dims) >= 2 * size and math.prod(dims) > 1 for dims, size in ((outs, rows), (ins, columns))):
        return
    weight = random_matrix(rows, columns, torch.float64, seed)
    mpo = MPO.from_dense(weight, outs, ins)
    assert rel(mpo.to_dense(), weight) < 1e-14
    assert (mpo.out_dims, mpo.in_dims) == (outs, ins)


def test_padding_is_zeros_at_the_end_of_the_flat_index():
    weight = random_matrix(11, 6)
    padded = MPO.from_dense(weight).to_padded_dense()
    expected = torch.zeros(16, 8, dtype=torch.float64)
    expected[:11, :6] = weight
    assert torch.allclose(padded, expected, atol=1e-14)


def test_missing_legs_have_dimension_one_and_stand_at_the_tail():
    mpo = MPO.from_dense(random_matrix(3, 16))
    assert mpo.out_dims == (2, 2, 1, 1)
    assert mpo.in_dims == (2, 2, 2, 2)
    assert MPO.from_dense(random_matrix(12, 5), (4, 3), (5,)).in_dims == (5, 1)
    assert MPO.from_dense(random_matrix(1, 1)).out_dims == (1,)
    assert qubit_sites(1, 3) == ((1, 1), (2, 2))


@given(rows=st.integers(1, 500), columns=st.integers(1, 500))
def test_auto_sites_hold_the_sizes_with_little_padding(rows, columns):
    outs, ins = auto_sites(rows, columns)
    assert len(outs) == len(ins)
    for size, dims in ((rows, outs), (columns, ins)):
        assert size <= math.prod(dims) < max(2 * size, 2)


def test_numerically_extreme_weights_keep_their_ranks():
    weight = random_matrix(8, 8)
    ranks = MPO.from_dense(weight, rel_error=0.05).bond_dims
    for factor in (1e-170, 1e-300, 1e170, 1e300):
        mpo = MPO.from_dense(weight * factor, rel_error=0.05)
        assert mpo.bond_dims == ranks
        assert rel(mpo.to_dense() / factor, weight) <= 0.05


# truncation


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rel_error", [0.9, 0.5, 0.1, 1e-2, 1e-4, "10eps"])
@pytest.mark.parametrize(("rows", "columns", "decay"), [(16, 16, 0.0), (16, 16, 0.7), (12, 20, 0.3), (32, 8, 1.5)])
def test_rel_error_bounds_the_error_and_no_bond_can_be_lowered(dtype, rel_error, rows, columns, decay):
    bound = 10 * torch.finfo(dtype).eps if rel_error == "10eps" else rel_error
    weight = random_matrix(rows, columns, dtype, seed=rows, decay=decay)
    sites = (None, None) if rows != 12 else ((4, 3), (4, 5))
    mpo = MPO.from_dense(weight, *sites, rel_error=bound)
    exact = weight.double()
    assert rel(mpo.to(torch.float64).to_dense(), exact) <= bound
    norm = torch.linalg.vector_norm(exact)
    slack = 1 - (1e-3 if rel_error == "10eps" else 1e-6)
    whole = MPO.from_dense(exact, mpo.out_dims, mpo.in_dims)
    for bond, rank in enumerate(mpo.bond_dims):
        if rank == 1:
            continue
        # the result truncated at that bond
        matrix = bond_matrix(mpo.to(torch.float64).to_padded_dense(), mpo.out_dims, mpo.in_dims, bond)
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        lowered = (u[:, : rank - 1] * s[: rank - 1]) @ vh[: rank - 1]
        original = bond_matrix(whole.to_padded_dense(), mpo.out_dims, mpo.in_dims, bond)
        assert torch.dist(lowered, original) > bound * slack * norm
        # and the best decomposition with one less there: TT-SVD with those ranks
        ranks = [r - (k == bond) for k, r in enumerate(mpo.bond_dims)]
        assert rel(tt_svd(exact, mpo.out_dims, mpo.in_dims, ranks), original_of(exact, mpo)) > bound * slack


def original_of(exact, mpo):
    padded = torch.zeros(mpo.padded_shape, dtype=exact.dtype)
    padded[: exact.shape[0], : exact.shape[1]] = exact
    return padded


def tt_svd(exact, outs, ins, ranks):
    padded = torch.zeros(math.prod(outs), math.prod(ins), dtype=exact.dtype)
    padded[: exact.shape[0], : exact.shape[1]] = exact
    n = len(outs)
    rest = padded.reshape(*outs, *ins).permute([axis for k in range(n) for axis in (k, n + k)]).reshape(1, -1)
    left = torch.ones(1, 1, dtype=exact.dtype)
    for k, rank in enumerate(ranks):
        u, s, vh = torch.linalg.svd(rest.reshape(left.shape[1] * outs[k] * ins[k], -1), full_matrices=False)
        left = (left @ u[:, :rank].reshape(left.shape[1], -1)).reshape(-1, min(rank, len(s)))
        rest = s[:rank, None] * vh[:rank]
    tensor = (left @ rest.reshape(left.shape[1], -1)).reshape([d for pair in zip(outs, ins, strict=True) for d in pair])
    return tensor.permute([*range(0, 2 * n, 2), *range(1, 2 * n, 2)]).reshape(math.prod(outs), -1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("rel_error", [0.0, 1e-3, 0.1, 0.5])
def test_no_chain_of_lower_ranks_is_within_the_error(dtype, rel_error):
    tensor = torch.randn(4 * 3 * 5, dtype=dtype, generator=torch.Generator().manual_seed(0))
    tensor = tensor / torch.linalg.vector_norm(tensor)
    unfoldings = (tensor.reshape(4, 15), tensor.reshape(12, 5))
    values = [torch.linalg.svdvals(unfolding) for unfolding in unfoldings]
    least = least_ranks(values, rel_error, 1e-13)
    assert least == [4, 5] if rel_error == 0 else all(rank < size for rank, size in zip(least, (5, 6), strict=True))
    for unfolding, rank in zip(unfoldings, least, strict=True):
        u, s, vh = torch.linalg.svd(unfolding, full_matrices=False)
        errors = [torch.linalg.vector_norm(unfolding - u[:, :r] * s[:r] @ vh[:r]) for r in (rank - 1, rank)]
        assert errors[0] > rel_error
        assert errors[1] <= rel_error + 1e-12
    assert least_ranks(values, rel_error, 2.0) == [1, 1]  # all of it may be noise


@settings(max_examples=30)
@given(seed=SEEDS, bond=st.integers(1, 9), decay=st.sampled_from([0.0, 0.5]))
def test_max_bond_is_honoured_and_near_the_best(seed, bond, decay):
    weight = random_matrix(16, 16, seed=seed, decay=decay)
    mpo = MPO.from_dense(weight, max_bond=bond)
    assert max(mpo.bond_dims) <= bond
    dropped = sum(
        float((torch.linalg.svdvals(bond_matrix(weight, mpo.out_dims, mpo.in_dims, k))[bond:] ** 2).sum())
        for k in range(3)
    )
    assert torch.dist(mpo.to_dense(), weight) ** 2 <= dropped + 1e-12
    both = MPO.from_dense(weight, max_bond=bond, rel_error=0.3)
    assert max(both.bond_dims) <= bond


@settings(max_examples=30)
@given(seed=SEEDS, parameters=st.integers(24, 700), rel_error=st.sampled_from([None, 0.6, 1e-3]))
def test_max_parameters_wins_over_rel_error(seed, parameters, rel_error):
    weight = random_matrix(16, 16, seed=seed)
    mpo = MPO.from_dense(weight, (4, 2, 2), (2, 4, 2), max_parameters=parameters, rel_error=rel_error)
    assert mpo.num_parameters <= parameters
    if rel_error == 0.6:
        assert mpo.num_parameters < MPO.from_dense(weight, (4, 2, 2), (2, 4, 2)).num_parameters


def test_more_parameters_never_cost_accuracy():
    weight = random_matrix(16, 16)
    errors = [
        float(torch.dist(MPO.from_dense(weight, max_parameters=n).to_dense(), weight)) for n in range(16, 600, 40)
    ]
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(errors))


@pytest.mark.parametrize("shape", [(320, 500), (384, 384), (384, 777)])
@pytest.mark.parametrize("decay", [0.0, 0.02])
def test_large_layers_come_within_two_per_cent_of_their_parameters(shape, decay):
    weight = random_matrix(*shape, torch.float32, decay=decay)
    for budget in (0.03, 0.1, 0.4):
        most = int(budget * weight.numel())
        assert 0.98 * most <= MPO.from_dense(weight, *auto_sites(*shape), max_parameters=most).num_parameters <= most


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_every_method_and_dtype_recovers_a_matrix_of_low_rank(method, dtype):
    exact = MPO.random((4, 4, 4, 4), (4, 4, 4, 4), 5, dtype=torch.float64).to_dense().to(dtype)
    eps = torch.finfo(dtype).eps
    mpo = MPO.from_dense(exact, (4, 4, 4, 4), (4, 4, 4, 4), max_bond=12, method=method)
    if dtype in (torch.float32, torch.float64):
        assert mpo.bond_dims == (5, 5, 5)
    assert mpo.dtype == dtype
    assert rel(mpo.to_dense(), exact) < max(
        40 * eps if dtype == torch.float64 else 8 * eps, 1e-7 if method in ("gram", "randomized") else 0
    )


def test_methods_keep_their_errors():
    weight = random_matrix(96, 128, torch.float32, decay=0.02)
    sites = auto_sites(96, 128)
    errors = {m: rel(MPO.from_dense(weight, *sites, max_bond=6, method=m).to_dense(), weight) for m in METHODS}
    assert errors["auto"] == errors["gram"]
    assert errors["gram"] == pytest.approx(errors["svd"], rel=1e-5)
    assert errors["qr"] == pytest.approx(errors["svd"], rel=1e-5)
    assert errors["randomized"] <= 1.03 * errors["svd"]
    for method in METHODS:
        assert rel(MPO.from_dense(weight, *sites, rel_error=0.2, method=method).to_dense(), weight) <= 0.2
    with pytest.raises(InvalidInputError, match="method must be one of 'auto', 'svd'"):
        MPO.from_dense(weight, method="lanczos")


def test_unreachable_parameter_limit_says_what_is_least():
    with pytest.raises(InvalidInputError, match="at least 16"):
        MPO.from_dense(random_matrix(16, 16), max_parameters=15)


@settings(max_examples=25)
@given(seed=SEEDS, rel_error=st.sampled_from([0.9, 0.3, 1e-2, 1e-6, 1e-12]), dtype=st.sampled_from(DTYPES[:4]))
def test_compress_honours_its_error(seed, rel_error, dtype):
    rel_error = max(rel_error, 20 * torch.finfo(dtype).eps)
    mpo = random_mpo(dtype, seed, outs=(2, 3, 2, 2), ins=(2, 2, 1, 3), bond=6)
    small = mpo.compress(rel_error=rel_error)
    assert rel(small.to_padded_dense(), mpo.to_padded_dense()) <= rel_error * (1 + 1e-3) + 4 * torch.finfo(dtype).eps
    assert all(a <= b for a, b in zip(small.bond_dims, mpo.bond_dims, strict=True))


def test_compress_with_max_bond_equals_truncation():
    mpo = random_mpo(bond=6, outs=(2, 2, 2, 2), ins=(2, 2, 2, 2))
    small = mpo.compress(max_bond=3)
    assert max(small.bond_dims) == 3
    assert torch.allclose(
        small.to_dense(), tt_svd(mpo.to_dense(), mpo.out_dims, mpo.in_dims, [3, 3, 3]), atol=1e-10 * float(mpo.norm())
    )


@pytest.mark.parametrize("dtype", DTYPES[:4])
def test_ranks_of_a_sum_go_back(dtype):
    mpo = random_mpo(dtype, outs=(2, 2, 2, 2), ins=(2, 2, 2, 2), bond=2)
    total = mpo + mpo
    assert total.bond_dims == (4, 4, 4)
    assert total.compress().bond_dims == mpo.bond_dims
    assert rel(total.compress().to_dense(), 2 * mpo.to_dense()) < 20 * torch.finfo(dtype).eps
    other = random_mpo(dtype, seed=9, outs=(2, 2, 2, 2), ins=(2, 2, 2, 2), bond=2)
    back = (mpo + other - other).compress(rel_error=100 * torch.finfo(dtype).eps)
    assert back.bond_dims == mpo.bond_dims


def test_compress_of_product_and_single_site_and_zero():
    product = random_mpo(bond=1)
    assert rel(product.compress(rel_error=0.1).to_dense(), product.to_dense()) < 1e-12
    single = random_mpo(outs=(3,), ins=(4,))
    assert rel(single.compress(rel_error=0.1).to_dense(), single.to_dense()) < 1e-12
    zero = random_mpo() * 0.0
    assert zero.compress(rel_error=0.1).bond_dims == (1, 1)
    assert not zero.compress().to_dense().any()


# canonical form and entanglement


@settings(max_examples=25)
@given(seed=SEEDS, center=st.integers(0, 3), dtype=st.sampled_from(DTYPES))
def test_canonical_form_is_orthogonal_and_equals_the_operator(seed, center, dtype):
    mpo = random_mpo(dtype, seed, outs=(2, 3, 2, 1), ins=(2, 2, 1, 3), bond=4, shape=(11, 10))
    canonical = mpo.canonicalize(center)
    eps = torch.finfo(dtype).eps
    assert canonical.center == center
    assert canonical.shape == mpo.shape
    assert canonical.dtype == dtype
    assert rel(canonical.to_dense(), mpo.to_dense()) < 40 * eps
    for k, core in enumerate(canonical.cores):
        core = core.to(torch.complex128)
        matrix = core.reshape(-1, core.shape[3]) if k < center else core.reshape(core.shape[0], -1).mH
        gram = matrix.mH @ matrix if k != center else torch.linalg.vector_norm(core).reshape(1, 1)
        assert torch.dist(gram, torch.eye(len(gram))) < 40 * eps
    assert math.isclose(math.exp(float(canonical.log_scale)), float(mpo.norm()), rel_tol=40 * eps)


@settings(max_examples=25)
@given(seed=SEEDS, bond=st.integers(0, 2), dtype=st.sampled_from(DTYPES))
def test_schmidt_values_and_entropies_are_those_of_the_dense_matricisation(seed, bond, dtype):
    mpo = random_mpo(dtype, seed, outs=(2, 3, 2, 2), ins=(2, 2, 1, 3), bond=4, shape=(23, 11))
    wide = mpo.to(torch.complex128)
    exact = torch.linalg.svdvals(bond_matrix(wide.to_padded_dense(), mpo.out_dims, mpo.in_dims, bond))
    found = mpo.schmidt_values(bond)
    assert len(found) == min(4, len(exact))
    assert torch.allclose(found.double(), exact[: len(found)], atol=40 * torch.finfo(dtype).eps * float(exact[0]))
    weights = exact**2 / (exact**2).sum()
    assert abs(float(mpo.entropies()[bond]) - float(torch.special.entr(weights).sum())) < 60 * torch.finfo(dtype).eps


def test_entropy_of_a_product_is_zero_and_of_a_maximally_entangled_one_is_log_bond():
    assert random_mpo(bond=1).entropies().abs().max() < 1e-12
    dim = 4
    swap = torch.eye(dim * dim, dtype=torch.float64).reshape(dim, dim, dim, dim).permute(1, 0, 2, 3)
    entropies = MPO.from_dense(swap.reshape(dim * dim, -1), (dim, dim), (dim, dim)).entropies()
    assert torch.allclose(entropies, torch.tensor([math.log(dim * dim)], dtype=torch.float64))
    assert random_mpo(outs=(3,), ins=(2,)).entropies().shape == (0,)


def test_entropies_do_not_see_scales_or_gauges():
    mpo = random_mpo()
    for other in (mpo * -7.0, mpo.canonicalize(1), mpo.balanced(), mpo + mpo):
        assert torch.allclose(other.entropies(), mpo.entropies(), atol=1e-10)


def test_entropy_of_zero_is_refused():
    with pytest.raises(InvalidInputError, match="zero tensor"):
        (random_mpo() * 0.0).entropies()


# arithmetic


@settings(max_examples=25)
@given(seed=SEEDS, dtype=st.sampled_from(DTYPES[:4]), scales=st.tuples(st.floats(-3, 3), st.floats(-3, 3)))
def test_arithmetic_equals_dense(seed, dtype, scales):
    eps = 100 * torch.finfo(dtype).eps
    a, b = (random_mpo(dtype, seed + k, shape=(11, 5)).canonicalize(k) for k in range(2))
    a = MPO(a.cores, shape=a.shape, log_scale=a.log_scale + scales[0])
    b = MPO(b.cores, shape=b.shape, log_scale=b.log_scale + scales[1])
    x, y = a.to_padded_dense(), b.to_padded_dense()
    size = float(torch.linalg.vector_norm(x) * torch.linalg.vector_norm(y))
    assert rel((a + b).to_padded_dense(), x + y) < eps
    assert rel((a - b).to_padded_dense(), x - y) < eps
    assert rel((2.5 * a).to_dense(), 2.5 * a.to_dense()) < eps
    assert rel((-a).to_dense(), -a.to_dense()) < eps
    assert (a + b).shape == (11, 5)
    assert abs(complex(inner(a, b)) - complex((x.conj() * y).sum())) < eps * size
    assert abs(float(overlap(a, b)) - float((x.conj() * y).sum().real) / size) < eps
    assert abs(float(a.norm()) / float(torch.linalg.vector_norm(x)) - 1) < eps
    assert rel(a.balanced().to_dense(), a.to_dense()) < eps


def test_inner_is_conjugate_linear_in_the_first():
    a, b = random_mpo(torch.complex128, 1), random_mpo(torch.complex128, 2)
    assert torch.allclose(inner(a * 2j, b), -2j * inner(a, b))
    assert torch.allclose(inner(a, b * 2j), 2j * inner(a, b))


def test_complex_multiple_of_a_real_operator_and_mixed_dtypes():
    mpo = random_mpo(torch.float32)
    assert torch.allclose((mpo * 2j).to_dense(), 2j * mpo.to_dense())
    assert torch.allclose(overlap(mpo, mpo.to(torch.float64)), torch.ones((), dtype=torch.float64), atol=1e-5)
    assert abs(complex(inner(mpo, mpo * 1j)) - 1j * float(mpo.norm()) ** 2) < 1e-3 * float(mpo.norm()) ** 2


@pytest.mark.parametrize("size", [1e4, 1e-4])
def test_fifty_sites_in_float32_neither_overflow_nor_vanish(size):
    cores = [torch.randn(1 if k == 0 else 2, 2, 2, 1 if k == 49 else 2, generator=seeded(k)) * size for k in range(50)]
    mpo = MPO(cores)
    exact = MPO([core.double() for core in cores])
    canonical = mpo.canonicalize(20)
    assert abs(float(canonical.log_scale - exact.canonicalize(3).log_scale)) < 1e-4
    assert abs(float(overlap(mpo, mpo)) - 1) < 1e-5
    assert abs(float(overlap(mpo, canonical)) - 1) < 1e-5
    assert torch.allclose(mpo.entropies().double(), exact.entropies(), atol=1e-4)
    assert (mpo + canonical).compress(rel_error=1e-5).bond_dims == mpo.bond_dims
    assert abs(float(overlap(mpo + canonical * -0.5, mpo)) - 1) < 1e-4
    other = MPO([core.flip(1) for core in cores])
    assert abs(float(overlap(mpo, other)) - float(overlap(exact, other.to(torch.float64)))) < 1e-5


# application


@settings(max_examples=30)
@given(
    seed=SEEDS,
    batch=st.lists(st.integers(0, 3), max_size=3),
    dtype=st.sampled_from(DTYPES[:4]),
    shape=st.sampled_from([(12, 6), (11, 5), (7, 4)]),
)
def test_apply_equals_dense_for_any_batch(seed, batch, dtype, shape):
    mpo = random_mpo(dtype, seed, shape=shape).canonicalize(1)
    x = random_matrix(math.prod(batch), shape[1], dtype, seed).reshape(*batch, shape[1])
    y = mpo.apply(x)
    assert y.shape == (*batch, shape[0])
    tolerance = 50 * torch.finfo(dtype).eps * float(mpo.norm()) * 5
    assert torch.allclose(y, x @ mpo.to_dense().mT, atol=tolerance)
    if len(batch) <= 1:
        columns = x.mT if batch else x
        assert torch.allclose(mpo @ columns, mpo.to_dense() @ columns, atol=tolerance)


def test_apply_to_padded_vectors_gives_padded_vectors():
    mpo = random_mpo(shape=(11, 5))
    x = torch.randn(3, 6, dtype=torch.float64)
    assert torch.allclose(mpo.apply(x), x @ mpo.to_padded_dense().mT)


# gradients


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_gradients_equal_finite_differences(dtype):
    mpo = random_mpo(dtype, outs=(2, 2, 1), ins=(2, 1, 2), bond=2, shape=(3, 3))
    other = random_mpo(dtype, 5, outs=(2, 2, 1), ins=(2, 1, 2), bond=2, shape=(3, 3))
    x = random_matrix(2, 3, dtype).requires_grad_()
    cores = [core.clone().requires_grad_() for core in mpo.cores]

    def built(*cores):
        return MPO(cores, shape=(3, 3), log_scale=0.3)

    for function in (
        lambda *c: built(*c).to_dense(),
        lambda *c: built(*c).norm(),
        lambda *c: overlap(built(*c), other),
        lambda *c: overlap(other, built(*c)),
        lambda *c: inner(built(*c), other),
        lambda *c: (built(*c) + other * 2.0).to_dense(),
        lambda *c: built(*c).balanced().to_dense(),
    ):
        assert torch.autograd.gradcheck(function, cores)
    assert torch.autograd.gradcheck(lambda x, *c: built(*c).apply(x), (x, *cores))


def test_gradient_of_the_log_scale():
    scale = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    cores = random_mpo().cores
    assert torch.autograd.gradcheck(lambda s: MPO(cores, log_scale=s).to_dense(), scale)
    assert torch.autograd.gradcheck(lambda s: MPO(cores, log_scale=s).norm(), scale)


# random and copies


def test_random_has_the_variance_of_linear_and_depends_on_its_seed_alone():
    mpo = MPO.random((4, 4, 4), (4, 4, 4), 16, seed=1, dtype=torch.float64)
    assert 0.5 < float(mpo.to_dense().var() * 3 * 64) < 2
    torch.manual_seed(0)
    again = MPO.random((4, 4, 4), (4, 4, 4), 16, seed=1, dtype=torch.float64)
    assert torch.equal(mpo.to_dense(), again.to_dense())
    assert not torch.equal(mpo.to_dense(), MPO.random((4, 4, 4), (4, 4, 4), 16, seed=2, dtype=torch.float64).to_dense())
    assert MPO.random((2, 2), (2,), 9).bond_dims == (2,)


def test_detach_and_to_keep_the_operator():
    mpo = random_mpo(shape=(11, 5)).canonicalize(1)
    assert torch.equal(mpo.detach().to_dense(), mpo.to_dense())
    assert mpo.to(torch.float32).dtype == torch.float32
    assert mpo.to(torch.float32).shape == (11, 5)
    assert rel(mpo.to(torch.float32).to_dense(), mpo.to_dense()) < 1e-6


# errors


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.tensor([[1.0, float("nan")]]), r"weight must be finite; it has 1 NaN.*\(0, 1\)"),
        (torch.tensor([[1.0], [float("-inf")]]), "infinite"),
        (torch.zeros(0, 3), "at least one row and one column"),
        (torch.zeros(3, 0), "at least one row and one column"),
        (torch.zeros(3), r"matrix \(out, in\)"),
        (torch.zeros(2, 2, 2), r"matrix \(out, in\)"),
        (torch.zeros(2, 2, dtype=torch.int64), "Convert it first"),
        ([[1.0]], "got list"),
        (None, "got NoneType"),
    ],
)
def test_bad_weights_are_refused(weight, message):
    with pytest.raises(InvalidInputError, match=message):
        MPO.from_dense(weight)


@pytest.mark.parametrize(
    ("outs", "message"),
    [
        ((2,) * 3, r"product of at least 10; got \(2, 2, 2\) \(= 8\)\. Choose other out_dims, such as \(2, 2, 2, 2\)"),
        ((4, 5), "more than half would be padding"),
        ((), "at least one"),
        ((0, 10), "positive integers"),
        ((-2, -5), "positive integers"),
        ((2.5, 4), "positive integers"),
        (10, "positive integers"),
    ],
)
def test_bad_legs_are_refused_with_what_would_fit(outs, message):
    with pytest.raises(InvalidInputError, match=message):
        MPO.from_dense(random_matrix(10, 4), outs, (4,))


@pytest.mark.parametrize(
    "limits",
    [
        {"max_bond": 0},
        {"max_bond": True},
        {"max_bond": 2.0},
        {"rel_error": 1.0},
        {"rel_error": -1e-3},
        {"rel_error": math.nan},
        {"max_parameters": 0},
    ],
)
def test_bad_limits_are_refused(limits):
    with pytest.raises(InvalidInputError, match=f"{next(iter(limits))} must be"):
        MPO.from_dense(random_matrix(4, 4), **limits)


@pytest.mark.parametrize(
    ("cores", "message"),
    [
        ([], "at least one core"),
        (
            [torch.ones(1, 2, 2, 2), torch.ones(3, 2, 2, 1)],
            "core 1 has a left bond of 3, but core 0 ends with a bond of 2",
        ),
        ([torch.ones(2, 2, 2, 1)], "starts with a bond of 1"),
        ([torch.ones(1, 2, 2, 2)], "must end with a bond of 1"),
        ([torch.ones(1, 2, 1)], "core 0 must be a non-empty tensor"),
        ([torch.ones(1, 0, 2, 1)], "core 0 must be a non-empty tensor"),
        (["core"], "got str"),
        ([torch.ones(1, 2, 2, 1), torch.ones(1, 2, 2, 1).double()], "one dtype"),
        ([torch.full((1, 2, 2, 1), float("nan"))], "core 0 must be finite"),
    ],
)
def test_bad_cores_are_refused(cores, message):
    with pytest.raises(InvalidInputError, match=message):
        MPO(cores)


@pytest.mark.parametrize("shape", [(5, 2), (2, 5), (2, 2), (0, 4), (-1, 4)])
def test_logical_shapes_that_do_not_fit_are_refused(shape):
    with pytest.raises(InvalidInputError):
        MPO([torch.ones(1, 2, 2, 1), torch.ones(1, 2, 2, 1)], shape=shape)


def test_places_out_of_range_and_wrong_vectors_are_refused():
    mpo = random_mpo(shape=(11, 5))
    for bad in (-1, 3):
        with pytest.raises(InvalidInputError, match="center must be a site from 0 to 2"):
            mpo.canonicalize(bad)
    for bad in (-1, 2):
        with pytest.raises(InvalidInputError, match="bond must be from 0 to 1"):
            mpo.schmidt_values(bad)
    with pytest.raises(InvalidInputError, match="must have 5 entries"):
        mpo.apply(torch.ones(4, dtype=torch.float64))
    with pytest.raises(InvalidInputError, match=r"use mpo\.apply"):
        mpo @ torch.ones(3, 5, dtype=torch.float64)
    with pytest.raises(InvalidInputError, match="same legs"):
        mpo + random_mpo()
    with pytest.raises(InvalidInputError, match="same legs"):
        overlap(mpo, random_mpo(outs=(3, 2, 2)))
    with pytest.raises(InvalidInputError, match="zero MPO"):
        overlap(mpo, mpo * 0.0)
    with pytest.raises(InvalidInputError, match="positive"):
        MPO.random((0, 2), (2, 2), 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compress_keeps_its_bound_near_rounding(dtype):
    eps = torch.finfo(dtype).eps
    for seed in range(6):
        mpo = MPO.random((2,) * 6, (2,) * 6, 6, seed=seed, dtype=dtype)
        exact = mpo.to(torch.float64).to_dense()
        for allowed in (10 * eps, 100 * eps):
            found = mpo.compress(rel_error=allowed).to(torch.float64).to_dense()
            assert torch.dist(found, exact) <= allowed * torch.linalg.vector_norm(exact)


def test_norms_of_long_chains_stay_finite():
    cores = [1e2 * torch.ones(1, 2, 2, 1) for _ in range(60)]
    mpo = MPO(cores)
    assert float(mpo.norm().log()) == pytest.approx(60 * math.log(200), rel=1e-6)
    assert float(mpo.schmidt_values(30)[0].log()) == pytest.approx(60 * math.log(200), rel=1e-6)


@pytest.mark.parametrize("factor", [1e-300, 1e-160, 1e-100, 1e100, 1e160, 1e300])
def test_norms_overlaps_and_entropies_do_not_depend_on_the_scale_of_a_core(factor):
    plain = MPO.random((2,) * 4, (2,) * 4, 2, seed=0, dtype=torch.float64)
    scaled = MPO([plain.cores[0] * factor, *plain.cores[1:]])
    assert float(scaled.norm() / factor) == pytest.approx(float(plain.norm()))
    assert float(overlap(scaled, plain)) == pytest.approx(1)
    torch.testing.assert_close(scaled.entropies(), plain.entropies())
