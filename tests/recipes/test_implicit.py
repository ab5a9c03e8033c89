"""Tables 3 to 6 and the study of gradients on tiny settings: lines are what they say, and figures agree."""

import dataclasses
import json

import pytest
import torch

from unbraid.circuits import Circuit, parse_ansatz
from unbraid.nn import COUNTING_RULE, DisentangledLinear, MPOLinear
from unbraid.recipes import gradients, implicit, mlp, networks, table3, tnn
from unbraid.recipes import reproduce as module
from unbraid.recipes.implicit import Line, Study, Training, start_line
from unbraid.recipes.networks import fig5_b
from unbraid.recipes.recipe import Request
from unbraid.recipes.reproduce import reproduce

ROW = {"name", "kind", "parameters", "mean", "std", "seeds", "values", "paper"}
TINY = Training(epochs=1, healing=1, batch_size=100, healing_batch_size=100, sweeps=5)


@pytest.mark.parametrize(
    ("architecture", "parameters"),
    [
        (networks.fig3(), 848),
        (networks.fig5_a(), 1008),
        (networks.fig5_a(1), 854),
        (networks.fig5_b(), 1008),
        (networks.fig5_b(1), 854),
        (networks.fig5_b(1, last_bond=2), 890),
        (networks.fig6(), 36_700),
        (networks.fig6(15), 24_150),
        (table3.own_design(), 912),
    ],
)
def test_declared_networks_have_the_printed_parameters(architecture, parameters):
    assert architecture.num_parameters == parameters
    assert sum(parameter.numel() for parameter in architecture.build().parameters()) == parameters


def test_the_lines_of_table3_have_the_parameters_that_they_must():
    for line in table3.STUDY.lines:
        if line.architecture is not None and line.paper[0] is not None:
            assert line.architecture.num_parameters == line.paper[0], line.name
    counts = {line.name: line.architecture.num_parameters for line in table3.STUDY.lines if line.architecture}
    assert counts[table3.OURS_SMALL] <= 930
    assert counts[table3.OURS] <= 1029
    assert counts[table3.DESIGN] <= 930
    assert counts[table3.DESIGN_CIRCUITS] <= 930
    for line in table3.STUDY.lines:
        if line.module is not None:
            assert sum(parameter.numel() for parameter in line.module().parameters()) <= 1029


@pytest.fixture(scope="module")
def original():
    return networks.fig5_b().build(3)


def test_permutations_stand_where_circuits_stood(original):
    architecture = networks.fig5_b(1).with_circuits({2: ("cnot", ""), 3: ("", "")})
    line = Line("shuffled", "control", architecture, "shuffled", "")
    model = start_line(line, original, 0, 5)
    shuffled = model.layer2
    assert isinstance(shuffled, implicit.Shuffled)
    assert sorted(shuffled.first.tolist()) == list(range(256))
    assert shuffled.first.tolist() != list(range(256))
    assert shuffled.last.tolist() == list(range(64))  # no circuit on that side
    assert isinstance(model.layer3, MPOLinear)
    x = torch.randn(5, 256)
    torch.testing.assert_close(shuffled(x), x[:, shuffled.first] @ shuffled.layer.weight.mT)


def test_frozen_circuits_are_around_the_best_core_and_are_not_trained(original):
    architecture = networks.fig5_b(1).with_circuits({2: ("2b+2b", "2b")})
    line = Line("frozen", "control", architecture, "frozen", "")
    model = start_line(line, original, 0, 5)
    layer = model.layer2
    assert isinstance(layer, DisentangledLinear)
    assert not any(parameter.requires_grad for parameter in layer.output_circuit.parameters())
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert trainable == 854
    # the core is a stationary point: the error is orthogonal to what the core gives
    weight = original.layer2.weight
    weight, found = weight.detach(), layer.weight.detach()
    error = weight - found
    assert abs(float((error * found).sum())) < 1e-3 * float(weight.square().sum())
    assert float(error.square().sum()) < float(weight.square().sum())


def run(name, place, data_dir, monkeypatch, **changes):
    recipe = module.RECIPES[name]
    monkeypatch.setitem(module.RECIPES, name, dataclasses.replace(recipe, **changes))
    reproduce(name, place, quick=True, data_dir=data_dir, seeds=1)
    content = json.loads((place / f"{name}.json").read_text())
    assert all(set(row) >= ROW for row in content["rows"])
    return content, (place / f"{name}.md").read_text()


def test_table3(tmp_path, mnist_dir, monkeypatch):
    settings = table3.Settings(training=TINY, shots=(1_000,), draws=1, center_images=50, aer_images=2, aer_shots=1_000)
    content, text = run("table3", tmp_path, mnist_dir, monkeypatch, quick=settings)
    rows = {row["name"]: row for row in content["rows"]}
    assert list(rows) == [line.name for line in table3.STUDY.lines]
    for name, (parameters, accuracy) in table3.PAPER.items():
        assert rows[name]["parameters"] == parameters
        assert rows[name]["paper"] == {"parameters": parameters, "value": accuracy}
    assert {row["name"] for row in content["rows"] if "quantum" in row} >= {table3.OURS, table3.DESIGN_CIRCUITS}
    ours = rows[table3.OURS]
    assert ours["cnots"] == ours["transpiled"]  # on neighbouring wires no SWAP is needed
    quantum = ours["quantum"][0]
    assert quantum["exact"] == pytest.approx(ours["values"][0], abs=1e-9)
    circuits, shots, gates, _ = quantum["cost"]["1000"]
    assert (circuits, shots) == (8, 4_000)
    assert gates > ours["cnots"][0]
    entropies = ours["entropies"][0]["layer2"]
    assert entropies["core"] == 0
    assert entropies["original"] <= entropies["original_largest"]
    assert rows["only CNOTs"]["parameters"] == rows["random permutations for CNOTs"]["parameters"]
    assert "Are they disentanglers?" in text
    assert COUNTING_RULE in text
    assert (tmp_path / "table3-entropies.png").read_bytes().startswith(b"\x89PNG")


def test_a_changed_declaration_is_trained_again():
    request = Request("table3", table3.QUICK, 1)
    lines = list(table3.STUDY.lines)
    for change in ({"architecture": fig5_b(2)}, {"start": "longer"}, {"noise_shots": 5}, {"origin": fig5_b()}):
        changed = [dataclasses.replace(line, **change) if line.name == table3.OURS else line for line in lines]
        before, after = (
            {task.name: task.depends for task in Study("mnist", 32, tuple(each)).tasks(request, None, None)}
            for each in (lines, changed)
        )
        assert [name for name in before if before[name] != after[name]] == ["seed-0-ours-at-most-1-029"]


def test_gradients_that_vanish_are_told_apart():
    assert gradients._gradients({"values": [1e-11, 3e-11], "mean": 2e-11, "std": 1.4e-11}) == "2.0e-11 ± 1e-11"
    assert gradients._ratios({"outer": [1.0], "inner": [0.0]}) == "-"


def test_table4_counts_without_data(tmp_path, monkeypatch):
    few = Study("mnist", 32, tuple(table3.STUDY.lines[:5]))
    recipe = table3.make_recipe(few, "Table 4", "Table 3")
    monkeypatch.setitem(module.RECIPES, "table4", recipe)
    content, text = run("table4", tmp_path, None, monkeypatch)
    rows = {row["name"]: row for row in content["rows"]}
    assert rows["only CNOTs"]["mean"] == 4 + 7 + 21 + 5 + 3 + 1
    assert rows["CNOTs + 1b"]["parameters"] == rows["CNOTs + 1b"]["paper"]["parameters"] == 22
    assert content["manifest"]["data"] == {}
    assert "Data of seed 0" not in text


def test_gradients(tmp_path, monkeypatch):
    settings = gradients.Settings(depths=(1, 3), images=50, epochs=1)
    content, _ = run("gradients", tmp_path, None, monkeypatch, quick=settings)
    assert len(content["rows"]) == 3 * 3 * 2
    rows = {(row["init"], row["between"], row["depth"]): row for row in content["rows"]}
    # with one row there is nothing to stand between
    assert len({rows["random", between, 1]["mean"] for between in gradients.BETWEEN}) == 1
    assert rows["identity", "nothing", 1]["inner"] == rows["identity", "nothing", 1]["outer"]
    norm = rows["random", "batch norm + ReLU", 3]["parameters"] - rows["random", "ReLU", 3]["parameters"]
    assert norm == 2 * 2 * 128
    assert all(row["mean"] > 0 for row in content["rows"])


def test_gradient_norms_are_those_of_finite_differences():
    data = tnn.load_dataset("digits", seed=0)
    x, y = data.train[0][:40].double(), data.train[1][:40]
    model = gradients.declared(2, "nothing").build(1, "random", dtype=torch.float64)
    norms = gradients.gradient_norms(model, x, y)
    angles = [model.layer1.input_circuit.generators["so2"], model.layer1.output_circuit.generators["so2"]]
    squares = []
    with torch.no_grad():
        for parameter in angles:
            for k in range(len(parameter)):
                losses = []
                for step in (1e-5, -2e-5):
                    parameter[k] += step
                    losses.append(float(torch.nn.functional.cross_entropy(model.train()(x), y)))
                parameter[k] += 1e-5
                squares.append(((losses[0] - losses[1]) / 2e-5) ** 2)
    assert norms["all"] == pytest.approx((sum(squares) / len(squares)) ** 0.5, rel=1e-3)


def test_mlp_step_by_step(tmp_path, mnist_dir, monkeypatch):
    settings = mlp.Settings(epochs=2, healing=1, bond=4, core_bond=2, depth=1, sweeps=5, shots=1_000)
    content, text = run("mlp", tmp_path, mnist_dir, monkeypatch, quick=settings)
    rows = {row["name"]: row for row in content["rows"]}
    assert list(rows) == list(mlp.STEPS)
    dense = 784 * 256 + 256 + 256 * 256 + 256 + 2570
    assert rows[mlp.DENSE]["parameters"] == dense
    assert rows[mlp.HEALED]["parameters"] > rows[mlp.FINAL]["parameters"] > rows[mlp.DENSE]["parameters"] / 100
    fewest, most = 2 * (4 + 3 + 3 + 3), 2 * (5 + 4 + 4 + 4)  # rows of either parity, on 10 and three times 8 wires
    assert fewest <= rows[mlp.FINAL]["cnots"][0] <= most
    assert rows[mlp.DENSE]["lost"] == [0]
    assert content["cost"]["circuits"] == 8
    assert "points lost" in text


def test_the_low_rank_control_is_the_best_of_its_rank():
    dense = mlp.dense_network(0)
    model = mlp._low_rank(dense, 30_000)
    assert 25_000 < sum(parameter.numel() for parameter in model.parameters()) <= 30_000
    first, second = model.fc1
    u, s, vh = torch.linalg.svd(dense.fc1.weight.detach())
    rank = len(first.weight)
    best = u[:, :rank] * s[:rank] @ vh[:rank]
    torch.testing.assert_close(second.weight @ first.weight, best, atol=1e-5, rtol=1e-4)
    x = torch.randn(3, 784)
    torch.testing.assert_close(model.fc1(x), x @ best.mT + dense.fc1.bias, atol=1e-4, rtol=1e-4)


def test_idle_wires_need_not_be_qubits_to_count_gates():
    circuit = Circuit(parse_ansatz("cnot+cnot@even", (32, 32, 3)))
    assert [segment.ansatz.wire_dims for segment in implicit.exported(circuit)] == [(32, 32)]
    assert implicit._transpiled(Circuit(parse_ansatz("2b+2b", (2, 1, 2, 2)))) > 0
    assert implicit.exported(Circuit(parse_ansatz("", (3,)))) == []
