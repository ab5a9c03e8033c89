"""Budgets spent by sensitivity, on curves that are known, and what depth tells."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from unbraid.ground.errors import InvalidInputError
from unbraid.nn import (
    LayerSensitivity,
    SensitivityPoint,
    allocate,
    depth_trends,
    describe_depth,
    regression,
    sensitivity,
    tensorize,
)
from unbraid.nn.depth import growth_at


def layer(name, weight, power=1.0, size=1024, sizes=(32, 64, 128, 256, 512)):
    """Growth ``weight * (entries / size) ** -power``: convex and falling."""
    points = [
        SensitivityPoint(2**k, (2**k,), entries, 0.5, weight * (entries / size) ** -power, weight)
        for k, entries in enumerate(sizes)
    ]
    return LayerSensitivity(name, (32, size // 32), size, tuple(points))


CURVES = st.lists(
    st.builds(
        layer,
        st.just(""),
        st.floats(1e-6, 10),
        st.floats(0.1, 3),
    ),
    min_size=1,
    max_size=8,
)


def named(curves):
    return [LayerSensitivity(f"layer{k}", each.shape, each.parameters, each.points) for k, each in enumerate(curves)]


@settings(max_examples=60)
@given(curves=CURVES, budget=st.floats(0.04, 1))
def test_the_budget_is_spent_and_no_worse_than_equally(curves, budget):
    profile = named(curves)
    found = allocate(profile, budget)
    total = sum(each.parameters for each in profile)
    assert found.parameters <= budget * total + 1
    assert found.parameters >= min(budget * total, total) - 1
    assert sorted([*found.options, *found.dense]) == sorted(each.name for each in profile)
    entries = sum(options["budget"] * 1024 for options in found.options.values()) + 1024 * len(found.dense)
    assert entries == pytest.approx(found.parameters, abs=1)
    assert (
        found.growth <= sum(growth_at(each, budget) for each in profile) * (1 + 1e-2) + 1e-12
    )  # between levels a chord lies a little above


@settings(max_examples=30)
@given(curves=CURVES)
def test_more_never_costs_more(curves):
    growths = [allocate(named(curves), budget).growth for budget in (0.05, 0.2, 0.5, 0.9)]
    assert all(after <= before * (1 + 1e-9) for before, after in pairwise(growths))
    everything = allocate(named(curves), 1.0)
    assert everything.options == {}
    assert len(everything.dense) == len(curves)
    assert everything.growth == pytest.approx(0, abs=1e-9)


def test_entries_go_where_they_are_worth_most():
    found = allocate([layer("dear", 1.0), layer("cheap", 1e-4)], 0.3)
    assert found.options["cheap"]["budget"] < 0.1
    dear = 1.0 if "dear" in found.dense else found.options["dear"]["budget"]
    assert dear > 0.4
    free = layer("free", 0.0)
    assert allocate([layer("dear", 1.0), free], 0.3).options["free"] == {"budget": 32 / 1024}


def test_growths_that_rise_or_are_negative_are_borne():
    wild = [
        SensitivityPoint(2**k, (), entries, 0.5, growth, 0.0)
        for k, (entries, growth) in enumerate([(32, 1.0), (64, -0.5), (128, 2.0), (128, 1.9), (2048, 0.1)])
    ]
    found = allocate([LayerSensitivity("wild", (32, 32), 1024, tuple(wild)), layer("tame", 0.1)], 0.2)
    assert found.growth >= 0
    assert math.isfinite(found.growth)
    large = [SensitivityPoint(1, (), 2048, 0.5, 1.0, 1.0)]  # the smallest operator is larger than the weight
    assert allocate([LayerSensitivity("large", (32, 32), 1024, tuple(large))], 1.0).dense == ("large",)


@pytest.mark.parametrize("budget", [0, -1, 1.5, math.nan, True, "0.5"])
def test_budgets_that_are_no_fractions_are_refused(budget):
    with pytest.raises(InvalidInputError, match="must be a fraction"):
        allocate([layer("one", 1.0)], budget)
    with pytest.raises(InvalidInputError, match="must be a fraction"):
        depth_trends([layer("one", 1.0)], budget)


def test_impossible_budgets_are_refused():
    with pytest.raises(InvalidInputError, match="leaves 40 entries, and the smallest operators of the profile have 64"):
        allocate([layer("one", 1.0), layer("two", 1.0)], 0.02)
    with pytest.raises(InvalidInputError, match="no layers"):
        allocate([], 0.5)


@pytest.mark.parametrize("sites", ["auto", "low-rank"])
def test_the_budget_is_kept_by_the_network(sites):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(320, 320), nn.ReLU(), nn.Linear(320, 400), nn.ReLU(), nn.Linear(400, 7))
    x = torch.randn(16, 320)
    profile = sensitivity(model, x, regression(), sites=sites)
    large, most = ("0", "2"), {each.name: each.parameters for each in profile}
    for budget in (0.1, 0.3):
        found = allocate(profile, budget)
        small = tensorize(model, list(found.options), sites=sites, layer_options=found.options)
        entries = {name: small.get_submodule(name).mpo.num_parameters for name in found.options}
        for name, count in entries.items():
            wanted = found.options[name]["budget"] * most[name]
            assert count <= wanted + 1e-6
            rank = 720 if sites == "low-rank" else 0  # entries that one more rank takes
            assert name not in large or count >= min(0.98 * wanted, wanted - rank)
        dense, total = sum(most[name] for name in found.dense), sum(most.values())
        assert 0.95 * budget * total <= sum(entries.values()) + dense <= budget * total


@pytest.mark.parametrize("size", [100, 1000, 29 * 37])
def test_the_smallest_operators_survive_the_fraction(size):
    rows = next(rows for rows in range(int(size**0.5), 0, -1) if size % rows == 0)
    model = nn.Linear(size // rows, rows)
    profile = sensitivity(model, torch.randn(4, size // rows), regression(), sites="low-rank")
    smallest = profile[0].points[0].parameters
    found = allocate(profile, smallest / size * (1 + 1e-9))
    operator = tensorize(model, sites="low-rank", budget=found.options[""]["budget"])
    assert operator.mpo.num_parameters == smallest


# depth


def test_depth_is_read_off_names():
    profile = [layer(f"layers.{k}.mlp.up", 1 / (k + 1)) for k in range(4)]
    profile += [layer(f"layers.{k}.mlp.down", 1.0 + k) for k in range(4)]
    profile += [layer(f"layers.{k}.attn.out", 1.0) for k in (0, 2, 11)]
    profile += [layer("head", 1.0), layer("layers.0.odd", 1.0), layer("layers.1.odd", 1.0), layer("3", 1.0)]
    trends = {trend.kind: trend for trend in depth_trends(profile)}
    assert list(trends) == ["mlp.up", "mlp.down", "attn.out"]
    assert trends["mlp.up"].correlation == pytest.approx(-1)
    assert trends["mlp.up"].depths == (0, 1, 2, 3)
    assert trends["mlp.up"].growth == pytest.approx((4, 2, 4 / 3, 1))
    assert trends["mlp.down"].correlation == pytest.approx(1)
    assert trends["attn.out"].correlation == 0  # no spread, no trend
    assert trends["attn.out"].depths == (0, 2, 11)
    assert describe_depth(list(trends.values())) == (
        "Compression of a layer alone: mlp.up bear more with depth; mlp.down bear less with depth; "
        "1 of 3 kinds show no clear trend."
    )
    assert "no kind shows" in describe_depth([trends["attn.out"]])
    assert "nothing can be told" in describe_depth(depth_trends(profile[-4:]))


@pytest.mark.parametrize(
    ("names", "kinds"),
    [
        (["0.auto_model.encoder.layer.{}.query"], ["query"]),
        (["blocks.{}.mlp.0.fc", "blocks.{}.mlp.2.fc"], ["mlp.0.fc", "mlp.2.fc"]),
        (["layers.{}.experts.0.w1", "layers.{}.experts.1.w1"], ["experts.0.w1", "experts.1.w1"]),
        (["encoder.layers.{}.fc", "decoder.layers.{}.fc"], ["encoder.layers.*.fc", "decoder.layers.*.fc"]),
        (["{}.fc"], ["fc"]),
        (["stage.{}.block.0.fc"], ["block.0.fc"]),
    ],
)
def test_the_number_that_counts_blocks_is_found(names, kinds):
    trends = depth_trends([layer(name.format(k), 1.0 + k) for k in range(5) for name in names])
    assert [trend.kind for trend in trends] == kinds
    assert all(trend.depths == (0, 1, 2, 3, 4) for trend in trends)


def test_growths_between_bonds_are_interpolated():
    curve = layer("one", 2.0, power=1.5)
    for budget in (0.05, 0.1, 0.3):
        assert growth_at(curve, budget) == pytest.approx(2.0 * budget**-1.5)
    assert growth_at(curve, 0.01) == curve.points[0].growth
    assert 0 < growth_at(curve, 0.9) < curve.points[-1].growth
