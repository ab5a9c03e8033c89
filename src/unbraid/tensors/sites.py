"""Which sites a layer's sizes are cut into, and the rule of zero-padding.

A size that is no product of the wanted site dimensions is padded: zeros are appended at the end of the flat index.
Where output and input have different numbers of legs, the missing legs have dimension 1 and stand at the tail.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from unbraid.ground.errors import InvalidInputError

Dims = tuple[int, ...]


def qubit_sites(out_features: int, in_features: int) -> tuple[Dims, Dims]:
    """One qubit a site: sizes are padded to the next power of two.

    Returns:
        Output and input leg dimensions, equally many.
    """
    return align((2,) * qubits_for(out_features), (2,) * qubits_for(in_features))


def auto_sites(out_features: int, in_features: int) -> tuple[Dims, Dims]:
    """Sites for speed: as many sites of about four as both sizes allow, without padding where the primes permit.

    A size whose largest prime factor is above 13 is padded to the next multiple of smaller primes. Its primes are then
    spread over the sites, largest first, each to the smallest site so far.
    """
    sizes = [_smooth(out_features), _smooth(in_features)]
    count = max(1, min(round(math.log(size, 4)) for size in sizes))
    outs, ins = (_spread(size, count) for size in sizes)
    return outs, ins


def low_rank_sites(out_features: int, in_features: int) -> tuple[Dims, Dims]:
    """Two sites, all outputs at the first and all inputs at the second: the bond is the rank of the matrix."""
    return (out_features, 1), (1, in_features)


def split_sites(out_features: int, in_features: int) -> tuple[Dims, Dims]:
    """Two sites: most outputs and few inputs at the first, few outputs and most inputs at the second."""
    few_out, few_in = (math.prod(_primes(_smooth(size))[:2]) for size in (out_features, in_features))
    return (_smooth(out_features) // few_out, few_out), (few_in, _smooth(in_features) // few_in)


def qubits_for(size: int) -> int:
    """Qubits that hold ``size`` amplitudes."""
    return max(size - 1, 0).bit_length()


def align(out_dims: Sequence[int], in_dims: Sequence[int]) -> tuple[Dims, Dims]:
    """Append legs of dimension 1 to the shorter side; at least one site."""
    count = max(len(out_dims), len(in_dims), 1)
    return (
        tuple(out_dims) + (1,) * (count - len(out_dims)),
        tuple(in_dims) + (1,) * (count - len(in_dims)),
    )


def check_dims(dims: Sequence[int], size: int, name: str) -> Dims:
    """Check leg dimensions against the size that they should hold.

    Raises:
        InvalidInputError: if a dimension is no positive integer, if the product is too small, or if it is twice the
            size or more (half of the padded index would be zeros).
    """
    if isinstance(dims, int) or not all(isinstance(d, int) and d > 0 for d in dims) or not dims:
        raise InvalidInputError(f"{name} must be positive integers, at least one, such as (4, 4); got {dims!r}.")
    if size < 1:
        raise InvalidInputError(f"A logical size must be positive; got {size} for {name} {tuple(dims)}.")
    product = math.prod(dims)
    qubits = (2,) * max(1, qubits_for(size))
    if product < size:
        raise InvalidInputError(
            f"{name} must have a product of at least {size}; got {tuple(dims)} (= {product}). "
            f"Choose other {name}, such as {qubits} (zeros are appended at the end of the index)."
        )
    if (product >= 2 * size and size > 1) or (size == 1 and product > 1):
        raise InvalidInputError(
            f"{name} must have a product below {2 * size} for size {size}, or more than half would be padding; got "
            f"{tuple(dims)} (= {product}). Choose other {name}, such as {qubits if size > 1 else (1,)}."
        )
    return tuple(int(d) for d in dims)


def _smooth(size: int, largest: int = 13) -> int:
    while _primes(size)[-1] > largest:
        size += 1
    return size


def _primes(size: int) -> list[int]:
    primes, divisor = [], 2
    while divisor * divisor <= size:
        while size % divisor == 0:
            primes.append(divisor)
            size //= divisor
        divisor += 1
    return [*primes, size] if size > 1 or not primes else primes


def _spread(size: int, count: int) -> Dims:
    sites = [1] * count
    for prime in sorted(_primes(size), reverse=True):
        smallest = min(range(count), key=lambda k: (sites[k], k))
        sites[smallest] *= prime
    return tuple(sites)
