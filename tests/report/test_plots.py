"""Plots: they draw what they are given, where they are told to, and always the same bytes."""

import re
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from unbraid.ground.errors import OutputError
from unbraid.report import Report
from unbraid.report.plots import (
    draw_profiles,
    figures,
    plot_accuracy,
    plot_curves,
    plot_entropies,
    plot_overlap,
    plot_profiles,
    plot_rows,
    save_png,
    to_svg,
)
from unbraid.report.wording import interval


@pytest.fixture
def ax() -> Axes:
    return Figure().subplots()


def heights(ax: Axes) -> list[list[float]]:
    return [np.asarray(line.get_ydata(), dtype=float).tolist() for line in ax.lines]


def test_curves(ax: Axes) -> None:
    assert plot_curves({"train_loss": [3.0, 2.0], "validation_loss": [3.5, 2.5, 2.25]}, ax=ax) is ax
    assert heights(ax) == [[3.0, 2.0], [3.5, 2.5, 2.25]]
    assert list(ax.lines[1].get_xdata()) == [1, 2, 3]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "loss")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["train loss", "validation loss"]


def test_lines_differ_without_colour(ax: Axes) -> None:
    plot_curves({str(k): [1.0, 2.0] for k in range(6)}, ax=ax)
    assert len({(line.get_linestyle(), line.get_marker()) for line in ax.lines}) == 6
    assert len({line.get_color() for line in ax.lines}) == 6


def test_overlap_has_its_ceiling(ax: Axes) -> None:
    assert plot_overlap([0.2, 0.6, 0.7], 0.875, ax=ax) is ax
    assert heights(ax) == [[0.2, 0.6, 0.7], [0.875, 0.875]]
    assert "ceiling 0.8750" in [text.get_text() for text in ax.get_legend().get_texts()]
    assert len(plot_overlap([0.2]).lines) == 1


def test_entropies(ax: Axes) -> None:
    assert plot_entropies([1.0, 2.0, 1.5], [0.5, 0.25, 0.125], [1.4, 2.8, 1.4], ax=ax) is ax
    drawn = {str(line.get_label()): values for line, values in zip(ax.lines, heights(ax), strict=True)}
    assert drawn == {"maximum": [1.4, 2.8, 1.4], "before": [1.0, 2.0, 1.5], "after": [0.5, 0.25, 0.125]}
    assert "nats" in ax.get_ylabel()
    assert ax.get_ylim()[0] == 0
    assert ax.get_ylim()[1] > 2.8


def test_accuracy_from_top_to_bottom(ax: Axes) -> None:
    assert plot_accuracy({"dense": 0.975, "mpo": 0.5}, {"mpo": 100}, ax=ax) is ax
    dots = [float(np.asarray(line.get_xdata())[0]) for line in ax.lines if line.get_marker() == "o"]
    assert dots == [97.5, 50.0]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["dense", "mpo"]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]
    (bar,) = [line for line in ax.lines if line.get_marker() != "o"]
    assert np.asarray(bar.get_xdata()) == pytest.approx([100 * end for end in interval(0.5, 100)])


def test_interval_has_width_even_where_all_are_right() -> None:
    assert interval(0.5, 100) == pytest.approx((0.45, 0.55), abs=3e-3)  # sqrt(p (1 - p) / n)
    low, high = interval(1.0, 50)
    assert low < 0.99
    assert high == pytest.approx(1.0)


def test_figures_follow_the_data() -> None:
    assert figures(Report()) == {}
    assert set(figures(Report(curves={"overlap": [0.5]}))) == {"overlap"}
    assert set(figures(Report(curves={"loss": [0.5], "gradient": [1.0]}, entropies={"before": [1.0]}))) == {
        "training",
        "entropies",
    }


def test_same_bytes_whatever_the_settings() -> None:
    report = Report(accuracy={"dense": 0.9, "mpo": 0.5}, entropies={"before": [1.0, 0.5]}, curves={"loss": [2.0, 1.0]})
    first = figures(report)
    with mpl.rc_context({"font.size": 20, "axes.grid": False, "svg.hashsalt": None}):
        second = figures(report)
        assert mpl.rcParams["font.size"] == 20
    assert first == second
    for svg in first.values():
        assert not re.search(r"<dc:|<metadata|\b20\d\d-\d\d-\d\d", svg)


def test_names_are_no_formulas(ax: Axes) -> None:
    plot_curves({"$\\frac{": [1.0], "_b$c$": [2.0]}, ax=ax)
    assert "<svg" in to_svg(ax.get_figure(root=True))


def test_rows_of_a_table(ax: Axes, tmp_path: Path) -> None:
    rows = [
        {"name": "dense", "mean": 0.75, "std": 0.125, "values": [0.625, 0.875], "paper": {"value": 0.5}},
        {"name": "mpo", "mean": 0.25, "paper": {"value": None}},
    ]
    assert plot_rows(rows, ax=ax) is ax
    across = [np.asarray(line.get_xdata()).tolist() for line in ax.lines]
    assert across == [[62.5, 87.5], [62.5, 87.5], [75.0], [50.0], [], [25.0, 25.0], [25.0]]
    save_png(tmp_path / "a.png", lambda ax: plot_rows(rows, ax=ax))
    save_png(tmp_path / "b.png", lambda ax: plot_rows(rows, ax=ax))
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with pytest.raises(OutputError):
        save_png(tmp_path / "missing" / "a.png", lambda ax: plot_rows(rows, ax=ax))


def test_layers_of_a_kind_share_a_panel() -> None:
    profile = {"entropies": [0.5, 1.0], "maximum": [0.7, 1.4], "random": [0.6, 1.3], "order": "vector", "rank": None}
    layers = [
        {"name": f"block.{block}.{name}", "shape": shape, "profile": profile}
        for block in range(3)
        for name, shape in (("query", [4, 4]), ("value", [4, 4]), ("out", [4, 2]), ("in", [2, 4]))
    ]
    figure = Figure()
    draw_profiles(figure, [*layers, {"name": "same", "shape": [4, 4], "profile": None}])
    assert [ax.get_title() for ax in figure.axes] == ["query, 4 × 4", "value, 4 × 4", "out, 4 × 2", "in, 2 × 4"]
    assert all(len(ax.lines) == 3 + 2 for ax in figure.axes)
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert words == ["maximum", "layers, the last one darkest", "random"]


def test_one_layer_has_a_legend(ax: Axes) -> None:
    profile = {"entropies": [0.5, 1.0], "maximum": [0.7, 1.4], "random": [0.6, 1.3]}
    assert plot_profiles({"a_b": profile}, ax=ax) is ax
    assert heights(ax) == [[0.7, 1.4], [0.5, 1.0], [0.6, 1.3]]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["maximum", "a b", "random"]
    assert ax.get_ylim()[0] == 0
