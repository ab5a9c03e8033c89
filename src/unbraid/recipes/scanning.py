"""``unbraid scan``: layers, sensitivities, an allocation, entanglement, as tables, a report and an allocation file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unbraid.ground.errors import FileFormatError, InvalidInputError
from unbraid.ground.files import read_json, write_json
from unbraid.ground.manifest import build_manifest
from unbraid.nn import (
    Allocation,
    LayerScan,
    LayerSensitivity,
    Task,
    allocate,
    attention_entropies,
    classification,
    depth_trends,
    describe_depth,
    entanglement_profiles,
    scan,
)
from unbraid.nn.calibration import linear_layers
from unbraid.nn.kinds import matrix_of
from unbraid.nn.surgery import choose_sites, refuse_shared_weights
from unbraid.nn.targets import LayerOptions, Targets, check_budget
from unbraid.recipes.datasets import Dataset
from unbraid.recipes.language import LanguageModel, read_text
from unbraid.report import Report
from unbraid.tensors.sites import align

ALLOCATION_NAME = "allocation.json"
_FORMAT = "unbraid-allocation"
_ATTENTION_TOKENS = 64
_ATTENTION_ROWS = 4
_COLUMNS = 6  # of bonds in a table for people: what 80 columns hold beside names; the report has all

Table = list[tuple[str, ...]]


@dataclass(frozen=True)
class Samples:
    """What a network runs on while it is scanned.

    Attributes:
        task: what its outputs are.
        batches: for the task.
        tokens: rows of equal length without padding, for attention; None where the network is no language model.
        told: of what they are, for the manifest.
    """

    task: Task
    batches: list[Any]
    tokens: Tensor | None
    told: dict[str, Any]


def samples_of_dataset(dataset: Dataset, count: int, batch_size: int = 32) -> Samples:
    """The first rows of the training part, with their labels."""
    x, y = (part[:count] for part in dataset.train)
    batches = list(zip(x.split(batch_size), y.split(batch_size), strict=True))
    return Samples(classification(), batches, None, dataset.describe() | {"samples": len(y)})


def samples_of_text(language: LanguageModel, path: Path, count: int, length: int) -> Samples:
    """The beginning of a text file: rows of tokens, or sentences.

    Raises:
        InvalidInputError: if the file cannot be read, or is too short.
    """
    text = read_text(path)
    batches = language.batches(language.samples(text, count, length), length)
    beginning = text[: 40 * _ATTENTION_TOKENS]
    ids = torch.tensor(language.tokenizer(beginning, add_special_tokens=False, verbose=False)["input_ids"])
    most = min(_ATTENTION_TOKENS, language.longest)
    rows = min(_ATTENTION_ROWS, len(ids) // most)
    tokens = ids[: rows * most].reshape(rows, -1).to(language.device) if rows else None
    return Samples(language.task, batches, tokens, {"name": path.name, "samples": count, "tokens": length})


@dataclass(frozen=True)
class Scanned:
    """What a scan found.

    Attributes:
        report: with all of it.
        prefix: that the names of all layers begin with; tables leave it out.
        tables: for people.
        sites: of the operators.
        allocation: of a budget, if there was one.
    """

    report: Report
    prefix: str
    tables: list[Table]
    sites: str
    allocation: Allocation | None

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write the report, and ``allocation.json`` if there is an allocation."""
        self.report.save(directory)
        if self.allocation is not None:
            content = {"format": _FORMAT, "sites": self.sites, "layer_options": self.allocation.options}
            write_json(Path(directory) / ALLOCATION_NAME, content)


def read_allocation(path: str | os.PathLike[str]) -> tuple[str, dict[str, dict[str, Any]]]:
    """Sites and ``layer_options`` from a file that a scan wrote.

    Raises:
        FileFormatError: if it is none.
    """
    content = read_json(Path(path))
    try:
        if content["format"] != _FORMAT:
            raise ValueError(content["format"])
        sites, options = str(content["sites"]), dict(content["layer_options"])
        for each in options.values():
            LayerOptions(**each)
    except (KeyError, TypeError, ValueError) as error:
        raise FileFormatError(f"{path} is no allocation that `unbraid scan --budget` wrote: {error!r}.") from error
    return sites, options


def scan_model(
    model: nn.Module,
    targets: Targets,
    sites: str,
    samples: Samples | None,
    *,
    budget: float | None = None,
    base: nn.Module | None = None,
    entanglement: bool = False,
    seed: int = 0,
    title: str = "Scan",
) -> Scanned:
    """Scan a model; see :func:`unbraid.scan`.

    Args:
        model: any module.
        targets: which layers.
        sites: of the operators.
        samples: to run it on; without them nothing is told of the loss.
        budget: of all layers, to be allocated.
        base: a model of the same layers, whose differences are profiled.
        entanglement: whether to profile the weights.
        seed: of the outputs drawn.
        title: of the report.
    """
    if budget is not None:
        _check_budget(model, targets, sites, budget)
    found = scan(
        model,
        None if samples is None else samples.batches,
        targets=targets,
        sites=sites,
        task=None if samples is None else samples.task,
        seed=seed,
    )
    profile = [LayerSensitivity(each.name, each.shape, each.parameters, each.sensitivity) for each in found]
    prefix = _common_prefix([layer.name for layer in found])
    notes = _verdicts(found)
    tables = [_layers(found)]
    extra: dict[str, Any] = {}
    allocation = None
    if samples is not None:
        tables.append(_sensitivities(profile))
        trends = depth_trends(profile)
        notes.append(describe_depth(trends))
        extra["depth"] = [{"kind": t.kind, "growth": t.growth, "correlation": t.correlation} for t in trends]
    if budget is not None:
        allocation = allocate(profile, budget)
        tables.append(_allocated(profile, allocation))
        notes.append(
            f"At {budget:.0%} of the weights the loss is expected to grow by {allocation.growth:.3g} before healing."
        )
        extra["allocation"] = {"budget": budget, "growth": allocation.growth, "options": allocation.options}
    if entanglement:
        extra["entanglement"] = _entanglement(model, targets, base, samples)
    report = Report(
        title=title,
        layers=[layer.to_dict() for layer in found],
        notes=notes,
        extra=extra,
        manifest=build_manifest(
            seeds={"seed": seed},
            data=None if samples is None else samples.told,
            device=next((parameter.device for parameter in model.parameters()), "cpu"),
        ),
    )
    short = [[(row[0].removeprefix(prefix), *row[1:]) for row in table] for table in tables]
    return Scanned(report, prefix, short, sites, allocation)


def _check_budget(model: nn.Module, targets: Targets, sites: str, budget: float) -> None:
    """Refuse, before any work, a budget that nothing could be compressed to."""
    check_budget(budget)
    layers = linear_layers(model, targets)
    refuse_shared_weights(model, layers)
    total, least = 0, 0
    for layer in layers.values():
        rows, columns = matrix_of(layer).shape
        smallest = sum(out * leg for out, leg in zip(*align(*choose_sites(sites, rows, columns)), strict=True))
        total, least = total + rows * columns, least + min(smallest, rows * columns)
    if least > budget * total:
        raise InvalidInputError(
            f"A budget of {budget} leaves {int(budget * total):,} entries, and with all bonds 1 the layers have "
            f"{least:,}. Allow more, or choose other sites."
        )


def _common_prefix(names: Sequence[str]) -> str:
    """What all names begin with, up to a dot; nothing of a single name."""
    parts = zip(*(name.split(".")[:-1] for name in names), strict=False)
    shared = takewhile(lambda each: len(set(each)) == 1, parts)
    return "".join(f"{each[0]}." for each in shared) if len(names) > 1 else ""


def _verdicts(found: Sequence[LayerScan]) -> list[str]:
    """One sentence for all layers that it is true of."""
    said: dict[str, list[str]] = {}
    for layer in found:
        said.setdefault(layer.verdict, []).append(layer.name or "the model")
    return [
        f"{f'{len(names)} layers' if len(names) > 1 else names[0]}: {sentence}." for sentence, names in said.items()
    ]


def _layers(found: Sequence[LayerScan]) -> Table:
    errors = "/".join(f"{100 * rank.rel_error:g}" for rank in found[0].ranks)
    rows = [
        (
            layer.name or "(the model)",
            "x".join(map(str, layer.shape)),
            "x".join(map(str, layer.qubits)),
            "/".join(str(max(rank.bond_dims, default=1)) for rank in layer.ranks),
            f"{sum(layer.entropies):.1f}/{sum(layer.maximum_entropies):.1f}",
            f"{layer.cnots['preparation']}+{layer.cnots['layer']}",
        )
        for layer in found
    ]
    head = ("layer", "shape", "qubits", f"bond at\n{errors} %", "entropy\n/ maximum", "CNOTs,\ninput\n+ layer")
    return [head, *rows]


def _sensitivities(profile: Sequence[LayerSensitivity]) -> Table:
    caps = sorted({point.max_bond for layer in profile for point in layer.points})
    most = min(_COLUMNS, len(caps))
    shown = [caps[k * (len(caps) - 1) // max(most - 1, 1)] for k in range(most)]
    rows = []
    for layer in profile:
        growths = {point.max_bond: point.growth for point in layer.points}
        cells = (f"{growths[cap]:.2g}" if cap in growths else "-" for cap in shown)
        rows.append((layer.name or "(the model)", *cells))
    return [("loss grows by, at bond", *map(str, shown)), *rows]


def _allocated(profile: Sequence[LayerSensitivity], allocation: Allocation) -> Table:
    rows = []
    for layer in profile:
        options = allocation.options.get(layer.name)
        rows.append((layer.name or "(the model)", "dense" if options is None else f"{options['budget']:.1%}"))
    return [("layer", "of its weights"), *rows]


def _entanglement(
    model: nn.Module, targets: Targets, base: nn.Module | None, samples: Samples | None
) -> dict[str, Any]:
    content: dict[str, Any] = {
        "layers": [layer.to_dict() for layer in entanglement_profiles(model, targets, base=base, order="vector")]
    }
    network: Any = model
    if samples is not None and samples.tokens is not None and hasattr(model, "set_attn_implementation"):
        before = network.config._attn_implementation
        network.set_attn_implementation("eager")  # the only one that forms the matrices
        try:
            lengths = [length for length in (8, 16, 32, 64) if length <= samples.tokens.shape[1]]
            found = attention_entropies(network, samples.tokens, lengths=lengths)
            content["attention"] = [each.to_dict() for each in found]
        finally:
            network.set_attn_implementation(before)
    return content


def check_count(samples: int, length: int) -> None:
    """Refuse numbers of samples and tokens that make no sense.

    Raises:
        InvalidInputError: naming the option.
    """
    for value, name, least in ((samples, "--samples", 1), (length, "--length", 2)):
        if value < least:
            raise InvalidInputError(f"{name} must be at least {least}; got {value}.")
