"""Tables and figure of ``unbraid reproduce natural``, from its rows."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unbraid.recipes.natural_runs import Settings
from unbraid.recipes.recipe import Row, Section, counted, with_spread
from unbraid.recipes.significance import paired_p

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def sections_of(rows: Sequence[Row], settings: Settings) -> tuple[Section, ...]:
    """All tables."""
    by_table: dict[str, list[Row]] = {}
    for row in rows:
        by_table.setdefault(row["table"], []).append(row)
    return (
        _curves(by_table["curves"], settings),
        _test(by_table["test"], settings),
        _controls(by_table["controls"], settings),
        _noise(by_table["noise"], settings),
        _by_shots(
            by_table["bits"], settings, "Several qubits a neuron", _bits_note(by_table["bits"], by_table["curves"])
        ),
        _by_shots(
            by_table["full"],
            settings,
            "All of MNIST",
            f"{counted(settings.full_epochs, 'epoch')}; error on the test file, "
            f"{counted(len(by_table['full'][0]['values']), 'seed')}.",
        ),
        _transition(by_table["transition"], settings),
        _joints(by_table["joints"], settings),
    )


def _heads(settings: Settings) -> list[str]:
    return [f"S = {count}" for count in settings.shots]


def _errors(row: Mapping[str, Any], settings: Settings) -> list[str]:
    return [with_spread(row["errors"][str(count)], 4) for count in settings.shots]


def _p(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"


def _curves(rows: Sequence[Row], settings: Settings) -> Section:
    cells = [
        (
            row["name"],
            f"{statistics.fmean(row['uncertainty']):.3f}",
            *_errors(row, settings),
            _p(row["p"]),
            _p(row["p_corrected"]),
        )
        for row in rows
    ]
    return Section(
        ("neurons", "mean 1 - m^2", *_heads(settings), "p", "p, corrected"),
        tuple(cells),
        heading="Validation error",
        note=(
            "m: mean outcome of a qubit, so 1 - m^2 tells how superposed it is whatever the scale of weights. p: of a "
            f"paired t-test of the error at S = {settings.shots[-1]} against the classical limit's, two-sided; "
            f"corrected for {sum(row['p'] is not None for row in rows)} tests by Holm's method. Seeds differ in "
            "weights, outcomes and training images; images to judge by are mostly the same, so p tells nothing of "
            "other images."
        ),
    )


def _test(rows: Sequence[Row], settings: Settings) -> Section:
    cells = [
        (row["name"], with_spread(row["values"], 4), _p(row["p_corrected"]), _p(row["p_of_best_corrected"]))
        for row in rows
    ]
    return Section(
        ("network", "test error", "p, to the classical limit", "p, to the best a"),
        tuple(cells),
        heading="On the test file",
        note=(
            f"The a and the g of the lowest validation error at S = {settings.shots[-1]}, and the controls; p as "
            "above, corrected for all tests of this table."
        ),
    )


def _controls(rows: Sequence[Row], settings: Settings) -> Section:
    names = list(dict.fromkeys(row["control"] for row in rows))
    points = sorted({row["x"] for row in rows if row["x"] is not None})
    cells = []
    for name in names:
        found = {row["x"]: with_spread(row["values"], 4) for row in rows if row["control"] == name}
        cells.append((name, found.get(None, "-"), *(found.get(x, "-") for x in points)))
    return Section(
        ("control", "error", *(f"a = {x:g}" for x in points)),
        tuple(cells),
        heading="Controls, validation error",
        note=(
            "Read at a = 0: trained with superposition, tested without. Mean field: means are passed on, nothing is "
            f"sampled. Classical, read at a: trained without, tested at S = {settings.shots[-1]}. Ensemble: "
            f"{settings.ensemble} classical networks, softmax averaged. tanh: float networks of the same sizes. "
            "Signs, dropout: the classical limit, trained with dropout."
        ),
    )


def _noise(rows: Sequence[Row], settings: Settings) -> Section:
    groups = list(dict.fromkeys((tuple(row["noise"]), row["trained"]) for row in rows))
    cells = []
    for noise, trained in groups:
        found = [row for row in rows if (tuple(row["noise"]), row["trained"]) == (noise, trained)]
        lowest = min(found, key=lambda row: row["mean"])
        near = [f"{row['x']:g}" for row in found if (paired_p(row["values"], lowest["values"]) or 0) >= 0.05]
        cells.append(
            (
                f"{noise[0]:g}",
                f"{noise[1]:g}",
                trained,
                *(with_spread(row["values"], 4) for row in found),
                f"{lowest['x']:g}" + (f" ({', '.join(near)})" if near else ""),
            )
        )
    return Section(
        ("depolarising", "readout error", "noise", *(f"a = {a:g}" for a in settings.noise_a), "lowest at a"),
        tuple(cells),
        heading=f"Noise of a device, validation error at S = {settings.shots[-1]}",
        note=(
            "Probability that a rotation is followed by full depolarisation, and that an outcome is misread. On a "
            "neuron they shrink the mean outcome by (1 - p)(1 - 2e), as an ancilla of g = arcsin of that does. In "
            "brackets: not told apart from the lowest by a paired t-test (p >= .05, not corrected)."
        ),
    )


def _by_shots(rows: Sequence[Row], settings: Settings, heading: str, note: str) -> Section:
    cells = [(row["name"], *_errors(row, settings)) for row in rows]
    return Section(("neurons", *_heads(settings)), tuple(cells), heading=heading, note=note)


def _bits_note(rows: Sequence[Row], curves: Sequence[Row]) -> str:
    seeds = len(rows[0]["values"])
    one = {row["x"]: statistics.fmean(row["values"][:seeds]) for row in curves if row["curve"] == "a"}
    best = min(one, key=lambda a: one[a])
    return (
        f"2^bits levels; validation error, {counted(seeds, 'seed')}. Of one qubit the same seeds' lowest error is "
        f"{one[best]:.4f}, at a = {best:g}, and {one[0.0]:.4f} in the classical limit."
    )


def _transition(rows: Sequence[Row], settings: Settings) -> Section:
    shapes = list(dict.fromkeys((row["depth"], row["width"]) for row in rows))
    cells = []
    for depth, width in shapes:
        found = [row for row in rows if (row["depth"], row["width"]) == (depth, width)]
        spans = with_spread(found[-1]["relative"], 2)
        cells.append((str(depth), str(width), *(with_spread(row["values"], 3) for row in found), spans))
    shots = [f"g_c, S = {count}" for count in settings.transition_shots]
    return Section(
        ("hidden layers", "width", *shots, f"span / g_c, S = {settings.transition_shots[-1]}"),
        tuple(cells),
        heading="Where learning is lost",
        note=(
            f"Digits, ancillas measured, {counted(settings.transition_seeds, 'network')} a point, of one split. g_c, "
            "over pi/2: where the validation error has gone half of its way from the classical one to 0.9, that of "
            "guessing. Span: of g, over which it goes from a quarter to three quarters of it. Where it is learnt at "
            f"the smallest angle, {settings.transition_g[-1]:g}, g_c counts as 0."
        ),
    )


def _joints(rows: Sequence[Row], settings: Settings) -> Section:
    names = list(dict.fromkeys(row["joint"] for row in rows))
    sets = list(dict.fromkeys(row["data"] for row in rows))
    found = {(row["data"], row["joint"]): row for row in rows}
    cells = [(name, *(cell for data in sets for cell in _errors(found[data, name], settings))) for name in names]
    return Section(
        ("between segments", *(f"{data}, {head}" for data in sets for head in _heads(settings))),
        tuple(cells),
        heading="Measured neurons in place of ReLU",
        note=(
            "Test error of a layer of circuits around an operator of bond 4, each circuit of two segments, and a "
            "linear head; there is no other nonlinearity. Batch normalisation comes before neurons and before means, "
            "which are those of the rotations' outcomes, passed on without a measurement. "
            f"{counted(len(rows[0]['values']), 'seed')}; {settings.joint_epochs[0]} epochs of the digits, "
            f"{settings.joint_epochs[1]} of {settings.joint_images:,} MNIST images at 16 x 16; one learning rate for "
            "all."
        ),
    )


def plot_natural(path: Path, rows: Sequence[Row]) -> None:
    """Error against quantumness and against the entangling angle, the loss of learning, and noise."""
    from unbraid.report.plots import save_figure

    def draw(figure: Figure) -> None:
        figure.set_size_inches(10, 7.4)
        axes = figure.subplots(2, 2)
        _draw_curve(axes[0][0], rows, "a", "quantumness a")
        _draw_curve(axes[0][1], rows, "g", "entangling angle g / (pi/2)")
        _draw_transition(axes[1][0], rows)
        _draw_noise(axes[1][1], rows)

    save_figure(path, draw)


def _draw_curve(ax: Axes, rows: Sequence[Row], kind: str, label: str) -> None:
    from unbraid.report.plots import COLOURS, MARKERS

    curves = [row for row in rows if row["table"] == "curves"]
    classical = next(row for row in curves if row["kind"] == "original")
    found = [row for row in curves if row["curve"] == kind]
    if kind == "g":  # g = pi/2 is the classical limit
        found = [{**classical, "x": 1.0}, *found]
    found.sort(key=lambda row: row["x"])
    for index, shots in enumerate(classical["errors"]):
        values = [row["errors"][shots] for row in found]
        ax.errorbar(
            [row["x"] for row in found],
            [statistics.fmean(each) for each in values],
            [statistics.stdev(each) if len(each) > 1 else 0.0 for each in values],
            color=COLOURS[index],
            marker=MARKERS[index],
            capsize=2,
            label=f"S = {shots}",
        )
    controls = [row for row in rows if row["table"] == "controls"]
    if kind == "a":
        names = list(dict.fromkeys(row["control"] for row in controls if row["x"] is not None))
        for index, name in enumerate(names, 2):
            points = [(row["x"], row["mean"]) for row in controls if row["control"] == name]
            ax.plot(*zip(*points, strict=True), color=COLOURS[index], linestyle=":", marker=MARKERS[index], label=name)
    for index, row in enumerate(row for row in controls if row["control"] in ("ensemble", "tanh")):
        ax.axhline(row["mean"], color="#555555", linestyle=("--", "-.")[index % 2], linewidth=1, label=row["control"])
    ax.set_xlabel(label)
    ax.set_ylabel("validation error")
    if kind == "g":
        from matplotlib.ticker import NullFormatter, ScalarFormatter

        ax.set_yscale("log")
        ax.set_yticks([0.15, 0.2, 0.3, 0.5, 0.8])
        ax.yaxis.set_major_formatter(ScalarFormatter())
        ax.yaxis.set_minor_formatter(NullFormatter())
    else:
        ax.set_ylim(top=1.35 * classical["mean"])
    ax.legend(fontsize=7)


def _draw_transition(ax: Axes, rows: Sequence[Row]) -> None:
    from unbraid.report.plots import COLOURS, MARKERS

    found = [row for row in rows if row["table"] == "transition"]
    many = max(row["shots"] for row in found)
    width = found[0]["width"]
    for index, row in enumerate(row for row in found if row["shots"] == many and row["width"] == width):
        label = f"{counted(row['depth'], 'hidden layer')}, g_c = {row['mean']:.2f}"
        ax.plot(*zip(*row["points"], strict=True), color=COLOURS[index], marker=MARKERS[index], label=label)
    ax.set_xlabel("entangling angle g / (pi/2)")
    ax.set_ylabel(f"validation error on digits, width {width}, S = {many}")
    ax.legend(fontsize=7)


def _draw_noise(ax: Axes, rows: Sequence[Row]) -> None:
    from unbraid.report.plots import COLOURS, MARKERS

    found = [row for row in rows if row["table"] == "noise"]
    curves = [row for row in rows if row["table"] == "curves" and row["curve"] == "a"]
    shots = list(curves[0]["errors"])[-1]
    lines = {"no noise": [(row["x"], row["mean"]) for row in curves if row["x"] in {each["x"] for each in found}]}
    for row in found:
        name = f"p = {row['noise'][0]:g}, e = {row['noise'][1]:g}, {row['trained']}"
        lines.setdefault(name, []).append((row["x"], row["mean"]))
    for index, (name, points) in enumerate(lines.items()):
        ax.plot(*zip(*points, strict=True), color=COLOURS[index], marker=MARKERS[index], label=name)
    ax.set_xlabel("quantumness a")
    ax.set_ylabel(f"validation error, S = {shots}")
    ax.legend(fontsize=7)
