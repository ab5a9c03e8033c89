"""What layers share whose weight is a matrix product operator: cores, plans, and what is kept between two calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from unbraid.ground.errors import InvalidInputError
from unbraid.nn.cores import Cores, stored
from unbraid.nn.kept import Kept, without_autocast
from unbraid.tensors import MPO, contraction
from unbraid.tensors.contraction import Plan


class OperatorModule(nn.Module):
    """A module with the cores of an operator: trainable ones, or what ``quantize`` or ``fix_gauge`` made of them.

    While no gradient of the cores is wanted, joined cores are kept from one call to the next. They are made anew once
    the layer ran with gradients, was moved or put in training mode, or a core was changed, other than in place through
    ``.data`` or ``.numpy()``. With ``keeps_blocks = False`` nothing is kept, and no more memory is taken than the
    cores'.

    Args:
        mpo: real; its scale is spread over the cores.

    Raises:
        InvalidInputError: if the MPO is complex.
    """

    keeps_blocks = True
    cores: Cores

    def __init__(self, mpo: MPO) -> None:
        super().__init__()
        self.cores = core_parameters(mpo)
        self._matrix_shape, self._padded_shape = mpo.shape, mpo.padded_shape
        self._shapes = contraction.shapes_of(mpo.cores)
        self._kept: Kept[list[Tensor]] = Kept()

    def cores_changed(self) -> None:
        """To be called once :attr:`cores` holds others, of the same legs."""
        self._shapes = contraction.shapes_of(tuple(self.cores))
        self._kept = Kept()

    @property
    def mpo(self) -> MPO:
        """The weight as a matrix, sharing the parameters (differentiable)."""
        return operator(self.cores, self._matrix_shape)

    @property
    def num_parameters(self) -> int:
        """Trainable scalars, bias included."""
        return sum(parameter.numel() for parameter in self.parameters())

    def train(self, mode: bool = True) -> Self:
        """As of any module; blocks that were kept are dropped."""
        self._kept = Kept()
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._kept = Kept()
        return super()._apply(fn, recurse)

    def _wants_gradients(self) -> bool:
        return torch.is_grad_enabled() and any(each.requires_grad for each in stored(self.cores))

    def _dense(self) -> Tensor:
        """The whole matrix, kept while no gradient of the cores is wanted."""
        way = Plan(((0, len(self.cores)),), False, 0, 0.0)
        if torch.compiler.is_compiling():
            return self._blocks(way)[0]
        if self._wants_gradients():
            self._kept.drop()
        elif self.keeps_blocks:
            return self._kept.get(stored(self.cores), way, self._blocks)[0]
        return self._blocks(way)[0]

    def _blocks(self, way: Plan) -> list[Tensor]:
        """Joined cores as matrices; the whole one cropped to the logical sizes."""
        cores = tuple(self.cores)
        with without_autocast(cores[0]):
            blocks = contraction.matrices(cores, way)
        rows, columns = self._matrix_shape
        return [blocks[0][:rows, :columns]] if way.is_dense else blocks

    def _geometry(self) -> str:
        mpo = self.mpo
        return f"out_dims={mpo.out_dims}, in_dims={mpo.in_dims}, bond_dims={mpo.bond_dims}"


def core_parameters(mpo: MPO) -> nn.ParameterList:
    """Trainable copies of the cores, the scale spread over them.

    Raises:
        InvalidInputError: if the MPO is complex.
    """
    if mpo.dtype.is_complex:
        raise InvalidInputError("A layer needs a real MPO; got complex cores.")
    cores = mpo.balanced().cores if float(mpo.log_scale) != 0 else mpo.cores
    return nn.ParameterList(
        [nn.Parameter(core.detach().clone(memory_format=torch.contiguous_format)) for core in cores]
    )


def bias_parameter(bias: Tensor | None, size: int, mpo: MPO) -> nn.Parameter | None:
    """A trainable copy with the dtype and on the device of the cores.

    Raises:
        InvalidInputError: if it has another size.
    """
    if bias is None:
        return None
    if bias.shape != (size,):
        raise InvalidInputError(f"bias must have shape ({size},); got {tuple(bias.shape)}.")
    return nn.Parameter(bias.detach().to(mpo.device, mpo.dtype).clone())


def operator(cores: Cores, shape: tuple[int, int]) -> MPO:
    """The MPO of parameters, unchecked: the checks of its constructor would read every core at every step."""
    mpo = MPO.__new__(MPO)
    mpo._set(tuple(cores), shape, 0.0, None)
    return mpo
