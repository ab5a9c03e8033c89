"""``unbraid reproduce stories``: a small pretrained Llama compressed and healed, and one of its layers as circuits.

The linear layers of all blocks are compressed in several ways to the same number of parameters and healed on the
training text towards the original's next-token probabilities. What counts is the perplexity on held-out text. One layer
is also disentangled at several depths and gate widths around a core of bond 1, without healing.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn

from unbraid.circuits import brickwall
from unbraid.disentangling import Disentangled
from unbraid.nn import MPOLinear, disentangle_layers, tensorize
from unbraid.nn.calibration import linear_layers
from unbraid.nn.kinds import matrix_of
from unbraid.nn.targets import exactly
from unbraid.recipes.compressing import mean
from unbraid.recipes.language import LanguageModel, document_tokens, perplexity, token_rows
from unbraid.recipes.pretrained import (
    CIRCUITS,
    ORIGINAL,
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

PARTS = ("train", "valid", "test")


@dataclass(frozen=True)
class Settings(Common):
    """What the results depend on; samples are rows of tokens.

    Attributes:
        documents: of a held-out text, at most.
        bodies: qubits of the gates of the disentangled layer.
        depths: layers of gates a side.
        sweeps: of the disentangling, at most.
    """

    budgets: tuple[float, ...] = (0.7, 0.5, 0.3)
    compared: tuple[float, ...] = (0.7, 0.5, 0.3)
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
    optimizer: str = "adam"
    scheduler: str = "onecycle"
    bodies: tuple[int, ...] = (2, 3, 4, 5)
    depths: tuple[int, ...] = (1, 2, 4)
    sweeps: int = 200


QUICK = Settings(
    budgets=(0.5,),
    compared=(0.5,),
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


def _material(request: Request, language: LanguageModel, texts: dict[str, str]) -> Material:
    settings: Settings = request.settings
    rows = {part: token_rows(language.tokenizer, texts[part], settings.length) for part in ("train", "valid")}
    train = rows["train"][: settings.train]
    batches = partial(language.batches, length=settings.length, batch_size=settings.batch_size)
    return Material(
        language,
        calibration=batches(train[: settings.calibration]),
        scanned=batches(train[: settings.scanned]),
        train=batches(train),
        validation=batches(rows["valid"]),
        held={
            part: document_tokens(language.tokenizer, texts[part])[: settings.documents] for part in ("valid", "test")
        },
    )


def _judge(given: Material) -> Judge:
    return lambda model: {part: perplexity(model, documents) for part, documents in given.held.items()}


def _loss(given: Material) -> Callable[[nn.Module], float]:
    task = given.language.task
    return lambda model: mean([float(task.loss(model, batch)) for batch in given.scanned])


STUDY = Study(
    name="stories260k",
    package=None,
    texts={part: f"text/stories260k/{part}.txt" for part in PARTS},
    material=_material,
    judge=_judge,
    loss=_loss,
    causal=True,
    figure="test",
    digits=3,
)


def run_circuits(request: Request) -> dict[str, Any]:
    """One layer disentangled around a core of bond 1: perplexity by width and depth of the gates, nothing healed."""
    settings: Settings = request.settings
    given = STUDY.open(replace(request, device="cpu"))  # where small tensors are faster
    original = given.language.model
    name = _middle_layer(given.language)
    shape = matrix_of(original.get_submodule(name)).shape
    sides = [qubits_for(size) for size in shape]
    whole = tensorize(original, exactly([name]), sites="qubits")
    found = []
    for body in [each for each in settings.bodies if each <= min(sides)]:
        for depth in settings.depths:
            results: dict[str, Disentangled] = {}
            output, inward = (brickwall(qubits, depth, body, parity="auto") for qubits in sides)
            geometry = output if shape[0] == shape[1] else (output, inward)
            model = disentangle_layers(whole, exactly([name]), geometry, max_sweeps=settings.sweeps, results=results)
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
    truncated = tensorize(original, exactly([name]), sites="qubits", max_bond=1)
    product = truncated.get_submodule(name)
    assert isinstance(product, MPOLinear)
    removed = copy.deepcopy(original)
    removed.get_submodule(name).weight.data.zero_()  # type: ignore[union-attr, operator]
    return {
        "layer": name,
        "shape": list(shape),
        "circuits": found,
        "original": perplexity(original, given.held["valid"]),
        "truncated": perplexity(truncated, given.held["valid"]),
        "truncated_core": product.mpo.num_parameters,
        "removed": perplexity(removed, given.held["valid"]),
        "dense": math.prod(shape),
    }


def _middle_layer(language: LanguageModel) -> str:
    """The first layer of the middle block."""
    blocks = language.blocks
    return next(iter(linear_layers(language.model, blocks[len(blocks) // 2].replace(".", r"\.") + r"\..*")))


def _tasks(request: Request) -> list[Task]:
    return tasks_of(request, STUDY, run_circuits)


def _assemble(request: Request, results: Mapping[str, Any]) -> Outcome:
    original, rows = results[ORIGINAL], rows_of(request, STUDY, results)
    return Outcome(
        title=f"A language model ({STUDY.title(request)}), compressed",
        note=(
            f"The blocks' linear layers have {original['compressed']:,} of {original['parameters']:,} parameters. "
            f"Healed on the training text, {request.settings.epochs} passes, towards the original's probabilities. "
            "Perplexity of held-out documents, each by itself; the pass was chosen on the validation part, test was "
            "looked at once. Time: of a batch on the CPU, over the original's. "
            f"{told_of_layers(request, results)}"
        ),
        rows=rows,
        sections=(
            table_of(rows, original, STUDY),
            integers_of(rows, original, STUDY),
            sensitivities_of(results),
            _circuits(results[CIRCUITS]),
        ),
        extra=extra_of(request, STUDY, results),
    )


def _circuits(found: Mapping[str, Any]) -> Section:
    exact, (rows, columns) = found["original"], found["shape"]

    def told(value: float) -> str:
        return f"{value:.4f} ({100 * (value / exact - 1):+.2f} %)"

    cells = [
        ("removed", "-", "0", "0", "0", "-", told(found["removed"])),
        ("truncated, no circuits", "-", f"{found['truncated_core']:,}", "0", "0", "-", told(found["truncated"])),
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
        note=f"{found['layer']}, {columns} -> {rows}, {found['dense']:,} weights; validation part.",
    )


RECIPE = Recipe(
    settings=Settings(),
    quick=QUICK,
    seeds=1,
    quick_seeds=1,
    data=None,
    tasks=_tasks,
    assemble=_assemble,
    plot=partial(plot_by_budget, title="loss on test, healed (nats)", height=math.log),
    extras={"transformers": "transformers"},
    devices=True,
    models=True,
)
