"""Unbraid: neural-network layers as quantum circuits and small matrix product operators.

The pipeline: ``tensorize`` a trained network, ``heal`` it, ``disentangle`` its MPOs into circuits and smaller cores,
run the hybrid with ``to_quantum``, and ``evaluate`` it. Importing this package loads torch and safetensors; what stands
behind a name is loaded when the name is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import safetensors as safetensors
import torch as torch

if TYPE_CHECKING:
    from unbraid import natural as natural
    from unbraid import nn as nn
    from unbraid.circuits import Ansatz, Circuit, brickwall, parse_ansatz, scaffold, search_geometry
    from unbraid.disentangling import Disentangled, disentangle, spectral_ceiling
    from unbraid.nn import (
        convert_layers,
        disentangle_layers,
        heal,
        load_pretrained,
        merge_back,
        quantize,
        save_pretrained,
        scan,
        tensorize,
        verdict,
    )
    from unbraid.quantum import (
        AerExecutor,
        QuantumLinear,
        SamplerExecutor,
        TorchExecutor,
        encode,
        estimate_cost,
        read_out,
        synthesize_orthogonal,
        to_qasm3,
        to_qiskit,
        to_quantum,
    )
    from unbraid.report import Report, evaluate
    from unbraid.tensors import MPO, MPS, overlap

_ROOMS = {
    "unbraid.tensors": ("MPO", "MPS", "overlap"),
    "unbraid.circuits": ("Ansatz", "Circuit", "brickwall", "parse_ansatz", "scaffold", "search_geometry"),
    "unbraid.disentangling": ("Disentangled", "disentangle", "spectral_ceiling"),
    "unbraid.nn": (
        "convert_layers",
        "disentangle_layers",
        "heal",
        "load_pretrained",
        "merge_back",
        "quantize",
        "save_pretrained",
        "scan",
        "tensorize",
        "verdict",
    ),
    "unbraid.quantum": (
        "AerExecutor",
        "QuantumLinear",
        "SamplerExecutor",
        "TorchExecutor",
        "encode",
        "estimate_cost",
        "read_out",
        "synthesize_orthogonal",
        "to_qasm3",
        "to_qiskit",
        "to_quantum",
    ),
    "unbraid.report": ("Report", "evaluate"),
}
_ORIGIN = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = [
    "MPO",
    "MPS",
    "AerExecutor",
    "Ansatz",
    "Circuit",
    "Disentangled",
    "QuantumLinear",
    "Report",
    "SamplerExecutor",
    "TorchExecutor",
    "brickwall",
    "convert_layers",
    "disentangle",
    "disentangle_layers",
    "encode",
    "estimate_cost",
    "evaluate",
    "heal",
    "load_pretrained",
    "merge_back",
    "overlap",
    "parse_ansatz",
    "quantize",
    "read_out",
    "save_pretrained",
    "scaffold",
    "scan",
    "search_geometry",
    "spectral_ceiling",
    "synthesize_orthogonal",
    "tensorize",
    "to_qasm3",
    "to_qiskit",
    "to_quantum",
    "verdict",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("unbraid")
    if name in _ORIGIN:
        value = getattr(importlib.import_module(_ORIGIN[name]), name)
        globals()[name] = value
        return value
    if name in ("circuits", "disentangling", "ground", "natural", "nn", "quantum", "recipes", "report", "tensors"):
        return importlib.import_module(f"unbraid.{name}")
    raise AttributeError(f"module 'unbraid' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
