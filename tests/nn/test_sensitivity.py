"""Estimated growths of the loss against exact quadratic forms, and against layers replaced one at a time."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from unbraid.ground.errors import InvalidInputError
from unbraid.nn import (
    SensitivityPoint,
    Task,
    allocate,
    classification,
    heal,
    input_moments,
    regression,
    scan,
    sensitivity,
    tensorize,
)
from unbraid.recipes.datasets import load_dataset

WIDE = torch.float64


@pytest.fixture(scope="module")
def digits():
    """A trained network with its training data."""
    x, y = load_dataset("digits", seed=0).train
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Linear(64, 48), nn.ReLU(inplace=True), nn.Linear(48, 32), nn.ReLU(inplace=True), nn.Linear(32, 10)]
    model = nn.Sequential(*layers)
    heal(model, (x, y), epochs=12, lr=5e-3, scheduler="cosine")
    return model.eval(), x, y


def batches(x, y, size=64):
    return list(zip(x.split(size), y.split(size), strict=True))


def rank_correlation(a, b):
    ranks = torch.stack([torch.tensor(each).argsort().argsort().double() for each in (a, b)])
    return float(torch.corrcoef(ranks)[0, 1])


def truncation(weight, rank):
    u, s, vh = torch.linalg.svd(weight.detach(), full_matrices=False)
    assert s[rank:].norm() > 0.1 * s.norm()
    return (u[:, :rank] * s[:rank]) @ vh[:rank] - weight.detach()


# the estimate of second order


def test_vectors_agree_with_the_quadratic_form():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4)).double()
    x = torch.randn(4, 8, dtype=WIDE)
    found = sensitivity(model, [x.repeat(500, 1)] * 4, regression(), bonds=[1, 2], sites="low-rank")
    with torch.no_grad():
        for layer, inputs, behind in zip(found, (x, model[0](x)), (model[1].weight, torch.eye(4)), strict=True):
            for point in layer.points:
                change = truncation(model.get_submodule(layer.name).weight, point.max_bond)
                exact = (inputs @ change.mT @ behind.to(WIDE).mT).square().sum(1).mean() / 2
                assert point.second_order == pytest.approx(float(exact), rel=0.1)  # of 8000 probes
                assert point.growth == pytest.approx(float(exact), rel=0.2)  # a linear model has no other order


@pytest.mark.parametrize("labelled", [True, False])
def test_classes_agree_with_the_fisher_form(labelled):
    torch.manual_seed(1)
    model, x = nn.Linear(8, 5).double(), torch.randn(4, 8, dtype=WIDE)
    task = Task("classes", lambda model, batch: model(batch[0]), (lambda batch: batch[1]) if labelled else None)
    points = sensitivity(
        model, [(x.repeat(2000, 1), torch.zeros(8000, dtype=torch.long))], task, bonds=[1, 2], sites="low-rank"
    )[0].points
    p = model(x).softmax(-1).detach()
    fisher = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    for point in points:
        steps = x @ truncation(model.weight, point.max_bond).mT
        exact = torch.einsum("ni,nij,nj->n", steps, fisher, steps).mean() / 2
        assert point.second_order == pytest.approx(float(exact), rel=0.1)


def test_positions_are_averaged_over():
    torch.manual_seed(2)
    model = nn.Linear(8, 4, bias=False)
    x = torch.randn(4, 3, 8)
    point = sensitivity(model, [x.repeat(1000, 1, 1)], regression(), bonds=[1], sites="low-rank")[0].points[0]
    exact = (x @ truncation(model.weight, 1).mT).square().sum(-1).mean() / 2
    assert point.second_order == pytest.approx(float(exact), rel=0.1)


# the whole estimate


@pytest.mark.parametrize(
    ("sites", "aware", "least"), [("auto", False, 0.95), ("low-rank", False, 0.95), ("qubits", True, 0.95)]
)
def test_growths_rank_layers_and_bonds_as_brute_force_does(digits, sites, aware, least):
    model, x, y = digits
    task, sample = classification(), batches(x[:256], y[:256])
    moments = input_moments(model, sample) if aware else None
    found = sensitivity(model, sample, task, sites=sites, moments=moments)
    truth, estimates = [], []
    with torch.no_grad():
        base = task.loss(model, (x, y))
        for layer in found:
            for point in layer.points:
                one = tensorize(model, [layer.name], max_bond=point.max_bond, sites=sites, moments=moments)
                truth.append(float(task.loss(one, (x, y)) - base))
                estimates.append(point.growth)
    assert len(truth) >= 12
    assert rank_correlation(truth, estimates) >= least


def test_points_tell_what_the_operators_are(digits):
    model, x, y = digits
    for layer in sensitivity(model, batches(x[:64], y[:64]), classification()):
        weight = model.get_submodule(layer.name).weight.detach()
        assert layer.shape == tuple(weight.shape)
        assert layer.parameters == weight.numel()
        assert [point.max_bond for point in layer.points] == [2**k for k in range(len(layer.points))]
        assert all(point.parameters < weight.numel() for point in layer.points)
        for point in layer.points:
            operator = tensorize(model, [layer.name], max_bond=point.max_bond).get_submodule(layer.name)
            assert point.bond_dims == operator.mpo.bond_dims
            assert point.parameters == operator.mpo.num_parameters
            dense = operator.weight.detach()
            assert point.rel_error == pytest.approx(float(torch.dist(dense, weight) / weight.norm()), rel=0.05)
        assert layer.to_dict()["points"][0]["max_bond"] == 1


def test_the_seed_decides_and_the_model_is_left_as_it_was(digits):
    model, x, y = copy.deepcopy(digits[0]), *digits[1:]
    model.insert(1, nn.BatchNorm1d(48).eval())
    model.train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    model[2].register_forward_hook(lambda *_: None)
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    state = torch.get_rng_state()
    sample = batches(x[:96], y[:96])
    one, same, other = (sensitivity(model, sample, classification(), bonds=[1, 4], seed=seed) for seed in (0, 0, 1))
    assert one == same != other
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == [False] + [True] * 7
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert [len(module._forward_hooks) for module in model.modules()] == [0, 0, 0, 1, 0, 0, 0]


def test_a_failure_leaves_no_hooks_behind(digits):
    model, x, y = digits
    with pytest.raises(InvalidInputError, match="cannot run"):
        sensitivity(model, [(x[:8, :5], y[:8])], classification())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_fewer_samples_than_layers_will_do(digits):
    model, x, y = digits
    for count in (1, 2):
        found = sensitivity(model, [(x[:count], y[:count])], classification(), bonds=[2])
        assert len(found) == 3
        assert all(isinstance(layer.points[0], SensitivityPoint) for layer in found)


class Twice(nn.Module):
    """One layer applied two times."""

    def __init__(self, width=6):
        super().__init__()
        self.inner = nn.Linear(width, width, bias=False)

    def forward(self, x):
        return self.inner(self.inner(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_dtype_does_not_matter(digits, dtype):
    model, x, y = copy.deepcopy(digits[0]).bfloat16().float(), *digits[1:]
    expected = sensitivity(model, [(x[:64].bfloat16().float(), y[:64])], classification())
    found = sensitivity(model.to(dtype), [(x[:64].bfloat16().to(dtype), y[:64])], classification())
    for one, two in zip(found, expected, strict=True):
        assert [p.growth for p in one.points] == pytest.approx([p.growth for p in two.points], rel=0.05)


def test_both_uses_of_a_layer_count():
    torch.manual_seed(0)
    model, x = Twice().double(), torch.randn(4, 6, dtype=WIDE)
    point = sensitivity(model, [x.repeat(2000, 1)], regression(), bonds=[3], sites="low-rank")[0].points[0]
    weight = model.inner.weight.detach()
    change = truncation(weight, 3)
    exact = (x @ (change @ weight + weight @ change).mT).square().sum(1).mean() / 2
    assert point.second_order == pytest.approx(float(exact), rel=0.1)


class Mixed(nn.Module):
    """Layers that an estimate cannot reach."""

    def __init__(self, way):
        super().__init__()
        self.way, self.inner, self.idle = way, nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        if self.way == "mixed":
            return x + self.inner(x.mean(0, keepdim=True))
        if self.way == "positions first":
            return self.inner(x[:, None].expand(-1, 3, -1).transpose(0, 1)).mean(0)
        if self.way == "no gradients":
            with torch.no_grad():
                return x + self.inner(x)
        if self.way == "in place":
            x = x.clone()
            return x.add_(self.inner(x))
        return x + self.inner(x)


@pytest.mark.parametrize(
    ("way", "match"),
    [
        ("mixed", r"'inner' sees inputs of shape \(1, 6\) from 4 samples.*told apart"),
        ("positions first", r"'inner' sees inputs of shape \(3, 4, 6\)"),
        ("no gradients", "'inner' runs without gradients"),
        ("in place", "'inner' is changed in place"),
        ("", "'idle' saw no inputs"),
    ],
)
def test_layers_that_no_estimate_reaches_are_named(way, match):
    with pytest.raises(InvalidInputError, match=match):
        sensitivity(Mixed(way), torch.randn(4, 6), regression())


def test_batches_may_hold_more_than_tensors_of_samples():
    torch.manual_seed(0)
    model, x = nn.Linear(16, 16), torch.randn(8, 16)
    labels = x.argmax(1)
    task = Task("classes", lambda model, batch: model(batch["x"]) * batch["heat"], lambda batch: batch["y"])
    batch = {"x": x, "y": labels, "name": "first", "heat": torch.tensor(1.0), "none": None, "pair": (x, [1, 2])}
    plain = sensitivity(model, [(x, labels)], classification())
    assert plain[0].points[0].growth > 0
    assert sensitivity(model, [batch], task) == plain


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"bonds": []}, "bonds must be positive integers"),
        ({"bonds": [0]}, "bonds must be positive integers"),
        ({"bonds": [1.5]}, "bonds must be positive integers"),
        ({"sites": "best"}, "sites='best' is of tensorize alone"),
        ({"sites": 5}, "sites must be"),
        ({"sites": ((2, 2), (2,))}, "out_dims must have a product"),
        ({"sites": ((2.5,), (6,))}, "out_dims must be positive integers"),
        ({"targets": "nothing"}, "matches the target"),
        ({"batches": [(torch.ones(4, 6), torch.zeros(3, dtype=torch.long))]}, r"Labels must have the shape \(4,\)"),
        ({"task": Task("vectors", lambda model, batch: model(batch[0])[:2])}, "as many rows"),
        ({"task": Task("vectors", lambda model, batch: batch[0])}, "do not depend on the layers|saw no inputs"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(change, match):
    arguments = {"batches": [(torch.ones(4, 6), torch.zeros(4, dtype=torch.long))], "task": classification()} | change
    with pytest.raises(InvalidInputError, match=match):
        sensitivity(nn.Linear(6, 5), **arguments)


def test_conv1d_of_transformers_is_the_linear_layer_of_the_same_matrix():
    utils = pytest.importorskip("transformers.pytorch_utils")
    torch.manual_seed(0)
    conv, linear = utils.Conv1D(12, 16), nn.Linear(16, 12)
    conv.weight.data = linear.weight.detach().mT.contiguous()
    conv.bias.data = linear.bias.detach()
    x = torch.randn(16, 16)
    moments = {"": input_moments(linear, x)[""]}
    for given in (None, moments):
        one, two = (sensitivity(model, x, regression(), moments=given)[0] for model in (conv, linear))
        assert [point.growth for point in one.points] == pytest.approx([point.growth for point in two.points], rel=1e-4)


# scans


def test_scans_with_a_task_carry_sensitivities(digits):
    model, x, y = digits
    sample = batches(x[:64], y[:64])
    plain, full = scan(model), scan(model, sample, task=classification(), bonds=[1, 2])
    assert all(layer.sensitivity == () for layer in plain)
    assert all(layer.ranks[0].output_error is None for layer in full)
    expected = sensitivity(model, sample, classification(), bonds=[1, 2], sites="qubits")
    assert [layer.sensitivity for layer in full] == [layer.points for layer in expected]
    assert [(layer.name, layer.entropies, layer.ranks) for layer in plain] == [
        (layer.name, layer.entropies, layer.ranks) for layer in full
    ]
    with pytest.raises(InvalidInputError, match="needs sample_inputs"):
        scan(model, task=classification())


def test_scans_report_output_errors_from_samples_or_moments(digits):
    model, x, _ = digits
    given = input_moments(model, x[:64])
    assert scan(model, x[:64]) == scan(model, moments=given)
    assert all(rank.output_error is not None for rank in scan(model, moments=given)[0].ranks)


def test_growths_are_finite_or_refused():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    task = Task("classes", lambda m, batch: m(batch[0]), lambda batch: batch[1])
    x, y = torch.randn(16, 8), torch.arange(16) % 3
    for labels, message in (
        (y + 3, "scores for the classes 0 to 2; labels go from 3 to 5"),
        (y.float(), "Labels must be class numbers, a tensor of integers; got torch.float32"),
        (None, "Labels must be class numbers, a tensor of integers; got NoneType"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            sensitivity(model, [(x, labels)], task, bonds=(1, 2))
    for bonds in (4, (), "abc", (True,)):
        with pytest.raises(InvalidInputError, match=r"bonds must be positive integers.*Try"):
            sensitivity(model, [(x, y)], task, bonds=bonds)
    profile = sensitivity(model, [(x, y)], task, bonds=(1, 2))
    broken = replace(profile[0], points=(replace(profile[0].points[0], growth=float("nan")),))
    with pytest.raises(InvalidInputError, match="growths of layer '0' in the profile are no finite numbers"):
        allocate([broken], 0.5)
    with pytest.raises(InvalidInputError, match="budget must be a fraction"):
        allocate(profile, None)
