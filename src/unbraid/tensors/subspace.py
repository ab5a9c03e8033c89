"""Orthonormal bases of the dominant left singular vectors of a matrix, by four methods.

A tensor train needs such a basis at every bond, and no right singular vectors: those come as what is left of the matrix
in that basis. Times below are for wide matrices (p, q), p <= q, of which r vectors are wanted.

- "svd": singular values and both sides.
- "qr": triangular factor of the transposed matrix, then an SVD of p x p; as exact as "svd".
- "gram": eigenvectors of the p x p Gram matrix, summed in float64 whatever the dtype. Directions whose singular value
  is below 1e-8 of the largest are lost, which float32 does not resolve either.
- "randomized": a random sketch with one power step, p q r instead of p^2 q operations, where less than a quarter of all
  vectors is wanted, else "gram". Its error is up to a few per cent above the best where singular values fall slowly.

Source: sketches with power steps: Halko, Martinsson, Tropp, arXiv:0909.4061.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from unbraid.ground.random import stream

METHODS = ("auto", "svd", "qr", "gram", "randomized")

_OVERSAMPLING = 8
_CHUNK = 2**21  # entries of a float64 copy: 16 MiB
_BLOCKS = 4  # of the lower triangle of a Gram matrix
_WORTH = 4  # a sketch of fewer times the vectors wanted costs what a Gram matrix does


def resolve(method: str, dtype: torch.dtype, rel_error: float | None) -> str:
    """What "auto" means: "gram", but "qr" where the weight has digits, or the error needs some, that it would lose."""
    if method != "auto":
        return method
    fine = dtype in (torch.float64, torch.complex128) or (rel_error is not None and rel_error < 1e-5)
    return "qr" if fine else "gram"


def dominant(matrix: Tensor, rank: int, method: str, seed: int = 0) -> Tensor:
    """Orthonormal columns (p, rank) that span the dominant left singular vectors of ``matrix`` (p, q).

    Args:
        matrix: float32, float64 or complex.
        rank: at most min(p, q).
        method: one of "svd", "qr", "gram", "randomized".
        seed: of the sketch.
    """
    rows, columns = matrix.shape
    if rank == columns <= rows:
        return torch.linalg.qr(matrix).Q
    if method == "randomized":
        if _WORTH * (rank + _OVERSAMPLING) <= min(rows, columns):
            return _sketched(matrix, rank, seed)
        method = "gram"
    if rows > columns:  # from the small side, then back
        return torch.linalg.qr(matrix @ dominant(matrix.mH, rank, method, seed)).Q
    if method == "svd":
        return torch.linalg.svd(matrix, full_matrices=False).U[:, :rank]
    if method == "qr":
        return torch.linalg.svd(torch.linalg.qr(matrix.mH, mode="r").R.mH).U[:, :rank]
    vectors = torch.linalg.eigh(gram(matrix)).eigenvectors  # in ascending order
    return vectors[:, rows - rank :].flip(1).to(matrix.dtype)


def singular_values(matrix: Tensor, method: str) -> Tensor:
    """All of them, in descending order, float64."""
    if method in ("svd", "qr"):
        return torch.linalg.svdvals(matrix).double()
    squares = torch.linalg.eigvalsh(gram(matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mH))
    return squares.clamp(min=0).sqrt().flip(0)


def gram(matrix: Tensor) -> Tensor:
    """The lower triangle of ``matrix @ matrix^H`` (p, p), in float64."""
    rows = matrix.shape[0]
    wide = torch.complex128 if matrix.is_complex() else torch.float64
    total = torch.zeros(rows, rows, dtype=wide, device=matrix.device)
    edges = [rows * k // _BLOCKS for k in range(_BLOCKS + 1)] if rows >= 16 * _BLOCKS else [0, rows]
    for piece in _pieces(matrix):
        piece = piece.to(wide)
        for start, stop in pairwise(edges):
            total[start:stop, :stop] += piece[start:stop] @ piece[:stop].mH
    return total


def _pieces(matrix: Tensor) -> Iterator[Tensor]:
    if matrix.dtype in (torch.float64, torch.complex128):
        return iter((matrix,))
    return iter(matrix.split(max(matrix.shape[0], _CHUNK // matrix.shape[0]), dim=1))


def _sketched(matrix: Tensor, rank: int, seed: int) -> Tensor:
    width = rank + _OVERSAMPLING
    start = torch.randn(matrix.shape[1], width, generator=stream(seed, "sketch"), dtype=matrix.dtype)
    basis = torch.linalg.qr(matrix @ start.to(matrix.device)).Q
    basis = torch.linalg.qr(matrix @ (matrix.mH @ basis)).Q
    return basis @ dominant(basis.mH @ matrix, rank, "gram")
