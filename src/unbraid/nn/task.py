"""What a network is for: which outputs count, and how two sets of them differ.

Scans, calibration and distillation need three things of a network that a plain loss does not tell: outputs for each
sample, a distance between the outputs of two networks, and how that distance grows to second order. A :class:`Task`
names them for the two cases there are: class scores (cross entropy, Kullback-Leibler divergence) and vectors (squares).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, normalize

from unbraid.ground.errors import InvalidInputError, require_choice, require_finite
from unbraid.nn.hidden import check_run, check_shapes, check_slices, mask_of, recorded, squared_error, variance
from unbraid.nn.modes import keeping_modes

KINDS = ("classes", "vectors")


@dataclass(frozen=True)
class Lesson:
    """What a teacher puts out on a batch.

    Attributes:
        outputs: of the whole.
        slices: of modules within it, by name.
    """

    outputs: Tensor
    slices: Mapping[str, Tensor]

    def halved(self) -> Lesson:
        """Slices as bfloat16: to remember more of them. What is rounded off is little beside a student's error."""
        return Lesson(self.outputs, {name: each.to(torch.bfloat16) for name, each in self.slices.items()})

    @property
    def nbytes(self) -> int:
        """Of all tensors."""
        return self.outputs.nbytes + sum(each.nbytes for each in self.slices.values())


@dataclass(frozen=True)
class Task:
    """Which outputs of a network count, and as what.

    Attributes:
        kind: "classes": outputs are scores, shape (samples, ..., classes), compared by cross entropy averaged over
            positions. "vectors": shape (samples, ..., features), compared by half the squared distance, averaged over
            positions; of unit vectors that is one minus their cosine.
        outputs: called as outputs(model, batch).
        labels: class numbers of a batch, shape (samples, ...); None where there are none.

    Raises:
        InvalidInputError: for another kind, or labels with vectors.
    """

    kind: str
    outputs: Callable[[nn.Module, Any], Tensor]
    labels: Callable[[Any], Tensor] | None = None

    def __post_init__(self) -> None:
        require_choice(self.kind, KINDS, "kind")
        if self.kind == "vectors" and self.labels is not None:
            raise InvalidInputError("Only classes have labels; vectors are compared with those of the original.")

    def call(self, model: nn.Module, batch: Any) -> Any:
        """What ``outputs`` gives, whatever it is.

        Raises:
            InvalidInputError: if the model cannot run on the batch.
        """
        try:
            return self.outputs(model, batch)
        except InvalidInputError:
            raise
        except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
            raise InvalidInputError(f"The model cannot run on a batch of {_described(batch)}: {error}") from error

    def run(self, model: nn.Module, batch: Any) -> Tensor:
        """The outputs of a batch, checked.

        Raises:
            InvalidInputError: if the model cannot run on it, or its outputs are no finite floating-point tensor with
                samples first.
        """
        found = self.call(model, batch)
        if not isinstance(found, Tensor) or found.dim() < 2 or not found.is_floating_point():
            came = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise InvalidInputError(
                f"Outputs must be a tensor (samples, ..., {'classes' if self.kind == 'classes' else 'features'}); got "
                f"{came}. Give a Task whose outputs= takes them out of what the model returns."
            )
        require_finite(found.detach(), "The model's outputs")
        return found

    def probe(self, outputs: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A scalar whose squared change, on average, is twice that of the loss to second order.

        Args:
            outputs: of :meth:`run`, with gradients.
            generator: on the CPU.

        Returns:
            The scalar, summed over samples and positions; and the class numbers drawn from the model's probabilities
            (of vectors, the vectors themselves).

        Raises:
            InvalidInputError: if the outputs depend on no layer that is looked at.
        """
        exact = outputs.detach()
        if not outputs.requires_grad:
            raise InvalidInputError("The model's outputs do not depend on the layers: nothing can be told of them.")
        if self.kind == "vectors":
            probe = torch.randn(exact.shape, generator=generator, dtype=torch.float32).to(exact.device, exact.dtype)
            return (outputs * probe).sum(), exact
        probabilities = exact.softmax(-1).flatten(0, -2).float().cpu()
        drawn = torch.multinomial(probabilities, 1, generator=generator).reshape(exact.shape[:-1]).to(exact.device)
        return -self.losses(outputs, drawn).sum() * (drawn.numel() // len(drawn)), drawn

    def losses(self, outputs: Tensor, wanted: Tensor) -> Tensor:
        """One a sample, shape (samples,).

        Args:
            outputs: of :meth:`run`.
            wanted: class numbers, or the vectors of the original.
        """
        if self.kind == "classes":
            flat = cross_entropy(outputs.flatten(0, -2), wanted.flatten().long(), reduction="none")
            return flat.reshape(len(outputs), -1).mean(1)
        return (outputs - wanted).square().sum(-1).reshape(len(outputs), -1).mean(1) / 2

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Mean cross entropy against the labels, differentiable: a ``loss`` of :func:`unbraid.heal`.

        Raises:
            InvalidInputError: if there are no labels.
        """
        if self.labels is None:
            raise InvalidInputError("This task has no labels: heal against a teacher, task.distillation(teacher).")
        return self.losses(self.outputs(model, batch), self.labels(batch)).mean()

    def distillation(self, teacher: nn.Module, slices: Sequence[str] = ()) -> Callable[[nn.Module, Any], Tensor]:
        """A loss of :func:`unbraid.heal`: the mean distance to the teacher's outputs, 0 where they are equal.

        Of classes it is the Kullback-Leibler divergence from the teacher's probabilities; labels are not used.

        Args:
            teacher: the original.
            slices: names of modules that both have, blocks of a transformer say. The squared error of what each puts
                out, over the teacher's variance, counts too, averaged over slices: a target for every position and
                feature (hidden states as targets: Jiao et al., arXiv:1909.10351).

        Raises:
            InvalidInputError: if the teacher lacks a slice; when it is called, if the model does, or a slice puts out
                no tensor of the teacher's shape.
        """
        names = check_slices({"teacher": teacher}, slices) if slices else []

        def distilled(model: nn.Module, batch: Any) -> Tensor:
            return self.imitation(model, batch, self.lesson(teacher, batch, names))

        return distilled

    @torch.no_grad()
    def lesson(self, teacher: nn.Module, batch: Any, slices: Sequence[str] = ()) -> Lesson:
        """What the teacher puts out, in evaluation mode.

        Raises:
            InvalidInputError: if the teacher lacks a slice, or cannot run on the batch.
        """
        names = check_slices({"teacher": teacher}, slices) if slices else []
        with keeping_modes(teacher), recorded(teacher, names) as found:
            outputs = self.run(teacher.eval(), batch)
        check_run(names, found)
        return Lesson(outputs, found)

    def imitation(self, model: nn.Module, batch: Any, lesson: Lesson) -> Tensor:
        """The loss of :meth:`distillation`, with the teacher's part at hand.

        Raises:
            InvalidInputError: if the model lacks a slice, or one puts out no tensor of the teacher's shape.
        """
        names = check_slices({"model": model}, list(lesson.slices)) if lesson.slices else []
        with recorded(model, names) as found:
            value = self.distance(self.outputs(model, batch), lesson.outputs)
        check_run(names, found)
        for name, wanted in lesson.slices.items():
            check_shapes(name, found[name], wanted)
            wanted = wanted.to(found[name].dtype)
            mask = mask_of(batch, wanted)
            error = squared_error(found[name], wanted, mask) / variance([wanted], [mask])
            value = value + error / len(names)
        return value

    def distance(self, outputs: Tensor, original: Tensor) -> Tensor:
        """Mean distance of outputs from those of the original, a scalar."""
        if self.kind == "vectors":
            return self.losses(outputs, original).mean()
        logs, wanted = (each.flatten(0, -2).log_softmax(-1) for each in (outputs, original))
        return kl_div(logs, wanted, reduction="batchmean", log_target=True)


def classification() -> Task:
    """Batches (x, y), scores model(x)."""
    return Task("classes", lambda model, batch: model(batch[0]), lambda batch: batch[1])


def regression() -> Task:
    """Batches x, or (x, ...), vectors model(x); or mappings, vectors model(**batch)."""

    def outputs(model: nn.Module, batch: Any) -> Tensor:
        if isinstance(batch, Mapping):
            return model(**batch)
        return model(batch if isinstance(batch, Tensor) else batch[0])

    return Task("vectors", outputs)


def causal_language_model() -> Task:
    """Batches of token numbers (samples, length), without padding; the scores of each next token."""

    def outputs(model: nn.Module, batch: Tensor) -> Tensor:
        return model(input_ids=batch, use_cache=False).logits[:, :-1]

    return Task("classes", outputs, lambda batch: batch[:, 1:])


def sentence_embedding() -> Task:
    """Batches of a tokenizer (a mapping with attention_mask); unit vectors, means over the tokens.

    Source: the pooling of Reimers and Gurevych, arXiv:1908.10084.
    """

    def outputs(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        hidden = model(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None].to(hidden.dtype)
        return normalize((hidden * mask).sum(1) / mask.sum(1).clamp_min(1e-9), dim=-1)

    return Task("vectors", outputs)


def _described(batch: Any) -> str:
    if isinstance(batch, Tensor):
        return f"shape {tuple(batch.shape)}"
    if isinstance(batch, Mapping):
        return "{" + ", ".join(f"{key}: {_described(value)}" for key, value in batch.items()) + "}"
    if isinstance(batch, (tuple, list)):
        return "(" + ", ".join(_described(part) for part in batch) + ")"
    return type(batch).__name__
