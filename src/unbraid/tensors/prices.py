"""What operations cost, roughly, to choose the quicker of two ways.

Nanoseconds of one core of a CPU. Only ratios matter: a wrong choice costs time and changes nothing else. Measured at
widths of 2^3 to 2^12.
"""

from dataclasses import dataclass

MULTIPLICATION = 0.03  # within a product of large matrices, forward and backward
ENTRY = 0.6  # read or written
OPERATION = 40_000  # its overhead, however small its tensors

NARROW = 12  # width at which a side of a matrix makes a product twice as dear
CACHE = 2**19  # entries of single precision that a core's cache holds


@dataclass(frozen=True)
class Tariff:
    """Prices of one way of working.

    Attributes:
        operation: overhead, however small its tensors.
        multiplication: within a product of large matrices; narrow ones pay more.
        near: an entry read or written within the cache.
        read: an entry of a matrix that a batch is multiplied with.
        far: an entry of a tensor of more than two caches that is made anew, whose memory the system has to hand out.
        again: share of a forward pass that is repeated on the way back where nothing was kept for it.
        last_first: factor of passing from the last site to the first.
    """

    operation: float
    multiplication: float
    near: float
    read: float
    far: float
    again: float = 0.0
    last_first: float = 1.0

    def product(self, rows: float, width_in: int, width_out: int) -> float:
        """Of a product of many vectors with a matrix."""
        narrow = 1 + NARROW / width_in + NARROW / width_out
        return self.multiplication * rows * width_in * width_out * narrow

    def entries(self, count: float, *, again: bool = False) -> float:
        """A tensor that is written, in memory that was in use just now or is handed out anew."""
        if again:
            return count * self.near * (1 if count <= CACHE else 1.5)
        return count * (self.near if count <= 2 * CACHE else self.far)


ONCE = Tariff(operation=8_000, multiplication=0.015, near=0.15, read=0.05, far=1.0)
TRAINING = Tariff(operation=50_000, multiplication=0.045, near=0.3, read=0.3, far=3.0, again=0.1, last_first=1.15)


def product(rows: int, width_in: int, width_out: int) -> float:
    """Of a product of many vectors with a matrix."""
    return OPERATION + rows * (MULTIPLICATION * width_in * width_out + ENTRY * (width_in + width_out))
