"""The verbs: each reads its arguments, calls typed functions, prints a small table, writes files below ``--out``."""

from __future__ import annotations

import math
import os
import shlex
import shutil
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from unbraid.cli.arguments import (
    Source,
    copy_tokenizer,
    load_data,
    load_model,
    load_rows,
    load_samples,
    load_steps,
    split_targets,
    weight_bytes,
)
from unbraid.cli.display import console, errors, print_facts, print_table, print_text, shown
from unbraid.ground.devices import find_device
from unbraid.ground.errors import InvalidInputError, UnbraidError

INTERRUPTED = 130  # as shells count a command that Ctrl-C ended

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Trained networks as matrix product operators and quantum circuits, and what they cost.",
)


def _check_device(value: str) -> str:
    find_device(value)
    return value


Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="Folder of save_pretrained, package.module:factory, or FOLDER@factory.")
]
Weights = Annotated[Path | None, typer.Option(help="Safetensors file with the factory's weights.")]
Out = Annotated[Path, typer.Option(help="Folder for the report and the artefacts; created if needed.")]
Device = Annotated[str, typer.Option(callback=_check_device, help="Where torch computes: cpu, cuda, cuda:1, ...")]
Seed = Annotated[int, typer.Option(help="The same seed gives the same numbers.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars; print only where the report is.")]
TargetsOption = Annotated[
    str, typer.Option(help="'all-linear', a regular expression, or name endings with commas between.")
]
Data = Annotated[str, typer.Option(help="digits, mnist, fashion-mnist, cifar10, or a safetensors file with x and y.")]
HealData = Annotated[
    str | None,
    typer.Option(help="Heal on digits, mnist, fashion-mnist, cifar10, or a safetensors file with x and y."),
]
SampleData = Annotated[
    str | None,
    typer.Option(help="Run on samples of digits, mnist, fashion-mnist, cifar10, or a safetensors file with x and y."),
]
TextFile = Annotated[
    Path | None, typer.Option(help="Run a language model (a Hugging Face folder with a tokenizer) on this text.")
]
Length = Annotated[int, typer.Option(help="Tokens of a sample of --text, at most.")]
DataDir = Annotated[Path | None, typer.Option(help="Where the data set's files are.")]
Size = Annotated[int | None, typer.Option(help="Side that images are scaled to: 8, 16 or 32.")]
Download = Annotated[bool, typer.Option("--download", help="Fetch a published data set, checked by hash.")]


class Sites(StrEnum):
    """How layers are cut into sites."""

    auto = "auto"
    qubits = "qubits"
    low_rank = "low-rank"


class CompressSites(StrEnum):
    """As :class:`Sites`, and the best of several."""

    auto = "auto"
    qubits = "qubits"
    low_rank = "low-rank"
    best = "best"


class GateGroup(StrEnum):
    """Groups of real gates."""

    so = "so"
    o = "o"


class Readout(StrEnum):
    """How vectors are read from circuits."""

    exact = "exact"
    reference = "reference"
    signs = "signs"
    tomography = "tomography"


class ExecutorName(StrEnum):
    """What runs circuits."""

    torch = "torch"
    aer = "aer"
    ibm = "ibm"


class Mode(StrEnum):
    """How jobs are queued."""

    job = "job"
    batch = "batch"
    session = "session"


class EncodingName(StrEnum):
    """How vectors are prepared as states."""

    amplitude = "amplitude"
    mps = "mps"


def _check_epochs(value: int | None) -> int | None:
    """Refuse what healing would refuse only after the long work before it."""
    if value is not None and value < 1:
        raise InvalidInputError(f"--epochs must be at least 1; got {value}.")
    return value


def _check_lr(value: float | None) -> float | None:
    if value is not None and not (math.isfinite(value) and value > 0):
        raise InvalidInputError(f"--lr must be a positive number; got {value}.")
    return value


Epochs = Annotated[int, typer.Option(callback=_check_epochs, help="Of healing.")]
LearningRate = Annotated[float, typer.Option(callback=_check_lr, help="Peak learning rate of healing.")]
SitesOption = Annotated[Sites, typer.Option(help="qubits: one qubit a site, as circuits need; auto: for speed.")]


def _version(wanted: bool) -> None:
    if wanted:
        from unbraid.ground.manifest import versions

        console.print(", ".join(f"{name} {version}" for name, version in versions().items()), highlight=False)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show versions and exit.")
    ] = False,
) -> None:
    """Read options that stand before a verb."""


@app.command()
def demo(out: Out = Path("unbraid-demo"), seed: Seed = 0, quiet: Quiet = False) -> None:
    """Run the main job end to end on bundled 8x8 digits, offline."""
    from unbraid.recipes.demo import run_demo

    with shown(quiet) as say:
        report = run_demo(out, seed=seed, announce=say)
    _finish(report.table(), out, quiet, facts=report.facts())


@app.command()
def scan(
    model: Model,
    weights: Weights = None,
    targets: TargetsOption = "all-linear",
    sites: SitesOption = Sites.qubits,
    data: SampleData = None,
    data_dir: DataDir = None,
    size: Size = None,
    download: Download = False,
    text: TextFile = None,
    samples: Annotated[int, typer.Option(help="Of the data or the text, at least as many as layers.")] = 64,
    length: Length = 64,
    budget: Annotated[
        float | None, typer.Option(help="Spend this fraction of the weights where the loss suffers least.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Show the entanglement of what differs from this model.")
    ] = None,
    entanglement: Annotated[
        bool, typer.Option("--entanglement", help="Show entropy profiles of the weights (and, with --text, attention).")
    ] = False,
    device: Device = "cpu",
    out: Out = Path("unbraid-out"),
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Show which layers are worth compressing and disentangling, and how much the loss grows with --data or --text."""
    from unbraid.ground.files import make_directory
    from unbraid.recipes.scanning import Scanned, scan_model

    if budget is not None and data is None and text is None:
        raise typer.BadParameter("--budget is spent by what the loss suffers: give --data or --text")
    place = make_directory(out)
    with shown(quiet):
        network = load_model(model, weights).to(device)
        source = Source(data, data_dir, size, download, text, samples, length, seed, device)
        seen = load_samples(model, network, source)
        other = None if base is None else load_model(base, None).to(device)
        found: Scanned = scan_model(
            network,
            split_targets(targets),
            sites.value,
            seen,
            budget=budget,
            base=other,
            entanglement=entanglement or base is not None,
            seed=seed,
            title=f"Scan of {model}",
        )
    found.save(place)
    if not quiet:
        for line in found.report.notes:
            console.print(escape(line), highlight=False)
        if found.prefix:
            console.print(f"In the tables {escape(found.prefix)} is left out of names.", highlight=False)
        for table in found.tables[:-1]:
            print_table(table)
    _finish(found.tables[-1], out, quiet)


@app.command()
def compress(
    model: Model,
    weights: Weights = None,
    targets: Annotated[
        str | None,
        typer.Option(
            help="'all-linear' (the default), a regular expression, or name endings with commas between.",
        ),
    ] = None,
    max_bond: Annotated[int | None, typer.Option(help="Cap of every bond dimension.")] = None,
    rel_error: Annotated[float | None, typer.Option(help="Allowed relative error of a weight.")] = None,
    budget: Annotated[float | None, typer.Option(help="Core entries as a fraction of the weights.")] = None,
    allocation: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Layers and budgets that scan --budget wrote, instead of these.")
    ] = None,
    sites: Annotated[
        CompressSites | None,
        typer.Option(
            help="auto: for speed (the default, or as in --allocation); qubits: one qubit a site, as circuits need; "
            "low-rank: two; best: the layout of least error."
        ),
    ] = None,
    aware: Annotated[
        bool, typer.Option("--aware", help="Fit operators to the layers' outputs on samples of --data or --text.")
    ] = False,
    without_gauge: Annotated[
        bool, typer.Option("--fix-gauge", help="Store cores without the square of each bond that they do not need.")
    ] = False,
    bits: Annotated[int | None, typer.Option(help="Store the cores as integers of 8 or 4 bits.")] = None,
    data: HealData = None,
    data_dir: DataDir = None,
    size: Size = None,
    download: Download = False,
    text: Annotated[
        Path | None,
        typer.Option(
            help="Heal a language model (a folder with a tokenizer) on nine tenths of this text, towards the original."
        ),
    ] = None,
    samples: Annotated[int, typer.Option(help="Rows of tokens, or sentences, of --text, at most.")] = 2000,
    length: Length = 64,
    slices: Annotated[
        str | None,
        typer.Option(metavar="REGEX", help="With --text: heal these modules one by one first, half of the epochs."),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(callback=_check_epochs, help="Of healing; by default 20, with --text 4.")
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(
            callback=_check_lr,
            help="Peak learning rate of healing; by default 0.01, with --text 0.0003; three times that by slices.",
        ),
    ] = None,
    device: Device = "cpu",
    out: Out = Path("unbraid-out"),
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Write layers as MPOs; heal the network if --data or --text is given. The model goes to OUT/model."""
    from unbraid.ground.files import make_directory
    from unbraid.nn import save_pretrained
    from unbraid.nn.integers import check_bits
    from unbraid.recipes.steps import compress_model

    if bits is not None:
        check_bits(bits)
        if without_gauge:
            raise typer.BadParameter("--bits stores whole cores: leave --fix-gauge out")
    limits = {"max_bond": max_bond, "rel_error": rel_error, "budget": budget}
    limited = any(limit is not None for limit in limits.values())
    if allocation is not None and (limited or targets is not None):
        raise typer.BadParameter("--allocation takes the place of --targets, --max-bond, --rel-error and --budget")
    if allocation is None and not limited:
        raise typer.BadParameter("say how far: --max-bond, --rel-error, --budget or --allocation")
    if aware and data is None and text is None:
        raise typer.BadParameter("--aware fits outputs on samples: give --data or --text")
    if slices is not None and text is None:
        raise typer.BadParameter("--slices goes with --text")
    place = make_directory(out)
    with shown(quiet):
        before = load_model(model, weights).to(device)
        source = Source(data, data_dir, size, download, text, samples, length, seed, device)
        steps = load_steps(model, before, source, slices)
        after = compress_model(
            before,
            steps,
            targets=split_targets(targets or "all-linear"),
            limits=limits,
            sites=None if sites is None else sites.value,
            allocation=allocation,
            aware=aware,
            without_gauge=without_gauge,
            bits=bits,
            epochs=epochs or (20 if text is None else 4),
            lr=lr or (1e-2 if text is None else 3e-4),
            checkpoint_dir=place / "checkpoint",
        )
        size_before = weight_bytes(model, weights)  # OUT/model may be MODEL itself
        save_pretrained(after, place / "model")
        copy_tokenizer(model, place / "model")
        report = steps.report(f"Compression of {model}")
        sizes = {"before": size_before, "after": weight_bytes(str(place / "model"), None)}
        report.extra["safetensors_bytes"] = {name: size for name, size in sizes.items() if size}
        report.save(place)
        shutil.rmtree(place / "checkpoint", ignore_errors=True)  # done: nothing is left to resume
    said = ", ".join(f"{size:,} {name}" for name, size in report.extra["safetensors_bytes"].items())
    facts = [*report.facts(), *steps.facts(), ("bytes of the safetensors", said)]
    _finish(report.table(), out, quiet, facts=facts)


@app.command()
def disentangle(
    model: Model,
    weights: Weights = None,
    targets: TargetsOption = "all-linear",
    depth: Annotated[int | None, typer.Option(help="Layers of two-body gates a side; 3 by default.")] = None,
    gate: Annotated[GateGroup | None, typer.Option(help="so: SO(4), two CX (the default); o: any determinant.")] = None,
    ansatz: Annotated[str | None, typer.Option(help="Layer grammar instead, such as '1b+cnot+1b'.")] = None,
    core_bond: Annotated[int, typer.Option(help="Bond dimension of the core.")] = 1,
    core: Annotated[str, typer.Option(help="joint: optimised too; fixed: the paper's truncation.")] = "joint",
    start: Annotated[str, typer.Option(help="near_identity, identity, random, growth or greedy.")] = "near_identity",
    engine: Annotated[str, typer.Option(help="auto, dense or mpo.")] = "auto",
    restarts: Annotated[int, typer.Option(help="Runs from different starts.")] = 1,
    max_sweeps: Annotated[int, typer.Option(help="At most so many a run.")] = 1000,
    data: HealData = None,
    data_dir: DataDir = None,
    size: Size = None,
    download: Download = False,
    epochs: Epochs = 20,
    lr: LearningRate = 3e-2,
    device: Device = "cpu",
    out: Out = Path("unbraid-out"),
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Disentangle MPO layers into circuits and smaller cores. The model goes to OUT/model."""
    from unbraid.circuits import Ansatz, parse_ansatz
    from unbraid.disentangling import Disentangled
    from unbraid.ground.files import make_directory
    from unbraid.nn import MPOLinear, disentangle_layers, match_layers, save_pretrained
    from unbraid.recipes.steps import Steps

    place = make_directory(out)
    with shown(quiet):
        before = load_model(model, weights).to(device)
        dataset = None if data is None else load_data(data, data_dir, seed, size, download).to(device)
        chosen = split_targets(targets)
        geometry: int | tuple[Ansatz, Ansatz] = 3 if depth is None else depth
        layers = match_layers(before, chosen, (MPOLinear,))
        for name, layer in layers.items():
            if isinstance(layer, MPOLinear) and max(*layer.mpo.out_dims, *layer.mpo.in_dims) > 2:
                raise InvalidInputError(
                    f"Layer {name!r} has legs of several qubits, {layer.mpo.out_dims} x {layer.mpo.in_dims}: gates on "
                    "pairs of them would be large. Compress with --sites qubits."
                )
        if ansatz is not None:
            if gate is not None or depth is not None:
                raise typer.BadParameter("--ansatz takes the place of --depth and --gate; leave them out")
            legs = {
                (layer.mpo.out_dims, layer.mpo.in_dims) for layer in layers.values() if isinstance(layer, MPOLinear)
            }
            if len(legs) > 1:
                raise typer.BadParameter("the layers have different legs; name one layer with --targets")
            out_dims, in_dims = legs.pop()
            geometry = (parse_ansatz(ansatz, out_dims), parse_ansatz(ansatz, in_dims))
        results: dict[str, Disentangled] = {}
        options: dict[str, Any] = {
            "core_bond": core_bond,
            "core": core,
            "start": start,
            "engine": engine,
            "restarts": restarts,
            "max_sweeps": max_sweeps,
            "seed": seed,
        }
        kept = place / "disentangling"
        options["gate"] = "so" if gate is None else gate.value
        after = disentangle_layers(before, chosen, geometry, results=results, checkpoint=kept, **options)
        steps = Steps(dataset, seed, device)
        steps.add("before", before)
        steps.add("explicit", after)
        steps.heal("disentangled", after, epochs, lr, place / "checkpoint")
        save_pretrained(after, place / "model")
        report = steps.report(f"Disentangling of {model}", results)
        report.save(place)
        shutil.rmtree(place / "checkpoint", ignore_errors=True)
        shutil.rmtree(kept, ignore_errors=True)
    _finish(report.table(), out, quiet, facts=report.facts())
    if not quiet:
        for name, result in results.items():
            ceiling = "unknown (too many rows)" if result.ceiling is None else f"{result.ceiling:.4f}"
            error = f" (to {result.overlap_error:.1g})" if result.overlap_error else ""
            console.print(
                f"{escape(name)}: overlap {result.overlap:.4f}{error}, ceiling {ceiling}, {result.status}, "
                f"{' + '.join(map(str, result.cnot_counts))} CNOTs; {escape(result.plan)}",
                highlight=False,
            )


@app.command()
def run(
    model: Model,
    data: Data,
    weights: Weights = None,
    executor: Annotated[
        ExecutorName, typer.Option(help="torch or aer, simulators; ibm, a device of the saved account.")
    ] = ExecutorName.torch,
    backend: Annotated[
        str | None, typer.Option(help="aer: simulate this device with its noise, such as fake_montreal. ibm: its name.")
    ] = None,
    mode: Annotated[
        Mode, typer.Option(help="ibm: each job queues by itself, or all in a batch or session.")
    ] = Mode.job,
    encoding: Annotated[
        EncodingName, typer.Option(help="amplitude: exact. mps: staircases of gates on neighbouring qubits.")
    ] = EncodingName.amplitude,
    layers: Annotated[int | None, typer.Option(help="Staircases of --encoding mps; 3 by default.")] = None,
    readout: Annotated[Readout, typer.Option(help="How vectors are read from circuits.")] = Readout.reference,
    shots: Annotated[int, typer.Option(help="A vector and stage, over all circuits of its readout.")] = 10_000,
    mitigate_readout: Annotated[
        bool, typer.Option("--mitigate-readout", help="Measure how qubits are misread, and correct for it.")
    ] = False,
    images: Annotated[int | None, typer.Option(help="Only the first so many rows.")] = None,
    limit: Annotated[float, typer.Option(help="ibm: ask before more seconds of a device than this are spent.")] = 60.0,
    yes: Annotated[bool, typer.Option("--yes", help="ibm: do not ask.")] = False,
    price: Annotated[
        float | None, typer.Option(help="Of a second of the device, in any currency; the cost is then told in it.")
    ] = None,
    data_dir: DataDir = None,
    size: Size = None,
    download: Download = False,
    out: Out = Path("unbraid-out"),
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Run a disentangled network as a hybrid of circuits and classical layers; its cost is printed first."""
    from unbraid.ground.files import make_directory
    from unbraid.quantum import MPSEncoding, estimate_cost, to_quantum
    from unbraid.recipes.datasets import DATASETS
    from unbraid.report import evaluate

    if readout is Readout.exact and executor is not ExecutorName.torch:
        raise typer.BadParameter("--readout exact is a simulation in torch; use --executor torch, or another readout")
    if executor is ExecutorName.torch and (backend is not None or mitigate_readout):
        raise typer.BadParameter("--backend and --mitigate-readout go with --executor aer or ibm")
    if mode is not Mode.job and executor is not ExecutorName.ibm:
        raise typer.BadParameter("--mode goes with --executor ibm")
    if layers is not None and encoding is not EncodingName.mps:
        raise typer.BadParameter("--layers goes with --encoding mps")
    if not limit >= 0:
        raise InvalidInputError(f"--limit must be a number of seconds, 0 or more; got {limit}.")
    place = make_directory(out)
    network = load_model(model, weights)
    x, y = load_rows(data, data_dir, seed, size, download)
    if images is not None:
        if images < 1:
            raise typer.BadParameter("--images must be at least 1")
        x, y = x[:images], y[:images]
    chosen = MPSEncoding(3 if layers is None else layers) if encoding is EncodingName.mps else encoding.value
    with _executor(executor, backend, mode, seed, mitigate_readout, place) as chosen_executor:
        hybrid = to_quantum(network, chosen_executor, encoding=chosen, readout=readout.value, shots=shots, seed=seed)
        cost = estimate_cost(hybrid, len(x), price_per_second=price)
        if not quiet:
            console.print(cost.describe(), highlight=False, soft_wrap=True)
            kept = len(getattr(chosen_executor, "store", None) or ())
            if kept:
                console.print(
                    f"Results of {kept:,} circuits are in {place / 'results.sqlite'} and are not paid for again; the "
                    "estimate counts them all the same.",
                    highlight=False,
                )
            if backend is not None and readout is Readout.reference:
                console.print(
                    "The plus/minus reference suffers most from the noise of a device; try --readout signs --encoding "
                    "mps.",
                    highlight=False,
                )
        if executor is ExecutorName.ibm and cost.seconds > limit and not yes:
            money = "" if cost.money is None else f", at the price given {cost.money:,.2f}"
            question = f"This takes about {cost.seconds:,.0f} seconds of the device{money}. Go on?"
            if not _agreed(question):
                raise InvalidInputError("Nothing was run. Answer yes, or give --yes or a higher --limit.")
        with shown(quiet):
            report = evaluate(hybrid, (x, y), name=f"{model} on {data}")
        if cost.money is not None:
            report.cost["money"] = cost.money
    if data not in DATASETS:
        report.notes.append(
            "All rows of the file were run; an accuracy on rows that a network was healed on is no test."
        )
    report.save(place)
    _finish(report.table(), out, quiet, facts=report.facts())


def _agreed(question: str) -> bool:
    """The answer to a question; no where nobody can answer."""
    try:
        return typer.confirm(question)
    except typer.Abort:
        return False


def _executor(
    name: ExecutorName, backend: str | None, mode: Mode, seed: int, mitigate_readout: bool, place: Path
) -> AbstractContextManager[Any]:
    """What runs the circuits; samplers keep their results in the folder, so that an interrupted run goes on."""
    from unbraid.quantum import AerExecutor, TorchExecutor
    from unbraid.quantum.backends import fake_backend, ibm_executor

    if name is ExecutorName.torch:
        return nullcontext(TorchExecutor(seed))
    store = place / "results.sqlite"
    if name is ExecutorName.ibm:
        if backend is None:
            raise typer.BadParameter("--executor ibm needs --backend: the device's name, or least_busy")
        return ibm_executor(
            backend, mode=mode.value, store=store, mitigate_readout=mitigate_readout, optimization_level=3
        )
    device = None if backend is None else fake_backend(backend)
    # with noise, one density matrix is cheaper than a trajectory a shot
    method = "automatic" if device is None else "density_matrix"
    level = 1 if device is None else 3
    return AerExecutor(
        backend=device,
        method=method,
        seed=seed,
        optimization_level=level,
        store=store,
        mitigate_readout=mitigate_readout,
    )


@app.command()
def verdict(
    model: Model,
    budget: Annotated[float, typer.Option(help="Allowed weight error, as a fraction; with --data growth of the loss.")],
    weights: Weights = None,
    targets: TargetsOption = "all-linear",
    bodies: Annotated[str, typer.Option(help="Wires a gate, with commas between.")] = "2,3",
    max_depth: Annotated[int, typer.Option(help="Largest number of layers of gates a side.")] = 3,
    data: Annotated[
        str | None, typer.Option(help="Judge by the cross-entropy on the validation part: a data set, as of compress.")
    ] = None,
    data_dir: DataDir = None,
    size: Size = None,
    download: Download = False,
    epochs: Annotated[int, typer.Option(help="With --data: of healing before each judgement; 0 for none.")] = 0,
    lr: LearningRate = 1e-2,
    out: Out = Path("unbraid-out"),
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Say whether circuits pay: the smallest MPO against the smallest core plus circuits, layer by layer."""
    from unbraid.ground.files import make_directory
    from unbraid.ground.manifest import build_manifest
    from unbraid.nn import verdict as judge
    from unbraid.recipes.verdict import healing, validation_loss
    from unbraid.report import Report

    wires = [part.strip() for part in bodies.split(",")]
    if not all(part.isdecimal() for part in wires):
        raise typer.BadParameter("--bodies must be numbers with commas between, such as 2,3")
    if epochs < 0 or (epochs and data is None):
        raise typer.BadParameter("--epochs goes with --data, and must be 0 or more")
    place = make_directory(out)
    with shown(quiet):
        dataset = None if data is None else load_data(data, data_dir, seed, size, download)
        found = judge(
            load_model(model, weights),
            budget=budget,
            targets=split_targets(targets),
            loss=None if dataset is None else validation_loss(dataset),
            heal=healing(dataset, epochs, lr, seed) if dataset is not None and epochs else None,
            bodies=[int(part) for part in wires],
            max_depth=max_depth,
            seed=seed,
            checkpoint=place / "checkpoint",
        )
    judged = [each.to_dict() for each in found.values()]
    manifest = build_manifest(seeds={"seed": seed}, data=None if dataset is None else dataset.describe())
    report = Report(title=f"Whether circuits pay in {model}", extra={"verdict": judged}, manifest=manifest)
    report.save(place)
    shutil.rmtree(place / "checkpoint", ignore_errors=True)  # done: nothing is left to resume
    head = ("layer", "dense", "low rank", "plain MPO", "core + circuits", "body", "depth", "break-even price")
    rows = [
        (
            name or "(the model)",
            f"{each.dense:,}",
            f"{each.low_rank.classical:,}",
            f"{each.plain.classical:,}",
            f"{each.best.classical:,} + {each.best.circuit:,}",
            str(each.best.body),
            str(each.best.depth),
            f"{each.break_even:.2g}",
        )
        for name, each in found.items()
    ]
    if not quiet:
        for each in found.values():
            console.print(escape(each.paragraph), highlight=False, soft_wrap=True)
    _finish([head, *rows], out, quiet)


@app.command()
def export(
    model: Model,
    weights: Weights = None,
    out: Out = Path("unbraid-out"),
    quiet: Quiet = False,
) -> None:
    """Write the circuits of disentangled layers as OpenQASM 3 and QPY, their cores as safetensors."""
    from unbraid.ground.files import make_directory
    from unbraid.recipes.export import export_model

    place = make_directory(out)
    with shown(quiet):
        rows = export_model(load_model(model, weights), place)
    _finish(rows, out, quiet)


@app.command()
def reproduce(
    name: Annotated[
        str,
        typer.Argument(
            help="digits, table1, table2, table3, table4, table5, table6, fig4, geometry, gradients, mlp, routes, "
            "tenfold, trainings, execution, entanglement, verdict, minilm or stories."
        ),
    ],
    data_dir: DataDir = None,
    seeds: Annotated[int | None, typer.Option(help="Number of seeds; by default the recipe's own.")] = None,
    workers: Annotated[int, typer.Option(help="Processes; -1 for one a core.")] = 1,
    quick: Annotated[bool, typer.Option("--quick", help="A small version, to see that it works.")] = False,
    device: Device = "cpu",
    out: Out = Path("unbraid-out"),
    quiet: Quiet = False,
) -> None:
    """Remake a table or figure: NAME.json, NAME.md and NAME.png. Finished work is kept and resumed."""
    from unbraid.recipes.reproduce import reproduce as remake

    try:
        with shown(quiet):
            outcome = remake(name, out, seeds=seeds, workers=workers, data_dir=data_dir, quick=quick, device=device)
    except KeyboardInterrupt:
        kept = len(list((out / f"{name}.tasks").glob("*.json")))
        errors.print(f"Finished tasks that are kept: {kept}. The same command goes on from there.", highlight=False)
        raise
    if not quiet:
        print_text(outcome.title, outcome.note)
        for section in outcome.sections:
            print_text(section.heading, section.note)
            print_table(section.lines)
    _written(out / f"{name}.md", quiet)


@app.command()
def bench(
    name: Annotated[str | None, typer.Argument(help="Without one the benchmarks are listed.")] = None,
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[-- ARGS]...", help="Further arguments, for the benchmark.")
    ] = None,
    out: Out = Path("unbraid-out"),
    quiet: Quiet = False,
) -> None:
    """Run a benchmark against named peers, as ratios of one run. What it prints also goes to OUT/bench-NAME.txt."""
    from unbraid.cli.benchmarks import choose_benchmark, find_benchmarks, peers_of, run_benchmark, subject_of
    from unbraid.ground.files import make_directory, write_text

    found = find_benchmarks()
    if name is None:
        print_table([("name", "what is measured"), *((key, subject_of(path)) for key, path in found.items())])
        return
    script = choose_benchmark(name, found)
    place = make_directory(out)
    here, missing = peers_of(script)
    said = f"Peers: {', '.join(here) or 'none that this benchmark names is installed'}." if here or missing else ""
    if missing:
        said += f" Missing: {', '.join(missing)}. To have them: pip install {' '.join(map(shlex.quote, missing))}"
    with shown(quiet) as say:
        say(said or "This benchmark needs no other package.")
    printed = run_benchmark(script, arguments or [], (lambda line: None) if quiet else print)
    write_text(place / f"bench-{name}.txt", f"{said}\n{printed}")
    _written(place / f"bench-{name}.txt", quiet)


def main() -> None:
    """Entry point: one clear message and an exit code that is not 0 for everything that can go wrong."""
    code: object = None
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:  # a batch system's way to interrupt: workers stop, too
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code = app(standalone_mode=False)
    except UnbraidError as error:
        _fail(str(error), 1)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except typer.Abort:
        code = INTERRUPTED
    except Exception as error:
        show = getattr(error, "show", None)
        if callable(show):  # a usage error: the command-line library knows how to explain it
            show()
            sys.exit(getattr(error, "exit_code", 2))
        if os.environ.get("UNBRAID_DEBUG"):
            traceback.print_exc()
        _fail(f"Unexpected {type(error).__name__}: {error}\nSet UNBRAID_DEBUG=1 to see where it happened.", 70)
    if code == INTERRUPTED:
        _report("Interrupted.")
        sys.stdout.flush()
        sys.stderr.flush()
        # Python would end by the signal, not with this code, where an extension module had been running Python code.
        os._exit(INTERRUPTED)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> None:
    _report(message)
    sys.exit(code)


def _report(message: str) -> None:
    errors.print(f"[bold red]Error:[/] {escape(message)}", highlight=False, soft_wrap=True)


def _finish(
    rows: list[tuple[str, ...]],
    out: Path,
    quiet: bool,
    *,
    facts: Sequence[tuple[str, str]] = (),
) -> None:
    if not quiet:
        print_table(rows)
        print_facts(facts)
    _written(out / "report.html", quiet)


def _written(path: Path, quiet: bool) -> None:
    target = path.resolve()
    console.print(str(target) if quiet else f"Written: {target}", highlight=False, soft_wrap=True, markup=False)
