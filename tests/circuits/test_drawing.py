"""Drawings: one element a gate, in the order of action."""

import re
import xml.etree.ElementTree as ET

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unbraid.circuits import Ansatz, Circuit, brickwall, parse_ansatz, scaffold
from unbraid.circuits.drawing import draw_circuit

SVG = "{http://www.w3.org/2000/svg}"


def gates(svg: str) -> list[ET.Element]:
    return [group for group in ET.fromstring(svg).iter(f"{SVG}g") if "gate" in str(group.get("class")).split()]


def columns(svg: str) -> list[float]:
    """Horizontal place of every box, in the order of the drawing."""
    return [float(str(gate.findall(f"{SVG}rect")[0].get("x"))) for gate in gates(svg)]


@given(wires=st.integers(1, 7), depth=st.integers(0, 12), body=st.integers(1, 4), parity=st.integers(0, 1))
def test_one_box_a_gate(wires: int, depth: int, body: int, parity: int) -> None:
    ansatz = brickwall(wires, depth, min(body, wires), parity=parity)
    svg = draw_circuit(ansatz)
    assert len(gates(svg)) == sum(1 for _ in ansatz.gates())
    assert svg == draw_circuit(ansatz)
    root = ET.fromstring(svg)
    width, height = float(str(root.get("width"))), float(str(root.get("height")))
    for rect in root.iter(f"{SVG}rect"):
        assert float(rect.get("x", 0)) >= 0
        assert float(rect.get("x", 0)) + float(str(rect.get("width"))) <= width
        assert float(rect.get("y", 0)) + float(str(rect.get("height"))) <= height


def test_gates_do_not_cover_each_other() -> None:
    circuit = Circuit.from_gates(
        4, [("h", (1,)), (torch.eye(4), (0, 3)), ("x", (2,)), ("z", (0,)), (torch.eye(2), (3,))]
    )
    assert len(set(columns(draw_circuit(circuit))[:2])) == 2  # the second one passes over wire 1
    places = [
        (float(str(r.get("x"))), float(str(r.get("y"))), float(str(r.get("height"))))
        for gate in gates(draw_circuit(circuit))
        for r in gate.findall(f"{SVG}rect")
    ]
    for k, (x, y, h) in enumerate(places):
        for x2, y2, h2 in places[k + 1 :]:
            assert x != x2 or y + h <= y2 or y2 + h2 <= y


def test_mirrored_is_the_other_way_round() -> None:
    ansatz = parse_ansatz("1b+2b+h", 2)
    names = ["SO(2)", "SO(2)", "SO(4)", "H", "H"]
    for mirrored, expected in ((False, names), (True, names[::-1])):
        for thing in (draw_circuit(ansatz, mirrored=mirrored), draw_circuit(Circuit(ansatz, mirrored=mirrored))):
            order = sorted(zip(columns(thing), gates(thing), strict=True), key=lambda pair: pair[0])
            assert [str(gate.findtext(f"{SVG}text")) for _, gate in order] == expected


def test_cnot_has_its_dot_on_the_control() -> None:
    (gate,) = gates(draw_circuit(Circuit.from_gates(3, [("cnot", (2, 0))])))
    dot, target = (
        next(c for c in gate.findall(f"{SVG}circle") if c.get("class") == kind) for kind in ("dot", "target")
    )
    assert float(str(dot.get("cy"))) > float(str(target.get("cy")))


def test_fixed_gates_and_joints() -> None:
    ansatz = parse_ansatz("cz+swap+x | relu | z+1b | bn+relu | 2b", 3)
    svg = draw_circuit(ansatz)
    assert len(gates(svg)) == sum(1 for _ in ansatz.gates())
    assert svg.count('class="joint"') == 2
    assert svg.index("SWAP") < svg.index(">ReLU<") < svg.index("batch norm") < svg.index("SO(4)")


@pytest.mark.parametrize(("dims", "label"), [((4, 2), "0 (d=4)"), ((2, 1), "1 (d=1)")])
def test_wires_say_their_dimension(dims: tuple[int, ...], label: str) -> None:
    svg = draw_circuit(Ansatz(dims, ()))
    assert f">{label}<" in svg
    assert ("thin" in re.sub("<style>.*</style>", "", svg)) == (1 in dims)


def test_wide_as_it_is_deep() -> None:
    widths = [float(str(ET.fromstring(draw_circuit(scaffold(4, depth))).get("width"))) for depth in (5, 50, 500)]
    assert widths[2] - widths[1] == pytest.approx(10 * (widths[1] - widths[0]))


@pytest.mark.parametrize("wires", [1, 2, 3, 6])
@pytest.mark.parametrize("joint", ["relu", "bn+relu", "bn+weak(1.0996,0.25)"])
def test_the_name_of_a_joint_is_no_longer_than_its_bar(wires: int, joint: str) -> None:
    svg = draw_circuit(parse_ansatz(f"1b | {joint} | 1b", wires))
    (found,) = [group for group in ET.fromstring(svg).iter(f"{SVG}g") if group.get("class") == "joint"]
    (bar,), (text,) = found.findall(f"{SVG}rect"), found.findall(f"{SVG}text")
    size = float(re.sub(r"font-size:|px", "", text.get("style", "font-size:12px")))
    assert 0.5 * size * len(str(text.text)) < float(str(bar.get("height")))
    assert size >= 4 or wires == 1
