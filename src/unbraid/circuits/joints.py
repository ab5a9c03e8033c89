"""What stands between the segments of a circuit: vectors are read out, changed, and go on.

Joints are written as ``relu``, ``mean(a)``, ``rotation(a)``, ``weak(g)`` or ``weak(g,a)``, each with ``bn+`` in front
if a batch normalisation comes first. The last three measure: each entry of the vector is the input of a neuron qubit,
whose outcome +1 or -1 goes on (:mod:`unbraid.circuits.neurons`). ``mean(a)`` passes the mean of ``rotation(a)`` on, a
sine of entries up to ``a``: what that would do without a measurement.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from unbraid.circuits.neurons import Estimator, RotationNeuron, WeakMeasurement
from unbraid.ground.errors import InvalidInputError

EXAMPLES = ("relu", "bn+relu", "rotation(0.5)", "bn+rotation(0.5)", "weak(0.8)", "bn+weak(0.8,0.5)", "mean(0.5)")

_NUMBER = r"[0-9]+(?:\.[0-9]*)?|\.[0-9]+"
_JOINT = re.compile(
    rf"(?P<norm>bn\+)?(?:relu|(?P<kind>rotation|mean)\((?P<a>{_NUMBER})\)"
    rf"|weak\((?P<g>{_NUMBER})(?:,(?P<weak_a>{_NUMBER}))?\))"
)


class Normalized(nn.Module):
    """Batch normalisation over the last axis, whatever stands before it, and an activation."""

    def __init__(
        self,
        features: int,
        activation: nn.Module,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(features, dtype=dtype, device=device)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Shape (..., features) in and out."""
        y: Tensor = self.activation(self.norm(x.reshape(-1, x.shape[-1])).reshape(x.shape))
        return y


def make_joint(
    name: str, features: int, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> nn.Module:
    """A joint from its name; neurons draw from torch's own generator.

    Args:
        name: without spaces.
        features: of the vectors.
        dtype: of a batch normalisation.
        device: likewise.

    Raises:
        InvalidInputError: if the name is none, or a number in it is out of range.
    """
    match = _JOINT.fullmatch(name)
    if match is None:
        raise InvalidInputError(f"A joint must be one of {', '.join(EXAMPLES)}; got {name!r}.")
    activation: nn.Module = nn.ReLU()
    if match["a"] is not None:
        estimator: Estimator = "mean_field" if match["kind"] == "mean" else "ste"
        activation = RotationNeuron(float(match["a"]), estimator=estimator)
    elif match["g"] is not None:
        activation = WeakMeasurement(float(match["g"]), a=float(match["weak_a"] or 0))
    if match["norm"] is None:
        return activation
    return Normalized(features, activation, dtype=dtype, device=device)


def count_joint(name: str, features: int) -> int:
    """Trainable numbers of a joint."""
    return 2 * features if name.startswith("bn+") else 0
