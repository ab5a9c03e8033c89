"""Progress bars and tables on the terminal, with rich."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
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
def shown(quiet: bool) -> Iterator[None]:
    """Show the progress of everything inside the block, unless ``quiet``."""
    if quiet:
        yield
        return
    bars = Bars()
    with bars.progress, progress.shown_by(bars):
        yield


def print_table(rows: Sequence[Sequence[str]], *, title: str | None = None) -> None:
    """Print rows as a table, the first row as its head; numbers to the right."""
    table = Table(title=title, title_justify="left")
    for number, head in enumerate(rows[0]):
        table.add_column(head, justify="left" if number == 0 else "right", overflow="fold")
    for row in rows[1:]:
        table.add_row(*row)
    console.print(table)
