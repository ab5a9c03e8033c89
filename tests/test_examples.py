"""The scripts of examples/ run as a user runs them, and print what they say."""

import os
import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name: str, folder: Path) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name)], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert not list(folder.iterdir())  # examples leave no files behind
    return done.stdout


def test_own_module_in_ten_lines(tmp_path):
    output = run("own_module_in_ten_lines.py", tmp_path)
    found = {
        name.strip(): (float(share), int(count.replace(",", "")))
        for name, share, count in re.findall(
            r"^(.+): +([\d.]+)% of the test images, +([\d,]+) parameters$", output, re.M
        )
    }
    assert list(found) == ["dense", "MPO", "circuits and core", "hybrid"]
    assert all(share > 85 for share, _ in found.values())
    assert found["circuits and core"][1] < found["MPO"][1] < found["dense"][1]
    assert found["hybrid"] == found["circuits and core"]
    overlap, ceiling = (float(number) for number in re.search(r"overlap ([\d.]+), ceiling ([\d.]+)", output).groups())
    assert 0 < overlap <= ceiling <= 1


def test_circuit_to_qiskit(tmp_path):
    output = run("circuit_to_qiskit.py", tmp_path)
    assert output.count(": equal") == 3
    assert "OPENQASM 3.0;" in output
    assert "differs" not in output


def test_declared_network(tmp_path):
    output = run("declared_network.py", tmp_path)
    counts = [int(number) for number in re.findall(r": (\d+) parameters", output)]
    assert counts == [848, 816]
    healed, before = re.search(r"([\d.]+)% \(([\d.]+)% before healing\)", output).groups()
    assert float(before) < float(healed)
    assert float(healed) > 90
    assert re.search(r"^total .* 816$", output, re.M)


def test_every_example_is_tested():
    tested = Path(__file__).read_text(encoding="utf-8")
    assert all(f'run("{path.name}"' in tested for path in EXAMPLES.glob("*.py"))
