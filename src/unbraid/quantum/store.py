"""Results of circuits on disk: what was measured is never measured again, and submitted jobs are found again.

A SQLite file with three tables: ``results`` (counts by the key of a program), ``jobs`` (submitted, not yet collected,
with the keys of their programs) and ``about`` (the version of the layout). A key is a hash of circuit, angles, shots
and backend. Nothing else is written: no credentials, no names of accounts.

Every write is one transaction, so a process that is killed leaves whole results or none.
"""

from __future__ import annotations

import json
import os
import sqlite3
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unbraid.ground.errors import ExecutionError, FileFormatError, InvalidInputError, OutputError

Counts = NDArray[np.int64]

VERSION = 1
LOCK_SECONDS = 10.0
_CHUNK = 500  # of keys in one question


class ResultsStore:
    """A results store in one file.

    Args:
        path: of the file; created if it is not there, in a folder that is.
        lock_seconds: how long to wait for another process that writes.

    Raises:
        InvalidInputError: if the path is no place for a file.
        FileFormatError: if the file is damaged or no results store.
        OutputError: if it cannot be written to.
    """

    def __init__(self, path: str | os.PathLike[str], *, lock_seconds: float = LOCK_SECONDS) -> None:
        if not isinstance(path, str | os.PathLike) or not str(path):
            raise InvalidInputError(f"The path of a results store must be a file name; got {path!r}.")
        self.path = Path(path)
        if self.path.is_dir() or not self.path.absolute().parent.is_dir():
            raise InvalidInputError(f"A results store must be a file in a folder that exists; got {os.fspath(path)!r}.")
        with self._guarded():
            self._file = sqlite3.connect(self.path, timeout=lock_seconds, isolation_level=None, check_same_thread=False)
            self._file.execute("PRAGMA synchronous = FULL")
            tables = {name for (name,) in self._file.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if not tables:
                self._create()
            elif not {"about", "results", "jobs"} <= tables:
                raise FileFormatError(f"{self.path} is a SQLite file of something else. Choose another name.")
            (version,) = self._file.execute("SELECT version FROM about").fetchone() or (None,)
        if version != VERSION:
            raise FileFormatError(
                f"{self.path} is a results store of version {version}; this package reads version {VERSION}."
            )

    def __repr__(self) -> str:
        return f"ResultsStore({str(self.path)!r})"

    def __len__(self) -> int:
        with self._guarded():
            return int(self._file.execute("SELECT COUNT(*) FROM results").fetchone()[0])

    def __deepcopy__(self, memo: object) -> ResultsStore:
        return self  # the file is one, whatever holds it

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def get(self, keys: Sequence[str]) -> dict[str, Counts]:
        """The counts that are there, by key.

        Raises:
            FileFormatError: if an entry is damaged.
        """
        found: dict[str, Counts] = {}
        wanted = list(dict.fromkeys(keys))
        with self._guarded():
            for first in range(0, len(wanted), _CHUNK):
                part = wanted[first : first + _CHUNK]
                marks = ", ".join("?" * len(part))
                rows = self._file.execute(f"SELECT key, counts, sum FROM results WHERE key IN ({marks})", part)
                for key, content, checksum in rows:
                    if zlib.crc32(content) != checksum or len(content) % 8:
                        raise FileFormatError(
                            f"{self.path} is damaged: the result {key[:12]} does not match its checksum. Restore a "
                            "copy, or remove the file to measure again."
                        )
                    found[key] = np.frombuffer(content, dtype="<i8").astype(np.int64)
        return found

    def put(self, results: Mapping[str, Counts], job: str | None = None) -> None:
        """Keep counts, and forget the job that brought them, at once.

        Raises:
            OutputError: if the file cannot be written to.
        """
        rows = []
        for key, counts in results.items():
            content = np.ascontiguousarray(counts, dtype="<i8").tobytes()
            rows.append((key, content, zlib.crc32(content)))
        with self._transaction() as file:
            file.executemany("INSERT OR REPLACE INTO results VALUES (?, ?, ?)", rows)
            if job is not None:
                file.execute("DELETE FROM jobs WHERE id = ?", (job,))

    def check_writable(self) -> None:
        """Fail before something is paid for, not after.

        Raises:
            ExecutionError: if another process holds the file.
            OutputError: if it cannot be written to.
        """
        with self._transaction() as file:
            file.execute("UPDATE about SET version = version")

    def submitted(self, job: str, keys: Sequence[str]) -> None:
        """Note a job that runs now, with its programs in order.

        Raises:
            OutputError: if the file cannot be written to.
        """
        with self._transaction() as file:
            file.execute("INSERT OR REPLACE INTO jobs VALUES (?, ?)", (job, json.dumps(list(keys))))

    def pending(self) -> dict[str, list[str]]:
        """Jobs that were submitted and not collected, with the keys of their programs."""
        with self._guarded():
            return {job: json.loads(keys) for job, keys in self._file.execute("SELECT id, keys FROM jobs")}

    def forget(self, job: str) -> None:
        """No longer look for a job, so that its programs run again.

        Raises:
            OutputError: if the file cannot be written to.
        """
        with self._transaction() as file:
            file.execute("DELETE FROM jobs WHERE id = ?", (job,))

    def _create(self) -> None:
        with self._transaction() as file:
            file.execute("CREATE TABLE IF NOT EXISTS about (version INTEGER NOT NULL)")
            file.execute("CREATE TABLE IF NOT EXISTS results (key TEXT PRIMARY KEY, counts BLOB, sum INTEGER)")
            file.execute("CREATE TABLE IF NOT EXISTS jobs (id TEXT PRIMARY KEY, keys TEXT)")
            if file.execute("SELECT COUNT(*) FROM about").fetchone() == (0,):
                file.execute("INSERT INTO about VALUES (?)", (VERSION,))

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._guarded():
            self._file.execute("BEGIN IMMEDIATE")
            try:
                yield self._file
                self._file.execute("COMMIT")
            except BaseException:
                if self._file.in_transaction:
                    self._file.execute("ROLLBACK")
                raise

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """SQLite's errors in words."""
        try:
            yield
        except sqlite3.OperationalError as error:
            text = str(error)
            if "locked" in text or "busy" in text:
                raise ExecutionError(
                    f"The results store {self.path} is locked by another process. Wait for it, or use another file."
                ) from error
            if "malformed" in text or "disk image" in text:
                raise self._damaged(text) from error
            raise OutputError(
                f"The results store {self.path} cannot be used: {text}. Check space and rights."
            ) from error
        except sqlite3.ProgrammingError as error:  # closed
            raise InvalidInputError(f"The results store {self.path} cannot be used: {error}") from error
        except (sqlite3.DatabaseError, ValueError, TypeError) as error:
            raise self._damaged(str(error)) from error

    def _damaged(self, text: str) -> FileFormatError:
        return FileFormatError(
            f"{self.path} is damaged or no results store ({text}). Restore a copy, or choose another file."
        )
