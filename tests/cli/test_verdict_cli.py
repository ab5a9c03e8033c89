import json

import pytest

from unbraid.cli import app as module


@pytest.fixture
def run(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["unbraid", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            module.main()
        out, error = capsys.readouterr()
        return end.value.code, out, error

    return call


def test_the_verb_says_it_and_writes_report_and_figure(run, tmp_path):
    quick = ["--bodies", "2", "--max-depth", "1", "--targets", "output", "--out", tmp_path]
    code, out, _ = run("verdict", "unbraid.recipes.models:digits_mlp", "--budget", "0.7", *quick)
    assert code == 0
    assert "smallest plain MPO" in out
    assert "break-even" in out
    (found,) = json.loads((tmp_path / "report.json").read_text())["extra"]["verdict"]
    assert found["name"] == "output"
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "report.json", "verdict.svg"}


@pytest.mark.parametrize(
    "wrong", [["--bodies", "two"], ["--bodies", "2,,3"], ["--epochs", "2"], ["--epochs", "-1", "--data", "digits"]]
)
def test_options_that_make_no_sense_exit_with_2(run, tmp_path, wrong):
    model = ["unbraid.recipes.models:digits_mlp", "--budget", "0.5", "--out", tmp_path / "out"]
    code, _, error = run("verdict", *model, *wrong)
    assert code == 2
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()
