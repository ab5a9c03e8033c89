"""The benchmarks: scripts of the source tree, which the wheel carries too, each run in a process of its own."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

import unbraid
from unbraid.ground.errors import ExecutionError, InvalidInputError

PACKAGE = Path(unbraid.__file__).parent
FOLDERS = (PACKAGE / "benchmarks", PACKAGE.parents[1] / "benchmarks")  # of a wheel, of a source tree


def find_benchmarks() -> dict[str, Path]:
    """The scripts by name.

    Raises:
        InvalidInputError: if there are none.
    """
    found = {path.stem.removeprefix("bench_"): path for folder in FOLDERS for path in folder.glob("bench_*.py")}
    if not found:
        raise InvalidInputError(
            "The benchmarks are not here: this installation has no benchmarks folder. Work from a source tree, or "
            "install unbraid from its wheel."
        )
    return dict(sorted(found.items()))


def choose_benchmark(name: str, found: dict[str, Path]) -> Path:
    """The script of a name.

    Raises:
        InvalidInputError: listing the names, if there is no such benchmark.
    """
    if name not in found:
        raise InvalidInputError(f"There is no benchmark {name!r}. Choose one of {', '.join(found)}.")
    return found[name]


def subject_of(script: Path) -> str:
    """The first line of a script's docstring."""
    text = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0].replace("``", "")


def peers_of(script: Path) -> tuple[list[str], list[str]]:
    """What a script is compared with, by the pinned list ``peers.txt`` beside it.

    Returns:
        Installed peers with their versions, and the requirements of missing ones.
    """
    name = script.stem.removeprefix("bench_")
    here, missing = [], []
    for line in (script.parent / "peers.txt").read_text(encoding="utf-8").splitlines():
        requirement, _, users = line.partition("#")
        if not requirement.strip() or name not in re.split(r"[,\s]+", users):
            continue
        peer, version = re.split(r"[=;\s]+", requirement.strip())[:2]
        try:
            installed = metadata.version(peer)
        except metadata.PackageNotFoundError:
            missing.append(requirement.strip())
            continue
        here.append(f"{peer} {installed}" + ("" if installed == version else f" (pinned: {version})"))
    return here, missing


def run_benchmark(script: Path, arguments: Sequence[str], say: Callable[[str], None]) -> str:
    """Run a script with this interpreter.

    Args:
        script: the file.
        arguments: of its command line.
        say: gets each line that it prints, as it comes.

    Returns:
        All that it printed.

    Raises:
        ExecutionError: if it fails, with its last words.
    """
    printed = []
    command = [sys.executable, "-u", str(script), *arguments]
    with tempfile.TemporaryFile("w+", errors="replace") as complaints:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=complaints, text=True) as process:
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    printed.append(line)
                    say(line.rstrip("\n"))
            except BaseException:
                process.terminate()
                raise
        complaints.seek(0)
        last = complaints.read().strip().rpartition("\n")[2]
    if process.returncode:
        raise ExecutionError(f"{script.name} ended with code {process.returncode}: {last or 'it said nothing'}")
    return "".join(printed)
