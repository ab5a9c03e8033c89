"""Recipes: finished work is kept and tied to what it depends on; missing data are named; files are as documented."""

import dataclasses
import json

import pytest
import torch

from unbraid.ground.errors import InvalidInputError, MissingExtraError
from unbraid.recipes import digits
from unbraid.recipes import reproduce as module
from unbraid.recipes.datasets import load_dataset
from unbraid.recipes.recipe import Outcome, Recipe, Request, Section, Task, make_row
from unbraid.recipes.reproduce import reproduce


@dataclasses.dataclass(frozen=True)
class Numbers:
    factor: int = 2


calls = []


def first(request, seed):
    calls.append(f"first-{seed}")
    return {"seed": seed}


def second(request, given, case):
    calls.append(f"second-{given['seed']}-{case}")
    if case == "bad":
        raise KeyboardInterrupt
    return request.settings.factor * given["seed"]


def tasks(request):
    seeds = range(request.seeds)
    waiting = [Task(f"double-{seed}", second, {"case": "good"}, after=f"seed-{seed}", seed=seed) for seed in seeds]
    return [*waiting, *(Task(f"seed-{seed}", first, {"seed": seed}, seed=seed) for seed in seeds)]


def assemble(request, results):
    seeds = range(request.seeds)
    row = make_row("doubles", "original", [results[f"double-{seed}"] for seed in seeds], seeds=seeds)
    section = Section(("row", "mean"), (("doubles", f"{row['mean']:.1f}"),), heading="Doubles", note="Of seeds.")
    return Outcome("Numbers", f"Over {request.seeds} seeds.", [row], (section, section), {"more": 1})


RECIPE = Recipe(
    settings=Numbers(),
    quick=Numbers(factor=10),
    seeds=3,
    quick_seeds=2,
    data=lambda request, seed: load_dataset("digits", seed=seed),
    tasks=tasks,
    assemble=assemble,
    plot=lambda path, rows: path.write_bytes(b"plot"),
)


@pytest.fixture
def numbers(monkeypatch):
    monkeypatch.setitem(module.RECIPES, "numbers", RECIPE)
    calls.clear()


def test_tasks_get_the_result_that_they_wait_for(numbers, tmp_path):
    sections = reproduce("numbers", tmp_path).sections
    content = json.loads((tmp_path / "numbers.json").read_text())
    assert content["rows"][0]["values"] == [0, 2, 4]
    assert content["rows"][0]["paper"] == {"parameters": None, "value": None}
    assert content["settings"] == {"factor": 2}
    assert content["more"] == 1
    assert set(content["manifest"]["data"]) == {"seed 0", "seed 1", "seed 2"}
    assert sections[0].lines == [("row", "mean"), ("doubles", "2.0")]
    text = (tmp_path / "numbers.md").read_text()
    assert text.count("## Doubles") == 2
    assert "| --- | ---: |" in text
    assert "Data of seed 0: 8x8 digits" in text
    assert (tmp_path / "numbers.png").exists()


def test_finished_tasks_are_kept(numbers, tmp_path):
    reproduce("numbers", tmp_path, seeds=1)
    reproduce("numbers", tmp_path, seeds=2)
    assert calls == ["first-0", "second-0-good", "first-1", "second-1-good"]
    reproduce("numbers", tmp_path, quick=True)  # other settings
    assert calls[4:] == ["first-0", "first-1", "second-0-good", "second-1-good"]


def test_a_task_is_run_again_if_what_it_waits_for_changed(numbers, tmp_path, monkeypatch):
    reproduce("numbers", tmp_path, seeds=1)

    def changed(request):
        return [
            dataclasses.replace(task, arguments={"seed": 5}) if task.after is None else task for task in tasks(request)
        ]

    monkeypatch.setitem(module.RECIPES, "numbers", dataclasses.replace(RECIPE, tasks=changed))
    reproduce("numbers", tmp_path, seeds=1)
    assert calls[2:] == ["first-5", "second-5-good"]


def test_a_task_is_run_again_if_what_it_only_names_changed(numbers, tmp_path, monkeypatch):
    reproduce("numbers", tmp_path, seeds=1)

    def changed(request):
        return [dataclasses.replace(task, depends={"bond": 2}) for task in tasks(request)]

    monkeypatch.setitem(module.RECIPES, "numbers", dataclasses.replace(RECIPE, tasks=changed))
    reproduce("numbers", tmp_path, seeds=1)
    reproduce("numbers", tmp_path, seeds=1)
    assert len(calls) == 4


def test_what_is_not_installed_is_missed_before_any_work(numbers, tmp_path, monkeypatch):
    recipe = dataclasses.replace(RECIPE, extras={"unbraid_no_such_module": "ibm"})
    monkeypatch.setitem(module.RECIPES, "numbers", recipe)
    with pytest.raises(MissingExtraError, match=r"unbraid\[ibm\]"):
        reproduce("numbers", tmp_path, seeds=1)
    assert not calls


def test_bars_in_cells_do_not_break_the_table():
    section = Section(("circuit", "gates"), (("1b | relu | 1b", "2"),))
    assert module._table(section)[-1] == r"| 1b \| relu \| 1b | 2 |"


def test_other_data_are_not_taken_for_the_same(numbers, tmp_path, monkeypatch):
    reproduce("numbers", tmp_path, seeds=1)
    other = dataclasses.replace(RECIPE, data=lambda request, seed: load_dataset("digits", seed=seed + 7))
    monkeypatch.setitem(module.RECIPES, "numbers", other)
    reproduce("numbers", tmp_path, seeds=1)
    assert len(calls) == 4


def test_a_damaged_file_is_run_again(numbers, tmp_path):
    reproduce("numbers", tmp_path, seeds=1)
    (tmp_path / "numbers.tasks" / "seed-0.json").write_text("{")
    reproduce("numbers", tmp_path, seeds=1)
    assert calls == ["first-0", "second-0-good", "first-0"]


def test_a_killed_run_goes_on(tmp_path, monkeypatch):
    def figures(request, seed):
        calls.append(seed)
        if seed == 2 and len(calls) == 3:
            raise KeyboardInterrupt
        return {name: {"accuracy": 0.9 + 0.01 * seed, "parameters": 10} for name, _, _ in digits.ROWS}

    calls.clear()
    monkeypatch.setattr(digits, "digits_seed", figures)
    with pytest.raises(KeyboardInterrupt):
        reproduce("digits", tmp_path, seeds=3)
    assert not (tmp_path / "digits.json").exists()
    (printed,) = reproduce("digits", tmp_path, seeds=3).sections
    assert calls == [0, 1, 2, 2]
    content = json.loads((tmp_path / "digits.json").read_text())
    assert content["rows"][0]["mean"] == pytest.approx(0.91)
    assert content["rows"][0]["std"] == pytest.approx(0.01)
    assert len(printed.lines) == len(content["rows"]) + 1
    assert {row["kind"] for row in content["rows"]} == {"original", "hybrid", "control"}
    assert (tmp_path / "digits.png").read_bytes().startswith(b"\x89PNG")
    assert "| dense: the trained network | original | 10 | 91.00 | 1.00 |" in (tmp_path / "digits.md").read_text()


def test_missing_data_name_the_option():
    with pytest.raises(InvalidInputError, match=r"reproduce table9 needs MNIST.*mnist/.*--data-dir"):
        Request("table9", Numbers(), 1).load("mnist", seed=0)


def test_published_data_are_read_from_the_folder(mnist_dir):
    data = Request("table9", Numbers(), 1, mnist_dir).load("mnist", seed=0, size=8)
    assert data.train[0].shape == (270, 64)
    files = Request("table9", Numbers(), 1, mnist_dir / "mnist").load("mnist", seed=0, size=8)
    assert files.hash == data.hash


def test_recipes_that_cannot_be_moved_say_so(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "find_device", torch.device)
    with pytest.raises(InvalidInputError, match=r"table1 computes on the CPU\. On another device: minilm, stories"):
        reproduce("table1", tmp_path, device="cuda")


def test_unknown_names_and_numbers_are_refused(tmp_path):
    with pytest.raises(InvalidInputError, match="'digits'"):
        reproduce("table99", tmp_path)
    with pytest.raises(InvalidInputError, match="at least 1"):
        reproduce("digits", tmp_path, seeds=0)
