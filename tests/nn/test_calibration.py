"""Moments of inputs, against inputs collected by hand."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from unbraid.ground.errors import InvalidInputError
from unbraid.nn import Task, input_moments, sentence_embedding, tensorize
from unbraid.nn.calibration import as_batches, batch_size


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 3, bias=False)
        self.idle = nn.Linear(4, 4)

    def forward(self, x):
        return self.head(self.drop(torch.relu(self.norm(self.first(x)))))


LAYERS = ["first", "head"]


def twin(rows):
    rows = rows.double()
    return rows.mean(0), rows.mT @ rows / len(rows)


@settings(max_examples=15)
@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    seed=st.integers(0, 99),
)
def test_moments_equal_those_of_inputs_collected_by_hand(sizes, dtype, seed):
    torch.manual_seed(seed)
    model, batches = Net().to(dtype), [torch.randn(size, 6, dtype=dtype) for size in sizes]
    found = input_moments(model, batches, targets=LAYERS)
    x = torch.cat(batches)
    evaluated = copy.deepcopy(model).eval()
    with torch.no_grad():
        behind = torch.cat([torch.relu(evaluated.norm(evaluated.first(batch))) for batch in batches])
    for name, rows in (("first", x), ("head", behind)):
        mean, second = twin(rows)
        moments = found[name]
        assert moments.count == sum(sizes)
        assert torch.allclose(moments.mean, mean, atol=1e-12)
        assert torch.allclose(moments.second, second, atol=1e-12)
        assert torch.allclose(moments.covariance, (rows.double() - mean).T.cov(correction=0), atol=1e-12)


def test_the_covariance_survives_a_large_mean():
    x = 1e4 + torch.randn(400, 6, generator=torch.Generator().manual_seed(0))
    covariance = input_moments(nn.Linear(6, 2), x)[""].covariance
    assert torch.allclose(covariance, x.double().T.cov(correction=0), atol=1e-6)


def test_batches_come_in_many_forms():
    model, x = nn.Linear(6, 2), torch.randn(5, 6)
    for batches in (x, [x], [(x, torch.zeros(5))], [[x]], (part for part in x.split(2))):
        assert torch.allclose(input_moments(model, batches)[""].mean, x.double().mean(0))


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(9, 4)
        self.inner = nn.Linear(4, 4)
        self.pooled = nn.Linear(4, 2)

    def forward(self, input_ids, attention_mask):
        return self.pooled(self.inner(self.embedding(input_ids))[:, 0])


def test_positions_that_the_mask_leaves_out_do_not_count():
    model = Tokens()
    ids = torch.randint(9, (3, 5), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
    found = input_moments(model, [{"input_ids": ids, "attention_mask": mask}])  # model(**batch)
    mean, second = twin(model.embedding(ids)[mask.bool()].detach())
    assert found["inner"].count == 9
    assert torch.allclose(found["inner"].mean, mean)
    assert torch.allclose(found["inner"].second, second)
    assert found["pooled"].count == 3  # one row a sample: nothing to leave out


def test_the_model_is_left_as_it_was():
    model = Net()
    model.norm.eval()
    model.head.weight.requires_grad_(False)
    model.first.weight.grad = torch.ones_like(model.first.weight)
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    input_moments(model, torch.randn(4, 6), targets=LAYERS)
    with pytest.raises(InvalidInputError):
        input_moments(model, torch.full((4, 6), torch.nan), targets=LAYERS)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not model.head.weight.requires_grad
    assert torch.equal(model.first.weight.grad, torch.ones_like(model.first.weight))
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("batches", "match"),
    [
        ([], "is empty"),
        (iter(()), "is empty"),
        (None, "list of batches; got NoneType"),
        ({"x": torch.ones(2, 6)}, "list of batches; got dict"),
        ("abc", "list of batches; got str"),
        (torch.ones(0, 6), "Batch 0 of the calibration set has no samples"),
        ([torch.ones(2, 6), torch.ones(0, 6)], "Batch 1 of the calibration set has no samples"),
        ([torch.tensor(1.0)], "no samples"),
        ([3], "must be a tensor, or hold some; got int"),
        ([torch.ones(2, 5)], r"cannot run on a batch of shape \(2, 5\)"),
        ([(torch.ones(2, 5), torch.ones(2))], r"cannot run on a batch of \(shape \(2, 5\), shape \(2,\)\)"),
        ([torch.ones(2, 6, dtype=torch.int64)], "cannot run"),
        ([torch.full((2, 6), torch.nan)], "inputs of layer 'first' hold NaN"),
        ([torch.full((2, 6), torch.inf)], "inputs of layer 'first' hold NaN or infinite"),
    ],
)
def test_calibration_sets_that_do_not_fit_are_refused(batches, match):
    with pytest.raises(InvalidInputError, match=match):
        input_moments(Net(), batches, targets=LAYERS)


def test_an_overflow_within_is_named_by_the_layer_that_sees_it():
    model = Net()
    with torch.no_grad():
        model.first.weight[0] = torch.inf
    with pytest.raises(InvalidInputError, match="inputs of layer 'head' hold NaN"):
        input_moments(model, torch.ones(2, 6), targets=LAYERS)


def test_a_layer_that_sees_nothing_is_named():
    with pytest.raises(InvalidInputError, match="Layer 'idle' saw no inputs"):
        input_moments(Net(), torch.ones(2, 6))
    ids, mask = torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 3)
    with pytest.raises(InvalidInputError, match="Layer 'inner' saw no inputs"):
        input_moments(Tokens(), [{"input_ids": ids, "attention_mask": mask}])


def test_operators_are_calibrated_like_plain_layers():
    model, x = Net(), torch.randn(5, 6)
    changed = tensorize(model, ["head"])
    for name, moments in input_moments(model, x, targets=LAYERS).items():
        assert torch.allclose(moments.second, input_moments(changed, x, targets=LAYERS)[name].second)


def test_tasks_say_what_they_cannot_take():
    x = torch.ones(2, 6)
    with pytest.raises(InvalidInputError, match="kind"):
        Task("scores", lambda model, batch: model(batch))
    with pytest.raises(InvalidInputError, match="Only classes have labels"):
        Task("vectors", lambda model, batch: model(batch), lambda batch: batch)
    for outputs in (lambda model, batch: None, lambda model, batch: batch[:, 0], lambda model, batch: batch.long()):
        with pytest.raises(InvalidInputError, match="Outputs must be a tensor"):
            Task("vectors", outputs).run(Net(), x)
    with pytest.raises(InvalidInputError, match="outputs"):
        Task("vectors", lambda model, batch: batch / 0).run(Net(), x)
    with pytest.raises(InvalidInputError, match=r"cannot run on a batch of \{input_ids: shape"):
        sentence_embedding().run(Net(), {"input_ids": x})


def test_batches_are_counted_by_their_first_tensor():
    assert batch_size(torch.ones(3, 2)) == batch_size(("name", torch.ones(3, 2))) == 3
    assert batch_size({"attention_mask": torch.ones(3, 2)}) == 3
    assert len(as_batches(torch.ones(4, 2).split(3))) == 2


def test_slopes_are_those_of_the_quadratic_form_of_the_loss():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()
    x = torch.randn(4_000, 5, dtype=torch.float64)
    found = input_moments(model, list(x.split(500)), task=Task("vectors", lambda net, batch: net(batch)), slopes=True)
    weight, hidden = model[2].weight.detach(), torch.tanh(model[0](x)).detach()
    back = (1 - hidden**2)[:, None, :] * weight  # (rows, outputs, hidden): slopes of each output
    expected = torch.einsum("noh,nok->hk", back, back) / len(x)
    assert torch.allclose(found["2"].slopes, torch.eye(3, dtype=torch.float64), atol=0.1)
    assert torch.allclose(found["0"].slopes, expected, atol=0.1 * float(expected.abs().max()))
    assert torch.allclose(found["0"].second, input_moments(model, x)["0"].second, atol=1e-12)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_slopes_need_a_way_back():
    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.two(self.one(x).detach())

    with pytest.raises(InvalidInputError, match="No slopes reach layer 'one'"):
        input_moments(Cut(), torch.randn(8, 4), slopes=True)


def test_operators_made_with_slopes_keep_the_loss_better():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 2)).eval()
    with torch.no_grad():
        model[2].weight[:, 8:] *= 0.01  # most of what the first layer puts out hardly counts
    x = torch.randn(512, 16)
    task = Task("vectors", lambda net, batch: net(batch))
    plain, slopes = (input_moments(model, x, targets=["0"], task=task, slopes=each) for each in (False, True))
    errors = [
        float(task.distance(tensorize(model, ["0"], budget=0.4, sites="low-rank", moments=each)(x), model(x)).detach())
        for each in (plain, slopes)
    ]
    assert errors[1] < 0.5 * errors[0]
