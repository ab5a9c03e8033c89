"""Options that several verbs share."""

from __future__ import annotations

import math
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from unbraid.ground.devices import find_device
from unbraid.ground.errors import InvalidInputError


def _check_device(value: str) -> str:
    find_device(value)
    return value


Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="Folder of save_pretrained, package.module:factory, or FOLDER@factory.")
]
Weights = Annotated[Path | None, typer.Option(help="Safetensors file with the factory's weights.")]
Out = Annotated[Path, typer.Option(help="Folder for the report and the artefacts; created if needed.")]
Device = Annotated[str, typer.Option(callback=_check_device, help="Where torch computes: cpu, cuda, cuda:1, ...")]
Seed = Annotated[int, typer.Option(help="The same seed gives the same numbers.")]
WorkersOption = Annotated[
    str,
    typer.Option("--workers", metavar="N|CLUSTER", help="Processes, -1 for one a core; or dask:ADDRESS, ray:ADDRESS."),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars; print only where the report is.")]
TargetsOption = Annotated[
    str, typer.Option(help="'all-linear', a regular expression, or name endings with commas between.")
]
Data = Annotated[str, typer.Option(help="digits, mnist, fashion-mnist, cifar10, or a safetensors file with x and y.")]
HealData = Annotated[
    str | None,
    typer.Option(help="Heal on digits, mnist, fashion-mnist, cifar10, or a safetensors file with x and y."),
]
SampleData = Annotated[
    str | None,
    typer.Option(help="Run on samples of digits, mnist, fashion-mnist, cifar10, or a safetensors file with x and y."),
]
TextFile = Annotated[
    Path | None, typer.Option(help="Run a language model (a Hugging Face folder with a tokenizer) on this text.")
]
Length = Annotated[int, typer.Option(help="Tokens of a sample of --text, at most.")]
DataDir = Annotated[Path | None, typer.Option(help="Where the data set's files are.")]
Size = Annotated[int | None, typer.Option(help="Side that images are scaled to: 8, 16 or 32.")]
Download = Annotated[bool, typer.Option("--download", help="Fetch a published data set, checked by hash.")]


class Sites(StrEnum):
    """How layers are cut into sites."""

    auto = "auto"
    qubits = "qubits"
    low_rank = "low-rank"


class HealOptimizer(StrEnum):
    """What healing steps with."""

    adam = "adam"
    soap = "soap"


class CompressSites(StrEnum):
    """As :class:`Sites`, and the best of several."""

    auto = "auto"
    qubits = "qubits"
    low_rank = "low-rank"
    best = "best"


class GateGroup(StrEnum):
    """Groups of real gates."""

    so = "so"
    o = "o"


class Readout(StrEnum):
    """How vectors are read from circuits."""

    exact = "exact"
    reference = "reference"
    signs = "signs"
    tomography = "tomography"


class ExecutorName(StrEnum):
    """What runs circuits."""

    torch = "torch"
    aer = "aer"
    ibm = "ibm"


class Mode(StrEnum):
    """How jobs are queued."""

    job = "job"
    batch = "batch"
    session = "session"


class EncodingName(StrEnum):
    """How vectors are prepared as states."""

    amplitude = "amplitude"
    mps = "mps"


def check_epochs(value: int | None) -> int | None:
    """Refuse what healing would refuse only after the long work before it."""
    if value is not None and value < 1:
        raise InvalidInputError(f"--epochs must be at least 1; got {value}.")
    return value


def check_lr(value: float | None) -> float | None:
    """Refuse a learning rate that is none."""
    if value is not None and not (math.isfinite(value) and value > 0):
        raise InvalidInputError(f"--lr must be a positive number; got {value}.")
    return value


Epochs = Annotated[int, typer.Option(callback=check_epochs, help="Of healing.")]
LearningRate = Annotated[float, typer.Option(callback=check_lr, help="Peak learning rate of healing.")]
SitesOption = Annotated[Sites, typer.Option(help="qubits: one qubit a site, as circuits need; auto: for speed.")]
