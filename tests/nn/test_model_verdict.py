import copy

import pytest
import torch
from torch import nn

import unbraid as ub
from unbraid.ground.errors import InvalidInputError
from unbraid.nn import DisentangledLinear, MPOLinear

QUICK = {"bodies": (2,), "max_depth": 1, "restarts": 1, "max_sweeps": 20}


def network(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 6)).double()


def test_a_weight_and_an_mpo_of_it_get_one_verdict():
    weight = network()[0].weight
    found = ub.verdict(weight, budget=0.3, **QUICK)
    again = ub.verdict(ub.MPO.from_dense(weight.detach()), budget=0.3, **QUICK)
    assert (found.plain.classical, found.low_rank.classical) == (again.plain.classical, again.low_rank.classical)
    assert found.name == ""


def test_layers_are_judged_one_by_one_and_the_model_stays():
    model = network()
    before = copy.deepcopy(model.state_dict())
    found = ub.verdict(model, budget=0.3, **QUICK)
    assert list(found) == ["0", "2"]
    assert found["0"].to_dict() == {**ub.verdict(model[0].weight, budget=0.3, **QUICK).to_dict(), **_named(found["0"])}
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert list(ub.verdict(model[0], budget=0.3, **QUICK)) == [""]


def _named(verdict):
    return {"name": verdict.name, "paragraph": verdict.paragraph}


def test_a_loss_is_the_budget_and_healing_comes_before_it():
    model = network()
    x = torch.randn(32, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y = model(x).detach()
    seen = []

    def loss(trial):
        return float((trial(x) - y).square().mean().detach())

    def heal(trial):
        seen.append(type(trial[0]))
        with torch.no_grad():
            trial[2].weight.copy_(model[2].weight)
            trial[0].bias.copy_(model[0].bias)

    plain = ub.verdict(model, budget=0.01, targets=["0"], loss=loss, **QUICK)["0"]
    healed = ub.verdict(model, budget=0.01, targets=["0"], loss=loss, heal=heal, **QUICK)["0"]
    assert set(seen) == {MPOLinear, DisentangledLinear}
    assert plain.budget_kind == "loss"
    trial = copy.deepcopy(model)
    trial[0] = MPOLinear(plain.plain.operator, model[0].bias)
    assert loss(trial) == pytest.approx(plain.plain.value)
    assert plain.plain.value <= 0.01
    assert healed.plain.classical == plain.plain.classical  # that healing changed nothing of the layer


def test_a_model_is_taken_up_where_it_stopped(tmp_path):
    model = network()
    first = ub.verdict(model, budget=0.3, checkpoint=tmp_path, **QUICK)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "2"]
    again = ub.verdict(model, budget=0.3, checkpoint=tmp_path, **QUICK)
    assert {name: each.to_dict() for name, each in first.items()} == {
        name: each.to_dict() for name, each in again.items()
    }


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        (torch.ones(4, 4), {"loss": float}, "model"),
        (nn.Linear(4, 4), {"heal": print}, "loss"),
        (nn.Linear(4, 4), {"loss": lambda model: float("nan")}, "finite"),
        (nn.ReLU(), {}, "matches"),
        (nn.Linear(1, 4), {}, "Layer"),
    ],
)
def test_bad_input_is_refused(model, options, words):
    with pytest.raises(InvalidInputError, match=words):
        ub.verdict(model, budget=0.1, **options)
