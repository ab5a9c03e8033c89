"""From a dense matrix to the cores of an MPO: ranks by error, bond or number of entries.

Legend: a chain is a list of cores (left, leg, right) whose leg is the output and input leg of a site merged. Cutting
bond ``k`` unfolds a matrix: rows are the legs of the sites up to ``k``, columns the legs behind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from unbraid.ground.errors import InvalidInputError, require_finite
from unbraid.tensors import chain, subspace
from unbraid.tensors.legs import interleave

_NOISE = {"exact": 1e-13, "gram": 1e-7}  # of singular values, over the norm


@dataclass(frozen=True)
class Limits:
    """What a decomposition has to keep to.

    Attributes:
        max_bond: cap of every bond.
        rel_error: allowed relative Frobenius error.
        max_parameters: cap of the number of entries.

    Raises:
        InvalidInputError: naming the limit that makes no sense.
    """

    max_bond: int | None = None
    rel_error: float | None = None
    max_parameters: int | None = None

    def __post_init__(self) -> None:
        for value, name in ((self.max_bond, "max_bond"), (self.max_parameters, "max_parameters")):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise InvalidInputError(f"{name} must be a positive integer or None; got {value!r}.")
        error = self.rel_error
        if error is not None and (isinstance(error, (bool, str)) or not 0 <= error < 1):
            raise InvalidInputError(f"rel_error must be at least 0 and below 1; got {error!r}.")


def decompose(
    weight: Tensor, outs: Sequence[int], ins: Sequence[int], limits: Limits, method: str, seed: int
) -> chain.Chain:
    """Cores of ``weight``, rounded to its dtype; what :meth:`unbraid.MPO.from_dense` promises.

    Args:
        weight: shape (out, in), not zero, entries whose squares float64 can hold.
        outs: output legs, with a product of at least out.
        ins: input legs, likewise.
        limits: of bonds, error and entries.
        method: of :data:`unbraid.tensors.subspace.METHODS`.
        seed: of random sketches.
    """
    method = subspace.resolve(method, weight.dtype, limits.rel_error)
    wide = torch.complex128 if weight.is_complex() else torch.float64
    single = torch.complex64 if weight.is_complex() else torch.float32
    unlimited = limits == Limits()
    if unlimited and method in ("gram", "randomized"):
        method = "qr"
    by_error = unlimited or limits.rel_error is not None
    work = wide if by_error or weight.dtype == wide or method in ("svd", "qr") else single
    rows, columns = weight.shape
    padding = (0, math.prod(ins) - columns, 0, math.prod(outs) - rows)
    matrix = pad(weight, padding).to(work) if any(padding) else weight.to(work)
    legs = [o * i for o, i in zip(outs, ins, strict=True)]
    rel_error = 4 * torch.finfo(weight.dtype).eps if unlimited else limits.rel_error
    ranks, least = _ranks(matrix, outs, ins, limits, rel_error, method)

    def anew(ranks: Sequence[int]) -> chain.Chain:
        return tensor_train(matrix, outs, ins, ranks, method, seed)

    def stored(cores: chain.Chain) -> chain.Chain:
        return [core.to(weight.dtype) for core in even(cores)]

    cores = anew(ranks)
    if rel_error is None or limits.max_parameters is not None:
        return stored(_without_rounding(cores, torch.finfo(wide if weight.dtype == wide else single).eps))
    tensor = interleave(matrix, outs, ins)
    allowance = rel_error * float(torch.linalg.vector_norm(tensor))

    def allowed(trial: chain.Chain) -> bool:
        rough = chain.contract([core.to(wide) for core in stored(trial)])
        return float(torch.linalg.vector_norm(rough - tensor)) <= allowance

    full = _full_ranks(legs)
    met, tries = allowed(cores), 0
    while not met and limits.max_bond is None and ranks != full:  # rounding to the dtype, or a sketch, took its share
        ranks = [min(rank + 1 + rank * 2**tries // 32, most) for rank, most in zip(ranks, full, strict=True)]
        cores, tries = anew(ranks), tries + 1
        met = allowed(cores)
    if met:
        cores = _lowered(cores, None if unlimited else anew, allowed, least)
    if limits.max_bond is None and (not met or (unlimited and [core.shape[2] for core in cores[:-1]] == full)):
        return [core.to(weight.dtype) for core in chain.split_exactly(tensor, legs)]  # nothing is rounded
    return stored(cores)


def _full_ranks(legs: Sequence[int]) -> list[int]:
    """One a bond, of a chain that can hold any tensor."""
    return [min(math.prod(legs[:k]), math.prod(legs[k:])) for k in range(1, len(legs))]


def _ranks(
    matrix: Tensor, outs: Sequence[int], ins: Sequence[int], limits: Limits, rel_error: float | None, method: str
) -> tuple[list[int], list[int]]:
    """One a bond, within the limits; and those below which the error is known to be too large."""
    legs = [o * i for o, i in zip(outs, ins, strict=True)]
    caps = [size if limits.max_bond is None else min(size, limits.max_bond) for size in _full_ranks(legs)]
    if rel_error is None and limits.max_parameters is None:
        return caps, [1] * len(caps)
    norm = torch.linalg.vector_norm(matrix, dtype=torch.complex128 if matrix.is_complex() else torch.float64)
    values = [
        _above_rounding(subspace.singular_values(_unfolded(matrix, outs, ins, k + 1), method) / norm, method)
        for k in range(len(legs) - 1)
    ]
    caps = [min(cap, len(each)) for cap, each in zip(caps, values, strict=True)]
    if limits.max_parameters is not None:
        caps = chain.ranks_for_entries(values, legs, limits.max_parameters, caps)
    if rel_error is None:
        return caps, [1] * len(caps)
    noise = _NOISE["exact" if method in ("svd", "qr") else "gram"]
    return chain.ranks_for_error(values, legs, rel_error, caps), chain.least_ranks(values, rel_error, noise)


def tensor_train(
    matrix: Tensor, outs: Sequence[int], ins: Sequence[int], ranks: Sequence[int], method: str, seed: int = 0
) -> chain.Chain:
    """TT-SVD of a matrix, from the first site on; the last core holds the norm, the others are left-orthogonal.

    Args:
        matrix: shape (prod(outs), prod(ins)).
        outs: output legs.
        ins: input legs.
        ranks: one a bond.
        method: of :mod:`unbraid.tensors.subspace`.
        seed: of random sketches.
    """
    cores: chain.Chain = []
    rest = matrix[None]  # (left, outputs to come, inputs to come): legs are split off one site at a time
    for out, leg, rank in zip(outs[:-1], ins[:-1], ranks, strict=True):
        left, rows, columns = rest.shape
        rest = rest.reshape(left, out, rows // out, leg, columns // leg).transpose(2, 3)
        unfolded = rest.reshape(left * out * leg, -1)
        if rank < len(unfolded):
            basis = subspace.dominant(unfolded, min(rank, *unfolded.shape), method, seed)
            unfolded = basis.mH @ unfolded
        else:
            basis = torch.eye(len(unfolded), dtype=matrix.dtype, device=matrix.device)
        cores.append(basis.reshape(left, out * leg, -1))
        rest = unfolded.reshape(-1, rows // out, columns // leg)
    return [*cores, rest.reshape(len(rest), outs[-1] * ins[-1], 1)]


def _unfolded(matrix: Tensor, outs: Sequence[int], ins: Sequence[int], sites: int) -> Tensor:
    """Legs of the first so many sites as rows, all others as columns; in any order among themselves."""
    rows, columns = math.prod(outs[:sites]), math.prod(ins[:sites])
    return matrix.reshape(rows, -1, columns, matrix.shape[1] // columns).transpose(1, 2).reshape(rows * columns, -1)


def _above_rounding(values: Tensor, method: str) -> Tensor:
    """Singular values without those that are the rounding of float64; of Gram matrices, noise of this size remains."""
    floor = torch.finfo(torch.float64).eps if method in ("svd", "qr") else 0.0
    return values[: max(1, int((values > floor).sum()))]


def _without_rounding(cores: chain.Chain, floor: float) -> chain.Chain:
    """Without the bonds that only rounding keeps up, as those of a matrix of lower rank than the caps."""
    values, _ = chain.schmidt_values(cores)
    ranks = [max(1, int((s > floor).sum())) for s in values]
    if all(rank == core.shape[2] for rank, core in zip(ranks, cores, strict=False)):
        return cores
    lowered, log_norm = chain.truncate(cores, ranks)
    return spread_scale(lowered, log_norm)


def spread_scale(cores: Sequence[Tensor], log_norm: Tensor) -> chain.Chain:
    """Put a log-norm back into the cores, equally."""
    factor = torch.exp(log_norm / len(cores)).to(cores[0].real.dtype if cores[0].is_complex() else cores[0].dtype)
    return [core * factor for core in cores]


def even(cores: Sequence[Tensor]) -> chain.Chain:
    """Cores of equal root-mean-square entry: rounds and trains better than one core with all of the norm."""
    sizes = [torch.linalg.vector_norm(core) / math.sqrt(core.numel()) for core in cores]
    if any(float(size.detach()) == 0 for size in sizes):
        return list(cores)
    logs = torch.stack([size.log() for size in sizes])
    factors = torch.exp(logs.mean() - logs)
    return [core * factor for core, factor in zip(cores, factors, strict=True)]


def _lowered(
    cores: chain.Chain,
    anew: Callable[[Sequence[int]], chain.Chain] | None,
    allowed: Callable[[chain.Chain], bool],
    least: Sequence[int],
) -> chain.Chain:
    """Lower ranks until truncating a bond of the chain, or decomposing ``anew`` with one rank less, fails."""
    if anew is None:
        return chain.lower_ranks(cores, allowed, least)
    again = True
    while again:
        cores, again = chain.lower_ranks(cores, allowed, least), False
        ranks = [core.shape[2] for core in cores[:-1]]
        for k, rank in enumerate(ranks):
            if rank <= least[k]:
                continue
            trial = anew([r - (j == k) for j, r in enumerate(ranks)])
            if allowed(trial):
                cores, again = trial, True
                break
    return cores


def largest_entry(weight: Tensor) -> float:
    """Of a finite, non-empty matrix, by magnitude.

    Raises:
        InvalidInputError: saying what came.
    """
    if not isinstance(weight, Tensor) or weight.dim() != 2:
        shape = tuple(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
        raise InvalidInputError(f"weight must be a matrix (out, in); got {shape}. Reshape it first.")
    if weight.numel() == 0:
        raise InvalidInputError(f"weight must have at least one row and one column; got shape {tuple(weight.shape)}.")
    if not (weight.is_floating_point() or weight.is_complex()):
        raise InvalidInputError(f"weight must be floating point or complex; got {weight.dtype}. Convert it first.")
    numbers = torch.view_as_real(weight.detach()) if weight.is_complex() else weight.detach()
    low, high = (float(end) for end in torch.aminmax(numbers))
    if not (math.isfinite(low) and math.isfinite(high)):
        require_finite(weight, "weight")
    return max(abs(low), abs(high))
