"""Slices that learn from the same slices of the original."""

import copy

import pytest
import torch
from torch import nn

from unbraid.ground.errors import InvalidInputError
from unbraid.nn import MPOLinear, Task, causal_language_model, classification, heal, sentence_embedding, tensorize
from unbraid.nn.slices import _chained, heal_slices

SLICES = ["blocks.0", "blocks.1", "blocks.2"]


class Block(nn.Module):
    def __init__(self, width, way):
        super().__init__()
        self.way = way
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x, scale=1.0):
        x = x.mul_(0.5) if self.way == "in place" else x
        change = scale * self.down(torch.relu(self.up(self.norm(x))))
        return (x + change, None) if self.way == "tuple" else x + change


class Net(nn.Module):
    def __init__(self, way="", width=12):
        super().__init__()
        self.first = nn.Linear(6, width)
        self.blocks = nn.ModuleList([Block(width, way) for _ in range(3)])
        self.idle = nn.Linear(2, 2)
        self.head = nn.Linear(width, 3)
        self.way, self.scales = way, (0.5, 0.5, 0.5)

    def forward(self, x):
        x = self.first(x)
        for block, scale in zip(self.blocks, self.scales, strict=True):
            x = block(x, scale=scale)
            x = x[0] if isinstance(x, tuple) else x
            x = x.add_(0.1) if self.way == "changed between" else x
        return self.head(x)


def pair(way=""):
    torch.manual_seed(0)
    teacher = Net(way)
    student = tensorize(teacher, ["up", "down"], budget=0.5)
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
    return teacher, student, list(x.split(16))


def state(model):
    return copy.deepcopy(model.state_dict())


@pytest.mark.parametrize("way", ["", "tuple", "in place"])
def test_slices_heal_one_after_the_other(way):
    teacher, student, batches = pair(way)
    before, original, given = state(student), state(teacher), [batch.clone() for batch in batches]
    x = torch.cat(batches)
    with torch.no_grad():
        lost = float(torch.dist(student(x), teacher(x)))
    teacher.blocks[1].eval()
    histories = heal_slices(student, teacher, batches, SLICES, epochs=30, lr=0.01)
    assert list(histories) == SLICES
    for history in histories.values():
        assert history.train_loss[-1] < 0.3 * history.train_loss[0]
        assert len(history.train_loss) == 30
    with torch.no_grad():
        assert float(torch.dist(student(x), teacher(x))) < 0.3 * lost
    after = state(student)
    for name, value in before.items():
        inside = any(name.startswith(f"{each}.") for each in SLICES)
        assert torch.equal(value, after[name]) != inside, name
    assert all(torch.equal(value, original[name]) for name, value in teacher.state_dict().items())
    assert all(torch.equal(one, two) for one, two in zip(batches, given, strict=True))
    assert teacher.training
    assert not teacher.blocks[1].training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in [*student.modules()])
    assert all(parameter.grad is None for parameter in teacher.parameters())


class Counted(nn.Module):
    """Counts how often it runs."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.count = inner, 0

    def forward(self, x):
        self.count += 1
        return self.inner(x)


@pytest.mark.parametrize("way", ["", "tuple", "in place", "changed between", "another argument"])
def test_slices_that_follow_each_other_are_run_alone(way, monkeypatch):
    found = []
    for chained in (True, False):
        teacher, student, batches = pair(way)
        teacher.first, student.first = Counted(teacher.first), Counted(student.first)
        if way == "another argument":
            teacher.scales = student.scales = (0.5, 0.7, 0.7)
        if not chained:
            monkeypatch.setattr("unbraid.nn.slices._chained", lambda *_: set())
        heal_slices(student, teacher, batches, SLICES, epochs=2, lr=0.01)
        found.append(state(student))
        whole = {"changed between": 3, "another argument": 2}.get(way, 1) if chained else 3
        looked = int(chained)  # once, whether they do
        assert teacher.first.count == student.first.count == whole * len(batches) + looked
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_one_slice_leaves_the_others_alone():
    teacher, student, batches = pair()
    before = state(student)
    heal_slices(student, teacher, batches, ["blocks.1"], epochs=2, lr=0.01)
    changed = {name for name, value in student.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith("blocks.1.") for name in changed)


@pytest.mark.parametrize("way", ["", "in place"])
def test_an_exact_copy_stays_where_it_is(way):
    teacher, _, batches = pair(way)
    histories = heal_slices(copy.deepcopy(teacher), teacher, batches, SLICES, epochs=3, lr=1e-4)
    assert all(max(history.train_loss) < 1e-6 for history in histories.values())


def test_the_loss_is_the_share_of_the_variance():
    teacher, student, batches = pair()
    with torch.no_grad():
        inputs = [student.first(batch) for batch in batches]
        outs = torch.cat([student.blocks[0](x, scale=0.5) for x in inputs])
        wanted = torch.cat([teacher.blocks[0](x, scale=0.5) for x in inputs])
    share = float((outs - wanted).square().mean() / wanted.var(0, correction=0).mean())
    history = heal_slices(student, teacher, batches, ["blocks.0"], epochs=1, lr=1e-9)["blocks.0"]
    assert history.train_loss[0] == pytest.approx(share, rel=1e-4)


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    teacher, student, batches = pair()
    start = copy.deepcopy(student)

    def run(model, folder=None, **options):
        return heal_slices(model, teacher, batches, SLICES, epochs=4, lr=0.01, checkpoint_dir=folder, **options)

    whole = run(student)
    passed = []

    def interrupt(epoch, history):
        passed.append(epoch)
        if len(passed) == 6:  # in the second slice
            raise KeyboardInterrupt

    broken = copy.deepcopy(start)
    with pytest.raises(KeyboardInterrupt):
        run(broken, tmp_path, callbacks=[interrupt])
    for model in (broken, copy.deepcopy(start)):  # the same model, then one of a new process on finished slices
        histories = run(model, tmp_path)
        assert {name: history.train_loss for name, history in histories.items()} == {
            name: history.train_loss for name, history in whole.items()
        }
        assert all(torch.equal(value, student.state_dict()[name]) for name, value in model.state_dict().items())


def test_padded_positions_do_not_count():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x, attention_mask):
            return self.inner(x)

    torch.manual_seed(0)
    teacher, student = Tokens(), Tokens()
    x, mask = torch.randn(3, 5, 4), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 0, 0, 0]])
    wild = torch.where(mask[..., None].bool(), x, torch.full_like(x, 1e3))
    losses = [
        heal_slices(
            copy.deepcopy(student),
            teacher,
            [{"x": each, "attention_mask": mask}, {"x": wild, "attention_mask": torch.zeros_like(mask)}],
            ["inner"],
            epochs=3,
            lr=0.01,
        )["inner"].train_loss
        for each in (x, wild)
    ]
    assert losses[0] == pytest.approx(losses[1])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"slices": []}, "must be a list of module names"),
        ({"slices": "blocks.0"}, "must be a list of module names"),
        ({"slices": None}, "must be a list of module names"),
        ({"slices": ["blocks.7"]}, "The model has no module 'blocks.7'"),
        ({"slices": ["idle"]}, "'idle' does not run"),
        ({"batches": []}, "is empty"),
        ({"batches": torch.ones(3, 5)}, "cannot run"),
        ({"teacher": nn.Sequential(nn.Linear(6, 3))}, "The teacher has no module 'blocks.0'"),
        ({"teacher": Net(width=10)}, r"puts out \(16, 12\), that of the teacher \(16, 10\)"),
        ({"epochs": 0}, "epochs"),
    ],
)
def test_slices_that_cannot_learn_are_refused(change, match):
    teacher, student, batches = pair()
    arguments = {"teacher": teacher, "batches": batches, "slices": SLICES, "epochs": 1, "lr": 0.01} | change
    with pytest.raises(InvalidInputError, match=match):
        heal_slices(student, arguments.pop("teacher"), arguments.pop("batches"), arguments.pop("slices"), **arguments)


def test_a_frozen_slice_and_one_without_a_tensor_are_refused():
    teacher, student, batches = pair()
    student.blocks[1].requires_grad_(False)
    with pytest.raises(InvalidInputError, match=r"'blocks\.1' has no trainable parameters"):
        heal_slices(student, teacher, batches, ["blocks.1"], epochs=1, lr=0.01)

    class Odd(nn.Linear):
        def forward(self, x):
            return {"y": super().forward(x)}

    odd = nn.Sequential(Odd(6, 2))
    with pytest.raises(InvalidInputError, match=r"must put out a tensor.*got dict"):
        heal_slices(odd, copy.deepcopy(odd), batches, ["0"], epochs=1, lr=0.01)


def test_layers_of_bert_heal_with_what_they_get_beside_their_input():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
    )
    torch.manual_seed(0)
    teacher = transformers.BertModel(config).eval()
    student = tensorize(teacher, r"encoder\..*", budget=0.5)
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    batches = [{"input_ids": torch.randint(20, (2, 7)), "attention_mask": mask} for _ in range(3)]
    slices = ["encoder.layer.0", "encoder.layer.1"]
    assert _chained(student, slices, batches[0], sentence_embedding()) == {"encoder.layer.1"}
    for task in (sentence_embedding(), None):
        found = heal_slices(copy.deepcopy(student), teacher, batches, slices, epochs=20, lr=3e-3, task=task)
        assert all(history.train_loss[-1] < 0.5 * history.train_loss[0] for history in found.values())


def test_caches_of_a_decoder_do_not_grow():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
    )
    torch.manual_seed(0)
    teacher = transformers.LlamaForCausalLM(config).eval()
    task = Task("classes", lambda model, batch: model(input_ids=batch, use_cache=True).logits)
    batches = [torch.randint(20, (2, 7)) for _ in range(2)]
    slices = ["model.layers.0", "model.layers.1"]
    assert _chained(teacher, slices, batches[0], causal_language_model()) == {"model.layers.1"}
    assert _chained(teacher, slices, batches[0], task) == set()  # a cache is more than its values
    student = copy.deepcopy(teacher)
    found = heal_slices(student, teacher, batches, ["model.layers.1"], epochs=3, lr=1e-5, task=task)
    assert max(found["model.layers.1"].train_loss) < 1e-6


# tasks as losses


def test_a_task_is_a_loss_and_a_distillation():
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Dropout(0.5), nn.Linear(12, 4))
    x, y = torch.randn(64, 6), torch.randint(4, (64,))
    task, batches = classification(), [(x[:32], y[:32]), (x[32:], y[32:])]
    teacher.eval()
    expected = nn.functional.cross_entropy(teacher(x), y)
    assert float(task.loss(teacher, (x, y)).detach()) == pytest.approx(float(expected.detach()))
    distilled = task.distillation(teacher)
    assert float(distilled(teacher, (x, y)).detach()) == pytest.approx(0, abs=1e-6)
    student = tensorize(teacher, max_bond=1)
    p, q = teacher(x).softmax(-1), student(x).softmax(-1)
    divergence = (p * (p / q).log()).sum(-1).mean()
    assert float(distilled(student, (x, y)).detach()) == pytest.approx(float(divergence.detach()), rel=1e-4)

    for loss in (distilled, task.loss):
        pupil = copy.deepcopy(student)
        teacher.train()
        history = heal(pupil, batches, epochs=15, lr=0.02, loss=loss)
        assert teacher.training
        assert history.train_loss[-1] < history.train_loss[0]
        assert isinstance(pupil[0], MPOLinear)
    with pytest.raises(InvalidInputError, match="no labels"):
        Task("classes", lambda model, batch: model(batch)).loss(teacher, x)


def test_distillation_of_slices_adds_their_shares_of_the_variance():
    teacher, student, batches = pair("tuple")
    task = Task("vectors", lambda model, batch: model(batch))
    alone, both = task.distillation(teacher), task.distillation(teacher, SLICES[:2])
    with torch.no_grad():
        for model, batch in ((student, batches[0]), (teacher, batches[1]), (student, batches[2][:1])):
            shares, x, y = [], model.first(batch), teacher.first(batch)
            for one, two in list(zip(model.blocks, teacher.blocks, strict=True))[:2]:
                x, y = one(x, scale=0.5)[0], two(y, scale=0.5)[0]
                scale = y.var(0, correction=0).mean() if len(y) > 1 else y.square().mean()
                shares.append(float((x - y).square().mean() / scale))
            wanted = float(alone(model, batch)) + sum(shares) / 2
            assert float(both(model, batch)) == pytest.approx(wanted, rel=1e-5, abs=1e-9)
            assert (wanted > 1e-3) == (model is student)
    assert not any(module._forward_hooks for model in (student, teacher) for module in model.modules())
    before = float(both(student, batches[3]).detach())
    heal(student, batches, epochs=20, lr=0.01, loss=both)
    assert float(both(student, batches[3]).detach()) < 0.3 * before


def test_distillation_of_slices_leaves_padding_out_and_stays_finite():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
    )
    torch.manual_seed(0)
    teacher = transformers.BertModel(config).eval()
    student = tensorize(teacher, r"encoder\..*", budget=0.5).eval()
    ids = torch.randint(1, 20, (2, 7))
    mask = torch.tensor([[1] * 5 + [0] * 2, [1] * 4 + [0] * 3])
    other = torch.where(mask.bool(), ids, torch.randint(1, 20, (2, 7)))
    distilled = sentence_embedding().distillation(teacher, ["encoder.layer.0", "encoder.layer.1"])
    losses = [float(distilled(student, {"input_ids": each, "attention_mask": mask}).detach()) for each in (ids, other)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for empty in (torch.zeros_like(mask), torch.zeros_like(mask).index_fill(1, torch.tensor([0]), 1)[:1]):
        batch = {"input_ids": ids[: len(empty)], "attention_mask": empty}
        assert torch.isfinite(distilled(student, batch))


def test_slices_that_cannot_be_matched_are_refused():
    teacher, student, batches = pair()
    task = Task("vectors", lambda model, batch: model(batch))
    with pytest.raises(InvalidInputError, match=r"The teacher has no module 'blocks\.7'"):
        task.distillation(teacher, ["blocks.7"])
    with pytest.raises(InvalidInputError, match="list of module names"):
        task.distillation(teacher, "blocks.1")
    with pytest.raises(InvalidInputError, match=r"The model has no module 'blocks\.0'"):
        task.distillation(teacher, SLICES)(nn.Linear(6, 3), batches[0])
    with pytest.raises(InvalidInputError, match="'idle' does not run"):
        task.distillation(teacher, ["idle"])(student, batches[0])
    with pytest.raises(InvalidInputError, match=r"puts out \(16, 12\), that of the teacher \(16, 10\)"):
        task.distillation(Net(width=10), SLICES)(student, batches[0])
