import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unbraid.tensors import MPO
from unbraid.tensors.subspace import METHODS, dominant, gram, resolve, singular_values

EXACT = ("svd", "qr", "gram")


def decaying(rows, columns, dtype=torch.float64, seed=0, decay=0.2):
    matrix = torch.randn(rows, columns, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return (u * torch.exp(-decay * torch.arange(len(s))).to(s.dtype)) @ vh


def kept(matrix, basis):
    return float(torch.linalg.vector_norm(basis.mH @ matrix) ** 2)


@settings(max_examples=40)
@given(
    rows=st.integers(1, 90),
    columns=st.integers(1, 90),
    share=st.floats(0, 1),
    method=st.sampled_from(EXACT),
    dtype=st.sampled_from([torch.float64, torch.complex128]),
    seed=st.integers(0, 99),
)
def test_bases_are_orthonormal_and_keep_what_the_best_keeps(rows, columns, share, method, dtype, seed):
    matrix = decaying(rows, columns, dtype, seed, decay=0.02)
    rank = max(1, round(share * min(rows, columns)))
    basis = dominant(matrix, rank, method)
    assert torch.allclose(basis.mH @ basis, torch.eye(rank, dtype=dtype), atol=1e-10)
    best = float((torch.linalg.svdvals(matrix)[:rank] ** 2).sum())
    assert kept(matrix, basis) == pytest.approx(best, rel=1e-9)


@settings(max_examples=20)
@given(rows=st.integers(40, 200), columns=st.integers(40, 200), seed=st.integers(0, 99))
def test_sketches_keep_nearly_as_much_where_values_fall(rows, columns, seed):
    matrix = decaying(rows, columns, torch.float32, decay=0.1)
    basis = dominant(matrix, 8, "randomized", seed)
    assert torch.allclose(basis.mH @ basis, torch.eye(8), atol=1e-5)
    values = torch.linalg.svdvals(matrix)
    total, best = float((values**2).sum()), float((values[:8] ** 2).sum())
    assert total - kept(matrix, basis) <= 1.02**2 * (total - best)


def test_a_sketch_depends_on_its_seed_alone():
    matrix = decaying(120, 300, torch.float32)
    assert torch.equal(dominant(matrix, 8, "randomized", 3), dominant(matrix, 8, "randomized", 3))
    assert not torch.equal(dominant(matrix, 8, "randomized", 3), dominant(matrix, 8, "randomized", 4))


@pytest.mark.parametrize("shape", [(3, 500), (70, 70), (80, 40_000)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
def test_gram_matrices_are_summed_in_float64(shape, dtype):
    matrix = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
    wide = matrix.to(torch.complex128 if dtype.is_complex else torch.float64)
    assert torch.allclose(gram(matrix).tril(), (wide @ wide.mH).tril(), rtol=1e-13, atol=1e-10)


@pytest.mark.parametrize("shape", [(30, 200), (200, 30)])
def test_singular_values(shape):
    matrix = decaying(*shape)
    exact = torch.linalg.svdvals(matrix)
    assert torch.allclose(singular_values(matrix, "qr"), exact)
    assert torch.allclose(singular_values(matrix, "gram"), exact, atol=1e-7 * float(exact[0]))


def test_auto_takes_gram_matrices_unless_digits_would_be_lost():
    assert resolve("auto", torch.float32, None) == resolve("auto", torch.bfloat16, 0.1) == "gram"
    assert resolve("auto", torch.float64, 0.1) == resolve("auto", torch.float32, 1e-6) == "qr"
    assert [resolve(method, torch.float64, None) for method in METHODS[1:]] == list(METHODS[1:])


@pytest.mark.parametrize(("rel_error", "size"), [(0.5, 96), (0.3, 96)])
def test_sketches_by_error_take_a_few_more_ranks_not_all(rel_error, size):
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(size, size, generator=generator))[0] for _ in range(2))
    weight = (u * torch.arange(1, size + 1) ** -0.7) @ v
    bonds = {}
    for method in ("gram", "randomized"):
        mpo = MPO.from_dense(weight, (size, 1), (1, size), rel_error=rel_error, method=method)
        assert torch.linalg.norm(mpo.to_dense() - weight) <= rel_error * torch.linalg.norm(weight)
        bonds[method] = mpo.bond_dims[0]
    assert bonds["gram"] <= bonds["randomized"] <= 1.3 * bonds["gram"] + 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rel_error", [0.1, 0.02, 0.005, 0.001])
def test_errors_bound_what_is_stored_in_half_precision(dtype, rel_error):
    weight = torch.randn(48, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    mpo = MPO.from_dense(weight, (4, 3, 4), (4, 4, 4), rel_error=rel_error)
    assert all(core.dtype == dtype for core in mpo.cores)
    stored = MPO([core.double() for core in mpo.cores], shape=mpo.shape).to_dense()
    assert torch.linalg.norm(stored - weight.double()) <= rel_error * torch.linalg.norm(weight.double())
