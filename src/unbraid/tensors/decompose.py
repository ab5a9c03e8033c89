"""From a dense matrix to the cores of an MPO: ranks by error, bond or number of entries.

Legend: a chain is a list of cores (left, leg, right) whose leg is the output and input leg of a site merged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from unbraid.ground.errors import InvalidInputError, require_finite
from unbraid.tensors import chain
from unbraid.tensors.legs import interleave


def decompose(
    weight: Tensor,
    outs: Sequence[int],
    ins: Sequence[int],
    max_bond: int | None,
    rel_error: float | None,
    max_parameters: int | None,
) -> chain.Chain:
    """Cores of ``weight``, rounded to its dtype; what :meth:`unbraid.MPO.from_dense` promises.

    Args:
        weight: shape (out, in), entries whose squares float64 can hold.
        outs: output legs, with a product of at least out.
        ins: input legs, likewise.
        max_bond: cap of every bond.
        rel_error: allowed relative Frobenius error.
        max_parameters: cap of the number of entries.
    """
    rows, columns = weight.shape
    legs = [o * i for o, i in zip(outs, ins, strict=True)]
    exact = weight.to(torch.complex128 if weight.is_complex() else torch.float64)
    tensor = interleave(pad(exact, (0, math.prod(ins) - columns, 0, math.prod(outs) - rows)), outs, ins)

    def rounded(cores: chain.Chain) -> chain.Chain:
        return [core.to(weight.dtype) for core in cores]

    def error(cores: chain.Chain) -> float:
        rough = chain.contract([core.to(tensor.dtype) for core in rounded(cores)])
        return float(torch.linalg.vector_norm(rough - tensor))

    norm = float(torch.linalg.vector_norm(tensor))
    eps = torch.finfo(weight.dtype).eps
    allowance = norm * max(4 * eps if rel_error is None else rel_error, 0.0)
    cores = chain.split(tensor, legs)
    if norm > 0:
        values, _ = chain.schmidt_values(cores)
        bound = rel_error if rel_error is not None else None if max_bond or max_parameters else 4 * eps
        ranks = chain.choose_ranks(values, legs, max_bond=max_bond, rel_error=bound, max_parameters=max_parameters)
        cores, log_norm = chain.truncate(cores, ranks)
        cores = spread_scale(cores, log_norm)
    if max_parameters is None and (rel_error is not None or max_bond is None):
        full = chain.split_exactly(tensor, legs)
        if error(cores) <= allowance:
            lowered = _lowered(
                cores, tensor, legs, lambda trial: error(even(trial)) <= allowance, anew=rel_error is not None
            )
            cores = even(lowered)
        elif max_bond is None and rel_error is not None:
            cores = full
        if rel_error is None and [c.shape for c in cores] == [c.shape for c in full]:
            cores = full
    return rounded(cores)


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
    cores: chain.Chain, tensor: Tensor, legs: Sequence[int], allowed: Callable[[chain.Chain], bool], *, anew: bool
) -> chain.Chain:
    """Lower ranks until truncating a bond of the chain, or decomposing ``tensor`` anew with one rank less, fails."""
    if not anew:
        return chain.lower_ranks(cores, allowed)
    whole, log_norm = chain.canonicalize(chain.split(tensor, legs), 0)
    again = True
    while again:
        cores, again = chain.lower_ranks(cores, allowed), False
        ranks = [core.shape[2] for core in cores[:-1]]
        for k, rank in enumerate(ranks):
            if rank == 1:
                continue
            trial = spread_scale(chain.cut(whole, [r - (j == k) for j, r in enumerate(ranks)]), log_norm)
            if allowed(trial):
                cores, again = trial, True
                break
    return cores


def check_weight(weight: Tensor) -> None:
    """Refuse what is no finite, non-empty matrix.

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
    require_finite(weight, "weight")


def check_limits(max_bond: int | None, rel_error: float | None, max_parameters: int | None) -> None:
    """Refuse limits that make no sense.

    Raises:
        InvalidInputError: naming the limit.
    """
    for value, name in ((max_bond, "max_bond"), (max_parameters, "max_parameters")):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise InvalidInputError(f"{name} must be a positive integer or None; got {value!r}.")
    if rel_error is not None and not 0 <= rel_error < 1:
        raise InvalidInputError(f"rel_error must be at least 0 and below 1; got {rel_error!r}.")
