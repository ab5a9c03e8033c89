"""Progress in a log, where no terminal redraws bars."""

import pytest

from unbraid.cli import display
from unbraid.ground import progress


@pytest.mark.parametrize(("seconds", "lines"), [(0, 3), (1000, 1)])
def test_logs_get_lines_at_intervals_and_at_the_end(capsys, monkeypatch, seconds, lines):
    monkeypatch.setattr(display, "SECONDS_BETWEEN_LINES", seconds)
    with display.shown(quiet=False), progress.task("tasks", 3) as advance:
        for number in range(3):
            advance(note=f"number {number}")
    found = capsys.readouterr().err.splitlines()
    assert len(found) == lines
    assert found[-1] == "tasks: 3/3, 0:00:00 number 2"


def test_the_end_is_told_also_after_an_error(capsys):
    def broken():
        with display.shown(quiet=False), progress.task("reading") as advance:
            advance()
            raise ValueError("boom")

    with pytest.raises(ValueError, match="boom"):
        broken()
    assert capsys.readouterr().err == "reading: 1, 0:00:00\n"
