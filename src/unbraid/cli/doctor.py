"""``unbraid doctor``: what is installed, what is missing, and the command that adds it."""

from __future__ import annotations

import os
import platform
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

import torch
import typer
from packaging.requirements import Requirement

from unbraid.cli.display import console, print_table
from unbraid.ground.manifest import device_name

_CORE = "(core)"
_LEFT_OUT = ("all", "dev")  # extras: of others, and of the project's own tools
_OK, _MISSING, _OLD = "ok", "missing", "too old"


@dataclass(frozen=True)
class Package:
    """A package that unbraid can use.

    Attributes:
        extra: that brings it.
        name: of the distribution.
        wanted: versions that do.
        found: its version; None if it is not installed.
        state: "ok", "missing" or "too old".
    """

    extra: str
    name: str
    wanted: str
    found: str | None
    state: str


def packages() -> list[Package]:
    """Those that the metadata of unbraid name, of the core first, then by extra."""
    found = []
    for extra, requirement in _requirements():
        try:
            version: str | None = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            version = None
        fits = version is not None and requirement.specifier.contains(version, prereleases=True)
        state = _OK if fits else _MISSING if version is None else _OLD
        found.append(Package(extra, requirement.name, str(requirement.specifier), version, state))
    return sorted(found, key=lambda package: (package.extra != _CORE, package.extra, package.name))


def _requirements() -> Iterator[tuple[str, Requirement]]:
    known = metadata.metadata("unbraid").get_all("Provides-Extra") or ()
    for text in metadata.requires("unbraid") or ():
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is None or marker.evaluate({"extra": ""}):
            yield _CORE, requirement
            continue
        for extra in known:
            if extra not in _LEFT_OUT and marker.evaluate({"extra": extra}):
                yield extra, requirement


def doctor() -> None:
    """Show what is installed, what is missing, and the command that adds it. Fails if unbraid cannot work."""
    found = packages()
    console.print(
        f"Python {platform.python_version()} on {platform.platform()}, {os.cpu_count()} cores", highlight=False
    )
    threads = f"{torch.get_num_threads()} threads"
    gpus = [device_name(f"cuda:{k}") for k in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    console.print(f"torch computes on the CPU ({threads})" + "".join(f" and {gpu}" for gpu in gpus), highlight=False)
    rows = [(each.extra, each.name, each.wanted, each.found or "-", each.state) for each in found]
    print_table([("extra", "package", "wanted", "installed", "state"), *rows])
    broken: dict[str, list[Package]] = defaultdict(list)
    for each in found:
        if each.state != _OK:
            broken[each.extra].append(each)
    for extra, lacking in broken.items():
        names = ", ".join(package.name for package in lacking)
        command = "pip install --upgrade unbraid" if extra == _CORE else f"pip install 'unbraid[{extra}]'"
        console.print(f"{extra}: without {names}. To have it: {command}", highlight=False, markup=False)
    if not broken:
        console.print("All that unbraid can use is there.")
    if _CORE in broken:
        raise typer.Exit(1)
