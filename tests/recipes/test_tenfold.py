"""The compressed dense network on tiny settings: sizes are those asked for, and low rank is what it says."""

import dataclasses
import json

import pytest
import torch

from unbraid.recipes import reproduce as module
from unbraid.recipes import tenfold
from unbraid.recipes.compressing import count
from unbraid.recipes.models import relu_network
from unbraid.recipes.reproduce import reproduce

TINY = tenfold.Settings(
    hidden=(64, 48, 64),
    epochs=3,
    lr=3e-3,
    batch_size=32,
    factors=(5, 8),
    healing_lr=(2e-3, 4e-3),
    healing_batch_size=32,
    calibration=200,
    scanned=96,
    bonds=(1, 4, 16),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory, mnist_dir):
    place = tmp_path_factory.mktemp("tenfold")
    patch = pytest.MonkeyPatch()
    patch.setitem(module.RECIPES, "tenfold", dataclasses.replace(tenfold.RECIPE, quick=TINY))
    reproduce("tenfold", place, quick=True, data_dir=mnist_dir, seeds=1)
    patch.undo()
    assert (place / "tenfold.png").read_bytes().startswith(b"\x89PNG")
    return json.loads((place / "tenfold.json").read_text()), (place / "tenfold.md").read_text()


def test_networks_have_the_sizes_asked_for(made):
    rows = {row["name"]: row for row in made[0]["rows"]}
    assert list(rows) == ["dense", *(f"{way}, {factor}x" for factor in (5, 8) for way in tenfold.WAYS)]
    dense = rows.pop("dense")
    assert dense["parameters"] == 784 * 64 + 64 + 64 * 48 + 48 + 48 * 64 + 64 + 650
    assert (dense["lost"], dense["before"]) == ([0], None)
    for row in rows.values():
        assert 0.8 * dense["parameters"] < row["factor"] * row["parameters"] <= dense["parameters"]
        assert row["bytes"] == 4 * row["parameters"]
        assert row["parameters"] < row["integers"]["bytes"] < 0.5 * row["bytes"]


def test_healing_helps_and_is_timed(made):
    content, text = made
    rows = {row["name"]: row for row in content["rows"]}
    dense = rows["dense"]
    assert min(dense["values"]) > 0.9
    assert max(rows["ours, 5x"]["lost"]) <= 0.1
    for row in content["rows"][1:]:
        for clock in ("wall", "cpu"):
            shares = [each[clock] / first[clock] for each, first in zip(row["seconds"], dense["seconds"], strict=True)]
            assert [each[clock] for each in row["share"]] == pytest.approx(shares)
    plain = rows["plain operators, 8x"]
    assert plain["mean"] > sum(plain["before"]) / 2
    assert "## Stored as integers" in text


def test_low_rank_is_the_truncated_svd():
    dense = relu_network((784, 64, 48, 64, 10), 0, "tenfold")
    model = tenfold._compressed(dense, tenfold.LOW_RANK, 5, {}, [])
    assert count(model) <= count(dense) / 5
    rank = max(model.fc1.mpo.bond_dims)
    u, s, vh = torch.linalg.svd(dense.fc1.weight.detach(), full_matrices=False)
    torch.testing.assert_close(model.fc1.weight, u[:, :rank] * s[:rank] @ vh[:rank], atol=1e-5, rtol=1e-4)
