"""``unbraid reproduce NAME``: a table or figure with its manifest; finished units of work are kept and resumed from."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from unbraid.ground.devices import find_device
from unbraid.ground.errors import FileFormatError, InvalidInputError, require_choice, require_extra
from unbraid.ground.files import make_directory, problem_hash, read_json, write_json, write_text
from unbraid.ground.manifest import build_manifest, device_name, versions
from unbraid.ground.parallel import Workers, fan_out, one_thread, require_workers
from unbraid.recipes import (
    digits,
    entanglement,
    execution,
    fig4,
    geometry,
    gradients,
    minilm,
    mlp,
    natural,
    routes,
    stories,
    table1,
    table2,
    table3,
    table5,
    tenfold,
    trainings,
    verdict,
)
from unbraid.recipes.recipe import Outcome, Recipe, Request, Section, Task

RECIPES: dict[str, Recipe] = {
    "digits": digits.RECIPE,
    "table1": table1.RECIPE,
    "table2": table2.RECIPE,
    "table3": table3.RECIPE,
    "table4": table3.CIRCUITS,
    "table5": table5.RECIPE,
    "table6": table5.CIRCUITS,
    "fig4": fig4.RECIPE,
    "geometry": geometry.RECIPE,
    "gradients": gradients.RECIPE,
    "mlp": mlp.RECIPE,
    "tenfold": tenfold.RECIPE,
    "natural": natural.RECIPE,
    "minilm": minilm.RECIPE,
    "stories": stories.RECIPE,
    "routes": routes.RECIPE,
    "trainings": trainings.RECIPE,
    "execution": execution.RECIPE,
    "verdict": verdict.RECIPE,
    "entanglement": entanglement.RECIPE,
}


def reproduce(
    name: str,
    out: str | os.PathLike[str],
    *,
    seeds: int | None = None,
    workers: Workers = 1,
    data_dir: str | os.PathLike[str] | None = None,
    quick: bool = False,
    device: str = "cpu",
    model: str | os.PathLike[str] | None = None,
) -> Outcome:
    """Remake a table or figure; writes ``NAME.json``, ``NAME.md`` and ``NAME.png``.

    Args:
        name: of the recipe.
        out: folder; created if needed. Finished units of work are kept in ``NAME.tasks/`` and not run again.
        seeds: seeds 0, 1, ..., seeds - 1; by default the recipe's own number.
        workers: processes, or a cluster that sees the same folders, as of :func:`unbraid.ground.parallel.fan_out`; the
            results do not depend on it.
        data_dir: where published data sets lie.
        quick: a small version, to see that it works.
        device: where torch computes, such as "cuda"; not every recipe can be moved.
        model: a Hugging Face folder to take instead of the recipe's model, where it has one.

    Returns:
        Note and tables.

    Raises:
        InvalidInputError: if the name is unknown, a number out of range, data are missing, or there is no such
            device.
        OutputError: if ``out`` cannot be written to.
        MissingExtraError: if matplotlib is not installed, or something else that the recipe needs.
    """
    require_choice(name, tuple(RECIPES), "name of the recipe")
    if seeds is not None and seeds < 1:
        raise InvalidInputError(f"seeds must be at least 1; got {seeds}.")
    require_workers(workers)
    recipe = RECIPES[name]
    if find_device(device).type != "cpu" and not recipe.devices:
        movable = ", ".join(name for name, each in RECIPES.items() if each.devices)
        raise InvalidInputError(f"reproduce {name} computes on the CPU. On another device: {movable}.")
    if model is not None and not recipe.models:
        takers = ", ".join(name for name, each in RECIPES.items() if each.models)
        raise InvalidInputError(f"reproduce {name} takes no other model. Those that do: {takers}.")
    for module, extra in {"matplotlib": "report", **recipe.extras}.items():
        require_extra(module, extra)
    request = Request(
        recipe=name,
        settings=recipe.quick if quick else recipe.settings,
        seeds=seeds or (recipe.quick_seeds if quick else recipe.seeds),
        data_dir=None if data_dir is None else Path(data_dir).resolve(),
        device=device,
        model=None if model is None else Path(model).resolve(),
    )
    place = make_directory(out).resolve()  # workers of a cluster stand elsewhere
    load = recipe.data
    data = {} if load is None else {seed: load(request, seed).describe() for seed in range(request.seeds)}
    results = _run(request, recipe.tasks(request), data, make_directory(place / f"{name}.tasks"), workers)
    outcome = recipe.assemble(request, results)
    manifest = build_manifest(
        seeds={f"seed {seed}": seed for seed in range(request.seeds)},
        data={f"seed {seed}": found for seed, found in data.items()},
        device=device,
    )
    content = {
        "title": outcome.title,
        "note": outcome.note,
        "rows": outcome.rows,
        "settings": asdict(request.settings),
        **outcome.extra,
        "manifest": manifest,
    }
    write_json(place / f"{name}.json", content)
    write_text(place / f"{name}.md", _markdown(outcome, manifest))
    recipe.plot(place / f"{name}.png", outcome.rows)
    return outcome


def _run(
    request: Request, tasks: Sequence[Task], data: Mapping[int, dict[str, Any]], folder: Path, workers: Workers
) -> dict[str, Any]:
    """All results by the name of the task: first those that wait for nothing, then the others."""
    common = {"recipe": request.recipe, "versions": versions(), "settings": asdict(request.settings)}
    if request.device != "cpu":
        common["device"] = device_name(request.device)
    problems: dict[str, str] = {}
    results: dict[str, Any] = {}
    waiting = [task for task in tasks if task.after is not None]
    for group in ([task for task in tasks if task.after is None], waiting):
        for task in group:
            problems[task.name] = problem_hash(
                {
                    **common,
                    "task": task.name,
                    "arguments": dict(task.arguments),
                    **({} if task.depends is None else {"depends": task.depends}),
                    "after": None if task.after is None else problems[task.after],
                    "data": None if task.seed is None or not data else data[task.seed]["hash"],
                }
            )
        work = [
            {
                "request": request,
                "task": task,
                "given": None if task.after is None else results[task.after],
                "path": str(folder / f"{task.name}.json"),
                "problem": problems[task.name],
            }
            for task in group
        ]
        if work:
            found = fan_out(_one_task, work, workers=workers, description=f"{request.recipe}: tasks")
            results.update(zip((task.name for task in group), found, strict=True))
    return results


def _one_task(request: Request, task: Task, given: Any, path: str, problem: str) -> Any:
    """The result of a task, from its file if an earlier run of the same problem finished it."""
    if Path(path).exists():
        try:
            content = read_json(path)
            if content["problem"] == problem:
                return content["result"]
        except (FileFormatError, KeyError, TypeError):
            pass  # a damaged or foreign file: the task is run again
    progress = Path(path).with_suffix(".progress")
    options = {"checkpoint_dir": progress / problem} if task.resumes else {}
    with one_thread():
        result = task.run(request, *([] if task.after is None else [given]), **task.arguments, **options)
    write_json(path, {"problem": problem, "result": result})
    shutil.rmtree(progress, ignore_errors=True)
    return result


def _markdown(outcome: Outcome, manifest: dict[str, Any]) -> str:
    lines = [f"# {outcome.title}", "", outcome.note, ""]
    for section in outcome.sections:
        if section.heading:
            lines += [f"## {section.heading}", ""]
        if section.note:
            lines += [section.note, ""]
        lines += [*_table(section), ""]
    found = ", ".join(f"{package} {version}" for package, version in manifest["versions"].items())
    if manifest["data"]:
        lines += [f"Data of seed 0: {manifest['data']['seed 0']['provenance']}.", ""]
    lines += [f"Made by `{manifest['command']}` on {manifest['machine']['device']} with {found}.", ""]
    return "\n".join(lines)


def _table(section: Section) -> list[str]:
    details = [f": {detail}" for detail in section.details] or [""] * len(section.cells)
    cells = [(line[0] + detail, *line[1:]) for line, detail in zip(section.cells, details, strict=True)]
    _, *others = zip(*section.cells, strict=True)
    rule = ["---", *("---:" if all(cell[:1] in "0123456789-–" for cell in column) else "---" for column in others)]
    lines = [section.columns, tuple(rule), *cells]
    return ["| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines]
