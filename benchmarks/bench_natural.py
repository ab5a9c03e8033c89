"""Natural networks trained and judged together, beside one by one: 196 -> 64 -> 64 -> 10, six quantumnesses.

Time of one network after another over that of all as one stack, one thread, single precision; medians of rounds in
which all take turns. Training is five epochs of 1,000 rows in batches of 50; judging is 1,000 rows with 16 shots. All
give the same weights and the same outcomes. One by one is ``unbraid.heal`` as it comes; "fused" is the same with the
fused kernel of Adam that the stack steps with.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from timing import print_rows
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from unbraid.natural import NaturalMLP, errors_together, train_together
from unbraid.nn import heal

QUANTUMNESS = (0.0, 0.1, 0.25, 0.5, 1.0, 1.5)
COUNTS = (6, 18, 60)
ROUNDS = 3
RUN: dict[str, Any] = {"epochs": 5, "lr": 2e-3, "batch_size": 50, "scheduler": "cosine", "seed": 0}


def networks(count: int) -> list[NaturalMLP]:
    """Of all quantumnesses, with a seed each."""
    return [NaturalMLP((196, 64, 64, 10), a=QUANTUMNESS[k % len(QUANTUMNESS)], seed=k) for k in range(count)]


def loss(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Of one network."""
    return cross_entropy(network(batch[0]), batch[1])


def fused_adam(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """As the stack's."""
    return torch.optim.Adam(parameters, RUN["lr"], fused=True)


@torch.no_grad()
def wrong(network: NaturalMLP, x: Tensor, y: Tensor, shots: int) -> float:
    """The error of one network."""
    logs = torch.cat([network.each_shot(rows, shots).log_softmax(-1).logsumexp(0) for rows in x.split(128)])
    return float((logs.argmax(-1) != y).float().mean())


def seconds(function: Callable[[], Any]) -> float:
    """Of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(1_000, 196, generator=generator) > 0.8).float() * 2 - 1
    y = torch.randint(10, (1_000,), generator=generator)
    rows = []
    for count in COUNTS:
        start = networks(count)
        times: dict[str, list[float]] = {"train": [], "fused": [], "together": [], "judge": [], "judged together": []}
        for _ in range(ROUNDS):
            alone, fused, stack = (copy.deepcopy(start) for _ in range(3))
            times["together"].append(seconds(lambda stack=stack: train_together(stack, (x, y), **RUN)))
            times["train"].append(seconds(lambda alone=alone: [heal(each, (x, y), loss=loss, **RUN) for each in alone]))
            times["fused"].append(
                seconds(
                    lambda fused=fused: [heal(each, (x, y), loss=loss, optimizer=fused_adam, **RUN) for each in fused]
                )
            )
            times["judged together"].append(seconds(lambda stack=stack: errors_together(stack, x, y, shots=16)))
            times["judge"].append(seconds(lambda alone=alone: [wrong(each, x, y, 16) for each in alone]))
        found = {name: statistics.median(each) for name, each in times.items()}
        ratios = [found[name] / found["together"] for name in ("train", "fused")]
        judged = found["judge"] / found["judged together"]
        rows.append([count, found["together"], *ratios, found["judged together"], judged])
    heads = ("train together, s", "one by one, times", "fused, times", "judge together, s", "one by one, times")
    print_rows(["networks", *heads], rows)


if __name__ == "__main__":
    main()
