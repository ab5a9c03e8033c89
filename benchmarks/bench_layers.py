"""An MPO layer 1024 -> 1024, five sites of 4, beside ``nn.Linear`` and the tensor layers of other libraries.

Time over that of ``nn.Linear`` in the same run, one thread, single precision, no bias: forward without gradients (with
joined cores kept between calls, and with nothing kept), and forward with backward; medians of rounds in which all take
turns. Last, what a forward pass saves for the way back at batch 1,024. tensorly-torch has two ways to contract.

Peers are used where they are installed: tensorly-torch 0.5.0, torchTT 0.5.0, TensorKrowch 1.1.6, tednet 0.1.3 and
torch-mpo 0.2.3 (which wants Python 3.12).
"""

from __future__ import annotations

import contextlib
import io
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from timing import print_rows
from torch import nn

from unbraid.nn import MPOLinear
from unbraid.tensors import MPO

SITES = (4,) * 5
BONDS = (8, 16, 32)
BATCHES = (1, 64, 1024)
ROUNDS = 9


def ours(bond: int) -> dict[str, nn.Module]:
    """As it comes, and without anything kept."""
    kept, bare = (MPOLinear(MPO.random(SITES, SITES, bond)) for _ in range(2))
    bare.keeps_blocks = False
    return {"Unbraid": kept, "Unbraid, nothing kept": bare}


def tensorly_torch(bond: int) -> dict[str, nn.Module]:
    from tltorch import FactorizedLinear

    return {
        f"tensorly-torch, {way}": FactorizedLinear(
            SITES, SITES, bias=False, factorization="blocktt", rank=bond, implementation=way
        )
        for way in ("factorized", "reconstructed")
    }


def torchtt(bond: int) -> dict[str, nn.Module]:
    from torchtt.nn import LinearLayerTT

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = LinearLayerTT(list(SITES), list(SITES), [1, *[bond] * (len(SITES) - 1), 1])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x.reshape(-1, *SITES)).reshape(len(x), -1)

    return {"torchTT": Flat()}


def tensorkrowch(bond: int) -> dict[str, nn.Module]:
    import tensorkrowch as tk

    class Network(tk.TensorNetwork):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            bonds = [1, *[bond] * (len(SITES) - 1), 1]
            self.sites = [
                tk.ParamNode(
                    shape=(bonds[k], dim, dim, bonds[k + 1]),
                    axes_names=("left", "out", "in", "right"),
                    name=f"core_{k}",
                    network=self,
                    init_method="randn",
                )
                for k, dim in enumerate(SITES)
            ]
            for one, other in zip(self.sites[:-1], self.sites[1:], strict=True):
                _ = one["right"] ^ other["left"]
            names = ("batch", *(f"feature_{k}" for k in range(len(SITES))))
            self.vectors = tk.Node(shape=(1, *SITES), axes_names=names, name="vectors", network=self)
            for k, site in enumerate(self.sites):
                _ = self.vectors[f"feature_{k}"] ^ site["in"]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.reset()
            self.vectors.tensor = x.reshape(-1, *SITES)
            result = self.vectors
            for site in self.sites:
                result = result @ site
            return result.tensor.reshape(len(x), -1)

    return {"TensorKrowch": Network()}


def tednet(bond: int) -> dict[str, nn.Module]:
    from tednet.tnn.tensor_train import TTLinear

    return {"TedNet": TTLinear(list(SITES), list(SITES), [bond] * (len(SITES) - 1), bias=False)}


def torch_mpo(bond: int) -> dict[str, nn.Module]:
    from torch_mpo import TTLinear

    return {"torch-mpo": TTLinear(1024, 1024, list(SITES), list(SITES), tt_ranks=bond, bias=False)}


def layers(bond: int) -> dict[str, nn.Module]:
    """All that can be had, ``nn.Linear`` first."""
    found: dict[str, nn.Module] = {"nn.Linear": nn.Linear(1024, 1024, bias=False)}
    for maker in (ours, tensorly_torch, torchtt, tensorkrowch, tednet, torch_mpo):
        with contextlib.suppress(ImportError), contextlib.redirect_stdout(io.StringIO()):
            found |= maker(bond)
    return found


def seconds_of(functions: dict[str, Callable[[], Any]], least: float = 0.02) -> dict[str, float]:
    """Medians of rounds in which each function runs in turn, for ``least`` seconds at least."""

    def run(function: Callable[[], Any], loops: int) -> float:
        start = time.perf_counter()
        for _ in range(loops):
            function()
        return (time.perf_counter() - start) / loops

    loops = {}
    for name, function in functions.items():
        function()
        loops[name] = max(1, int(least / run(function, 2)))
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(ROUNDS):
        for name, function in functions.items():
            times[name].append(run(function, loops[name]))
    return {name: statistics.median(each) for name, each in times.items()}


def saved(layer: nn.Module, x: torch.Tensor) -> float:
    """MB that a forward pass saves for the way back, input and parameters left out."""
    known = {tensor.untyped_storage().data_ptr() for tensor in (x, *layer.parameters())}
    found: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        layer(x)
    return sum(found.values()) / 1e6


def step(layer: nn.Module, x: torch.Tensor, gradient: torch.Tensor) -> None:
    layer.zero_grad(set_to_none=True)
    x.grad = None
    layer(x).backward(gradient)


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for bond in BONDS:
        modules = layers(bond)
        cells: dict[str, dict[str, float]] = {name: {} for name in modules}
        for batch in BATCHES:
            x, gradient = torch.randn(batch, 1024), torch.randn(batch, 1024)
            leaf = x.clone().requires_grad_()
            with torch.no_grad():
                forward = seconds_of({name: lambda module=module: module(x) for name, module in modules.items()})
            both = seconds_of(
                {name: lambda module=module: step(module, leaf, gradient) for name, module in modules.items()}
            )
            for name in modules:
                cells[name][f"{batch:,}"] = forward[name] / forward["nn.Linear"]
                cells[name][f"{batch:,} f+b"] = both[name] / both["nn.Linear"]
        for name, module in modules.items():
            cells[name]["saved, MB"] = saved(module, torch.randn(1024, 1024, requires_grad=True))
        heads = list(cells["nn.Linear"])
        print(f"\nbond {bond}: time over nn.Linear by batch; f+b: forward and backward")
        print_rows(["layer", *heads], [[name, *(cells[name][head] for head in heads)] for name in modules])


if __name__ == "__main__":
    main()
