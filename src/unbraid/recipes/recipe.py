"""What a recipe of ``unbraid reproduce`` consists of: units of work, and how their results become a table and a plot.

A recipe is a file of its own with a ``RECIPE``; :mod:`unbraid.recipes.reproduce` lists them and runs them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from unbraid.ground.errors import InvalidInputError
from unbraid.recipes.catalogue import PUBLISHED
from unbraid.recipes.datasets import Dataset, load_dataset, read_published
from unbraid.recipes.layouts import Pixels

Row = dict[str, Any]


@dataclass(frozen=True)
class Request:
    """What was asked for; every task gets it.

    Attributes:
        recipe: its name.
        settings: the recipe's own, a frozen dataclass.
        seeds: seeds 0, 1, ..., seeds - 1.
        data_dir: of published data sets, or None.
        device: where torch computes.
        model: a folder of another model than the recipe's, or None.
    """

    recipe: str
    settings: Any
    seeds: int
    data_dir: Path | None = None
    device: str = "cpu"
    model: Path | None = None

    def load(self, name: str, *, seed: int, size: int | None = None) -> Dataset:
        """A published data set from the folder of ``--data-dir``.

        Raises:
            InvalidInputError: if no folder was given, or it does not hold the files.
        """
        if self.data_dir is None:
            published = PUBLISHED[name]
            raise InvalidInputError(
                f"reproduce {self.recipe} needs {published.title}: give the folder that holds {name}/ or "
                f"{', '.join(published.files)} with --data-dir."
            )
        return _load_once(name, self.data_dir, seed, size)


# The tasks of a process share what was read and made: decoding 60,000 images takes longer than a short task.
@lru_cache(maxsize=1)
def _load_once(name: str, data_dir: Path, seed: int, size: int | None) -> Dataset:
    return load_dataset(name, data_dir=data_dir, seed=seed, size=size, read=_read_once)


@lru_cache(maxsize=1)
def _read_once(name: str, data_dir: Path) -> Pixels:
    return read_published(name, data_dir)


@dataclass(frozen=True)
class Task:
    """One unit of work. Its result is kept as a file, and run again only if something that it depends on changed.

    Attributes:
        name: of the file, without its ending.
        run: called as ``run(request, **arguments)``, or ``run(request, given, **arguments)`` with the result of the
            task ``after``; a function of a module, for other processes. What it returns must be ready for JSON.
        arguments: ready for JSON.
        after: name of the task that it waits for; that one waits for none.
        seed: whose data it depends on, if any.
        depends: what else decides the result, such as the declaration of a network that ``arguments`` only name; ready
            for JSON.
        resumes: whether it takes hours: ``run`` then also gets ``checkpoint_dir``, a folder to keep its progress in.
    """

    name: str
    run: Callable[..., Any]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    after: str | None = None
    seed: int | None = None
    depends: Any = None
    resumes: bool = False


@dataclass(frozen=True)
class Section:
    """A table for people.

    Attributes:
        columns: the head.
        cells: as many a line as there are columns.
        heading: over the table, or none.
        note: a sentence under the heading.
        details: what each line is; written out in the file only, after its first cell.
    """

    columns: tuple[str, ...]
    cells: tuple[tuple[str, ...], ...]
    heading: str = ""
    note: str = ""
    details: tuple[str, ...] = ()

    @property
    def lines(self) -> list[tuple[str, ...]]:
        """The head and the cells."""
        return [self.columns, *self.cells]


@dataclass(frozen=True)
class Outcome:
    """What a recipe found.

    Attributes:
        title: names the table or figure and the data.
        note: what was measured, on what, over which seeds, and what the spread is.
        rows: for JSON; each has ``name``, ``kind``, ``parameters``, ``mean``, ``std``, ``seeds``, ``paper``.
        sections: the same for people.
        extra: further keys of the JSON file.
    """

    title: str
    note: str
    rows: list[Row]
    sections: tuple[Section, ...]
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """A table or figure that can be remade.

    Attributes:
        settings: of a full run, a frozen dataclass; everything the results depend on besides seeds and data.
        quick: of a run with ``--quick``.
        seeds: of a full run, by default.
        quick_seeds: of a run with ``--quick``, by default.
        data: the data of a seed; None if the recipe needs none.
        tasks: the units of work.
        assemble: from the results by the name of the task.
        plot: writes the PNG file.
        extras: modules that it needs besides, and the extra that each comes with; looked for before any work.
        devices: whether tasks heed the device of a request; the others compute on the CPU.
        models: whether they heed its model.
    """

    settings: Any
    quick: Any
    seeds: int
    quick_seeds: int
    data: Callable[[Request, int], Dataset] | None
    tasks: Callable[[Request], list[Task]]
    assemble: Callable[[Request, Mapping[str, Any]], Outcome]
    plot: Callable[[Path, Sequence[Row]], None]
    extras: Mapping[str, str] = field(default_factory=dict)
    devices: bool = False
    models: bool = False


GATE_COUNTS = {"qiskit_ibm_runtime.fake_provider": "ibm"}  # extras of recipes that transpile


def make_row(
    name: str,
    kind: str,
    values: Sequence[float],
    *,
    seeds: Sequence[int],
    parameters: int | None = None,
    paper: Mapping[str, Any] | None = None,
    **more: Any,
) -> Row:
    """A row of ``NAME.json``: mean and sample standard deviation of ``values``, and whatever else belongs to it.

    Args:
        name: of the row.
        kind: "original" | "hybrid" | "control" | "peer".
        values: one a seed.
        seeds: as many.
        parameters: trainable scalars.
        paper: its numbers; "parameters" and "value" are null where it has none.
        more: further keys.
    """
    return {
        "name": name,
        "kind": kind,
        **more,
        "parameters": parameters,
        "mean": statistics.fmean(values) if values else None,
        "std": spread(values),
        "seeds": list(seeds),
        "values": list(values),
        "paper": {"parameters": None, "value": None, **(paper or {})},
    }


def spread(values: Sequence[float]) -> float:
    """Sample standard deviation; 0 for a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def with_spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean and standard deviation as text."""
    if not values or not all(math.isfinite(value) for value in values):
        return "-"
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {spread(values):.{digits}f}" if len(values) > 1 else mean


def counted(number: int, noun: str) -> str:
    """``1 seed``, ``2 seeds``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def plot_accuracies(path: Path, rows: Sequence[Row]) -> None:
    """The plot of a recipe whose rows are accuracies of networks."""
    from unbraid.report.plots import plot_rows, save_png

    save_png(path, lambda ax: plot_rows(rows, ax=ax))
