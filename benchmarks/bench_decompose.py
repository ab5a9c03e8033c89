"""From a weight to the cores of an MPO, beside a TT-SVD by ``torch.linalg.svd`` and other libraries.

Seconds, times over the TT-SVD of the same run, and relative errors, on one thread: a Gaussian matrix, and one that is
exactly an MPO of the bond that is asked for. Peers are used where they are installed: tensorly 0.10.0, torchTT 0.5.0,
quimb 1.15.0.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import contextlib
import io
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from timing import print_rows
from torch import Tensor

from unbraid.tensors import MPO, chain
from unbraid.tensors.legs import deinterleave, interleave

CASES = ((1024, 5, (16, 64)), (4096, 6, (16, 64)))
REPEATS = 3


def tt_svd(weight: Tensor, sites: tuple[int, ...], bond: int) -> list[Tensor]:
    """By full SVDs, in the weight's precision."""
    rest, left, cores = interleave(weight, sites, sites).reshape(1, -1), 1, []
    for dim in sites[:-1]:
        u, s, vh = torch.linalg.svd(rest.reshape(left * dim**2, -1), full_matrices=False)
        rank = min(bond, len(s))
        cores.append(u[:, :rank].reshape(left, dim**2, rank))
        rest, left = s[:rank, None] * vh[:rank], rank
    return [*cores, rest.reshape(left, sites[-1] ** 2, 1)]


def ours(method: str) -> Callable[..., Sequence[Tensor]]:
    return lambda weight, sites, bond: MPO.from_dense(weight, sites, sites, max_bond=bond, method=method).cores


def tensorly(weight: Tensor, sites: tuple[int, ...], bond: int) -> Sequence[Tensor]:
    import tensorly as tl
    from tensorly.decomposition import tensor_train_matrix

    tl.set_backend("pytorch")
    return [*tensor_train_matrix(weight.reshape(*sites, *sites), [1, *[bond] * (len(sites) - 1), 1])]


def torchtt(weight: Tensor, sites: tuple[int, ...], bond: int) -> Sequence[Tensor]:
    import torchtt as tt

    shape = [(dim, dim) for dim in sites]
    return tt.TT(weight.reshape(*sites, *sites), shape=shape, eps=1e-12, rmax=bond).cores


def quimb(weight: Tensor, sites: tuple[int, ...], bond: int) -> Sequence[Tensor]:
    import quimb.tensor as qtn

    operator = qtn.MatrixProductOperator.from_dense(weight.numpy(), dims=list(sites), max_bond=bond, cutoff=0.0)
    operator.permute_arrays("lrud")
    found = []
    for k in range(len(sites)):
        array = torch.from_numpy(operator[k].data)
        array = array[None] if k == 0 else array[:, None] if k == len(sites) - 1 else array
        found.append(array.permute(0, 2, 3, 1))
    return found


MAKERS: dict[str, Callable[..., Sequence[Tensor]]] = {
    "TT-SVD, torch.linalg.svd": tt_svd,
    "Unbraid": ours("auto"),
    "Unbraid, randomized": ours("randomized"),
    "Unbraid, qr": ours("qr"),
    "tensorly": tensorly,
    "torchTT": torchtt,
    "quimb": quimb,
}


def error(cores: Sequence[Tensor], weight: Tensor, sites: tuple[int, ...]) -> float:
    """Relative, in double precision."""
    wide = [core.double().reshape(core.shape[0], -1, core.shape[-1]) for core in cores]
    dense = deinterleave(chain.contract(wide), sites, sites)
    return float(torch.dist(dense, weight.double()) / torch.linalg.vector_norm(weight.double()))


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = []
    for size, count, bonds in CASES:
        sites = (4,) * count
        for bond in bonds:
            weights = {
                "Gaussian": torch.randn(size, size, generator=torch.Generator().manual_seed(0)),
                "exact": MPO.random(sites, sites, bond, seed=1).to_dense(),
            }
            times: dict[str, list[float]] = {}
            errors: dict[str, dict[str, Any]] = {}
            for name, maker in MAKERS.items():
                with contextlib.suppress(ImportError), contextlib.redirect_stdout(io.StringIO()):
                    errors[name] = {kind: error(maker(w, sites, bond), w, sites) for kind, w in weights.items()}
                    times[name] = []
            for _ in range(REPEATS):
                for name in times:
                    start = time.perf_counter()
                    MAKERS[name](weights["Gaussian"], sites, bond)
                    times[name].append(time.perf_counter() - start)
            first = statistics.median(times["TT-SVD, torch.linalg.svd"])
            for name, each in times.items():
                seconds = statistics.median(each)
                rows.append((size, bond, name, seconds, seconds / first, *errors[name].values()))
                print(*rows[-1], flush=True)
    print()
    print_rows(("size", "bond", "", "seconds", "over TT-SVD", "error, Gaussian", "error, exact"), rows)


if __name__ == "__main__":
    main()
