"""Best approximation of a dense tensor by a chain of given bonds: alternating least squares."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unbraid.tensors import chain


def fit_chain(target: Tensor, cores: Sequence[Tensor], passes: int) -> tuple[chain.Chain, Tensor]:
    """Improve a chain towards ``target``; each core in turn becomes the best one given the others.

    The result is the projection of ``target`` on the space that the other cores span, so <target, chain> = |chain|^2,
    and |chain| never decreases.

    Args:
        target: dense, shape (prod(legs),).
        cores: start, each of shape (left, leg, right).
        passes: sweeps over all sites.

    Returns:
        The chain (center at its last core, which holds the norm) and that norm.
    """
    cores = list(cores)
    for _ in range(passes):
        cores, _ = chain.canonicalize(cores, 0)
        partial = target.reshape(-1, 1)
        rights = [partial]  # rights[-1 - k]: target with the cores after site k contracted, (legs up to k, bond)
        for core in reversed(cores[1:]):
            left, leg, right = core.shape
            partial = partial.reshape(-1, leg * right) @ core.reshape(left, leg * right).mH
            rights.append(partial)
        isometry = torch.ones(1, 1, dtype=target.dtype, device=target.device)  # (legs before k, bond)
        for k, core in enumerate(cores):
            left, leg, right = core.shape
            best = isometry.mH @ rights[-1 - k].reshape(-1, leg * right)
            if k == len(cores) - 1:
                cores[k] = best.reshape(left, leg, right)
                break
            q, _ = torch.linalg.qr(best.reshape(left * leg, right))
            cores[k] = q.reshape(left, leg, -1)
            if cores[k].shape[2] != right:  # the bond is larger than the space left of it: drop what cannot be reached
                cores[k + 1] = cores[k + 1][: cores[k].shape[2]]
            isometry = (isometry @ cores[k].reshape(left, -1)).reshape(-1, cores[k].shape[2])
    return cores, torch.linalg.vector_norm(cores[-1])
