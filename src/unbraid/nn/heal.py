"""Healing: one training loop for any model and loss, with early stopping, distillation and resumable checkpoints."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from contextlib import nullcontext
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from unbraid.circuits import Circuit
from unbraid.ground import progress
from unbraid.ground.errors import DidNotConvergeError, InvalidInputError, require_finite
from unbraid.ground.files import make_directory, problem_hash, read_checkpoint, write_checkpoint
from unbraid.ground.manifest import hash_tensors
from unbraid.ground.random import isolated, stream
from unbraid.nn.integers import QuantizedCores
from unbraid.nn.modes import keeping_modes, without_dropout
from unbraid.nn.optimizers import Maker, make_optimizer

Loss = Callable[[nn.Module, Any], Tensor]
Data = tuple[Tensor, Tensor] | Iterable[Any]
Callback = Callable[[int, "History"], "bool | None"]

SCHEDULES = ("onecycle", "linear", "cosine", "constant")
CHECKPOINT_NAME = "heal.safetensors"
DISTILLATION_TEMPERATURE = 2.0


@dataclass
class History:
    """How a healing went; lists have one entry an epoch.

    Attributes:
        train_loss: mean loss of the epoch's batches.
        validation_loss: mean loss over the validation data; empty without them.
        validation_accuracy: fraction right, 0..1; empty without validation data or with a loss of one's own.
        learning_rate: at the end of the epoch.
        best_epoch: the epoch (from 0) whose weights the model has now.
        status: "completed", "stopped_early" (patience) or "stopped" (callback).
    """

    train_loss: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    validation_accuracy: list[float] = field(default_factory=list)
    learning_rate: list[float] = field(default_factory=list)
    best_epoch: int = -1
    status: str = "running"


def heal(
    model: nn.Module,
    train_data: Data,
    validation_data: Data | None = None,
    *,
    epochs: int,
    lr: float,
    loss: Loss | None = None,
    teacher: nn.Module | None = None,
    optimizer: str | Maker = "adam",
    scheduler: str | Callable[[torch.optim.Optimizer, int], LRScheduler] | None = None,
    callbacks: Sequence[Callback] = (),
    checkpoint_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
    batch_size: int = 64,
    patience: int | None = None,
    weight_decay: float = 0.0,
    dropout: bool = True,
) -> History:
    """Train ``model`` in place; with validation data it ends with the weights of its best epoch.

    The best epoch is that of the highest validation accuracy (ties: lowest loss), or of the lowest loss where ``loss``
    is the user's. Batches and dropout of an epoch depend on ``seed`` and the epoch alone, so a resumed run equals an
    uninterrupted one.

    Args:
        model: any module with trainable parameters.
        train_data: (x, y), cut into shuffled batches; a list of batches, taken in another order each epoch; or any
            other iterable of batches (a DataLoader).
        validation_data: likewise; never trained on.
        epochs: number of passes.
        lr: peak learning rate.
        loss: called as loss(model, batch); by default the cross entropy of model(x) against y, batch = (x, y).
        teacher: with the default loss, half of it becomes the KL divergence from the teacher's softened outputs
            (temperature 2).
        optimizer: "adam", "soap", or makes one from the parameters, see
            :func:`unbraid.nn.optimizers.make_optimizer`.
        scheduler: "onecycle" (the default: up for three tenths of the steps, then down as a cosine), "linear" (up for a
            twentieth, then straight down), "cosine", "constant", or makes a scheduler from (optimizer, number of
            steps); it steps a batch.
        callbacks: each called with (epochs done, history) after an epoch; returning False stops.
        checkpoint_dir: where ``heal.safetensors`` is written after each epoch, and resumed from if it is there. After
            an interrupt or a callback's stop the model holds its best weights so far, from which it resumes too.
        seed: of shuffling and dropout.
        batch_size: for (x, y) data.
        patience: stop after so many epochs without a better validation score.
        weight_decay: of an optimizer by name.
        dropout: whether the model's dropout acts. Towards the outputs of a teacher it only adds noise.

    Returns:
        The history.

    Raises:
        InvalidInputError: if an argument makes no sense, data are empty or not finite, or the checkpoint belongs to
            another run.
        DidNotConvergeError: if the loss becomes NaN or infinite.
    """
    _check(model, epochs, lr, batch_size, patience, weight_decay, validation_data, teacher, loss)
    train = _Batches(train_data, batch_size, "train_data")
    _check_norms(model, train)
    validation = None if validation_data is None else _Batches(validation_data, 1024, "validation_data")
    if loss is None:
        for batches, name in ((train, "train_data"), (validation, "validation_data")):
            pairs = [] if batches is None else batches.pairs()
            if pairs:
                _check_fit(model, teacher, pairs, name)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    chosen = make_optimizer(optimizer, parameters, lr, weight_decay)
    schedule = _schedule(scheduler or "onecycle", chosen, epochs * len(train))
    objective = loss or (_distillation(teacher) if teacher is not None else _classification)
    history = History()
    best_state = _snapshot(model)
    place, problem, start = None, "", ""
    if checkpoint_dir is not None:
        place = make_directory(checkpoint_dir) / CHECKPOINT_NAME
        start = _fingerprint(best_state)
        problem = problem_hash(
            {
                "model": _structure(model),
                "data": [train.identity(), None if validation is None else validation.identity()],
                "teacher": None if teacher is None else hash_tensors(*teacher.state_dict().values()),
                "functions": [_name(loss), _name(scheduler or "onecycle"), type(chosen).__name__],
                "optimizer": {key: repr(value) for key, value in sorted(chosen.defaults.items())},
                "run": [epochs, lr, seed, batch_size, patience, weight_decay, dropout],
            }
        )
        if place.exists():
            state = read_checkpoint(place, problem)
            if start not in (state["start"], _fingerprint(state["model"]), _fingerprint(state["best"])):
                raise InvalidInputError(
                    f"{place} belongs to another problem: it was started from other weights than this model has. Give "
                    "it that model to resume; to start anew, delete it or choose another place."
                )
            start = state["start"]
            model.load_state_dict(state["model"])
            chosen.load_state_dict(state["optimizer"])
            schedule.load_state_dict(state["scheduler"])
            best_state, history = state["best"], History(**state["history"])
            if history.status == "stopped":  # by a callback: taken up again
                waited = len(history.train_loss) - 1 - history.best_epoch
                history.status = "stopped_early" if patience is not None and waited >= patience else "running"

    settled = best_state  # what the checkpoint, if there is one, knows as the best
    try:
        with keeping_modes(model), progress.task("heal", epochs) as advance:
            advance(len(history.train_loss))
            while history.status == "running":
                epoch = len(history.train_loss)
                if epoch >= epochs:
                    history.status = "completed"
                    break
                model.train()
                with isolated(seed, "heal", epoch), nullcontext() if dropout else without_dropout(model):
                    history.train_loss.append(
                        _train_epoch(model, train.epoch(seed, epoch), objective, chosen, schedule, epoch)
                    )
                history.learning_rate.append(float(chosen.param_groups[0]["lr"]))
                if validation is not None:
                    _validate(model, validation, loss, history)
                if validation is None or _score(history, epoch) > _score(history, history.best_epoch):
                    history.best_epoch = epoch
                    best_state = _snapshot(model)
                    if place is None:
                        settled = best_state
                if patience is not None and epoch - history.best_epoch >= patience:
                    history.status = "stopped_early"
                answers = [callback(epoch + 1, history) for callback in callbacks]
                if any(answer is False for answer in answers):
                    history.status = "stopped"
                if place is not None:
                    state = {"start": start, "best": best_state, "history": vars(history)}
                    _save(place, problem, state, model, chosen, schedule)
                    settled = best_state
                advance(note=f"loss {history.train_loss[-1]:.4f}")
    finally:  # also after an interrupt
        model.load_state_dict(settled)
    return history


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor, *, batch_size: int = 1024) -> float:
    """Fraction of rows of ``x`` whose largest output is ``y``, in evaluation mode.

    Args:
        model: maps (B, in) to (B, classes).
        x: shape (N, in).
        y: class numbers, shape (N,).
        batch_size: rows at a time.

    Raises:
        InvalidInputError: if there are no rows.
    """
    if len(x) == 0 or len(x) != len(y):
        raise InvalidInputError(
            f"accuracy needs as many labels as rows, at least one; got {len(x)} rows, {len(y)} labels."
        )
    with keeping_modes(model):
        model.eval()
        right = sum(
            int((model(rows).argmax(-1) == labels).sum())
            for rows, labels in zip(x.split(batch_size), y.split(batch_size), strict=True)
        )
    return right / len(x)


class _Batches:
    """(x, y) cut into shuffled batches, or batches that come ready."""

    def __init__(self, data: Data, batch_size: int, name: str) -> None:
        self.pair: tuple[Tensor, Tensor] | None = None
        if isinstance(data, (tuple, list)) and len(data) == 2 and all(isinstance(part, Tensor) for part in data):
            x, y = data
            if len(x) != len(y) or len(x) == 0:
                raise InvalidInputError(
                    f"{name} needs as many labels as rows, at least one; got {len(x)} and {len(y)}."
                )
            if x.is_floating_point():
                require_finite(x, f"{name}[0]")
            self.pair = (x, y)
            self.batch_size = batch_size
            self.count = math.ceil(len(x) / batch_size)
            return
        if isinstance(data, tuple) and len(data) == 2 and not any(isinstance(part, Tensor) for part in data):
            kinds = " and ".join(type(part).__name__ for part in data)
            raise InvalidInputError(f"{name} must be a pair of tensors (x, y); got {kinds}. Try torch.as_tensor.")
        try:
            self.batches: Any = data if isinstance(data, Sized) else list(data)
            self.count = len(self.batches)
        except TypeError as error:
            raise InvalidInputError(
                f"{name} must be (x, y) or an iterable of batches; got {type(data).__name__}."
            ) from error
        if self.count == 0:
            raise InvalidInputError(f"{name} has no batches.")

    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """(x, y), or those that lie in a list."""
        if self.pair is not None:
            return [self.pair]
        listed = self.batches if isinstance(self.batches, (list, tuple)) else ()
        both = (each for each in listed if isinstance(each, (list, tuple)) and len(each) == 2)
        return [(x, y) for x, y in both if isinstance(x, Tensor) and isinstance(y, Tensor)]

    def identity(self) -> str:
        """What a checkpoint knows the data by."""
        return f"{self.count} batches, {_content(self.batches)}" if self.pair is None else hash_tensors(*self.pair)

    def __len__(self) -> int:
        return self.count

    def epoch(self, seed: int, epoch: int) -> Iterable[Any]:
        generator = stream(seed, "batches", epoch)
        if self.pair is None:
            if not isinstance(self.batches, (list, tuple)):
                return self.batches
            return [self.batches[k] for k in torch.randperm(self.count, generator=generator).tolist()]
        x, y = self.pair
        order = torch.randperm(len(x), generator=generator).to(x.device)
        pieces = order.split(self.batch_size)
        if len(pieces) > 1 and len(pieces[-1]) == 1:  # batch normalisation cannot train on a single row
            pieces = (*pieces[:-2], torch.cat(pieces[-2:]))
        return ((x[piece], y[piece]) for piece in pieces)

    def in_order(self) -> Iterable[Any]:
        if self.pair is None:
            return self.batches
        x, y = self.pair
        return zip(x.split(self.batch_size), y.split(self.batch_size), strict=True)


@torch.no_grad()
def _check_fit(model: nn.Module, teacher: nn.Module | None, pairs: Sequence[tuple[Tensor, Tensor]], name: str) -> None:
    """Refuse data that a classifier, or its teacher, cannot take, before any training."""
    for x, y in pairs:
        if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool or y.shape != x.shape[:1] or not len(y):
            raise InvalidInputError(
                f"{name} must have class numbers, shape (n,), for rows (n, ...); got {y.dtype}, {tuple(y.shape)} for "
                f"{tuple(x.shape)}."
            )
    shapes = [_outputs_of(network, pairs[0][0], name) for network in (model, teacher) if network is not None]
    if len(set(shapes)) > 1:
        raise InvalidInputError(f"The teacher must put out what the model does, {shapes[0]}; got {shapes[1]}.")
    classes = shapes[0][-1] if len(shapes[0]) == 2 else 0
    low, high = min(int(y.min()) for _, y in pairs), max(int(y.max()) for _, y in pairs)
    if not 0 <= low <= high < classes:
        raise InvalidInputError(
            f"The model must have an output for every class; it gives {shapes[0]} for {min(2, len(pairs[0][0]))} "
            f"inputs, and the labels of {name} go from {low} to {high}. Or give a loss of your own."
        )


def _outputs_of(network: nn.Module, x: Tensor, name: str) -> tuple[int, ...]:
    """The shape of what a network gives for two rows."""
    try:
        with keeping_modes(network):
            outputs = network.eval()(x[:2])
    except (InvalidInputError, RuntimeError, TypeError, ValueError, IndexError) as error:
        raise InvalidInputError(f"The model cannot run on {name} of shape {tuple(x.shape)}: {error}") from error
    return tuple(getattr(outputs, "shape", ()))


def _content(data: Any) -> str:
    """A hash of batches that lie in memory (a list, a TensorDataset's loader); empty for those that are made anew."""
    kept = data if isinstance(data, (list, tuple)) else getattr(getattr(data, "dataset", None), "tensors", ())
    tensors = _tensors_of(kept)
    return hash_tensors(*tensors) if tensors else ""


def _tensors_of(content: Any) -> list[Tensor]:
    """All tensors within lists, tuples, mappings and dataclasses."""
    if isinstance(content, Tensor):
        return [content]
    if is_dataclass(content):
        content = vars(content)
    parts = content.values() if isinstance(content, Mapping) else content if isinstance(content, (list, tuple)) else ()
    return [tensor for part in parts for tensor in _tensors_of(part)]


def _train_epoch(
    model: nn.Module,
    batches: Iterable[Any],
    objective: Loss,
    optimizer: torch.optim.Optimizer,
    schedule: LRScheduler,
    epoch: int,
) -> float:
    total, count = 0.0, 0
    for batch in batches:
        optimizer.zero_grad(set_to_none=True)
        value = objective(model, batch)
        if not torch.isfinite(value):
            raise DidNotConvergeError(
                f"The loss became {float(value.detach())} in epoch {epoch}. Try a smaller lr; check data and weights."
            )
        value.backward()
        optimizer.step()
        schedule.step()
        total, count = total + float(value.detach()), count + 1
    return total / count


@torch.no_grad()
def _validate(model: nn.Module, validation: _Batches, loss: Loss | None, history: History) -> None:
    model.eval()
    total, right, count = 0.0, 0, 0
    for batch in validation.in_order():
        if loss is None:
            x, y = batch
            logits = model(x)
            size = len(y)
            total += float(cross_entropy(logits, y)) * size
            right += int((logits.argmax(-1) == y).sum())
        else:
            size = 1
            total += float(loss(model, batch))
        count += size
    if not math.isfinite(total):
        raise DidNotConvergeError(
            f"The validation loss became {total / count} in epoch {len(history.validation_loss)}. Look for NaN or "
            "infinite numbers in the validation data, or lower lr."
        )
    history.validation_loss.append(total / count)
    if loss is None:
        history.validation_accuracy.append(right / count)


def _score(history: History, epoch: int) -> tuple[float, float]:
    if epoch < 0:
        return (-math.inf, -math.inf)
    if not history.validation_loss:
        return (float(epoch), 0.0)
    first = history.validation_accuracy[epoch] if history.validation_accuracy else 0.0
    return (first, -history.validation_loss[epoch])


def _classification(model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    return cross_entropy(model(x), y)


def _distillation(teacher: nn.Module) -> Loss:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        logits = model(x)
        with torch.no_grad(), keeping_modes(teacher):
            wanted = teacher.eval()(x)
        t = DISTILLATION_TEMPERATURE
        soft = kl_div(log_softmax(logits / t, -1), log_softmax(wanted / t, -1), reduction="batchmean", log_target=True)
        return 0.5 * cross_entropy(logits, y) + 0.5 * t * t * soft

    return loss


def _schedule(
    scheduler: str | Callable[[torch.optim.Optimizer, int], LRScheduler], optimizer: torch.optim.Optimizer, steps: int
) -> LRScheduler:
    if not isinstance(scheduler, str):
        return scheduler(optimizer, steps)

    def factor(step: int) -> float:
        place = min(step / max(steps, 1), 1.0)
        if scheduler == "constant":
            return 1.0
        if scheduler == "cosine":
            return 0.5 * (1 + math.cos(math.pi * place))
        if scheduler == "linear":
            warm = max(1, steps // 20)
            return (step + 1) / warm if step < warm else max(0, steps - step) / max(1, steps - warm)
        if place < 0.3:  # one cycle: up from 1/25 of the peak, then down to almost nothing
            return 0.04 + 0.96 * 0.5 * (1 - math.cos(math.pi * place / 0.3))
        return 1e-4 + 0.5 * (1 + math.cos(math.pi * (place - 0.3) / 0.7))

    if scheduler not in SCHEDULES:
        raise InvalidInputError(f"scheduler must be one of {', '.join(SCHEDULES)} or a callable; got {scheduler!r}.")
    return LambdaLR(optimizer, factor)


def _snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _fingerprint(state: dict[str, Tensor]) -> str:
    return hash_tensors(*state.values())


def _structure(model: nn.Module) -> list[Any]:
    """What a model is besides its numbers: two may have states of equal names and shapes, and yet differ."""
    found = []
    for name, module in model.named_modules():
        circuit = (
            [module.ansatz.to_dict(), module.parametrization, module.mirrored] if isinstance(module, Circuit) else []
        )
        found.append([name, type(module).__qualname__, module.extra_repr(), circuit])
    return [found, [[name, list(tensor.shape)] for name, tensor in model.state_dict().items()]]


def _name(function: object) -> str | None:
    """A name that is the same in another process, unlike ``repr`` of a function."""
    if function is None or isinstance(function, str):
        return function
    return str(getattr(function, "__qualname__", type(function).__qualname__))


def _save(
    place: Path,
    problem: str,
    state: dict[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: LRScheduler,
) -> None:
    content = {
        **state,
        "model": dict(model.state_dict()),
        "optimizer": optimizer.state_dict(),
        "scheduler": {k: v for k, v in schedule.state_dict().items() if k != "lr_lambdas"} | _lambdas(schedule),
    }
    write_checkpoint(place, content, problem)


def _lambdas(schedule: LRScheduler) -> dict[str, Any]:
    return {"lr_lambdas": [None] * len(schedule.lr_lambdas)} if isinstance(schedule, LambdaLR) else {}


def _check(
    model: nn.Module,
    epochs: int,
    lr: float,
    batch_size: int,
    patience: int | None,
    weight_decay: float,
    validation_data: Data | None,
    teacher: nn.Module | None,
    loss: Loss | None,
) -> None:
    for value, name in ((epochs, "epochs"), (batch_size, "batch_size"), (patience, "patience")):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise InvalidInputError(f"{name} must be a positive integer; got {value!r}.")
    if not (_is_number(lr) and lr > 0):
        raise InvalidInputError(f"lr must be a positive number; got {lr!r}.")
    if not (_is_number(weight_decay) and weight_decay >= 0):
        raise InvalidInputError(f"weight_decay must be a number, at least 0; got {weight_decay!r}.")
    if patience is not None and validation_data is None:
        raise InvalidInputError("patience needs validation_data.")
    if teacher is not None and not isinstance(teacher, nn.Module):
        raise InvalidInputError(f"teacher must be a module; got {type(teacher).__name__}.")
    if teacher is not None and loss is not None:
        raise InvalidInputError("Give a teacher or a loss of your own, not both.")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        quantized = any(isinstance(module, QuantizedCores) for module in model.modules())
        advice = (
            " Integers are not trained: heal the model before quantize, or train their scales." if quantized else ""
        )
        raise InvalidInputError(f"The model has no trainable parameters: there is nothing to heal.{advice}")
    for name, parameter in model.named_parameters():
        require_finite(parameter, f"The parameter {name!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _check_norms(model: nn.Module, train: _Batches) -> None:
    """Refuse batches of one row for batch normalisation, which needs two to train."""
    if train.pair is None or min(train.batch_size, len(train.pair[0])) > 1:
        return
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise InvalidInputError(
                f"{name or 'The model'} normalises over a batch and cannot be trained on single rows; got "
                f"{len(train.pair[0])} rows in batches of {train.batch_size}. Take at least two."
            )
