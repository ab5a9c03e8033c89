"""Progress of long work: the library reports it, a front end (the command line) shows it.

The library calls :func:`track` or :func:`task`; they do nothing unless a front end has entered :func:`shown_by`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Protocol, TypeVar

Item = TypeVar("Item")
Advance = Callable[..., None]  # advance(steps=1, note="")


class Display(Protocol):
    """What a front end provides: one bar a task."""

    def task(self, description: str, total: int | None) -> AbstractContextManager[Advance]:
        """Open a bar; ``total`` is None where the number of steps is unknown."""
        ...


_display: ContextVar[Display | None] = ContextVar("unbraid_progress_display", default=None)


@contextmanager
def shown_by(display: Display) -> Iterator[None]:
    """Show the progress of everything inside the block on ``display``."""
    token = _display.set(display)
    try:
        yield
    finally:
        _display.reset(token)


def _silent(steps: int = 1, note: str = "") -> None:
    """The bar that nobody looks at."""


@contextmanager
def task(description: str, total: int | None = None) -> Iterator[Advance]:
    """A bar for one piece of work; yields ``advance(steps=1, note="")``."""
    display = _display.get()
    if display is None:
        yield _silent
        return
    with display.task(description, total) as advance:
        yield advance


def track(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Iterate over ``items`` with a bar."""
    if total is None and hasattr(items, "__len__"):
        total = len(items)  # type: ignore[arg-type]
    with task(description, total) as advance:
        for item in items:
            yield item
            advance()
