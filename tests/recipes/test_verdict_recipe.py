import dataclasses
import json

import torch

from unbraid.recipes import verdict
from unbraid.recipes.datasets import load_dataset
from unbraid.recipes.models import digits_mlp
from unbraid.recipes.reproduce import RECIPES, reproduce
from unbraid.recipes.verdict import healing, validation_loss


def test_the_recipe_writes_table_and_figure(tmp_path, monkeypatch):
    short = dataclasses.replace(verdict.RECIPE, tasks=lambda request: verdict._tasks(request)[:1])
    monkeypatch.setitem(RECIPES, "verdict", short)
    outcome = reproduce("verdict", tmp_path, quick=True)
    (row,) = json.loads((tmp_path / "verdict.json").read_text())["rows"]
    assert row["name"] == row["verdicts"][0]["name"] == "Gaussian"
    assert row["kind"] == "control"
    assert row["values"] == [row["verdicts"][0]["break_even"]]
    assert len(outcome.sections[0].cells[0]) == len(outcome.sections[0].columns)
    assert (tmp_path / "verdict.png").stat().st_size > 10_000


def test_the_control_keeps_the_singular_values_and_nothing_else():
    weight = torch.randn(6, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    control = verdict._with_random_vectors(weight, 0)
    assert torch.allclose(torch.linalg.svdvals(control), torch.linalg.svdvals(weight))
    cosine = (control * weight).sum() / (control.norm() * weight.norm())
    assert abs(float(cosine)) < 0.6
    assert torch.equal(control, verdict._with_random_vectors(weight, 0))


def test_healing_lowers_the_loss_that_is_the_budget():
    data, model = load_dataset("digits", seed=0), digits_mlp(0)
    loss = validation_loss(data)
    before = loss(model)
    healing(data, 2, 1e-2, 0)(model)
    assert loss(model) < before / 2
