"""Hybrid networks: the circuits of disentangled layers on an executor, everything else on the host.

Every linear segment of a circuit is one stage: encode (the norm stays on the host), run, read out with sign and norm.
Cores, biases and the nonlinearities between segments are torch.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from unbraid.circuits import Circuit
from unbraid.ground.errors import InvalidInputError
from unbraid.ground.random import stream
from unbraid.nn.layers import DisentangledLinear
from unbraid.nn.surgery import replace_modules
from unbraid.quantum.encode import Encoding, encoding_of
from unbraid.quantum.execute import Executor, TorchExecutor, count_qubits
from unbraid.quantum.reading import Readout
from unbraid.quantum.readout import Exact, read_out, readout_of, through_states
from unbraid.quantum.samplers import SamplerExecutor


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
    """

    name: str
    circuit: Circuit
    readout: Readout
    shots: int
    encoding: Encoding
    executor: Executor


@dataclass
class Spent:
    """What a layer has used so far."""

    circuits: int = 0
    shots: int = 0


class QuantumLinear(nn.Module):
    """A disentangled layer whose circuits run on an executor.

    Segments without gates are the identity and are not run. Sampled readouts give no gradients.

    Args:
        layer: taken over, not copied.
        executor: what runs the circuits; torch by default.
        name: of the layer; names its stages and its random stream.
        encoding: "amplitude" | "mps", or one with its settings; see :func:`unbraid.encode`.
        readout: "exact" | "reference" | "signs" | "tomography", or one with its settings; see
            :func:`unbraid.read_out`.
        shots: a vector and stage, over all circuits of its readout.
        seed: of the samples; the n-th call of a layer takes the n-th stream of its name.

    Attributes:
        spent: circuits and shots used so far.

    Raises:
        InvalidInputError: if an option is unknown or does not suit the executor, or a circuit does not consist of
            qubits or does not fit the backend.
    """

    def __init__(
        self,
        layer: DisentangledLinear,
        executor: Executor | None = None,
        *,
        name: str = "layer",
        encoding: str | Encoding = "amplitude",
        readout: str | Readout = "reference",
        shots: int = 10_000,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.layer = layer
        self.executor: Executor = TorchExecutor(seed) if executor is None else executor
        self.name = name
        self.encoding = encoding_of(encoding)
        self.readout = readout_of(readout)
        if isinstance(shots, bool) or not isinstance(shots, int) or shots < 2:
            raise InvalidInputError(f"shots must be an integer of at least 2; got {shots!r}.")
        if isinstance(self.readout, Exact) and not isinstance(self.executor, TorchExecutor):
            raise InvalidInputError(
                f"readout='exact' needs executor=TorchExecutor(); got {self.executor!r}. Use readout='reference' to "
                "measure."
            )
        self.shots = shots
        self.seed = seed
        self.spent = Spent()
        self._calls = 0
        for stage in self.stages():
            if isinstance(self.executor, SamplerExecutor):
                self.executor.check_width(stage.circuit)
            else:
                count_qubits(stage.circuit)

    @property
    def in_features(self) -> int:
        """Logical input size."""
        return self.layer.in_features

    @property
    def out_features(self) -> int:
        """Logical output size."""
        return self.layer.out_features

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return f"executor={self.executor!r}, encoding={self.encoding}, readout={self.readout}, shots={self.shots}"

    def stages(self) -> list[Stage]:
        """The circuits that one input passes through, in order; without those that have no gates."""
        sides = (("input", self.layer.input_circuit), ("output", self.layer.output_circuit))
        return [
            stage for side, circuit in sides for stage in self._side_stages(side, circuit) if _has_gates(stage.circuit)
        ]

    def forward(self, x: Tensor) -> Tensor:
        """Shape (..., in) to (..., out).

        Raises:
            InvalidInputError: if the last axis has another size or entries are not finite.
            ExecutionError: if the executor fails.
        """
        if x.shape[-1] != self.in_features:
            raise InvalidInputError(f"This layer takes {self.in_features} features; got shape {tuple(x.shape)}.")
        generator = stream(self.seed, self.name, "call", self._calls)
        self._calls += 1
        x = self._run("input", self.layer.input_circuit, pad(x, (0, self._width - self.in_features)), generator)
        x = self._run("output", self.layer.output_circuit, self.layer.core.apply(x), generator)
        x = x[..., : self.out_features]
        return x if self.layer.bias is None else x + self.layer.bias

    @property
    def _width(self) -> int:
        return self.layer.input_circuit.dimension

    def _run(self, side: str, circuit: Circuit, x: Tensor, generator: torch.Generator) -> Tensor:
        if isinstance(self.readout, Exact):
            self.spent.circuits += x.shape[:-1].numel() * sum(
                _has_gates(stage.circuit) for stage in self._side_stages(side, circuit)
            )
            # segments are detached copies; this one keeps the gradients of the gates
            return circuit(x, prepare=partial(through_states, encoding=self.encoding))
        joints = [*circuit.joint_modules(), None]
        for stage, joint in zip(self._side_stages(side, circuit), joints, strict=True):
            if _has_gates(stage.circuit):
                read = read_out(
                    stage.circuit,
                    x,
                    readout=self.readout,
                    shots=self.shots,
                    executor=self.executor,
                    generator=generator,
                    encoding=self.encoding,
                )
                self.spent.circuits += read.circuits
                self.spent.shots += read.shots
                x = read.vectors
            x = x if joint is None else joint(x)
        return x

    def _side_stages(self, side: str, circuit: Circuit) -> list[Stage]:
        segments = circuit.segments()
        return [
            Stage(
                f"{self.name}.{side}" + (f".{k}" if len(segments) > 1 else ""),
                segment,
                self.readout,
                self.shots,
                self.encoding,
                self.executor,
            )
            for k, segment in enumerate(segments)
        ]


def to_quantum(
    model: nn.Module,
    executor: Executor | None = None,
    *,
    encoding: str | Encoding = "amplitude",
    readout: str | Readout = "reference",
    shots: int = 10_000,
    seed: int = 0,
) -> nn.Module:
    """A copy of ``model``, in evaluation mode, whose disentangled layers run their circuits on ``executor``.

    Args:
        model: with at least one :class:`unbraid.nn.DisentangledLinear`; left as it is.
        executor: :class:`unbraid.TorchExecutor` by default; shared by all layers.
        encoding: "amplitude" | "mps", or one with its settings; see :func:`unbraid.encode`.
        readout: "exact" | "reference" | "signs" | "tomography", or one with its settings; see
            :func:`unbraid.read_out`.
        shots: a vector and circuit of the network, over all circuits of its readout.
        seed: of the samples.

    Returns:
        The hybrid; a :class:`QuantumLinear` if ``model`` itself is a disentangled layer.

    Raises:
        InvalidInputError: if there is no disentangled layer, or an option cannot be used.

    Source:
        Sec. V of "Classical Neural Networks on Quantum Devices via Tensor Network Disentanglers", which reads out by
        tomography.
    """
    hybrid = copy.deepcopy(model).eval()
    executor = TorchExecutor(seed) if executor is None else executor
    found = [(name, module) for name, module in hybrid.named_modules() if isinstance(module, DisentangledLinear)]
    if not found:
        raise InvalidInputError(
            f"to_quantum needs a model with a DisentangledLinear layer; {type(model).__name__} has none. Use "
            "disentangle_layers first."
        )
    replacements: dict[nn.Module, nn.Module] = {}
    for name, layer in found:
        quantum = QuantumLinear(
            layer, executor, name=name or "layer", encoding=encoding, readout=readout, shots=shots, seed=seed
        ).eval()
        replacements[layer] = quantum
    return replace_modules(hybrid, replacements)


def _has_gates(circuit: Circuit) -> bool:
    return any(True for _ in circuit.ansatz.gates())
