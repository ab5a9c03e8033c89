"""``MPOEmbedding``: a table of vectors whose matrix is a matrix product operator."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from unbraid.ground.errors import InvalidInputError
from unbraid.nn.operator import OperatorModule
from unbraid.tensors import MPO


class MPOEmbedding(OperatorModule):
    """An embedding whose table (num_embeddings, embedding_dim) is an MPO with trainable cores.

    A row is a product of slices of the cores, one for each digit of its number; the table is never formed.

    Args:
        mpo: real, of shape (num_embeddings, embedding_dim).
        padding_idx: a row that gets no gradient, as in ``nn.Embedding``; the cores that make it do get those of other
            rows.

    Raises:
        InvalidInputError: if the MPO is complex, or there is no such row.
    """

    def __init__(self, mpo: MPO, padding_idx: int | None = None) -> None:
        super().__init__(mpo)
        self.num_embeddings, self.embedding_dim = mpo.shape
        if padding_idx is not None and not -self.num_embeddings <= padding_idx < self.num_embeddings:
            raise InvalidInputError(
                f"padding_idx must be a row from 0 to {self.num_embeddings - 1}; got {padding_idx}."
            )
        self.padding_idx = None if padding_idx is None else padding_idx % self.num_embeddings

    @property
    def weight(self) -> Tensor:
        """The table, shape (num_embeddings, embedding_dim); computed at every access, differentiable."""
        return self.mpo.to_dense()

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}, {self._geometry()}"

    def forward(self, index: Tensor) -> Tensor:
        """Numbers of rows, shape (...), to vectors (..., embedding_dim).

        Raises:
            InvalidInputError: on a CPU, if there is no such row.
        """
        if index.device.type == "cpu" and not torch.compiler.is_compiling() and index.numel():
            low, high = int(index.min()), int(index.max())
            if low < 0 or high >= self.num_embeddings:
                raise InvalidInputError(
                    f"Rows are numbered from 0 to {self.num_embeddings - 1}; got {low if low < 0 else high}."
                )
        rows = index.reshape(-1)
        cores = tuple(self.cores)
        vectors = cores[0].new_ones(1, 1, 1)
        after, width = self._padded_shape
        for core in cores:
            bond, out, leg, right = core.shape
            after //= out
            digit = rows // after % out
            slices = embedding(digit, core.transpose(0, 1).reshape(out, -1)).reshape(-1, bond, leg * right)
            vectors = (vectors @ slices).reshape(-1, vectors.shape[1] * leg, right)
        vectors = vectors.reshape(*index.shape, width)[..., : self.embedding_dim]
        if self.padding_idx is None:
            return vectors
        return torch.where((index == self.padding_idx)[..., None], vectors.detach(), vectors)

    def to_embedding(self) -> nn.Embedding:
        """The equivalent dense layer."""
        weight = self.weight.detach()
        layer = torch.nn.utils.skip_init(  # draws no numbers
            nn.Embedding,
            self.num_embeddings,
            self.embedding_dim,
            self.padding_idx,
            device=weight.device,
            dtype=weight.dtype,
        )
        assert isinstance(layer, nn.Embedding)
        with torch.no_grad():
            layer.weight.copy_(weight)
        return layer
