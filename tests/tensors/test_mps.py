import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unbraid.ground.errors import InvalidInputError
from unbraid.tensors import MPO, MPS
from unbraid.tensors.entanglement import bond_entropy, maximum_entropies
from unbraid.tensors.mps import apply

SEEDS = st.integers(0, 10_000)
DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128, torch.bfloat16]


def random_vector(size, dtype=torch.float64, seed=0):
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return torch.randn(size, dtype=wide, generator=torch.Generator().manual_seed(seed)).to(dtype)


@settings(max_examples=40)
@given(size=st.integers(1, 70), dtype=st.sampled_from(DTYPES), seed=SEEDS)
def test_round_trip_is_exact(size, dtype, seed):
    vector = random_vector(size, dtype, seed)
    state = MPS.from_dense(vector)
    assert state.size == size
    assert math.prod(state.dims) < max(2 * size, 2)
    found, exact = state.to_dense().to(torch.complex128), vector.to(torch.complex128)
    assert torch.dist(found, exact) <= max(8 * torch.finfo(dtype).eps, 2e-14) * exact.norm()


def test_mixed_legs_are_most_significant_first():
    a, b, c = (random_vector(n, seed=n) for n in (2, 3, 4))
    state = MPS([a.reshape(1, 2, 1), b.reshape(1, 3, 1), c.reshape(1, 4, 1)])
    assert torch.allclose(state.to_dense(), torch.kron(torch.kron(a, b), c))
    assert MPS.from_dense(state.to_dense(), (2, 3, 4), rel_error=1e-10).bond_dims == (1, 1)


@settings(max_examples=20)
@given(seed=SEEDS, dtype=st.sampled_from(DTYPES[:4]))
def test_arithmetic_and_entanglement_equal_dense(seed, dtype):
    eps = 100 * torch.finfo(dtype).eps
    x, y = random_vector(20, dtype, seed), random_vector(20, dtype, seed + 1)
    a, b = MPS.from_dense(x).canonicalize(2), MPS.from_dense(y)
    assert torch.allclose((a + b).to_dense(), x + y, atol=eps)
    assert torch.allclose((a - 2.0 * b).to_dense(), x - 2 * y, atol=eps)
    assert abs(complex(a.inner(b)) - complex(torch.vdot(x, y))) < 30 * eps
    assert abs(float(a.overlap(b)) - float(torch.vdot(x, y).real / x.norm() / y.norm())) < eps
    assert abs(float(a.norm() - x.norm())) < 10 * eps
    padded = torch.cat([x, x.new_zeros(12)])
    values = torch.linalg.svdvals(padded.reshape(4, 8))
    assert torch.allclose(a.schmidt_values(1), values.double()[: a.bond_dims[1]], atol=eps * 10)
    assert abs(float(a.entropies()[1] - bond_entropy(values))) < eps * 10


@settings(max_examples=20)
@given(seed=SEEDS, rel_error=st.sampled_from([0.7, 0.1, 1e-3]))
def test_compress_honours_its_limits(seed, rel_error):
    vector = random_vector(64, seed=seed)
    small = MPS.from_dense(vector).compress(rel_error=rel_error)
    assert torch.dist(small.to_dense(), vector) <= rel_error * vector.norm() * (1 + 1e-9)
    assert max(MPS.from_dense(vector).compress(max_bond=2).bond_dims) <= 2
    assert max(MPS.from_dense(vector, max_bond=3).bond_dims) <= 3


def test_operator_applied_to_state_equals_dense():
    operator = MPO.random((2, 3, 2), (3, 2, 2), 3, dtype=torch.float64)
    vector = random_vector(12)
    state = MPS.from_dense(vector, (3, 2, 2)).canonicalize(1)
    assert torch.allclose(apply(operator, state).to_dense(), operator.to_dense() @ vector)
    with pytest.raises(InvalidInputError, match="acts on legs"):
        apply(operator, MPS.from_dense(vector, (2, 3, 2)))


@pytest.mark.parametrize(
    "bad", [torch.ones(2, 2), torch.ones(()), torch.ones(0), torch.tensor([1.0, float("nan")]), torch.arange(4), "x"]
)
def test_bad_vectors_are_refused(bad):
    with pytest.raises(InvalidInputError):
        MPS.from_dense(bad)


def test_bad_cores_and_sizes_are_refused():
    with pytest.raises(InvalidInputError, match="left, leg, right"):
        MPS([torch.ones(1, 2, 2, 1)])
    with pytest.raises(InvalidInputError, match="left bond"):
        MPS([torch.ones(1, 2, 2), torch.ones(3, 2, 1)])
    with pytest.raises(InvalidInputError):
        MPS([torch.ones(1, 4, 1)], size=2)
    with pytest.raises(InvalidInputError):
        MPS([torch.ones(1, 4, 1)], size=0)


def test_bond_entropy_is_scale_free_and_at_most_maximal():
    s = torch.tensor([3.0, 2.0, 1.0])
    assert torch.allclose(bond_entropy(s), bond_entropy(10 * s))
    assert float(bond_entropy(s)) < maximum_entropies([3])[0]
    assert math.isclose(float(bond_entropy(torch.ones(5))), maximum_entropies([5])[0], rel_tol=1e-6)
    assert float(bond_entropy(torch.tensor([2.0, 0.0]))) == 0
