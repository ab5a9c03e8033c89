"""The manifest of a run: what is needed to remake its figures."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PACKAGES = (
    "unbraid",
    "torch",
    "numpy",
    "scikit-learn",
    "safetensors",
    "qiskit",
    "qiskit-aer",
    "qiskit-experiments",
    "qiskit-ibm-runtime",
    "transformers",
)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that figures depend on; absent ones are left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The commit of the source tree this package runs from (with ``+dirty``), or None for an installed package."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    try:
        run = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+dirty", "--exclude=*"],
            cwd=root, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip() or None


def hash_tensors(*tensors: Tensor) -> str:
    """SHA-256 over dtypes, shapes and bytes: names a data set or a problem."""
    digest = hashlib.sha256()
    for tensor in tensors:
        array = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
        digest.update(f"{array.dtype}{tuple(array.shape)}".encode())
        digest.update(array.reshape(-1).view(torch.uint8).numpy().data)  # without a copy
    return digest.hexdigest()


def device_name(device: str | torch.device) -> str:
    """The product's name of a GPU; "the CPU" otherwise."""
    return torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else "the CPU"


def build_manifest(
    *, seeds: dict[str, int] | None = None, data: dict[str, Any] | None = None, device: str | torch.device = "cpu"
) -> dict[str, Any]:
    """Versions, seeds, commit, data, command and machine of this run, ready for JSON.

    Args:
        seeds: the seeds of the run by name.
        data: what identifies the data: name, hash, sizes of the splits.
        device: where torch computed.
    """
    command = " ".join(shlex.quote(part) for part in [Path(sys.argv[0]).name, *sys.argv[1:]])
    return {
        "versions": versions(),
        "commit": commit(),
        "command": command,
        "seeds": seeds or {},
        "data": data or {},
        "machine": {
            "platform": platform.platform(),
            "processor": platform.machine(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "device": device_name(device),
        },
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
