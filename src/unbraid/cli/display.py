"""Progress bars and tables on the terminal, with rich."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from unbraid.ground import progress
from unbraid.ground.progress import Advance

console = Console()
errors = Console(stderr=True)


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
            self.progress.stop_task(bar)


@contextmanager
def shown(quiet: bool) -> Iterator[Callable[[str], None]]:
    """Show the progress of everything inside the block, unless ``quiet``; yields what prints a text above the bars."""
    if quiet:
        yield lambda text: None
        return
    bars = Bars()

    def say(text: str) -> None:
        bars.progress.console.print(text, highlight=False, markup=False, soft_wrap=True)

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
