"""Chains of fixed gauge against the same chains as they were."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unbraid.tensors import MPO
from unbraid.tensors.gauge import degrees_of_freedom, fixed_gauge, whole_core

WIDE = torch.float64


def random_cores(legs, bonds, seed=0, dtype=WIDE):
    generator = torch.Generator().manual_seed(seed)
    sizes = [1, *bonds, 1]
    return [
        torch.randn(sizes[k], out, leg, sizes[k + 1], generator=generator, dtype=dtype)
        for k, (out, leg) in enumerate(legs)
    ]


def whole(gauge):
    cores = [whole_core(*each) for each in zip(gauge.shapes[:-1], gauge.orders, gauge.free[:-1], strict=True)]
    return [*cores, gauge.free[-1]]


@st.composite
def chains(draw):
    sites = draw(st.integers(1, 5))
    legs = draw(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=sites, max_size=sites))
    bonds = draw(st.lists(st.integers(1, 9), min_size=sites - 1, max_size=sites - 1))
    return random_cores(legs, bonds, draw(st.integers(0, 999)))


@given(cores=chains())
def test_the_operator_stays_and_the_numbers_are_those_of_its_manifold(cores):
    gauge = fixed_gauge(cores)
    wanted, found = MPO(cores).to_dense(), MPO(whole(gauge)).to_dense()
    assert torch.allclose(found, wanted, rtol=1e-9, atol=1e-9 * float(wanted.abs().max()))
    assert sum(part.numel() for part in gauge.free) == degrees_of_freedom([core.shape for core in cores])
    assert degrees_of_freedom(gauge.shapes) == degrees_of_freedom([core.shape for core in cores])
    left = 1
    for core, shape in zip(cores, gauge.shapes, strict=True):
        assert shape[:3] == (left, *core.shape[1:3])
        left = min(core.shape[-1], shape[:3].numel())
        assert shape[-1] == left
    for core, order in zip(whole(gauge), gauge.orders, strict=False):
        rows = core.reshape(-1, core.shape[-1])
        assert torch.equal(rows[order.argsort()][: rows.shape[1]], torch.eye(rows.shape[1], dtype=WIDE))


@pytest.mark.parametrize(("size", "rank"), [((6, 8), 3), ((5, 5), 5), ((40, 30), 12)])
def test_a_low_rank_takes_what_the_manifold_of_such_matrices_does(size, rank):
    mpo = MPO(random_cores([(size[0], 1), (1, size[1])], [rank]))
    gauge = fixed_gauge(mpo.cores)
    assert sum(part.numel() for part in gauge.free) == rank * (sum(size) - rank)
    assert float(gauge.free[0].abs().max()) < 10 if gauge.free[0].numel() else True


def test_bonds_of_lower_rank_and_zeros_are_no_obstacle():
    cores = random_cores([(3, 2), (2, 3), (2, 2)], [4, 3])
    cores[1][:2] = 0
    for each in (cores, [torch.zeros_like(core) for core in cores]):
        found = MPO(whole(fixed_gauge(each))).to_dense()
        assert torch.allclose(found, MPO(each).to_dense(), atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_stays_within_the_rounding_of_the_dtype(dtype):
    cores = [core.to(dtype) for core in random_cores([(4, 4)] * 4, [8, 12, 8])]
    gauge = fixed_gauge(cores)
    assert {part.dtype for part in gauge.free} == {dtype}
    wanted = MPO([core.double() for core in cores]).to_dense()
    found = MPO([core.double() for core in whole(gauge)]).to_dense()
    assert float(torch.dist(found, wanted)) < 20 * torch.finfo(dtype).eps * float(wanted.norm())


def test_gradients_reach_the_free_rows():
    gauge = fixed_gauge(random_cores([(2, 2), (2, 2), (2, 2)], [2, 3]))
    free = tuple(part.requires_grad_() for part in gauge.free)

    def dense(*parts):
        cores = [whole_core(*each) for each in zip(gauge.shapes[:-1], gauge.orders, parts[:-1], strict=True)]
        return MPO([*cores, parts[-1]]).to_dense()

    assert torch.autograd.gradcheck(dense, free)
