"""On a GPU everything that trains gives what it gives on the CPU; skipped where there is none."""

import copy
import json
from functools import partial

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from unbraid.circuits import Circuit, brickwall, parse_ansatz
from unbraid.cli.app import app
from unbraid.disentangling import disentangle
from unbraid.ground.devices import moved
from unbraid.natural import NaturalMLP, errors_together, exact_probabilities, train_together
from unbraid.nn import (
    Architecture,
    DisentangledLinear,
    MPOLinear,
    RiemannianAdam,
    TensorLayer,
    accuracy,
    allocate,
    attention_entropies,
    convert_layers,
    disentangle_layers,
    entanglement_profiles,
    fix_gauge,
    heal,
    heal_slices,
    input_moments,
    load_pretrained,
    merge_back,
    quantize,
    save_pretrained,
    scan,
    sensitivity,
    start_from,
    tensorize,
    verdict,
)
from unbraid.nn.kinds import matrix_of
from unbraid.quantum import shot_noise, to_quantum
from unbraid.recipes.compressing import distil
from unbraid.recipes.language import open_language_model, read_text
from unbraid.recipes.reproduce import reproduce
from unbraid.report import evaluate
from unbraid.tensors import MPO

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICE = "cuda"

DECLARED = Architecture(
    (
        TensorLayer((2,) * 4, (2,) * 4, 3, "3*(cnot+2b)", "1b+cnot | bn+relu | 2b"),
        TensorLayer((2,) * 4, (2, 2, 1, 1), 2, "2*(cnot+1b)", norm=False, relu=False),
    )
)
LINEAR = DECLARED.with_circuits({1: ("3*(cnot+2b)", "2*(cnot+1b)"), 2: ("2*(cnot+1b)", "")})


def data(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(4, 16, generator=generator)
    y = torch.arange(256) % 4
    return (centers[y] + 0.5 * torch.randn(256, 16, generator=generator)).to(dtype), y


def on_gpu(part):
    return tuple(tensor.to(DEVICE) for tensor in part)


def gradients(model, x):
    model.zero_grad()
    model(x).square().sum().backward()
    return [parameter.grad.cpu() for parameter in model.parameters()]


@pytest.mark.parametrize("parametrization", ["exp", "cayley", "givens"])
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("rows", [3, 500])
def test_circuits(parametrization, mirrored, rows):
    ansatz = parse_ansatz("2b+cnot+1b | bn+relu | cnot+3b", 6)
    circuit = Circuit(ansatz, "random", 1, mirrored=mirrored, dtype=torch.float64, parametrization=parametrization)
    other = copy.deepcopy(circuit).to(DEVICE)
    x = torch.randn(rows, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(other(x.to(DEVICE)).cpu(), circuit(x))
    torch.testing.assert_close(gradients(other, x.to(DEVICE)), gradients(circuit, x))


def test_linear_circuits_have_their_matrix_and_adjoint():
    circuit = Circuit(brickwall(5, 3), "random", 1, dtype=torch.float64, device=DEVICE)
    x = torch.randn(7, 32, dtype=torch.float64, device=DEVICE)
    torch.testing.assert_close(circuit.adjoint(circuit(x)), x)
    torch.testing.assert_close(circuit(x), x @ circuit.matrix().mT)


@pytest.mark.parametrize("rows", [2, 400])
def test_operators_and_disentangled_layers(rows):
    core = MPO.random((2,) * 6, (2,) * 6, 4, seed=1, dtype=torch.float64)
    layer = DisentangledLinear(
        Circuit(brickwall(6, 2), "random", 2, dtype=torch.float64),
        core,
        Circuit(brickwall(6, 2), "random", 3, mirrored=True, dtype=torch.float64),
    )
    x = torch.randn(rows, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for model in (MPOLinear(core), layer):
        other = copy.deepcopy(model).to(DEVICE)
        torch.testing.assert_close(other(x.to(DEVICE)).cpu(), model(x))
        torch.testing.assert_close(gradients(other, x.to(DEVICE)), gradients(model, x))
    torch.testing.assert_close(layer.to(DEVICE)(x.to(DEVICE)), x.to(DEVICE) @ layer.weight.mT)


@pytest.mark.parametrize("optimizer", ["adam", "riemannian"])
def test_declared_networks_heal(optimizer):
    part = data(torch.float64)
    results = []
    for device in ("cpu", DEVICE):
        model = DECLARED.build(0, dtype=torch.float64).to(device)
        x, y = part[0].to(device), part[1].to(device)
        chosen = None if optimizer == "adam" else partial(RiemannianAdam, model=model, lr=1e-2)
        history = heal(model, (x, y), (x, y), epochs=3, lr=1e-2, optimizer=chosen, seed=0)
        results.append((history.train_loss, accuracy(model, x, y)))
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-6)
    assert results[1][1] == results[0][1]


def test_a_network_goes_through_the_pipeline(tmp_path):
    train = on_gpu(data())
    generator = torch.Generator().manual_seed(1)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    for parameter in model.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    model.to(DEVICE)
    heal(model, train, train, epochs=5, lr=1e-2, seed=0)
    small = tensorize(model, {"0": 4})
    heal(small, train, train, epochs=3, lr=1e-2, seed=0)
    hybrid = disentangle_layers(small, ["0"], 2, max_sweeps=20, seed=0)
    heal(hybrid, train, train, epochs=3, lr=1e-2, seed=0)
    converted, steps = convert_layers(small, {"0": 1}, train, train, epochs=2, lr=1e-2, disentangling={"max_sweeps": 5})
    assert len(steps) == 2
    for network in (small, hybrid, converted):
        assert all(tensor.device.type == DEVICE for tensor in network.state_dict().values())
        torch.testing.assert_close(merge_back(network)(train[0]), network(train[0]), atol=1e-4, rtol=1e-4)
    save_pretrained(hybrid, tmp_path)
    loaded = load_pretrained(tmp_path, copy.deepcopy(model).cpu())
    torch.testing.assert_close(loaded.cpu()(train[0].cpu()), hybrid(train[0]).cpu(), atol=1e-4, rtol=1e-4)
    with shot_noise(hybrid, 1000):
        assert hybrid(train[0]).device.type == DEVICE
    quantum = to_quantum(hybrid, readout="exact")
    torch.testing.assert_close(quantum(train[0]), hybrid(train[0]), atol=1e-4, rtol=1e-4)
    assert evaluate(quantum, train).accuracy == {"exact": accuracy(hybrid, *train)}
    for readout in ("reference", "signs"):
        sampled = to_quantum(hybrid, readout=readout, shots=1_000_000)(train[0])
        expected = hybrid(train[0]).detach()
        assert float((sampled.detach() - expected).norm() / expected.norm()) < 0.1


def test_declared_networks_start_from_trained_ones():
    original = LINEAR.with_circuits({}).build(0).to(DEVICE)
    started = start_from(original, LINEAR, max_sweeps=5)
    assert all(tensor.device.type == DEVICE for tensor in started.state_dict().values())
    x = data()[0]
    expected = start_from(original.cpu(), LINEAR, max_sweeps=5)
    torch.testing.assert_close(started.cpu().eval()(x), expected.eval()(x), atol=1e-3, rtol=1e-3)


def test_disentangle():
    mpo = MPO.random((2,) * 4, (2,) * 4, 4, seed=1)
    expected = disentangle(mpo, brickwall(4, 1), core_bond=2, max_sweeps=10, seed=0)
    found = disentangle(mpo.to(DEVICE), brickwall(4, 1), core_bond=2, max_sweeps=10, seed=0)
    assert found.overlap == pytest.approx(expected.overlap, abs=1e-5)


def language(data_dir, name, device):
    pytest.importorskip("transformers")
    model = open_language_model(data_dir / "models" / name, device)
    model.model.double()
    return model


@pytest.mark.parametrize("name", ["stories260k", "all-MiniLM-L6-v2"])
def test_language_models_are_compressed_and_healed(name, language_data, tmp_path):
    blocks, results = r"(encoder\.layer|model\.layers)\..*", []
    for device in ("cpu", DEVICE):
        given = language(language_data, name, device)
        model, task = given.model, given.task
        batches = given.batches(given.samples(read_text(language_data / "text/stories260k/train.txt"), 24, 16), 16, 8)
        moments = input_moments(model, batches, targets=blocks, task=task, slopes=True, seed=0)
        profile = sensitivity(model, batches, task, targets=blocks, bonds=(2, 4), moments=moments, seed=0)
        options = allocate(profile, 0.6).options
        small = tensorize(model, list(options), sites="best", layer_options=options, moments=moments)
        names = [each for each, _ in model.named_modules() if each.rpartition(".")[2].isdecimal()]
        histories = heal_slices(small, model, batches, names, epochs=2, lr=1e-3, task=task, seed=0)
        history = distil(small, model, task, batches, batches, epochs=2, lr=1e-3, seed=0, slices=names)
        lean = fix_gauge(small)
        integers = quantize(small, blocks, bits=8)
        assert all(tensor.device.type == device for each in (lean, integers) for tensor in each.state_dict().values())
        with torch.no_grad():
            outputs = [task.run(each, batches[0]).cpu() for each in (small, lean, integers)]
        growths = [point.growth for layer in profile for point in layer.points]
        losses = [loss for each in (*histories.values(), history) for loss in each.train_loss]
        results.append((growths, losses, outputs))
        save_pretrained(lean, tmp_path / device)
        again = load_pretrained(tmp_path / device)
        with torch.no_grad():
            torch.testing.assert_close(task.run(again, moved(batches[0], "cpu")), outputs[1])
    (growths, losses, outputs), (their_growths, their_losses, their_outputs) = results
    assert their_growths == pytest.approx(growths, rel=1e-3, abs=1e-9)  # factors are of single precision
    assert their_losses == pytest.approx(losses, rel=1e-2)
    for mine, theirs in zip(outputs, their_outputs, strict=True):
        assert float((mine - theirs).norm() / mine.norm()) < 0.05


def test_scans(language_data):
    given = language(language_data, "stories260k", DEVICE)
    samples = given.samples(read_text(language_data / "text/stories260k/train.txt"), 8, 16)
    batches = given.batches(samples, 16, 4)
    found = scan(given.model, batches, targets=r"model\.layers\..*", task=given.task)
    same = scan(copy.deepcopy(given.model).cpu(), moved(batches, "cpu"), targets=r"model\.layers\..*", task=given.task)
    for mine, theirs in zip(found, same, strict=True):
        assert [rank.bond_dims for rank in mine.ranks] == [rank.bond_dims for rank in theirs.ranks]
        assert mine.entropies == pytest.approx(theirs.entropies, rel=1e-4)
        growths = [[point.growth for point in each.sensitivity] for each in (mine, theirs)]
        assert growths[0] == pytest.approx(growths[1], rel=1e-3, abs=1e-9)
    assert all(each.profile.entropies for each in entanglement_profiles(given.model, r"model\.layers\..*"))
    given.model.set_attn_implementation("eager")
    assert attention_entropies(given.model, moved(samples[:2], DEVICE), lengths=(8, 16))


def test_a_verdict():
    torch.manual_seed(0)
    layer = nn.Linear(8, 8)
    (mine,) = verdict(copy.deepcopy(layer).to(DEVICE), budget=0.3, max_depth=1, seed=0).values()
    (theirs,) = verdict(layer, budget=0.3, max_depth=1, seed=0).values()
    assert (mine.plain.classical, mine.low_rank.classical) == (theirs.plain.classical, theirs.low_rank.classical)
    assert matrix_of(layer).device.type == "cpu"


@pytest.mark.parametrize("name", ["stories", "minilm"])
def test_recipes_with_a_device(name, language_data, tmp_path):
    pytest.importorskip("transformers")
    pytest.importorskip("matplotlib")
    outcome = reproduce(name, tmp_path, quick=True, data_dir=language_data, device=DEVICE)
    assert len(outcome.rows) > 1
    assert torch.cuda.get_device_name() in (tmp_path / f"{name}.md").read_text()


def test_verbs_with_a_device(language_data, tmp_path):
    pytest.importorskip("transformers")
    model, text = language_data / "models/all-MiniLM-L6-v2", language_data / "text/wikitext2-valid.txt"
    given = ("--text", text, "--targets", r"encoder\.layer\..*", "--device", DEVICE, "--quiet")
    said = ("--budget", 0.5, "--aware", "--fix-gauge", "--slices", r"encoder\.layer\.\d+", "--epochs", 2)
    call("scan", model, *given, "--budget", 0.5, "--entanglement", "--out", tmp_path / "scan")
    call("compress", model, *given, *said, "--out", tmp_path / "mpo")
    for verb in ("scan", "mpo"):
        manifest = json.loads((tmp_path / verb / "report.json").read_text())["manifest"]
        assert manifest["machine"]["device"] == torch.cuda.get_device_name()
    assert load_pretrained(tmp_path / "mpo/model")


def call(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("options", [{}, {"bits": 2}, {"binary": True, "shots": 3}])
def test_natural_networks(options):
    x, y = torch.randn(96, 12), torch.arange(96) % 4
    settings = [{"a": 0.0}, {"a": 0.7}] + ([] if "bits" in options else [{"a": 0.5, "g": 0.9}])
    here = [NaturalMLP((12, 8, 6, 4), **each, **options, seed=0).double() for each in settings]
    there = [network.to(DEVICE) for network in copy.deepcopy(here)]  # outcomes are drawn on the CPU
    run = {"epochs": 2, "lr": 1e-2, "batch_size": 32, "seed": 0}
    train_together(here, (x.double(), y), **run)
    train_together(there, (x.double().to(DEVICE), y.to(DEVICE)), **run)
    for mine, theirs in zip(here, there, strict=True):
        for one, other in zip(mine.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(other.cpu(), one, rtol=1e-6, atol=1e-8)
    errors = errors_together(there, x.double().to(DEVICE), y.to(DEVICE))
    torch.testing.assert_close(errors.cpu(), errors_together(here, x.double(), y))
    alone = there[1](x.double().to(DEVICE))
    assert torch.isfinite(alone).all()
    if not options:
        small = NaturalMLP((12, 3, 2, 4), a=0.6, seed=1).double()
        law = exact_probabilities(copy.deepcopy(small).to(DEVICE), x.double().to(DEVICE))
        torch.testing.assert_close(law.cpu(), exact_probabilities(small, x.double()))
