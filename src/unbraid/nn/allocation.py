"""How many parameters each layer gets of a global budget, by what its truncation costs the loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from unbraid.ground.errors import InvalidInputError
from unbraid.nn.sensitivity import LayerSensitivity
from unbraid.nn.targets import check_budget

_LEVELS = 65  # sizes between two points of a profile


@dataclass(frozen=True)
class Allocation:
    """Sizes of layers under a global budget.

    Attributes:
        options: ``layer_options`` of :func:`unbraid.tensorize`, for the layers that become operators; their names are
            its targets.
        dense: layers that stay as they are.
        parameters: of all, expected.
        growth: of the loss, the sum of the layers' estimates.
    """

    options: dict[str, dict[str, Any]]
    dense: tuple[str, ...]
    parameters: int
    growth: float


def allocate(profile: Sequence[LayerSensitivity], budget: float) -> Allocation:
    """Spend a budget where it keeps the loss low.

    Each layer's growth is made a convex, falling function of its parameters, interpolated between the bonds of the
    profile; entries go to the layer that gains most an entry, until the budget is spent (the optimum for a sum of such
    functions).

    Args:
        profile: of :func:`sensitivity`.
        budget: core entries of all layers as a fraction of their dense weights, 0 < budget <= 1.

    Raises:
        InvalidInputError: if the budget is no fraction, or less than the smallest operators of the profile.
    """
    check_budget(budget)
    if not profile:
        raise InvalidInputError("The profile has no layers.")
    for layer in profile:
        if not all(math.isfinite(point.growth) for point in layer.points):
            raise InvalidInputError(f"The growths of layer {layer.name!r} in the profile are no finite numbers.")
    curves = {layer.name: _curve(layer) for layer in profile}
    total = sum(layer.parameters for layer in profile)
    spent = sum(curve[0][0] for curve in curves.values())
    most = budget * total
    if spent > most:
        raise InvalidInputError(
            f"A budget of {budget} leaves {int(most):,} entries, and the smallest operators of the profile have "
            f"{int(spent):,} together. Allow more, or scan smaller bonds."
        )
    steps = sorted(
        ((low[1] - high[1]) / (high[0] - low[0]), name, number)
        for name, curve in curves.items()
        for number, (low, high) in enumerate(pairwise(curve))
    )
    level: dict[str, float] = {name: curve[0][0] for name, curve in curves.items()}
    growth = {name: curve[0][1] for name, curve in curves.items()}
    for _, name, number in reversed(steps):  # convex: a layer's steps come in their order
        low, high = curves[name][number], curves[name][number + 1]
        part = min(1.0, (most - spent) / (high[0] - low[0]))
        if part <= 0:
            break
        level[name] = low[0] + part * (high[0] - low[0])
        growth[name] = low[1] + part * (high[1] - low[1])
        spent += level[name] - low[0]
    sizes = {layer.name: layer.parameters for layer in profile}
    options: dict[str, dict[str, Any]] = {
        name: {"budget": entries / sizes[name]}
        for name, entries in level.items()
        if entries < sizes[name] * (1 - 1e-9)  # levels are sums, and rounded
    }
    dense = tuple(name for name in level if name not in options)
    return Allocation(options, dense, round(spent), sum(growth.values()))


def _curve(layer: LayerSensitivity) -> list[tuple[float, float]]:
    """(parameters, growth): falling and convex, from the smallest operator to the dense weight, which costs nothing."""
    points = sorted((point.parameters, max(point.growth, 0.0)) for point in layer.points)
    points = [(entries, growth) for entries, growth in points if entries < layer.parameters]
    if not points:
        return [(float(layer.parameters), 0.0)]
    falling: list[tuple[float, float]] = [(float(layer.parameters), 0.0)]
    for entries, growth in reversed(points):  # a larger operator is not worse
        falling.append((float(entries), max(growth, falling[-1][1])))
    falling.reverse()
    fine = [falling[0]]
    for (left, low), (right, high) in pairwise(falling):
        for k in range(1, _LEVELS):
            part = k / (_LEVELS - 1)
            entries = left * (right / left) ** part
            growth = low * (high / low) ** part if high > 0 else low * (1 - part)
            fine.append((entries, growth))
    hull: list[tuple[float, float]] = []
    for point in fine:
        while len(hull) > 1 and _above(hull[-2], hull[-1], point):
            hull.pop()
        if not hull or point[0] > hull[-1][0]:
            hull.append(point)
    return hull


def _above(one: tuple[float, float], two: tuple[float, float], three: tuple[float, float]) -> bool:
    """Whether the middle point lies on or above the line between the others."""
    slope = (three[1] - one[1]) / (three[0] - one[0])
    return two[1] >= one[1] + slope * (two[0] - one[0]) or math.isclose(two[0], one[0])
