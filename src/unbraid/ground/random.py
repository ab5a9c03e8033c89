"""One random stream a task, spawned from a seed.

A stream is named by the seed and the path of the task ("heal", epoch 3; "restart", 2). Streams of different paths are
independent, and none depends on the order in which tasks run, so parallel runs equal serial ones and a resumed run
equals an uninterrupted one. Nothing here reads or changes global state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from unbraid.ground.errors import InvalidInputError


def stream_seed(seed: int, *path: str | int) -> int:
    """A 63-bit seed for the task ``path`` under ``seed``, the same on every machine.

    Raises:
        InvalidInputError: if ``seed`` is not an integer.
    """
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise InvalidInputError(f"seed must be an integer; got {seed!r}.")
    text = "/".join([str(seed), *(str(part) for part in path)])
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def stream(seed: int, *path: str | int, device: torch.device | str | None = None) -> torch.Generator:
    """A generator of its own for the task ``path`` under ``seed``."""
    return torch.Generator(device=device or "cpu").manual_seed(stream_seed(seed, *path))


@contextmanager
def isolated(seed: int, *path: str | int) -> Iterator[None]:
    """Run a block (dropout, a model's own initialisation) on the stream ``path``, then restore torch's global state."""
    with torch.random.fork_rng(devices=list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []):
        torch.manual_seed(stream_seed(seed, *path))
        yield
