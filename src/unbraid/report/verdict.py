"""The figure of a verdict: parameters against what the budget limits, with and without circuits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from unbraid.ground.errors import require_extra
from unbraid.report.plots import BLUE, GREEN, GREY, HEIGHT, VERMILION, WIDTH

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CURVES = (("plain MPO", BLUE, "o", "-"), ("low rank", GREEN, "s", "--"), ("core and circuits", VERMILION, "^", "-."))
_LONGEST_TITLE = 44


def plot_verdict(verdict: Mapping[str, Any], *, ax: Axes | None = None) -> Axes:
    """Parameters against weight error or growth of the loss: plain MPO, low rank, core and circuits.

    The band goes from the core alone to core and circuits: there a circuit parameter costs from 0 to 1. Where the plain
    MPO is right of the band, circuits pay; where it is left of it, they do not even for nothing. The bar at the
    budget is the break-even region: from the core to the plain MPO.

    Args:
        verdict: as of :meth:`unbraid.disentangling.Verdict.to_dict`.
        ax: to draw on; a new figure's by default.
    """
    require_extra("matplotlib", "report")
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    if ax is None:
        ax = Figure(figsize=(WIDTH, HEIGHT), layout="constrained").subplots()
    by_error = verdict["budget_kind"] == "weight error"
    unit = 100 if by_error else 1
    curves = {name: [(count, unit * value) for count, value in points] for name, points in verdict["curves"].items()}
    for name, color, marker, dashes in _CURVES:
        ax.plot(*zip(*curves[name], strict=True), color=color, marker=marker, linestyle=dashes, label=name)
    core, whole = curves["core"], curves["core and circuits"]
    ax.fill_betweenx(
        [value for _, value in core],
        [count for count, _ in core],
        [count for count, _ in whole],
        color=VERMILION,
        alpha=0.15,
        linewidth=0,
        label="circuits at prices from 0 to 1",
    )
    ax.axvline(prod(verdict["shape"]), color=GREY, linestyle=":", linewidth=1.0, label="dense")
    budget = unit * verdict["budget"]
    ax.axhline(budget, color=GREY, linestyle=(0, (5, 3)), linewidth=1.0)
    price = verdict["break_even"]
    if price > 0:
        region = [verdict["cheapest"]["classical"], verdict["plain"]]
        ax.plot(region, [budget, budget], color=GREY, linewidth=5, alpha=0.5, solid_capstyle="butt", label="break-even")
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator())
    ax.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    ax.xaxis.set_minor_formatter(StrMethodFormatter("{x:,.0f}"))
    ax.set_xlabel("parameters")
    ax.set_ylabel("weight error (%)" if by_error else "growth of the loss")
    name = verdict["name"] or "weight"
    name = name if len(name) <= _LONGEST_TITLE else f"…{name[-_LONGEST_TITLE:]}"
    ax.set_title(f"{name}: break-even at {price:.2g}".replace("$", r"\$"), fontsize=9)
    return ax


def draw_verdicts(figure: Figure, verdicts: Sequence[Mapping[str, Any]]) -> None:
    """A panel a layer, and one legend; sets the size of the figure.

    Args:
        figure: an empty one.
        verdicts: as of :func:`plot_verdict`.
    """
    across = min(2, len(verdicts))
    down = -(-len(verdicts) // across)
    figure.set_size_inches(WIDTH * across, HEIGHT * down + 0.5)
    axes = figure.subplots(down, across, squeeze=False).flatten().tolist()
    for ax, verdict in zip(axes, verdicts, strict=False):
        plot_verdict(verdict, ax=ax)
    for ax in axes[len(verdicts) :]:
        ax.remove()
    named = {label: handle for ax in axes[: len(verdicts)] for handle, label in zip(*_legend(ax), strict=True)}
    figure.legend(list(named.values()), list(named), loc="outside upper center", ncols=3, fontsize=8)


def _legend(ax: Axes) -> tuple[list[Any], list[Any]]:
    return ax.get_legend_handles_labels()
