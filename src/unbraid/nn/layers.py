"""Layers: ``MPOLinear`` and ``DisentangledLinear``, drop-in replacements of ``nn.Linear``.

Legend: B is a batch, in and out the logical sizes; padded sizes are the products of the legs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from unbraid.circuits import Circuit
from unbraid.disentangling.result import Disentangled
from unbraid.ground.errors import InvalidInputError
from unbraid.nn.cores import Cores, stored
from unbraid.nn.operator import OperatorModule, bias_parameter, core_parameters, operator
from unbraid.tensors import MPO, contraction, rebuilt
from unbraid.tensors.contraction import Plan, apply_cores, price, price_dense, resized
from unbraid.tensors.prices import ONCE, TRAINING, product

ROWS_IN_GRAPHS = 256  # torch.compile and torch.export take the plan for this batch, whatever comes


class MPOLinear(OperatorModule):
    """A linear layer whose weight is a matrix product operator with trainable cores.

    How a batch passes the cores depends on its size, the bonds, and whether gradients are wanted; :meth:`plan` tells.
    While no gradient of the cores is wanted, joined cores are kept from one call to the next, the whole weight where
    that is quickest (:class:`~unbraid.nn.operator.OperatorModule` says until when; ``keeps_blocks = False`` turns it
    off).

    Args:
        mpo: real; its scale is spread over the cores.
        bias: shape (out,), or None.

    Raises:
        InvalidInputError: if the MPO is complex or the bias has another size.
    """

    was_conv1d = False  # of transformers, whose weight is (in, out): merge_back makes one again

    def __init__(self, mpo: MPO, bias: Tensor | None = None) -> None:
        super().__init__(mpo)
        self.out_features, self.in_features = mpo.shape
        self.bias = bias_parameter(bias, self.out_features, mpo)
        self._in_graphs = contraction.plan(self._shapes, ROWS_IN_GRAPHS, chunked=False)

    def cores_changed(self) -> None:
        """To be called once the cores are others, of the same legs."""
        super().cores_changed()
        self._in_graphs = contraction.plan(self._shapes, ROWS_IN_GRAPHS, chunked=False)

    @classmethod
    def from_linear(
        cls,
        layer: nn.Linear,
        out_dims: Sequence[int] | None = None,
        in_dims: Sequence[int] | None = None,
        *,
        max_bond: int | None = None,
        rel_error: float | None = None,
        max_parameters: int | None = None,
        method: str = "auto",
        seed: int = 0,
    ) -> MPOLinear:
        """Decompose the weight of ``layer``; arguments as in :meth:`unbraid.MPO.from_dense`."""
        mpo = MPO.from_dense(
            layer.weight,
            out_dims,
            in_dims,
            max_bond=max_bond,
            rel_error=rel_error,
            max_parameters=max_parameters,
            method=method,
            seed=seed,
        )
        return cls(mpo, layer.bias)

    @property
    def weight(self) -> Tensor:
        """The dense weight, shape (out, in); computed at every access, differentiable."""
        return self.mpo.to_dense()

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        sizes = f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        return f"{sizes}, {self._geometry()}"

    def plan(self, batch: int, *, training: bool | None = None) -> Plan:
        """How so many vectors would pass; ``print(layer.plan(64).describe())``.

        Args:
            batch: number of vectors.
            training: whether gradients of the cores are wanted; by default as things stand.
        """
        if training is None:
            training = self._wants_gradients()
        return self._plan(batch, training, chunked=stored(self.cores)[-1].element_size() > 2)

    def _plan(self, batch: int, training: bool, chunked: bool) -> Plan:
        tariff = TRAINING if training else ONCE
        joined = self.keeps_blocks and not training
        return contraction.plan(self._shapes, contraction.rounded(batch), tariff, joined, chunked)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (..., in) to (..., out)."""
        if not x.dim() or x.shape[-1] != self.in_features:
            raise InvalidInputError(f"This layer takes {self.in_features} features; got shape {tuple(x.shape)}.")
        training = self._wants_gradients()
        compiling = torch.compiler.is_compiling()
        if training and not compiling:
            self._kept.drop()
        way = self._in_graphs if compiling else self._plan(x.shape[:-1].numel(), training, contraction.may_be_cut(x))
        if way.is_dense and training and not compiling and self._can_be_rebuilt(x):
            cores = tuple(self.cores)
            middle = len(cores) // 2
            one, other = contraction.join(cores[:middle]), contraction.join(cores[middle:])
            return rebuilt.linear(x, one[0], other[..., 0], self.bias)
        keeps = self.keeps_blocks and not training and not compiling
        blocks = self._kept.get(stored(self.cores), way, self._blocks) if keeps else self._blocks(way)
        if way.is_dense:
            return linear(x, blocks[0], self.bias)
        y = contraction.passed(resized(x, self._padded_shape[1]), blocks, way, self._shapes)
        y = resized(y, self.out_features)
        if self.bias is None:
            return y
        bias = self.bias.to(y.dtype)  # under autocast y has less precision, as that of nn.Linear
        return y + bias if torch.is_grad_enabled() else y.add_(bias)

    def _can_be_rebuilt(self, x: Tensor) -> bool:
        """Whether the dense weight can be made block by block: without padding, in full precision, on a CPU."""
        padded = self._padded_shape != self._matrix_shape
        return len(self._shapes) > 1 and not padded and x.device.type == "cpu" and contraction.may_be_cut(x)

    def to_linear(self) -> nn.Linear:
        """The equivalent dense layer."""
        return _dense_linear(self.weight, self.bias)


class DisentangledLinear(nn.Module):
    """A linear layer as output circuit, core MPO, input circuit and bias: ``W = O C I``.

    Inputs are zero-padded at the end to the width of the input circuit; outputs of the output circuit are cropped.
    Circuits may carry nonlinearities between their segments; the layer is then no longer linear and has no weight.

    Args:
        output_circuit: acts last; layer 0 first.
        core: real MPO from the input circuit's width to the output circuit's.
        input_circuit: acts first; a mirrored circuit, layer 0 last.
        out_features: logical output size; the output circuit's width by default.
        in_features: logical input size; the input circuit's width by default.
        bias: shape (out,), or None.

    Raises:
        InvalidInputError: if sizes do not fit or something is complex.

    Source:
        Sec. V of "Classical Neural Networks on Quantum Devices via Tensor Network Disentanglers". Its rows
        ``Y = X Q_L M' Q_R`` are our columns with ``Q_L = I^T`` and ``Q_R = O^T``.
    """

    was_conv1d = False  # as of MPOLinear

    def __init__(
        self,
        output_circuit: Circuit,
        core: MPO,
        input_circuit: Circuit,
        *,
        out_features: int | None = None,
        in_features: int | None = None,
        bias: Tensor | None = None,
    ) -> None:
        super().__init__()
        if output_circuit.is_complex or input_circuit.is_complex:
            raise InvalidInputError("A DisentangledLinear needs real circuits; choose gate='so' or 'o'.")
        widths = (output_circuit.dimension, input_circuit.dimension)
        if core.padded_shape != widths:
            raise InvalidInputError(
                f"The core must map the input circuit's width to the output circuit's, {widths[1]} to {widths[0]}; got "
                f"a core of shape (out, in) = {core.padded_shape}."
            )
        self.out_features = widths[0] if out_features is None else out_features
        self.in_features = widths[1] if in_features is None else in_features
        if not (0 < self.out_features <= widths[0] and 0 < self.in_features <= widths[1]):
            raise InvalidInputError(
                f"out_features and in_features must be at most {widths}; got ({self.out_features}, {self.in_features})."
            )
        self.input_circuit = input_circuit
        self.cores: Cores = core_parameters(core)
        self.output_circuit = output_circuit
        self.bias = bias_parameter(bias, self.out_features, core)

    @classmethod
    def from_disentangled(cls, result: Disentangled, bias: Tensor | None = None) -> DisentangledLinear:
        """The layer that applies ``O C I`` of an explicit disentangling; circuits are taken over, not copied."""
        out_features, in_features = result.shape
        return cls(
            result.output_circuit,
            result.core,
            result.input_circuit,
            out_features=out_features,
            in_features=in_features,
            bias=bias,
        )

    @property
    def core(self) -> MPO:
        """The core, sharing the parameters (differentiable)."""
        return operator(self.cores, (self.output_circuit.dimension, self.input_circuit.dimension))

    @property
    def is_linear(self) -> bool:
        """Whether the circuits carry no nonlinearities."""
        return self.input_circuit.is_linear and self.output_circuit.is_linear

    @property
    def weight(self) -> Tensor:
        """The dense ``O C I``, cropped to (out, in); differentiable.

        Raises:
            InvalidInputError: if a circuit carries nonlinearities.
        """
        return self._dense()[: self.out_features, : self.in_features]

    @property
    def num_parameters(self) -> int:
        """Trainable scalars: core, gates, batch norms within the circuits, bias."""
        return sum(parameter.numel() for parameter in self.parameters())

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"core_bond_dims={self.core.bond_dims}"
        )

    def forward(self, x: Tensor) -> Tensor:
        """Shape (..., in) to (..., out)."""
        if not x.dim() or x.shape[-1] != self.in_features:
            raise InvalidInputError(f"This layer takes {self.in_features} features; got shape {tuple(x.shape)}.")
        x = resized(x, self.input_circuit.dimension)
        if self._dense_is_quicker(x.shape[:-1].numel()):
            x = linear(x, self._dense())
        else:
            x = self.output_circuit(apply_cores(self.input_circuit(x), tuple(self.cores)))
        x = resized(x, self.out_features)
        return x if self.bias is None else x + self.bias

    def _dense(self) -> Tensor:
        """Padded ``O C I``. Both circuits act on as many vectors as the smaller side has dimensions."""
        core = self.core.to_padded_dense()
        if core.shape[0] <= core.shape[1]:
            return self.output_circuit.matrix() @ self.input_circuit.adjoint(core)
        return self.output_circuit(core.mT).mT @ self.input_circuit.matrix()

    def _dense_is_quicker(self, batch: int) -> bool:
        circuits = (self.input_circuit, self.output_circuit)
        if not self.is_linear or any(circuit._forward_pre_hooks or circuit._forward_hooks for circuit in circuits):
            return False  # whoever hooks on to a circuit wants to see vectors
        width_out, width_in = self.output_circuit.dimension, self.input_circuit.dimension
        least = min(width_out, width_in)
        cores = tuple(self.cores)
        direct = sum(circuit.price(batch) for circuit in circuits) + price(cores, batch)
        dense = sum(circuit.price(least) for circuit in circuits) + price_dense(cores)
        return dense + product(least + batch, width_in, width_out) < direct

    def to_linear(self) -> nn.Linear:
        """The equivalent dense layer.

        Raises:
            InvalidInputError: if a circuit carries nonlinearities.
        """
        return _dense_linear(self.weight, self.bias)


def _dense_linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    out_features, in_features = weight.shape
    layer = torch.nn.utils.skip_init(  # draws no numbers
        nn.Linear, in_features, out_features, bias=bias is not None, device=weight.device, dtype=weight.dtype
    )
    assert isinstance(layer, nn.Linear)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer
