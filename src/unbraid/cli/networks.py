"""Verbs that look into a network or change it: ``scan``, ``compress``, ``disentangle``, ``verdict``."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from unbraid.cli.arguments import (
    Source,
    copy_tokenizer,
    load_data,
    load_model,
    load_samples,
    load_steps,
    split_targets,
    weight_bytes,
)
from unbraid.cli.display import console, finish, print_table, shown
from unbraid.cli.options import (
    CompressSites,
    DataDir,
    Device,
    Download,
    Epochs,
    GateGroup,
    HealData,
    HealOptimizer,
    LearningRate,
    Length,
    Model,
    Out,
    Quiet,
    SampleData,
    Seed,
    Sites,
    SitesOption,
    Size,
    TargetsOption,
    TextFile,
    Weights,
    check_epochs,
    check_lr,
)
from unbraid.ground.errors import InvalidInputError


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
    samples: Annotated[int, typer.Option(help="Of the data or the text; as many as layers, or more, tell best.")] = 64,
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
    finish(found.tables[-1], out, quiet)


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
        int | None, typer.Option(callback=check_epochs, help="Of healing; by default 20, with --text 4.")
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(
            callback=check_lr,
            help="Peak learning rate of healing; by default 0.01, with --text 0.0003; three times that by slices.",
        ),
    ] = None,
    optimizer: Annotated[
        HealOptimizer, typer.Option(help="Of healing. soap: steps cost more, and fewer are needed.")
    ] = HealOptimizer.adam,
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
        steps.optimizer = optimizer.value
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
    finish(report.table(), out, quiet, facts=facts)


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
    finish(report.table(), out, quiet, facts=report.facts())
    if not quiet:
        for name, result in results.items():
            ceiling = "unknown (too many rows)" if result.ceiling is None else f"{result.ceiling:.4f}"
            error = f" (to {result.overlap_error:.1g})" if result.overlap_error else ""
            console.print(
                f"{escape(name)}: overlap {result.overlap:.4f}{error}, ceiling {ceiling}, {result.status}, "
                f"{' + '.join(map(str, result.cnot_counts))} CNOTs; {escape(result.plan)}",
                highlight=False,
            )


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
    finish([head, *rows], out, quiet)
