"""Verbs that need no network: ``demo``, ``reproduce``, ``bench``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from unbraid.cli.display import errors, finish, print_table, print_text, shown, written
from unbraid.cli.options import (
    DataDir,
    Device,
    Out,
    Quiet,
    Seed,
    WorkersOption,
)
from unbraid.ground.parallel import read_workers


def demo(out: Out = Path("unbraid-demo"), seed: Seed = 0, quiet: Quiet = False) -> None:
    """Run the main job end to end on bundled 8x8 digits, offline."""
    from unbraid.recipes.demo import run_demo

    with shown(quiet) as say:
        report = run_demo(out, seed=seed, announce=say)
    finish(report.table(), out, quiet, facts=report.facts())


def reproduce(
    name: Annotated[
        str,
        typer.Argument(
            help="digits, table1, table2, table3, table4, table5, table6, fig4, geometry, gradients, mlp, routes, "
            "tenfold, trainings, execution, entanglement, verdict, natural, minilm or stories."
        ),
    ],
    data_dir: DataDir = None,
    seeds: Annotated[int | None, typer.Option(help="Number of seeds; by default the recipe's own.")] = None,
    workers: WorkersOption = "1",
    quick: Annotated[bool, typer.Option("--quick", help="A small version, to see that it works.")] = False,
    device: Device = "cpu",
    model: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="minilm, stories: another model of the same kind.")
    ] = None,
    out: Out = Path("unbraid-out"),
    quiet: Quiet = False,
) -> None:
    """Remake a table or figure: NAME.json, NAME.md and NAME.png. Finished work is kept and resumed."""
    from unbraid.recipes.reproduce import reproduce as remake

    try:
        with shown(quiet):
            outcome = remake(
                name,
                out,
                seeds=seeds,
                workers=read_workers(workers),
                data_dir=data_dir,
                quick=quick,
                device=device,
                model=model,
            )
    except KeyboardInterrupt:
        kept = len(list((out / f"{name}.tasks").glob("*.json")))
        errors.print(f"Finished tasks that are kept: {kept}. The same command goes on from there.", highlight=False)
        raise
    if not quiet:
        print_text(outcome.title, outcome.note)
        for section in outcome.sections:
            print_text(section.heading, section.note)
            print_table(section.lines)
    written(out / f"{name}.md", quiet)


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
    written(place / f"bench-{name}.txt", quiet)
