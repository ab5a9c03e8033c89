import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from unbraid.cli import main
from unbraid.cli.app import app
from unbraid.nn import disentangle_layers, load_pretrained, save_pretrained, tensorize
from unbraid.recipes.models import digits_mlp

FACTORIES = """
import torch
from torch import nn

def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

def with_value(value):
    model = small()
    with torch.no_grad():
        model[0].weight[3, 5] = value
    return model

def nan():
    return with_value(float("nan"))

def inf():
    return with_value(float("inf"))

def zero():
    model = small()
    nn.init.zeros_(model[2].weight)
    return model

def no_rows():
    return nn.Sequential(nn.Linear(4, 0))

def no_layers():
    return nn.Sequential(nn.ReLU())

def raises():
    raise ValueError("boom")

def number():
    return 3
"""


@pytest.fixture
def factories(tmp_path, monkeypatch):
    name = f"factories_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


@pytest.fixture
def run(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["unbraid", *[str(argument) for argument in arguments]])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def last_line(error):
    """What stands after the progress bars."""
    return error.strip().splitlines()[-1]


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("nan", ("NaN", "'0'")),
        ("inf", ("finite", "'0'")),
        ("zero", ("all zeros", "'2'")),
        ("no_rows", ("empty", "'0'")),
        ("no_layers", ("No Linear", "'all-linear'")),
        ("raises", ("ValueError", "boom")),
        ("number", ("nn.Module", "int")),
        ("missing", ("Cannot find the factory",)),
    ],
)
@pytest.mark.parametrize("verb", ["scan", "compress"])
def test_bad_models_give_one_clear_message_and_no_files(run, factories, tmp_path, verb, factory, words):
    out = tmp_path / "out"
    limit = ["--max-bond", "2"] if verb == "compress" else []
    code, _, error = run(verb, f"{factories}:{factory}", *limit, "--out", out)
    assert code == 1
    assert last_line(error).startswith("Error:")
    assert all(word in error for word in words)
    assert "Traceback" not in error
    assert not out.exists() or files_below(out) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("frobnicate",),
        ("demo", "--nope"),
        ("demo", "--seed", "many"),
        ("scan",),
        ("run", "somewhere", "--data", "digits", "--readout", "guess"),
        ("compress", "m", "--max-bond", "1.5"),
        ("compress", "m"),
        ("run", "m", "--data", "digits", "--executor", "aer", "--readout", "exact"),
        ("run", "m", "--data", "digits", "--backend", "fake_montreal"),
        ("run", "m", "--data", "digits", "--mitigate-readout"),
        ("run", "m", "--data", "digits", "--layers", "2"),
    ],
)
def test_unknown_verbs_options_and_values_exit_with_2(run, arguments):
    code, _, error = run(*arguments)
    assert code == 2
    assert "Traceback" not in error
    assert error.strip()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--targets", "nothing_here"), "matches the target"),
        (("--targets", "("), "regular expression"),
        (("--rel-error", "7"), "rel_error"),
        (("--max-bond", "0"), "max_bond"),
        (("--budget", "2"), "budget"),
        (("--bits", "3"), "bits must be 8 or 4"),
        (("--data", "imagenet"), "digits"),
        (("--data", "digits", "--epochs", "0"), "epochs"),
        (("--data", "digits", "--lr", "-1"), "lr"),
        (("--data", "digits", "--lr", "nan"), "lr"),
        (("--data", "mnist", "--data-dir", "not/there"), "not/there"),
    ],
)
def test_values_out_of_range_give_one_clear_message(run, factories, tmp_path, arguments, word):
    limit = [] if set(arguments) & {"--max-bond", "--rel-error", "--budget"} else ["--max-bond", "2"]
    code, _, error = run("compress", f"{factories}:small", "--out", tmp_path / "out", *limit, *arguments)
    assert code == 1
    assert last_line(error).startswith("Error:")
    assert word in error
    assert "Traceback" not in error


@pytest.mark.parametrize("verb", ["scan", "compress", "demo"])
def test_an_out_that_cannot_be_written_to_is_refused_before_work(run, factories, tmp_path, verb):
    blocker = tmp_path / "file"
    blocker.write_text("not a folder")
    start = time.monotonic()
    model = [] if verb == "demo" else [f"{factories}:small"]
    limit = ["--max-bond", "2"] if verb == "compress" else []
    code, _, error = run(verb, *model, *limit, "--out", blocker / "out")
    assert code == 1
    assert "Cannot write" in error
    assert blocker.read_text() == "not a folder"
    assert time.monotonic() - start < 30  # the demo itself was not run


def test_broken_model_folders_give_one_clear_message(run, tmp_path):
    folder = save_pretrained(digits_mlp(), tmp_path / "model")
    tensors = folder / "model.safetensors"
    whole, config = tensors.read_bytes(), (folder / "config.json").read_text()

    tensors.write_bytes(whole[: len(whole) // 2])
    code, _, error = run("scan", folder, "--out", tmp_path / "out")
    assert code == 1
    assert "truncated" in error

    tensors.write_bytes(whole)
    newer = json.loads(config) | {"version": 999}
    (folder / "config.json").write_text(json.dumps(newer))
    code, _, error = run("scan", folder, "--out", tmp_path / "out")
    assert code == 1
    assert "version 999" in error

    (folder / "config.json").write_text("{")
    code, _, error = run("scan", folder, "--out", tmp_path / "out")
    assert code == 1
    assert "JSON" in error
    assert tensors.read_bytes() == whole
    assert not (tmp_path / "out").exists() or files_below(tmp_path / "out") == []

    code, _, error = run("scan", tmp_path / "nowhere")
    assert code == 1
    assert "neither a folder" in error


def test_the_verbs_carry_a_model_from_dense_to_circuits(run, tmp_path):
    save_pretrained(digits_mlp(), tmp_path / "dense")
    code, out, error = run("scan", tmp_path / "dense", "--out", tmp_path / "scan")
    assert (code, "hidden" in out) == (0, True), error
    assert len(json.loads((tmp_path / "scan/report.json").read_text())["layers"]) == 2

    options = ["--targets", "hidden", "--max-bond", "2", "--sites", "qubits", "--data", "digits", "--epochs", "3"]
    code, _, error = run("compress", tmp_path / "dense", *options, "--out", tmp_path / "mpo")
    assert code == 0, error
    report = json.loads((tmp_path / "mpo/report.json").read_text())
    assert report["accuracy"]["healed"] > report["accuracy"]["mpo"]

    options = ["--depth", "1", "--max-sweeps", "5", "--data", "digits", "--epochs", "2", "--quiet"]
    code, out, error = run("disentangle", tmp_path / "mpo/model", *options, "--out", tmp_path / "circuits")
    assert code == 0, error
    assert out.strip() == str((tmp_path / "circuits/report.html").resolve())
    layer = json.loads((tmp_path / "circuits/report.json").read_text())["extra"]["disentangling"]["hidden"]
    assert 0 < layer["overlap"] <= layer["ceiling"] + 1e-9

    model = tmp_path / "circuits/model"
    code, out, error = run(
        "run", model, "--data", "digits", "--shots", "1000", "--images", "20", "--out", tmp_path / "run"
    )
    assert code == 0, error
    assert out.index("two-qubit gates in all") < out.index("accuracy")  # the cost comes first
    cost = json.loads((tmp_path / "run/report.json").read_text())["cost"]
    assert (cost["circuits"], cost["shots"]) == (80, 40_000)  # 20 images, 2 stages, 2 circuits, 1,000 shots a stage

    noisy = [
        "--executor",
        "aer",
        "--backend",
        "fake_montreal",
        "--encoding",
        "mps",
        "--layers",
        "1",
        "--mitigate-readout",
    ]
    noisy += ["--readout", "signs", "--images", "1", "--shots", "700", "--out", tmp_path / "noisy"]
    code, out, error = run("run", model, "--data", "digits", *noisy)
    assert code == 0, error
    assert "transpiled to the backend" in out
    assert (tmp_path / "noisy/results.sqlite").exists()
    cost = json.loads((tmp_path / "noisy/report.json").read_text())["cost"]
    assert cost["circuits"] == 14 + 2  # two stages of seven settings, and one calibration

    code, out, error = run("export", model, "--out", tmp_path / "export")
    assert code == 0, error
    names = ["hidden.core.safetensors", "hidden.input.qasm", "hidden.output.qasm", "hidden.qpy"]
    names += ["report.html", "report.json"]
    assert files_below(tmp_path / "export") == names
    assert (tmp_path / "export/hidden.input.qasm").read_text().startswith("OPENQASM 3")


def test_cores_can_be_written_as_integers(run, tmp_path):
    save_pretrained(digits_mlp(), tmp_path / "dense")
    options = ["--targets", "hidden", "--max-bond", "4", "--bits", "4", "--data", "digits", "--epochs", "1"]
    code, out, error = run("compress", tmp_path / "dense", *options, "--out", tmp_path / "mpo")
    assert (code, "cores of integers" in out) == (0, True), error
    report = json.loads((tmp_path / "mpo/report.json").read_text())
    assert report["parameters"]["quantized"] == report["parameters"]["healed"]
    assert load_pretrained(tmp_path / "mpo/model").hidden.cores.bits == 4


def test_cores_can_be_written_without_their_gauge(run, tmp_path):
    save_pretrained(digits_mlp(), tmp_path / "dense")
    options = ["--targets", "hidden", "--max-bond", "4", "--data", "digits", "--epochs", "1", "--fix-gauge"]
    code, out, error = run("compress", tmp_path / "dense", *options, "--out", tmp_path / "mpo")
    assert (code, "gauge fixed" in out) == (0, True), error
    report = json.loads((tmp_path / "mpo/report.json").read_text())
    layer = load_pretrained(tmp_path / "mpo/model").hidden
    squares = sum(bond**2 for bond in layer.mpo.bond_dims)
    assert report["parameters"]["healed"] - report["parameters"]["gauge"] == squares > 0
    assert report["accuracy"]["gauge"] == pytest.approx(report["accuracy"]["healed"], abs=0.01)
    code, _, error = run("compress", tmp_path / "dense", *options, "--bits", "8", "--out", tmp_path / "both")
    assert (code, "leave --fix-gauge out" in " ".join(error.split())) == (2, True)


def test_an_ansatz_of_the_grammar_can_be_given(run, tmp_path):
    network = tensorize(digits_mlp(), ["hidden"], max_bond=2, sites="qubits")
    save_pretrained(network, tmp_path / "mpo")
    options = ["--ansatz", "1b+cnot+1b", "--max-sweeps", "3", "--out", tmp_path / "out"]
    code, _, error = run("disentangle", tmp_path / "mpo", *options)
    assert code == 0, error
    layer = load_pretrained(tmp_path / "out/model").get_submodule("hidden")
    assert layer.input_circuit.cnot_count == 3
    code, _, error = run("disentangle", tmp_path / "mpo", "--ansatz", "1b+nope", "--out", tmp_path / "out2")
    assert code == 1
    assert "character 4" in error


def test_a_folder_loads_into_an_architecture_of_ones_own(run, factories, tmp_path):
    class Custom(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = digits_mlp()

        def forward(self, x):
            return self.inner(x)

    (tmp_path / "custom_model.py").write_text(
        "from torch import nn\nfrom unbraid.recipes.models import digits_mlp\n"
        "class Custom(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.inner = digits_mlp()\n    def forward(self, x):\n        return self.inner(x)\n"
    )
    save_pretrained(tensorize(Custom(), ["hidden"], max_bond=2, sites="qubits"), tmp_path / "saved")
    code, _, error = run("scan", tmp_path / "saved", "--out", tmp_path / "out")
    assert code == 1
    assert "architecture" in error
    code, out, error = run("scan", f"{tmp_path / 'saved'}@custom_model:Custom", "--out", tmp_path / "out")
    assert (code, "inner.hidden" in out) == (0, True), error


def test_weights_of_a_factory_come_from_safetensors(run, factories, tmp_path):
    from safetensors.torch import save_file

    weights = tmp_path / "w.safetensors"
    save_file(digits_mlp(3).state_dict(), weights)
    arguments = ["scan", "unbraid.recipes.models:digits_mlp", "--weights", weights, "--out", tmp_path / "out"]
    code, _, error = run(*arguments)
    assert code == 0, error
    save_file({"other": torch.zeros(2)}, weights)
    code, _, error = run(*arguments)
    assert code == 1
    assert "does not fit" in error


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_stops_cleanly(tmp_path, sent):
    command = [sys.executable, "-m", "unbraid", "demo", "--out", str(tmp_path / "out")]

    def heed_interrupts():  # a shell in the background starts its children deaf to them
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, preexec_fn=heed_interrupts) as process:
        limit = time.monotonic() + 60
        while not (tmp_path / "out").exists() and time.monotonic() < limit:
            time.sleep(0.1)
        time.sleep(0.5)
        process.send_signal(sent)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Interrupted" in error
    assert "Traceback" not in error
    assert files_below(tmp_path / "out") == []


def test_data_that_do_not_fit_the_network_are_refused(run, factories, tmp_path):
    from safetensors.torch import save_file

    narrow, many = tmp_path / "narrow.safetensors", tmp_path / "many.safetensors"
    save_file({"x": torch.rand(60, 63), "y": torch.arange(60) % 10}, narrow)
    save_file({"x": torch.rand(60, 64), "y": torch.arange(60) % 30}, many)
    for data, word in ((narrow, "63"), (many, "classes"), (tmp_path / "absent", "safetensors file")):
        arguments = ["--max-bond", "2", "--data", data, "--out", tmp_path / "out"]
        code, _, error = run("compress", f"{factories}:small", *arguments)
        assert code == 1
        assert word in last_line(error)


def test_natural_mistakes_are_explained(run, factories, tmp_path):
    code, _, error = run("compress", f"{factories}:small", "--max-bond", "2", "--out", tmp_path / "job")
    assert code == 0, error
    for arguments, word in (
        (("run", tmp_path / "job", "--data", "digits"), "its model is"),
        (("disentangle", f"{factories}:small"), "no MPO layers"),
        (("disentangle", tmp_path / "job/model"), "--sites qubits"),
        (("scan", f"{tmp_path / 'job/model'}@{factories}:small", "--weights", "w.safetensors"), "--weights"),
    ):
        code, _, error = run(*arguments, "--out", tmp_path / "other")
        assert code == 1, arguments
        assert word in last_line(error), arguments


def test_plots_of_an_earlier_job_in_the_same_place_are_removed(run, factories, tmp_path):
    out = tmp_path / "out"
    healing = ["--data", "digits", "--epochs", "1"]
    assert run("compress", f"{factories}:small", "--max-bond", "2", *healing, "--out", out)[0] == 0
    assert (out / "training.svg").exists()
    assert not (out / "checkpoint").exists()
    assert run("compress", f"{factories}:small", "--max-bond", "2", "--out", out)[0] == 0
    assert not (out / "training.svg").exists()


def test_the_version_is_shown(run):
    code, out, _ = run("--version")
    assert code == 0
    assert out.startswith("python 3.")
    assert "unbraid" in out


def test_reproduce_prints_its_tables(run, tmp_path, monkeypatch):
    from unbraid.recipes import reproduce as module
    from unbraid.recipes.recipe import Outcome, Recipe, Request, Section, make_row

    found = []

    def assemble(request: Request, results):
        found.append(request)
        sections = tuple(Section(("row", "mean"), ((name, "0.5"),), heading=f"Table {name}") for name in "ab")
        return Outcome("Halves", "Always.", [make_row("a", "original", [0.5], seeds=[0])], sections)

    recipe = Recipe(
        settings=module.RECIPES["digits"].settings,
        quick=module.RECIPES["digits"].quick,
        seeds=4,
        quick_seeds=2,
        data=module.RECIPES["digits"].data,
        tasks=lambda request: [],
        assemble=assemble,
        plot=lambda path, rows: path.write_bytes(b""),
    )
    monkeypatch.setitem(module.RECIPES, "halves", recipe)
    code, out, _ = run("reproduce", "halves", "--quick", "--data-dir", tmp_path, "--out", tmp_path / "out")
    assert code == 0
    assert "Table a" in out
    assert "Table b" in out
    assert "Written:" in out
    assert found[0].seeds == 2
    assert found[0].data_dir == tmp_path
    assert json.loads((tmp_path / "out" / "halves.json").read_text())["rows"][0]["mean"] == 0.5


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("table99",), "'table1'"),
        (("digits", "--seeds", "0"), "at least 1"),
        (("table1", "--data-dir", "nowhere"), "nowhere"),
    ],
)
def test_reproduce_says_what_is_wrong(run, tmp_path, arguments, text):
    code, _, error = run("reproduce", *arguments, "--out", tmp_path, "--quiet")
    assert code == 1
    assert text in error


def test_the_help_names_every_recipe(run):
    from unbraid.recipes.reproduce import RECIPES

    code, text, _ = run("reproduce", "--help")
    assert code == 0
    assert all(name in text for name in RECIPES)


@pytest.mark.parametrize(("answer", "mode"), [("n", "job"), ("n", "session"), ("--yes", "job"), ("--yes", "batch")])
def test_a_device_is_paid_for_only_after_asking(tmp_path, monkeypatch, answer, mode):
    standin = pytest.importorskip("qiskit_ibm_runtime.fake_provider")
    from typer.testing import CliRunner

    backend, used = standin.FakeMontrealV2(), []

    class Service:
        """Honours what is used of QiskitRuntimeService; jobs run on the stored noise of a device."""

        def backends(self, **filters):
            return [backend]

        def backend(self, name):
            used.append(name)
            return backend

        def job(self, name):
            raise KeyError(name)

    monkeypatch.setattr("qiskit_ibm_runtime.QiskitRuntimeService", Service)
    closed = []
    for kind in ("Batch", "Session"):
        monkeypatch.setattr(f"qiskit_ibm_runtime.{kind}.close", lambda self: closed.append(type(self).__name__))
    layer = tensorize(torch.nn.Linear(4, 4), "all-linear", max_bond=2, sites="qubits")
    save_pretrained(disentangle_layers(layer, "all-linear", 1, max_sweeps=3), tmp_path / "model")
    save_file({"x": torch.randn(2, 4), "y": torch.tensor([0, 1])}, tmp_path / "data.safetensors")
    arguments = [
        "run",
        tmp_path / "model",
        "--data",
        tmp_path / "data.safetensors",
        "--executor",
        "ibm",
        "--limit",
        "0",
    ]
    arguments += ["--backend", backend.name, "--shots", "100", "--out", tmp_path / "out"]
    more = ["--mode", mode, "--price", "1.6", *(["--yes"] if answer == "--yes" else [])]
    found = CliRunner().invoke(app, [*map(str, arguments), *more], input="n\n")
    assert ("Go on?" in found.output) == (answer == "n")
    assert "At the price given they cost" in " ".join(found.output.split())
    assert ("at the price given" in found.output) == (answer == "n")
    assert closed == ([] if mode == "job" else [mode.capitalize()])
    assert (found.exit_code == 0) == (answer == "--yes"), found.output
    assert (tmp_path / "out/report.json").exists() == (answer == "--yes")
    wrong = CliRunner().invoke(app, [*map(str, arguments[:-6]), "--limit", "0", "--backend", "nowhere"])
    assert "has no device 'nowhere'; it has fake_montreal" in str(wrong.exception)
