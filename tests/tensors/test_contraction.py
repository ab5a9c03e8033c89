"""Every grouping of cores against the dense matrix, gradients included."""

from itertools import pairwise, product
from math import prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unbraid.tensors import MPO, contraction
from unbraid.tensors.contraction import Plan, apply_cores, plan, shapes_of


@st.composite
def operators(draw):
    sites = draw(st.integers(1, 5))
    outs, ins = (draw(st.lists(st.integers(1, 4), min_size=sites, max_size=sites)) for _ in range(2))
    return MPO.random(outs, ins, draw(st.integers(1, 4)), seed=draw(st.integers(0, 99)), dtype=torch.float64)


def groupings(sites):
    for cuts in range(2 ** (sites - 1)):
        ends = [0, *(k + 1 for k in range(sites - 1) if cuts >> k & 1), sites]
        yield tuple(pairwise(ends))


@given(operators(), st.integers(0, 5))
def test_every_grouping_from_either_end_equals_the_dense_matrix(mpo, batch):
    x = torch.randn(batch, prod(mpo.in_dims), dtype=torch.float64)
    weights = torch.randn(batch, prod(mpo.out_dims), dtype=torch.float64)

    def run(function):
        cores = [core.detach().clone().requires_grad_() for core in mpo.cores]
        inputs = x.clone().requires_grad_()
        y = function(inputs, cores)
        (y * weights).sum().backward()
        return [y.detach(), inputs.grad, *(core.grad for core in cores)]

    wanted = run(lambda x, cores: x @ MPO(cores).to_padded_dense().mT)
    with pytest.MonkeyPatch.context() as patch:
        for blocks in groupings(len(mpo.cores)):
            for from_left, rows in product((True, False), (0, 1, 2)):
                chosen = Plan(blocks, from_left, rows, 0.0)
                patch.setattr(contraction, "plan", lambda *_, chosen=chosen, **__: chosen)
                for one, other in zip(run(apply_cores), wanted, strict=True):
                    torch.testing.assert_close(one, other)


@given(operators(), st.integers(0, 5000))
def test_a_plan_covers_every_site_once(mpo, batch):
    blocks = plan(shapes_of(mpo.cores), batch).blocks
    assert [k for start, stop in blocks for k in range(start, stop)] == list(range(len(mpo.cores)))


def test_long_chains_never_form_the_matrix():
    mpo = MPO.random((2,) * 18, (2,) * 18, 3)
    blocks = plan(shapes_of(mpo.cores), 4).blocks
    assert len(blocks) > 2
    assert apply_cores(torch.randn(2, 2**18), mpo.cores).shape == (2, 2**18)


def test_axes_before_the_last_are_kept():
    mpo = MPO.random((2, 3), (4, 2), 2)
    assert apply_cores(torch.randn(5, 1, 8), mpo.cores).shape == (5, 1, 6)
