"""``unbraid demo``: the main job end to end on bundled digits, from training to circuits on Aer, and its report."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unbraid.circuits import Circuit, brickwall
from unbraid.circuits.drawing import draw_circuit
from unbraid.disentangling import Disentangled, disentangle
from unbraid.ground import progress
from unbraid.ground.errors import DidNotConvergeError, require_extra
from unbraid.ground.files import make_directory, write_text
from unbraid.ground.manifest import build_manifest
from unbraid.ground.parallel import one_thread
from unbraid.nn import DisentangledLinear, MPOLinear, accuracy, save_pretrained
from unbraid.quantum import (
    AerExecutor,
    QuantumLinear,
    TorchExecutor,
    count_gates,
    estimate_cost,
    from_qasm3,
    to_qasm3,
    to_qiskit,
    to_quantum,
    write_qpy,
)
from unbraid.recipes.pipeline import SHOTS, TARGET, Networks, Settings, build_networks, timed
from unbraid.report import Report
from unbraid.tensors.entanglement import maximum_entropies

AER_IMAGES = 50
_STEPS = ("dense", "mpo", "healed", "explicit", "disentangled", "exact", "hybrid")
QASM_TOLERANCE = 1e-5  # gates are float32


def run_demo(
    out: str | os.PathLike[str],
    *,
    seed: int = 0,
    settings: Settings | None = None,
    announce: Callable[[str], None] | None = None,
) -> Report:
    """Run the whole pipeline and write ``report.json``, ``report.html``, plots, ``model/``, QASM and QPY files.

    Args:
        out: folder for everything; created if needed.
        seed: the same seed gives the same numbers.
        settings: hyperparameters of the classical half.
        announce: is told what the circuits will cost, before they run.

    Returns:
        The report that was written.

    Raises:
        OutputError: if ``out`` cannot be written to; checked before any work.
        MissingExtraError: if Aer, the fake backends or matplotlib are not installed; likewise.
        DidNotConvergeError: if an exported circuit does not read back as it is.
    """
    place = make_directory(out)
    for module, extra in (
        ("qiskit_aer.primitives", "aer"),
        ("qiskit_ibm_runtime.fake_provider", "ibm"),
        ("matplotlib", "report"),
    ):
        require_extra(module, extra)
    with one_thread():
        return _run_demo(place, seed, settings, announce)


def _run_demo(place: Path, seed: int, settings: Settings | None, announce: Callable[[str], None] | None) -> Report:
    networks = build_networks(seed, settings)
    seconds = dict(networks.seconds)
    layer = networks.disentangled.get_submodule(TARGET)
    assert isinstance(layer, DisentangledLinear)
    sides = {"input": layer.input_circuit, "output": layer.output_circuit}
    with timed(seconds, "export"):
        save_pretrained(networks.disentangled, place / "model")
        _export(sides, place)
    with timed(seconds, "transpile"):
        gates = _gates(sides)
    hybrid = _run_hybrids(networks, seed, seconds, announce)
    report = _report(networks, gates, hybrid, sides, seed, seconds)
    report.save(place)
    return report


def _export(sides: dict[str, Circuit], place: Path) -> None:
    """Both circuits as OpenQASM 3, read back and compared, and as QPY."""
    for side, circuit in progress.track(sides.items(), "export circuits", len(sides)):
        text = to_qasm3(circuit)
        again = Circuit.from_qiskit(from_qasm3(text)).matrix()
        difference = float((again.double() - circuit.matrix().double()).detach().abs().max())
        if difference > QASM_TOLERANCE:
            raise DidNotConvergeError(
                f"The {side} circuit's OpenQASM 3 differs from it by {difference:.1e} after reading."
            )
        write_text(place / f"{side}_circuit.qasm", text)
    write_qpy(place / "circuits.qpy", [to_qiskit(circuit) for circuit in sides.values()])


def _gates(sides: dict[str, Circuit]) -> dict[str, dict[str, dict[str, int]]]:
    counts: dict[str, dict[str, dict[str, int]]] = {"logical": {}, "transpiled": {}}
    for side, circuit in progress.track(sides.items(), "transpile to FakeMontrealV2", len(sides)):
        found: Any = count_gates(circuit)
        for kind, table in counts.items():
            table[side] = dict(found[kind])
    for table in counts.values():
        table["total"] = {key: sum(table[side][key] for side in sides) for key in table["input"]}
    return counts


@torch.no_grad()
def _run_hybrids(
    networks: Networks, seed: int, seconds: dict[str, float], announce: Callable[[str], None] | None
) -> dict[str, Any]:
    """All test images exactly and with sampled shots in torch, the first ones on Aer with complete circuits."""
    x, y = networks.data.test
    few_x, few_y = x[:AER_IMAGES], y[:AER_IMAGES]
    model = networks.disentangled
    exact = to_quantum(model, TorchExecutor(), readout="exact", seed=seed)
    sampled = to_quantum(model, TorchExecutor(seed), shots=SHOTS, seed=seed)
    aer = to_quantum(model, AerExecutor(seed=seed), shots=SHOTS, seed=seed)
    cost = estimate_cost(aer, AER_IMAGES)
    if announce is not None:
        announce(f"Complete circuits on Aer, {cost.describe()}")
    with timed(seconds, "hybrid, exact"):
        exact_accuracy = accuracy(exact, x, y)
    with timed(seconds, "hybrid, sampled in torch"):
        sampled_accuracy = accuracy(sampled, x, y)
    with timed(seconds, "hybrid, Aer"):
        outputs = {"aer": aer.get_submodule(TARGET)(few_x)}
        aer_logits = _rest(aer, outputs["aer"])
    reference = exact.get_submodule(TARGET)(few_x)
    outputs["torch"] = sampled.get_submodule(TARGET)(few_x)
    exact_logits = _rest(exact, reference)
    layer = aer.get_submodule(TARGET)
    assert isinstance(layer, QuantumLinear)
    return {
        "exact": exact_accuracy,
        "hybrid": sampled_accuracy,
        "aer": float((aer_logits.argmax(-1) == few_y).double().mean()),
        "aer_exact": float((exact_logits.argmax(-1) == few_y).double().mean()),
        "aer_agreement": float((aer_logits.argmax(-1) == exact_logits.argmax(-1)).double().mean()),
        "layer_error": {name: _relative_error(output, reference) for name, output in outputs.items()},
        "spent": {"circuits": layer.spent.circuits, "shots": layer.spent.shots},
        "cost": cost,
    }


def _rest(model: nn.Module, x: Tensor) -> Tensor:
    """What follows the disentangled layer, which is the first of the network."""
    assert isinstance(model, nn.Sequential)
    return model[1:](x)


def _relative_error(found: Tensor, exact: Tensor) -> float:
    """Root mean square over images of the relative L2 error of the layer's outputs."""
    errors = torch.linalg.vector_norm(found - exact, dim=-1) / torch.linalg.vector_norm(exact, dim=-1)
    return float(errors.square().mean().sqrt())


def _report(
    networks: Networks,
    gates: dict[str, dict[str, dict[str, int]]],
    hybrid: dict[str, Any],
    sides: dict[str, Circuit],
    seed: int,
    seconds: dict[str, float],
) -> Report:
    result, test = networks.result, networks.data.test
    cost = hybrid["cost"]
    healed = networks.healed.get_submodule(TARGET)
    assert isinstance(healed, MPOLinear)
    maximum = maximum_entropies(healed.mpo.bond_dims)
    without = disentangle(healed.mpo.detach(), brickwall(6, 0)).overlap
    histories = networks.histories
    return Report(
        title="Unbraid demo: 8x8 digits",
        accuracy={
            "dense": accuracy(networks.dense, *test),
            "mpo": accuracy(networks.truncated, *test),
            "healed": accuracy(networks.healed, *test),
            "explicit": accuracy(networks.explicit, *test),
            "disentangled": accuracy(networks.disentangled, *test),
            "exact": hybrid["exact"],
            "hybrid": hybrid["hybrid"],
            "aer": hybrid["aer"],
        },
        overlap=result.overlap,
        ceiling=result.ceiling,
        entropies={
            "before": result.entropies_before.tolist(),
            "after": result.entropies_after.tolist(),
            "maximum": maximum,
        },
        parameters={name: _parameters(model) for name, model in _models(networks).items()},
        gates=gates,
        samples={**dict.fromkeys(_STEPS, len(test[1])), "aer": AER_IMAGES},
        cost={
            "samples": AER_IMAGES,
            "circuits": cost.circuits,
            "shots": cost.shots,
            "one_qubit_gates": cost.one_qubit_gates,
            "two_qubit_gates": cost.two_qubit_gates,
            "depth": cost.depth,
            "seconds": cost.seconds,
        },
        seconds=seconds,
        manifest=build_manifest(seeds={"seed": seed}, data=networks.data.describe()),
        layers=[scanned.to_dict() for scanned in networks.scanned],
        curves={
            **{f"{name}: training loss": history.train_loss for name, history in histories.items()},
            **{f"{name}: validation accuracy": history.validation_accuracy for name, history in histories.items()},
            "overlap": list(result.history),
        },
        drawings={f"{side} circuit": draw_circuit(circuit) for side, circuit in sides.items()},
        notes=_notes(hybrid, result, without),
        extra={
            "aer": {
                "images": AER_IMAGES,
                "exact_accuracy": hybrid["aer_exact"],
                "agreement": hybrid["aer_agreement"],
                "spent": hybrid["spent"],
            },
            "layer_error": hybrid["layer_error"],
            "shots_per_stage": SHOTS,
            "disentangling": {
                "overlap_without_circuits": without,
                "status": result.status,
                "sweeps": len(result.history),
                "engine": result.engine,
            },
            "layer_parameters": {
                name: _parameters(model.get_submodule(TARGET)) for name, model in _models(networks).items()
            },
        },
    )


def _notes(hybrid: dict[str, Any], result: Disentangled, without: float) -> list[str]:
    errors = hybrid["layer_error"]
    simulated = "Everything here was simulated without gate noise; nothing ran on quantum hardware."
    spent = (
        f"Sampled accuracies spend {SHOTS:,} shots a vector and circuit, read out with the plus/minus reference, which "
        "measures the sign. Cost is that of the Aer images; its seconds are an estimate for a device."
    )
    agreement = (
        f"On the first {AER_IMAGES} test images the layer's outputs differ from the exact ones by "
        f"{errors['torch']:.1%} (torch) and {errors['aer']:.1%} (Aer) in relative L2, root mean square: both are shot "
        f"noise. Aer's network predicts as the exact one on {hybrid['aer_agreement']:.0%} of them."
    )
    before, after = float(result.entropies_before.mean()), float(result.entropies_after.mean())
    disentangled = (
        f"A product core alone has overlap {without:.3f} with the MPO; the circuits raise it to {result.overlap:.3f}. "
        f"The mean bond entropy goes from {before:.2f} to {after:.2f} nats."
    )
    if after > before:
        disentangled += (
            " It rises because circuits of this depth move weight onto a product and spread the rest over bonds that "
            "were small; deeper circuits bring it down."
        )
    return [simulated, disentangled, spent, agreement]


def _models(networks: Networks) -> dict[str, nn.Module]:
    return {"dense": networks.dense, "mpo": networks.healed, "disentangled": networks.disentangled}


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
