"""Programs to counts: jobs within limits, tried again when they fail, kept in a store and found again after a crash.

The programs of a run are packed into jobs in their order, whatever the store holds, so a resumed run makes the same
jobs. A job is noted in the store as soon as it has an id; its counts replace that note in one transaction. What is in
the store is not run; a noted job is fetched where the sampler's service can do that.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unbraid.ground import progress
from unbraid.ground.errors import ExecutionError, InvalidInputError, UnbraidError
from unbraid.quantum.programs import Program
from unbraid.quantum.store import Counts, ResultsStore

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
        if not isinstance(self.backoff, int | float) or not 0 <= self.backoff < float("inf"):
            raise InvalidInputError(f"backoff must be a number of seconds, 0 or more; got {self.backoff!r}.")
        if self.timeout is not None and not (isinstance(self.timeout, int | float) and self.timeout > 0):
            raise InvalidInputError(f"timeout must be a positive number of seconds, or None; got {self.timeout!r}.")


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

        With a store, programs that are equal in everything run once.

        Args:
            programs: in order.
            size: number of outcomes, the same for all.
            salt: part of the keys; another one measures anew.

        Raises:
            ExecutionError: if the sampler fails more often than patience bears, does not return what was asked for, or
                a submitted job cannot be fetched.
            FileFormatError: if the store is damaged.
            OutputError: if the store cannot be written to.
        """
        counts = np.zeros((len(programs), size), dtype=np.int64)
        jobs: list[str] = []
        keys = [str(k) if self.store is None else program.key(salt) for k, program in enumerate(programs)]
        with progress.task("circuits", len(programs)) as advance:
            for number, members in enumerate(self.limits.pack(programs)):
                rows = {} if self.store is None else self.store.get([keys[k] for k in members])
                missing = {keys[k]: programs[k] for k in members if keys[k] not in rows}
                if missing:
                    found, job = self._one_job(list(missing.values()), list(missing), size, number)
                    jobs.append(job)
                    rows |= dict(zip(missing, found, strict=True))
                for k in members:
                    if len(rows[keys[k]]) != size:
                        raise ExecutionError(
                            f"The results store holds {len(rows[keys[k]])} outcomes where {size} are expected."
                        )
                    counts[k] = rows[keys[k]]
                advance(len(members))
        return counts, tuple(jobs)

    def _one_job(self, programs: list[Program], keys: list[str], size: int, number: int) -> tuple[list[Counts], str]:
        fetched = self._fetch(keys)
        failure: Exception | None = None
        for attempt in range(self.patience.retries + 1):
            if attempt:
                time.sleep(self.patience.backoff * 2 ** (attempt - 1))
            job, name = fetched or (None, "")
            fetched = None
            try:
                if job is None:
                    if self.store is not None:
                        self.store.check_writable()
                    job = self.submit([program.pub for program in programs], number)
                    name = str(job.job_id())
                    if self.store is not None:
                        self.store.submitted(name, keys)
                results = list(self._wait(job, name))
            except UnbraidError:
                raise
            except Exception as error:  # whatever a foreign sampler raises
                failure = error
                if job is not None and not _has_failed(job):
                    fetched = job, name  # it may be well, and only the way to it is not: it is asked again
                elif self.store is not None and name:
                    self.store.forget(name)
                continue
            if len(results) != len(programs):
                raise ExecutionError(
                    f"{self.name} returned {len(results)} results for {len(programs)} circuits in job {name}."
                )
            found = [read_counts(result, program, size) for result, program in zip(results, programs, strict=True)]
            if self.store is not None:
                self.store.put(dict(zip(keys, found, strict=True)), name)
            return found, name
        raise ExecutionError(
            f"{self.name} failed {self.patience.retries + 1} times on a job of {len(programs)} circuits: "
            f"{type(failure).__name__}: {failure}"
        ) from failure

    def _fetch(self, keys: list[str]) -> tuple[Any, str] | None:
        """The job that was submitted for these programs before, if there is one that can still be had."""
        if self.store is None:
            return None
        for name, theirs in self.store.pending().items():
            if theirs != keys:
                continue
            if self.retrieve is None:  # it ended with the process that submitted it
                self.store.forget(name)
                return None
            failure: Exception | None = None
            for attempt in range(self.patience.retries + 1):
                if attempt:
                    time.sleep(self.patience.backoff * 2 ** (attempt - 1))
                try:
                    return self.retrieve(name), name
                except Exception as error:  # whatever a foreign service raises
                    failure = error
            raise ExecutionError(
                f"Job {name} was submitted before and cannot be fetched ({type(failure).__name__}: {failure}). It was "
                f"not submitted again. Try later; or ResultsStore(...).forget({name!r}) to run its circuits anew."
            ) from failure
        return None

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


def read_counts(result: Any, program: Program, size: int) -> Counts:
    """Outcomes of one PUB, shape (size,).

    Raises:
        ExecutionError: if there are no counts of all qubits, or not as many shots as were asked for.
    """
    try:
        bits = getattr(result.data, program.template.circuit.cregs[0].name)
        # get_int_counts() of BitArray says the same, twenty times slower
        digits = bits.array.reshape(-1, bits.array.shape[-1]).astype(np.int64)
        outcomes = digits @ 256 ** np.arange(digits.shape[1], dtype=np.int64)[::-1]
        row = np.bincount(outcomes, minlength=size)
        if len(row) != size:
            raise ValueError(f"outcome {int(outcomes.max())} of {size}")
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise ExecutionError(f"The sampler returned no counts of all qubits, but {result!r}.") from error
    if len(outcomes) != program.shots:
        raise ExecutionError(
            f"The sampler returned {len(outcomes)} shots where {program.shots} were asked for. Check its options, such "
            "as a cap."
        )
    return row.astype(np.int64)
