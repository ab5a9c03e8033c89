"""A pretrained language model, compressed in several ways and healed: what ``minilm`` and ``stories`` share.

A :class:`Study` says which model and texts a recipe takes, and what a compressed model is judged by. The tasks are
then the same: sizes, sensitivities beside brute force, and every way at its budgets. A layer as circuits is the
recipe's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from unbraid.ground.devices import moved
from unbraid.ground.errors import InvalidInputError
from unbraid.nn import InputMoments, depth_trends, describe_depth, input_moments, model_bytes, quantize
from unbraid.nn.calibration import linear_layers
from unbraid.nn.kinds import matrix_of
from unbraid.nn.targets import expression
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
from unbraid.recipes.language import LanguageModel, find_model, find_text, hashes, open_language_model, read_text
from unbraid.recipes.recipe import Request, Row, Section, Task, make_row, with_spread

ORIGINAL, SCAN, BRUTE, CIRCUITS, PROFILE = "original", "scan", "brute force", "circuits", "profile"
OURS, BASELINE = "operators, data-aware, allocated, gauge fixed", "low rank"
BITS = (8, 4)

Judge = Callable[[nn.Module], dict[str, float]]


@dataclass(frozen=True)
class Settings:
    """What the results of every such recipe depend on.

    Attributes:
        budgets: parameters of the compressed layers over those of their weights.
        compared: budgets at which more ways are compared than ours and the plain low rank.
        length: tokens of a sample, at most.
        train: samples to heal on, at most.
        calibration: samples for the moments.
        scanned: samples for the sensitivities.
        bonds: of the sensitivities that are compared with brute force.
        profiled: of those that the budget is spent by.
        batch_size: samples.
        epochs: passes of the healing.
        sliced_epochs: those of them that go slice by slice, where any do.
        lr: peak learning rate of the whole, without passes slice by slice.
        sliced_lr: that of the passes slice by slice.
        rest_lr: that of the passes behind those.
        optimizer: of all passes, by name.
        scheduler: likewise.
    """

    budgets: tuple[float, ...]
    compared: tuple[float, ...]
    length: int
    train: int
    calibration: int
    scanned: int
    bonds: tuple[int, ...]
    profiled: tuple[int, ...]
    batch_size: int
    epochs: int
    sliced_epochs: int
    lr: float
    sliced_lr: float
    rest_lr: float
    optimizer: str
    scheduler: str


@dataclass(frozen=True)
class Material:
    """What every task works with, in batches on the device.

    Attributes:
        language: the original.
        calibration: for the moments.
        scanned: for the sensitivities.
        train: to heal on.
        validation: to choose the pass by.
        held: what networks are judged on.
    """

    language: LanguageModel
    calibration: list[Any]
    scanned: list[Any]
    train: list[Any]
    validation: list[Any]
    held: Any

    @property
    def targets(self) -> str:
        """The layers of all blocks, as a regular expression."""
        return self.language.targets

    def moments(self) -> dict[str, InputMoments]:
        """Of inputs and slopes of the layers."""
        language = self.language
        return input_moments(language.model, self.calibration, targets=self.targets, task=language.task, slopes=True)


@dataclass(frozen=True)
class Study:
    """One recipe; functions are of modules, for other processes.

    Attributes:
        name: of the model's folder.
        package: that carries it, if any.
        texts: files below the data folder, by part.
        material: called as material(request, language, texts), texts by part.
        judge: called as judge(material); gives what measures a network.
        loss: called as loss(material); gives what is compared with the sensitivities.
        causal: whether models must be, or must embed sentences.
        figure: the one of the judge's figures that ``values`` are.
        digits: of figures in tables.
        ways: that are compared at some budgets, beside ours and the plain low rank, which are at all.
    """

    name: str
    package: str | None
    texts: Mapping[str, str]
    material: Callable[[Request, LanguageModel, dict[str, str]], Material]
    judge: Callable[[Material], Judge]
    loss: Callable[[Material], Callable[[nn.Module], float]]
    causal: bool
    figure: str
    digits: int
    ways: tuple[str, ...] = tuple(WAYS)

    def title(self, request: Request) -> str:
        """The model's name."""
        return self.name if request.model is None else request.model.name

    def folder(self, request: Request) -> Path:
        """Where the model lies.

        Raises:
            InvalidInputError: if it is nowhere.
        """
        return request.model or find_model(self.name, request.data_dir, self.package)

    def files(self, request: Request) -> dict[str, Path]:
        """The texts, by part.

        Raises:
            InvalidInputError: if there is no data folder, or one is not in it.
        """
        if request.data_dir is None:
            raise InvalidInputError(
                f"reproduce {request.recipe} needs text: give the folder that holds {', '.join(self.texts.values())} "
                "with --data-dir."
            )
        return {part: find_text(request.data_dir, name, f"{part}.txt") for part, name in self.texts.items()}

    def hashes(self, request: Request) -> dict[str, str]:
        """SHA-256 sums of all that is read."""
        return hashes(self.folder(request), {self.texts[part]: file for part, file in self.files(request).items()})

    def open(self, request: Request) -> Material:
        """Read the model and the texts.

        Raises:
            InvalidInputError: if the model is of the other kind.
        """
        language = open_language_model(self.folder(request), request.device)
        if language.causal != self.causal:
            kinds = ("encoders, whose sentence vectors are means over tokens", "causal language models")
            raise InvalidInputError(
                f"reproduce {request.recipe} takes {kinds[self.causal]}; {self.folder(request)} holds a "
                f"{type(language.model).__name__}."
            )
        return self.material(request, language, {part: read_text(path) for part, path in self.files(request).items()})


def run_original(request: Request, study: Study) -> dict[str, Any]:
    """Sizes and figures of the original, also as integers."""
    given = study.open(request)
    model, judge = given.language.model, study.judge(given)
    weights = sum(matrix_of(layer).numel() for layer in linear_layers(model, given.targets).values())
    sizes = {"parameters": count(model), "compressed": weights, "bytes": model_bytes(model)}
    return sizes | {"figures": judge(model), "integers": _integers_of(model, given, judge)}


def _integers_of(model: nn.Module, given: Material, judge: Judge) -> dict[str, Any]:
    found = {}
    for bits in BITS:
        small = quantize(model, given.targets, bits=bits)
        found[str(bits)] = {"bytes": model_bytes(small), **judge(small)}
    return found


def run_scan(request: Request, study: Study) -> list[dict[str, Any]]:
    """The sensitivity of every layer."""
    given = study.open(request)
    language, bonds = given.language, request.settings.bonds
    return profiled(language.model, given.scanned, language.task, given.targets, bonds)


def run_profile(request: Request, study: Study) -> list[dict[str, Any]]:
    """The sensitivity of every layer to operators that keep its outputs as the loss sees them."""
    given = study.open(request)
    language, bonds = given.language, request.settings.profiled
    return profiled(language.model, given.scanned, language.task, given.targets, bonds, given.moments())


def run_brute_force(request: Request, study: Study) -> dict[str, list[float]]:
    """The growth of the loss with each layer at each bond alone, on the samples of the scan."""
    given = study.open(request)
    model, loss = given.language.model, study.loss(given)
    return brute_force(model, given.targets, request.settings.bonds, lambda: loss(model))


def run_way(
    request: Request,
    profile: list[dict[str, Any]],
    study: Study,
    way: str,
    budget: float,
    seed: int,
    checkpoint_dir: Path,
) -> dict[str, Any]:
    """Compress in one way, heal; figures before and after, and as integers."""
    settings: Settings = request.settings
    given = study.open(request)
    language, chosen, judge = given.language, WAYS[way], study.judge(given)
    moments = given.moments() if chosen.aware else {}
    model = compressed(language.model, chosen, budget, given.targets, moments, profile_from(profile))
    if not language.causal:
        for name, parameter in model.named_parameters():  # a table of all words learns little from few
            parameter.requires_grad_(expression(given.targets).fullmatch(name) is not None)
    student = healed(
        model,
        language.model,
        chosen,
        language.task,
        given.train,
        given.validation,
        language.blocks,
        epochs=settings.epochs,
        sliced_epochs=settings.sliced_epochs,
        lr=settings.lr,
        sliced_lr=settings.sliced_lr,
        rest_lr=settings.rest_lr,
        optimizer=settings.optimizer,
        scheduler=settings.scheduler,
        seed=seed,
        checkpoint_dir=checkpoint_dir,
    )
    found = {
        "before": judge(model),
        "healed": judge(student),
        "parameters": count(student),
        "bytes": model_bytes(student),
        "integers": _integers_of(student, given, judge),
    }
    batch = moved(given.validation[len(given.validation) // 2], "cpu")
    return found | {"time": relative_time(student, language.model, lambda each: language.task.outputs(each, batch))}


def tasks_of(request: Request, study: Study, circuits: Callable[..., Any]) -> list[Task]:
    """All tasks of a recipe; ``circuits(request)`` is its own."""
    settings: Settings = request.settings
    read = study.hashes(request)
    alone = {ORIGINAL: run_original, SCAN: run_scan, PROFILE: run_profile, BRUTE: run_brute_force}
    tasks = [Task(name, partial(run, study=study), depends=read) for name, run in alone.items()]
    tasks.append(Task(CIRCUITS, circuits, depends=read))
    pairs = [(way, budget) for budget in settings.budgets for way in (OURS, BASELINE)]
    pairs += [(way, budget) for budget in settings.compared for way in study.ways if way not in (OURS, BASELINE)]
    for way, budget in pairs:
        for seed in range(request.seeds):
            arguments = {"way": way, "budget": budget, "seed": seed}
            run = partial(run_way, study=study)
            tasks.append(Task(_named(way, budget, seed), run, arguments, after=PROFILE, depends=read, resumes=True))
    return tasks


def _named(way: str, budget: float, seed: int) -> str:
    return f"{way} {budget:g} seed {seed}"


def rows_of(request: Request, study: Study, results: Mapping[str, Any]) -> list[Row]:
    """One a way and budget."""
    rows = []
    for budget in request.settings.budgets:
        for way, chosen in WAYS.items():
            names = [_named(way, budget, seed) for seed in range(request.seeds)]
            if not all(name in results for name in names):
                continue
            found = [results[name] for name in names]
            row = make_row(
                f"{way}, {budget:.0%}",
                chosen.kind,
                [each["healed"][study.figure] for each in found],
                seeds=range(request.seeds),
                parameters=found[0]["parameters"],
                description=chosen.meaning,
                budget=budget,
                way=way,
                before=[each["before"] for each in found],
                healed=[each["healed"] for each in found],
                bytes=found[0]["bytes"],
                integers=[each["integers"] for each in found],
                time=[each["time"] for each in found],
            )
            rows.append(row)
    return rows


def told_of_layers(request: Request, results: Mapping[str, Any]) -> str:
    """How well sensitivities agree with brute force, and how they change with depth, as sentences."""
    profile = profile_from(results[SCAN])
    agreed = agreement(profile, results[BRUTE])
    return (
        "Sensitivities estimated in three passes agree with brute force (every layer at "
        f"{len(request.settings.bonds)} bonds alone) at a Spearman correlation of {agreed:.3f}. "
        f"{describe_depth(depth_trends(profile))}"
    )


def sensitivities_of(results: Mapping[str, Any]) -> Section:
    """How much the loss grows with each layer at each bond alone: estimated, and by brute force."""
    profile, measured = profile_from(results[SCAN]), results[BRUTE]
    cells = []
    for layer in profile:
        pairs = zip(layer.points, measured[layer.name], strict=True)
        told = (f"{point.growth:.2g} / {growth:.2g}" for point, growth in pairs)
        cells.append((layer.name, "x".join(map(str, layer.shape)), *told))
    return Section(
        ("layer", "shape", *(f"bond {point.max_bond}" for point in profile[0].points)),
        tuple(cells),
        heading="How much each layer bears",
        note="Growth of the loss with one layer alone as a low rank: estimated in three passes / measured one by one.",
    )


def extra_of(request: Request, study: Study, results: Mapping[str, Any]) -> dict[str, Any]:
    """Further keys of the JSON file."""
    profile = profile_from(results[SCAN])
    return {
        "files": study.hashes(request),
        "original": results[ORIGINAL],
        "sensitivity": {
            "spearman": agreement(profile, results[BRUTE]),
            "profile": results[SCAN],
            "measured": results[BRUTE],
        },
        "depth": [asdict(trend) for trend in depth_trends(profile)],
        "circuits": results[CIRCUITS],
    }


def table_of(rows: Sequence[Row], original: Mapping[str, Any], study: Study) -> Section:
    """Sizes, and figures before and after healing."""
    figures = list(original["figures"])

    def told(found: Sequence[Mapping[str, float]]) -> list[str]:
        return [with_spread([each[figure] for each in found], study.digits) for figure in figures]

    unchanged = ["-"] * len(figures)
    sizes = (f"{original['parameters']:,}", _megabytes(original["bytes"]))
    cells = [("original", *sizes, *unchanged, *told([original["figures"]]), "1")]
    cells += [
        (
            row["name"],
            f"{row['parameters']:,}",
            _megabytes(row["bytes"]),
            *told(row["before"]),
            *told(row["healed"]),
            f"{mean(row['time']):.2f}",
        )
        for row in rows
    ]
    heads = [*(f"{figure}, not healed" for figure in figures), *(f"{figure}, healed" for figure in figures)]
    columns = ("way, parameters kept", "parameters", "MB", *heads, "time")
    return Section(
        columns,
        tuple(cells),
        details=("as published", *(row["description"] for row in rows)),
        note="MB: of all numbers, as a safetensors file holds them beside a header of some kB.",
    )


def integers_of(rows: Sequence[Row], original: Mapping[str, Any], study: Study) -> Section:
    """Sizes and figures as integers."""
    figures = list(original["figures"])
    cells = []
    for name, each in (("original", [original["integers"]]), *((row["name"], row["integers"]) for row in rows)):
        for bits in map(str, BITS):
            found = [integers[bits] for integers in each]
            told = (with_spread([one[figure] for one in found], study.digits) for figure in figures)
            cells.append((name, bits, _megabytes(found[0]["bytes"]), *told))
    return Section(
        ("way, parameters kept", "bits", "MB", *figures),
        tuple(cells),
        heading="Healed, then stored as integers",
        note="The blocks' linear layers as integers of so many bits; word table and norms stay in single precision.",
    )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.3g}"


def plot_by_budget(path: Path, rows: Sequence[Row], title: str, height: Callable[[float], float]) -> None:
    """A curve a way: what was measured, as ``height`` shows it, against the budget."""
    from unbraid.report.plots import plot_points, save_png

    curves: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        curves.setdefault(row["way"], []).append((row["budget"], height(row["mean"])))
    save_png(path, lambda ax: plot_points(curves, "parameters of the layers kept", title, ax=ax))
