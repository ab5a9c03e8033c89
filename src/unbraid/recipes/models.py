"""Models of the recipes, as factories that ``package.module:factory`` on the command line can name too."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from unbraid.ground.random import isolated


def digits_mlp(seed: int = 0) -> nn.Sequential:
    """A dense 64-64-10 network with batch normalisation and ReLU; its 64 x 64 layer is called "hidden".

    Args:
        seed: of the initial weights.
    """
    with isolated(seed, "digits_mlp"):
        return nn.Sequential(
            OrderedDict(
                hidden=nn.Linear(64, 64),
                norm=nn.BatchNorm1d(64),
                relu=nn.ReLU(),
                output=nn.Linear(64, 10),
            )
        )
