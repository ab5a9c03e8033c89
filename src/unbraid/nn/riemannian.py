"""Riemannian steps: Adam whose chart of the rotation groups moves along with the gates."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from unbraid.circuits import Circuit
from unbraid.ground.errors import InvalidInputError


class RiemannianAdam(torch.optim.Adam):
    """Adam that makes the gates the bases of their charts after every step.

    A gate is its base times a map of its generators. At generators of zero the gradient by them is the Riemannian
    gradient, the map of every parametrisation is a retraction, and moments are carried along by left translation.
    Parameters that are no generators are trained by plain Adam.

    Args:
        parameters: as of any optimizer.
        model: whose circuits are moved.
        **options: of ``torch.optim.Adam``.

    Raises:
        InvalidInputError: if the model has no circuit with trainable gates.

    Source:
        Dynamic trivialisations, arXiv:1909.09501.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], model: nn.Module, **options: Any) -> None:
        if not isinstance(model, nn.Module):
            raise InvalidInputError(f"model must be the module whose circuits are moved; got {type(model).__name__}.")
        super().__init__(parameters, **options)
        self._circuits = [module for module in model.modules() if isinstance(module, Circuit) and module.generators]
        if not self._circuits:
            raise InvalidInputError("The model has no circuit with trainable gates; use torch.optim.Adam.")

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step of Adam; then every circuit is moved to its new gates."""
        loss = super().step(closure)
        for circuit in self._circuits:
            circuit.rebase()
        return loss
