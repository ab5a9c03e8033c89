"""Results of circuits on disk: what was measured is never measured again, and submitted jobs are found again.

A SQLite file with three tables: ``results`` (counts by the key of a program), ``jobs`` (not yet collected, with what
their programs return) and ``about`` (the version of the layout). A key is a hash of circuit, angles, shots and backend.
Nothing else is written: no credentials, no names of accounts.

A job is noted before it is submitted, by a ticket, and gets its id afterwards. A ticket that is found later tells that
a process ended between the two.

Every write is one transaction, so a process that is killed leaves whole results or none.
"""

from __future__ import annotations

import json
import os
import platform
import sqlite3
import threading
import uuid
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unbraid.ground.errors import ExecutionError, FileFormatError, InvalidInputError, OutputError, UnbraidError

Counts = NDArray[np.int64]

VERSION = 2
LOCK_SECONDS = 10.0
_CHUNK = 500  # of keys in one question
_JOB_COLUMNS = "id, entries, since, submitted, retrievable, host, process"


class Entry(NamedTuple):
    """What a program of a job returns.

    Attributes:
        key: of the program.
        register: of its classical bits.
        size: number of outcomes.
        shots: of the program.
    """

    key: str
    register: str
    size: int
    shots: int


@dataclass(frozen=True)
class Pending:
    """A job that was not collected.

    Attributes:
        entries: its programs, in order.
        since: when it was noted, UTC, as text.
        submitted: False if its id is not known (yet).
        retrievable: whether the process that noted it could find it by its id.
        host: name of the machine of that process.
        process: its number there.
    """

    entries: tuple[Entry, ...]
    since: str
    submitted: bool
    retrievable: bool
    host: str
    process: int


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
        self._lock = threading.RLock()
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

    def have(self, keys: Sequence[str]) -> set[str]:
        """Those of the keys that have counts."""
        with self._guarded():
            return {key for part in _parts(keys) for (key,) in self._select("key", part)}

    def get(self, keys: Sequence[str]) -> dict[str, Counts]:
        """The counts that are there, by key.

        Raises:
            FileFormatError: if an entry is damaged.
        """
        found: dict[str, Counts] = {}
        with self._guarded():
            for part in _parts(keys):
                for key, content, checksum in self._select("key, counts, sum", part):
                    if zlib.crc32(content) != checksum or len(content) % 8:
                        raise FileFormatError(
                            f"{self.path} is damaged: the result {key[:12]} does not match its checksum. Restore a "
                            "copy, or remove the file to measure again."
                        )
                    found[key] = np.frombuffer(content, dtype="<i8").astype(np.int64)
        return found

    def put(self, results: Mapping[str, Counts], jobs: Sequence[str] = ()) -> None:
        """Keep counts, and forget the jobs that brought them, at once.

        Raises:
            OutputError: if the file cannot be written to.
        """
        rows = []
        for key, counts in results.items():
            content = np.ascontiguousarray(counts, dtype="<i8").tobytes()
            rows.append((key, content, zlib.crc32(content)))
        with self._transaction() as file:
            file.executemany("INSERT OR REPLACE INTO results VALUES (?, ?, ?)", rows)
            file.executemany("DELETE FROM jobs WHERE id = ?", [(job,) for job in jobs])

    def claim(self, ticket: str, entries: Sequence[Entry], *, retrievable: bool) -> bool:
        """Note a job that will be submitted now, unless there are results of some of its programs or a job for them.

        Args:
            ticket: stands in the place of the job's id, see :func:`new_ticket`.
            entries: its programs, in order.
            retrievable: whether the job can be found by its id.

        Returns:
            Whether it was noted.

        Raises:
            ExecutionError: if another process holds the file.
            OutputError: if it cannot be written to.
        """
        since = datetime.now(UTC).isoformat(timespec="seconds")
        keys = [entry.key for entry in entries]
        with self._transaction() as file:  # one process at a time
            taken = {entry.key for noted in self.pending().values() for entry in noted.entries}
            if not taken.isdisjoint(keys) or self.have(keys):
                return False
            row = (ticket, json.dumps(entries), since, 0, int(retrievable), platform.node(), os.getpid())
            file.execute("INSERT INTO jobs VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        return True

    def submitted(self, ticket: str, job: str) -> None:
        """Put a job's id in the place of its ticket.

        Raises:
            InvalidInputError: if there is no such ticket.
            OutputError: if the file cannot be written to.
        """
        with self._transaction() as file:
            file.execute("DELETE FROM jobs WHERE id = ? AND id <> ?", (job, ticket))
            if not file.execute("UPDATE jobs SET id = ?, submitted = 1 WHERE id = ?", (job, ticket)).rowcount:
                raise InvalidInputError(f"{self.path} has no ticket {ticket!r}; it has {sorted(self.pending())}.")

    def pending(self) -> dict[str, Pending]:
        """Jobs that were not collected, by id or ticket, the oldest first.

        Raises:
            FileFormatError: if an entry is damaged.
        """
        with self._guarded():
            rows = self._file.execute(f"SELECT {_JOB_COLUMNS} FROM jobs ORDER BY since, rowid").fetchall()
            return {
                job: Pending(tuple(map(_entry, json.loads(entries))), since, bool(sent), bool(kept), host, int(process))
                for job, entries, since, sent, kept, host, process in rows
            }

    def forget(self, job: str) -> None:
        """No longer look for a job, so that its programs run again.

        Raises:
            OutputError: if the file cannot be written to.
        """
        with self._transaction() as file:
            file.execute("DELETE FROM jobs WHERE id = ?", (job,))

    def _select(self, columns: str, keys: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        marks = ", ".join("?" * len(keys))
        yield from self._file.execute(f"SELECT {columns} FROM results WHERE key IN ({marks})", keys)

    def _create(self) -> None:
        with self._transaction() as file:
            file.execute("CREATE TABLE IF NOT EXISTS about (version INTEGER NOT NULL)")
            file.execute("CREATE TABLE IF NOT EXISTS results (key TEXT PRIMARY KEY, counts BLOB, sum INTEGER)")
            columns = _JOB_COLUMNS.replace("id,", "id TEXT PRIMARY KEY,")
            file.execute(f"CREATE TABLE IF NOT EXISTS jobs ({columns})")
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
        """SQLite's errors in words; one thread at a time."""
        try:
            with self._lock:
                yield
        except UnbraidError:
            raise
        except sqlite3.OperationalError as error:
            text = str(error)
            if "locked" in text or "busy" in text:
                raise ExecutionError(
                    f"The results store {self.path} is locked by another process. Wait for it, or use another file."
                ) from error
            if "malformed" in text or "disk image" in text or "no such column" in text:
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


def new_ticket() -> str:
    """A name that no other job has."""
    return f"ticket-{uuid.uuid4().hex[:12]}"


def _entry(found: Sequence[Any]) -> Entry:
    key, register, size, shots = found
    return Entry(str(key), str(register), int(size), int(shots))


def _parts(keys: Sequence[str]) -> Iterator[list[str]]:
    """Different keys, as many at a time as one question takes."""
    wanted = list(dict.fromkeys(keys))
    for first in range(0, len(wanted), _CHUNK):
        yield wanted[first : first + _CHUNK]
