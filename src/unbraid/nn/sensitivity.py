"""How much the loss of a network grows when one layer is written with one bond: every layer, every bond, three passes.

A truncation changes the weight of a layer by ``D``. With ``x`` the inputs of the layer and ``g`` the slopes of the
outputs' log-probability in what the layer puts out, the loss of a sample grows to second order by half the square of
``sum_t g_t . D x_t``, on average over outputs that the model itself would draw (the Fisher, or Gauss-Newton, form).
That needs one forward pass, one backward pass, and for each bond the product ``D x``, not the network. The slope of the
loss itself is left out: of a trained network it is small. Half of what a layer does is no small change, so two more
passes measure: in each, every layer in turn is replaced at one bond on its own share of the samples. Between the bonds
measured the ratio of the measured growth to the estimate is interpolated.

Source: second-order estimates of pruning: LeCun, Denker, Solla, "Optimal Brain Damage", NeurIPS 1989; the Fisher form:
Theis et al., arXiv:1801.05787.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from unbraid.ground import progress
from unbraid.ground.errors import InvalidInputError
from unbraid.ground.random import stream
from unbraid.nn.calibration import InputMoments, as_batches, batch_size, linear_layers
from unbraid.nn.kinds import check_weight, matrix_of
from unbraid.nn.layers import MPOLinear
from unbraid.nn.modes import frozen, keeping_modes
from unbraid.nn.surgery import check_moments, choose_sites, lost_mean, output_metric
from unbraid.nn.targets import Sites, Targets
from unbraid.nn.task import Task
from unbraid.tensors import MPO
from unbraid.tensors.ladder import ladder, powers_below
from unbraid.tensors.sites import check_dims
from unbraid.tensors.weighted import weighted_error

_MOST = 30.0  # times the estimate, or its inverse: a measured growth beyond counts as noise of few samples


@dataclass(frozen=True)
class SensitivityPoint:
    """One layer at one bond.

    Attributes:
        max_bond: cap of the bonds.
        bond_dims: of the operator.
        parameters: core entries.
        rel_error: of the weight; of the outputs, if input moments were given.
        growth: of the loss, estimated.
        second_order: the estimate before it was corrected by what was measured.
    """

    max_bond: int
    bond_dims: tuple[int, ...]
    parameters: int
    rel_error: float
    growth: float
    second_order: float


@dataclass(frozen=True)
class LayerSensitivity:
    """A layer at all bonds.

    Attributes:
        name: in ``model.named_modules()``.
        shape: (out, in).
        parameters: entries of the weight.
        points: in the order of bonds.
    """

    name: str
    shape: tuple[int, int]
    parameters: int
    points: tuple[SensitivityPoint, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def sensitivity(
    model: nn.Module,
    batches: Any,
    task: Task,
    *,
    targets: Targets = "all-linear",
    bonds: Iterable[int] | None = None,
    sites: Sites = "auto",
    moments: Mapping[str, InputMoments] | None = None,
    seed: int = 0,
) -> list[LayerSensitivity]:
    """Estimate how much the task's loss grows when each linear layer alone is written with each bond.

    Three passes over the calibration set: one forward and backward, two forward.

    Args:
        model: any module; it is not changed.
        batches: a list of batches for ``task``, or one tensor. A few dozen samples do; at least as many as layers.
        task: what the outputs are.
        targets: which layers, as in :func:`unbraid.nn.match_layers`. Their inputs have samples first.
        bonds: caps of bond dimensions; by default powers of two, as long as the operator is smaller than the weight.
        sites: "auto", "low-rank", "qubits" or a pair, as in :func:`unbraid.tensorize`.
        moments: of the inputs, by layer; operators are then made to keep outputs, as ``tensorize(moments=)`` does.
        seed: of the outputs drawn.

    Returns:
        One entry a layer, in the order of the model. Growths are in the units of the loss: nats a position for classes.

    Raises:
        InvalidInputError: if nothing matches; a weight is empty, zero or not finite; the set is empty, or does not fit
            the model; or a layer sees no inputs, or some whose samples cannot be told apart.
    """
    found = as_batches(batches)
    layers = linear_layers(model, targets)
    check_moments(moments, layers)
    wanted = None if bonds is None else _checked_bonds(bonds)
    candidates: dict[str, _Candidates] = {}
    with torch.no_grad():
        for name, layer in progress.track(layers.items(), "decompose", len(layers)):
            check_weight(matrix_of(layer), name)
            try:
                candidates[name] = _candidates(layer, wanted, sites, None if moments is None else moments.get(name))
            except InvalidInputError as error:
                raise InvalidInputError(f"Layer {name!r}: {error}") from error
    slopes = _Slopes(model, layers, candidates, task, seed)
    samples = slopes.collect(found)
    measured = _measure(model, layers, candidates, task, found, samples)
    profile = [_layer(name, candidates[name], slopes.squares[name] / slopes.samples, measured[name]) for name in layers]
    for each in profile:
        if not all(math.isfinite(point.growth) for point in each.points):
            raise InvalidInputError(
                f"The loss does not grow by a finite number with layer {each.name!r} truncated: NaN or infinite "
                "numbers arise within the model on the calibration set. Look for an overflow, and for bad samples."
            )
    return profile


def _checked_bonds(bonds: Iterable[int]) -> list[int]:
    found = list(bonds) if isinstance(bonds, Iterable) and not isinstance(bonds, str) else []
    if not found or not all(isinstance(bond, int) and not isinstance(bond, bool) and bond > 0 for bond in found):
        raise InvalidInputError(f"bonds must be positive integers, at least one; got {bonds!r}. Try (2, 4, 8).")
    return sorted(set(found))


@dataclass(frozen=True)
class _Candidates:
    """What could stand in the place of a layer, in the order of bonds.

    Attributes:
        weight: of the layer, shape (out, in).
        caps: of the bonds.
        operators: one a cap.
        errors: likewise, relative.
        bias: of the layer, if it has one.
        mean: of the inputs, where a bias takes over what an operator lacks on it; otherwise None.
    """

    weight: Tensor
    caps: list[int]
    operators: list[MPO]
    errors: list[float]
    bias: Tensor | None
    mean: Tensor | None

    def layer(self, which: int) -> MPOLinear:
        operator, bias = self.operators[which], self.bias
        if self.mean is not None and bias is not None:
            bias = bias + lost_mean(self.weight, operator, self.mean).to(bias.dtype)
        return MPOLinear(operator, bias).eval()


def _candidates(
    layer: nn.Module, bonds: Sequence[int] | None, sites: Sites, moments: InputMoments | None
) -> _Candidates:
    """The operators of each cap; by default of powers of two, below the size of the weight."""
    weight = matrix_of(layer)
    legs = choose_sites(sites, *weight.shape)
    outs, ins = (check_dims(*each) for each in zip(legs, weight.shape, ("out_dims", "in_dims"), strict=True))
    caps = powers_below(outs, ins, weight.numel()) if bonds is None else list(bonds)
    metric = output_metric(layer, moments)
    slopes = None if moments is None else moments.slopes
    operators = ladder(weight, outs, ins, caps, covariance=metric, slopes=slopes)
    errors = [weighted_error(weight, mpo.to_dense(), metric) for mpo in operators]
    bias = layer.bias if isinstance(layer.bias, Tensor) else None
    mean = None if moments is None or bias is None else moments.mean
    return _Candidates(weight, caps, operators, errors, bias, mean)


@dataclass
class _Sample:
    """What a batch gave: the losses of its samples, and what they are of."""

    losses: Tensor
    wanted: Tensor


class _Slopes:
    """Per sample, the change of a scalar of the outputs that each change of a weight makes, to first order."""

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, nn.Module],
        candidates: Mapping[str, _Candidates],
        task: Task,
        seed: int,
    ) -> None:
        self.model, self.layers, self.candidates = model, layers, candidates
        self.task, self.seed = task, seed
        self.squares = {name: torch.zeros(len(each.caps), dtype=torch.float64) for name, each in candidates.items()}
        self.seen: set[str] = set()
        self.changes: dict[str, Tensor] = {}  # (bonds, samples) of the batch at hand
        self.samples = 0
        self.size = 0

    def collect(self, batches: Sequence[Any]) -> list[_Sample]:
        """One pass."""
        found = []
        with keeping_modes(self.model), frozen(self.model), torch.enable_grad():
            self.model.eval()
            for number, batch in enumerate(progress.track(batches, "slopes", len(batches))):
                self.size = batch_size(batch)
                with self._watched():
                    outputs = self.task.run(self.model, batch)
                    if len(outputs) != self.size:
                        raise InvalidInputError(
                            f"The outputs of a batch of {self.size} samples must have as many rows; got "
                            f"{tuple(outputs.shape)}."
                        )
                    found.append(self._add(outputs, batch, number))
                self.samples += self.size
        unseen = [name for name in self.layers if name not in self.seen]
        if unseen:
            raise InvalidInputError(f"Layer {unseen[0]!r} saw no inputs from the calibration set. Leave it out.")
        return found

    def _add(self, outputs: Tensor, batch: Any, number: int) -> _Sample:
        task, exact = self.task, outputs.detach()
        positions = outputs[..., 0].numel() // len(outputs)
        generator = stream(self.seed, "sensitivity", number)
        scalar, wanted = task.probe(outputs, generator)
        if task.labels is not None:
            wanted = _checked(task.labels(batch), exact)
        self.changes = {}
        scalar.backward()
        for name, change in self.changes.items():
            self.squares[name] += change.double().square().sum(1).cpu() / (2 * positions)
        return _Sample(task.losses(exact, wanted), wanted)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        hooks = []
        for name, layer in self.layers.items():

            def watch(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, name: str = name) -> Tensor:
                x = inputs[0].detach()
                if len(x) % self.size:
                    raise InvalidInputError(
                        f"Layer {name!r} sees inputs of shape {tuple(x.shape)} from {self.size} samples: they cannot "
                        "be told apart. Leave it out."
                    )
                if not torch.is_grad_enabled():
                    raise InvalidInputError(f"Layer {name!r} runs without gradients: no slopes reach it. Leave it out.")
                self.seen.add(name)
                version = x._version
                output = output + output.new_zeros((), requires_grad=True)  # parameters are frozen: a graph begins here

                def gather(slope: Tensor) -> None:
                    if x._version != version:
                        raise InvalidInputError(
                            f"The input of layer {name!r} is changed in place behind it, so its slopes are lost. Leave "
                            "the layer out."
                        )
                    self._gather(name, x, slope)

                output.register_hook(gather)
                return output

            hooks.append(layer.register_forward_hook(watch))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @torch.no_grad()
    def _gather(self, name: str, x: Tensor, slope: Tensor) -> None:
        each = self.candidates[name]
        if each.mean is not None:
            x = x - each.mean.to(x)
        exact = ((x @ each.weight.mT) * slope).reshape(self.size, -1).sum(1)
        change = torch.stack([(mpo.apply(x) * slope).reshape(self.size, -1).sum(1) - exact for mpo in each.operators])
        self.changes[name] = self.changes[name] + change if name in self.changes else change  # used more than once


def _checked(labels: Any, outputs: Tensor) -> Tensor:
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex():
        came = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise InvalidInputError(f"Labels must be class numbers, a tensor of integers; got {came}.")
    if labels.shape != outputs.shape[:-1]:
        raise InvalidInputError(
            f"Labels must have the shape {tuple(outputs.shape[:-1])} of the scores; got {tuple(labels.shape)}."
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= outputs.shape[-1]:
        raise InvalidInputError(
            f"The model has scores for the classes 0 to {outputs.shape[-1] - 1}; labels go from {low} to {high}."
        )
    return labels


@torch.no_grad()
def _measure(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    candidates: Mapping[str, _Candidates],
    task: Task,
    batches: Sequence[Any],
    samples: Sequence[_Sample],
) -> dict[str, dict[int, float]]:
    """Growths of the loss at the first and the middle bond of each layer, on its share of the samples."""
    starts = [0]
    for each in samples:
        starts.append(starts[-1] + len(each.losses))
    total, count = starts[-1], len(layers)
    share = max(1, round(total / count))
    found: dict[str, dict[int, float]] = {name: {} for name in layers}
    with keeping_modes(model), progress.task("measure", 2 * count) as advance:
        model.eval()
        for turn in range(2):
            for number, (name, layer) in enumerate(layers.items()):
                which = 0 if turn == 0 else len(candidates[name].caps) // 2
                first = ((number + turn * (count // 2)) % count) * total // count
                operator = candidates[name].layer(which)
                growths = []
                with _standing_in(layer, operator):
                    for batch, sample, start in zip(batches, samples, starts, strict=False):
                        rows = [
                            row - start
                            for row in (r % total for r in range(first, first + share))
                            if start <= row < start + len(sample.losses)
                        ]
                        if rows:
                            index = torch.tensor(rows, device=sample.losses.device)
                            outputs = task.run(model, _rows(batch, index, len(sample.losses)))
                            growths.append(task.losses(outputs, sample.wanted[index]) - sample.losses[index])
                found[name][which] = float(torch.cat(growths).mean())
                advance()
    return found


@contextmanager
def _standing_in(layer: nn.Module, other: nn.Module) -> Iterator[None]:
    """Let ``layer`` answer as ``other`` does."""
    hook = layer.register_forward_hook(lambda _, inputs, __: other(inputs[0]))
    try:
        yield
    finally:
        hook.remove()


def _rows(batch: Any, index: Tensor, samples: int) -> Any:
    """Some samples of a batch; what has not one entry a sample is passed as it is."""
    if isinstance(batch, Tensor):
        return batch[index.to(batch.device)] if batch.dim() and len(batch) == samples else batch
    if isinstance(batch, Mapping):
        return {key: _rows(value, index, samples) for key, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        parts = [_rows(part, index, samples) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    return batch


def _layer(name: str, candidates: _Candidates, second: Tensor, measured: Mapping[int, float]) -> LayerSensitivity:
    errors = candidates.errors
    estimates = second.tolist()
    known = [(0.0, 0.0)]  # (error, logarithm of measured over estimated): a small change needs no correction
    for which, growth in measured.items():
        ratio = growth / max(estimates[which], 1e-300)
        known.append((errors[which], math.log(min(max(ratio, 1 / _MOST), _MOST))))
    known.sort()
    points = []
    for cap, mpo, error, estimate in zip(candidates.caps, candidates.operators, errors, estimates, strict=True):
        corrected = estimate * math.exp(_interpolated(known, error))
        points.append(SensitivityPoint(cap, mpo.bond_dims, mpo.num_parameters, error, corrected, estimate))
    rows, columns = candidates.weight.shape
    return LayerSensitivity(name, (rows, columns), rows * columns, tuple(points))


def _interpolated(known: Sequence[tuple[float, float]], place: float) -> float:
    for (left, low), (right, high) in pairwise(known):
        if left <= place <= right:
            return low if right == left else low + (high - low) * (place - left) / (right - left)
    return known[-1][1]
