"""Training with the noise that readouts will have, so that a network bears it.

A readout of S shots adds to a vector of N = 2^n entries an error of about sqrt((N - 1) / (4 S)) times its norm, in all
directions alike. Batch normalisation may have made much of directions in which activations hardly differ, and there
the noise drowns them. A network that has seen the noise while it was healed does not rely on them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from unbraid.ground.errors import InvalidInputError
from unbraid.nn.layers import DisentangledLinear
from unbraid.quantum.hybrid import QuantumLinear

_EXCESS = 1.2  # squared error of the plus/minus reference over the optimum


@contextmanager
def shot_noise(model: nn.Module, shots: int, *, centered: bool = True) -> Iterator[None]:
    """While the block runs, the circuits of disentangled layers are noisy in training mode, as sampled ones are.

    Gaussian noise is added to what each circuit gets; gates are orthogonal, so this is noise on what it gives. It is
    drawn from torch's global generator, which :func:`unbraid.heal` seeds every epoch. Evaluation is exact. A network
    that was healed with fewer shots than it will be run with loses less and may be a little less accurate.

    Args:
        model: with :class:`~unbraid.nn.DisentangledLinear` layers, before it becomes a hybrid; give the checkpoints of
            noisy and of plain training different folders.
        shots: a vector and circuit.
        centered: noise is relative to the norm of what is left when the mean of the batch is taken off, for hybrids
            with ``to_quantum(center=...)``; False for hybrids without centers, whose noise is larger.

    Raises:
        InvalidInputError: if the model has no disentangled layer or is a hybrid, or ``shots`` is no positive integer.
    """
    if isinstance(shots, bool) or not isinstance(shots, int) or shots < 1:
        raise InvalidInputError(f"shots must be a positive integer; got {shots!r}.")
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    layers = [module for module in modules if isinstance(module, DisentangledLinear)]
    if not layers or any(isinstance(module, QuantumLinear) for module in modules):
        raise InvalidInputError(
            "shot_noise needs a model with a DisentangledLinear layer that is no hybrid yet; got "
            f"{type(model).__name__}."
        )
    noise = _Noise(shots, centered)
    hooks = [
        circuit.register_forward_pre_hook(noise, with_kwargs=True)
        for layer in layers
        for circuit in (layer.input_circuit, layer.output_circuit)
    ]
    try:
        yield
    finally:
        noise.active = False  # for copies of the model, which keep the hook
        for handle in hooks:
            handle.remove()


class _Noise:
    """A hook in front of circuits; one for a model and its copies, and silent in a model that is read from a file."""

    def __init__(self, shots: int, centered: bool) -> None:
        self.shots, self.centered = shots, centered
        self.active = True

    def __deepcopy__(self, memo: object) -> _Noise:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "active": False}

    def __call__(self, circuit: nn.Module, given: Any, options: Mapping[str, Any]) -> Any:
        """What the circuit is called with."""
        return (given, {**options, "prepare": self.noisy}) if self.active and circuit.training else None

    def noisy(self, x: Tensor) -> Tensor:
        """Vectors, shape (B, N), as they come back from so many shots."""
        encoded = x.detach()
        if self.centered and len(x) > 1:
            encoded = encoded - encoded.mean(dim=0)
        size = x.shape[1]
        share = (_EXCESS * (size - 1) / (4 * self.shots * size)) ** 0.5
        return x + share * torch.linalg.vector_norm(encoded, dim=1, keepdim=True) * torch.randn_like(x)
