"""Verbs that take a network with circuits out of torch: ``run``, ``export``."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from unbraid.cli.arguments import (
    load_model,
    load_rows,
)
from unbraid.cli.display import console, finish, shown
from unbraid.cli.options import (
    Data,
    DataDir,
    Download,
    EncodingName,
    ExecutorName,
    Mode,
    Model,
    Out,
    Quiet,
    Readout,
    Seed,
    Size,
    Weights,
)
from unbraid.ground.errors import InvalidInputError


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
    finish(report.table(), out, quiet, facts=report.facts())


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
    finish(rows, out, quiet)
