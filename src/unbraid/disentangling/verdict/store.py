"""What a verdict keeps on disk while it searches."""

from __future__ import annotations

import os
from typing import Any

from unbraid.ground.files import make_directory, read_checkpoint, write_checkpoint


class Store:
    """The candidates that are done, a file each, in a folder."""

    def __init__(self, folder: str | os.PathLike[str] | None, problem: str) -> None:
        self.folder = None if folder is None else make_directory(folder)
        self.problem = problem

    def load(self, key: str) -> Any:
        """What was kept, or None."""
        if self.folder is None or not (self.folder / _file(key)).exists():
            return None
        return read_checkpoint(self.folder / _file(key), self.problem)

    def save(self, key: str, state: Any) -> None:
        """Keep a candidate."""
        if self.folder is not None:
            write_checkpoint(self.folder / _file(key), state, self.problem)


def _file(key: str) -> str:
    return f"{key.replace(' ', '-')}.candidate"
