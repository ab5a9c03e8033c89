import json
import math

import pytest
import torch

from unbraid.circuits import Circuit
from unbraid.nn import accuracy, load_pretrained
from unbraid.quantum import from_qasm3, read_qpy
from unbraid.recipes.datasets import load_dataset
from unbraid.recipes.demo import run_demo
from unbraid.recipes.pipeline import Settings

QUICK = Settings(train_epochs=4, heal_epochs=3, circuit_epochs=2, max_bond=2, depth=2, max_sweeps=8)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    place = tmp_path_factory.mktemp("demo")
    run_demo(place, seed=1, settings=QUICK)
    return place


@pytest.fixture(scope="module")
def report(demo):
    return json.loads((demo / "report.json").read_text())


def test_the_report_has_the_documented_keys(report):
    steps = {"dense", "mpo", "healed", "explicit", "disentangled", "exact", "hybrid", "aer"}
    assert set(report["accuracy"]) == steps
    assert all(0 <= value <= 1 for value in report["accuracy"].values())
    assert set(report["entropies"]) == {"before", "after", "maximum"}
    assert all(len(profile) == 5 for profile in report["entropies"].values())
    assert set(report["parameters"]) == {"dense", "mpo", "disentangled"}
    assert set(report["gates"]) == {"logical", "transpiled"}
    assert {"circuits", "shots", "two_qubit_gates", "depth", "seconds"} <= set(report["cost"])
    assert {"versions", "seeds", "commit", "data", "command"} <= set(report["manifest"])
    assert 0 < report["overlap"] <= report["ceiling"] <= 1
    assert report["samples"]["hybrid"] >= 450
    assert report["samples"]["aer"] >= 50


def test_the_maximum_entropies_are_those_of_the_bonds(report):
    assert report["entropies"]["maximum"] == pytest.approx([math.log(2)] * 5)


def test_every_artefact_is_there_and_consistent(demo, report):
    model = load_pretrained(demo / "model")
    data = load_dataset("digits", seed=1)
    assert accuracy(model, *data.test) == pytest.approx(report["accuracy"]["disentangled"])
    layer = model.get_submodule("hidden")
    for side, circuit in (("input", layer.input_circuit), ("output", layer.output_circuit)):
        again = Circuit.from_qiskit(from_qasm3((demo / f"{side}_circuit.qasm").read_text()))
        torch.testing.assert_close(again.matrix().float(), circuit.matrix(), atol=2e-6, rtol=0)
    assert len(read_qpy(demo / "circuits.qpy")) == 2
    assert "<title>" in (demo / "report.html").read_text()
    assert sum(parameter.numel() for parameter in model.parameters()) == report["parameters"]["disentangled"]


def test_exact_circuits_equal_the_network(report):
    assert report["accuracy"]["exact"] == pytest.approx(report["accuracy"]["disentangled"], abs=1 / 400)


def test_aer_and_torch_err_alike(report):
    errors = report["extra"]["layer_error"]
    assert errors["aer"] == pytest.approx(errors["torch"], rel=0.3)  # both are shot noise of the same size
    assert report["extra"]["aer"]["agreement"] >= 0.9
    assert report["extra"]["aer"]["spent"] == {"circuits": 200, "shots": 2_000_000}
    assert report["cost"]["circuits"] == 200


def test_the_same_seed_gives_the_same_numbers(demo, report, tmp_path):
    run_demo(tmp_path, seed=1, settings=QUICK)
    again = json.loads((tmp_path / "report.json").read_text())
    for key in ("accuracy", "overlap", "ceiling", "entropies", "parameters", "gates", "cost", "curves", "extra"):
        assert again[key] == report[key]
    assert (tmp_path / "input_circuit.qasm").read_text() == (demo / "input_circuit.qasm").read_text()
