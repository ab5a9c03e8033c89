"""Hybrid networks: the circuits of disentangled layers on an executor, everything else on the host.

Every linear segment of a circuit is one stage: encode (the norm stays on the host), run, read out with sign and norm.
Cores, biases and the nonlinearities between segments are torch.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from unbraid.circuits import Circuit
from unbraid.circuits.neurons import Neuron
from unbraid.ground.errors import InvalidInputError, require_choice, require_finite
from unbraid.ground.random import isolated, stream
from unbraid.nn.layers import DisentangledLinear
from unbraid.nn.surgery import replace_modules
from unbraid.quantum.encode import Encoding, encoding_of
from unbraid.quantum.execute import Executor, TorchExecutor, check_executor, check_total, count_qubits
from unbraid.quantum.gradients import GRADIENTS, Placed, apply_placed, sampled
from unbraid.quantum.reading import Readout
from unbraid.quantum.readout import Exact, read_out, readout_of, through_states
from unbraid.quantum.samplers import SamplerExecutor
from unbraid.quantum.tomography import Tomography


@dataclass(frozen=True)
class Stage:
    """One linear circuit of a layer and how it is run.

    Attributes:
        name: layer, side, and number of the segment where there are several, such as "fc1.input".
        circuit: without nonlinearities.
        readout: how its result is read.
        shots: a vector.
        encoding: of its inputs.
        executor: what runs it.
        shifted: angles that a backward pass by shifted parameters shifts; None where there is no such pass.
    """

    name: str
    circuit: Circuit
    readout: Readout
    shots: int
    encoding: Encoding
    executor: Executor
    shifted: int | None = None


@dataclass
class Spent:
    """What a layer has used so far.

    Attributes:
        circuits: that ran.
        shots: of all of them.
        padding_shots: about how many of these fell on outcomes that stand for no feature and are thrown away, where the
            output's width is no power of two.
    """

    circuits: int = 0
    shots: int = 0
    padding_shots: int = 0


class QuantumLinear(nn.Module):
    """A disentangled layer whose circuits run on an executor, or several in a row.

    Segments without gates are the identity and are not run. Between layers in a row stands nothing, so the output
    circuit of one and the input circuit of the next are one circuit, in which gates on the same wires are multiplied.

    Args:
        layer: taken over, not copied; or several in a row, whose widths fit without padding, with linear circuits on
            the same wires between them. A bias between them passes through the next circuit on the host.
        executor: what runs the circuits; torch by default.
        name: of the layer; names its stages and its random stream.
        encoding: "amplitude" | "mps", or one with its settings; see :func:`unbraid.encode`.
        readout: "exact" | "reference" | "signs" | "tomography", or one with its settings; see
            :func:`unbraid.read_out`.
        shots: a vector and stage, over all circuits of its readout.
        seed: of the samples, and of neurons between segments; the n-th call of a layer takes the n-th stream of its
            name.
        gradient: of sampled readouts: "none" (a backward pass is an error) | "parameter-shift", see
            :mod:`unbraid.quantum.gradients`. "exact" always has gradients.

    Attributes:
        spent: circuits and shots used so far.
        centers: vectors by the name of the stage that are subtracted before encoding, see :func:`to_quantum`.

    Raises:
        InvalidInputError: if an option is unknown or does not suit the executor, a circuit does not consist of qubits
            or does not fit the backend, or layers in a row do not fit each other.
    """

    runs_circuits = True  # what tells a hybrid to rooms that do not know this one

    def __init__(
        self,
        layer: DisentangledLinear | Sequence[DisentangledLinear],
        executor: Executor | None = None,
        *,
        name: str = "layer",
        encoding: str | Encoding = "amplitude",
        readout: str | Readout = "reference",
        shots: int = 10_000,
        seed: int = 0,
        gradient: str = "none",
    ) -> None:
        super().__init__()
        layers = list(layer) if isinstance(layer, Sequence) else [layer]
        if not layers or not all(isinstance(each, DisentangledLinear) for each in layers):
            raise InvalidInputError(
                f"QuantumLinear takes a DisentangledLinear, or several in a row; got {type(layer).__name__}. Use "
                "disentangle_layers first."
            )
        if not all(_joinable(first, second) for first, second in pairwise(layers)):
            raise InvalidInputError(
                "Layers in a row need widths without padding, and linear circuits on the same wires between them; got "
                f"{[(each.in_features, each.out_features) for each in layers]}."
            )
        self.layers = nn.ModuleList(layers)
        self.executor: Executor = check_executor(TorchExecutor(seed) if executor is None else executor)
        self.name = name
        self.encoding = encoding_of(encoding)
        self.readout = readout_of(readout)
        check_total(shots)
        if isinstance(self.readout, Exact) and not isinstance(self.executor, TorchExecutor):
            raise InvalidInputError(
                f"readout='exact' needs executor=TorchExecutor(); got {self.executor!r}. Use readout='reference' to "
                "measure."
            )
        self.shots = shots
        self.seed = seed
        self.gradient = require_choice(gradient, GRADIENTS, "gradient")
        if gradient != "none" and isinstance(self.readout, Exact):
            raise InvalidInputError("readout='exact' has gradients of its own; leave gradient out.")
        if gradient != "none" and isinstance(self.readout, Tomography) and self.readout.sign == "largest":
            raise InvalidInputError(
                "Shifted circuits must be read with their signs, and this tomography loses them. Use 'reference' or "
                "'signs', or Tomography(sign='known')."
            )
        self.spent = Spent()
        self.centers: dict[str, Tensor] = {}
        self._means: dict[str, list[Tensor]] | None = None  # while centers are being found
        self._calls = 0
        if isinstance(self.readout, Tomography):
            self.readout.check(self.executor)
        for each in layers:
            for parameter, values in each.named_parameters():
                require_finite(values, f"{parameter!r} of {name}")
        for stage in self.stages():
            try:
                if isinstance(self.executor, SamplerExecutor):
                    qubits = self.executor.check_width(stage.circuit)
                else:
                    qubits = count_qubits(stage.circuit)
                self.readout.circuits(qubits)  # settings that this width does not have are refused here
            except InvalidInputError as error:
                raise InvalidInputError(f"{stage.name}: {error}") from error

    @property
    def in_features(self) -> int:
        """Logical input size."""
        return self._row[0].in_features

    @property
    def out_features(self) -> int:
        """Logical output size."""
        return self._row[-1].out_features

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return f"executor={self.executor!r}, encoding={self.encoding}, readout={self.readout}, shots={self.shots}"

    def stages(self) -> list[Stage]:
        """The circuits that one input passes through, in order; without those that have no gates."""
        return [stage for run in self._runs() for stage, placed in self._segments(run) if placed]

    def forward(self, x: Tensor) -> Tensor:
        """Shape (..., in) to (..., out).

        Raises:
            InvalidInputError: if the last axis has another size or entries are not finite.
            ExecutionError: if the executor fails.
        """
        if x.shape[-1] != self.in_features:
            raise InvalidInputError(f"This layer takes {self.in_features} features; got shape {tuple(x.shape)}.")
        require_finite(x, "x")
        generator = stream(self.seed, self.name, "call", self._calls)
        with isolated(self.seed, self.name, "joints", self._calls) if self._measures else nullcontext():
            x = self._through(x, generator)
        self._calls += 1
        last = self._row[-1]
        if not isinstance(self.readout, Exact) and self.out_features < x.shape[-1]:
            squares = x.detach().double().square()
            share = squares[..., self.out_features :].sum(-1) / squares.sum(-1).clamp(min=1e-300)
            self.spent.padding_shots += round(float(share.sum()) * self.shots)
        x = x[..., : self.out_features]
        return x if last.bias is None else x + last.bias

    def _through(self, x: Tensor, generator: torch.Generator) -> Tensor:
        first, *others = self._runs()
        x = self._run(first, pad(x, (0, first.circuits[0].dimension - self.in_features)), generator)
        for layer, run in zip(self._row, others, strict=True):
            x = self._run(run, layer.core.apply(x), generator)
            if layer is not self._row[-1] and layer.bias is not None:
                x = x + run.circuits[-1](layer.bias)
        return x

    @property
    def _measures(self) -> bool:
        """Whether neurons between segments draw outcomes."""
        return any(isinstance(module, Neuron) for module in self.layers.modules())

    @property
    def _row(self) -> list[DisentangledLinear]:
        return [layer for layer in self.layers if isinstance(layer, DisentangledLinear)]

    def _runs(self) -> list[_Run]:
        """Circuits that run together: the first input circuit, each output with the next input circuit, the last."""
        names = self.name.split("+") if len(self._row) > 1 else [self.name]
        row = list(zip(names, self._row, strict=True))
        between = [
            _Run(f"{name}.output+{other}.input", (layer.output_circuit, following.input_circuit))
            for (name, layer), (other, following) in pairwise(row)
        ]
        (first, begin), (last, end) = row[0], row[-1]
        return [
            _Run(f"{first}.input", (begin.input_circuit,)),
            *between,
            _Run(f"{last}.output", (end.output_circuit,)),
        ]

    def _run(self, run: _Run, x: Tensor, generator: torch.Generator) -> Tensor:
        segments = self._segments(run)
        if isinstance(self.readout, Exact):
            self.spent.circuits += x.shape[:-1].numel() * sum(bool(placed) for _, placed in segments)
            # segments are detached copies; the circuits keep the gradients of the gates
            prepare = [partial(self._prepared, stage) for stage, placed in segments if placed]
            if len(run.circuits) == 1:
                left = iter(prepare)
                return run.circuits[0](x, prepare=lambda given: next(left)(given))
            steps: list[Callable[[Tensor], Tensor]] = [*prepare, *run.circuits]  # joined circuits have one segment
            for step in steps:
                x = step(x)
            return x
        joints = [*run.circuits[0].joint_modules(), None]
        for (stage, placed), joint in zip(segments, joints, strict=True):
            if placed:
                center = self._center(stage, x)
                x = sampled(stage.circuit, placed, x - center, partial(self._read, generator=generator), self.gradient)
                if stage.name in self.centers:  # its image depends on the gates, but not on the input
                    x = x + apply_placed(stage.circuit, placed, center)
            x = x if joint is None else joint(x)
        return x

    def _segments(self, run: _Run) -> list[tuple[Stage, Placed]]:
        """The linear pieces of a run and their gates, which are differentiable."""
        first, *others = run.circuits
        dims, parts = first.ansatz.wire_dims, first.segment_gates()
        if others:
            dims = _wires_without_ones(first)
            parts = [list(merged([gate for circuit in run.circuits for gate in _placed_without_ones(circuit)]))]
        found: list[tuple[Stage, Placed]] = []
        for k, placed in enumerate(parts):
            detached = [(gate if isinstance(gate, str) else gate.detach(), wires) for gate, wires in placed]
            circuit = Circuit.from_gates(dims, detached, dtype=first.dtype, device=first.device)
            name = run.name + (f".{k}" if len(parts) > 1 else "")
            shifted = None if self.gradient == "none" else sum(map(_angles, placed))
            stage = Stage(name, circuit, self.readout, self.shots, self.encoding, self.executor, shifted)
            found.append((stage, placed))
        return found

    def _prepared(self, stage: Stage, x: Tensor) -> Tensor:
        """What exact circuits get."""
        if self._means is not None:
            self._means.setdefault(stage.name, []).append(x.detach().reshape(-1, x.shape[-1]).mean(dim=0))
            return x
        center = self._center(stage, x)
        return through_states(x - center, self.encoding) + center

    def _center(self, stage: Stage, x: Tensor) -> Tensor:
        found = self.centers.get(stage.name)
        return x.new_zeros(x.shape[-1]) if found is None else found.to(x.device, x.dtype)

    @torch.no_grad()
    def find_centers(self, forward: Callable[[], object]) -> None:
        """Take the means of what the circuits get while ``forward`` runs the network, exactly, as centers."""
        readout, self.readout, self._means = self.readout, Exact(), {}
        spent = replace(self.spent)
        try:
            forward()
            self.centers = {name: torch.stack(means).mean(dim=0) for name, means in self._means.items()}
        finally:
            self.readout, self._means, self.spent = readout, None, spent

    def _read(self, circuit: Circuit, x: Tensor, *, generator: torch.Generator) -> Tensor:
        read = read_out(
            circuit,
            x,
            readout=self.readout,
            shots=self.shots,
            executor=self.executor,
            generator=generator,
            encoding=self.encoding,
        )
        self.spent.circuits += read.circuits
        self.spent.shots += read.shots
        return read.vectors


@dataclass(frozen=True)
class _Run:
    """Circuits that run one after the other without anything between them."""

    name: str
    circuits: tuple[Circuit, ...]


def merged(placed: Placed) -> Placed:
    """The same circuit with gates multiplied that follow each other on the same wires; differentiable.

    Args:
        placed: (matrix or name of a fixed gate, wires) in the order in which they act.
    """
    found: list[tuple[Tensor | str, tuple[int, ...]]] = []
    for gate, wires in placed:
        touching = [k for k, (_, on) in enumerate(found) if set(on) & set(wires)]
        last = touching[-1] if touching else -1
        before, on = found[last] if touching else (None, ())
        if isinstance(gate, Tensor) and isinstance(before, Tensor) and on == wires:
            found[last] = (gate @ before, wires)
        else:
            found.append((gate, wires))
    return found


def _angles(placed: tuple[Tensor | str, tuple[int, ...]]) -> int:
    """Of a gate that is trained."""
    gate, _ = placed
    trained = isinstance(gate, Tensor) and gate.requires_grad
    return len(gate) * (len(gate) - 1) // 2 if trained else 0


def _joinable(first: DisentangledLinear, second: DisentangledLinear) -> bool:
    """Whether two layers in a row have circuits that can be one."""
    out, inward = first.output_circuit, second.input_circuit
    return (
        first.out_features == second.in_features == out.dimension == inward.dimension
        and _wires_without_ones(out) == _wires_without_ones(inward)
        and out.is_linear
        and inward.is_linear
    )


def _wires_without_ones(circuit: Circuit) -> tuple[int, ...]:
    return tuple(dim for dim in circuit.ansatz.wire_dims if dim > 1) or (1,)


def _placed_without_ones(circuit: Circuit) -> Placed:
    """The gates of a linear circuit on the wires that :func:`_wires_without_ones` leaves."""
    left = [wire for wire, dim in enumerate(circuit.ansatz.wire_dims) if dim > 1]
    return [
        (gate, tuple(left.index(wire) for wire in wires if wire in left)) for gate, wires in circuit.segment_gates()[0]
    ]


def to_quantum(
    model: nn.Module,
    executor: Executor | None = None,
    *,
    encoding: str | Encoding = "amplitude",
    readout: str | Readout = "reference",
    shots: int = 10_000,
    seed: int = 0,
    gradient: str = "none",
    join: bool = False,
    center: Tensor | None = None,
) -> nn.Module:
    """A copy of ``model``, in evaluation mode, whose disentangled layers run their circuits on ``executor``.

    Args:
        model: with at least one :class:`unbraid.nn.DisentangledLinear`; left as it is.
        executor: :class:`unbraid.TorchExecutor` by default; shared by all layers.
        encoding: "amplitude" | "mps", or one with its settings; see :func:`unbraid.encode`.
        readout: "exact" | "reference" | "signs" | "tomography", or one with its settings; see
            :func:`unbraid.read_out`.
        shots: a vector and circuit of the network, over all circuits of its readout.
        seed: of the samples; that of the executor counts for runs outside of hybrids only.
        gradient: of sampled readouts, "none" | "parameter-shift"; see :class:`QuantumLinear`.
        join: where disentangled layers follow each other in a ``nn.Sequential`` with nothing between them, run the
            output circuit of one and the input circuit of the next as one: one encoding and one readout less.
        center: inputs of the network, such as training data. The mean of what each circuit gets from them is subtracted
            before encoding; what the circuit makes of the mean is computed once on the host and added. The error of a
            readout is relative to the norm of what is encoded, so this lowers it without a shot more.

    Returns:
        The hybrid; a :class:`QuantumLinear` if ``model`` itself is a disentangled layer.

    Raises:
        InvalidInputError: if there is no disentangled layer, or an option cannot be used.

    Source:
        Sec. V of "Classical Neural Networks on Quantum Devices via Tensor Network Disentanglers", which reads out by
        tomography.
    """
    if not isinstance(model, nn.Module):
        raise InvalidInputError(f"to_quantum takes a model; got {type(model).__name__}.")
    if any(isinstance(module, QuantumLinear) for module in model.modules()):
        raise InvalidInputError("This model is a hybrid already. Give to_quantum the network that it was made of.")
    hybrid = copy.deepcopy(model).eval()
    executor = TorchExecutor(seed) if executor is None else executor
    found = [(name, module) for name, module in hybrid.named_modules() if isinstance(module, DisentangledLinear)]
    if not found:
        raise InvalidInputError(
            f"to_quantum needs a model with a DisentangledLinear layer; {type(model).__name__} has none. Use "
            "disentangle_layers (unbraid disentangle) first."
        )
    rows = _rows(hybrid, [layer for _, layer in found]) if join else [[layer] for _, layer in found]
    names = {layer: name or "layer" for name, layer in found}
    replacements: dict[nn.Module, nn.Module] = {}
    for row in rows:
        first, *others = row
        replacements[first] = QuantumLinear(
            row,
            executor,
            name="+".join(names[layer] for layer in row),
            encoding=encoding,
            readout=readout,
            shots=shots,
            seed=seed,
            gradient=gradient,
        ).eval()
        replacements |= {layer: nn.Identity() for layer in others}
    hybrid = replace_modules(hybrid, replacements)
    if center is not None:
        _find_centers(hybrid, [module for module in replacements.values() if isinstance(module, QuantumLinear)], center)
    return hybrid


def _find_centers(hybrid: nn.Module, layers: Sequence[QuantumLinear], x: Tensor) -> None:
    """Centers of all layers from one exact pass."""
    if not isinstance(x, Tensor) or x.dim() < 2 or not len(x):
        raise InvalidInputError(
            "center must be a tensor of inputs of the network, at least one; such as training data."
        )
    require_finite(x, "center")

    def forward() -> object:
        return hybrid(x)

    for layer in layers:
        forward = partial(layer.find_centers, forward)
    forward()


def _rows(model: nn.Module, layers: Sequence[DisentangledLinear]) -> list[list[DisentangledLinear]]:
    """Layers that follow each other in a ``nn.Sequential`` with nothing between them, and can be joined."""
    sequences = [
        [module for module in container if not isinstance(module, nn.Identity | nn.Dropout)]
        for container in model.modules()
        if isinstance(container, nn.Sequential)
    ]
    follows: dict[nn.Module, DisentangledLinear] = {
        one: other
        for sequence in sequences
        for one, other in pairwise(sequence)
        if isinstance(one, DisentangledLinear) and isinstance(other, DisentangledLinear) and _joinable(one, other)
    }
    # a layer that is used in several places cannot be joined in one of them
    used = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    follows = {a: b for a, b in follows.items() if used[id(a)] == used[id(b)] == 1}
    inner = set(follows.values())
    rows = []
    for layer in layers:
        if layer not in inner:
            row = [layer]
            while row[-1] in follows:
                row.append(follows[row[-1]])
            rows.append(row)
    return rows
