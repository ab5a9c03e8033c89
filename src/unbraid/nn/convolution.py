"""``MPOConv2d``: a convolution whose kernel, unfolded to a matrix, is a matrix product operator."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

from unbraid.ground.errors import InvalidInputError, require_choice
from unbraid.nn.operator import OperatorModule, bias_parameter
from unbraid.tensors import MPO
from unbraid.tensors.sites import align, auto_sites

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


class MPOConv2d(OperatorModule):
    """A 2-d convolution; the matrix (out, in / groups x height x width) of its kernel is an MPO with trainable cores.

    The kernel is made of the cores before each use, at a cost that is small beside that of the convolution.

    Args:
        mpo: real, of shape (out_channels, in_channels / groups * height * width).
        kernel_size: (height, width).
        bias: shape (out_channels,), or None.
        stride: (vertical, horizontal).
        padding: "same", "valid" or (vertical, horizontal).
        dilation: (vertical, horizontal).
        groups: of channels.
        padding_mode: "zeros", "reflect", "replicate" or "circular".

    Raises:
        InvalidInputError: if the MPO is complex or does not hold the kernel, or the bias has another size.
    """

    def __init__(
        self,
        mpo: MPO,
        kernel_size: tuple[int, int],
        bias: Tensor | None = None,
        *,
        stride: tuple[int, int] = (1, 1),
        padding: str | tuple[int, int] = (0, 0),
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
        padding_mode: str = "zeros",
    ) -> None:
        super().__init__(mpo)
        self.out_channels, columns = mpo.shape
        self.kernel_size = (int(kernel_size[0]), int(kernel_size[1]))
        if columns % prod(self.kernel_size) or self.out_channels % groups:
            raise InvalidInputError(
                f"A kernel of {kernel_size} in {groups} groups needs an MPO of shape (out, in / groups x "
                f"{prod(self.kernel_size)}), out a multiple of {groups}; got {mpo.shape}."
            )
        self.in_channels = columns // prod(self.kernel_size) * groups
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self.padding_mode = require_choice(padding_mode, PADDING_MODES, "padding_mode")
        self.bias = bias_parameter(bias, self.out_channels, mpo)

    @property
    def weight(self) -> Tensor:
        """The kernel, shape (out_channels, in_channels / groups, height, width); differentiable."""
        return self._kernel(self.mpo.to_dense())

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, bias={self.bias is not None}, {self._geometry()}"
        )

    def forward(self, x: Tensor) -> Tensor:
        """Shape (..., in_channels, H, W) to (..., out_channels, H', W'), as of ``nn.Conv2d``."""
        padding = self.padding
        if self.padding_mode != "zeros":
            x, padding = pad(x, self._borders(), mode=self.padding_mode), (0, 0)
        kernel = self._kernel(self._dense())
        return conv2d(x, kernel, self.bias, self.stride, padding, self.dilation, self.groups)

    def to_conv(self) -> nn.Conv2d:
        """The equivalent dense layer."""
        weight = self.weight
        layer = torch.nn.utils.skip_init(  # draws no numbers
            nn.Conv2d,
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            bias=self.bias is not None,
            device=weight.device,
            dtype=weight.dtype,
            **conv_options(self),
        )
        assert isinstance(layer, nn.Conv2d)
        with torch.no_grad():
            layer.weight.copy_(weight)
            if layer.bias is not None and self.bias is not None:
                layer.bias.copy_(self.bias)
        return layer

    def _kernel(self, matrix: Tensor) -> Tensor:
        return matrix.reshape(self.out_channels, -1, *self.kernel_size)

    def _borders(self) -> list[int]:
        """Columns left and right, rows above and below: where they are odd in number, the last side gets one more."""
        if self.padding == "valid":
            return [0, 0, 0, 0]
        borders = []
        for axis in (1, 0):
            if isinstance(self.padding, str):
                total = self.dilation[axis] * (self.kernel_size[axis] - 1)
                borders += [total // 2, total - total // 2]
            else:
                borders += [self.padding[axis], self.padding[axis]]
        return borders


def conv_options(layer: nn.Conv2d | MPOConv2d) -> dict[str, Any]:
    """What a convolution is besides its numbers."""
    return {
        "stride": layer.stride,
        "padding": layer.padding,
        "dilation": layer.dilation,
        "groups": layer.groups,
        "padding_mode": layer.padding_mode,
    }


def kernel_sites(
    out_channels: int, in_channels: int, kernel_size: tuple[int, int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Sites of channels as in :func:`~unbraid.tensors.sites.auto_sites`, and one more for the places of the kernel.

    Args:
        out_channels: number of outputs.
        in_channels: number of inputs of a group.
        kernel_size: (height, width).
    """
    outs, ins = auto_sites(out_channels, in_channels)
    return align((*outs, 1), (*ins, prod(kernel_size)))
