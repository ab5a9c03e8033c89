import pytest
import torch

import unbraid as ub
from unbraid.report import Report
from unbraid.report.page import render
from unbraid.report.verdict import plot_verdict


@pytest.fixture(scope="module")
def found():
    weight = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    judged = ub.verdict(weight, budget=0.4, bodies=(2,), max_depth=1, max_sweeps=10).to_dict()
    return {**judged, "name": "a<b>$x"}


def test_the_figure_has_every_curve_and_the_budget(found):
    ax = plot_verdict(found)
    labels = ax.get_legend_handles_labels()[1]
    assert {"plain MPO", "low rank", "core and circuits", "dense"} <= set(labels)
    assert any(line.get_ydata()[0] == pytest.approx(40.0) for line in ax.get_lines())


def test_the_page_says_it_in_words_and_is_the_same_each_time(found, tmp_path):
    report = Report(extra={"verdict": [found, {**found, "name": "other"}]})
    report.save(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "a&lt;b&gt;$x" in page
    assert "<h2>Verdict</h2>" in page
    assert "break_even" not in page  # not once more under the extras
    assert (tmp_path / "verdict.svg").is_file()
    assert page == render(report)
