from importlib import metadata

import pytest
from typer.testing import CliRunner

from unbraid.cli import benchmarks
from unbraid.cli.app import app
from unbraid.cli.benchmarks import find_benchmarks, peers_of, run_benchmark, subject_of
from unbraid.ground.errors import ExecutionError, InvalidInputError


def call(*arguments):
    return CliRunner().invoke(app, ["bench", *map(str, arguments)])


@pytest.fixture
def scripts(tmp_path, monkeypatch):
    """Benchmarks of the test's own."""
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    (folder / "bench_good.py").write_text(
        '"""Says ``what`` it was given.\n\nMore."""\nimport sys\nprint("ratio", *sys.argv[1:])\nprint("end")\n'
    )
    (folder / "bench_bad.py").write_text('"""Fails."""\nprint("begun")\nimport no_such_peer\n')
    (folder / "bench_alone.py").write_text('"""Has no peers."""\n')
    torch = metadata.version("torch")
    (folder / "peers.txt").write_text(
        f"# Peers.\ntorch=={torch}  # good, other\nnumpy==0.0.1  # good\n"
        'no-such-peer==1.2; python_version >= "3.12"  # bad, good\n'
    )
    monkeypatch.setattr(benchmarks, "FOLDERS", (folder,))
    return folder


def test_every_benchmark_of_the_tree_says_what_it_measures_and_names_its_peers():
    found = find_benchmarks()
    assert {"layers", "circuits", "decompose", "peers", "import"} <= set(found)
    assert all(len(subject_of(path)) > 20 for path in found.values())
    peers = next(iter(found.values())).parent / "peers.txt"
    named = {name for line in peers.read_text().splitlines() if "==" in line for name in line.split("#")[1].split(", ")}
    assert {name.strip() for name in named} <= set(found)


def test_without_a_name_the_benchmarks_are_listed(scripts):
    found = call()
    assert found.exit_code == 0
    assert "Says what it was given." in found.stdout
    assert found.stdout.index("alone") < found.stdout.index("bad") < found.stdout.index("good")


def test_a_benchmark_gets_its_arguments_and_its_words_are_kept(scripts, tmp_path):
    found = call("good", "--out", tmp_path / "out", "--", "--device", "cuda")
    assert found.exit_code == 0, found.output
    assert "Peers: torch" in found.stderr
    assert "numpy" in found.stderr
    assert "(pinned: 0.0.1)" in found.stderr
    assert """pip install 'no-such-peer==1.2; python_version >= "3.12"'""" in found.stderr
    kept = (tmp_path / "out/bench-good.txt").read_text()
    assert kept.startswith("Peers: torch")
    assert kept.endswith("ratio --device cuda\nend\n")


def test_quiet_prints_only_where_the_words_are(scripts, tmp_path):
    found = call("alone", "--out", tmp_path, "--quiet")
    assert found.stdout.strip() == str((tmp_path / "bench-alone.txt").resolve())
    assert found.stderr == ""


def test_an_unknown_name_and_a_failing_script_give_one_clear_message(scripts, tmp_path):
    found = call("nope", "--out", tmp_path)
    assert isinstance(found.exception, InvalidInputError)
    assert str(found.exception) == "There is no benchmark 'nope'. Choose one of alone, bad, good."
    said = []
    with pytest.raises(ExecutionError, match=r"bench_bad\.py ended with code 1: ModuleNotFoundError: No module named"):
        run_benchmark(scripts / "bench_bad.py", [], said.append)
    assert said == ["begun"]
    assert peers_of(scripts / "bench_bad.py") == ([], ['no-such-peer==1.2; python_version >= "3.12"'])


def test_an_installation_without_benchmarks_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmarks, "FOLDERS", (tmp_path,))
    with pytest.raises(InvalidInputError, match="has no benchmarks folder"):
        find_benchmarks()
