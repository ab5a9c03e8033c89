"""Circuits as small SVG drawings: wires are lines, gates labelled boxes, time runs from left to right."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from math import prod

from unbraid.circuits import Ansatz, Circuit
from unbraid.circuits.ansatz import Gate, Layer

_COLUMN, _ROW, _LEFT, _TOP = 56, 40, 58, 26  # pixels
_BOX = 46
_FONT = 12
_JOINT_TEXT = {"relu": "ReLU", "bn+relu": "batch norm, ReLU"}
_STYLE = (
    f"text{{font:{_FONT}px system-ui,sans-serif;fill:#1a1a1a;text-anchor:middle;dominant-baseline:central}}"
    ".wire{stroke:#777;stroke-width:1.2}.thin{stroke-dasharray:2 4}"
    ".gate rect{fill:#dceaf5;stroke:#0072B2;stroke-width:1.2}.fixed rect{fill:#eee;stroke:#595959}"
    ".link{stroke:#1a1a1a;stroke-width:1.4;fill:none}.dot{fill:#1a1a1a}.target{fill:#fff;stroke:#1a1a1a;stroke-width:1.4}"
    ".joint rect{fill:#fbe3d4;stroke:#D55E00;stroke-width:1.2}"
)


def draw_circuit(circuit: Ansatz | Circuit, *, mirrored: bool = False) -> str:
    """Draw a circuit in the order in which its gates act.

    A trainable gate is a box with its group, such as SO(4); a fixed one has its usual symbol; nonlinearities between
    segments are bars across all wires. Wires of another dimension than 2 say so, wires of dimension 1 are dotted.

    Args:
        circuit: a circuit (which knows whether it is mirrored), or an ansatz.
        mirrored: for an ansatz: layer 0 acts last, as in an input circuit.

    Returns:
        SVG text of its own size in pixels: as wide as the circuit is deep.
    """
    ansatz = circuit.ansatz if isinstance(circuit, Circuit) else circuit
    mirrored = circuit.mirrored if isinstance(circuit, Circuit) else mirrored
    places, columns = _places(ansatz, mirrored)
    wires = len(ansatz.wire_dims)
    width, height = _LEFT + max(columns, 1) * _COLUMN + 16, 2 * _TOP + (wires - 1) * _ROW
    count = sum(isinstance(thing, Gate) for thing, *_ in places)
    title = f"Circuit of {count} gates in {ansatz.depth} layers on {wires} wires"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style>",
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for wire, dim in enumerate(ansatz.wire_dims):
        label = f"{wire}" if dim == 2 else f"{wire} (d={dim})"
        parts.append(
            f'<text x="28" y="{_y(wire)}">{label}</text>'
            f'<path class="wire{" thin" if dim == 1 else ""}" d="M{_LEFT - 6} {_y(wire)}H{width - 10}"/>'
        )
    parts += [
        _gate(ansatz, thing, column, layer) if isinstance(thing, Gate) else _joint(thing, column, wires)
        for thing, column, layer in places
    ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _places(ansatz: Ansatz, mirrored: bool) -> tuple[list[tuple[Gate | str, int, int]], int]:
    """(gate or joint, column, layer) in the order of action, and the number of columns.

    A layer of several gates stands in columns of its own; lone gates move left as far as order permits, since a circuit
    read from elsewhere has one gate a layer.
    """
    places: list[tuple[Gate | str, int, int]] = []
    free = [0] * len(ansatz.wire_dims)  # the first free column of each wire
    floor = 0
    for thing, number in _in_order(ansatz, mirrored):
        if isinstance(thing, str):
            floor = max(free)
            places.append((thing, floor, number))
            free = [floor + 1] * len(free)
            floor += 1
            continue
        if len(thing) > 1:
            floor = max(floor, *free)
        for gate in thing:
            span = range(min(gate.wires), max(gate.wires) + 1)
            column = max(floor, *(free[wire] for wire in span))
            places.append((gate, column, number))
            for wire in span:
                free[wire] = column + 1
        if len(thing) > 1:
            floor = max(free)
    return places, max(free)


def _in_order(ansatz: Ansatz, mirrored: bool) -> Iterator[tuple[Layer | str, int]]:
    joints = dict(ansatz.joints)
    things: list[tuple[Layer | str, int]] = []
    for number, layer in enumerate(ansatz.layers):
        if number in joints:
            things.append((joints[number], number))
        things.append((layer, number))
    return iter(things[::-1] if mirrored else things)


def _gate(ansatz: Ansatz, gate: Gate, column: int, layer: int) -> str:
    x = _x(column)
    first, last = min(gate.wires), max(gate.wires)
    on = ", ".join(map(str, gate.wires))
    kind = "gate" if gate.is_trainable else "gate fixed"
    head = f'<g class="{kind}"><title>{_name(ansatz, gate)} on {on}, layer {layer}</title>'
    link = f'<path class="link" d="M{x} {_y(first)}V{_y(last)}"/>'
    if gate.name == "cnot":
        control, target = (_y(wire) for wire in gate.wires)
        cross = f'<path class="link" d="M{x - 9} {target}h18M{x} {target - 9}v18"/>'
        return (
            f'{head}{link}<circle class="dot" cx="{x}" cy="{control}" r="4"/>'
            f'<circle class="target" cx="{x}" cy="{target}" r="9"/>{cross}</g>'
        )
    if gate.name == "cz":
        dots = "".join(f'<circle class="dot" cx="{x}" cy="{_y(wire)}" r="4"/>' for wire in gate.wires)
        return f"{head}{link}{dots}</g>"
    if gate.name == "swap":
        crosses = "".join(f'<path class="link" d="M{x - 6} {_y(w) - 6}l12 12m0 -12l-12 12"/>' for w in gate.wires)
        return f"{head}{link}{crosses}</g>"
    box = (
        f'<rect x="{x - _BOX // 2}" y="{_y(first) - 14}" width="{_BOX}" height="{_y(last) - _y(first) + 28}" rx="3"/>'
        f'<text x="{x}" y="{(_y(first) + _y(last)) / 2:g}">{_name(ansatz, gate)}</text>'
    )
    passing = "".join(  # wires that the gate leaves alone
        f'<path class="wire" d="M{x - _BOX // 2} {_y(wire)}h8m{_BOX - 16} 0h8"/>'
        for wire in range(first + 1, last)
        if wire not in gate.wires
    )
    return f"{head}{box}{passing}</g>"


def _joint(name: str, column: int, wires: int) -> str:
    x, top, bottom = _x(column), _TOP - 20, _y(wires - 1) + 20
    text = escape(_JOINT_TEXT.get(name, name) if wires > 2 else name)
    fits = (bottom - top - 6) / (
        0.55 * len(text)
    )  # pixels of a letter's height at which the text is as long as the bar
    size = "" if fits >= _FONT else f' style="font-size:{fits:.3g}px"'
    return (
        f'<g class="joint"><rect x="{x - 10}" y="{top}" width="20" height="{bottom - top}" rx="3"/>'
        f'<text transform="translate({x} {(top + bottom) / 2:g}) rotate(-90)"{size}>{text}</text></g>'
    )


def _name(ansatz: Ansatz, gate: Gate) -> str:
    text = f"{gate.name.upper()}({prod(ansatz.gate_dims(gate))})" if gate.is_trainable else gate.name.upper()
    return escape(text)


def _x(column: int) -> int:
    return _LEFT + column * _COLUMN + _COLUMN // 2


def _y(wire: int) -> int:
    return _TOP + wire * _ROW
