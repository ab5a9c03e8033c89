"""Reports: plain data in, whole files out."""

import errno
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from unbraid.circuits import brickwall
from unbraid.circuits.drawing import draw_circuit
from unbraid.ground.errors import InvalidInputError, MissingExtraError, OutputError
from unbraid.report import Report


def full_report(**changes: Any) -> Report:
    parts: dict[str, Any] = {
        "accuracy": {"dense": 0.97, "mpo": 0.55, "healed": 0.96, "hybrid": 0.9996},
        "samples": {"dense": 450, "hybrid": 450},
        "overlap": 0.81,
        "ceiling": 0.88,
        "entropies": {"before": [1.0, 2.0], "after": [0.2, 0.3], "maximum": [1.4, 2.8]},
        "parameters": {"dense": 4810, "mpo": 2100, "disentangled": 1400},
        "gates": {
            "logical": {
                "input": {"one_qubit": 8, "two_qubit": 16, "depth": 20},
                "total": {"two_qubit": 16, "depth": 20},
            },
            "transpiled": {"total": {"two_qubit": 31, "depth": 77}},
        },
        "cost": {"circuits": 200, "shots": 2_000_000, "two_qubit_gates": 14600, "depth": 171, "seconds": 4123.0},
        "seconds": {"train": 12.5},
        "manifest": {"seeds": {"seed": 0}, "commit": None, "data": {"name": "digits"}},
        "layers": [
            {
                "name": "fc1",
                "shape": [64, 64],
                "ranks": [{"rel_error": 0.01, "bond_dims": [4, 61], "parameters": 8352, "output_error": None}],
                "verdict": "full of entanglement",
            }
        ],
        "curves": {"training loss": [2.0, 1.0], "validation accuracy": [0.5, 0.9], "overlap": [0.5, 0.8]},
        "drawings": {"input circuit": draw_circuit(brickwall(4, 2)), "text": "q0 --X--"},
        "notes": ["No hardware."],
        "extra": {"aer": {"agreement": 0.5}},
    }
    return Report(**(parts | changes))


def test_json_round_trip() -> None:
    report = full_report()
    again = Report(**json.loads(json.dumps(report.to_dict(), allow_nan=False)))
    assert again == report


def test_documented_keys_are_there_even_when_empty() -> None:
    documented = {"accuracy", "overlap", "ceiling", "entropies", "parameters", "gates", "cost", "seconds", "manifest"}
    assert documented <= set(Report().to_dict())
    assert "curves" not in Report().to_dict()


def test_tensors_become_lists() -> None:
    report = full_report(entropies={"before": torch.tensor([1.0, 2.0])}, layers=[{"shape": (2, torch.tensor(3))}])
    assert report.to_dict()["entropies"] == {"before": [1.0, 2.0]}
    assert report.to_dict()["layers"] == [{"shape": [2, 3]}]


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"overlap": math.nan}, "overlap"),
        ({"curves": {"loss": [1.0, math.inf]}}, r"curves\.loss\[1\]"),
        ({"accuracy": {"dense": 97.0}}, "fraction"),
        ({"extra": {"what": object()}}, r"extra\.what"),
    ],
)
def test_what_json_cannot_hold_is_refused_before_writing(changes: dict[str, Any], where: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=where):
        full_report(**changes).save(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_table_names_steps_accuracies_and_parameters() -> None:
    head, *rows = full_report().table()
    assert all(len(row) == len(head) for row in rows)
    cells = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    assert cells["dense"]["accuracy"] == "97.0 %"
    assert cells["hybrid"]["accuracy"] == "99.96 %"  # not 100
    assert cells["healed"]["parameters"] == "2,100 (44 %)"
    assert cells["hybrid"]["parameters"] == "1,400 (29 %)"
    assert cells["mpo"]["test images"] == ""


def test_table_without_data_still_shows_sizes() -> None:
    assert Report(parameters={"dense": 100, "mpo": 40}).table()[1:] == [
        ("dense", "100", "plain linear layers"),
        ("mpo", "40 (40 %)", "layers as MPOs"),
    ]


def test_facts() -> None:
    facts = dict(full_report().facts())
    assert facts["overlap"] == "0.8100 (ceiling 0.8800)"
    assert facts["mean bond entropy"] == "1.50 → 0.25 nats (maximum 2.10)"
    assert facts["two-qubit gates of the circuits"] == "16 as built, 31 transpiled"
    assert Report().facts() == []


def test_save_writes_everything_and_the_same_bytes_again(tmp_path: Path) -> None:
    page = full_report().save(tmp_path / "new" / "a")
    assert page == tmp_path / "new" / "a" / "report.html"
    names = {"report.json", "report.html", "accuracy.svg", "training.svg", "overlap.svg", "entropies.svg"}
    assert {path.name for path in page.parent.iterdir()} == names
    assert Report(**json.loads((page.parent / "report.json").read_text())) == full_report()
    full_report().save(tmp_path / "b")
    for name in names:
        assert (tmp_path / "b" / name).read_bytes() == (page.parent / name).read_bytes(), name


def test_empty_report_has_a_page_and_no_plots(tmp_path: Path) -> None:
    Report().save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"report.json", "report.html"}


def test_place_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(OutputError):
        full_report().save(tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "mine"


def test_full_disk_leaves_the_earlier_report_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full_report().save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    written = Path.write_text
    calls = []

    def fills_up(self: Path, *args: Any, **options: Any) -> int:
        calls.append(self)
        if len(calls) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return written(self, *args, **options)

    monkeypatch.setattr(Path, "write_text", fills_up)
    with pytest.raises(OutputError, match="No space left"):
        full_report(overlap=0.1, accuracy={"dense": 0.1, "mpo": 0.2}).save(tmp_path)
    assert len(calls) == 4
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_without_matplotlib_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"unbraid\[report\]"):
        full_report().save(tmp_path / "out")
    assert not (tmp_path / "out").exists()
