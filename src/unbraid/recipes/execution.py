"""``unbraid reproduce execution``: what encodings and readouts reach, ideal and on the stored noise of two devices.

Encodings: the first MNIST test images at 8x8 and 16x16 as staircases of gates; fidelity against CNOTs on a line, and
the gradient against central differences.

Readouts: error of images behind a circuit as a multiple of the least that any measurement in real bases can have; and
what an encoding that is not exact costs each readout, with two references: one whose image is uniform, and one that is
a product state.

Devices: the same images at 8x8, prepared, sent through a six-qubit circuit of two layers, and read, by the stored noise
of FakeMontrealV2 (27 qubits, CX) and FakeMarrakesh (156 qubits, CZ). Each way adds one thing to the one before: a
better preparation, the fit of a pure state beside white noise, readout mitigation, more settings, zero-noise
extrapolation by a polynomial and by regressions that have learnt from other images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unbraid.circuits import Circuit, brickwall
from unbraid.quantum import AerExecutor, Learned, MPSEncoding, Reference, Signs, TorchExecutor, encode, read_out
from unbraid.quantum.backends import fake_backend
from unbraid.quantum.encode import Amplitude, Encoding
from unbraid.quantum.reading import Readout, uniform
from unbraid.quantum.reference import reference_share, reference_states, solve_reference
from unbraid.quantum.signs import settings_of, with_hadamards
from unbraid.recipes.datasets import Dataset
from unbraid.recipes.recipe import GATE_COUNTS, Outcome, Recipe, Request, Row, Section, Task, make_row

DEVICES = ("fake_montreal", "fake_marrakesh")
QUBITS = {8: 6, 16: 8}
READ = {8: (8_100, 400), 16: (35_000, 100), 32: (120_000, 30)}  # shots for an error near 0.05, and images
GRADIENT_STEP = 0.03
PREPARED_SHOTS = 10_000


@dataclass(frozen=True)
class Way:
    """One way to prepare, run and read.

    Attributes:
        name: in tables.
        encoding: of the images.
        readout: of the results.
        mitigate: whether misread qubits are taken into account.
        factors: noise factors.
        hidden: of a learnt extrapolation: sizes of its hidden layers; None for the polynomial.
    """

    name: str
    encoding: Encoding
    readout: Readout
    mitigate: bool = False
    factors: tuple[int, ...] = (1,)
    hidden: tuple[int, ...] | None = None


_MPS = MPSEncoding(layers=4)  # exact, so that what is left is the device's
READOUTS = ("reference", "signs")
PREPARED: dict[str, Encoding] = {
    "exact": Amplitude(),
    "three staircases": MPSEncoding(layers=3),
    "four staircases": _MPS,
}
WAYS = (
    Way("amplitude, reference", Amplitude(), Reference(0.2)),
    Way("amplitude, 7 settings", Amplitude(), Signs()),
    Way("MPS, 7 settings", _MPS, Signs()),
    Way("MPS, 7 settings, readout mitigated", _MPS, Signs(), mitigate=True),
    Way("MPS, 14 settings, readout mitigated", _MPS, Signs(14), mitigate=True),
    Way("MPS, 9 settings, mitigated, polynomial", _MPS, Signs(9), mitigate=True, factors=(1, 3)),
    Way("MPS, 9 settings, mitigated, learnt, linear", _MPS, Signs(9), mitigate=True, factors=(1, 3), hidden=()),
    Way("MPS, 9 settings, mitigated, learnt, network", _MPS, Signs(9), mitigate=True, factors=(1, 3), hidden=(16, 16)),
)


@dataclass(frozen=True)
class Settings:
    """What the results depend on.

    Attributes:
        encoded: images of the encodings.
        layers: staircases, by the side of the images.
        images: of the devices.
        taught: training images that an extrapolation learns from.
        shots: a vector, over all circuits; so many that gate noise is what is left.
        sweeps: of the encodings.
        compared: images whose gradient is compared with differences.
        read: share of the images of ``READ``.
    """

    encoded: int = 200
    layers: tuple[tuple[int, ...], tuple[int, ...]] = ((1, 2, 3, 4), (1, 2, 3, 4))
    images: int = 12
    taught: int = 12
    shots: int = 1_000_000
    sweeps: int = 200
    compared: int = 100
    read: float = 1.0


QUICK = Settings(encoded=20, layers=((2, 3), (3, 4)), images=1, taught=2, shots=100_000, compared=10, read=0.1)


def run_encoding(request: Request, side: int, layers: int) -> dict[str, Any]:
    """Fidelity, CNOTs and depth of one kind of encoding."""
    settings: Settings = request.settings
    images = request.load("mnist", seed=0, size=side).test[0][: settings.encoded].reshape(-1, side * side)
    encoded = encode(images.double(), "mps", layers=layers, sweeps=settings.sweeps)
    return {
        **encoded.summary(),
        "fidelities": encoded.fidelity.tolist(),
        "cosines": _gradient_cosines(_units(images, settings.compared), MPSEncoding(layers, settings.sweeps)),
    }


def _gradient_cosines(x: Tensor, encoding: MPSEncoding) -> list[float]:
    """Angle between the change of a state towards another image and what the gradient says of it, as cosines."""
    towards = x.roll(1, 0) - x
    towards = towards - (towards * x).sum(dim=1, keepdim=True) * x
    towards = towards / torch.linalg.vector_norm(towards, dim=1, keepdim=True)
    ahead, behind = (encode(x + sign * GRADIENT_STEP * towards, encoding).vectors for sign in (1, -1))
    leaf = x.clone().requires_grad_()
    # the derivative is symmetric, so a backward pass applies it to the direction
    (encode(leaf, encoding).vectors * towards).sum().backward()
    assert leaf.grad is not None
    return torch.cosine_similarity(leaf.grad, ahead - behind, dim=1).tolist()


def run_readout(request: Request, side: int) -> dict[str, list[float]]:
    """Squared L2 errors of images behind a circuit, times 4 S / (N - 1), by readout."""
    settings: Settings = request.settings
    shots, count = READ[side]
    x = _units(request.load("mnist", seed=0, size=side).test[0], max(2, round(settings.read * count)))
    circuit = Circuit(brickwall(x.shape[1].bit_length() - 1, 3), init="random", seed=1, dtype=torch.float64)
    exact, optimum = circuit(x).detach(), (x.shape[1] - 1) / (4 * shots)
    read = {readout: read_out(circuit, x, readout=readout, shots=shots).vectors for readout in READOUTS}
    return {name: ((vectors - exact).square().sum(dim=1) / optimum).tolist() for name, vectors in read.items()}


def run_prepared(request: Request) -> dict[str, list[float]]:
    """L2 errors at 8x8 by encoding, with each readout and with a reference that is a product state."""
    x = _units(request.load("mnist", seed=0, size=8).test[0], max(2, round(request.settings.read * 100)))
    circuit = Circuit(brickwall(6, 2), init="random", seed=3, dtype=torch.float64)
    exact = circuit(x).detach()
    found = {}
    for name, encoding in PREPARED.items():
        for readout in READOUTS:
            read = read_out(circuit, x, readout=readout, shots=PREPARED_SHOTS, encoding=encoding).vectors
            found[f"{name}, {readout}"] = torch.linalg.vector_norm(read - exact, dim=1).tolist()
        read = _by_product_reference(circuit, x, encoding)
        found[f"{name}, product reference"] = torch.linalg.vector_norm(read - exact, dim=1).tolist()
    return found


def _by_product_reference(circuit: Circuit, x: Tensor, encoding: Encoding) -> Tensor:
    """The plus/minus reference with the uniform vector as what is prepared, not as its image."""
    u, share = uniform(circuit, x.device), reference_share(PREPARED_SHOTS, x.shape[1])
    states, squares = reference_states(x, u, share)
    counts = TorchExecutor().run(circuit, encode(states.flatten(0, 1), encoding), PREPARED_SHOTS // 2).counts
    assert counts is not None
    plus, minus = counts.chunk(2)
    image = circuit(u).detach()
    return solve_reference(plus, minus, PREPARED_SHOTS / 2 / squares, share**0.5 * image, 1 - share)[0]


def run_device(request: Request, device: str, way: str) -> dict[str, Any]:
    """L2 errors of one way on one device."""
    settings: Settings = request.settings
    chosen = next(each for each in WAYS if each.name == way)
    data = request.load("mnist", seed=0, size=8)
    images, others = (
        _units(part[0], count) for part, count in ((data.test, settings.images), (data.train, settings.taught))
    )
    circuit = Circuit(brickwall(6, 2), init="random", seed=3, dtype=torch.float64)
    executor = AerExecutor(
        backend=fake_backend(device),
        method="density_matrix",
        optimization_level=3,
        mitigate_readout=chosen.mitigate,
        noise_factors=chosen.factors,
        extrapolate=None if chosen.hidden is None else Learned(chosen.hidden),
    )
    count = chosen.readout.circuits(6)
    if chosen.hidden is not None:
        circuits = [with_hadamards(circuit, setting) for setting in settings_of(6, count)]
        executor.learn(circuits, encode(others, chosen.encoding), settings.shots // count)
    read = read_out(
        circuit, images, readout=chosen.readout, shots=settings.shots, executor=executor, encoding=chosen.encoding
    )
    exact = circuit(images).detach()
    errors = torch.linalg.vector_norm(read.vectors - exact, dim=1)
    return {
        "errors": errors.tolist(),
        "circuits": count * len(chosen.factors),
        "calibration": 2 if chosen.mitigate else 0,
        "two_qubit_gates": executor.two_qubit_gates,
    }


def _units(images: Tensor, count: int) -> Tensor:
    x = images[:count].flatten(1).double()
    return x / torch.linalg.vector_norm(x, dim=1, keepdim=True)


def _tasks(request: Request) -> list[Task]:
    settings: Settings = request.settings
    encodings = [
        Task(f"encoding-{side}-{layers}", run_encoding, {"side": side, "layers": layers}, seed=0)
        for side, choices in zip(QUBITS, settings.layers, strict=True)
        for layers in choices
    ]
    devices = [
        Task(f"{device}-{number}", run_device, {"device": device, "way": way.name}, seed=0)
        for device in DEVICES
        for number, way in enumerate(WAYS)
    ]
    readouts = [Task(f"readout-{side}", run_readout, {"side": side}, seed=0) for side in READ]
    return [*encodings, *readouts, Task("prepared", run_prepared, {}, seed=0), *devices]


def _assemble(request: Request, results: Mapping[str, Any]) -> Outcome:
    settings: Settings = request.settings
    encodings, devices = [], []
    for (side, n), choices in zip(QUBITS.items(), settings.layers, strict=True):
        for layers in choices:
            found = results[f"encoding-{side}-{layers}"]
            row = make_row(f"{side}x{side}, {layers}", "original", found["fidelities"], seeds=[0])
            row |= {"qubits": n, **{key: found[key] for key in ("cnots", "depth", "lowest_fidelity")}}
            cosines = torch.tensor(found["cosines"]).quantile(torch.tensor([0.5, 0.1])).tolist()
            encodings.append(row | dict(zip(("cosine", "cosine_tenth"), cosines, strict=True)))
    readouts = [
        make_row(f"{side}x{side}: {readout}", "hybrid", errors, seeds=[0]) | {"shots": shots, "images": len(errors)}
        for side, (shots, _) in READ.items()
        for readout, errors in results[f"readout-{side}"].items()
    ]
    prepared = [make_row(f"prepared {how}", "hybrid", errors, seeds=[0]) for how, errors in results["prepared"].items()]
    for device in DEVICES:
        for number, way in enumerate(WAYS):
            found = results[f"{device}-{number}"]
            row = make_row(f"{device}: {way.name}", "hybrid", found["errors"], seeds=[0])
            row |= {"device": device, "way": way.name}
            devices.append(row | {key: found[key] for key in ("circuits", "calibration", "two_qubit_gates")})
    return Outcome(
        title="Encodings, and readouts on noisy devices",
        note=(
            f"MNIST, the first {settings.encoded} test images for encodings and {settings.images} for devices; one "
            f"circuit. Devices are simulated from stored noise, {settings.shots:,} shots a vector. L2 errors are those "
            "of unit vectors, against the exact image of the exact input. Four staircases prepare every vector."
        ),
        rows=[*encodings, *readouts, *prepared, *devices],
        sections=(
            _encodings(encodings),
            _readouts(readouts),
            _prepared(prepared),
            *(_device(device, [row for row in devices if row["device"] == device]) for device in DEVICES),
        ),
    )


def _encodings(rows: Sequence[Row]) -> Section:
    return Section(
        (
            *("images, staircases", "qubits", "CNOTs, on a line", "depth", "mean fidelity", "lowest"),
            *("cosine of the gradient, median", "lowest tenth"),
        ),
        tuple(
            (
                row["name"],
                str(row["qubits"]),
                f"{row['cnots']:.0f}",
                f"{row['depth']:.0f}",
                f"{row['mean']:.4f}",
                f"{row['lowest_fidelity']:.4f}",
                f"{row['cosine']:.3f}",
                f"{row['cosine_tenth']:.3f}",
            )
            for row in rows
        ),
        heading="Staircases",
        note=(
            "Exact amplitude encoding takes 57 CNOTs at six qubits and 247 at eight, between any two qubits. Cosines "
            f"are between the gradient and central differences over {GRADIENT_STEP:g} towards another image."
        ),
    )


def _readouts(rows: Sequence[Row]) -> Section:
    return Section(
        ("images, readout", "images", "shots", "squared error / optimum", "std"),
        tuple(
            (row["name"], str(row["images"]), f"{row['shots']:,}", f"{row['mean']:.3f}", f"{row['std']:.3f}")
            for row in rows
        ),
        heading="Readouts of images behind a circuit",
        note="Sampled without noise. The optimum of any measurement in real bases is (2^n - 1) / (4 shots).",
    )


def _prepared(rows: Sequence[Row]) -> Section:
    return Section(
        ("preparation, readout", "L2 error", "std"),
        tuple((row["name"].removeprefix("prepared "), f"{row['mean']:.4f}", f"{row['std']:.4f}") for row in rows),
        heading="Readouts of states that are not prepared exactly",
        note=(
            f"8x8, {PREPARED_SHOTS:,} shots, no noise. The product reference is the uniform state, which one layer of "
            "Hadamards prepares; its image behind the circuit has small entries, where signs are lost."
        ),
    )


def _device(device: str, rows: Sequence[Row]) -> Section:
    return Section(
        ("preparation, readout", "circuits a vector", "calibration", "two-qubit gates", "L2 error", "std"),
        tuple(
            (
                row["way"],
                str(row["circuits"]),
                str(row["calibration"]),
                str(row["two_qubit_gates"]),
                f"{row['mean']:.4f}",
                f"{row['std']:.4f}",
            )
            for row in rows
        ),
        heading=device,
        note="Two-qubit gates of one transpiled circuit without repetition, preparation included. Calibration is once.",
    )


def _data(request: Request, seed: int) -> Dataset:
    return request.load("mnist", seed=0, size=8)


def _plot(path: Path, rows: Sequence[Row]) -> None:
    from unbraid.report.plots import save_png

    def draw(ax: Any) -> Any:
        for side in QUBITS:
            mine = [row for row in rows if "cnots" in row and row["name"].startswith(f"{side}x{side}")]
            ax.plot(
                [row["cnots"] for row in mine], [1 - row["mean"] for row in mine], "o-", label=f"MNIST {side}x{side}"
            )
        ax.set_yscale("log")
        ax.set_xlabel("CNOTs on a line")
        ax.set_ylabel("1 - mean fidelity")
        ax.set_title("Images as staircases of SO(4) gates")
        ax.legend()
        return ax

    save_png(path, draw)


RECIPE = Recipe(
    settings=Settings(),
    quick=QUICK,
    seeds=1,
    quick_seeds=1,
    data=_data,
    tasks=_tasks,
    assemble=_assemble,
    plot=_plot,
    extras={**GATE_COUNTS, "qiskit_aer.primitives": "aer"},
)
