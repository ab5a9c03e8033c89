import copy
import itertools
import math

import pytest
import torch
from torch import nn

from unbraid.ground.errors import DidNotConvergeError, FileFormatError, InvalidInputError
from unbraid.nn import Architecture, TensorLayer, accuracy, disentangle_layers, heal, tensorize


def data(n=120, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 8, generator=generator)
    return x, (x[:, 0] * x[:, 1] > 0).long() + 2 * (x[:, 2] > 0).long()


def network(seed=0, dropout=0.2, dtype=torch.float32):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 4))
    return tensorize(model.to(dtype), max_bond=3)


def same(a, b):
    first, second = a.state_dict(), b.state_dict()
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


def test_healing_improves_and_ends_with_the_best_epoch():
    model, train, validation = network(), data(300), data(200, 1)
    before = accuracy(model, *validation)
    history = heal(model, train, validation, epochs=12, lr=0.02)
    assert history.status == "completed"
    assert history.train_loss[-1] < history.train_loss[0]
    assert max(history.validation_accuracy) > before + 0.2
    assert (
        accuracy(model, *validation)
        == history.validation_accuracy[history.best_epoch]
        == max(history.validation_accuracy)
    )
    assert len(history.train_loss) == len(history.validation_loss) == len(history.learning_rate) == 12


def test_one_seed_gives_the_same_weights_whatever_the_global_state():
    models = [network() for _ in range(3)]
    for k, model in enumerate(models):
        torch.manual_seed(k)
        state = torch.get_rng_state()
        heal(model, data(), epochs=2, lr=0.01, seed=int(k == 2))
        assert torch.equal(torch.get_rng_state(), state)
    assert same(models[0], models[1])
    assert not same(models[0], models[2])


class InterruptionError(Exception):
    pass


@pytest.mark.parametrize("stop", [1, 2, 4])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scheduler": "cosine", "weight_decay": 0.01},
        {"optimizer": "soap"},
        {"optimizer": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9), "scheduler": "constant"},
        {"scheduler": lambda o, n: torch.optim.lr_scheduler.CosineAnnealingLR(o, n), "patience": 3},
    ],
)
def test_a_resumed_healing_equals_an_uninterrupted_one(tmp_path, stop, options):
    arguments = {"epochs": 4, "lr": 0.02, "seed": 3, **options}
    whole, broken = network(), network()
    history = heal(whole, data(), data(60, 1), **arguments)

    def interrupt(epoch, _):
        if epoch == stop:
            raise InterruptionError

    with pytest.raises(InterruptionError):
        heal(broken, data(), data(60, 1), **arguments, callbacks=[interrupt], checkpoint_dir=tmp_path)
    resumed = network()
    torch.manual_seed(99)
    again = heal(resumed, data(), data(60, 1), **arguments, checkpoint_dir=tmp_path)
    assert same(resumed, whole)
    assert vars(again) == vars(history)
    finished = network()
    assert vars(heal(finished, data(), data(60, 1), **arguments, checkpoint_dir=tmp_path)) == vars(history)
    assert same(finished, whole)


def test_a_healing_stopped_by_its_callback_can_be_taken_up(tmp_path):
    whole, stopped, resumed = network(), network(), network()
    heal(whole, data(), epochs=4, lr=0.02)
    history = heal(stopped, data(), epochs=4, lr=0.02, callbacks=[lambda n, h: n < 2], checkpoint_dir=tmp_path)
    assert (history.status, len(history.train_loss)) == ("stopped", 2)
    assert heal(resumed, data(), epochs=4, lr=0.02, checkpoint_dir=tmp_path).status == "completed"
    assert same(resumed, whole)


@pytest.mark.parametrize("joint", ["bn+relu", "bn+rotation(0.5)", "weak(0.9)"])
def test_circuits_with_joints_heal_and_resume(joint, tmp_path):
    def built():
        model = disentangle_layers(
            tensorize(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4)), ["0"], sites="qubits"), ["0"], 1, max_sweeps=3
        )
        from unbraid.circuits import Circuit, parse_ansatz
        from unbraid.nn import DisentangledLinear

        ansatz = parse_ansatz(f"2b | {joint} | 2b", 3)
        old = model[0]
        model[0] = DisentangledLinear(Circuit(ansatz, seed=1), old.core, Circuit(ansatz, seed=2, mirrored=True))
        return model

    torch.manual_seed(0)
    start = built()
    whole, resumed = copy.deepcopy(start), copy.deepcopy(start)
    history = heal(whole, data(), epochs=3, lr=0.02)
    assert history.train_loss[-1] < history.train_loss[0]
    with pytest.raises(InterruptionError):
        heal(copy.deepcopy(start), data(), epochs=3, lr=0.02, checkpoint_dir=tmp_path, callbacks=[_raise_at_two])
    heal(resumed, data(), epochs=3, lr=0.02, checkpoint_dir=tmp_path)
    assert same(resumed, whole)


def _raise_at_two(epoch, _):
    if epoch == 2:
        raise InterruptionError


def test_checkpoints_of_other_runs_and_broken_ones_are_refused(tmp_path):
    heal(network(), data(), epochs=1, lr=0.01, checkpoint_dir=tmp_path)
    for model, pair, change in (
        (network(1), data(), {}),
        (network(), data(seed=5), {}),
        (network(), data(), {"lr": 0.02}),
        (network(), data(), {"seed": 1}),
        (network(), data(), {"epochs": 2}),
    ):
        before = copy.deepcopy(model)
        with pytest.raises(InvalidInputError, match="another problem"):
            heal(model, pair, **({"epochs": 1, "lr": 0.01} | change), checkpoint_dir=tmp_path)
        assert same(model, before)
    path = tmp_path / "heal.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(FileFormatError, match="truncated"):
        heal(network(), data(), epochs=1, lr=0.01, checkpoint_dir=tmp_path)


@pytest.mark.parametrize(
    ("one", "other"),
    [("1b", "2*(cnot)+1b+3*(cnot)"), ("cnot+1b", "cnot@odd+1b"), ("1b|relu|1b", "1b+1b"), ("1b", "1b cayley")],
)
def test_a_checkpoint_of_another_declaration_is_refused(tmp_path, one, other):
    def build(text):
        text, _, parametrization = text.partition(" ")
        layer = TensorLayer((2,) * 3, (2, 2), 1, text, norm=False, relu=False)
        return Architecture((layer,)).build(parametrization=parametrization or "exp")

    heal(build(one), data(), epochs=1, lr=0.01, checkpoint_dir=tmp_path)
    assert [tensor.shape for tensor in build(one).state_dict().values()] == [
        tensor.shape for tensor in build(other).state_dict().values()
    ]
    with pytest.raises(InvalidInputError, match="another problem"):
        heal(build(other), data(), epochs=1, lr=0.01, checkpoint_dir=tmp_path)


def test_patience_stops_early_at_the_best_weights():
    model, x, y = network(), *data()
    validation = (x, torch.randint(0, 4, (len(x),), generator=torch.Generator().manual_seed(1)))
    history = heal(model, (x, y), validation, epochs=200, lr=0.02, patience=2)
    assert history.status == "stopped_early"
    assert len(history.train_loss) == history.best_epoch + 3
    assert accuracy(model, *validation) == max(history.validation_accuracy)


def test_teacher_pulls_towards_its_outputs():
    x, _ = data(200)
    teacher = nn.Sequential(nn.Linear(8, 4))
    random_labels = torch.randint(0, 4, (200,), generator=torch.Generator().manual_seed(2))

    def distance(taught):
        model = network(dropout=0.0)
        heal(model, (x, random_labels), epochs=8, lr=0.02, teacher=teacher if taught else None)
        return float(torch.dist(model.eval()(x).softmax(-1), teacher(x).softmax(-1)).detach())

    assert distance(True) < 0.8 * distance(False)
    assert teacher.training


def test_own_loss_and_any_iterable_of_batches():
    x = torch.randn(64, 8)
    target = x @ torch.randn(8, 4)

    def loss(model, batch):
        return (model(batch["x"]) - batch["y"]).square().mean()

    batches = [{"x": a, "y": b} for a, b in zip(x.split(16), target.split(16), strict=True)]
    for form in (batches, tuple(batches), iter(batches)):
        model = network(dropout=0.0)
        history = heal(model, form, batches, epochs=6, lr=0.02, loss=loss)
        assert history.validation_loss[history.best_epoch] == min(history.validation_loss) < history.validation_loss[0]
        assert history.validation_accuracy == []
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data()), batch_size=32, shuffle=True)
    models = [network(), network()]
    for k, model in enumerate(models):
        torch.manual_seed(k)
        heal(model, loader, epochs=2, lr=0.01)
    assert same(*models)


@pytest.mark.parametrize("bad", ["label", "weights", "lr"])
def test_a_loss_that_is_no_number_ends_in_an_error(bad):
    model = network(dropout=0.0)
    if bad == "label":
        with pytest.raises(DidNotConvergeError, match="epoch 0"):
            heal(model, data(), epochs=1, lr=0.1, loss=lambda m, batch: m(batch[0]).sum() * math.nan)
    elif bad == "lr":
        model = nn.Linear(8, 4)
        with pytest.raises(DidNotConvergeError, match="Try a smaller lr"):
            heal(
                model, data(), epochs=5, lr=1e38, scheduler="constant", optimizer=lambda p: torch.optim.SGD(p, lr=1e38)
            )
    else:
        with torch.no_grad():
            model[0].cores[0][0, 0, 0, 0] = math.inf
        with pytest.raises(InvalidInputError, match=r"0\.cores\.0"):
            heal(model, data(), epochs=1, lr=0.1)
    assert model.training


def test_modes_of_all_parts_come_back_also_after_an_error():
    model = network()
    model[1].eval()
    modes = [m.training for m in model.modules()]
    heal(model, data(), data(30), epochs=1, lr=0.01)
    assert [m.training for m in model.modules()] == modes
    with pytest.raises(InterruptionError):
        heal(model, data(), data(30), epochs=2, lr=0.01, callbacks=[_raise_at_two])
    assert [m.training for m in model.modules()] == modes
    accuracy(model, *data(30))
    assert [m.training for m in model.modules()] == modes


def test_float64_models_and_a_last_batch_of_one_row():
    x, y = data(65)
    model = network(dtype=torch.float64)
    assert math.isfinite(heal(model, (x.double(), y), epochs=1, lr=0.01, batch_size=64).train_loss[0])
    assert all(p.dtype == torch.float64 for p in model.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs must be"),
        ({"epochs": 1.5}, "epochs must be"),
        ({"lr": 0.0}, "lr must be"),
        ({"lr": math.nan}, "lr must be"),
        ({"lr": "a"}, "lr must be"),
        ({"epochs": True}, "epochs must be"),
        ({"patience": "a"}, "patience must be"),
        ({"weight_decay": -1}, "weight_decay must be"),
        ({"teacher": 3}, "teacher must be a module; got int"),
        ({"model": nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4)), "batch_size": 1}, "1 normalises over a batch"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"patience": 3}, "patience needs validation_data"),
        ({"scheduler": "warm"}, "scheduler must be"),
        ({"seed": "a"}, "seed must be"),
        ({"train_data": (torch.ones(3, 8), torch.ones(2))}, "as many labels"),
        ({"train_data": (torch.ones(0, 8), torch.ones(0))}, "at least one"),
        ({"train_data": (torch.full((3, 8), math.nan), torch.ones(3).long())}, r"train_data\[0\] must be finite"),
        ({"train_data": []}, "no batches"),
        ({"train_data": 3}, "iterable of batches"),
        ({"teacher": nn.Linear(8, 4), "loss": lambda m, b: 0}, "not both"),
        ({"model": nn.ReLU()}, "no trainable parameters"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message):
    with pytest.raises(InvalidInputError, match=message):
        heal(**({"model": network(), "train_data": data(), "epochs": 1, "lr": 0.1} | options))


def test_accuracy_counts():
    model = nn.Identity()
    x = torch.eye(4)
    assert accuracy(model, x, torch.tensor([0, 1, 2, 0]), batch_size=3) == 0.75
    with pytest.raises(InvalidInputError, match="as many labels as rows"):
        accuracy(model, x, torch.tensor([0]))
    with pytest.raises(InvalidInputError, match="at least one"):
        accuracy(model, x[:0], torch.tensor([]))


def test_a_stopped_or_interrupted_run_is_taken_up_in_the_same_process(tmp_path):
    x, y = torch.randn(60, 4, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 3

    def network():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))

    def run(model, place, callbacks=()):
        return heal(
            model, (x, y), (x, y), epochs=6, lr=1e-2, checkpoint_dir=place, callbacks=callbacks, scheduler=half_the_rate
        )

    def interrupt(epoch, history):
        if epoch == 4 or (epoch == 2 and history.best_epoch == 1):  # also right after a new best epoch
            raise KeyboardInterrupt

    whole = network()
    run(whole, tmp_path / "whole")
    for name, callback in (("stopped", lambda epoch, history: epoch < 3), ("interrupted", interrupt)):
        model = network()
        try:
            run(model, tmp_path / name, [callback])
        except KeyboardInterrupt:
            assert name == "interrupted"
        history = run(model, tmp_path / name)
        assert len(history.train_loss) == 6
        for key, tensor in whole.state_dict().items():
            assert torch.equal(model.state_dict()[key], tensor)


def half_the_rate(optimizer, steps):
    return torch.optim.lr_scheduler.StepLR(optimizer, max(1, steps // 2), 0.5)


def test_a_checkpoint_of_other_batches_or_optimizer_settings_is_refused(tmp_path):
    def batches(flip):
        x = torch.arange(32.0).reshape(8, 4) / 32
        return [(x, (torch.arange(8) + flip) % 2), (x + 1, torch.arange(8) % 2)]

    def run(place, flip=0, rate=0.1):
        torch.manual_seed(0)
        model = nn.Linear(4, 2)
        heal(
            model,
            batches(flip),
            epochs=2,
            lr=0.1,
            checkpoint_dir=place,
            scheduler=None,
            optimizer=lambda parameters: torch.optim.SGD(parameters, lr=rate),
        )

    run(tmp_path)
    run(tmp_path)
    with pytest.raises(InvalidInputError, match="another problem"):
        run(tmp_path, flip=1)
    with pytest.raises(InvalidInputError, match="another problem"):
        run(tmp_path, rate=0.2)


@pytest.mark.parametrize(
    ("x", "y", "word"),
    [
        (torch.rand(6, 5), torch.arange(6) % 2, "cannot run"),
        (torch.rand(6, 4), torch.arange(6), "output for every class"),
        (torch.rand(6, 4), torch.rand(6), "class numbers"),
        (torch.rand(6, 4).numpy(), torch.arange(6).numpy(), "as_tensor"),
    ],
)
def test_data_that_do_not_fit_are_refused_before_training(x, y, word):
    model = nn.Linear(4, 2)
    weight = model.weight.detach().clone()
    with pytest.raises(InvalidInputError, match=word):
        heal(model, (x, y), epochs=1, lr=0.1)
    assert torch.equal(model.weight, weight)


class Attention(nn.Module):
    """Drops by a rate of its own, as attention layers of transformers do."""

    def __init__(self):
        super().__init__()
        self.weights = nn.Linear(8, 8, bias=False)
        self.attention_dropout = 0.5

    def forward(self, x):
        return nn.functional.dropout(self.weights(x), self.attention_dropout, self.training)


@pytest.mark.parametrize("layer", [lambda: nn.Sequential(nn.Linear(8, 8, bias=False), nn.Dropout(0.5)), Attention])
def test_without_dropout_an_exact_student_has_nothing_to_learn(layer):
    model = layer()
    teacher = copy.deepcopy(model).eval()
    x = data()[0]
    lessons = [(part, teacher(part).detach()) for part in x.split(30)]

    def loss(student, lesson):
        assert student.training
        return (student(lesson[0]) - lesson[1]).square().mean()

    exact = heal(copy.deepcopy(model), lessons, epochs=1, lr=1e-9, loss=loss, dropout=False)
    assert exact.train_loss[0] < 1e-12
    noisy = heal(model, lessons, epochs=1, lr=1e-9, loss=loss)
    assert noisy.train_loss[0] > 0.01
    rates = [
        module.p if isinstance(module, nn.Dropout) else module.attention_dropout
        for module in model.modules()
        if isinstance(module, (nn.Dropout, Attention))
    ]
    assert rates == [0.5]


def test_rates_come_back_after_an_error():
    model = network()

    def loss(student, lesson):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        heal(model, [data()], epochs=1, lr=0.1, loss=loss, dropout=False)
    assert [module.p for module in model.modules() if isinstance(module, nn.Dropout)] == [0.2]


def test_a_list_of_batches_is_taken_in_another_order_each_epoch_and_others_as_they_come():
    x, y = data()
    batches = list(zip(x.split(10), y.split(10), strict=True))

    def orders(given, seed=0):
        seen = []

        def loss(model, batch):
            seen.append(next(k for k, each in enumerate(batches) if each[0] is batch[0]))
            return model(batch[0]).square().mean()

        heal(network(), given, epochs=2, lr=1e-3, loss=loss, seed=seed)
        return seen[:12], seen[12:]

    first, second = orders(batches)
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second
    assert first != list(range(12))
    assert orders(batches) == (first, second)
    assert orders(batches, 1) != (first, second)

    class Loader:
        def __len__(self):
            return 12

        def __iter__(self):
            return iter(batches)

    assert orders(Loader()) == (list(range(12)), list(range(12)))


def test_soap_learns_an_ill_conditioned_layer_in_fewer_steps_than_adam():
    generator = torch.Generator().manual_seed(0)
    scales = torch.logspace(0, -2, 24)
    mixed = torch.linalg.qr(torch.randn(24, 24, generator=generator))[0]
    x = torch.randn(512, 24, generator=generator) * scales @ mixed
    target = torch.randn(24, 6, generator=generator)
    losses = {}
    for name, lr in itertools.product(("adam", "soap"), (0.01, 0.03, 0.1)):
        torch.manual_seed(0)
        layer = nn.Linear(24, 6, bias=False)
        history = heal(
            layer,
            (x, torch.zeros(512)),
            epochs=40,
            lr=lr,
            optimizer=name,
            loss=lambda m, b: (m(b[0]) - b[0] @ target).square().mean(),
        )
        losses[name] = min(losses.get(name, math.inf), history.train_loss[-1])
    assert losses["soap"] < 0.05 * losses["adam"]


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(InvalidInputError, match="optimizer must be one of 'adam', 'soap'"):
        heal(network(), data(), epochs=1, lr=0.1, optimizer="sgd")


def test_batches_of_a_list_and_teachers_that_do_not_fit_are_refused():
    model = nn.Linear(4, 3)
    x, y = torch.randn(6, 4), torch.arange(6) % 3
    for data, options, message in (
        ([(x, y), (x, y + 1)], {}, "labels of train_data go from 0 to 3"),
        ([(x, y.float())], {}, "train_data must have class numbers"),
        ([(x[:, :2], y)], {}, "The model cannot run on train_data of shape"),
        ((x, y), {"teacher": nn.Linear(4, 5)}, r"The teacher must put out what the model does, \(2, 3\); got \(2, 5\)"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            heal(model, data, epochs=1, lr=0.1, **options)
    with pytest.raises(InvalidInputError, match="on the meta device"):
        heal(nn.Linear(4, 3, device="meta"), (x, y), epochs=1, lr=0.1, loss=lambda m, batch: m(batch[0]).sum())


def test_a_validation_loss_that_is_no_number_ends_a_healing():
    model, x = nn.Linear(4, 3), torch.randn(6, 4)
    validation = [(x * torch.nan, torch.zeros(6, dtype=torch.long))]
    with pytest.raises(DidNotConvergeError, match="validation loss became nan in epoch 0"):
        heal(model, (x, torch.arange(6) % 3), validation, epochs=2, lr=0.1)


def test_the_linear_schedule_goes_up_for_a_twentieth_and_straight_down():
    rates = []

    class Watched(torch.optim.SGD):
        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    x, y = torch.randn(200, 4), torch.arange(200) % 3
    heal(
        nn.Linear(4, 3), (x, y), epochs=2, lr=1.0, scheduler="linear", batch_size=5, optimizer=lambda p: Watched(p, 1.0)
    )
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert torch.tensor(rates[4:]).diff().tolist() == pytest.approx([-1 / 76] * 75, abs=1e-6)
