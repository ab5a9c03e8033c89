"""The networks along a job on a language model: judged on held-out samples of a text, healed towards the original."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unbraid.disentangling import Disentangled
from unbraid.ground.errors import InvalidInputError
from unbraid.nn import Task, heal_slices
from unbraid.nn.calibration import batch_size
from unbraid.nn.modes import keeping_modes
from unbraid.nn.targets import expression
from unbraid.recipes.compressing import distil
from unbraid.recipes.language import LanguageModel, embed, read_text, similarity
from unbraid.recipes.steps import Steps
from unbraid.report import Report

SLICED_RATE = 3  # a slice alone bears a higher learning rate than the whole
_HELD = 10  # one sample in so many is not trained on


@dataclass(frozen=True)
class TextSamples:
    """Samples of a text in batches.

    Attributes:
        train: to heal on, and to calibrate with.
        held: to choose the pass by, and to judge by.
        told: of what they are, for the manifest.
    """

    train: list[Any]
    held: list[Any]
    told: dict[str, Any]


def split_text(language: LanguageModel, path: Path, count: int, length: int) -> TextSamples:
    """The beginning of a text; the last tenth of the samples is held out.

    Args:
        language: the model that will read them.
        path: of the text file.
        count: samples, at most.
        length: tokens of each, at most.

    Raises:
        InvalidInputError: if the file cannot be read, or holds too few samples.
    """
    samples = language.samples(read_text(path), count, length)
    held = len(samples) // _HELD
    least = 1 if language.causal else 3  # similarities are compared over pairs of sentences
    if held < least:
        what = f"rows of {length} tokens" if language.causal else "sentences"
        raise InvalidInputError(
            f"Healing on a text takes {_HELD * least} {what} or more, a tenth of them to judge by; got {len(samples)}. "
            "Give more text, or a higher --samples."
        )
    cut = len(samples) - held
    train, rest = (language.batches(part, length) for part in (samples[:cut], samples[cut:]))
    return TextSamples(train, rest, {"name": path.name, "samples": len(samples), "held": held, "tokens": length})


def match_modules(model: nn.Module, pattern: str) -> list[str]:
    """Names of the modules that a regular expression matches, whole or behind a dot, in the order of the model.

    Raises:
        InvalidInputError: if there are none, or it is no expression.
    """
    matches = expression(pattern).fullmatch
    found = [name for name, _ in model.named_modules() if name and matches(name)]
    if not found:
        kinds = dict.fromkeys(re.sub(r"(?<![^.])\d+(?![^.])", r"\\d+", name) for name, _ in model.named_modules())
        near = [kind for kind in kinds if kind.endswith("d+")]
        raise InvalidInputError(
            f"No module matches the slices {pattern!r}. Blocks of this model: {', '.join(near) or 'none'}."
        )
    return found


@dataclass(kw_only=True)
class LanguageSteps(Steps):
    """Collects one entry a network, as :class:`Steps` does; held-out samples take the place of a test part.

    Attributes:
        language: the original, towards which networks are healed.
        text: samples of it.
        slices: names of modules that are healed one by one before the whole; none for no such passes.
        measured: by quantity ("perplexity", or "cosine" and "spearman" of sentence vectors with the original's), by the
            name of the step.
    """

    language: LanguageModel
    text: TextSamples
    slices: list[str]
    measured: dict[str, dict[str, float]] = field(default_factory=dict)
    _exact: Tensor | None = None  # sentence vectors of the original

    def calibration(self) -> tuple[list[Any], Task]:
        """What a network can be run on, and what its outputs are."""
        return self.text.train, self.language.task

    def add(self, name: str, model: nn.Module) -> None:
        """Note a network.

        Raises:
            InvalidInputError: if it cannot run on the text.
        """
        super().add(name, model)
        for quantity, value in self._judged(model).items():
            self.measured.setdefault(quantity, {})[name] = value

    @torch.no_grad()
    def _judged(self, model: nn.Module) -> dict[str, float]:
        held, task = self.text.held, self.language.task
        if self.language.causal:
            with keeping_modes(model):
                model.eval()
                losses = [task.losses(task.run(model, batch), batch[:, 1:]).double() for batch in held]
            return {"perplexity": math.exp(min(float(torch.cat(losses).mean()), 700.0))}
        if self._exact is None:
            self._exact = embed(self.language.model, held)
        cosine, spearman = similarity(embed(model, held), self._exact)
        return {"cosine": cosine, "spearman": spearman}

    def heal(self, name: str, model: nn.Module, epochs: int, lr: float, checkpoint_dir: str | os.PathLike[str]) -> None:
        """Heal towards the original, and note the network.

        With slices half of the passes, one at least, go slice by slice before those of the whole, at SLICED_RATE times
        the rate. An interrupted healing goes on where its checkpoint is.
        """
        original, task, place = self.language.model, self.language.task, Path(checkpoint_dir)
        sliced = max(1, epochs // 2) if self.slices else 0
        if sliced:
            heal_slices(
                model,
                original,
                self.text.train,
                self.slices,
                epochs=sliced,
                lr=SLICED_RATE * lr,
                task=task,
                checkpoint_dir=place / "slices",
                seed=self.seed,
                optimizer=self.optimizer,
            )
        self.histories[name] = distil(
            model,
            original,
            task,
            self.text.train,
            self.text.held,
            epochs=max(1, epochs - sliced),
            lr=lr,
            seed=self.seed,
            optimizer=self.optimizer,
            slices=self.slices,
            checkpoint_dir=place,
        )
        self.add(name, model)

    def report(self, title: str, results: Mapping[str, Disentangled] | None = None) -> Report:
        """The report of all steps, with what was measured in its extras."""
        report = super().report(title, results)
        report.manifest["data"] = self.text.told
        held = sum(batch_size(batch) for batch in self.text.held)
        report.extra["held_out"] = {"samples": held, **self.measured}
        report.notes.append(
            f"Measured on {held} held-out {'rows of tokens' if self.language.causal else 'sentences'} of the text. The "
            "pass of the healing was chosen on the same ones, so take other text for a test."
        )
        return report

    def facts(self) -> list[tuple[str, str]]:
        """(name, value) pairs for people."""
        shown = {"perplexity": "perplexity", "cosine": "mean cosine", "spearman": "Spearman, all pairs"}
        return [
            (f"{shown[quantity]}, held-out text", ", ".join(f"{value:.4f} {name}" for name, value in values.items()))
            for quantity, values in self.measured.items()
        ]
