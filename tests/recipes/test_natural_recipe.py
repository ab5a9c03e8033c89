"""The study of measured neurons on tiny settings, and what its figures are made of."""

import dataclasses
import json
import math

import pytest
import torch
from scipy.stats import ttest_rel

from unbraid.natural import NaturalMLP
from unbraid.recipes import natural, natural_runs
from unbraid.recipes import reproduce as module
from unbraid.recipes.reproduce import reproduce
from unbraid.recipes.significance import holm, paired_p

TINY = dataclasses.replace(
    natural.RECIPE.quick,
    train=40,
    validation=20,
    hidden=(8, 6),
    epochs=3,
    batch_size=16,
    joint_images=30,
    joint_epochs=(1, 1),
    depths=(1,),
    widths=(4,),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory, mnist_dir):
    place = tmp_path_factory.mktemp("natural")
    patch = pytest.MonkeyPatch()
    patch.setitem(module.RECIPES, "natural", dataclasses.replace(natural.RECIPE, quick=TINY))
    reproduce("natural", place, quick=True, data_dir=mnist_dir)
    patch.undo()
    assert (place / "natural.png").read_bytes().startswith(b"\x89PNG")
    return json.loads((place / "natural.json").read_text()), (place / "natural.md").read_text()


def rows_of(made, table):
    return [row for row in made[0]["rows"] if row["table"] == table]


def test_every_setting_and_control_is_there(made):
    curves = rows_of(made, "curves")
    assert [(row["curve"], row["x"]) for row in curves] == [("a", 0), ("a", 0.5), ("a", 1), ("g", 0.7), ("g", 0.3)]
    assert [row["kind"] for row in curves] == ["original", *["hybrid"] * 4]
    assert {row["control"] for row in rows_of(made, "controls")} == {
        *natural.CONTROLS,
        "ensemble",
        "tanh",
        "tanh, dropout 0.1",
        "signs, dropout 0.1",
    }
    for row in made[0]["rows"]:
        assert all(0 <= value <= 1 for value in row["values"])
    assert [row["name"] for row in rows_of(made, "full")][-1] == "tanh"
    assert {row["joint"] for row in rows_of(made, "joints")} == set(natural_runs.JOINTS)
    assert "no computational advantage" in made[1]


def test_the_classical_limit_needs_one_shot_and_is_not_superposed(made):
    classical, *others = rows_of(made, "curves")
    assert classical["errors"]["1"] == classical["errors"]["4"] == classical["values"]
    assert classical["uncertainty"] == [0, 0]
    assert all(min(row["uncertainty"]) > 0 for row in others if row["curve"] == "a")


def test_settings_are_chosen_by_validation_and_told_of_the_test_file(made):
    curves = rows_of(made, "curves")
    for kind, x in made[0]["best"].items():
        found = {row["x"]: row["mean"] for row in curves if row["curve"] == kind and row["kind"] == "hybrid"}
        assert found[x] == min(found.values())
    names = [row["name"] for row in rows_of(made, "test")]
    assert names[:3] == [
        "classical limit, a = 0",
        natural.told("a", made[0]["best"]["a"]),
        natural.told("g", made[0]["best"]["g"]),
    ]


def test_p_values_are_of_pairs_and_corrected(made):
    classical, *others = rows_of(made, "curves")
    for row in others:
        assert row["p"] == paired_p(row["values"], classical["values"])
    assert [row["p_corrected"] for row in [classical, *others]] == holm([row["p"] for row in [classical, *others]])


def test_holm_is_the_step_down_method():
    assert holm([0.01, None, 0.04, 0.03]) == pytest.approx([0.03, None, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([]) == []
    one, other = [0.1, 0.2, 0.4], [0.3, 0.1, 0.7]
    assert paired_p(one, other) == pytest.approx(ttest_rel(one, other).pvalue)
    assert paired_p(one, one) is None
    assert paired_p([0.1], [0.2]) is None


def test_learning_is_lost_where_a_curve_crosses_half_of_its_way():
    angles = (1.0, 0.8, 0.6, 0.4)
    found = natural._lost(angles, [0.1, 0.1, 0.5, 0.9])
    assert found["half"] == pytest.approx(0.6)
    assert found["span"] == pytest.approx(0.7 - 0.5)
    assert natural._lost(angles, [0.1] * 4)["half"] == 0
    assert natural._lost(angles, [0.91] * 4) == {"half": 1.0, "span": 0.0}  # nothing was learnt at all


def test_pixels_become_signs_of_pooled_blocks():
    image = torch.zeros(28, 28)
    image[:2, :2] = torch.tensor([[1.0, 0.2], [0.0, 0.0]])  # mean .3
    image[2, 2] = 1.0  # mean .25
    found = natural_runs.pixels(image.reshape(1, -1))
    assert found.shape == (1, 196)
    assert (float(found[0, 0]), float(found[0, 15])) == (1, -1)


def test_noise_is_an_ancilla_that_tells_as_little():
    noise = (0.2, 0.1)
    coupling = math.asin(natural_runs.kept(noise))
    noisy, plain = NaturalMLP((3, 2, 2), a=0.7, g=coupling), NaturalMLP((3, 2, 2), a=0.7)
    z = torch.linspace(-2, 2, 9)
    torch.testing.assert_close(noisy.neurons[0].mean(z), 0.8 * 0.8 * plain.neurons[0].mean(z))


def test_networks_of_a_seed_start_from_the_same_weights():
    sizes, seed = (5, 4, 3), 7
    tanh = natural_runs._plain_network(sizes, "tanh", 0.1, seed)
    start = NaturalMLP(sizes, a=0.5, seed=seed)
    assert torch.equal(tanh[0].weight, start.layers[0].weight)
    assert [type(part).__name__ for part in tanh] == ["Linear", "Tanh", "Dropout", "Linear"]
    signs, x = natural_runs._plain_network(sizes, "signs", 0.1, seed).eval(), torch.randn(6, 5)
    assert torch.equal(signs(x).log_softmax(-1), NaturalMLP(sizes, seed=seed)(x))
