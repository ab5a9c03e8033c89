"""Programs to counts: jobs within limits, tried again when they fail, kept in a store and found again after a crash.

Programs that are equal in everything run once. They are packed into jobs in their order, whatever the store holds, so
a resumed run makes the same jobs. A job is noted in the store before it is submitted and gets its id afterwards; its
counts replace that note in one transaction. What is in the store is not run. Noted jobs that hold wanted programs are
collected first, where the sampler's service can do that, however they were packed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from unbraid.ground import progress
from unbraid.ground.errors import ExecutionError, InvalidInputError, UnbraidError
from unbraid.quantum.programs import Program
from unbraid.quantum.store import Counts, Entry, ResultsStore

# IBM's job validation accepts every job below these; larger ones may be refused (documentation, "Job limits").
TWO_QUBIT_GATES_PER_JOB = 10_000
SHOTS_PER_JOB = 5_000_000
CIRCUITS_PER_JOB = 100
CALIBRATION_SHOTS = 100_000  # of each of the two circuits that tell how qubits are misread


@dataclass(frozen=True)
class Limits:
    """What a job holds at most; a single circuit above a limit is a job of its own.

    Attributes:
        circuits: PUBs.
        two_qubit_gates: of all circuits together.
        shots: of all circuits together.
    """

    circuits: int = CIRCUITS_PER_JOB
    two_qubit_gates: int = TWO_QUBIT_GATES_PER_JOB
    shots: int = SHOTS_PER_JOB

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InvalidInputError(f"max_{name} must be a positive integer; got {value!r}.")

    def pack(self, programs: Sequence[Program]) -> Iterator[range]:
        """Positions of each job's programs, in order."""
        first, gates, shots = 0, 0, 0
        for position, program in enumerate(programs):
            gates += program.template.two_qubit_gates
            shots += program.shots
            full = position - first >= self.circuits or gates > self.two_qubit_gates or shots > self.shots
            if full and position > first:
                yield range(first, position)
                first, gates, shots = position, program.template.two_qubit_gates, program.shots
        if first < len(programs):
            yield range(first, len(programs))


@dataclass(frozen=True)
class Patience:
    """How failures are borne.

    Attributes:
        retries: further tries of a job that could not be submitted, or failed.
        backoff: seconds before the first of them; doubled each time.
        timeout: seconds to wait for a job; None waits for ever.
    """

    retries: int = 3
    backoff: float = 1.0
    timeout: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.retries, bool) or not isinstance(self.retries, int) or self.retries < 0:
            raise InvalidInputError(f"retries must be an integer of at least 0; got {self.retries!r}.")
        if not _is_number(self.backoff) or not 0 <= self.backoff < float("inf"):
            raise InvalidInputError(f"backoff must be a number of seconds, 0 or more; got {self.backoff!r}.")
        if self.timeout is not None and not (_is_number(self.timeout) and self.timeout > 0):
            raise InvalidInputError(f"timeout must be a positive number of seconds, or None; got {self.timeout!r}.")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class TimedOutError(ExecutionError):
    """A job that has not ended in time; it may still end."""


Submit = Callable[[list[Any], int], Any]  # PUBs and the position of the job to a job


class JobRunner:
    """Runs programs job by job.

    Args:
        name: of the sampler, for messages.
        submit: makes a job of PUBs.
        limits: of a job.
        patience: with failures.
        store: where results are kept, or None.
        retrieve: a job by its id, such as ``QiskitRuntimeService.job``; None where jobs end with the process.
    """

    def __init__(
        self,
        name: str,
        submit: Submit,
        limits: Limits,
        patience: Patience,
        store: ResultsStore | None = None,
        retrieve: Callable[[str], Any] | None = None,
    ) -> None:
        self.name, self.submit, self.limits, self.patience = name, submit, limits, patience
        self.store, self.retrieve = store, retrieve

    def run(self, programs: Sequence[Program], size: int, salt: str = "") -> tuple[Counts, tuple[str, ...]]:
        """Counts of programs, shape (programs, size), and the ids of the jobs that brought them now.

        Args:
            programs: in order; equal ones get the same counts.
            size: number of outcomes, the same for all.
            salt: part of the keys; another one measures anew.

        Raises:
            ExecutionError: if the sampler fails more often than patience bears, does not return what was asked for, or
                a submitted job cannot be fetched.
            FileFormatError: if the store is damaged.
            OutputError: if the store cannot be written to.
        """
        keys = [program.key(salt) for program in programs]
        position = {key: k for k, key in enumerate(dict.fromkeys(keys))}
        unique = list(dict(zip(keys, programs, strict=True)).values())
        entries = [_entry(key, program, size) for key, program in zip(position, unique, strict=True)]
        counts = np.zeros((len(unique), size), dtype=np.int64)
        with progress.task("circuits", len(unique)) as advance:
            jobs = self._collect([entry.key for entry in entries])
            for number, members in enumerate(self.limits.pack(unique)):
                rows = {} if self.store is None else self.store.get([entries[k].key for k in members])
                missing = [k for k in members if entries[k].key not in rows]
                if missing:
                    found, job = self._one_job([unique[k] for k in missing], [entries[k] for k in missing], number)
                    jobs.append(job)
                    rows |= found
                for k in members:
                    row = rows[entries[k].key]
                    if len(row) != size:
                        raise ExecutionError(f"The results store holds {len(row)} outcomes where {size} are expected.")
                    counts[k] = row
                advance(len(members))
        return counts[[position[key] for key in keys]], tuple(jobs)

    def _one_job(
        self, programs: Sequence[Program], entries: Sequence[Entry], number: int
    ) -> tuple[dict[str, Counts], str]:
        """Counts of programs by key, and the id of the job that brought them."""
        job, name, ticket = None, "", ""
        failure: Exception | None = None
        for attempt in range(self.patience.retries + 1):
            self._pause(attempt)
            try:
                if job is None:
                    ticket = "" if self.store is None else self.store.intend(entries)
                    job = self.submit([program.pub for program in programs], number)
                    name = str(job.job_id())
            except UnbraidError:
                raise
            except Exception as error:  # whatever a foreign sampler raises
                failure, job = error, None
                if self.store is not None:
                    self.store.forget(ticket)
                continue
            with self._named(ticket, name):
                try:
                    results = list(self._wait(job, name))
                except UnbraidError:
                    raise
                except Exception as error:
                    failure = error
                    if _has_failed(job):
                        job = None
                        if self.store is not None:
                            self.store.forget(name)
                    continue  # if it may be well, and only the way to it is not, it is asked again
                return self._kept(results, entries, name, ticket), name
        raise ExecutionError(
            f"{self.name} failed {self.patience.retries + 1} times on a job of {len(programs)} circuits: "
            f"{type(failure).__name__}: {failure}"
        ) from failure

    @contextmanager
    def _named(self, ticket: str, name: str) -> Iterator[None]:
        """The job's id in the store; if that cannot be, the work goes on, and an error that ends it names the job."""
        unnoted: UnbraidError | None = None
        if self.store is not None:
            try:
                self.store.submitted(ticket, name)
            except UnbraidError as error:
                unnoted = error
        try:
            yield
        except UnbraidError as error:
            if unnoted is None or self.store is None:
                raise
            raise type(error)(
                f"{error} Job {name} was submitted, and its id could not be noted ({unnoted}). Before the next run, "
                f"note it: ResultsStore({str(self.store.path)!r}).submitted({ticket!r}, {name!r})."
            ) from error

    def _kept(self, results: Sequence[Any], entries: Sequence[Entry], name: str, ticket: str = "") -> dict[str, Counts]:
        """A job's counts by key, put into the store."""
        forget = "" if self.store is None else f" ResultsStore(...).forget({name!r}) lets its circuits run anew."
        if len(results) != len(entries):
            raise ExecutionError(
                f"{self.name} returned {len(results)} results for {len(entries)} circuits in job {name}.{forget}"
            )
        try:
            found = {entry.key: read_counts(result, entry) for result, entry in zip(results, entries, strict=True)}
        except ExecutionError as error:
            raise ExecutionError(f"{error} This is job {name}.{forget}") from error
        if self.store is not None:
            self.store.put(found, [name, ticket])
        return found

    def _collect(self, keys: Sequence[str]) -> list[str]:
        """Fetch the jobs of earlier runs that hold programs of these keys; the ids of those that brought something."""
        if self.store is None:
            return []
        missing = set(keys) - self.store.have(keys)
        collected = []
        for name, noted in self.store.pending().items():
            if missing.isdisjoint(entry.key for entry in noted.entries):
                continue
            if self.retrieve is None:  # it ended with the process that submitted it
                self.store.forget(name)
            elif not noted.submitted:
                store = f"ResultsStore({str(self.store.path)!r})"
                raise ExecutionError(
                    f"An earlier run ended at {noted.since} (UTC) while it submitted {len(noted.entries)} circuits, so "
                    "a job may hold them whose id is not known. Look at your provider's list of jobs. If it is there: "
                    f"{store}.submitted({name!r}, the job's id). If not: {store}.forget({name!r})."
                )
            elif self._collected(name, noted.entries):
                collected.append(name)
        return collected

    def _collected(self, name: str, entries: Sequence[Entry]) -> bool:
        """Put the results of an earlier job into the store; False if it failed and its programs may run again."""
        failure: Exception | None = None
        for attempt in range(self.patience.retries + 1):
            self._pause(attempt)
            job = None
            try:
                assert self.retrieve is not None
                job = self.retrieve(name)
                results = list(self._wait(job, name))
            except UnbraidError:
                raise
            except Exception as error:  # whatever a foreign service raises
                failure = error
                if job is not None and _has_failed(job):
                    assert self.store is not None
                    self.store.forget(name)
                    return False
                continue
            self._kept(results, entries, name)
            return True
        raise ExecutionError(
            f"Job {name} was submitted before and cannot be fetched ({type(failure).__name__}: {failure}). It was "
            f"not submitted again. Try later; or ResultsStore(...).forget({name!r}) to run its circuits anew."
        ) from failure

    def _pause(self, attempt: int) -> None:
        if attempt:
            time.sleep(self.patience.backoff * 2 ** (attempt - 1))

    def _wait(self, job: Any, name: str) -> Any:
        """The job's result, or an error after the timeout."""
        if self.patience.timeout is None:
            return job.result()
        outcome: dict[str, Any] = {}

        def wait() -> None:
            try:
                outcome["result"] = job.result()
            except Exception as error:
                outcome["error"] = error

        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        thread.join(self.patience.timeout)
        if thread.is_alive():
            kept = " It is noted in the store: run again to collect it."
            kept = "" if self.store is None or self.retrieve is None else kept
            raise TimedOutError(
                f"Job {name} of {self.name} has not ended after {self.patience.timeout:g} seconds.{kept}"
            )
        if "error" in outcome:
            raise outcome["error"]
        return outcome["result"]


def _has_failed(job: Any) -> bool:
    """Whether a job says so, or says nothing."""
    try:
        status = job.status()
    except Exception:  # whatever a foreign job raises, or there is no such method
        return not hasattr(job, "status")
    return str(getattr(status, "name", status)).upper() in ("ERROR", "FAILED", "CANCELLED")


def _entry(key: str, program: Program, size: int) -> Entry:
    return Entry(key, program.template.circuit.cregs[0].name, size, program.shots)


def read_counts(result: Any, entry: Entry) -> Counts:
    """Outcomes of one PUB, shape (size,).

    Raises:
        ExecutionError: if there are no counts of all qubits, or not as many shots as were asked for.
    """
    try:
        bits = getattr(result.data, entry.register)
        # get_int_counts() of BitArray says the same, twenty times slower
        digits = bits.array.reshape(-1, bits.array.shape[-1]).astype(np.int64)
        outcomes = digits @ 256 ** np.arange(digits.shape[1], dtype=np.int64)[::-1]
        row = np.bincount(outcomes, minlength=entry.size)
        if len(row) != entry.size:
            raise ValueError(f"outcome {int(outcomes.max())} of {entry.size}")
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise ExecutionError(f"The sampler returned no counts of all qubits, but {result!r}.") from error
    if len(outcomes) != entry.shots:
        raise ExecutionError(
            f"The sampler returned {len(outcomes)} shots where {entry.shots} were asked for. Check its options, such "
            "as a cap."
        )
    return row.astype(np.int64)
