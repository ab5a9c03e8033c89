"""``Report``: everything that one evaluation found, as plain data, and the files it is written to."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unbraid.ground.errors import InvalidInputError, require_extra
from unbraid.ground.files import make_directory, written_beside
from unbraid.report.page import render, render_summary
from unbraid.report.plots import PLOTS, figures
from unbraid.report.wording import duration, meaning, number, percent

# Steps that have no count of their own in ``parameters`` are networks of the same size as another.
_SAME_SIZE = {"healed": "mpo"} | dict.fromkeys(("explicit", "exact", "hybrid", "aer"), "disentangled")
_OPTIONAL = ("samples", "layers", "curves", "notes", "extra", "drawings")


@dataclass
class Report:
    """What an evaluation found; fields are the keys of ``report.json``. Every part may be absent.

    Attributes:
        accuracy: top-1 a step, fractions in 0..1: "dense", "mpo" (before healing), "healed", "explicit" (after
            disentangling), "disentangled" (after the final healing), "exact", "hybrid" (sampled), "aer", or others.
        overlap: of the disentangled layer with its original.
        ceiling: the bound of that overlap.
        entropies: "before", "after", "maximum": one number a bond, in nats.
        parameters: "dense", "mpo", "disentangled": trainable scalars of the whole network.
        gates: "logical" and "transpiled", each with "input", "output", "total" (or other circuits), each with
            "one_qubit", "two_qubit", "depth".
        cost: "circuits", "shots", "one_qubit_gates", "two_qubit_gates", "depth", "seconds" (on a device, estimated);
            perhaps more.
        seconds: wall time a step.
        manifest: as :func:`unbraid.ground.manifest.build_manifest` makes it.
        title: of the page.
        status: one line on how it went.
        samples: test images a step of ``accuracy``.
        layers: one dictionary a layer, from :meth:`unbraid.nn.LayerScan.to_dict` or :func:`evaluate`.
        curves: numbers an epoch or sweep; those with "loss", "accuracy" or "overlap" in their names are drawn together.
        notes: sentences for the reader.
        extra: whatever else belongs to the record.
        drawings: circuits as SVG (see :func:`unbraid.circuits.drawing.draw_circuit`) or as text.
    """

    accuracy: dict[str, float] = field(default_factory=dict)
    overlap: float | None = None
    ceiling: float | None = None
    entropies: dict[str, list[float]] = field(default_factory=dict)
    parameters: dict[str, int] = field(default_factory=dict)
    gates: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    cost: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)
    title: str = "Unbraid report"
    status: str = "completed"
    samples: dict[str, int] = field(default_factory=dict)
    layers: list[dict[str, Any]] = field(default_factory=list)
    curves: dict[str, list[float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)
    drawings: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: tensors and arrays become lists, optional parts that are empty are left out.

        ``Report(**report.to_dict())`` gives an equal report.

        Raises:
            InvalidInputError: if a number is NaN or infinite, an accuracy is no fraction, or something else is in
                it than plain data.
        """
        content = {
            entry.name: _plain(getattr(self, entry.name), entry.name)
            for entry in dataclasses.fields(self)
            if entry.name not in _OPTIONAL or getattr(self, entry.name)
        }
        for step, fraction in content["accuracy"].items():
            if fraction is not None and not 0 <= fraction <= 1:
                raise InvalidInputError(f"accuracy[{step!r}] must be a fraction from 0 to 1; got {fraction}.")
        return content

    def table(self) -> list[tuple[str, ...]]:
        """The small table: a header, then one row a step with its accuracy, test images, parameters and meaning.

        Columns that would be empty are left out.
        """
        dense = self.parameters.get("dense")
        sizes = self.parameters
        measured = {step: sizes.get(step, sizes.get(_SAME_SIZE.get(step, ""))) for step in self.accuracy}
        counts: dict[str, int | None] = {**measured} if measured else {**sizes}
        rows = []
        for step, count in counts.items():
            fraction, images = self.accuracy.get(step), self.samples.get(step)
            share = f" ({percent(count / dense, 0)})" if count and dense and count != dense else ""
            rows.append(
                (
                    step,
                    "" if fraction is None else percent(float(fraction), 2 if images and images > 10_000 else 1),
                    "" if images is None else number(images),
                    "" if count is None else number(count) + share,
                    meaning(step, self.accuracy),
                )
            )
        kept = [column for column in range(5) if column == 0 or any(row[column] for row in rows)]
        header = ("step", "accuracy", "test images", "parameters", "what it is")
        return [tuple(row[column] for column in kept) for row in [header, *rows]]

    def facts(self) -> list[tuple[str, str]]:
        """(name, value) pairs beside the table: overlap, entropy, gates, cost, time; only what is known."""
        found = []
        if self.overlap is not None:
            bound = "" if self.ceiling is None else f" (ceiling {self.ceiling:.4f})"
            found.append(("overlap", f"{self.overlap:.4f}{bound}"))
        means = {name: sum(values) / len(values) for name, values in self.entropies.items() if len(values)}
        if means:
            words = " → ".join(f"{means[name]:.2f}" for name in ("before", "after") if name in means)
            most = f" (maximum {means['maximum']:.2f})" if "maximum" in means else ""
            found.append(("mean bond entropy", f"{words} nats{most}"))
        for key, label in (("two_qubit", "two-qubit gates of the circuits"), ("depth", "their depth, in turn")):
            totals = {
                kind: parts["total"][key] for kind, parts in self.gates.items() if key in (parts or {}).get("total", {})
            }
            if totals:
                said = {"logical": "as built", "transpiled": "transpiled"}
                found.append((label, ", ".join(f"{number(n)} {said.get(kind, kind)}" for kind, n in totals.items())))
        spent = [
            f"{number(self.cost[key])} {key}" for key in ("circuits", "shots") if isinstance(self.cost.get(key), int)
        ]
        if spent:
            images = self.cost.get("samples")
            what = f" for {number(images)} inputs, state preparation included" if isinstance(images, int) else ""
            found.append(("quantum cost", ", ".join(spent) + what))
        if self.seconds:
            found.append(("wall time", duration(sum(self.seconds.values()))))
        return found

    def _repr_html_(self) -> str:
        """What notebooks show: the small table and what stands beside it."""
        return render_summary(self)

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Write ``report.json``, ``report.html`` and the plots (``accuracy.svg``, ``training.svg``, ...).

        Everything is rendered before anything is written, and all files appear together.

        Args:
            directory: created if needed; files of an earlier report are replaced.

        Returns:
            The path of ``report.html``.

        Raises:
            MissingExtraError: if matplotlib is not installed.
            InvalidInputError: if the report is no plain data, see :meth:`to_dict`.
            OutputError: if the directory cannot be written to.
        """
        require_extra("matplotlib", "report")
        content = json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"
        plots = figures(self)
        files = {f"{name}.svg": svg for name, svg in plots.items()}
        files |= {"report.html": render(self, plots), "report.json": content}
        place = make_directory(directory)
        with ExitStack() as together:
            for name, text in files.items():
                together.enter_context(written_beside(place / name)).write_text(text, encoding="utf-8", newline="\n")
        for plot in PLOTS:
            if plot not in plots:  # of an earlier report in the same place
                (place / f"{plot}.svg").unlink(missing_ok=True)
        return place / "report.html"


def _plain(value: Any, where: str) -> Any:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidInputError(
                f"{where} is {value}; a report holds finite numbers. Use None for what is not known."
            )
        return float(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value), where)
    if hasattr(value, "tolist"):
        return _plain(value.tolist(), where)
    raise InvalidInputError(f"{where} must be plain data (numbers, strings, lists, dictionaries); got {type(value)}.")
