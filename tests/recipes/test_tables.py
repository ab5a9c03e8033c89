"""table1 and fig4 on tiny settings: every documented key is there, and the figures agree with each other."""

import dataclasses
import json

import pytest

from unbraid.recipes import execution, fig4, routes, table1, table2, tnn
from unbraid.recipes import reproduce as module
from unbraid.recipes.reproduce import reproduce

ROW = {"name", "kind", "parameters", "mean", "std", "seeds", "values", "paper"}


@pytest.fixture(scope="module")
def tiny():
    """Both recipes with settings that take seconds, and one epoch of training."""
    patch = pytest.MonkeyPatch()
    patch.setattr(tnn, "MNIST_TRAINING", tnn.Training(epochs=1))
    patch.setattr(tnn, "DIGITS_TRAINING", tnn.Training(epochs=2, lr=1e-2))
    small = dataclasses.replace(
        table1.RECIPE.quick, gate_bodies=(2, 3), gates=2, bodies=(2, 6), starts=1, restarts=1, max_sweeps=10
    )
    patch.setitem(module.RECIPES, "table1", dataclasses.replace(table1.RECIPE, quick=small))
    curves = dataclasses.replace(
        fig4.QUICK,
        depths=(1, 2),
        deepest=(2, 1, 1, 1, 1, 1),
        ways=tuple(
            dataclasses.replace(way, restarts=1, repeats=1, max_sweeps=5 if way.core == "fixed" else 10)
            for way in fig4.QUICK.ways
        ),
        sources=fig4.SOURCES,
        searched=1,
    )
    patch.setitem(module.RECIPES, "fig4", dataclasses.replace(fig4.RECIPE, quick=curves))
    yield
    patch.undo()


def made(name, place, data_dir, seeds):
    sections = reproduce(name, place, quick=True, data_dir=data_dir, seeds=seeds).sections
    content = json.loads((place / f"{name}.json").read_text())
    assert all(set(row) >= ROW for row in content["rows"])
    assert all({"parameters", "value"} <= set(row["paper"]) for row in content["rows"])
    assert (place / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    return content, sections, (place / f"{name}.md").read_text()


@pytest.fixture(scope="module")
def first_table(tiny, tmp_path_factory, mnist_dir):
    return made("table1", tmp_path_factory.mktemp("table1"), mnist_dir, 2)


@pytest.fixture(scope="module")
def fourth_figure(tiny, tmp_path_factory):
    return made("fig4", tmp_path_factory.mktemp("fig4"), None, 1)


def test_gates_of_table1(first_table):
    content, _, _ = first_table
    gates = [row for row in content["rows"] if row["quantity"] == "two_qubit_gates"]
    by_name = {row["name"]: row for row in gates}
    assert by_name["2 qubits, complex"]["mean"] == 3
    assert by_name["2 qubits, real, ours"]["mean"] == 2
    assert by_name["3 qubits, complex"]["paper"]["hardware"] == {"one_qubit": 174, "two_qubit": 44}
    assert set(by_name["3 qubits, complex"]["counts"]) == {"built", "level 1", "level 3"}


def test_overlaps_of_table1(first_table):
    content, _, _ = first_table
    rows = [row for row in content["rows"] if row["quantity"] == "overlap"]
    assert len(rows) == 2 * (2 * len(table1.WAYS) + 1)
    assert all(len(row["values"]) == 2 for row in rows)
    bare = [row for row in rows if row["way"] == table1.BARE]
    assert [row["source"] for row in bare] == ["trained", "trained, mixed signs"]
    rows = [row for row in rows if row["source"] == "trained, mixed signs"]
    fixed = [row for row in rows if row["way"].startswith("fixed")]
    assert all(row["mean"] <= row["ceiling"] + 1e-9 for row in fixed)
    named = {(row["qubits"], row["way"]): row for row in rows}
    assert named[2, "fixed, random"]["paper"]["value"] == 0.62
    assert named[2, "joint, best"]["mean"] > named[2, "fixed, random"]["mean"]
    assert named[6, "joint, best"]["mean"] > 0.9


def test_table1_says_what_it_is_made_of(first_table):
    content, sections, text = first_table
    assert "MNIST scaled to 8x8" in text
    assert "2 trainings" in text
    assert len(sections) == 3
    assert len(content["networks"]) == 4
    assert content["manifest"]["data"]["seed 0"]["name"] == "mnist"


def test_curves_of_fig4(fourth_figure):
    content, _, text = fourth_figure
    rows = [row for row in content["rows"] if row["layers"] is not None]
    assert len(rows) == 2 * (2 * (2 + 5) + 3 * 2) + 4 * 2
    deepest = [row for row in rows if row["layers"] == 2]
    assert {(row["source"], row["way"]) for row in deepest} == {
        (source, way.name)
        for source in fig4.SOURCES
        for way in fig4.WAYS
        if (source, way) != (fig4.GAUSSIAN, fig4.NEAR)
    }
    assert all(row["entropy"] >= 0 and row["cnots"] <= row["complex_cnots"] for row in rows)
    printed = {row["ansatz"]: row["paper"]["value"] for row in rows if row["paper"]["value"] is not None}
    assert printed == {"2-body": 0.62, "3-body": 0.72, "4-body": 0.81, "5-body": 0.93, "6-body": 0.96}
    assert len(content["networks"]) == 2
    assert "bundled 8x8 digits (not MNIST" in text
    assert "## Gates for an overlap of 94%, trained" in text
    assert "## Each seed, trained, 2-body, ours, SO(4)" in text


def test_searched_cnots_of_fig4(fourth_figure):
    content, _, _ = fourth_figure
    rows = [row for row in content["rows"] if row["way"] == fig4.SEARCHED]
    assert [row["cnots_a_side"] for row in rows] == [1, 1]
    assert all(0 < row["cnots"] <= 2 for row in rows)


def test_ours_never_loses_by_depth(fourth_figure):
    content, _, text = fourth_figure
    curves = fig4._curves([row for row in content["rows"] if row["way"].startswith("ours")])
    drops = [fig4.largest_drop(rows) for (_, _, ansatz), rows in curves.items() if ansatz == "2-body"]
    assert len(drops) == 6
    assert max(drops) <= fig4.ALLOWED_DROP
    assert "on no MPO gives a depth from 1 to 2 less than a shallower one" in text


def test_drops_are_found():
    rows = [{"values": values} for values in ([0.5, 0.9], [0.6, 0.8], [0.55, 0.85])]
    assert fig4.largest_drop(rows) == pytest.approx(0.1)
    assert fig4.largest_drop(rows[:1]) == 0


def test_missed_bars_are_named():
    way = fig4.OURS
    rows = [
        {"source": "trained", "way": "ours", "ansatz": "2-body", "layers": depth, "values": values}
        for depth, values in ((1, [0.7, 0.6]), (4, [0.1, 0.1]), (8, [0.98, 0.98]))
    ]
    rows += [row | {"source": "trained, mixed signs"} for row in rows if row["layers"] == 8]
    section, other = fig4._bars(dataclasses.replace(fig4.QUICK, ways=(way,)), rows)
    assert section.cells[2] == ("seed 1", "0.6000 (missed)", "0.9800")
    assert "1 missed" in section.note
    assert "to compare; none missed" in other.note


def test_gates_that_are_enough():
    rows = [
        {"source": "trained", "way": "ours", "ansatz": "2-body", "layers": depth, "mean": mean}
        for depth, mean in ((1, 0.6), (3, 0.95), (5, 0.97))
    ]
    assert fig4.enough(rows, "trained", "ours", "2-body")["layers"] == 3
    assert fig4.enough(rows[:1], "trained", "ours", "2-body") is None


def test_routes_side_by_side(tmp_path, mnist_dir, monkeypatch):
    monkeypatch.setattr(tnn, "MNIST_TRAINING", tnn.Training(epochs=1))
    small = dataclasses.replace(routes.RECIPE.quick, depths=(1,), budget=1, placed=(1,), restarts=1, tolerance=1e-3)
    monkeypatch.setitem(module.RECIPES, "routes", dataclasses.replace(routes.RECIPE, quick=small))
    content, sections, text = made("routes", tmp_path, mnist_dir, 1)
    assert len(sections) == len(routes.SOURCES)
    assert "At 0 CNOTs stand cores, and the triangle of QR, without circuits" in text
    rows = {(row["source"], row["route"], round(row["cnots"])): row["mean"] for row in content["rows"]}
    for source in ("trained", "trained, mixed signs", "Gaussian"):
        assert rows[source, "two terms", 0] >= rows[source, "bricks, SO(4)", 0] - 1e-9
        assert max(mean for (at, name, _), mean in rows.items() if (at, name) == (source, "SVD, refitted")) <= 1
    kept = {row["route"]: row["parameters"] for row in content["rows"]}
    assert (kept["QR"], kept["SVD"], kept["bricks, SO(4)"]) == (2080, 64, 24)


def test_table2_tries_each_suspect_alone(tmp_path, monkeypatch):
    once = tnn.Training(epochs=1, lr=1e-2)
    small = table2.Settings(
        training=tnn.Training(epochs=20, lr=1e-2),
        healing=once,
        depth=2,
        sweeps=20,
        tomography_shots=729 * 20,
        tomography_images=5,
        encoding_layers=(4,),
        encoding_images=20,
    )
    monkeypatch.setitem(module.RECIPES, "table2", dataclasses.replace(table2.RECIPE, quick=small))
    content, sections, text = made("table2", tmp_path, None, 1)
    rows = {row["name"]: row for row in content["rows"]}
    assert [row["paper"]["value"] for row in content["rows"][:5]] == [0.926, 0.926, 0.924, 0.947, 0.936]
    parameters = {name: rows[f"{name}, quantum"]["parameters"] for name in (table2.MERGED, table2.AROUND)}
    gates, rest, core, mpo = 2 * 2016, 128 + 650, 24, 80
    assert parameters == {table2.MERGED: gates + rest + core, table2.AROUND: gates + rest + mpo}
    assert rows["original TNN"]["parameters"] == mpo + rest
    assert rows[f"{table2.SMALL}, quantum"]["cnots"] == [[10, 10]]
    for network in (table2.AROUND, table2.SMALL, table2.NOISELESS):
        assert rows[f"{network}: exact"]["lost"] == [0]
    for network in table2.SUSPECTED:
        assert rows[f"{network}: exact"]["lost"] == [0]
        # four staircases prepare every vector
        assert abs(rows[f"{network}: MPS encoding, 4 staircases"]["lost"][0]) <= 0.1
        assert rows[f"{network}: tomography, sign of the largest entry"]["images"] == 1
    assert len(sections) == 2
    assert "The bundled 8x8 digits, not MNIST" in text


def test_execution_on_noisy_devices(tmp_path, mnist_dir, monkeypatch):
    small = execution.Settings(encoded=2, layers=((1,), (1,)), images=1, taught=1, shots=2_000, compared=2, read=0.01)
    ways = (execution.WAYS[2], execution.WAYS[6])
    monkeypatch.setattr(execution, "WAYS", ways)
    monkeypatch.setattr(execution, "DEVICES", ("fake_montreal",))
    monkeypatch.setitem(module.RECIPES, "execution", dataclasses.replace(execution.RECIPE, quick=small))
    content, sections, _ = made("execution", tmp_path, mnist_dir, 1)
    assert [section.heading for section in sections] == [
        "Staircases",
        "Readouts of images behind a circuit",
        "Readouts of states that are not prepared exactly",
        "fake_montreal",
    ]
    encodings, readouts, prepared = content["rows"][:2], content["rows"][2:8], content["rows"][8:17]
    devices = content["rows"][17:]
    assert all(0.99 < row["cosine"] <= 1 for row in encodings[:1])
    assert {row["name"].split(": ")[1] for row in readouts} == {"reference", "signs"}
    assert all(0.5 < row["mean"] < 2 for row in readouts)
    errors = {row["name"]: row["mean"] for row in prepared}
    assert errors["prepared exact, reference"] < 0.1 < errors["prepared exact, product reference"]
    assert [row["cnots"] for row in encodings] == [9, 13]
    assert [(row["circuits"], row["calibration"]) for row in devices] == [(7, 0), (18, 2)]
    assert all(0 < row["mean"] < 2 for row in devices)
