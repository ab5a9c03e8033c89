"""Optimizers by name, for :func:`unbraid.heal`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.optim import Adam, Optimizer

from unbraid.ground.errors import require_choice

OPTIMIZERS = ("adam", "soap")

_BASES_EVERY = 20  # steps between new eigenbases
_LARGEST_BASIS = 1024  # longer legs are left as they are

Maker = Callable[[list[nn.Parameter]], Optimizer]


def make_optimizer(
    optimizer: str | Maker, parameters: Sequence[nn.Parameter], lr: float, weight_decay: float = 0.0
) -> Optimizer:
    """An optimizer of parameters.

    Args:
        optimizer: "adam"; "soap": Adam in the eigenbases of the gradients' second moments by each leg of up to 1,024
            (Vyas et al., arXiv:2409.11321), a step of which costs more and brings more; or a function that makes one.
        parameters: that it changes.
        lr: peak learning rate, of those by name.
        weight_decay: likewise; of "adam" added to gradients, of "soap" decoupled from them.

    Raises:
        InvalidInputError: for an unknown name.
    """
    if not isinstance(optimizer, str):
        return optimizer(list(parameters))
    require_choice(optimizer, OPTIMIZERS, "optimizer")
    if optimizer == "adam":
        return Adam(parameters, lr=lr, weight_decay=weight_decay)
    from pytorch_optimizer import SOAP

    made: torch.optim.Optimizer = SOAP(
        parameters,
        lr=lr,
        weight_decay=weight_decay,
        precondition_frequency=_BASES_EVERY,
        max_precondition_dim=_LARGEST_BASIS,
    )
    return made
