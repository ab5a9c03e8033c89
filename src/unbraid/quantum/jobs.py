"""Programs to counts: jobs within limits, tried again when they fail, kept in a store and found again after a crash.

Programs that are equal in everything run once. They are packed into jobs in their order, whatever the store holds, so
a resumed run makes the same jobs. A job is noted in the store before it is submitted and gets its id afterwards; its
counts replace that note in one transaction. What is in the store, or noted by another process, is not run. Noted jobs
that hold wanted programs are collected first, where the sampler's service can do that, however they were packed.
"""

from __future__ import annotations

import math
import os
import platform
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unbraid.ground import progress
from unbraid.ground.errors import ExecutionError, UnbraidError
from unbraid.quantum.limits import Limits, Patience
from unbraid.quantum.programs import Program
from unbraid.quantum.store import Counts, Entry, Pending, ResultsStore, new_ticket

_POLL_SECONDS = 0.2


class TimedOutError(ExecutionError):
    """A job that has not ended in time; it may still end."""


Submit = Callable[[list[Any], int], Any]  # PUBs and the position of the job to a job


@dataclass
class _Flight:
    """A job that was submitted.

    Attributes:
        programs: of the job, in order.
        entries: what they return.
        number: of the job in its run.
        job: the sampler's.
        name: its id.
        ticket: its place in the store before it had an id.
        attempts: submissions so far.
        unnoted: why the store does not know the id, if it does not.
    """

    programs: Sequence[Program]
    entries: Sequence[Entry]
    number: int
    job: Any
    name: str
    ticket: str
    attempts: int
    unnoted: UnbraidError | None = None


_alive: set[str] = set()  # tickets and ids of jobs that this process waits for now


class JobRunner:
    """Runs programs job by job.

    Args:
        name: of the sampler, for messages.
        submit: makes a job of PUBs.
        limits: of a job.
        patience: with failures.
        store: where results are kept, or None.
        retrieve: a job by its id, such as ``QiskitRuntimeService.job``; None where jobs end with the process.
        at_once: jobs under way at most.
    """

    def __init__(
        self,
        name: str,
        submit: Submit,
        limits: Limits,
        patience: Patience,
        store: ResultsStore | None = None,
        retrieve: Callable[[str], Any] | None = None,
        at_once: int = 1,
    ) -> None:
        self.name, self.submit, self.limits, self.patience = name, submit, limits, patience
        self.store, self.retrieve, self.at_once = store, retrieve, at_once
        self._held: set[str] = set()  # of _alive

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
        try:
            jobs = self._run(unique, entries, counts)
        finally:
            _alive.difference_update(self._held)
        return counts[[position[key] for key in keys]], tuple(jobs)

    def _run(self, unique: Sequence[Program], entries: Sequence[Entry], counts: Counts) -> list[str]:
        """Fill in the counts; the ids of the jobs that brought them now."""
        jobs: list[str] = []
        under_way: deque[tuple[range, _Flight | None]] = deque()
        with progress.task("circuits", len(unique)) as advance:

            def land() -> None:
                members, flight = under_way.popleft()
                rows: dict[str, Counts] = {}
                if flight is not None:
                    rows = self._finish(flight)
                    jobs.append(flight.name)
                if self.store is not None:
                    rows = self.store.get([entries[k].key for k in members])
                for k in members:
                    row = rows[entries[k].key]
                    if len(row) != entries[k].size:
                        raise ExecutionError(
                            f"The results store holds {len(row)} outcomes where {entries[k].size} are expected."
                        )
                    counts[k] = row
                advance(len(members))

            jobs += self._collect([entry.key for entry in entries])
            for number, members in enumerate(self.limits.pack(unique)):
                if len(under_way) >= self.at_once:
                    land()
                while (claimed := self._claim([entries[k] for k in members])) is None:
                    # another process measures some of them now; it may wait for what this one has under way
                    while under_way:
                        land()
                    jobs += self._collect([entries[k].key for k in members])
                missing, ticket = claimed
                flight = None
                if missing:
                    chosen = [k for k in members if entries[k].key in missing]
                    flight = self._send([unique[k] for k in chosen], [entries[k] for k in chosen], number, ticket)
                under_way.append((members, flight))
            while under_way:
                land()
        return jobs

    def _claim(self, entries: Sequence[Entry]) -> tuple[set[str], str] | None:
        """Keys of the programs that are to be run, and a ticket for them; None if another job holds some of them."""
        if self.store is None:
            return {entry.key for entry in entries}, ""
        have = self.store.have([entry.key for entry in entries])
        missing = [entry for entry in entries if entry.key not in have]
        if not missing:
            return set(), ""
        ticket = self._ticket(missing)
        return None if ticket is None else ({entry.key for entry in missing}, ticket)

    def _ticket(self, entries: Sequence[Entry]) -> str | None:
        """A place in the store for a job, held by this run; None if another job holds some of its programs."""
        assert self.store is not None
        ticket = new_ticket()
        self._hold(ticket)  # before others can see it
        return ticket if self.store.claim(ticket, entries, retrievable=self.retrieve is not None) else None

    def _hold(self, name: str) -> None:
        """Tell other threads of this process that a job is waited for."""
        self._held.add(name)
        _alive.add(name)

    def _send(
        self, programs: Sequence[Program], entries: Sequence[Entry], number: int, ticket: str, attempts: int = 0
    ) -> _Flight:
        """Submit a job, again if that fails."""
        failure: Exception | None = None
        while attempts <= self.patience.retries:
            self._pause(attempts)
            attempts += 1
            if not ticket and self.store is not None:
                again = self._ticket(entries)
                if again is None:
                    raise ExecutionError(
                        "Another process measures the same circuits now. Run again to take its results."
                    )
                ticket = again
            job = None
            try:
                job = self.submit([program.pub for program in programs], number)
                flight = _Flight(programs, entries, number, job, str(job.job_id()), ticket, attempts)
            except UnbraidError:
                self._forget(ticket)
                raise
            except Exception as error:  # whatever a foreign sampler raises
                failure = error
                if self.store is not None and self.retrieve is not None and (job is not None or _is_ambiguous(error)):
                    raise ExecutionError(
                        f"{self.name} failed while it submitted {len(programs)} circuits ({type(error).__name__}: "
                        f"{error}), and may have accepted them. {self._look(ticket)}"
                    ) from error
                self._forget(ticket)
                ticket = ""
                continue
            self._hold(flight.name)
            if self.store is not None:
                try:
                    self.store.submitted(ticket, flight.name)
                except UnbraidError as error:  # the work goes on, and an error that ends it names the job
                    flight.unnoted = error
            return flight
        raise self._exhausted(programs, failure)

    def _finish(self, flight: _Flight) -> dict[str, Counts]:
        """Wait for a job, submit it again if it failed, and keep its counts; by key."""
        failure: Exception | None = None
        lost = 0  # waits that failed although the job did not
        while True:
            try:
                results = list(self._wait(flight.job, flight.name))
                return self._kept(results, flight.entries, flight.name, flight.ticket)
            except UnbraidError as error:
                raise self._naming(flight, error) from error
            except Exception as error:  # whatever a foreign job raises
                failure = error
            if not _has_failed(flight.job):  # it may be well, and only the way to it is not: it is asked again
                lost += 1
                if flight.attempts + lost > self.patience.retries + 1:
                    raise self._naming(flight, self._exhausted(flight.programs, failure))
                self._pause(lost)
                continue
            self._forget(flight.name, flight.ticket)
            if flight.attempts > self.patience.retries:
                raise self._exhausted(flight.programs, failure)
            again = self._send(flight.programs, flight.entries, flight.number, "", flight.attempts)
            vars(flight).update(vars(again))

    def _exhausted(self, programs: Sequence[Program], failure: Exception | None) -> ExecutionError:
        error = ExecutionError(
            f"{self.name} failed {self.patience.retries + 1} times on a job of {len(programs)} circuits: "
            f"{type(failure).__name__}: {failure}"
        )
        error.__cause__ = failure
        return error

    def _forget(self, *names: str) -> None:
        if self.store is not None:
            for name in filter(None, names):
                self.store.forget(name)

    def _look(self, ticket: str) -> str:
        """What to do about a ticket without a job's id."""
        store = f"ResultsStore({str(self.store.path)!r})" if self.store is not None else ""
        return (
            "Look at your provider's list of jobs before the next run. If the job is there: "
            f"{store}.submitted({ticket!r}, the job's id). If not: {store}.forget({ticket!r})."
        )

    def _naming(self, flight: _Flight, error: UnbraidError) -> UnbraidError:
        """An error that ends the wait for a job; it names the job if the store does not know it."""
        if flight.unnoted is None or self.store is None:
            return error
        return type(error)(
            f"{error} Job {flight.name} was submitted, and its id could not be noted ({flight.unnoted}). Before the "
            f"next run, note it: ResultsStore({str(self.store.path)!r}).submitted({flight.ticket!r}, {flight.name!r})."
        )

    def _kept(self, results: Sequence[Any], entries: Sequence[Entry], name: str, ticket: str = "") -> dict[str, Counts]:
        """A job's counts by key, put into the store; those of whole results also if others are not."""
        forget = "" if self.store is None else f" ResultsStore(...).forget({name!r}) lets its circuits run anew."
        if len(results) != len(entries):
            raise ExecutionError(
                f"{self.name} returned {len(results)} results for {len(entries)} circuits in job {name}.{forget}"
            )
        found: dict[str, Counts] = {}
        failure: ExecutionError | None = None
        for result, entry in zip(results, entries, strict=True):
            try:
                found[entry.key] = read_counts(result, entry)
            except ExecutionError as error:
                failure = failure or error
        if self.store is not None:
            self.store.put(found, [name, ticket])
        if failure is not None:
            kept = "" if self.store is None else " Its other results are kept; another run measures what is missing."
            raise ExecutionError(f"{failure} This is job {name}.{kept}") from failure
        return found

    def _collect(self, keys: Sequence[str]) -> list[str]:
        """Take over what other runs have under way of programs of these keys; the ids of jobs that brought something.

        Jobs that can be fetched are fetched. Those of a process that is alive are waited for. Notes of processes that
        ended, with jobs that ended with them, are removed.
        """
        if self.store is None:
            return []
        missing = set(keys) - self.store.have(keys)
        collected = []
        for name, noted in self.store.pending().items():
            if missing.isdisjoint(entry.key for entry in noted.entries):
                continue
            if noted.submitted and self.retrieve is not None:
                if self._collected(name, noted.entries):
                    collected.append(name)
            elif _lives(name, noted):
                self._wait_for_other(name)
            elif name not in self.store.pending():  # it has landed, or got its id, since the list was read
                continue
            elif not noted.retrievable:  # it ended with the process that submitted it
                self.store.forget(name)
            elif noted.submitted:
                raise ExecutionError(
                    f"Job {name} was submitted before and can be fetched by its id. Give retrieve=, such as "
                    f"service.job, to take it; or ResultsStore(...).forget({name!r}) to run its circuits anew."
                )
            else:
                raise ExecutionError(
                    f"An earlier run ended at {noted.since} (UTC) while it submitted {len(noted.entries)} circuits, so "
                    f"a job may hold them whose id is not known. {self._look(name)}"
                )
        return collected

    def _wait_for_other(self, name: str) -> None:
        """Until a job of another process or thread has landed, got an id, or lost its process."""
        assert self.store is not None
        deadline = math.inf if self.patience.timeout is None else time.monotonic() + self.patience.timeout
        while (noted := self.store.pending().get(name)) is not None and _lives(name, noted):
            if time.monotonic() > deadline:
                raise TimedOutError(f"Another process has measured the same circuits for {self.patience.timeout:g} s.")
            time.sleep(_POLL_SECONDS)

    def _collected(self, name: str, entries: Sequence[Entry]) -> bool:
        """Put the results of an earlier job into the store; False if it failed and its programs may run again."""
        assert self.store is not None and self.retrieve is not None  # noqa: PT018
        failure: Exception | None = None
        for attempt in range(self.patience.retries + 1):
            self._pause(attempt)
            job = None
            try:
                job = self.retrieve(name)
                results = list(self._wait(job, name))
            except UnbraidError:
                raise
            except Exception as error:  # whatever a foreign service raises
                failure = error
                if job is not None and _has_failed(job):
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


def _lives(name: str, noted: Pending) -> bool:
    """Whether the process that noted a job still waits for it; False if it runs on another machine."""
    if noted.host != platform.node():
        return False
    if noted.process == os.getpid():
        return name in _alive
    if os.name == "nt":  # there, os.kill ends a process whatever the signal
        return False
    try:
        os.kill(noted.process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _is_ambiguous(error: BaseException | None) -> bool:
    """Whether a submission that failed so may have come through: connections break before and after."""
    while error is not None:
        if isinstance(error, OSError):  # with timeouts, and the errors of requests
            return True
        error = error.__cause__ or error.__context__
    return False


def _has_failed(job: Any) -> bool:
    """Whether a job says so, or says nothing."""
    try:
        status = job.status()
    except Exception:  # whatever a foreign job raises, or there is no such method
        return not hasattr(job, "status")
    return str(getattr(status, "name", status)).upper() in ("ERROR", "FAILED", "CANCELLED")


def _entry(key: str, program: Program, size: int) -> Entry:
    return Entry(key, program.template.circuit.cregs[-1].name, size, program.shots)


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
