"""Export of disentangled layers: circuits as OpenQASM 3 and QPY, cores as safetensors."""

from __future__ import annotations

import os
import re

from torch import nn

from unbraid.ground.errors import InvalidInputError
from unbraid.ground.files import make_directory, write_tensors, write_text
from unbraid.ground.manifest import build_manifest
from unbraid.nn import DisentangledLinear
from unbraid.quantum import count_gates, to_qasm3, to_qiskit, write_qpy
from unbraid.quantum.cost import GateCounts
from unbraid.report import Report


def export_model(model: nn.Module, out: str | os.PathLike[str]) -> list[tuple[str, ...]]:
    """Write every circuit and core of a model's disentangled layers.

    Files are named after the layer: ``NAME.input.qasm``, ``NAME.output.qasm`` (with a number a segment, where
    nonlinearities stand in a circuit), ``NAME.qpy`` with all of them, and ``NAME.core.safetensors``; the gate counts go
    to ``report.json`` and ``report.html``.

    Args:
        model: with at least one disentangled layer.
        out: folder; created if needed.

    Returns:
        A table with a head: circuit, qubits, gates as built, gates after transpilation to FakeMontrealV2.

    Raises:
        InvalidInputError: if there is no disentangled layer.
        OutputError: if ``out`` cannot be written to.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, DisentangledLinear)}
    if not layers:
        raise InvalidInputError("This model has no disentangled layers to export; run `unbraid disentangle` first.")
    place = make_directory(out)
    rows: list[tuple[str, ...]] = [("circuit", "qubits", "CNOTs", "depth", "CNOTs on FakeMontrealV2", "depth there")]
    gates: dict[str, dict[str, dict[str, int]]] = {"logical": {}, "transpiled": {}}
    for name, layer in layers.items():
        stem = re.sub(r"[^A-Za-z0-9_.-]", "_", name) or "layer"
        everything = []
        for side, circuit in (("input", layer.input_circuit), ("output", layer.output_circuit)):
            segments = circuit.segments()
            for number, segment in enumerate(segments):
                label = side if len(segments) == 1 else f"{side}{number}"
                qc = to_qiskit(segment)
                everything.append(qc)
                write_text(place / f"{stem}.{label}.qasm", to_qasm3(segment))
                counts = count_gates(qc)
                built, mapped = counts["logical"], counts["transpiled"]
                gates["logical"][f"{name}.{label}"] = _plain(built)
                gates["transpiled"][f"{name}.{label}"] = _plain(mapped)
                figures = (built["two_qubit"], built["depth"], mapped["two_qubit"], mapped["depth"])
                rows.append((f"{name}.{label}", str(qc.num_qubits), *(str(figure) for figure in figures)))
        write_qpy(place / f"{stem}.qpy", everything)
        core = layer.core
        legs = {"out_dims": str(list(core.out_dims)), "in_dims": str(list(core.in_dims))}
        write_tensors(place / f"{stem}.core.safetensors", {f"core.{k}": c for k, c in enumerate(core.cores)}, legs)
    counts_all = {kind: {**parts, "total": _total(parts)} for kind, parts in gates.items()}
    Report(
        title="Export",
        gates=counts_all,
        manifest=build_manifest(),
        notes=["Gates of the circuits without state preparation, as built and transpiled to FakeMontrealV2."],
    ).save(place)
    return rows


def _plain(counts: GateCounts) -> dict[str, int]:
    return {
        "one_qubit": counts["one_qubit"],
        "two_qubit": counts["two_qubit"],
        "depth": counts["depth"],
        "total": counts["total"],
    }


def _total(parts: dict[str, dict[str, int]]) -> dict[str, int]:
    return {key: sum(part[key] for part in parts.values()) for key in ("one_qubit", "two_qubit", "depth", "total")}
