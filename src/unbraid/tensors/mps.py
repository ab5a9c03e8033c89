"""Matrix product states: a vector as a chain of small tensors.

Legend: core ``k`` has shape (left, leg, right). A vector is an operator whose input legs have dimension 1, so the work
is done by :class:`~unbraid.tensors.mpo.MPO`; this file gives it the vocabulary of vectors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unbraid.ground.errors import InvalidInputError
from unbraid.tensors import mpo as operators
from unbraid.tensors.mpo import MPO
from unbraid.tensors.sites import check_dims, qubits_for


class MPS:
    """A matrix product state over torch tensors; immutable, every method returns a new one.

    Args:
        cores: tensors of shape (left, leg, right); the outer bonds are 1.
        size: the logical length, at most the product of the legs; that product by default.
        log_scale: natural logarithm of a factor in front.

    Raises:
        InvalidInputError: if cores do not chain or are not finite.
    """

    def __init__(self, cores: Sequence[Tensor], *, size: int | None = None, log_scale: Tensor | float = 0.0) -> None:
        if any(not isinstance(core, Tensor) or core.dim() != 3 for core in cores):
            raise InvalidInputError("The cores of an MPS must be tensors of shape (left, leg, right).")
        shape = None if size is None else (size, 1)
        self._operator = MPO([core.unsqueeze(2) for core in cores], shape=shape, log_scale=log_scale)

    @classmethod
    def _wrap(cls, operator: MPO) -> MPS:
        state = cls.__new__(cls)
        state._operator = operator
        return state

    @classmethod
    def from_dense(
        cls,
        vector: Tensor,
        dims: Sequence[int] | None = None,
        *,
        max_bond: int | None = None,
        rel_error: float | None = None,
    ) -> MPS:
        """Decompose a vector of shape (size,); limits as in :meth:`MPO.from_dense`.

        Args:
            vector: real or complex, shape (size,).
            dims: legs a site; one qubit a site by default, with zeros appended.
            max_bond: cap of every bond dimension.
            rel_error: allowed relative error in the 2-norm.

        Raises:
            InvalidInputError: if ``vector`` is no vector, is empty or not finite, or legs and limits do not fit.
        """
        if not isinstance(vector, Tensor) or vector.dim() != 1:
            raise InvalidInputError(f"vector must have one axis; got shape {tuple(getattr(vector, 'shape', ()))}.")
        legs = (2,) * max(1, qubits_for(len(vector))) if dims is None else check_dims(dims, max(len(vector), 1), "dims")
        if len(vector) == 1 and dims is None:
            legs = (1,)
        ones = (1,) * len(legs)
        return cls._wrap(MPO.from_dense(vector[:, None], legs, ones, max_bond=max_bond, rel_error=rel_error))

    @property
    def cores(self) -> tuple[Tensor, ...]:
        """Tensors of shape (left, leg, right)."""
        return tuple(core.squeeze(2) for core in self._operator.cores)

    @property
    def dims(self) -> tuple[int, ...]:
        """Leg dimensions."""
        return self._operator.out_dims

    @property
    def bond_dims(self) -> tuple[int, ...]:
        """Dimensions of the inner bonds."""
        return self._operator.bond_dims

    @property
    def size(self) -> int:
        """Logical length of the vector."""
        return self._operator.shape[0]

    @property
    def log_scale(self) -> Tensor:
        """Natural logarithm of the factor in front of the cores."""
        return self._operator.log_scale

    @property
    def num_parameters(self) -> int:
        """Entries of all cores."""
        return self._operator.num_parameters

    def __repr__(self) -> str:
        return f"MPS(size={self.size}, dims={self.dims}, bond_dims={self.bond_dims}, dtype={self._operator.dtype})"

    def to_dense(self) -> Tensor:
        """The logical vector, shape (size,)."""
        return self._operator.to_dense().squeeze(1)

    def canonicalize(self, center: int) -> MPS:
        """The same vector with orthogonal cores around ``center``; its norm goes to ``log_scale``."""
        return self._wrap(self._operator.canonicalize(center))

    def compress(self, max_bond: int | None = None, rel_error: float | None = None) -> MPS:
        """Lower the bonds, as :meth:`MPO.compress` does."""
        return self._wrap(self._operator.compress(max_bond, rel_error))

    def schmidt_values(self, bond: int) -> Tensor:
        """Schmidt values at a bond, descending, shape (rank,)."""
        return self._operator.schmidt_values(bond)

    def entropies(self) -> Tensor:
        """Bond entropies in nats, shape (sites - 1,)."""
        return self._operator.entropies()

    def norm(self) -> Tensor:
        """2-norm of the padded vector."""
        return self._operator.norm()

    def inner(self, other: MPS) -> Tensor:
        """<self, other>, conjugate-linear in ``self``."""
        return operators.inner(self._operator, other._operator)

    def overlap(self, other: MPS) -> Tensor:
        """Re <self, other> / (|self| |other|)."""
        return operators.overlap(self._operator, other._operator)

    def __add__(self, other: MPS) -> MPS:
        """Sum; bonds add up."""
        return self._wrap(self._operator + other._operator)

    def __sub__(self, other: MPS) -> MPS:
        """Difference; bonds add up."""
        return self._wrap(self._operator - other._operator)

    def __mul__(self, factor: float | complex | Tensor) -> MPS:
        """Multiple by a scalar."""
        return self._wrap(self._operator * factor)

    __rmul__ = __mul__


def apply(operator: MPO, state: MPS) -> MPS:
    """``operator`` applied to ``state`` without compression: bonds multiply.

    Raises:
        InvalidInputError: if the input legs of the operator are not the legs of the state.
    """
    if operator.in_dims != state.dims:
        raise InvalidInputError(f"The operator acts on legs {operator.in_dims}; the state has {state.dims}.")
    cores = []
    for a, b in zip(operator.cores, state.cores, strict=True):
        core = torch.einsum("loir,mis->lmors", a, b)
        cores.append(core.reshape(a.shape[0] * b.shape[0], a.shape[1], a.shape[3] * b.shape[2]))
    return MPS(cores, size=operator.shape[0], log_scale=operator.log_scale + state.log_scale)
