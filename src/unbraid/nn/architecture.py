"""Networks of tensor layers from a declaration, and their parameters before anything is built.

A network is a row of layers: input circuit, matrix product operator, output circuit, then perhaps batch normalisation
and ReLU. Circuits are written in the layer grammar of :func:`unbraid.parse_ansatz`; the first layer of a text stands
next to the operator.

Counting rule: no biases; scale and shift of batch norms count; a gate of SO(d) has d (d - 1) / 2 parameters, a fixed
gate none; bonds are as large as declared, or as large as the legs on either side allow; the shorter list of legs gets
legs of dimension 1 at its tail.

Source: the rule reproduces the counts of Tables 2 and 3 of "Classical Neural Networks on Quantum Devices via Tensor
Network Disentanglers".
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from math import prod
from typing import Any

import torch
from torch import nn

from unbraid.circuits import Ansatz, Circuit, parse_ansatz
from unbraid.circuits.circuit import INITS
from unbraid.circuits.gates import PARAMETRIZATIONS, num_generators
from unbraid.circuits.joints import count_joint
from unbraid.ground.errors import InvalidInputError, require_choice
from unbraid.ground.random import stream_seed
from unbraid.nn.layers import DisentangledLinear, MPOLinear
from unbraid.tensors import MPO

COUNTING_RULE = "Parameters: no biases; scale and shift of batch norms; d (d - 1) / 2 of a gate of SO(d)."


@dataclass(frozen=True)
class TensorLayer:
    """The declaration of a layer.

    Attributes:
        in_legs: dimensions of the input legs; their product is the number of inputs.
        out_legs: of the output legs.
        bond: largest bond of the operator.
        input_circuit: in the layer grammar, on the input legs; "" for none.
        output_circuit: likewise, on the output legs.
        norm: whether batch normalisation follows.
        relu: whether ReLU follows.
        input_wires: dimensions of the wires of the input circuit; the input legs by default.
        output_wires: of the output circuit; the output legs by default.

    Raises:
        InvalidInputError: if sizes are not positive integers, wires do not hold as many numbers as the legs, or a
            circuit cannot be read.
    """

    in_legs: tuple[int, ...]
    out_legs: tuple[int, ...]
    bond: int
    input_circuit: str = ""
    output_circuit: str = ""
    norm: bool = True
    relu: bool = True
    input_wires: tuple[int, ...] | None = None
    output_wires: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("in_legs", "out_legs", "input_wires", "output_wires"):
            legs = getattr(self, name)
            if legs is None and name.endswith("wires"):
                continue
            legs = tuple(legs) if isinstance(legs, Sequence) and not isinstance(legs, str) else ()
            if not legs or not all(isinstance(leg, int) and not isinstance(leg, bool) and leg > 0 for leg in legs):
                raise InvalidInputError(f"{name} must be positive integers, at least one; got {getattr(self, name)!r}.")
            object.__setattr__(self, name, legs)
        if isinstance(self.bond, bool) or not isinstance(self.bond, int) or self.bond < 1:
            raise InvalidInputError(f"bond must be a positive integer; got {self.bond!r}.")
        for name in ("norm", "relu"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidInputError(f"{name} must be True or False; got {getattr(self, name)!r}.")
        self.ansatze()

    def ansatze(self) -> tuple[Ansatz, Ansatz]:
        """Of the input and of the output circuit.

        Raises:
            InvalidInputError: pointing at the place in a text that cannot be read.
        """
        found = []
        for side, legs in (("input", self.in_legs), ("output", self.out_legs)):
            wires = getattr(self, f"{side}_wires") or legs
            if prod(wires) != prod(legs):
                raise InvalidInputError(
                    f"{side}_wires must hold the {prod(legs)} numbers of the legs {legs}; got {wires}, which hold "
                    f"{prod(wires)}."
                )
            try:
                found.append(parse_ansatz(getattr(self, f"{side}_circuit"), wires))
            except InvalidInputError as error:
                raise InvalidInputError(f"The {side} circuit on wires {wires}: {error}") from error
        return found[0], found[1]

    @property
    def has_circuits(self) -> bool:
        """Whether there is a gate or a nonlinearity beside the operator."""
        return any(ansatz.layers for ansatz in self.ansatze())

    def parameters(self) -> dict[str, int]:
        """Numbers of "mpo", "input", "output" (gates and batch norms of the circuits) and "norm"."""
        inward, output = (_circuit_parameters(ansatz) for ansatz in self.ansatze())
        mpo = sum(prod(shape) for shape in self.core_shapes())
        return {"mpo": mpo, "input": inward, "output": output, "norm": 2 * prod(self.out_legs) if self.norm else 0}

    def core_shapes(self) -> list[tuple[int, int, int, int]]:
        """(left, out, in, right) of each core."""
        sites = max(len(self.in_legs), len(self.out_legs))
        outs, ins = (legs + (1,) * (sites - len(legs)) for legs in (self.out_legs, self.in_legs))
        legs = [o * i for o, i in zip(outs, ins, strict=True)]
        bonds = [min(self.bond, prod(legs[:k]), prod(legs[k:])) for k in range(1, sites)]
        return list(zip([1, *bonds], outs, ins, [*bonds, 1], strict=True))

    def build(self, seed: int, init: str, dtype: torch.dtype | None = None, parametrization: str = "exp") -> nn.Module:
        """Without batch norm and ReLU: with circuits a :class:`DisentangledLinear`, else an :class:`MPOLinear`."""
        mpo = MPO.random(self.out_legs, self.in_legs, self.bond, seed=stream_seed(seed, "mpo"), dtype=dtype)
        if not self.has_circuits:
            return MPOLinear(mpo)
        inward, output = self.ansatze()
        return DisentangledLinear(
            Circuit(output, init, stream_seed(seed, "output"), dtype=dtype, parametrization=parametrization),
            mpo,
            Circuit(
                inward, init, stream_seed(seed, "input"), mirrored=True, dtype=dtype, parametrization=parametrization
            ),
        )


@dataclass(frozen=True)
class Architecture:
    """The declaration of a network; layers are numbered from 1.

    Attributes:
        layers: from the input to the output.

    Raises:
        InvalidInputError: if there is no layer, or one gives another number of values than the next one takes.
    """

    layers: tuple[TensorLayer, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.layers, Sequence) or not all(isinstance(layer, TensorLayer) for layer in self.layers):
            raise InvalidInputError(f"layers must be TensorLayers; got {self.layers!r}.")
        object.__setattr__(self, "layers", tuple(self.layers))
        if not self.layers:
            raise InvalidInputError("A network has at least one layer.")
        for number, (one, other) in enumerate(pairwise(self.layers), 1):
            if prod(one.out_legs) != prod(other.in_legs):
                raise InvalidInputError(
                    f"Layer {number} gives {prod(one.out_legs)} numbers (legs {one.out_legs}), but layer {number + 1} "
                    f"takes {prod(other.in_legs)} (legs {other.in_legs})."
                )

    @property
    def in_features(self) -> int:
        """Numbers that the network takes."""
        return prod(self.layers[0].in_legs)

    @property
    def out_features(self) -> int:
        """Numbers that the network gives."""
        return prod(self.layers[-1].out_legs)

    @property
    def num_parameters(self) -> int:
        """By the counting rule; equal to those of the network that is built."""
        return sum(sum(layer.parameters().values()) for layer in self.layers)

    def with_circuits(self, circuits: Mapping[int, tuple[str, str]]) -> Architecture:
        """The same operators with these circuits and no others.

        Args:
            circuits: (input circuit, output circuit) by the number of the layer.

        Raises:
            InvalidInputError: if there is no such layer, or a circuit cannot be read.
        """
        if not isinstance(circuits, Mapping):
            raise InvalidInputError(
                f"circuits are given by the numbers of layers, {{1: ('1b', '')}}; got {type(circuits).__name__}."
            )
        unknown = [number for number in circuits if number not in range(1, len(self.layers) + 1)]
        if unknown:
            raise InvalidInputError(f"This network has layers 1 to {len(self.layers)}; got circuits for {unknown}.")
        layers = []
        for number, layer in enumerate(self.layers, 1):
            pair = circuits.get(number, ("", ""))
            if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
                raise InvalidInputError(f"Layer {number} takes a pair (input circuit, output circuit); got {pair!r}.")
            try:
                layers.append(replace(layer, input_circuit=pair[0], output_circuit=pair[1]))
            except InvalidInputError as error:
                raise InvalidInputError(f"Layer {number}: {error}") from error
        return Architecture(tuple(layers))

    def build(
        self,
        seed: int = 0,
        init: str = "near_identity",
        *,
        dtype: torch.dtype | None = None,
        parametrization: str = "exp",
    ) -> nn.Sequential:
        """The network with random cores.

        Args:
            seed: of cores and gates.
            init: of the gates, as of :class:`unbraid.Circuit`.
            dtype: of all parameters; torch's default if None.
            parametrization: of the gates, as of :class:`unbraid.Circuit`.

        Returns:
            Modules "layer1", "norm1", "relu1", "layer2", ...

        Raises:
            InvalidInputError: if ``init`` or ``parametrization`` is unknown, or ``dtype`` holds no fractions.
        """
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise InvalidInputError(f"dtype must be a floating-point type such as torch.float32; got {dtype!r}.")
        require_choice(init, INITS, "init")
        require_choice(parametrization, PARAMETRIZATIONS, "parametrization")
        modules: OrderedDict[str, nn.Module] = OrderedDict()
        for number, layer in enumerate(self.layers, 1):
            modules[f"layer{number}"] = layer.build(stream_seed(seed, "layer", number), init, dtype, parametrization)
            if layer.norm:
                modules[f"norm{number}"] = nn.BatchNorm1d(prod(layer.out_legs), dtype=dtype)
            if layer.relu:
                modules[f"relu{number}"] = nn.ReLU()
        return nn.Sequential(modules)

    def describe(self) -> str:
        """A table of parameters as text, with the counting rule."""
        rows: list[tuple[str, ...]] = [
            ("layer", "in", "out", "bonds", "MPO", "input circuit", "output circuit", "batch norm", "sum")
        ]
        for number, layer in enumerate(self.layers, 1):
            count = layer.parameters()
            bonds = [shape[3] for shape in layer.core_shapes()[:-1]]
            cells = (_legs(layer.in_legs), _legs(layer.out_legs), _legs(bonds) or "-")
            rows.append((str(number), *cells, *(f"{part:,}" for part in count.values()), f"{sum(count.values()):,}"))
        total = [sum(layer.parameters()[key] for layer in self.layers) for key in ("mpo", "input", "output", "norm")]
        rows.append(("total", "", "", "", *(f"{part:,}" for part in total), f"{self.num_parameters:,}"))
        widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        return "\n".join([*lines, COUNTING_RULE])

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"layers": [asdict(layer) for layer in self.layers]}

    @classmethod
    def from_dict(cls, data: Any) -> Architecture:
        """The inverse of :meth:`to_dict`.

        Raises:
            InvalidInputError: if the data declare no network; naming the layer and the key.
        """
        given = data.get("layers") if isinstance(data, Mapping) else None
        if not isinstance(given, Sequence) or isinstance(given, str):
            raise InvalidInputError("A network is declared as {'layers': [...]}, a list of layers.")
        known = {field.name for field in fields(TensorLayer)}
        layers = []
        for number, options in enumerate(given, 1):
            missing = {"in_legs", "out_legs", "bond"} - set(options if isinstance(options, Mapping) else ())
            unknown = set(options) - known if isinstance(options, Mapping) else set()
            if missing or unknown:
                raise InvalidInputError(
                    f"Layer {number} needs in_legs, out_legs and bond, and may have {', '.join(sorted(known))}; "
                    f"missing: {sorted(missing)}, unknown: {sorted(map(str, unknown))}."
                )
            try:
                layers.append(TensorLayer(**options))
            except InvalidInputError as error:
                raise InvalidInputError(f"Layer {number}: {error}") from error
        return cls(tuple(layers))


def _circuit_parameters(ansatz: Ansatz) -> int:
    gates = sum(num_generators(gate.name, prod(ansatz.gate_dims(gate))) for gate in ansatz.gates() if gate.is_trainable)
    return gates + sum(count_joint(name, ansatz.dimension) for _, name in ansatz.joints)


def _legs(dims: Sequence[int]) -> str:
    """Runs of equal dimensions as powers: 2^6 1^2."""
    runs: list[list[int]] = []
    for dim in dims:
        if runs and runs[-1][0] == dim:
            runs[-1][1] += 1
        else:
            runs.append([dim, 1])
    return " ".join(str(dim) if count == 1 else f"{dim}^{count}" for dim, count in runs)
