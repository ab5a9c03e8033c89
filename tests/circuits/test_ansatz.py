import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unbraid.circuits import Ansatz, Gate, brickwall, parse_ansatz, scaffold
from unbraid.ground.errors import FileFormatError, InvalidInputError


def places(ansatz):
    return [[gate.wires for gate in layer] for layer in ansatz.layers]


def names(ansatz):
    return [layer[0].name if layer else None for layer in ansatz.layers]


@given(wires=st.integers(1, 9), depth=st.integers(0, 6), body=st.integers(1, 6), parity=st.sampled_from([0, 1]))
def test_depth_d_is_contained_in_depth_d_plus_one(wires, depth, body, parity):
    if body > wires:
        return
    shallow, deep = (brickwall(wires, d, body, parity=parity) for d in (depth, depth + 1))
    assert deep.layers[:depth] == shallow.layers
    assert deep.truncated(depth) == shallow
    for layer in deep.layers:
        assert layer
        for gate in layer:
            assert gate.wires == tuple(range(gate.wires[0], gate.wires[0] + body))


def test_rows_alternate_and_parity_shifts_the_first():
    assert places(brickwall(4, 2)) == [[(0, 1), (2, 3)], [(1, 2)]]
    assert places(brickwall(4, 2, parity=1)) == [[(1, 2)], [(0, 1), (2, 3)]]
    assert places(brickwall(5, 2)) == [[(0, 1), (2, 3)], [(1, 2), (3, 4)]]
    assert places(brickwall(6, 2, body=3)) == [[(0, 1, 2), (3, 4, 5)], [(1, 2, 3)]]
    assert places(brickwall(3, 2, body=3)) == [[(0, 1, 2)]] * 2
    assert places(brickwall(2, 1, body=1)) == [[(0,), (1,)]]


def test_auto_parity_carries_the_other_geometry():
    auto = brickwall(5, 3, parity="auto")
    assert auto.layers == brickwall(5, 3).layers
    assert auto.alternatives == (brickwall(5, 3, parity=1),)
    assert brickwall(2, 3, parity="auto").alternatives == ()
    assert brickwall(4, 0, parity="auto").alternatives == ()


def test_gates_on_wires_of_dimension_one_alone_are_left_out():
    ansatz = brickwall((4, 1, 1, 2), 2)
    assert places(ansatz) == [[(0, 1), (2, 3)], []]
    assert ansatz.dimension == 8
    assert ansatz.gate_dims(ansatz.layers[0][0]) == (4, 1)
    assert places(parse_ansatz("cnot+1b", (2, 1, 2, 2))) == [[(2, 3)], [(0,), (2,), (3,)]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1b+cnot+1b+5*(cnot)", ["so", "cnot", "so", "cnot", "cnot", "cnot", "cnot", "cnot"]),
        ("2b", ["so"]),
        (" 2B + CNOT ", ["so", "cnot"]),
        ("h+x+z", ["h", "x", "z"]),
        ("2*(1b+2*(cz)+swap)", ["so", "cz", "cz", "swap"] * 2),
        ("", []),
        ("   ", []),
    ],
)
def test_grammar_reads_layers(text, expected):
    assert names(parse_ansatz(text, 4)) == expected


def test_rows_of_several_wires_alternate_through_the_whole_text():
    even, odd = [(0, 1), (2, 3)], [(1, 2)]
    single = [(0,), (1,), (2,), (3,)]
    assert places(parse_ansatz("1b+cnot+1b+5*(cnot)", 4)) == [single, even, single, odd, even, odd, even, odd]
    assert places(parse_ansatz("2b+cnot+2b", 4)) == [even, odd, even]
    assert places(parse_ansatz("cnot@odd+cnot+cnot@odd+2b@even+2b", 4)) == [odd, even, odd, even, odd]
    assert places(parse_ansatz("3*(cnot@odd)", 4)) == [odd] * 3


def test_grammar_equals_brickwall_and_scaffold():
    assert parse_ansatz("4*(2b)", 6) == brickwall(6, 4)
    assert parse_ansatz("3*(4b)", 6) == brickwall(6, 3, body=4)
    assert scaffold(4, 2) == parse_ansatz("1b+cnot+1b+cnot+1b", 4)
    assert scaffold(4, 0).depth == 1


def test_joints_stand_between_layers():
    ansatz = parse_ansatz("2b+1b | relu | 2b |bn + relu| 1b", 4)
    assert ansatz.joints == ((2, "relu"), (3, "bn+relu"))
    assert ansatz.depth == 4
    assert ansatz.truncated(3).joints == ((2, "relu"),)


def test_measured_neurons_stand_between_layers():
    ansatz = parse_ansatz("2b | rotation(0.5) | 1b | BN + weak(.8, 1) | 2b | weak(1) | 1b", 4)
    assert ansatz.joints == ((1, "rotation(0.5)"), (2, "bn+weak(.8,1)"), (3, "weak(1)"))
    assert Ansatz.from_dict(ansatz.to_dict()) == ansatz


@pytest.mark.parametrize(
    ("text", "position", "reason"),
    [
        ("2b+", 4, "expected a layer"),
        ("2b++1b", 4, "expected a layer"),
        ("+2b", 1, "expected a layer"),
        ("2b 1b", 4, "expected '\\+'"),
        ("7b", 1, "1b ... 6b"),
        ("2b+toffoli", 4, "1b ... 6b"),
        ("2b+?", 4, "cannot read"),
        ("2b+   ?", 7, "cannot read"),
        ("5*cnot", 3, "expected '\\('"),
        ("5 cnot", 3, "expected '\\*'"),
        ("5*(cnot", 8, "expected '\\)'"),
        ("2b)", 3, "expected '\\+'"),
        ("0*(2b)", 1, "repeat 1 to 1000"),
        ("1001*(2b)", 1, "repeat 1 to 1000"),
        ("1000*(1000*(4b))", 1, "more than 100,000"),
        ("2b@left", 3, "@odd or @even"),
        ("2b@", 3, "@odd or @even"),
        ("1b@odd", 3, "no parity"),
        ("1b+5b", 4, "5 wires does not fit on 4"),
        ("2b | gelu | 2b", 4, "a joint must be one of"),
        ("2b || 2b", 4, "a joint must be one of"),
        ("2b | rotation | 2b", 4, "a joint must be one of"),
        ("2b | rotation(-1) | 2b", 4, "a joint must be one of"),
        ("2b | rotation(1 2) | 2b", 4, "a joint must be one of"),
        ("2b | mean(0) | 2b", 4, "follows the slope of the outcomes' mean"),
        ("2b | weak(0.8;1) | 2b", 4, "a joint must be one of"),
        ("2b | weak(1,2,3) | 2b", 4, "a joint must be one of"),
        ("2b | bn+weak(2) | 2b", 4, "the entangling angle g must be above 0 and at most"),
        ("2b | weak(0) | 2b", 4, "the entangling angle g must be above 0 and at most"),
        ("2b | relu |", 12, "expected a layer"),
        ("| relu | 2b", 1, "expected a layer"),
        ("1b | relu", 4, "a joint ends with"),
        ("2*(1b | relu | 1b)", 7, "a joint cannot stand in a repetition"),
    ],
)
def test_errors_point_at_the_character(text, position, reason):
    with pytest.raises(InvalidInputError, match=f"at character {position}, .*{reason}") as caught:
        parse_ansatz(text, 4)
    assert str(caught.value).splitlines()[1:] == [f"  {text}", "  " + " " * (position - 1) + "^"]


@pytest.mark.parametrize(
    ("text", "place", "line"),
    [
        ("1b+cnot\n+7b+1b", "line 2, character 2", "+7b+1b"),
        ("1b+cnot\r\n\t+7b", "line 2, character 3", " +7b"),
        ("\t7b", "character 2", " 7b"),
        ("1b+\u0130+7b", "character 4", "1b+\u0130+7b"),
    ],
)
def test_errors_show_the_line_and_the_place(text, place, line):
    with pytest.raises(InvalidInputError, match=f"at {place}, ") as caught:
        parse_ansatz(text, 4)
    shown, caret = str(caught.value).splitlines()[1:]
    assert shown == f"  {line}"
    assert caret.index("^") == 1 + int(place.rsplit(" ", 1)[1])


def test_a_row_without_a_place_says_which_one_has():
    with pytest.raises(InvalidInputError, match=r"the even row of \(3, 2, 2\) has no place for cnot; try cnot@odd"):
        parse_ansatz("cnot", (3, 2, 2))


@given(st.text("12b+*()| relucnot@d", max_size=12))
def test_any_text_is_an_ansatz_or_an_error_of_ours(text):
    with suppress(InvalidInputError):
        assert isinstance(parse_ansatz(text, 3), Ansatz)


@pytest.mark.parametrize(
    "ansatz",
    [
        brickwall(5, 3, gate="u"),
        scaffold((1, 4, 2), 2),
        parse_ansatz("2b | bn+relu | 1b", 3),
        Ansatz((2, 2, 2), ((Gate("cnot", (2, 0)),),)),
    ],
)
def test_dictionary_round_trip_through_json(ansatz):
    assert Ansatz.from_dict(json.loads(json.dumps(ansatz.to_dict()))) == ansatz


@pytest.mark.parametrize(
    "change",
    [
        {"layers": [[["so", [7]]]]},
        {"layers": [[["so", [0]], ["so", [0]]]]},
        {"layers": [[["evil", [0]]]]},
        {"layers": [[["cnot", [0]]]]},
        {"layers": [[["so", []]]]},
        {"layers": 3},
        {"joints": [[9, "relu"]]},
        {"joints": [[1, "os.system"]]},
        {"wire_dims": None},
        {"wire_dims": [0, 2]},
    ],
)
def test_damaged_dictionaries_are_refused(change):
    data = brickwall(2, 2).to_dict() | change
    with pytest.raises(FileFormatError, match="no description of an ansatz"):
        Ansatz.from_dict(data)


def test_anything_else_is_no_dictionary():
    for data in (None, [], {}, "x"):
        with pytest.raises(FileFormatError):
            Ansatz.from_dict(data)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"wires": 0, "depth": 1}, "wires must be"),
        ({"wires": (2, 0), "depth": 1}, "wires must be"),
        ({"wires": (2, 2.0), "depth": 1}, "wires must be"),
        ({"wires": 3, "depth": -1}, "depth must be"),
        ({"wires": 3, "depth": 1.5}, "depth must be"),
        ({"wires": 3, "depth": 1, "body": 0}, "body must be"),
        ({"wires": 9, "depth": 1, "body": 7}, "body must be"),
        ({"wires": 3, "depth": 1, "body": 4}, "does not fit on 3"),
        ({"wires": 3, "depth": 1, "gate": "su"}, "gate must be one of"),
        ({"wires": 3, "depth": 1, "parity": 2}, "parity must be"),
    ],
)
def test_impossible_brickwalls_are_refused(arguments, message):
    with pytest.raises(InvalidInputError, match=message):
        brickwall(**arguments)


def test_impossible_ansaetze_are_refused():
    for layers in (
        (((Gate("so", (0, 0))),),),
        ((Gate("so", (3,)),),),
        ((Gate("so", (-1,)),),),
        ((Gate("h", (0, 1)),),),
    ):
        with pytest.raises(InvalidInputError):
            Ansatz((2, 2), layers)
    with pytest.raises(InvalidInputError, match="between two layers"):
        Ansatz((2, 2), ((Gate("so", (0,)),),), joints=((0, "relu"),))
    with pytest.raises(InvalidInputError, match="depth must be"):
        scaffold(3, -1)


def test_frozen_gates_stand_on_qubits_only():
    ansatz = parse_ansatz("cnot+1b", (2, 4, 3, 2))
    assert [gate.wires for gate in ansatz.layers[0]] == [(0, 1)]
    assert len(ansatz.layers[1]) == 4  # trainable gates on every wire
    assert parse_ansatz("cnot", (2, 1)).layers == ((),)  # a missing leg
    with pytest.raises(InvalidInputError, match=r"character 4, cnot needs wires of qubits .* side by side in \(2, 3\)"):
        parse_ansatz("1b+cnot", (2, 3))


def test_one_joint_stands_between_two_layers():
    layers = parse_ansatz("1b+1b", 2).layers
    with pytest.raises(InvalidInputError, match=r"One joint at most stands between two layers; got positions \[1, 1\]"):
        Ansatz((2, 2), layers, ((1, "relu"), (1, "mean(0.5)")))
