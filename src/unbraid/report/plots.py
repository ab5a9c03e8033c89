"""Plots of a report: each draws on ``ax`` and returns it; ``figures`` makes the SVG files.

Figures are made without pyplot, so nothing global changes, and the same data give the same bytes. Colours are those of
Okabe and Ito, which people with colour blindness tell apart; markers and dashes say the same again.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from unbraid.ground.errors import require_extra
from unbraid.ground.files import write_bytes
from unbraid.report.wording import interval, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from unbraid.report.document import Report

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P")
GREY = "#595959"
WIDTH, HEIGHT = 4.6, 2.9  # inches
_MOST_MARKERS = 40
_LINEAR_SWEEPS = 100
_LONGEST_LABEL = 36
_STYLE: dict[str, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e2e2e2",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.5,
    "svg.hashsalt": "unbraid",
    "svg.fonttype": "path",
}


def plot_curves(
    curves: Mapping[str, Sequence[float]], *, ax: Axes | None = None, xlabel: str = "epoch", ylabel: str = "loss"
) -> Axes:
    """Training curves: one line a name, one point an epoch, counted from 1.

    Args:
        curves: numbers an epoch; loss in nats, accuracies as fractions.
        ax: to draw on; a new figure's by default.
        xlabel: name and unit of the horizontal axis.
        ylabel: name and unit of the vertical axis.
    """
    ax = ax or _new_axes()
    for index, (name, values) in enumerate(curves.items()):
        _line(ax, index, name, values)
    _finish(ax, xlabel, ylabel, max((len(values) for values in curves.values()), default=0))
    if len(curves) > 1:
        ax.legend()
    return ax


def plot_points(
    series: Mapping[str, Sequence[tuple[float, float]]], xlabel: str, ylabel: str, *, ax: Axes | None = None
) -> Axes:
    """Lines through points (x, y), one a name.

    Args:
        series: points by name, in any order.
        xlabel: name and unit of the horizontal axis.
        ylabel: name and unit of the vertical axis.
        ax: to draw on; a new figure's by default.
    """
    ax = ax or _new_axes()
    for index, (name, points) in enumerate(series.items()):
        ax.plot(
            *zip(*sorted(points), strict=True),
            color=COLOURS[index % len(COLOURS)],
            linestyle=DASHES[index % len(DASHES)],
            marker=MARKERS[index % len(MARKERS)],
            label=_label(name),
        )
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.legend()
    return ax


def plot_overlap(
    curves: Mapping[str, Sequence[float]] | Sequence[float], ceiling: float | None = None, *, ax: Axes | None = None
) -> Axes:
    """Overlap after each sweep, with its ceiling as a horizontal line.

    Args:
        curves: overlaps in -1..1 a sweep, from sweep 1; several runs by name, or one.
        ceiling: the bound, if known.
        ax: to draw on; a new figure's by default.
    """
    ax = ax or _new_axes()
    named = curves if isinstance(curves, Mapping) else {"overlap": curves}
    for index, (name, values) in enumerate(named.items()):
        _line(ax, index, name, values)
    longest = max((len(values) for values in named.values()), default=0)
    if ceiling is not None:
        ax.axhline(ceiling, color=GREY, linestyle=(0, (5, 3)), linewidth=1.0, label=f"ceiling {ceiling:.4f}")
    if longest > _LINEAR_SWEEPS:  # most is gained in the first sweeps
        ax.set_xscale("log")
    _finish(ax, "sweep", "overlap", longest)
    if ceiling is not None or len(named) > 1:
        ax.legend(loc="lower right")
    return ax


def plot_entropies(
    before: Sequence[float], after: Sequence[float] = (), maximum: Sequence[float] = (), *, ax: Axes | None = None
) -> Axes:
    """Entanglement entropy a bond, before and after disentangling, under its maximum.

    Args:
        before: in nats, one a bond, counted from 1.
        after: likewise; may be empty.
        maximum: log of the bond dimensions; may be empty.
        ax: to draw on; a new figure's by default.
    """
    ax = ax or _new_axes()
    profiles = (
        ("maximum", maximum, {"color": GREY, "linestyle": (0, (5, 3)), "linewidth": 1.0}),
        ("before", before, {"color": BLUE, "marker": "o"}),
        ("after", after, {"color": VERMILION, "marker": "s"}),
    )
    shown = [(name, values, style) for name, values, style in profiles if len(values)]
    for name, values, style in shown:
        ax.plot(range(1, len(values) + 1), values, label=name, **style)
    _finish(ax, "bond", "bond entropy (nats)", max((len(values) for _, values, _ in shown), default=0))
    ax.set_ylim(bottom=0, top=1.22 * max((max(values) for _, values, _ in shown), default=1.0) or 1.0)
    ax.legend(loc="upper center", ncols=3)
    return ax


def plot_profiles(profiles: Mapping[str, Mapping[str, Any]], *, ax: Axes | None = None) -> Axes:
    """Bond entropies of layers of one kind against bond position, under their maximum and beside a random matrix's.

    Args:
        profiles: by name, each with "entropies", "maximum" and "random", as of
            :meth:`unbraid.tensors.EntropyProfile.to_dict`. References are those of the first; later ones are darker.
        ax: to draw on; a new figure's by default.
    """
    ax = ax or _new_axes()
    first = next(iter(profiles.values()))
    bonds = range(1, len(first["entropies"]) + 1)
    ax.plot(bonds, first["maximum"], color=GREY, linestyle=(0, (5, 3)), linewidth=1.0, label="maximum")
    for place, (name, profile) in enumerate(profiles.items(), start=1):
        shade = 0.25 + 0.75 * place / len(profiles)
        ax.plot(bonds, profile["entropies"], color=BLUE, alpha=shade, linewidth=1.1, label=_label(name))
    ax.plot(bonds, first["random"], color=VERMILION, marker="o", markersize=3, linestyle="none", label="random")
    _finish(ax, "bond", "bond entropy (nats)", len(bonds))
    ax.set_ylim(bottom=0)
    if len(profiles) == 1:
        ax.legend()
    return ax


def draw_profiles(figure: Figure, layers: Sequence[Mapping[str, Any]]) -> None:
    """One panel for all layers of the same last part of the name, shape, legs and rank; sets the size of the figure.

    Args:
        figure: an empty one.
        layers: as of :meth:`unbraid.nn.LayerProfile.to_dict`; those without a profile are left out.
    """
    groups: dict[tuple[Any, ...], dict[str, Mapping[str, Any]]] = {}
    for layer in layers:
        profile = layer["profile"]
        if profile is not None:
            ending = layer["name"].rsplit(".", 1)[-1]
            kind = (ending, tuple(layer["shape"]), profile["order"], profile["rank"], tuple(profile["maximum"]))
            groups.setdefault(kind, {})[layer["name"]] = profile
    across = min(3, len(groups))
    down = -(-len(groups) // across)
    figure.set_size_inches(max(WIDTH, 2.6 * across), 2.3 * down + 0.3)
    axes = figure.subplots(down, across, squeeze=False).flatten().tolist()
    for ax, (kind, group) in zip(axes, groups.items(), strict=False):
        ending, (rows, columns), *_ = kind
        plot_profiles(group, ax=ax)
        if legend := ax.get_legend():
            legend.remove()
        ax.set_title(_label(f"{ending}, {rows} × {columns}"), fontsize=9)
    for ax in axes[len(groups) :]:
        ax.remove()
    handles, labels = figure.axes[0].get_legend_handles_labels()
    shown = (0, len(labels) - 2, len(labels) - 1)
    words = ("maximum", "layers, the last one darkest", "random")
    figure.legend([handles[k] for k in shown], words, loc="outside upper center", ncols=3)


def plot_accuracy(
    accuracy: Mapping[str, float], samples: Mapping[str, int] | None = None, *, ax: Axes | None = None
) -> Axes:
    """Accuracy a step as dots, from top to bottom, with one standard error where the number of test images is known.

    Args:
        accuracy: fractions in 0..1; drawn in per cent.
        samples: test images a step.
        ax: to draw on; a new figure's by default.
    """
    ax = ax or _new_axes()
    known = {step: float(value) for step, value in accuracy.items() if value is not None}
    low, high = min(known.values(), default=0.0), max(known.values(), default=1.0)
    for row, (step, value) in enumerate(known.items()):
        count = (samples or {}).get(step)
        if count:
            below, above = interval(value, count)
            ax.plot([100 * below, 100 * above], [row, row], color=BLUE, linewidth=1.2, solid_capstyle="butt")
            low, high = min(low, below), max(high, above)
        ax.plot([100 * value], [row], marker="o", markersize=6, color=BLUE, linestyle="none")
        ax.annotate(
            percent(value),
            (1.02, row),
            xycoords=("axes fraction", "data"),
            va="center",
            ha="left",
            annotation_clip=False,
        )
    margin = 100 * max(high - low, 0.02)
    ax.set_xlim(max(100 * low - 0.12 * margin, -2), min(100 * high + 0.12 * margin, 100.8))
    ax.set_ylim(len(known) - 0.5, -0.5)
    ax.set_yticks(range(len(known)), [_label(step) for step in known])
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel("accuracy (%)")
    return ax


def plot_rows(rows: Sequence[Mapping[str, Any]], *, ax: Axes | None = None) -> Axes:
    """Accuracies of a table's rows, from top to bottom: every seed, mean and standard deviation, the paper's value.

    Args:
        rows: each with "name" and "mean", perhaps "std", "values" (one a seed) and "paper" {"value"}; fractions, drawn
            in per cent.
        ax: to draw on; a new figure's by default.
    """
    ax = ax or _new_axes()
    seen: set[str] = set()

    def label(text: str) -> str:
        first = text not in seen
        seen.add(text)
        return text if first else "_"  # one legend entry for all rows

    for place, row in enumerate(rows):
        values = [100 * value for value in row.get("values") or ()]
        ax.plot(values, [place] * len(values), "o", markersize=3.5, color=SKY, label=label("one seed"), zorder=2)
        mean, std = 100 * row["mean"], 100 * (row.get("std") or 0.0)
        ax.plot([mean - std, mean + std], [place] * 2, color=BLUE, linewidth=1.2, label="_", zorder=3)
        ax.plot([mean], [place], "o", markersize=6, color=BLUE, label=label("mean, standard deviation"), zorder=4)
        value = (row.get("paper") or {}).get("value")
        if value is not None:
            ax.plot([100 * value], [place], "D", mfc="none", mec=VERMILION, ms=7, label=label("paper"), zorder=5)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_yticks(range(len(rows)), [_label(str(row["name"])) for row in rows])
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel("accuracy (%)")
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, columnspacing=1.0, handletextpad=0.3)
    return ax


def save_png(path: str | os.PathLike[str], draw: Callable[[Axes], Axes]) -> None:
    """Write a PNG of what ``draw`` draws on the axes that it is given, whole or not at all.

    Args:
        path: of the file.
        draw: such as ``lambda ax: plot_rows(rows, ax=ax)``; a plot with named rows gets room for each.

    Raises:
        MissingExtraError: if matplotlib is not installed.
        OutputError: if the file cannot be written.
    """
    require_extra("matplotlib", "report")
    from matplotlib.ticker import FixedLocator

    def sized(figure: Figure) -> None:
        ax = draw(figure.subplots())
        rows = len(ax.get_yticks()) if isinstance(ax.yaxis.get_major_locator(), FixedLocator) else 0
        figure.set_size_inches(WIDTH + 1.4, max(HEIGHT, 1.0 + 0.3 * rows))

    save_figure(path, sized)


def save_figure(path: str | os.PathLike[str], draw: Callable[[Figure], None]) -> None:
    """Write a PNG of a figure of several panels, whole or not at all.

    Args:
        path: of the file.
        draw: makes the panels of the empty figure that it is given, and sets its size.

    Raises:
        MissingExtraError: if matplotlib is not installed.
        OutputError: if the file cannot be written.
    """
    stream = io.BytesIO()
    require_extra("matplotlib", "report")
    with _style():
        figure = _new_figure()
        draw(figure)
        figure.savefig(stream, format="png", dpi=200, metadata={"Software": None}, facecolor="white")
    write_bytes(path, stream.getvalue())


PLOTS = ("accuracy", "entanglement", "entropies", "overlap", "training", "verdict")  # what figures() may give


def figures(report: Report) -> dict[str, str]:
    """The plots that the data of a report allow, as SVG by file name; ``PLOTS`` lists them.

    Raises:
        MissingExtraError: if matplotlib is not installed.
    """
    require_extra("matplotlib", "report")
    content = report.to_dict()
    curves = {name: values for name, values in content.get("curves", {}).items() if values}
    overlaps = {name: values for name, values in curves.items() if "overlap" in name.lower()}
    entropies = {name: values for name, values in content["entropies"].items() if values}
    accuracy = {step: value for step, value in content["accuracy"].items() if value is not None}
    found: dict[str, str] = {}
    with _style():
        if len(accuracy) > 1:
            ax = _new_axes(height=0.8 + 0.26 * len(accuracy))
            found["accuracy"] = to_svg(_figure(plot_accuracy(accuracy, content.get("samples"), ax=ax)))
        layers = content.get("extra", {}).get("entanglement", {}).get("layers", [])
        if any(layer["profile"] for layer in layers):
            figure = _new_figure()
            draw_profiles(figure, layers)
            found["entanglement"] = to_svg(figure)
        verdicts = content.get("extra", {}).get("verdict", [])
        if verdicts:
            from unbraid.report.verdict import draw_verdicts

            figure = _new_figure()
            draw_verdicts(figure, verdicts)
            found["verdict"] = to_svg(figure)
        if "before" in entropies or "after" in entropies:
            profile = [entropies.get(name, []) for name in ("before", "after", "maximum")]
            found["entropies"] = to_svg(_figure(plot_entropies(*profile, ax=_new_axes())))
        if overlaps:
            found["overlap"] = to_svg(_figure(plot_overlap(overlaps, content["ceiling"], ax=_new_axes())))
        panels = _panels({name: values for name, values in curves.items() if name not in overlaps})
        if panels:
            figure = _new_figure(HEIGHT * len(panels))
            axes = figure.subplots(len(panels), squeeze=False)[:, 0]
            for ax, (ylabel, (xlabel, group)) in zip(axes, panels.items(), strict=True):
                plot_curves(group, ax=ax, xlabel=xlabel, ylabel=ylabel)
            found["training"] = to_svg(figure)
    return found


def to_svg(figure: Figure) -> str:
    """A figure as SVG, the same bytes for the same figure: no date, no random identifiers."""
    import matplotlib as mpl

    stream = io.BytesIO()
    with mpl.rc_context({key: _STYLE[key] for key in ("svg.hashsalt", "svg.fonttype")}):
        figure.savefig(
            stream, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")), facecolor="white"
        )
    return stream.getvalue().decode()


@contextmanager
def _style() -> Iterator[None]:
    """The look of our own figures, whatever the user's matplotlibrc says."""
    from matplotlib import style

    with style.context(["default", _STYLE]):
        yield


def _new_figure(height: float = HEIGHT) -> Figure:
    require_extra("matplotlib", "report")
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height), layout="constrained")


def _new_axes(height: float = HEIGHT) -> Axes:
    return _new_figure(height).subplots()


def _figure(ax: Axes) -> Figure:
    figure = ax.get_figure(root=True)
    assert figure is not None
    return figure


def _panels(curves: Mapping[str, list[float]]) -> dict[str, tuple[str, dict[str, list[float]]]]:
    """Curves by what they measure: vertical label to (horizontal label, curves)."""
    panels: dict[str, tuple[str, dict[str, list[float]]]] = {}
    for name, values in curves.items():
        kind = next((kind for kind in ("loss", "accuracy") if kind in name.lower()), None)
        ylabel = {"loss": "loss", "accuracy": "accuracy (fraction)"}.get(kind or "", _label(name))
        panels.setdefault(ylabel, ("epoch" if kind else "step", {}))[1][name] = values
    return dict(sorted(panels.items(), key=lambda panel: not panel[0].startswith("loss")))


def _line(ax: Axes, index: int, name: str, values: Sequence[float]) -> None:
    ax.plot(
        range(1, len(values) + 1),
        values,
        color=COLOURS[index % len(COLOURS)],
        linestyle=DASHES[index % len(DASHES)],
        marker=MARKERS[index % len(MARKERS)] if len(values) <= _MOST_MARKERS else "",
        label=_label(name),
    )


def _finish(ax: Axes, xlabel: str, ylabel: str, count: int) -> None:
    from matplotlib.ticker import MaxNLocator

    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    if ax.get_xscale() == "linear":
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        margin = min(0.04 * max(count, 2), 0.6)
        ax.set_xlim(1 - margin, max(count, 1) + margin)


def _label(name: str) -> str:
    """A name as text: no underscores, not too long, and dollar signs do not start a formula."""
    text = name.replace("_", " ").strip()
    return (text if len(text) <= _LONGEST_LABEL else f"{text[: _LONGEST_LABEL - 1]}…").replace("$", r"\$")
