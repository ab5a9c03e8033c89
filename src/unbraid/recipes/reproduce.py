"""``unbraid reproduce NAME``: a table over seeds, with its manifest; finished seeds are kept and resumed from."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from unbraid.ground.errors import FileFormatError, InvalidInputError, require_choice, require_extra
from unbraid.ground.files import make_directory, problem_hash, read_json, write_json, write_text
from unbraid.ground.manifest import build_manifest, versions
from unbraid.ground.parallel import fan_out, one_thread
from unbraid.recipes import digits
from unbraid.recipes.datasets import load_dataset
from unbraid.recipes.pipeline import Settings


@dataclass(frozen=True)
class Table:
    """A table that can be remade.

    Attributes:
        title: says the data and the number of test images.
        rows: (name, kind, description) each.
        run: the figures of one seed: accuracy and parameters by row.
        data: what identifies the data of one seed.
        settings: what the figures depend on besides the seed; kept seeds of other settings are run again.
    """

    title: str
    rows: tuple[tuple[str, str, str], ...]
    run: Callable[[int], dict[str, dict[str, Any]]]
    data: Callable[[int], dict[str, Any]]
    settings: dict[str, Any]


TABLES = {
    "digits": Table(
        "8x8 digits, 450 test images",
        digits.ROWS,
        digits.digits_seed,
        lambda seed: load_dataset("digits", seed=seed).describe(),
        asdict(Settings()),
    ),
}


def reproduce(name: str, out: str | os.PathLike[str], *, seeds: int = 5, workers: int = 1) -> list[tuple[str, ...]]:
    """Remake a table; writes ``NAME.json``, ``NAME.md`` and ``NAME.png``.

    Args:
        name: of the table.
        out: folder; created if needed. Finished seeds are kept in ``NAME.seeds/`` and not run again.
        seeds: seeds 0, 1, ..., seeds - 1.
        workers: processes; the results do not depend on it.

    Returns:
        The table with a head.

    Raises:
        InvalidInputError: if the name is unknown or a number out of range.
        OutputError: if ``out`` cannot be written to.
        MissingExtraError: if matplotlib is not installed.
    """
    require_choice(name, tuple(TABLES), "name of the table")
    if seeds < 1:
        raise InvalidInputError(f"seeds must be at least 1; got {seeds}.")
    require_extra("matplotlib", "report")
    from unbraid.report.plots import plot_rows, save_png

    table = TABLES[name]
    title = table.title
    place = make_directory(out)
    kept = make_directory(place / f"{name}.seeds")
    tasks = [{"name": name, "seed": seed, "folder": str(kept)} for seed in range(seeds)]
    figures = fan_out(_one_seed, tasks, workers=workers, description=f"{name}, {seeds} seeds")
    rows = []
    for row, kind, description in table.rows:
        accuracies = [figure[row]["accuracy"] for figure in figures]
        rows.append(
            {
                "name": row,
                "kind": kind,
                "description": description,
                "parameters": figures[0][row]["parameters"],
                "mean": statistics.fmean(accuracies),
                "std": statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0,
                "seeds": list(range(seeds)),
                "values": accuracies,
                "paper": {"parameters": None, "value": None},
            }
        )
    data = {f"seed {seed}": table.data(seed) for seed in range(seeds)}
    manifest = build_manifest(seeds={f"seed {seed}": seed for seed in range(seeds)}, data=data)
    write_json(place / f"{name}.json", {"title": title, "rows": rows, "manifest": manifest})
    write_text(place / f"{name}.md", _markdown(title, rows, manifest))
    save_png(place / f"{name}.png", lambda ax: plot_rows(rows, ax=ax))
    printed: list[tuple[str, ...]] = [("network", "kind", "parameters", "accuracy %", "std")]
    printed += [(r["name"], r["kind"], f"{r['parameters']:,}", f"{r['mean']:.2%}", f"{r['std']:.2%}") for r in rows]
    return printed


def _one_seed(name: str, seed: int, folder: str) -> dict[str, dict[str, Any]]:
    """The figures of one seed, from its file if an earlier run of the same versions finished it."""
    path = Path(folder) / f"seed-{seed}.json"
    table = TABLES[name]
    problem = problem_hash({"name": name, "seed": seed, "versions": versions(), "settings": table.settings})
    if path.exists():
        try:
            content = read_json(path)
            if content["problem"] == problem:
                return content["figures"]
        except (FileFormatError, KeyError, TypeError):
            pass  # a damaged or foreign file: the seed is run again
    with one_thread():
        figures = table.run(seed)
    write_json(path, {"problem": problem, "figures": figures})
    return figures


def _markdown(title: str, rows: list[dict[str, Any]], manifest: dict[str, Any]) -> str:
    lines = [
        f"# {title}",
        "",
        f"Test accuracy, mean and standard deviation over {len(rows[0]['seeds'])} seeds; simulated without noise.",
        "",
        "| network | kind | parameters | accuracy % | std |",
        "|---|---|---:|---:|---:|",
    ]
    lines += [
        f"| {row['name']}: {row['description']} | {row['kind']} | {row['parameters']:,} | {100 * row['mean']:.2f} | "
        f"{100 * row['std']:.2f} |"
        for row in rows
    ]
    found = ", ".join(f"{package} {version}" for package, version in manifest["versions"].items())
    lines += ["", f"Made by `{manifest['command']}` with {found}.", ""]
    return "\n".join(lines)
