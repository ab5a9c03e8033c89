"""What operations cost, roughly, to choose the quicker of two ways.

Nanoseconds of one core of a CPU, forward and backward. Only ratios matter: a wrong choice costs time and changes
nothing else. Measured at widths of 2^3 to 2^12.
"""

MULTIPLICATION = 0.03  # within a product of large matrices
ENTRY = 0.6  # read or written
OPERATION = 40_000  # its overhead, however small its tensors


def product(rows: int, width_in: int, width_out: int) -> float:
    """Of a product of many vectors with a matrix."""
    return OPERATION + rows * (MULTIPLICATION * width_in * width_out + ENTRY * (width_in + width_out))
