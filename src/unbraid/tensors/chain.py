"""Algorithms on chains of three-leg cores, shared by MPOs (output and input leg merged) and MPSs.

Legend: a chain is a list of cores of shape (left, leg, right); the first left and the last right dimension are 1.
Bond ``k`` joins core ``k`` and core ``k + 1``. Norms are carried as logarithms: fifty cores overflow float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from torch import Tensor

Chain = list[Tensor]

_FULL = 0.98  # of the entries asked for
_WORTH_FILLING = 0.1  # relative loss of what is kept that is borne for the sake of fullness
_LARGEST_FALL = 8  # of a bond, so that another can rise


def split(tensor: Tensor, legs: Sequence[int]) -> Chain:
    """Exact chain of a dense tensor of shape (prod(legs),), by successive SVDs cut at rounding (TT-SVD).

    The last core holds the norm; the others are left-orthogonal.
    """
    cores: Chain = []
    left = 1
    rest = tensor.reshape(1, -1)
    floor = _rounding(tensor.dtype) * float(torch.linalg.vector_norm(tensor))
    for leg in legs[:-1]:
        u, s, vh = torch.linalg.svd(rest.reshape(left * leg, -1), full_matrices=False)
        rank = max(1, int((s > floor).sum()))
        cores.append(u[:, :rank].reshape(left, leg, rank))
        rest = s[:rank, None] * vh[:rank]
        left = rank
    cores.append(rest.reshape(left, legs[-1], 1))
    return cores


def split_exactly(tensor: Tensor, legs: Sequence[int]) -> Chain:
    """Chain of full bonds whose cores are copies of identities but one: no rounding at all."""
    sizes = [math.prod(legs[: k + 1]) for k in range(len(legs))]
    total = sizes[-1]
    center = next(k for k, size in enumerate(sizes) if size * size >= total)
    cores: Chain = []
    left = 1
    for k, leg in enumerate(legs):
        right = total // sizes[k]
        if k < center:
            cores.append(torch.eye(left * leg, dtype=tensor.dtype, device=tensor.device).reshape(left, leg, -1))
            left *= leg
        elif k == center:
            cores.append(tensor.reshape(left, leg, right))
            left = right
        else:
            cores.append(torch.eye(left, dtype=tensor.dtype, device=tensor.device).reshape(left, leg, right))
            left = right
    return cores


def contract(cores: Sequence[Tensor]) -> Tensor:
    """Dense tensor of a chain, shape (prod(legs),): both ends up to the largest bond, then one product."""
    meet = max(range(len(cores)), key=lambda k: cores[k].shape[2])
    left = cores[0].reshape(-1, cores[0].shape[2])
    for core in cores[1 : meet + 1]:
        left = (left @ core.reshape(core.shape[0], -1)).reshape(-1, core.shape[2])
    if meet == len(cores) - 1:  # no bond is larger than the trivial one at the end
        return left.reshape(-1)
    right = cores[-1].reshape(cores[-1].shape[0], -1)
    for core in reversed(cores[meet + 1 : -1]):
        right = (core.reshape(-1, core.shape[2]) @ right).reshape(core.shape[0], -1)
    return (left @ right).reshape(-1)


def canonicalize(cores: Sequence[Tensor], center: int) -> tuple[Chain, Tensor]:
    """Cores left of ``center`` become left-orthogonal, right of it right-orthogonal; the center gets norm 1.

    Returns:
        The chain and the logarithm of the norm taken out, a float64 scalar. A chain of norm 0 keeps its zeros.
    """
    cores, log_norm = _levelled(cores)
    for k in range(center):
        left, leg, right = cores[k].shape
        q, r = torch.linalg.qr(cores[k].reshape(left * leg, right))
        r, log_factor = _normalized(r)
        log_norm = log_norm + log_factor
        cores[k] = q.reshape(left, leg, -1)
        cores[k + 1] = torch.tensordot(r, cores[k + 1], dims=1)
    for k in range(len(cores) - 1, center, -1):
        left, leg, right = cores[k].shape
        q, r = torch.linalg.qr(cores[k].reshape(left, leg * right).mH)
        r, log_factor = _normalized(r)
        log_norm = log_norm + log_factor
        cores[k] = q.mH.reshape(-1, leg, right)
        cores[k - 1] = torch.tensordot(cores[k - 1], r.mH, dims=1)
    cores[center], log_factor = _normalized(cores[center])
    return cores, log_norm + log_factor


def truncate(cores: Sequence[Tensor], ranks: Sequence[int]) -> tuple[Chain, Tensor]:
    """Sweep from the left, keeping the ``ranks[k]`` largest Schmidt values at bond ``k``.

    Returns:
        The chain (center at its last core) and the logarithm of the factor taken out.
    """
    cores, log_norm = canonicalize(cores, 0)
    return cut(cores, ranks), log_norm


def cut(cores: Sequence[Tensor], ranks: Sequence[int]) -> Chain:
    """:func:`truncate` of a chain whose center is at core 0."""
    cores = list(cores)
    for k, rank in enumerate(ranks):
        left, leg, right = cores[k].shape
        u, s, vh = torch.linalg.svd(cores[k].reshape(left * leg, right), full_matrices=False)
        cores[k] = u[:, :rank].reshape(left, leg, -1)
        cores[k + 1] = torch.tensordot(s[:rank, None] * vh[:rank], cores[k + 1], dims=1)
    return cores


def schmidt_values(cores: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Schmidt values at every bond, of the chain normalised to 1, in descending order; and the log of its norm."""
    cores, log_norm = canonicalize(cores, 0)
    values = []
    for k in range(len(cores) - 1):
        left, leg, right = cores[k].shape
        u, s, vh = torch.linalg.svd(cores[k].reshape(left * leg, right), full_matrices=False)
        values.append(s)
        cores[k] = u.reshape(left, leg, -1)
        cores[k + 1] = torch.tensordot(s[:, None] * vh, cores[k + 1], dims=1)
    return values, log_norm


def inner(bra: Sequence[Tensor], ket: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """<bra, ket> as a mantissa and a (detached) logarithm: the value is ``mantissa * exp(log)``."""
    dtype = torch.promote_types(bra[0].dtype, ket[0].dtype)
    environment = torch.ones(1, 1, dtype=dtype, device=ket[0].device)
    bra, log_bra = _levelled(bra)
    ket, log_ket = _levelled(ket)
    log_scale = log_bra.to(log_ket.device) + log_ket
    for a, b in zip(bra, ket, strict=True):
        environment = torch.tensordot(environment, b.to(dtype), dims=1)  # (bra bond, leg, ket right)
        environment = torch.tensordot(a.to(dtype).conj(), environment, dims=([0, 1], [0, 1]))
        size = torch.linalg.vector_norm(environment.detach())
        if size > 0:
            environment = environment / size
            log_scale = log_scale + size.double().log()
    return environment.reshape(()), log_scale


def add(a: Sequence[Tensor], b: Sequence[Tensor]) -> Chain:
    """Chain of the sum: bonds add up."""
    if len(a) == 1:
        return [a[0] + b[0]]
    cores = [torch.cat([a[0], b[0]], dim=2)]
    for x, y in zip(a[1:-1], b[1:-1], strict=True):
        top = torch.cat([x, x.new_zeros(x.shape[0], x.shape[1], y.shape[2])], dim=2)
        bottom = torch.cat([y.new_zeros(y.shape[0], y.shape[1], x.shape[2]), y], dim=2)
        cores.append(torch.cat([top, bottom], dim=0))
    cores.append(torch.cat([a[-1], b[-1]], dim=0))
    return cores


def ranks_for_error(
    values: Sequence[Tensor], legs: Sequence[int], rel_error: float, caps: Sequence[int] | None = None
) -> list[int]:
    """Ranks by dropping, again and again, the Schmidt value that costs least error for the parameters it frees.

    Stops before the sum of all dropped weights exceeds ``rel_error**2``, an upper bound of the true squared error.

    Args:
        values: normalised Schmidt values a bond, descending.
        legs: leg dimensions.
        rel_error: allowed error of the whole.
        caps: largest ranks to begin with; all values by default.
    """
    weights = [[float(v) ** 2 for v in s] for s in values]
    ranks = list(caps or (len(w) for w in weights))
    spent = sum(sum(w[r:]) for w, r in zip(weights, ranks, strict=True))
    while True:
        droppable = [
            k for k, rank in enumerate(ranks) if rank > 1 and spent + weights[k][rank - 1] <= rel_error**2
        ]  # fmt: skip
        if not droppable:
            return ranks
        k = min(droppable, key=lambda k: weights[k][ranks[k] - 1] / _freed(ranks, legs, k))
        ranks[k] -= 1
        spent += weights[k][ranks[k]]


def ranks_for_entries(
    values: Sequence[Tensor], legs: Sequence[int], most: int, caps: Sequence[int] | None = None
) -> list[int]:
    """Ranks of a chain of at most so many entries that keeps most; above 98 % of them, where that costs little.

    What a chain keeps is estimated by the product of what its bonds keep. Schmidt values are dropped as for an error;
    then bonds are raised, one alone or one against another, as long as that keeps more.

    Args:
        values: normalised Schmidt values a bond, descending.
        legs: leg dimensions.
        most: core entries.
        caps: largest ranks to begin with; all values by default.
    """
    kept = [[0.0, *accumulate(float(v) ** 2 for v in s)] for s in values]
    caps = [len(s) for s in values] if caps is None else list(caps)
    ranks = list(caps)

    def value(ranks: Sequence[int]) -> float:
        return sum(math.log(sums[rank]) for sums, rank in zip(kept, ranks, strict=True))

    def cost(k: int) -> float:
        """Of the last rank of bond ``k``, an entry."""
        return math.log(kept[k][ranks[k]] / kept[k][ranks[k] - 1]) / _freed(ranks, legs, k)

    while _entries(ranks, legs) > most:
        lowerable = [k for k, rank in enumerate(ranks) if rank > 1]
        if not lowerable:
            return ranks
        ranks[min(lowerable, key=cost)] -= 1
    while True:
        trials = _neighbours(ranks, caps, legs, most)
        best = max(trials, key=value, default=ranks)
        if value(best) > value(ranks) + 1e-15:
            ranks = best
            continue
        full = [trial for trial in trials if _entries(trial, legs) >= _FULL * most]
        best = max(full, key=value, default=ranks)
        wasteful = _entries(ranks, legs) < _FULL * most
        return best if wasteful and value(best) > value(ranks) - _WORTH_FILLING else ranks


def _entries(ranks: Sequence[int], legs: Sequence[int]) -> int:
    dims = [1, *ranks, 1]
    return sum(dims[k] * leg * dims[k + 1] for k, leg in enumerate(legs))


def _freed(ranks: Sequence[int], legs: Sequence[int], k: int) -> int:
    """Entries that bond ``k`` frees when it falls by one."""
    dims = [1, *ranks, 1]
    return dims[k] * legs[k] + legs[k + 1] * dims[k + 2]


def _neighbours(ranks: Sequence[int], caps: Sequence[int], legs: Sequence[int], most: int) -> list[list[int]]:
    """One bond as high as ``most`` entries allow, alone or after another fell by a few."""

    def raised(ranks: Sequence[int], k: int) -> list[int]:
        room = max(0, most - _entries(ranks, legs)) // _freed(ranks, legs, k)
        return [min(caps[j], rank + room) if j == k else rank for j, rank in enumerate(ranks)]

    found = [raised(ranks, k) for k in range(len(ranks))]
    for k, rank in enumerate(ranks):
        for fall in range(1, min(_LARGEST_FALL, rank - 1) + 1):
            lower = [r - fall if j == k else r for j, r in enumerate(ranks)]
            found += [raised(lower, j) for j in range(len(ranks)) if j != k]
    return found


def least_ranks(values: Sequence[Tensor], rel_error: float, noise: float) -> list[int]:
    """The rank of each bond below which no chain is within the error, whatever its other bonds are (Eckart, Young).

    Args:
        values: normalised Schmidt values a bond of what is approximated, descending; those that are rounding may lack.
        rel_error: allowed.
        noise: of the values, which ranks must not depend on.
    """
    allowed = ((1 + 1e-6) * rel_error + noise) ** 2
    tails = [each.double().square().flip(0).cumsum(0) for each in values]  # of the last, the last two, ...
    return [max(1, len(tail) - int((tail <= allowed).sum())) for tail in tails]


def lower_ranks(cores: Sequence[Tensor], allowed: Callable[[Chain], bool], least: Sequence[int] | None = None) -> Chain:
    """Lower bonds of a chain, those that free most parameters first, until no bond can be lowered by even one.

    Args:
        cores: a chain for which ``allowed`` holds.
        allowed: whether a trial chain still meets the error bound.
        least: of each bond, where ranks below are known to fail (:func:`least_ranks`).
    """
    cores = list(cores)
    floors = [1] * (len(cores) - 1) if least is None else least
    lowered = True
    while lowered:
        lowered = False
        order = sorted(
            range(len(cores) - 1), key=lambda k: -(cores[k].shape[:2].numel() + cores[k + 1].shape[1:].numel())
        )
        for k in order:
            trial = _truncate_bond(cores, k, allowed, floors[k])
            if trial is not None:
                cores, lowered = trial, True
    return cores


def _truncate_bond(cores: Chain, bond: int, allowed: Callable[[Chain], bool], least: int) -> Chain | None:
    """Truncate one bond as far as ``allowed`` permits, to no less than ``least``; None if not even by one."""
    rank = cores[bond].shape[2]
    if rank <= least:
        return None
    centered, log_norm = canonicalize(cores, bond)
    left, leg, _ = centered[bond].shape
    u, s, vh = torch.linalg.svd(centered[bond].reshape(left * leg, -1), full_matrices=False)
    s = s * torch.exp(log_norm).to(s.dtype)

    def kept(count: int) -> Chain:
        trial = list(centered)
        trial[bond] = u[:, :count].reshape(left, leg, count)
        trial[bond + 1] = torch.tensordot(s[:count, None] * vh[:count], centered[bond + 1], dims=1)
        return trial

    best: Chain | None = None
    low, high = least, min(rank - 1, s.numel())
    if not allowed(kept(high)):  # most bonds cannot be lowered: one trial tells
        return None
    while low <= high:
        middle = (low + high) // 2
        trial = kept(middle)
        if allowed(trial):
            best, high = trial, middle - 1
        else:
            low = middle + 1
    return best


def _levelled(cores: Sequence[Tensor]) -> tuple[Chain, Tensor]:
    """Cores with largest entries near 1, so that squares neither over- nor underflow, and the logarithm taken out.

    The factors are powers of two: no entry is rounded. Zero and infinite cores stay as they are.
    """
    levelled: Chain = []
    log_scale = torch.zeros((), dtype=torch.float64, device=cores[0].device)
    for core in cores:
        largest = core.detach().abs().max() if core.numel() else torch.zeros(())
        exponent = torch.frexp(largest.double()).exponent.double()
        usual = exponent.abs() < 64 or not 0 < float(largest) < math.inf
        if usual:
            levelled.append(core)
            continue
        half = torch.exp2(torch.trunc(exponent / 2))  # in two steps: 2^-1074 has no finite inverse
        levelled.append(core / half.to(core.real.dtype) / torch.exp2(exponent).div(half).to(core.real.dtype))
        log_scale = log_scale + exponent.to(log_scale.device) * math.log(2)
    return levelled, log_scale


def _normalized(tensor: Tensor) -> tuple[Tensor, Tensor]:
    size = torch.linalg.vector_norm(tensor)
    if size == 0:
        return tensor, torch.zeros((), dtype=torch.float64, device=tensor.device)
    return tensor / size, size.double().log()


def _rounding(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps
