"""What a job may hold, and how its failures are borne."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from unbraid.ground.errors import InvalidInputError
from unbraid.quantum.programs import Program

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
        if self.timeout is not None and not (_is_number(self.timeout) and 0 < self.timeout <= threading.TIMEOUT_MAX):
            raise InvalidInputError(
                f"timeout must be a positive number of seconds, or None to wait for ever; got {self.timeout!r}."
            )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
