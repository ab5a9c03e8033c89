"""Progress bars and tables on the terminal, with rich."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from unbraid.ground import progress
from unbraid.ground.progress import Advance

console = Console()
errors = Console(stderr=True)

SECONDS_BETWEEN_LINES = 10  # of one task in a log


class Bars:
    """One bar a task, on standard error, so that standard output stays clean."""

    def __init__(self) -> None:
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<28}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=errors,
        )

    @contextmanager
    def task(self, description: str, total: int | None) -> Iterator[Advance]:
        """Open a bar."""
        bar = self.progress.add_task(description, total=total, note="")

        def advance(steps: int = 1, note: str = "") -> None:
            self.progress.update(bar, advance=steps, note=note)

        try:
            yield advance
        finally:
            if total is None:  # known now: the bar comes to rest
                self.progress.update(bar, total=self.progress.tasks[bar].completed)
            self.progress.stop_task(bar)


class Lines:
    """For logs: a line a task now and then and at its end, where a terminal would redraw bars."""

    @contextmanager
    def task(self, description: str, total: int | None) -> Iterator[Advance]:
        """Open what a terminal shows as a bar."""
        began = said = time.monotonic()
        done = 0
        told = ""

        def say() -> None:
            passed = timedelta(seconds=int(time.monotonic() - began))
            of = "" if total is None else f"/{total}"
            errors.print(f"{description}: {done}{of}, {passed} {told}".rstrip(), highlight=False, markup=False)

        def advance(steps: int = 1, note: str = "") -> None:
            nonlocal said, done, told
            done, told = done + steps, note
            if done != total and time.monotonic() - said >= SECONDS_BETWEEN_LINES:
                said = time.monotonic()
                say()

        try:
            yield advance
        finally:
            say()


@contextmanager
def shown(quiet: bool) -> Iterator[Callable[[str], None]]:
    """Show the progress of everything inside the block, unless ``quiet``; yields what prints a text above the bars."""
    if quiet:
        yield lambda text: None
        return

    def say(text: str) -> None:
        errors.print(text, highlight=False, markup=False, soft_wrap=True)

    if not errors.is_terminal:
        with progress.shown_by(Lines()):
            yield say
        return
    bars = Bars()
    with bars.progress, progress.shown_by(bars):
        yield say


def print_text(heading: str, text: str) -> None:
    """Print a heading, if there is one, and a text under it."""
    if heading:
        console.print(f"\n[bold]{escape(heading)}[/bold]", highlight=False)
    if text:
        console.print(text, highlight=False, markup=False)


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows as a table, the first row as its head; columns of numbers but the first to the right."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for number, head in enumerate(rows[0]):
        numeric = number > 0 and all(row[number][:1] in "0123456789-–" for row in rows[1:])
        table.add_column(head, justify="right" if numeric else "left", overflow="fold")
    for row in rows[1:]:
        table.add_row(*(escape(cell) for cell in row))
    console.print(table)


def print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Print (name, value) pairs, one a line."""
    width = max((len(name) for name, _ in facts), default=0)
    for name, value in facts:
        console.print(f"{name.ljust(width)}  {value}", highlight=False, markup=False, soft_wrap=True)


def finish(
    rows: list[tuple[str, ...]],
    out: Path,
    quiet: bool,
    *,
    facts: Sequence[tuple[str, str]] = (),
) -> None:
    """Print a table and what else is known, unless ``quiet``, and where the report is."""
    if not quiet:
        print_table(rows)
        print_facts(facts)
    written(out / "report.html", quiet)


def written(path: Path, quiet: bool) -> None:
    """Print where something was written."""
    target = path.resolve()
    console.print(str(target) if quiet else f"Written: {target}", highlight=False, soft_wrap=True, markup=False)
