"""Cores as integers: groups of entries with one scale each, made into numbers where they are used.

Legend: a group is GROUP entries of a core in the order (left, right, out, in), the last one padded with zeros. Its
entries are ``integers * scale``, with integers from ``-2^(bits - 1)`` to ``2^(bits - 1) - 1``; those of four bits lie
two in a byte, the first half of a group in the low halves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from unbraid.ground.errors import InvalidInputError

GROUP = 64
BITS = (8, 4)
_SHARES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6)  # of the scale that reaches the largest entry

Shape = Sequence[int]


class QuantizedCores(nn.Module):
    """Cores that are stored as integers; iterating makes them.

    The integers are a buffer and never trained. Scales are parameters, without gradients unless one asks for them.

    Args:
        shapes: of the cores, (left, out, in, right).
        integers: shape (groups, GROUP), int8 that fit ``bits``.
        scales: shape (groups,), of the dtype that cores are made in.
        bits: 8 or 4.
    """

    integers: Tensor

    def __init__(self, shapes: Sequence[Shape], integers: Tensor, scales: Tensor, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self._shapes = [tuple(shape) for shape in shapes]
        self.register_buffer("integers", packed(integers) if bits == 4 else integers)
        self.scales = nn.Parameter(scales, requires_grad=False)

    @classmethod
    def zeros(cls, shapes: Sequence[Shape], bits: int, dtype: torch.dtype) -> QuantizedCores:
        """All entries zero."""
        groups = sum(num_groups(shape) for shape in shapes)
        return cls(shapes, torch.zeros(groups, GROUP, dtype=torch.int8), torch.zeros(groups, dtype=dtype), bits)

    @property
    def num_entries(self) -> int:
        """Entries of all cores, padding left out."""
        return sum(prod(shape) for shape in self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def __iter__(self) -> Iterator[Tensor]:
        integers = unpacked(self.integers) if self.bits == 4 else self.integers
        groups = [num_groups(shape) for shape in self._shapes]
        pieces = zip(self._shapes, integers.split(groups), self.scales.split(groups), strict=True)
        return (core_of(shape, whole, scales) for shape, whole, scales in pieces)

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return f"bits={self.bits}, group={GROUP}"


def num_groups(shape: Shape) -> int:
    """Groups of a core."""
    return -(-prod(shape) // GROUP)


def check_bits(bits: object) -> int:
    """Refuse what is not one of BITS.

    Raises:
        InvalidInputError: saying so.
    """
    if not isinstance(bits, int) or bits not in BITS:
        raise InvalidInputError(f"bits must be 8 or 4; got {bits!r}.")
    return bits


def stored_numbers(shape: Shape, bits: int | None) -> int:
    """Elements of the tensors that hold a core: of packed bytes and scales, or, without ``bits``, its entries."""
    return prod(shape) if bits is None else num_groups(shape) * (GROUP * check_bits(bits) // 8 + 1)


def rounded(core: Tensor, bits: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Integers (groups, GROUP) and scales (groups,) of a core.

    The largest entry of a group by magnitude becomes the lowest integer, or, where that has less squared error, is cut
    off there.

    Args:
        core: shape (left, out, in, right).
        bits: 8 or 4.
        dtype: of the scales.
    """
    flat = core.permute(0, 3, 1, 2).flatten()
    groups = pad(flat, (0, -len(flat) % GROUP)).view(-1, GROUP)
    top = 2 ** (bits - 1)
    peaks = groups.gather(1, groups.abs().argmax(1, keepdim=True))
    found: list[Tensor] = []  # integers, scales, errors
    for share in _SHARES:
        scales = (peaks * (-share / top)).to(dtype)
        wide = scales.to(groups.dtype)
        integers = (groups / torch.where(wide == 0, 1, wide)).round_().clamp_(-top, top - 1)
        errors = (integers * wide - groups).square_().sum(1, keepdim=True)
        if found:
            better = errors < found[2]
            pairs = zip((integers, scales, errors), found, strict=True)
            found = [torch.where(better, new, old) for new, old in pairs]
        else:
            found = [integers, scales, errors]
    return found[0].to(torch.int8), found[1][:, 0]


def core_of(shape: Shape, integers: Tensor, scales: Tensor) -> Tensor:
    """The core of a shape, in the dtype of the scales."""
    left, out, leg, right = shape
    flat = (integers.to(scales.dtype) * scales[:, None]).flatten()[: prod(shape)]
    return flat.view(left, right, out, leg).permute(0, 2, 3, 1).contiguous()


def packed(integers: Tensor) -> Tensor:
    """Integers from -8 to 7, two in a byte: int8 (groups, GROUP) to uint8 (groups, GROUP / 2)."""
    low, high = (integers + 8).to(torch.uint8).chunk(2, 1)
    return low | (high << 4)


def unpacked(pairs: Tensor) -> Tensor:
    """The reverse of :func:`packed`."""
    return torch.cat((pairs & 15, pairs >> 4), 1).to(torch.int8) - 8


def count_numbers(module: nn.Module) -> int:
    """Parameters of a module, trainable or not; of cores stored as integers their entries, without the scales."""
    cores = [each for each in module.modules() if isinstance(each, QuantizedCores)]
    entries = sum(each.num_entries - each.scales.numel() for each in cores)
    return entries + sum(parameter.numel() for parameter in module.parameters())
