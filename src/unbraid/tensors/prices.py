"""What operations cost, roughly, to choose the quicker of two ways.

Nanoseconds of one core of a CPU. Only ratios matter: a wrong choice costs time and changes nothing else. Measured at
widths of 2^3 to 2^12.
"""

from dataclasses import dataclass

MULTIPLICATION = 0.03  # within a product of large matrices, forward and backward
ENTRY = 0.6  # read or written
OPERATION = 40_000  # its overhead, however small its tensors

CACHE = 2**19  # entries of single precision that a core's cache holds


@dataclass(frozen=True)
class Tariff:
    """Prices of one way of working.

    Attributes:
        operation: overhead, however small its tensors.
        multiplication: within a product of large matrices.
        near: an entry read or written within the cache.
        far: an entry of a larger tensor that is made anew, whose memory the system has to hand out.
        again: share of a forward pass that is repeated on the way back where nothing was kept for it.
    """

    operation: float
    multiplication: float
    near: float
    far: float
    again: float = 0.0

    def entries(self, count: float) -> float:
        """A tensor that is made."""
        return count * (self.near if count <= CACHE else self.far)


ONCE = Tariff(operation=8_000, multiplication=0.0155, near=0.15, far=1.0)
TRAINING = Tariff(operation=50_000, multiplication=0.047, near=0.6, far=3.0, again=0.2)


def product(rows: int, width_in: int, width_out: int) -> float:
    """Of a product of many vectors with a matrix."""
    return OPERATION + rows * (MULTIPLICATION * width_in * width_out + ENTRY * (width_in + width_out))
