"""What the cores of a layer are made of: parameters as they are, free rows of a fixed gauge, or integers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

import torch
from torch import Tensor, nn

from unbraid.nn.integers import QuantizedCores
from unbraid.tensors.gauge import FixedGauge, whole_core


class GaugeFixedCores(nn.Module):
    """Cores with identities among their rows, which are not stored; iterating makes them whole.

    Args:
        gauge: of real cores (left, out, in, right); free rows become trainable parameters.
    """

    orders: Tensor

    def __init__(self, gauge: FixedGauge) -> None:
        super().__init__()
        self._shapes = gauge.shapes
        self.free = nn.ParameterList([nn.Parameter(part) for part in gauge.free])
        none = torch.empty(0, dtype=torch.int32, device=gauge.free[-1].device)  # of a single core
        self.register_buffer("orders", torch.cat([none, *gauge.orders]))

    @classmethod
    def zeros(cls, shapes: Sequence[torch.Size], dtype: torch.dtype) -> GaugeFixedCores:
        """All free entries zero, pivots first."""
        rows = _rows(shapes)
        free = [torch.zeros(n - shape[-1], shape[-1], dtype=dtype) for n, shape in zip(rows, shapes, strict=False)]
        orders = tuple(torch.arange(n, dtype=torch.int32) for n in rows)
        return cls(FixedGauge(tuple(shapes), orders, (*free, torch.zeros(shapes[-1], dtype=dtype))))

    def says_where_rows_are(self, orders: Tensor) -> bool:
        """Whether these orders, of a file say, are permutations of the rows of each core."""
        parts = orders.long().cpu().split(_rows(self._shapes))
        return all(torch.equal(part.sort().values, torch.arange(len(part))) for part in parts)

    def __len__(self) -> int:
        return len(self._shapes)

    def __iter__(self) -> Iterator[Tensor]:
        orders = self.orders.split(_rows(self._shapes))
        for shape, order, free in zip(self._shapes[:-1], orders, self.free, strict=False):
            yield whole_core(shape, order, free)
        yield self.free[-1]


def _rows(shapes: Sequence[torch.Size]) -> list[int]:
    """Of each core but the last."""
    return [prod(shape[:-1]) for shape in shapes[:-1]]


Cores = nn.ParameterList | GaugeFixedCores | QuantizedCores


def stored(cores: Cores) -> tuple[Tensor, ...]:
    """The tensors that cores are made of, numbers last."""
    if isinstance(cores, QuantizedCores):
        return (cores.integers, cores.scales)
    if isinstance(cores, GaugeFixedCores):
        return (cores.orders, *cores.free)
    if torch.compiler.is_compiling():
        return tuple(cores)
    return tuple(cores._parameters.values())  # type: ignore[arg-type]  # iterating takes as long as a small product
