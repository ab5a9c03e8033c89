"""Models of the recipes, as factories that ``package.module:factory`` on the command line can name too."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

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


def relu_network(sizes: Sequence[int], seed: int, name: str) -> nn.Sequential:
    """A dense network with ReLU between its layers, which are called "fc1", "fc2", ...

    Args:
        sizes: features, from the inputs to the outputs.
        seed: of the initial weights.
        name: keeps the weights of different networks of a seed apart.
    """
    with isolated(seed, name):
        model = nn.Sequential()
        for number, (one, other) in enumerate(pairwise(sizes), 1):
            if number > 1:
                model.add_module(f"relu{number - 1}", nn.ReLU())
            model.add_module(f"fc{number}", nn.Linear(one, other))
        return model
