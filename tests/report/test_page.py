"""The page: one file, nothing loaded, nothing from data taken as markup."""

import base64
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from unbraid.report import Report
from unbraid.report.page import cost_sentence, render

HOSTILE = "<script>alert(1)</script><img src=http://evil.example/x onerror=alert(2)>\"'&$\\frac{"


class Tags(HTMLParser):
    """Collects tags and attributes, and checks that they are closed in order."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def hostile_report() -> Report:
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)">{HOSTILE}</svg>'
    return Report(
        title=HOSTILE,
        status=HOSTILE,
        accuracy={HOSTILE: 0.5, "dense": 0.4},
        parameters={HOSTILE: 3},
        entropies={"before": [1.0], HOSTILE: [1.0]},
        gates={HOSTILE: {HOSTILE: {"one_qubit": 1}}},
        cost={"circuits": 3, HOSTILE: HOSTILE, "stages": [{HOSTILE: HOSTILE}]},
        seconds={HOSTILE: 1.0},
        manifest={HOSTILE: {HOSTILE: HOSTILE}, "seeds": {HOSTILE: 0}},
        layers=[{"name": HOSTILE, HOSTILE: [HOSTILE], "verdict": HOSTILE}],
        curves={f"{HOSTILE} loss": [1.0, 0.5], f"overlap {HOSTILE}": [0.1, 0.2], HOSTILE: [1.0]},
        notes=[HOSTILE],
        extra={HOSTILE: HOSTILE},
        drawings={HOSTILE: HOSTILE, "svg": svg},
    )


def test_hostile_names_are_text() -> None:
    page = Tags(render(hostile_report()))
    tags = {tag for tag, _ in page.found}
    assert not tags & {"script", "iframe", "object", "embed", "link", "svg", "form", "base"}
    assert not [name for _, attributes in page.found for name in attributes if name.startswith("on")]
    assert page.text.count(HOSTILE) > 15  # shown, letter by letter


def test_page_loads_nothing() -> None:
    html = render(hostile_report())
    sources = [
        value
        for _, attributes in Tags(html).found
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "action", "data", "poster")
    ]
    assert sources
    assert all(value is not None and value.startswith("data:image/svg+xml;base64,") for value in sources)
    assert "url(" not in html
    assert "@import" not in html


def test_images_are_the_plots() -> None:
    plots = {"overlap": "<svg>one</svg>", "training": "<svg>two</svg>"}
    html = render(Report(), plots)
    found = [base64.b64decode(text).decode() for text in re.findall(r"base64,([^\"]+)", html)]
    assert found == list(plots.values())


def test_table_comes_first_and_manifest_last() -> None:
    html = render(
        Report(
            accuracy={"dense": 0.9733, "mpo": 0.5},
            cost={"circuits": 12345},
            manifest={"versions": {"torch": "2.13.0"}},
            gates={"logical": {"total": {"one_qubit": 1, "two_qubit": 2, "depth": 3}}},
        )
    )
    order = [html.index(text) for text in ("97.3 %", "<h2>Plots", "<h2>Gates", "12,345 circuits", "versions.torch")]
    # The cost is also among the facts beside the first table.
    assert order[0] < order[3] < order[1] < order[2] < order[4]


def test_wide_things_scroll_in_their_own_box() -> None:
    page = Tags(render(hostile_report()))
    assert 'name="viewport"' in render(Report())
    tables = sum(tag == "table" for tag, _ in page.found)
    boxes = sum(tag == "div" and "scroll" in (attributes.get("class") or "") for tag, attributes in page.found)
    assert boxes == tables + 2  # and the two drawings


@pytest.mark.parametrize(
    ("cost", "said", "unsaid"),
    [
        (
            {"circuits": 1200, "shots": 3_000_000, "samples": 30},
            "30 test images takes 1,200 circuits and 3,000,000",
            "device",
        ),
        ({"circuits": 5, "shots": 0}, "5 circuits and no shots", "test images"),
        ({"seconds": 7200.0}, "about 2.0 h", "circuits"),
        ({"depth": 7, "two_qubit_gates": 9, "seconds": 0.0}, "depth 7", "busy"),
    ],
)
def test_cost_in_words(cost: dict[str, Any], said: str, unsaid: str) -> None:
    sentence = cost_sentence(cost)
    assert said in sentence
    assert unsaid not in sentence


def profiled(**changes: Any) -> dict[str, Any]:
    profile = {
        "entropies": [0.5, 1.25, 0.5],
        "maximum": [0.7, 1.4, 0.7],
        "random": [0.6, 1.3, 0.6],
        "order": "vector",
        "rank": None,
        "middle": 2,
        "law": {"law": "volume", "laws": [{"name": "volume", "slope": 0.875}]},
        "valley": {"relative": 0.25},
    }
    return {"name": f"a.{HOSTILE}", "kind": "update", "shape": [6, 4], "profile": profile, **changes}


def test_entanglement_has_a_section_of_its_own() -> None:
    attention = {"length": 8, "rows": [[0.5, 1.5]], "matrix": [[0.25, 0.75]], "chain": []}
    layers = [profiled(), profiled(name="b", profile=None)]
    html = render(Report(extra={"entanglement": {"layers": layers, "attention": [attention]}, "other": 5}))
    page = Tags(html)
    section = html[html.index("<h2>Entanglement") : html.index("<h2>More")]
    for said in ("1.25", "1.3", "1.4", "volume, slope 0.88", "25 %", "unchanged", "1.00 (0.50 to 1.50)", "2.08"):
        assert said in section
    assert section.count("data:image/svg+xml") == 1
    assert HOSTILE in page.text
    assert "entanglement" not in html[html.index("<h2>More") :]
    assert "<h2>Plots" not in html


def test_no_entanglement_no_section() -> None:
    assert "Entanglement" not in render(Report(extra={"other": 5}))
    only = {"layers": [profiled(profile=None)]}
    assert "data:image" not in render(Report(extra={"entanglement": only}))
