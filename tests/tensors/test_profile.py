"""Entropy profiles against singular values, known states and random matrices; laws and valleys of made profiles."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unbraid.ground.errors import InvalidInputError
from unbraid.ground.random import stream
from unbraid.tensors import MPO, entropy_profile, low_rank_profile, page_entropy
from unbraid.tensors.profile import ORDERS, find_valley, fit_law, fit_length_law, random_entropies

WIDE = torch.float64
sizes = st.integers(2, 12)


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=stream(seed, "test"), dtype=WIDE)


def of_values(values):
    weights = values.square() / values.square().sum()
    return float(torch.special.entr(weights).sum())


@given(sizes, sizes, st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_operator_order_is_that_of_the_mpo(rows, columns, seed):
    matrix = gaussian(rows, columns, seed=seed)
    profile = None if max(rows, columns) == 2 else entropy_profile(matrix, samples=1)
    if profile is None:
        with pytest.raises(InvalidInputError, match="fewer than two sites"):
            entropy_profile(matrix)
        return
    mpo = MPO.from_dense(matrix, profile.out_dims, profile.in_dims)
    assert profile.entropies == pytest.approx([float(e) for e in mpo.entropies()], abs=1e-6)


@given(sizes, sizes, st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_vector_order_has_the_singular_values_between_rows_and_columns(rows, columns, seed):
    matrix = gaussian(rows, columns, seed=seed)
    profile = entropy_profile(3e-5 * matrix.float(), order="vector", samples=1)
    between = sum(dim > 1 for dim in profile.out_dims) - 1
    assert profile.entropies[between] == pytest.approx(of_values(torch.linalg.svdvals(matrix)), abs=1e-4)
    assert all(0 <= s <= most + 1e-9 for s, most in zip(profile.entropies, profile.maximum, strict=True))


def test_complex_matrices_and_given_legs():
    matrix = torch.complex(gaussian(6, 4), gaussian(6, 4, seed=1))
    profile = entropy_profile(matrix, sites=((3, 2), (2, 2)), order="vector", samples=1)
    assert profile.out_dims == (3, 2, 1, 1)
    flat = matrix.reshape(3, 8)
    assert profile.entropies[0] == pytest.approx(of_values(torch.linalg.svdvals(flat)), abs=1e-9)
    assert entropy_profile(matrix, sites="auto", order="vector").out_dims == (6, 1)


@given(sizes, sizes, st.integers(1, 4), st.sampled_from(ORDERS))
@settings(max_examples=40, deadline=None)
def test_factors_give_the_profile_of_their_product(rows, columns, rank, order):
    b, a = gaussian(rows, rank), gaussian(rank, columns, seed=1)
    if order == "operator" and max(rows, columns) == 2:
        return
    factored = low_rank_profile(b, a, order=order, samples=1)
    whole = entropy_profile(b @ a, order=order, rank=rank, samples=1)
    assert factored.entropies == pytest.approx(whole.entropies, abs=1e-6)
    assert factored.random == whole.random
    assert all(s <= most + 1e-6 for s, most in zip(factored.entropies, factored.maximum, strict=True))


@pytest.mark.parametrize(("rows", "columns"), [(8, 1), (1, 8)])
@pytest.mark.parametrize("order", ORDERS)
def test_factors_of_a_vector(rows, columns, order):
    b, a = gaussian(rows, 2), gaussian(2, columns, seed=1)
    factored = low_rank_profile(b, a, order=order)
    assert factored.entropies == pytest.approx(entropy_profile(b @ a, order=order).entropies, abs=1e-6)


def test_sites_in_another_order_and_sites_of_nothing():
    b, a = gaussian(8, 2), gaussian(2, 8, seed=1)
    sites = ((1, 4, 2, 1), (2, 1, 4, 1))
    factored = low_rank_profile(b, a, sites=sites)
    assert (factored.out_dims, factored.in_dims) == ((1, 4, 2), (2, 1, 4))
    whole = entropy_profile(b @ a, sites=sites, rank=2)
    assert factored.entropies == pytest.approx(whole.entropies, abs=1e-6)
    swapped = ((1, 8), (8, 1))
    assert len(low_rank_profile(b, a, sites=swapped).entropies) == 1


def test_low_rank_makes_a_valley_in_the_vector_order_only():
    b, a = gaussian(64, 4), gaussian(4, 64, seed=1)
    vector, operator = (low_rank_profile(b, a, order=order) for order in ("vector", "operator"))
    assert vector.middle == 6
    assert vector.valley.bond == 6
    assert vector.entropies[5] <= math.log(4)
    assert vector.valley.relative == pytest.approx(find_valley(vector.random).relative, abs=0.05)
    assert (vector.law.law, vector.law.points) == ("volume", 11)
    unknown = entropy_profile(b @ a, order="vector")
    left, right = unknown.valley.shoulders
    assert unknown.law.points == 11 - (right - left - 1) < 11
    assert operator.valley.depth == 0
    full = entropy_profile(gaussian(64, 64), order="vector")
    assert (full.valley.depth, full.law.law) == (0, "volume")


def test_page_is_the_exact_sum():
    for m, n in ((1, 7), (2, 2), (4, 8), (8, 4), (5, 30)):
        low, high = sorted((m, n))
        exact = sum(1 / k for k in range(high + 1, m * n + 1)) - (low - 1) / (2 * high)
        assert page_entropy(m, n) == pytest.approx(exact, abs=1e-12)
    assert page_entropy(2**40, 2**40) == pytest.approx(40 * math.log(2) - 0.5, abs=1e-9)
    with pytest.raises(InvalidInputError, match="positive"):
        page_entropy(0, 3)


@pytest.mark.parametrize(("m", "n"), [(4, 64), (8, 8), (16, 16)])
def test_real_matrices_lie_below_page_by_less_than_the_bound(m, n):
    generator = stream(0, "real", m, n)
    states = torch.randn(3000, m, n, generator=generator, dtype=WIDE)
    weights = torch.linalg.svdvals(states).square()
    entropies = torch.special.entr(weights / weights.sum(-1, keepdim=True)).sum(-1)
    error = 4 * float(entropies.std()) / math.sqrt(len(entropies))
    below = page_entropy(m, n) - float(entropies.mean())
    assert 0.5 * (m - 1) / (2 * m * n) - error < below < (m - 1) / (2 * m * n) + error
    states = torch.complex(states[::2], states[1::2])
    weights = torch.linalg.svdvals(states).square()
    entropies = torch.special.entr(weights / weights.sum(-1, keepdim=True)).sum(-1)
    assert float(entropies.mean()) == pytest.approx(page_entropy(m, n), abs=1.5 * error)


def test_random_reference_reaches_page_without_padding_and_not_with_it():
    legs = (2,) * 5
    whole = random_entropies((32, 32), legs, legs)
    page = [page_entropy(4**k, 4 ** (5 - k)) for k in range(1, 5)]
    assert whole == pytest.approx(page, abs=0.03)
    padded = random_entropies((20, 20), legs, legs)
    assert padded[0] < page[0] - 0.05
    assert entropy_profile(gaussian(20, 20)).entropies == pytest.approx(padded, abs=0.05)


def test_laws_of_made_profiles():
    legs, ones = (2,) * 14, (1,) * 14
    places = [k / 14 for k in range(1, 14)]
    noise = gaussian(13).mul(0.003).tolist()
    made = {
        "area": [0.4 + e for e in noise],
        "log": [1.5 + 0.5 / 6 * math.log(math.sin(math.pi * p)) + e / 10 for p, e in zip(places, noise, strict=True)],
        "volume": [0.8 * 14 * math.log(2) * min(p, 1 - p) + e for p, e in zip(places, noise, strict=True)],
    }
    for law, entropies in made.items():
        fit = fit_law(entropies, legs, ones)
        assert (fit.law, fit.points) == (law, 13)
        assert [each.aicc for each in fit.laws] == sorted(each.aicc for each in fit.laws)
    assert fit_law(made["log"], legs, ones).laws[0].slope == pytest.approx(0.5 / 6, abs=0.002)
    assert fit_law(made["log"], legs, ones).laws[0].intercept == pytest.approx(1.5, abs=0.002)
    assert fit_law(made["volume"], legs, ones).laws[0].slope == pytest.approx(0.8, abs=0.005)
    assert fit_law([0.0] * 13, legs, ones).law == "area"
    few = fit_law(made["volume"][:6], (2,) * 7, (1,) * 7)
    assert (few.law, few.laws) == ("undecided", ())


def test_laws_against_length():
    lengths = [8, 16, 32, 64, 128, 256, 512]
    for law, values in (
        ("area", [1.0, 1.01, 0.99, 1.0, 1.01, 0.99, 1.0]),
        ("log", [0.3 + 0.7 * math.log(n) for n in lengths]),
        ("volume", [0.3 + 0.01 * n for n in lengths]),
    ):
        assert fit_length_law(lengths, values).law == law
    with pytest.raises(InvalidInputError, match="one entropy for each"):
        fit_length_law([1, 2], [0.1])


def test_valleys():
    valley = find_valley([1.0, 3.0, 2.0, 1.5, 2.5, 1.0])
    assert (valley.depth, valley.relative, valley.bond, valley.shoulders) == (1.0, 0.4, 4, (2, 5))
    assert find_valley([1.0, 2.0, 3.0, 2.0]).depth == 0
    assert find_valley([1.0]).depth == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: entropy_profile(torch.zeros(4, 4)), "all zeros"),
        (lambda: entropy_profile(torch.ones(4)), "needs a matrix"),
        (lambda: entropy_profile(torch.full((4, 4), math.nan)), "must be finite"),
        (lambda: entropy_profile(torch.ones(2, 2)), "fewer than two sites"),
        (lambda: entropy_profile(torch.ones(4, 4), sites="bits"), "sites"),
        (lambda: entropy_profile(torch.ones(4, 4), sites=((2, 2), (4,))), "equally many"),
        (lambda: entropy_profile(torch.ones(4, 4), order="flat"), "order must be one of"),
        (lambda: entropy_profile(torch.ones(4, 4), rank=0), "rank must be"),
        (lambda: entropy_profile(torch.ones(4, 4), samples=0), "samples must be"),
        (lambda: low_rank_profile(torch.ones(4, 2), torch.ones(3, 4)), "Factors must have"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(InvalidInputError, match=message):
        call()
