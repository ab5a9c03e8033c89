"""The search for placements: what it proposes, that it learns, that it resumes."""

import json

import pytest

from unbraid.circuits import Circuit
from unbraid.circuits.geometry import search_geometry
from unbraid.ground.errors import FileFormatError, InvalidInputError


def wanted(output, inward):
    """How many CNOTs stand on wires 0 and 1 of the output side with their control on the first."""
    return float(sum(gate.name == "cnot" and gate.wires == (0, 1) for gate in output.gates()))


@pytest.mark.parametrize("method", ["random", "evolutionary"])
def test_every_placement_has_the_cnots_asked_for(method):
    for placed in search_geometry((4, 3), 5, wanted, evaluations=30, method=method, population=4, tournament=2):
        both = [Circuit(ansatz) for ansatz in (placed.output_ansatz, placed.input_ansatz)]
        assert sum(circuit.cnot_count for circuit in both) == 5
        assert sum(circuit.num_parameters for circuit in both) == 4 + 3 + 2 * 5


def test_a_placement_prints_where_its_cnots_stand():
    found = search_geometry((2, 2), 2, lambda out, inward: 0.5, evaluations=1)[0]
    assert str(found) == f"Placed(score=0.5, units={found.units})"


def test_cnots_alone():
    best, *_ = search_geometry((3, 3), 4, wanted, evaluations=5, rotations=False)
    assert Circuit(best.output_ansatz).num_parameters == 0
    assert best.output_ansatz.depth + best.input_ansatz.depth == 4


def test_evolution_finds_more_than_chance_at_equal_evaluations():
    scores = {
        method: [
            search_geometry((6, 6), 8, wanted, evaluations=300, method=method, seed=seed)[0].score for seed in range(5)
        ]
        for method in ("random", "evolutionary")
    }
    assert all(one >= other for one, other in zip(scores["evolutionary"], scores["random"], strict=True))
    assert sum(scores["evolutionary"]) >= sum(scores["random"]) + 3


def test_the_best_comes_first_and_the_same_seed_gives_the_same():
    found = search_geometry((3, 3), 3, wanted, evaluations=20, seed=4)
    assert [placed.score for placed in found] == sorted((placed.score for placed in found), reverse=True)
    assert found == search_geometry((3, 3), 3, wanted, evaluations=20, seed=4)
    assert found != search_geometry((3, 3), 3, wanted, evaluations=20, seed=5)


def test_an_interrupted_search_goes_on_where_it_was(tmp_path):
    calls = []

    def interrupted(output, inward):
        if len(calls) == 17:
            raise KeyboardInterrupt
        calls.append(output)
        return wanted(output, inward)

    place = tmp_path / "search.json"
    with pytest.raises(KeyboardInterrupt):
        search_geometry((3, 3), 3, interrupted, evaluations=30, checkpoint=place)
    calls = [None] * 18
    again = []

    def counted(output, inward):
        again.append(output)
        return wanted(output, inward)

    resumed = search_geometry((3, 3), 3, counted, evaluations=30, checkpoint=place)
    assert len(again) == 13
    assert resumed == search_geometry((3, 3), 3, wanted, evaluations=30)
    with pytest.raises(InvalidInputError, match="another search"):
        search_geometry((3, 3), 3, wanted, evaluations=30, seed=1, checkpoint=place)
    problem = json.loads(place.read_text())["problem"]
    for content in ({}, {"problem": problem, "scores": None}, {"problem": problem, "scores": [None]}):
        place.write_text(json.dumps(content))
        with pytest.raises(FileFormatError, match="no checkpoint"):
            search_geometry((3, 3), 3, wanted, evaluations=30, checkpoint=place)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cnots": 0}, "cnots must be"),
        ({"evaluations": 0}, "evaluations must be"),
        ({"method": "learned"}, "method"),
        ({"wires": ((4, 4), (5,))}, "no place for a CNOT"),
        ({"tournament": 40}, "tournament must be"),
        ({"tournament": 1.5}, "tournament must be"),
        ({"score": lambda *_: float("nan")}, "finite"),
        ({"score": lambda *_: None}, "must be a number; got None"),
        ({"score": None}, "a function"),
        ({"rotations": "yes"}, "rotations must be"),
        ({"wires": (3,)}, "must be a pair"),
        ({"wires": (3, 3, 3)}, "must be a pair"),
        ({"wires": (3, None)}, "numbers of qubits"),
        ({"wires": (3, (2, 0))}, "positive dimensions"),
    ],
)
def test_bad_input_is_told(options, message):
    arguments = {"wires": (3, 3), "cnots": 2, "score": wanted, "evaluations": 5} | options
    with pytest.raises(InvalidInputError, match=message):
        search_geometry(arguments.pop("wires"), arguments.pop("cnots"), arguments.pop("score"), **arguments)
