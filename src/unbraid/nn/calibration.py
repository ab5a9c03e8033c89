"""What the layers of a network see while it runs on a small calibration set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unbraid.ground import progress
from unbraid.ground.errors import InvalidInputError
from unbraid.ground.random import stream
from unbraid.nn.kinds import is_linear
from unbraid.nn.layers import MPOLinear
from unbraid.nn.modes import frozen, keeping_modes
from unbraid.nn.targets import Targets, match_layers
from unbraid.nn.task import Task, regression


@dataclass(frozen=True)
class InputMoments:
    """First and second moments of a layer's inputs.

    Attributes:
        mean: shape (in,), float64.
        second: E[x x^T], shape (in, in), float64.
        count: vectors seen.
        slopes: E[g g^T] of the slopes of the loss in the outputs, shape (out, out), float64; None if not collected.
    """

    mean: Tensor
    second: Tensor
    count: int
    slopes: Tensor | None = None

    @property
    def covariance(self) -> Tensor:
        """E[(x - mean) (x - mean)^T]: what is left for the weight once a bias takes the mean."""
        return self.second - torch.outer(self.mean, self.mean)


def linear_layers(model: nn.Module, targets: Targets) -> dict[str, nn.Module]:
    """The linear layers that ``targets`` names, operators included.

    Raises:
        InvalidInputError: if there are none.
    """
    plain = {name for name, module in model.named_modules() if is_linear(module)}
    kinds = {type(model.get_submodule(name)) for name in plain} | {nn.Linear, MPOLinear}
    return match_layers(model, targets, tuple(sorted(kinds, key=lambda kind: kind.__name__)))


def as_batches(batches: Any) -> list[Any]:
    """Calibration batches as a list; a single tensor is one batch.

    Raises:
        InvalidInputError: if there are none, or one has no samples.
    """
    found = [batches] if isinstance(batches, Tensor) else list(batches) if isinstance(batches, Iterable) else None
    if found is None or isinstance(batches, (str, Mapping)):
        raise InvalidInputError(f"The calibration set must be a list of batches; got {type(batches).__name__}.")
    if not found:
        raise InvalidInputError("The calibration set is empty: give at least one batch.")
    for number, batch in enumerate(found):
        if batch_size(batch) == 0:
            raise InvalidInputError(f"Batch {number} of the calibration set has no samples.")
    return found


def batch_size(batch: Any) -> int:
    """Samples of a batch: the length of its first tensor."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.dim() else 0
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (tuple, list)) else ()
    first = next((part for part in parts if isinstance(part, Tensor)), None)
    if first is None:
        raise InvalidInputError(f"A batch must be a tensor, or hold some; got {type(batch).__name__}.")
    return len(first) if first.dim() else 0


def input_moments(
    model: nn.Module,
    batches: Any,
    *,
    targets: Targets = "all-linear",
    task: Task | None = None,
    slopes: bool = False,
    seed: int = 0,
) -> dict[str, InputMoments]:
    """Collect the moments of the inputs of linear layers, in one pass.

    With ``slopes`` the pass goes back too, and the second moments of the slopes in the layers' outputs are collected,
    of outputs that the model itself would draw. Operators made with them keep what the task sees of a layer's outputs:
    input and slope moments together are the Kronecker-factored Fisher information of Martens and Grosse,
    arXiv:1503.05671.

    Positions that ``attention_mask`` of a batch leaves out are not counted where a layer sees (samples, length, in).

    Args:
        model: any module; it is not changed.
        batches: a list of batches, or one tensor.
        targets: which layers, as in :func:`unbraid.nn.match_layers`.
        task: how the model runs on a batch; by default model(batch), model(batch[0]) or model(**batch).
        slopes: whether to go back.
        seed: of the outputs drawn.

    Returns:
        By the names of the layers.

    Raises:
        InvalidInputError: if nothing matches, the set is empty, the model cannot run on it, a layer sees no inputs or
            some that are not finite, or no slopes.
    """
    layers = linear_layers(model, targets)
    found = moments_seen(model, batches, layers, task or regression(), seed if slopes else None)
    unseen = [name for name in layers if name not in found]
    if unseen:
        raise InvalidInputError(f"Layer {unseen[0]!r} saw no inputs from the calibration set. Leave it out.")
    return found


def moments_seen(
    model: nn.Module, batches: Any, layers: Mapping[str, nn.Module], task: Task, seed: int | None = None
) -> dict[str, InputMoments]:
    """The moments of those layers that see inputs; those of slopes if there is a seed to draw outputs."""
    sums: dict[str, Tensor] = {}
    squares: dict[str, Tensor] = {}
    counts: dict[str, int] = dict.fromkeys(layers, 0)
    mask: Tensor | None = None

    def see(name: str, x: Tensor) -> None:
        rows = seen_rows(x, mask, name)
        squares[name] = squares.get(name, 0) + rows.mT @ rows
        sums[name] = sums.get(name, 0) + rows.sum(0)
        counts[name] += len(rows)

    steep: dict[str, Tensor] = {}

    def see_slope(name: str, slope: Tensor) -> None:
        rows = seen_rows(slope, mask, name)
        steep[name] = steep.get(name, 0) + rows.mT @ rows

    for name, layer in layers.items():
        for kind, parameter in layer.named_parameters():
            if parameter.is_meta:
                raise InvalidInputError(
                    f"The {kind} of layer {name!r} is on the meta device: it has a shape and no numbers. Load the "
                    "weights first."
                )
    back = seed is not None
    with torch.set_grad_enabled(back), keeping_modes(model), frozen(model), watching_inputs(layers, see):
        model.eval()
        for number, batch in enumerate(progress.track(as_batches(batches), "calibrate")):
            mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
            if seed is None:
                task.call(model, batch)
                continue
            with watching_slopes(layers, see_slope):
                scalar, _ = task.probe(task.run(model, batch), stream(seed, "moments", number))
                scalar.backward()
    if back and any(name not in steep for name, n in counts.items() if n):
        name = next(name for name, n in counts.items() if n and name not in steep)
        raise InvalidInputError(f"No slopes reach layer {name!r} from the outputs. Leave it out.")
    return {
        name: InputMoments(sums[name] / n, squares[name] / n, n, steep[name] / n if back else None)
        for name, n in counts.items()
        if n
    }


def seen_rows(x: Tensor, mask: Tensor | None, name: str) -> Tensor:
    """The inputs (rows, in) of a layer that count, float64: a mean's square will be taken off their second moment.

    Raises:
        InvalidInputError: if one is not finite.
    """
    if mask is not None and x.dim() == 3 and x.shape[:2] == mask.shape:
        x = x[mask.bool()]
    rows = x.reshape(-1, x.shape[-1]).double()
    if not bool(torch.isfinite(rows).all()):
        raise InvalidInputError(
            f"The inputs of layer {name!r} hold NaN or infinite numbers on the calibration set. Look for an overflow "
            "in the layers before it, and for bad samples."
        )
    return rows


@contextmanager
def watching_inputs(layers: Mapping[str, nn.Module], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Show the inputs of layers to ``see(name, inputs)`` while the model runs in this block."""
    hooks = []
    for name, layer in layers.items():

        def show(_: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
            see(name, inputs[0].detach())

        hooks.append(layer.register_forward_pre_hook(show))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def watching_slopes(layers: Mapping[str, nn.Module], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Show the slopes in the outputs of layers to ``see(name, slopes)`` on the way back of what runs in this block."""
    hooks = []
    for name, layer in layers.items():

        def watch(_: nn.Module, __: Any, output: Tensor, name: str = name) -> Tensor:
            output = output + output.new_zeros((), requires_grad=torch.is_grad_enabled())  # where a frozen graph begins
            if output.requires_grad:
                output.register_hook(lambda slope: see(name, slope))
            return output

        hooks.append(layer.register_forward_hook(watch))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
