"""``unbraid reproduce natural``: networks of measured neurons, their classical limit, and every fair control.

A perceptron on signs of pooled MNIST pixels, whose hidden neurons are qubits: over the quantumness of their rotations,
over the entangling angle of their ancillas, with noise, with several qubits a neuron, on all of MNIST, and over depth
and width until learning is lost. Measured neurons also take the place of ReLU between the segments of circuits.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from unbraid.recipes.datasets import Dataset
from unbraid.recipes.natural_runs import (
    JOINTS,
    Settings,
    run_bits,
    run_curves,
    run_full,
    run_joints,
    run_transition,
    setting,
    with_noise,
)
from unbraid.recipes.natural_tables import plot_natural, sections_of
from unbraid.recipes.recipe import Outcome, Recipe, Request, Row, Task, counted, make_row
from unbraid.recipes.significance import holm, paired_p

CHANCE = 0.9  # error of guessing one of ten classes
CONTROLS = {
    "read at a = 0": "trained at a, tested without superposition",
    "mean field": "trained at a, tested by passing means on; nothing is sampled",
    "classical, read at a": "trained without superposition, tested at a",
}


def _data(request: Request, seed: int) -> Dataset:
    return request.load("mnist", seed=0)


def _seeds(request: Request) -> dict[str, range]:
    """Of each kind of task."""
    settings: Settings = request.settings
    most = {
        "curves": request.seeds,
        "bits": settings.bits_seeds,
        "full": settings.full_seeds,
        "joints digits": settings.joint_seeds,
        "joints mnist": settings.joint_seeds,
    }
    return {kind: range(min(request.seeds, count)) for kind, count in most.items()}


def _shapes(settings: Settings) -> list[tuple[int, int]]:
    """Depth and width of the networks whose loss of learning is located."""
    deep = [(depth, settings.transition_width) for depth in settings.depths]
    wide = [(settings.transition_depth, width) for width in settings.widths]
    return list(dict.fromkeys([*deep, *wide]))


def _tasks(request: Request) -> list[Task]:
    runs = {"curves": run_curves, "bits": run_bits, "full": run_full}
    tasks = []
    for kind, seeds in _seeds(request).items():
        for seed in seeds:
            first, _, data = kind.partition(" ")
            arguments = {"name": data, "seed": seed} if data else {"seed": seed}
            tasks.append(Task(f"{kind} seed {seed}", runs.get(first, run_joints), arguments, seed=0))
    for depth, width in _shapes(request.settings):
        tasks.append(Task(f"transition {depth} {width}", run_transition, {"depth": depth, "width": width}, seed=0))
    return tasks


def _assemble(request: Request, results: Mapping[str, Any]) -> Outcome:
    settings: Settings = request.settings
    found = {kind: [results[f"{kind} seed {seed}"] for seed in seeds] for kind, seeds in _seeds(request).items()}
    curves = _curve_rows(settings, found["curves"])
    best = {kind: _best(curves, kind) for kind in ("a", "g")}
    rows = [
        *curves,
        *_control_rows(settings, found["curves"]),
        *_test_rows(settings, found["curves"], best),
        *_noise_rows(settings, found["curves"]),
        *_bits_rows(settings, found["bits"]),
        *_full_rows(settings, found["full"]),
        *_transition_rows(settings, results),
        *(row for name in ("digits", "mnist") for row in _joint_rows(settings, name, found[f"joints {name}"])),
    ]
    return Outcome(
        title="Neurons as qubits, measurement as activation",
        note=(
            f"MNIST pooled to 14 x 14 signs, {settings.train:,} images to learn from, others each seed, and "
            f"{settings.validation:,} to choose by, all of the training file; {counted(request.seeds, 'seed')}, mean "
            "and sample standard deviation; neurons are sampled from their exact law, without circuits. Networks are "
            "trained with one shot; S shots average the softmax. What differs from the classical limit is "
            "regularisation and averaging in a stochastic network that a computer samples as cheaply: no computational "
            "advantage of qubits."
        ),
        rows=rows,
        sections=sections_of(rows, settings),
        extra={"best": {kind: row["x"] for kind, row in best.items()}},
    )


def _column(found: Sequence[Any], *keys: str) -> list[float]:
    """One number a seed."""
    values = []
    for each in found:
        for key in keys:
            each = each[key]
        values.append(float(each))
    return values


def _row(table: str, name: str, kind: str, values: Sequence[float], **more: Any) -> Row:
    return make_row(name, kind, values, seeds=range(len(values)), table=table, **more)


def told(kind: str, value: float) -> str:
    """A setting in words."""
    if kind == "a":
        return f"rotation, a = {value:g}" if value else "classical limit, a = 0"
    return f"ancilla, g = {value:g} pi/2"


def _curve_rows(settings: Settings, found: Sequence[Any]) -> list[Row]:
    points = [("a", a) for a in settings.a] + [("g", g) for g in settings.g]
    shots = [str(count) for count in settings.shots]
    classical = _column(found, "trained", "validation", shots[-1], setting("a", settings.a[0]))
    rows = []
    for kind, value in points:
        name = setting(kind, value)
        errors = {count: _column(found, "trained", "validation", count, name) for count in shots}
        rows.append(
            _row(
                "curves",
                told(kind, value),
                "original" if (kind, value) == points[0] else "hybrid",
                errors[shots[-1]],
                curve=kind,
                x=value,
                errors=errors,
                uncertainty=_column(found, "uncertainty", name),
                p=paired_p(errors[shots[-1]], classical),
            )
        )
    for row, corrected in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_corrected"] = corrected
    return rows


def _best(rows: Iterable[Row], kind: str) -> Row:
    """The setting of the lowest mean validation error, the classical limit left out."""
    return min((row for row in rows if row["curve"] == kind and row["kind"] == "hybrid"), key=lambda row: row["mean"])


def _control_rows(settings: Settings, found: Sequence[Any]) -> list[Row]:
    rows = []
    for name, meaning in CONTROLS.items():
        shots = str(settings.shots[-1]) if name == "classical, read at a" else "1"
        for a in settings.a[1:]:
            values = _column(found, name, "validation", shots, setting("a", a))
            rows.append(_row("controls", f"{name}, {a:g}", "control", values, control=name, x=a, meaning=meaning))
    for name in found[0]["controls"]:
        values = _column(found, "controls", name, "validation")
        rows.append(_row("controls", name, "control", values, control=name, x=None))
    return rows


def _test_rows(settings: Settings, found: Sequence[Any], best: Mapping[str, Row]) -> list[Row]:
    """The classical limit, the best of each curve and the controls, on the test file."""
    many, a = str(settings.shots[-1]), best["a"]["x"]
    chosen = {
        told("a", settings.a[0]): ("original", ("trained", "test", "1", setting("a", settings.a[0]))),
        told("a", a): ("hybrid", ("trained", "test", many, setting("a", a))),
        told("g", best["g"]["x"]): ("hybrid", ("trained", "test", many, setting("g", best["g"]["x"]))),
        f"the one of a = {a:g}, read at a = 0": ("control", ("read at a = 0", "test", "1", setting("a", a))),
        f"the one of a = {a:g}, mean field": ("control", ("mean field", "test", "1", setting("a", a))),
    } | {name: ("control", ("controls", name, "test")) for name in found[0]["controls"]}
    columns = {name: _column(found, *keys) for name, (_, keys) in chosen.items()}
    classical, best_a = columns[told("a", settings.a[0])], columns[told("a", a)]
    rows = []
    for name, values in columns.items():
        against = {"p": paired_p(values, classical), "p_of_best": paired_p(values, best_a)}
        rows.append(_row("test", name, chosen[name][0], values, **against))
    tests = holm([row[key] for row in rows for key in ("p", "p_of_best")])
    for row, corrected in zip(rows, zip(tests[::2], tests[1::2], strict=True), strict=True):
        row["p_corrected"], row["p_of_best_corrected"] = corrected
    return rows


def _noise_rows(settings: Settings, found: Sequence[Any]) -> list[Row]:
    rows = []
    for noise in settings.noise:
        for table, meaning in (("noise added", "trained without"), ("noisy", "trained with")):
            for a in settings.noise_a:
                errors = {
                    str(count): _column(found, table, "validation", str(count), with_noise(a, noise))
                    for count in settings.shots
                }
                name = f"{told('a', a)}, noise {noise[0]:g} and {noise[1]:g}, {meaning}"
                rows.append(
                    _row(
                        "noise",
                        name,
                        "hybrid",
                        errors[str(settings.shots[-1])],
                        x=a,
                        noise=list(noise),
                        trained=meaning,
                        errors=errors,
                    )
                )
    return rows


def _bits_rows(settings: Settings, found: Sequence[Any]) -> list[Row]:
    rows = []
    for bits in settings.bits:
        for a in settings.bits_a:
            errors = {
                str(count): _column(found, str(bits), "validation", str(count), setting("a", a))
                for count in settings.shots
            }
            name = f"{counted(bits, 'qubit')}, a = {a:g}"
            rows.append(_row("bits", name, "hybrid", errors[str(settings.shots[-1])], errors=errors))
    return rows


def _full_rows(settings: Settings, found: Sequence[Any]) -> list[Row]:
    points = [("a", a) for a in settings.full_a] + [("g", settings.full_g)]
    rows = []
    for kind, value in points:
        name = setting(kind, value)
        errors = {str(count): _column(found, "trained", "test", str(count), name) for count in settings.shots}
        validation = _column(found, "trained", "validation", str(settings.shots[-1]), name)
        row_kind = "original" if (kind, value) == points[0] else "hybrid"
        values = errors[str(settings.shots[-1])]
        rows.append(_row("full", told(kind, value), row_kind, values, errors=errors, validation=validation))
    tanh = _column(found, "tanh", "test")
    errors = {str(count): tanh for count in settings.shots}
    validation = _column(found, "tanh", "validation")
    rows.append(_row("full", "tanh", "control", tanh, errors=errors, validation=validation))
    return rows


def _transition_rows(settings: Settings, results: Mapping[str, Any]) -> list[Row]:
    rows = []
    for depth, width in _shapes(settings):
        found = results[f"transition {depth} {width}"]
        for shots in settings.transition_shots:
            errors = found[str(shots)]  # by angle, one a seed
            each = [_lost(settings.transition_g, list(curve)) for curve in zip(*errors, strict=True)]
            rows.append(
                _row(
                    "transition",
                    f"{counted(depth, 'hidden layer')} of {width}, {counted(shots, 'shot')}",
                    "hybrid",
                    [found["half"] for found in each],
                    depth=depth,
                    width=width,
                    shots=shots,
                    spans=[found["span"] for found in each],
                    relative=[found["span"] / found["half"] for found in each if found["half"]],
                    points=[[g, statistics.fmean(each)] for g, each in zip(settings.transition_g, errors, strict=True)],
                )
            )
    return rows


def _lost(angles: Sequence[float], errors: Sequence[float]) -> dict[str, float]:
    """Where an error, at angles that fall from 1, has gone half of its way from the classical one to chance.

    And over which span it goes from a quarter to three quarters. An error that never does is taken to do so at 0.
    """

    def crossed(share: float) -> float:
        level = errors[0] + share * (CHANCE - errors[0])
        for k in range(1, len(errors)):
            if errors[k] >= level:
                part = (level - errors[k - 1]) / (errors[k] - errors[k - 1])
                return angles[k - 1] + part * (angles[k] - angles[k - 1])
        return 0.0

    if errors[0] >= CHANCE:  # nothing was learnt without loss either
        return {"half": angles[0], "span": 0.0}
    return {"half": crossed(0.5), "span": crossed(0.25) - crossed(0.75)}


def _joint_rows(settings: Settings, data: str, found: Sequence[Any]) -> list[Row]:
    rows = []
    for joint in JOINTS:
        errors = {str(count): _column(found, joint, str(count)) for count in settings.shots}
        kind = "hybrid" if joint.startswith(("rotation", "weak")) else "control"
        rows.append(
            _row(
                "joints",
                f"{data}, {joint}",
                kind,
                errors[str(settings.shots[-1])],
                errors=errors,
                data=data,
                joint=joint,
            )
        )
    return rows


RECIPE = Recipe(
    settings=Settings(),
    quick=Settings(
        train=200,
        validation=300,
        hidden=(16, 16),
        a=(0.0, 0.5, 1.0),
        g=(0.7, 0.3),
        shots=(1, 4),
        epochs=4,
        ensemble=2,
        dropout=(0.1,),
        bits=(2,),
        bits_a=(0.0, 0.5),
        bits_seeds=1,
        noise=((0.05, 0.05),),
        noise_a=(0.0, 0.5),
        depths=(1, 2),
        widths=(8,),
        transition_g=(1.0, 0.5, 0.1),
        transition_seeds=2,
        transition_shots=(1, 16),
        joint_seeds=1,
        joint_images=300,
        joint_epochs=(2, 1),
        full_epochs=1,
        full_seeds=1,
        full_a=(0.0, 0.5),
    ),
    seeds=10,
    quick_seeds=2,
    data=_data,
    tasks=_tasks,
    assemble=_assemble,
    plot=plot_natural,
)
