"""Whether deeper layers bear more compression, as CompactifAI found of language models (arXiv:2401.14109)."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from unbraid.ground.errors import InvalidInputError
from unbraid.nn.sensitivity import LayerSensitivity

_LEAST = 3  # blocks that make a trend


@dataclass(frozen=True)
class DepthTrend:
    """One kind of layer through the blocks of a network.

    Attributes:
        kind: the part of the name behind the number of the block; with the part before it, if there are two such.
        depths: numbers of the blocks.
        growth: of the loss, with the layer alone at the budget, by block.
        correlation: Spearman's, of growth with depth: negative where deeper layers bear more.
    """

    kind: str
    depths: tuple[int, ...]
    growth: tuple[float, ...]
    correlation: float


def depth_trends(profile: Sequence[LayerSensitivity], budget: float = 0.25) -> list[DepthTrend]:
    """Sort the layers of a profile by kind and depth, read off names such as ``layers.3.mlp.up_proj``.

    Args:
        profile: of :func:`unbraid.nn.sensitivity`.
        budget: entries of each operator over those of its weight, at which growths are compared.

    Returns:
        One entry a kind that stands in three blocks or more.

    Raises:
        InvalidInputError: if the budget is no fraction.
    """
    if isinstance(budget, (bool, str)) or not 0 < budget < 1:
        raise InvalidInputError(f"budget must be a fraction between 0 and 1; got {budget!r}.")
    standing = {layer.name: _places(layer.name) for layer in profile}
    blocks = Counter(place for places in standing.values() for place, _ in places)
    kinds: dict[tuple[str, str], dict[int, float]] = {}
    for layer in profile:  # the outermost number that counts blocks: experts of a block are kinds of their own
        chosen = next((each for each in standing[layer.name] if blocks[each[0]] >= _LEAST), None)
        if chosen is not None:
            kinds.setdefault(chosen[0], {})[chosen[1]] = growth_at(layer, budget)
    known = Counter(kind for _, kind in kinds)
    trends = []
    for (stem, kind), growths in kinds.items():
        if len(growths) >= _LEAST:
            depths = sorted(growths)
            values = [growths[depth] for depth in depths]
            name = kind if known[kind] == 1 else f"{stem}*.{kind}"
            trends.append(DepthTrend(name, tuple(depths), tuple(values), _spearman(depths, values)))
    return trends


def _places(name: str) -> list[tuple[tuple[str, str], int]]:
    """Each number within a name: what stands before and behind it, and the number."""
    found = re.finditer(r"(?<![^.])(\d+)\.", name)
    return [((name[: each.start()], name[each.end() :]), int(each[1])) for each in found]


def growth_at(layer: LayerSensitivity, budget: float) -> float:
    """The growth at a size between the bonds of a profile, interpolated on logarithms; 0 at the dense size."""
    wanted = budget * layer.parameters
    points = [(point.parameters, max(point.growth, 0.0)) for point in layer.points]
    if wanted <= points[0][0]:
        return points[0][1]
    for (left, low), (right, high) in zip(points, [*points[1:], (layer.parameters, 0.0)], strict=True):
        if left <= wanted <= right and right > left:
            part = math.log(wanted / left) / math.log(right / left)
            return low * (high / low) ** part if low > 0 and high > 0 else low + (high - low) * part
    return points[-1][1]


def describe_depth(trends: Sequence[DepthTrend]) -> str:
    """In a sentence."""
    if not trends:
        return "No kind of layer stands in three blocks or more: nothing can be told of depth."
    falling = [trend.kind for trend in trends if trend.correlation <= -0.5]
    rising = [trend.kind for trend in trends if trend.correlation >= 0.5]
    parts = [
        f"{', '.join(kinds)} {verb} with depth"
        for kinds, verb in ((falling, "bear more"), (rising, "bear less"))
        if kinds
    ]
    rest = len(trends) - len(falling) - len(rising)
    if rest:
        parts.append(f"{rest} of {len(trends)} kinds show no clear trend" if parts else "no kind shows a clear trend")
    return "Compression of a layer alone: " + "; ".join(parts) + "."


def _spearman(x: Sequence[float], y: Sequence[float]) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(x, y).statistic) if len(set(y)) > 1 else 0.0
