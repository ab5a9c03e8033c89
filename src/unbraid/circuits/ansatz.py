"""Geometry of circuits: which gates stand on which wires in which layer. No numbers.

Layer 0 stands next to the core, deeper layers outside of it, so an ansatz of depth d is contained in that of depth d +
1. The same ansatz serves both sides of a core: the input circuit runs it from the last layer to layer 0, the output
circuit from layer 0 to the last.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from unbraid.circuits.gates import FIXED_GATES, GROUPS
from unbraid.circuits.joints import EXAMPLES, make_joint
from unbraid.ground.errors import FileFormatError, InvalidInputError, require_choice


@dataclass(frozen=True)
class Gate:
    """A place for a gate: a group ("so", "o", "u") or a fixed gate's name, and its wires."""

    name: str
    wires: tuple[int, ...]

    @property
    def is_trainable(self) -> bool:
        """Whether the gate has parameters."""
        return self.name in GROUPS


Layer = tuple[Gate, ...]


@dataclass(frozen=True)
class Ansatz:
    """Wires and layers of gates.

    Attributes:
        wire_dims: dimension a wire; wire 0 is the most significant digit of the index.
        layers: layer 0 first, next to the core.
        joints: (position, name): what stands between layer position - 1 and layer position, such as (3, "relu"); names
            are those of :mod:`unbraid.circuits.joints`.
        alternatives: other geometries that :func:`unbraid.disentangle` should try as well.
    """

    wire_dims: tuple[int, ...]
    layers: tuple[Layer, ...]
    joints: tuple[tuple[int, str], ...] = ()
    alternatives: tuple[Ansatz, ...] = ()

    def __post_init__(self) -> None:
        if not self.wire_dims or min(self.wire_dims) < 1:
            raise InvalidInputError(f"Wires must have positive dimensions, at least one; got {self.wire_dims}.")
        for layer in self.layers:
            wires = [wire for gate in layer for wire in gate.wires]
            if len(set(wires)) != len(wires) or any(not 0 <= wire < len(self.wire_dims) for wire in wires):
                raise InvalidInputError(
                    f"The gates of a layer must act on different wires below {len(self.wire_dims)}."
                )
            for gate in layer:
                if not gate.is_trainable and gate.name not in FIXED_GATES:
                    raise InvalidInputError(f"Unknown gate {gate.name!r}; known: {', '.join([*GROUPS, *FIXED_GATES])}.")
                body = None if gate.is_trainable else len(FIXED_GATES[gate.name]).bit_length() - 1
                if not gate.wires or body not in (None, len(gate.wires)):
                    raise InvalidInputError(
                        f"The gate {gate.name!r} acts on {body or 'one or more'} wires; got {gate.wires}."
                    )
        for position, name in self.joints:
            make_joint(name, 1, device="meta")  # refuses what is none
            if not 0 < position < len(self.layers):
                raise InvalidInputError(f"The joint {name!r} must stand between two layers; got position {position}.")
        places = [position for position, _ in self.joints]
        if len(set(places)) < len(places):
            raise InvalidInputError(f"One joint at most stands between two layers; got positions {places}.")

    @property
    def dimension(self) -> int:
        """Product of the wire dimensions: the size of the vectors that a circuit acts on."""
        return prod(self.wire_dims)

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self.layers)

    def _repr_svg_(self) -> str:
        """What notebooks show."""
        from unbraid.circuits.drawing import draw_circuit  # which draws these

        return draw_circuit(self)

    def gates(self) -> Iterator[Gate]:
        """All gates, layer by layer from layer 0."""
        for layer in self.layers:
            yield from layer

    def gate_dims(self, gate: Gate) -> tuple[int, ...]:
        """Dimensions of the wires of a gate."""
        return tuple(self.wire_dims[wire] for wire in gate.wires)

    def truncated(self, depth: int) -> Ansatz:
        """The innermost ``depth`` layers."""
        joints = tuple(joint for joint in self.joints if joint[0] < depth)
        return Ansatz(self.wire_dims, self.layers[:depth], joints)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; alternatives are not kept."""
        return {
            "wire_dims": list(self.wire_dims),
            "layers": [[[gate.name, list(gate.wires)] for gate in layer] for layer in self.layers],
            "joints": [list(joint) for joint in self.joints],
        }

    @classmethod
    def from_dict(cls, data: Any) -> Ansatz:
        """The inverse of :meth:`to_dict`.

        Raises:
            FileFormatError: if the data do not describe an ansatz.
        """
        try:
            layers = tuple(
                tuple(Gate(str(name), tuple(int(wire) for wire in wires)) for name, wires in layer)
                for layer in data["layers"]
            )
            joints = tuple((int(position), str(name)) for position, name in data["joints"])
            return cls(tuple(int(dim) for dim in data["wire_dims"]), layers, joints)
        except (KeyError, TypeError, ValueError) as error:
            raise FileFormatError(f"This is no description of an ansatz: {error}.") from error


def brickwall(wires: int | Sequence[int], depth: int, body: int = 2, gate: str = "so", parity: int | str = 0) -> Ansatz:
    """Layers of trainable gates on neighbouring wires, every other layer shifted by half a gate.

    Args:
        wires: number of qubits, or the leg dimensions.
        depth: number of layers.
        body: wires a gate, 1 to 6.
        gate: "so" (determinant 1) | "o" (any determinant) | "u" (complex).
        parity: 0: layer 0, next to the core, starts at wire 0; 1: it is shifted; "auto": 0, with 1 as an alternative
            that :func:`unbraid.disentangle` tries too.

    Raises:
        InvalidInputError: if a size is out of range or a name unknown.
    """
    dims = _wire_dims(wires)
    require_choice(gate, GROUPS, "gate")
    if parity not in (0, 1, "auto"):
        raise InvalidInputError(f"parity must be 0, 1 or 'auto'; got {parity!r}.")
    if not isinstance(depth, int) or depth < 0:
        raise InvalidInputError(f"depth must be a number of layers, 0 or more; got {depth!r}.")
    if not isinstance(body, int) or not 1 <= body <= 6:
        raise InvalidInputError(f"body must be from 1 to 6 wires a gate; got {body!r}.")
    if body > len(dims):
        raise InvalidInputError(f"A gate on {body} wires does not fit on {len(dims)}; choose body <= {len(dims)}.")

    def built(first: int) -> tuple[Layer, ...]:
        return tuple(_row(dims, gate, body, (first + k) % 2) for k in range(depth))

    if parity != "auto":
        return Ansatz(dims, built(int(parity)))
    shifted = Ansatz(dims, built(1))
    straight = Ansatz(dims, built(0))
    return straight if shifted == straight else Ansatz(dims, straight.layers, alternatives=(shifted,))


def scaffold(wires: int | Sequence[int], depth: int) -> Ansatz:
    """Trainable one-body rotations on a frozen scaffold of CNOT bricks: "1b", then ``depth`` times "cnot+1b".

    Args:
        wires: number of qubits, or the leg dimensions.
        depth: rows of CNOTs, alternately even and odd.
    """
    if not isinstance(depth, int) or depth < 0:
        raise InvalidInputError(f"depth must be a number of CNOT rows, 0 or more; got {depth!r}.")
    return parse_ansatz("1b" + "+cnot+1b" * depth, wires)


def parse_ansatz(text: str, wires: int | Sequence[int]) -> Ansatz:
    """Read the layer grammar of the paper's Tables 4 and 6.

    ``layer ("+" layer)*``, layer 1 next to the core. A layer is ``1b`` ... ``6b`` (trainable gates on that many wires),
    ``cnot``, ``cz``, ``swap``, ``h``, ``x`` or ``z`` (fixed). Rows of gates on several wires alternate, even first;
    ``@odd`` or ``@even`` pins one (``cnot@odd``); an odd row is shifted as far as one gate still fits: on two wires,
    not at all. ``5*(cnot+1b)`` repeats. ``| relu |``, ``| bn+relu |``, ``| mean(a) |`` and measured neurons,
    ``| rotation(a) |`` and ``| weak(g) |``, stand between segments, not within a repetition
    (:mod:`unbraid.circuits.joints`). An empty text is no circuit.

    Fixed gates stand on qubits: those that would touch a wire of dimension 1, 3, 5 or another that is no power of two
    are left out.

    Args:
        text: such as ``"1b+cnot+1b+5*(cnot)"``.
        wires: number of qubits, or the leg dimensions.

    Raises:
        InvalidInputError: pointing at the place in ``text``.

    Source:
        Tables 4 and 6 of "Classical Neural Networks on Quantum Devices via Tensor Network Disentanglers".
    """
    if not isinstance(text, str):
        raise InvalidInputError(f"An ansatz is written as text, such as '1b+cnot+1b'; got {text!r}.")
    return _Parser(text, _wire_dims(wires)).parse()


_TOKEN = re.compile(
    r"\s*(?:(?P<joint>\|[^|]*\|)|(?P<word>[0-9]*[a-z]+(?:@[a-z]*)?)|(?P<number>[0-9]+)|(?P<mark>[+*()]))"
)


class _Parser:
    """Recursive descent over tokens (kind, text, position)."""

    def __init__(self, text: str, dims: tuple[int, ...]) -> None:
        self.text, self.dims = text, dims
        self.tokens: list[tuple[str, str, int]] = []
        self.parity = 1  # so that the first row is even
        # letters of other alphabets are no part of it, and may grow when lowered
        position, lowered = 0, "".join(letter.lower() if letter.isascii() else letter for letter in text)
        while lowered[position:].strip():
            match = _TOKEN.match(lowered, position)
            if match is None:
                gap = len(lowered[position:]) - len(lowered[position:].lstrip())
                what = (
                    "a joint ends with '|', as in '| relu |'" if lowered[position + gap] == "|" else "cannot read this"
                )
                raise self.error(position + gap, what)
            kind = str(match.lastgroup)
            self.tokens.append((kind, match[kind], match.start(kind)))
            position = match.end()
        self.cursor = 0

    def parse(self) -> Ansatz:
        layers: list[Layer] = []
        joints: list[tuple[int, str]] = []
        if self.tokens:
            layers += self.sequence()
        while self.cursor < len(self.tokens):
            kind, word, position = self.tokens[self.cursor]
            if kind != "joint":
                raise self.error(position, "expected '+' or a joint such as '| relu |'")
            name = re.sub(r"\s*([+(),])\s*", r"\1", word.strip("|").strip())
            try:
                make_joint(name, 1, device="meta")
            except InvalidInputError as error:
                raise self.error(position, _joint_error(error)) from error
            self.cursor += 1
            joints.append((len(layers), name))
            layers += self.sequence()
        return Ansatz(self.dims, tuple(layers), tuple(joints))

    def sequence(self) -> list[Layer]:
        layers = self.term()
        while self.peek() == "+":
            self.cursor += 1
            layers += self.term()
        return layers

    def term(self) -> list[Layer]:
        if self.cursor >= len(self.tokens):
            raise self.error(len(self.text), "expected a layer such as '2b' or 'cnot'")
        kind, word, position = self.tokens[self.cursor]
        self.cursor += 1
        if kind == "number":
            self.expect("*")
            self.expect("(")
            start, count = self.cursor, int(word)
            if not 1 <= count <= 1000:
                raise self.error(position, "repeat 1 to 1000 times")
            layers: list[Layer] = []
            for _ in range(count):
                self.cursor = start
                layers += self.sequence()
                if len(layers) > 100_000:
                    raise self.error(position, "more than 100,000 layers")
            if self.cursor < len(self.tokens) and self.tokens[self.cursor][0] == "joint":
                raise self.error(self.tokens[self.cursor][2], "a joint cannot stand in a repetition; write it out")
            self.expect(")")
            return layers
        if kind != "word":
            raise self.error(position, "expected a layer such as '2b' or 'cnot'")
        return [self.layer(word, position)]

    def layer(self, word: str, position: int) -> Layer:
        name, _, row = word.partition("@")
        if "@" in word and row not in ("odd", "even"):
            raise self.error(position + len(name), "a row is @odd or @even")
        trainable = re.fullmatch(r"([1-6])b", name)
        if trainable is None and name not in FIXED_GATES:
            raise self.error(position, f"a layer is 1b ... 6b or one of {', '.join(FIXED_GATES)}")
        body = int(trainable[1]) if trainable else len(FIXED_GATES[name]).bit_length() - 1
        if body > len(self.dims):
            raise self.error(position, f"a gate on {body} wires does not fit on {len(self.dims)}")
        if body > 1:
            self.parity = {"odd": 1, "even": 0}.get(row, 1 - self.parity)
        elif row:
            raise self.error(position + len(name), "a one-body row has no parity")
        kind, parity = "so" if trainable else name, self.parity if body > 1 else 0
        row_of_gates = _row(self.dims, kind, body, parity)
        if not row_of_gates and not all(_is_qubits(dim) or dim == 1 for dim in self.dims):
            reason = (
                f"{name} needs wires of qubits (dimensions 2, 4, 8, ...), which are not side by side in {self.dims}"
            )
            if body > 1 and _row(self.dims, kind, body, 1 - parity):
                here, there = ("odd", "even") if parity else ("even", "odd")
                reason = f"the {here} row of {self.dims} has no place for {name}; try {name}@{there}"
            raise self.error(position, reason)
        return row_of_gates

    def peek(self) -> str | None:
        return self.tokens[self.cursor][1] if self.cursor < len(self.tokens) else None

    def expect(self, mark: str) -> None:
        if self.peek() != mark:
            position = self.tokens[self.cursor][2] if self.cursor < len(self.tokens) else len(self.text)
            raise self.error(position, f"expected {mark!r}")
        self.cursor += 1

    def error(self, position: int, reason: str) -> InvalidInputError:
        before = self.text[:position].split("\n")
        line = self.text.split("\n")[len(before) - 1].replace("\t", " ").rstrip("\r")
        place = f"line {len(before)}, " if "\n" in self.text else ""
        return InvalidInputError(
            f"In the ansatz at {place}character {len(before[-1]) + 1}, {reason}:\n  {line}\n  {' ' * len(before[-1])}^"
        )


def _joint_error(error: InvalidInputError) -> str:
    said = str(error)
    if said.startswith("A joint must be"):
        return f"a joint must be one of {', '.join(f'| {joint} |' for joint in EXAMPLES)}"
    return said[0].lower() + said[1:].rstrip(".")


def _row(dims: tuple[int, ...], name: str, body: int, parity: int) -> Layer:
    """One row of gates on neighbouring wires; an odd row is shifted by half a gate, as far as one still fits."""
    start = min(body // 2, len(dims) - body) if parity else 0
    places = (tuple(range(first, first + body)) for first in range(start, len(dims) - body + 1, body))
    gates = (Gate(name, wires) for wires in places)
    return tuple(
        gate
        for gate in gates
        if (
            prod(dims[w] for w in gate.wires) > 1 if gate.is_trainable else all(_is_qubits(dims[w]) for w in gate.wires)
        )
    )


def _is_qubits(dim: int) -> bool:
    return dim > 1 and dim & (dim - 1) == 0


def _wire_dims(wires: int | Sequence[int]) -> tuple[int, ...]:
    dims = (2,) * wires if isinstance(wires, int) else tuple(wires) if isinstance(wires, Sequence) else ()
    if not dims or not all(isinstance(dim, int) and dim > 0 for dim in dims):
        raise InvalidInputError(f"wires must be a number of qubits or positive leg dimensions; got {wires!r}.")
    return dims
