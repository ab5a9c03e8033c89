"""``unbraid reproduce stories``: a small pretrained Llama compressed and healed, and one of its layers as circuits.

The linear layers of all blocks are compressed in several ways to the same number of parameters and healed on the
training text towards the original's next-token probabilities. What counts is the perplexity on held-out text. One layer
is also disentangled at several depths and gate widths around a core of bond 1, without healing.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from unbraid.circuits import brickwall
from unbraid.disentangling import Disentangled
from unbraid.ground.errors import InvalidInputError
from unbraid.nn import (
    InputMoments,
    causal_language_model,
    depth_trends,
    describe_depth,
    disentangle_layers,
    input_moments,
    model_bytes,
    quantize,
    tensorize,
)
from unbraid.nn.kinds import matrix_of
from unbraid.recipes.compressing import (
    WAYS,
    agreement,
    brute_force,
    compressed,
    count,
    healed,
    mean,
    profile_from,
    profiled,
    relative_time,
)
from unbraid.recipes.language import (
    LanguageModel,
    document_tokens,
    find_model,
    hashes,
    open_language_model,
    perplexity,
    read_text,
    token_rows,
)
from unbraid.recipes.recipe import Outcome, Recipe, Request, Row, Section, Task, make_row, with_spread
from unbraid.tensors.sites import qubits_for

NAME = "stories260k"
TARGETS = r"model\.layers\..*"
LAYER = "model.layers.2.self_attn.q_proj"
TEXTS = {part: f"text/stories260k/{part}.txt" for part in ("train", "valid", "test")}
ORIGINAL, SCAN, BRUTE, CIRCUITS, PROFILE = "original", "scan", "brute force", "circuits", "profile"
OURS, BASELINE = "operators, data-aware, allocated, gauge fixed", "low rank"


@dataclass(frozen=True)
class Settings:
    """What the results depend on.

    Attributes:
        budgets: parameters of the compressed layers over those of their weights.
        compared: budgets at which all ways are compared, not only ours and the plain low rank.
        length: tokens of a row.
        train: rows to heal on, at most.
        calibration: rows for the moments.
        scanned: rows for the sensitivities.
        bonds: of the sensitivities that are compared with brute force.
        profiled: of those that the budget is spent by.
        documents: of a held-out text, at most.
        batch_size: rows.
        epochs: passes of the healing.
        sliced_epochs: those of them that go slice by slice, where any do.
        lr: peak learning rate of the whole, without passes slice by slice.
        sliced_lr: that of the passes slice by slice.
        rest_lr: that of the passes behind those.
        bodies: qubits of the gates of the disentangled layer.
        depths: layers of gates a side.
        sweeps: of the disentangling, at most.
    """

    budgets: tuple[float, ...] = (0.7, 0.5, 0.3)
    compared: tuple[float, ...] = (0.5,)
    length: int = 256
    train: int = 1000
    calibration: int = 128
    scanned: int = 64
    bonds: tuple[int, ...] = (2, 4, 8, 16)
    profiled: tuple[int, ...] = (2, 4, 8, 12, 16, 24, 32, 40)
    documents: int = 1000
    batch_size: int = 16
    epochs: int = 16
    sliced_epochs: int = 4
    lr: float = 5e-3
    sliced_lr: float = 1e-2
    rest_lr: float = 1e-2
    bodies: tuple[int, ...] = (2, 3, 4, 5)
    depths: tuple[int, ...] = (1, 2, 4)
    sweeps: int = 200


QUICK = Settings(
    budgets=(0.5,),
    length=16,
    train=8,
    calibration=4,
    scanned=8,
    bonds=(2, 4),
    profiled=(2, 4),
    documents=2,
    batch_size=4,
    epochs=2,
    sliced_epochs=1,
    bodies=(2,),
    depths=(1,),
    sweeps=2,
)


@dataclass(frozen=True)
class _Material:
    """What every task works with: rows of tokens in batches, and the tokens of held-out documents."""

    language: LanguageModel
    train: list[Any]
    calibration: list[Any]
    scanned: list[Any]
    validation: list[Any]
    held: dict[str, list[list[int]]]


def _material(request: Request) -> _Material:
    settings: Settings = request.settings
    if request.data_dir is None:
        raise InvalidInputError(
            f"reproduce stories needs models/{NAME} and {', '.join(TEXTS.values())}: give their folder with --data-dir."
        )
    language = open_language_model(find_model(NAME, request.data_dir), request.device)
    texts = {part: read_text(request.data_dir / name) for part, name in TEXTS.items()}
    rows = {part: token_rows(language.tokenizer, texts[part], settings.length) for part in ("train", "valid")}
    train = rows["train"][: settings.train]
    held = {part: document_tokens(language.tokenizer, texts[part])[: settings.documents] for part in ("valid", "test")}
    return _Material(
        language,
        language.batches(train, settings.length, settings.batch_size),
        language.batches(train[: settings.calibration], settings.length, settings.batch_size),
        language.batches(train[: settings.scanned], settings.length, settings.batch_size),
        language.batches(rows["valid"], settings.length, settings.batch_size),
        held,
    )


def run_original(request: Request) -> dict[str, Any]:
    """Perplexities and sizes of the original, also as integers."""
    given = _material(request)
    model = given.language.model
    weights = sum(matrix_of(layer).numel() for layer in _layers(model).values())
    sizes = {"parameters": count(model), "compressed": weights, "bytes": model_bytes(model)}
    found: dict[str, Any] = sizes | _judged(model, given)
    for bits in (8, 4):
        small = quantize(model, TARGETS, bits=bits)
        found[str(bits)] = {"bytes": model_bytes(small), **_judged(small, given)}
    return found


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and n.startswith("model.layers.")}


def _judged(model: nn.Module, given: _Material) -> dict[str, float]:
    return {part: perplexity(model, documents) for part, documents in given.held.items()}


def run_scan(request: Request) -> list[dict[str, Any]]:
    """The sensitivity of every layer."""
    given = _material(request)
    return profiled(given.language.model, given.scanned, causal_language_model(), TARGETS, request.settings.bonds)


def run_profile(request: Request) -> list[dict[str, Any]]:
    """The sensitivity of every layer to operators that keep its outputs as the loss sees them."""
    given, bonds = _material(request), request.settings.profiled
    return profiled(given.language.model, given.scanned, causal_language_model(), TARGETS, bonds, _moments(given))


def _moments(given: _Material) -> dict[str, InputMoments]:
    task = causal_language_model()
    return input_moments(given.language.model, given.calibration, targets=TARGETS, task=task, slopes=True)


def run_brute_force(request: Request) -> dict[str, list[float]]:
    """The growth of the loss with each layer at each bond alone, on the rows of the scan."""
    given = _material(request)
    model, task = given.language.model, causal_language_model()

    def loss() -> float:
        return mean([float(task.loss(model, batch)) for batch in given.scanned])

    return brute_force(model, TARGETS, request.settings.bonds, loss)


def run_way(request: Request, profile: list[dict[str, Any]], way: str, budget: float, seed: int) -> dict[str, Any]:
    """Compress in one way, heal; perplexities before and after, and as integers."""
    settings: Settings = request.settings
    given = _material(request)
    original, task, chosen = given.language.model, causal_language_model(), WAYS[way]
    moments = _moments(given) if chosen.aware else {}
    model = compressed(original, chosen, budget, TARGETS, moments, profile_from(profile))
    blocks = original.get_submodule("model.layers")
    student = healed(
        model,
        original,
        chosen,
        task,
        given.train,
        given.validation,
        [f"model.layers.{k}" for k, _ in enumerate(blocks.children())],
        epochs=settings.epochs,
        sliced_epochs=settings.sliced_epochs,
        lr=settings.lr,
        sliced_lr=settings.sliced_lr,
        rest_lr=settings.rest_lr,
        seed=seed,
    )
    integers = {}
    for bits in (8, 4):
        small = quantize(student, TARGETS, bits=bits)
        integers[str(bits)] = {"bytes": model_bytes(small), **_judged(small, given)}
    return {
        "before": _judged(model, given),
        "healed": _judged(student, given),
        "parameters": count(student),
        "bytes": model_bytes(student),
        "integers": integers,
        "time": relative_time(student, original, lambda each: task.outputs(each, given.validation[0].cpu())),
    }


def run_circuits(request: Request) -> dict[str, Any]:
    """One layer disentangled around a core of bond 1: perplexity by width and depth of the gates, nothing healed."""
    settings: Settings = request.settings
    given = _material(replace(request, device="cpu"))  # where small tensors are faster
    original = given.language.model
    qubits = qubits_for(matrix_of(original.get_submodule(LAYER)).shape[0])
    whole = tensorize(original, [LAYER], sites="qubits")
    found = []
    for body in settings.bodies:
        for depth in settings.depths:
            results: dict[str, Disentangled] = {}
            geometry = brickwall(qubits, depth, body, parity="auto")
            model = disentangle_layers(whole, [LAYER], geometry, max_sweeps=settings.sweeps, results=results)
            (result,) = results.values()
            found.append(
                {
                    "body": body,
                    "depth": depth,
                    "overlap": result.overlap,
                    "core": result.core.num_parameters,
                    "angles": result.output_circuit.num_parameters + result.input_circuit.num_parameters,
                    "cnots": sum(result.cnot_counts),
                    "valid": perplexity(model, given.held["valid"]),
                }
            )
    truncated = tensorize(original, [LAYER], sites="qubits", max_bond=1)
    removed = copy.deepcopy(original)
    removed.get_submodule(LAYER).weight.data.zero_()  # type: ignore[union-attr, operator]
    return {
        "circuits": found,
        "original": perplexity(original, given.held["valid"]),
        "truncated": perplexity(truncated, given.held["valid"]),
        "removed": perplexity(removed, given.held["valid"]),
        "dense": matrix_of(original.get_submodule(LAYER)).numel(),
    }


def _tasks(request: Request) -> list[Task]:
    settings: Settings = request.settings
    read = _files(request)
    steps = {
        ORIGINAL: run_original,
        SCAN: run_scan,
        PROFILE: run_profile,
        BRUTE: run_brute_force,
        CIRCUITS: run_circuits,
    }
    tasks = [Task(name, run, depends=read) for name, run in steps.items()]
    for budget in settings.budgets:
        for way in WAYS if budget in settings.compared else (OURS, BASELINE):
            for seed in range(request.seeds):
                arguments = {"way": way, "budget": budget, "seed": seed}
                tasks.append(Task(_named(way, budget, seed), run_way, arguments, after=PROFILE, depends=read))
    return tasks


def _files(request: Request) -> dict[str, str]:
    return hashes(find_model(NAME, request.data_dir), request.data_dir, TEXTS.values())


def _named(way: str, budget: float, seed: int) -> str:
    return f"{way} {budget:g} seed {seed}"


def _assemble(request: Request, results: Mapping[str, Any]) -> Outcome:
    settings: Settings = request.settings
    original = results[ORIGINAL]
    rows: list[Row] = []
    for budget in settings.budgets:
        for way, chosen in WAYS.items():
            names = [_named(way, budget, seed) for seed in range(request.seeds)]
            if not all(name in results for name in names):
                continue
            found = [results[name] for name in names]
            row = make_row(
                f"{way}, {budget:.0%}",
                chosen.kind,
                [each["healed"]["test"] for each in found],
                seeds=range(request.seeds),
                parameters=found[0]["parameters"],
                description=chosen.meaning,
                budget=budget,
                way=way,
                valid=[each["healed"]["valid"] for each in found],
                before=[each["before"] for each in found],
                bytes=found[0]["bytes"],
                integers=[each["integers"] for each in found],
                time=[each["time"] for each in found],
            )
            rows.append(row)
    profile = profile_from(results[SCAN])
    agreed = agreement(profile, results[BRUTE])
    trends = depth_trends(profile)
    return Outcome(
        title="A small Llama (stories260k), compressed",
        note=(
            f"The blocks' linear layers have {original['compressed']:,} of {original['parameters']:,} parameters. "
            f"Healed on stories that the model wrote, {settings.epochs} passes, towards its probabilities. Perplexity "
            "of held-out stories, each by itself; the pass was chosen on the validation part, test was looked at once. "
            f"Sensitivities estimated in three passes agree with brute force (every layer at {len(settings.bonds)} "
            f"bonds alone) at a Spearman correlation of {agreed:.3f}. {describe_depth(trends)}"
        ),
        rows=rows,
        sections=(_table(rows, original), _integers(rows, original), _circuits(results[CIRCUITS])),
        extra={
            "files": _files(request),
            "original": original,
            "sensitivity": {"spearman": agreed, "profile": results[SCAN]},
            "depth": [{"kind": t.kind, "growth": t.growth, "correlation": t.correlation} for t in trends],
            "circuits": results[CIRCUITS],
        },
    )


def _table(rows: Sequence[Row], original: Mapping[str, Any]) -> Section:
    sizes = (f"{original['parameters']:,}", f"{original['bytes'] / 1e3:.0f}")
    cells = [("original", *sizes, "-", f"{original['valid']:.3f}", f"{original['test']:.3f}", "1")]
    cells += [
        (
            row["name"],
            f"{row['parameters']:,}",
            f"{row['bytes'] / 1e3:.0f}",
            with_spread([each["test"] for each in row["before"]], 1),
            with_spread(row["valid"], 3),
            with_spread(row["values"], 3),
            f"{mean(row['time']):.2f}",
        )
        for row in rows
    ]
    columns = ("way, parameters kept", "parameters", "kB", "test, not healed", "valid, healed", "test, healed", "time")
    return Section(columns, tuple(cells), details=("as published", *(row["description"] for row in rows)))


def _integers(rows: Sequence[Row], original: Mapping[str, Any]) -> Section:
    cells = [
        ("original", bits, f"{original[bits]['bytes'] / 1e3:.0f}", f"{original[bits]['test']:.3f}")
        for bits in ("8", "4")
    ]
    for row in rows:
        for bits in ("8", "4"):
            found = [each[bits] for each in row["integers"]]
            tests = [each["test"] for each in found]
            cells.append((row["name"], bits, f"{found[0]['bytes'] / 1e3:.0f}", with_spread(tests, 3)))
    return Section(
        ("way, parameters kept", "bits", "kB", "test"),
        tuple(cells),
        heading="Healed, then stored as integers",
        note="The blocks' linear layers as integers of so many bits; word table and norms stay in single precision.",
    )


def _circuits(found: Mapping[str, Any]) -> Section:
    exact = found["original"]

    def told(value: float) -> str:
        return f"{value:.4f} ({100 * (value / exact - 1):+.2f} %)"

    cells = [
        ("removed", "-", "0", "0", "0", "-", told(found["removed"])),
        ("truncated, no circuits", "-", "24", "0", "0", "-", told(found["truncated"])),
    ]
    cells += [
        (
            f"gates on {each['body']} qubits",
            str(each["depth"]),
            f"{each['core']:,}",
            f"{each['angles']:,}",
            f"{each['cnots']:,}",
            f"{each['overlap']:.4f}",
            told(each["valid"]),
        )
        for each in found["circuits"]
    ]
    return Section(
        ("circuits", "layers a side", "core", "gate angles", "CNOTs", "overlap", "perplexity (against the original)"),
        tuple(cells),
        heading="One layer as circuits around a core of bond 1, nothing healed",
        note=f"{LAYER}, 64 -> 64, {found['dense']:,} weights; validation part.",
    )


def _plot(path: Path, rows: Sequence[Row]) -> None:
    from unbraid.report.plots import plot_points, save_png

    curves: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        curves.setdefault(row["way"], []).append((row["budget"], math.log(row["mean"])))
    save_png(
        path, lambda ax: plot_points(curves, "parameters of the layers kept", "loss on test, healed (nats)", ax=ax)
    )


RECIPE = Recipe(
    settings=Settings(),
    quick=QUICK,
    seeds=1,
    quick_seeds=1,
    data=None,
    tasks=_tasks,
    assemble=_assemble,
    plot=_plot,
    extras={"transformers": "transformers"},
    devices=True,
)
