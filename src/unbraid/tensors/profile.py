"""Entropy profiles: the bond entropies of a matrix against bond position, beside a random matrix's, and their law.

A matrix is read as a pure state of its legs, in one of two orders. "operator": the output and input leg of a site side
by side, as in an MPO. "vector": all output legs, then all input legs, as in an MPS of the flattened matrix; the bond
between the two groups has the singular values of the matrix as its Schmidt values, so that a low rank shows there.

Entropies are in nats. They do not depend on the scale of the matrix.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import accumulate
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from unbraid.ground.errors import InvalidInputError, require_choice, require_finite
from unbraid.ground.random import stream
from unbraid.tensors.entanglement import dense_entropies, maximum_entropies
from unbraid.tensors.sites import Dims, auto_sites, check_dims, qubit_sites

ORDERS = ("operator", "vector")
AREA, LOG, VOLUME, UNDECIDED = "area", "log", "volume", "undecided"
_FEWEST_POINTS = 7  # with fewer the correction of the criterion outweighs what the points say
_MARGIN = 2.0  # the usual rule for a difference of the criterion that says something
_DIP = 0.01  # of the shoulders; less is no valley
_EXACT = 1e-6  # nats; a fit that is better than this is not better


@dataclass(frozen=True)
class Law:
    """One law fitted to entropies: S = intercept + slope x.

    Attributes:
        name: "area": x = 0. "log": x = ln sin(pi l), with l the place of the bond between 0 and 1, as in a critical
            chain with open ends, so that the intercept is the entropy in the middle and the slope a sixth of a central
            charge; against a length, x = ln(length). "volume": x is the most that legs and a known rank allow: the
            logarithm of the dimension of the smaller side where the rank is full; a slope of 1 is the most there can
            be; against a length, x is the length.
        intercept: in nats.
        slope: of x.
        error: root mean square of what is left, in nats.
        aicc: Akaike's information criterion, corrected for few points.
    """

    name: str
    intercept: float
    slope: float
    error: float
    aicc: float


@dataclass(frozen=True)
class LawFit:
    """Which law entropies follow.

    Attributes:
        law: name of the best, or "undecided": fewer than seven points, or the next law is as good (``margin`` below 2).
        margin: how much larger the criterion of the next law is.
        points: how many entropies were fitted.
        laws: all three, the best first; none with fewer than seven points.
    """

    law: str
    margin: float
    points: int
    laws: tuple[Law, ...]


@dataclass(frozen=True)
class Valley:
    """The deepest dip of a profile: how far a bond lies below the lower one of the highest bonds on its two sides.

    Attributes:
        depth: in nats; 0 where there is none.
        relative: depth over the height of the lower shoulder.
        bond: the lowest bond, counted from 1.
        shoulders: the highest bonds on its two sides.
    """

    depth: float
    relative: float
    bond: int
    shoulders: tuple[int, int]


@dataclass(frozen=True)
class EntropyProfile:
    """Bond entropies of a matrix along its sites.

    Attributes:
        entropies: in nats, one a bond.
        maximum: the most that legs and rank allow.
        random: of Gaussian matrices of the same shape, padding and rank; means.
        shape: (out, in) of the matrix, without padding.
        out_dims: output leg a site.
        in_dims: input leg a site.
        order: "operator" or "vector".
        rank: if it is known to be low.
        law: fitted to all bonds; without a known rank, to those that are not in a valley.
        valley: the deepest dip.
    """

    entropies: tuple[float, ...]
    maximum: tuple[float, ...]
    random: tuple[float, ...]
    shape: tuple[int, int]
    out_dims: Dims
    in_dims: Dims
    order: str
    rank: int | None
    law: LawFit
    valley: Valley

    @property
    def middle(self) -> int:
        """The bond, from 1, that cuts the legs into the most equal halves; in a tie that between rows and columns."""
        places = _places(self.out_dims, self.in_dims)
        rows = sum(dim > 1 for dim in self.out_dims) if self.order == "vector" else 0
        return min(range(1, len(places) + 1), key=lambda bond: (round(abs(places[bond - 1] - 0.5), 9), bond != rows))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "middle": self.middle}


def entropy_profile(
    matrix: Tensor,
    *,
    sites: str | tuple[Sequence[int], Sequence[int]] = "qubits",
    order: str = "operator",
    rank: int | None = None,
    samples: int = 4,
) -> EntropyProfile:
    """Bond entropies of a weight, or of an update: ``entropy_profile(tuned - base)``.

    The largest Gram matrix has as many rows as the root of the number of entries, and the references cost ``samples``
    times as much once for each shape: two seconds in all at 1,024 x 1,024 on one core, seven at 2,048 x 2,048.

    Args:
        matrix: shape (out, in), real or complex, any scale; computed in double precision.
        sites: "qubits": one a site, sizes padded to powers of two; "auto", see :func:`unbraid.tensorize`; or the
            dimensions of output and input legs.
        order: "operator" or "vector", see above.
        rank: of the matrix, if it is known to be low: ``maximum``, ``random`` and ``law`` are then for this rank.
        samples: random matrices that the reference is the mean of.

    Raises:
        InvalidInputError: if it is no matrix, zero or not finite, or there are fewer than two sites.
    """
    if matrix.ndim != 2 or matrix.numel() == 0:
        raise InvalidInputError(f"A profile needs a matrix (out, in) with entries; got shape {tuple(matrix.shape)}.")
    matrix = _doubled(matrix)
    shape = (matrix.shape[0], matrix.shape[1])
    out_dims, in_dims = _legs(shape, sites, order)
    _require_rank(rank)
    entropies = dense_entropies(_padded(matrix, out_dims, in_dims), out_dims, in_dims)
    return _profile(entropies, shape, out_dims, in_dims, order, rank, samples)


def low_rank_profile(
    b: Tensor,
    a: Tensor,
    *,
    sites: str | tuple[Sequence[int], Sequence[int]] = "qubits",
    order: str = "operator",
    samples: int = 4,
) -> EntropyProfile:
    """The profile of the product B A, as of a LoRA update, beside Gaussian factors of the same rank.

    In the order "vector" the product is not formed.

    Args:
        b: shape (out, rank).
        a: shape (rank, in).
        sites: as of :func:`entropy_profile`.
        order: likewise.
        samples: likewise.

    Raises:
        InvalidInputError: if the factors do not fit each other, and as :func:`entropy_profile`.
    """
    if b.ndim != 2 or a.ndim != 2 or b.shape[1] != a.shape[0] or not b.numel() or not a.numel():
        raise InvalidInputError(
            f"Factors must have shapes (out, rank) and (rank, in); got {tuple(b.shape)} and {tuple(a.shape)}."
        )
    b, a = _doubled(b), _doubled(a)
    shape = (b.shape[0], a.shape[1])
    out_dims, in_dims = _legs(shape, sites, order)
    entropies = _factor_entropies(b, a, out_dims, in_dims)
    return _profile(entropies, shape, out_dims, in_dims, order, b.shape[1], samples)


def page_entropy(m: int, n: int) -> float:
    """Mean entropy of the smaller part of a random state of m x n dimensions, in nats.

    With m <= n it is sum(1/k for k = n + 1 .. m n) - (m - 1) / (2 n), about ln(m) - m / (2 n). It holds exactly for
    complex Gaussian matrices; real ones lie lower by about (m - 1) / (2 m n) where m is much smaller than n, and by
    less where it is not.

    Args:
        m: dimension of one part.
        n: dimension of the other.

    Raises:
        InvalidInputError: if a dimension is below 1.

    Source:
        D. N. Page, Phys. Rev. Lett. 71, 1291 (1993).
    """
    if m < 1 or n < 1:
        raise InvalidInputError(f"Dimensions must be positive; got {m} and {n}.")
    m, n = min(m, n), max(m, n)
    ends = torch.tensor([float(m) * n + 1, n + 1], dtype=torch.float64)
    last, first = torch.digamma(ends).tolist()
    return float(last - first - (m - 1) / (2 * n))


def random_entropies(
    shape: tuple[int, int],
    out_dims: Sequence[int],
    in_dims: Sequence[int],
    *,
    rank: int | None = None,
    samples: int = 4,
) -> tuple[float, ...]:
    """Mean bond entropies of real Gaussian matrices, padded to the legs as a weight would be.

    A padded matrix has zeros where a random state on all legs has none, so it stays below :func:`page_entropy`; this is
    what it can be compared with.

    Args:
        shape: (out, in), without padding.
        out_dims: output leg a site.
        in_dims: input leg a site.
        rank: of a product of two Gaussian factors; None for independent entries.
        samples: matrices, from a stream that is named by their shape.

    Raises:
        InvalidInputError: if ``samples`` or ``rank`` is below 1.
    """
    if samples < 1:
        raise InvalidInputError(f"samples must be at least 1; got {samples}.")
    _require_rank(rank)
    return _random_entropies(shape, tuple(out_dims), tuple(in_dims), rank, samples)


def fit_law(
    entropies: Sequence[float], out_dims: Sequence[int], in_dims: Sequence[int], *, rank: int | None = None
) -> LawFit:
    """Area law, area law with a logarithmic correction, or volume law, by the corrected information criterion.

    Neighbouring bonds are not independent, and the halves of a profile repeat each other, so a margin says less than it
    would of independent points.

    Args:
        entropies: one a bond, in nats; NaN leaves a bond out.
        out_dims: output leg a site.
        in_dims: input leg a site.
        rank: of the matrix, if it is known to be low.
    """
    places = torch.tensor(_places(out_dims, in_dims), dtype=torch.float64)
    most = torch.tensor(maximum_entropies(_most_bond_dims(out_dims, in_dims, rank)), dtype=torch.float64)
    return _fit(entropies, {LOG: torch.log(torch.sin(math.pi * places)), VOLUME: most})


def fit_length_law(lengths: Sequence[int], entropies: Sequence[float]) -> LawFit:
    """The same three laws against a length: constant, with ln(length), with the length itself.

    Args:
        lengths: positive.
        entropies: as many, in nats.

    Raises:
        InvalidInputError: if the numbers do not fit.
    """
    if len(lengths) != len(entropies) or any(length < 1 for length in lengths):
        raise InvalidInputError(
            f"A law needs one entropy for each positive length; got {len(entropies)} for lengths {list(lengths)}."
        )
    at = torch.tensor(list(lengths), dtype=torch.float64)
    return _fit(entropies, {LOG: at.log(), VOLUME: at})


def find_valley(entropies: Sequence[float]) -> Valley:
    """The deepest dip between two shoulders; none of a profile that rises and then falls.

    Args:
        entropies: one a bond, at least one.
    """
    best = Valley(0.0, 0.0, 1, (1, 1))
    for bond in range(1, len(entropies) - 1):
        left = max(range(bond), key=lambda k: entropies[k])
        right = max(range(bond + 1, len(entropies)), key=lambda k: entropies[k])
        height = min(entropies[left], entropies[right])
        if height - entropies[bond] > best.depth:
            depth = height - entropies[bond]
            best = Valley(depth, depth / height, bond + 1, (left + 1, right + 1))
    return best


def _fit(entropies: Sequence[float], abscissae: Mapping[str, Tensor]) -> LawFit:
    values = torch.tensor(list(entropies), dtype=torch.float64)
    known = ~values.isnan()
    values, points = values[known], int(known.sum())
    if points < _FEWEST_POINTS:
        return LawFit(UNDECIDED, 0.0, points, ())
    laws = []
    for name in (AREA, LOG, VOLUME):
        columns = [torch.ones_like(values)] + ([] if name == AREA else [abscissae[name][known]])
        design = torch.stack(columns, 1)  # shape: (points, coefficients)
        solution = torch.linalg.lstsq(design, values[:, None]).solution
        error = float((values - (design @ solution)[:, 0]).square().mean().sqrt())
        count = len(columns) + 1  # the variance is a parameter, too
        aicc = 2 * points * math.log(max(error, _EXACT)) + 2 * count + 2 * count * (count + 1) / (points - count - 1)
        coefficients = [*solution[:, 0].tolist(), 0.0]
        laws.append(Law(name, coefficients[0], coefficients[1], error, aicc))
    laws.sort(key=lambda law: law.aicc)
    margin = laws[1].aicc - laws[0].aicc
    return LawFit(laws[0].name if margin >= _MARGIN else UNDECIDED, margin, points, tuple(laws))


def _profile(
    entropies: Tensor,
    shape: tuple[int, int],
    out_dims: Dims,
    in_dims: Dims,
    order: str,
    rank: int | None,
    samples: int,
) -> EntropyProfile:
    found = tuple(float(entropy) for entropy in entropies)
    valley = find_valley(found)
    fitted = list(found)
    if rank is None and valley.relative >= _DIP:
        left, right = valley.shoulders
        fitted[left : right - 1] = [math.nan] * (right - 1 - left)
    return EntropyProfile(
        entropies=found,
        maximum=tuple(maximum_entropies(_most_bond_dims(out_dims, in_dims, rank))),
        random=random_entropies(shape, out_dims, in_dims, rank=rank, samples=samples),
        shape=shape,
        out_dims=out_dims,
        in_dims=in_dims,
        order=order,
        rank=rank,
        law=fit_law(fitted, out_dims, in_dims, rank=rank),
        valley=valley,
    )


def _doubled(matrix: Tensor) -> Tensor:
    require_finite(matrix, "The matrix of a profile")
    matrix = matrix.detach().to(torch.complex128 if matrix.is_complex() else torch.float64)
    if not bool(torch.any(matrix)):
        raise InvalidInputError("The matrix of a profile is all zeros: it has no entropies. Leave it out.")
    return matrix / matrix.abs().max()


def _legs(shape: tuple[int, int], sites: str | tuple[Sequence[int], Sequence[int]], order: str) -> tuple[Dims, Dims]:
    """Legs a site, in the order that is asked for."""
    require_choice(order, ORDERS, "order")
    if isinstance(sites, str):
        require_choice(sites, ("qubits", "auto"), "sites, if no pair (out_dims, in_dims),")
        outs, ins = (qubit_sites if sites == "qubits" else auto_sites)(*shape)
    else:
        outs, ins = check_dims(sites[0], shape[0], "out_dims"), check_dims(sites[1], shape[1], "in_dims")
        if order == "operator" and len(outs) != len(ins):
            raise InvalidInputError(f"out_dims and in_dims must be equally many; got {outs} and {ins}.")
    if order == "vector":
        outs, ins = (*outs, *[1] * len(ins)), (*[1] * len(outs), *ins)
    kept = [(o, i) for o, i in zip(outs, ins, strict=True) if o * i > 1]
    if len(kept) < 2:
        raise InvalidInputError(
            f"A matrix of shape {shape} has fewer than two sites here, so no bond. Choose other sites."
        )
    return tuple(o for o, _ in kept), tuple(i for _, i in kept)


def _padded(matrix: Tensor, out_dims: Dims, in_dims: Dims) -> Tensor:
    return pad(matrix, (0, prod(in_dims) - matrix.shape[1], 0, prod(out_dims) - matrix.shape[0]))


def _factor_entropies(b: Tensor, a: Tensor, out_dims: Dims, in_dims: Dims) -> Tensor:
    outs, ins = (tuple(dim for dim in dims if dim > 1) for dims in (out_dims, in_dims))
    if out_dims != (*outs, *[1] * len(ins)) or in_dims != (*[1] * len(outs), *ins):  # not the order "vector"
        return dense_entropies(_padded(b @ a, out_dims, in_dims), out_dims, in_dims)
    (left, left_triangle), (right, right_triangle) = torch.linalg.qr(b), torch.linalg.qr(a.mT)
    u, s, vh = torch.linalg.svd(left_triangle @ right_triangle.mT, full_matrices=False)
    # What stands on the other side of the bond between rows and columns is orthonormal and changes no entropy.
    rows = pad(left @ u * s, (0, 0, 0, prod(outs) - b.shape[0]))  # shape: (out, rank)
    columns = pad(s[:, None] * vh @ right.mT, (0, prod(ins) - a.shape[1]))  # shape: (rank, in)
    before = dense_entropies(rows, (*outs, 1), (*[1] * len(outs), len(s)))
    after = dense_entropies(columns, (len(s), *[1] * len(ins)), (1, *ins))
    return torch.cat([before if ins else before[:-1], after[1:]])


@lru_cache(maxsize=256)  # layers of a network share few shapes
def _random_entropies(
    shape: tuple[int, int], out_dims: Dims, in_dims: Dims, rank: int | None, samples: int
) -> tuple[float, ...]:
    generator = stream(0, "entropy profile", *shape, rank or 0)
    rows, columns = shape
    found = []
    for _ in range(samples):
        if rank is None:
            matrix = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
            found.append(dense_entropies(_padded(matrix, out_dims, in_dims), out_dims, in_dims))
        else:
            b = torch.randn(rows, rank, generator=generator, dtype=torch.float64)
            a = torch.randn(rank, columns, generator=generator, dtype=torch.float64)
            found.append(_factor_entropies(b, a, out_dims, in_dims))
    return tuple(torch.stack(found).mean(0).tolist())


def _most_bond_dims(out_dims: Sequence[int], in_dims: Sequence[int], rank: int | None) -> list[int]:
    """Bond dimensions of a generic matrix; one of low rank is a sum of so many products of two vectors."""
    found = []
    for (o1, i1), (o2, i2) in _cuts(out_dims, in_dims):
        most = min(o1 * i1, o2 * i2)
        found.append(most if rank is None else min(most, rank * min(o1, o2) * min(i1, i2)))
    return found


def _cuts(out_dims: Sequence[int], in_dims: Sequence[int]) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Dimensions (out, in) on the left and on the right of each bond."""
    outs, ins = (list(accumulate(dims, int.__mul__)) for dims in (out_dims, in_dims))
    return [((o, i), (outs[-1] // o, ins[-1] // i)) for o, i in zip(outs[:-1], ins[:-1], strict=True)]


def _places(out_dims: Sequence[int], in_dims: Sequence[int]) -> list[float]:
    """Where the bonds lie between 0 and 1: the share of the logarithm of all dimensions that is on their left."""
    logs = list(accumulate(math.log(o * i) for o, i in zip(out_dims, in_dims, strict=True)))
    return [log / logs[-1] for log in logs[:-1]]


def _require_rank(rank: int | None) -> None:
    if rank is not None and rank < 1:
        raise InvalidInputError(f"rank must be at least 1, or None; got {rank}.")
