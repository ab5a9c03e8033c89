"""``render``: a report as one HTML page that needs nothing else: no scripts, no network, no other files.

Everything that comes from data is escaped. Plots and drawings are embedded as images, so that markup within a drawing
has no effect on the page.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from unbraid.report.plots import figures
from unbraid.report.wording import duration, number, percent

if TYPE_CHECKING:
    from unbraid.report.document import Report

_CSS = """
:root { color-scheme: light dark; --ink: #1c1c1c; --soft: #5a5a5a; --paper: #fff; --line: #d9d9d9; --band: #f5f6f8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e9e9e9; --soft: #b0b0b0; --paper: #16181c; --line: #3a3e45; --band: #1f2228; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 64rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; } h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; }
p { margin: .4rem 0; max-width: 46rem; overflow-wrap: anywhere; }
.soft, figcaption, caption { color: var(--soft); font-size: .9rem; }
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-size: .95rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .3rem; }
th, td { padding: .3rem .8rem .3rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
thead th { border-bottom: 2px solid var(--line); color: var(--soft); font-weight: 600; vertical-align: bottom;
  min-width: 4.5rem; }
tbody th { font-weight: 600; white-space: nowrap; }
td.n, th.n { text-align: right; } td.n { white-space: nowrap; }
.records td { white-space: nowrap; } .records td.wide { white-space: normal; }
td.wide { min-width: 16rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; margin: 1rem 0; }
dt { color: var(--soft); } dd { margin: 0; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); gap: 1rem;
  align-items: start; }
figure { margin: 0; min-width: 0; }
.card { background: #fff; border: 1px solid var(--line); border-radius: 6px; padding: .5rem; }
.plots .card img { display: block; width: 100%; max-width: 32rem; height: auto; margin: 0 auto; }
.drawing { margin-bottom: 1rem; } .drawing .card img { display: block; max-width: none; }
pre { color: #1c1c1c; margin: 0; font-size: .85rem; }
figcaption { padding: .3rem 0; overflow-wrap: anywhere; }
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_CAPTIONS = {
    "accuracy": "Accuracy a step.",
    "training": "Training curves. Epochs are counted from 1.",
    "overlap": "Overlap of circuits and core with the original layer after each sweep. The ceiling bounds what "
    "orthogonal circuits of any depth could reach with a core of this bond dimension.",
    "entanglement": "Bond entropy of each layer against bond position; a panel for all layers of the same ending and "
    "shape. Random: Gaussian matrices of the same shape, padding and rank. Maximum: what legs and rank allow.",
    "verdict": "Parameters within a budget. Where the plain MPO is right of the band, circuits pay; where it is left "
    "of it, they would not even if their parameters were free. The bar is the break-even region at the budget.",
    "entropies": "Entanglement entropy at each bond of the layer: before, and after its circuits are undone. The "
    "maximum is the logarithm of the bond dimension before; entropies after may exceed it.",
}
_COUNTS = {"one_qubit": "one-qubit gates", "two_qubit": "two-qubit gates", "depth": "depth"}
_COST = {
    "samples": "test images",
    "circuits": "circuits",
    "shots": "shots",
    "one_qubit_gates": "one-qubit gates",
    "two_qubit_gates": "two-qubit gates",
    "depth": "depth of the deepest circuit",
    "seconds": "device time (estimate)",
}
_OWN_SECTIONS = ("entanglement", "verdict")  # plots and extras that have one
_MOST_CANDIDATES = 8  # with circuits, in the table of a verdict
_HEIGHTS = {"middle entropy": "entropies", "random": "random", "maximum": "maximum"}
_GATE_KINDS = {"logical": "as built", "transpiled": "transpiled"}


def render(report: Report, plots: Mapping[str, str] | None = None) -> str:
    """The page of a report.

    Args:
        report: any; sections without data are left out.
        plots: SVG by name, from :func:`unbraid.report.plots.figures`; drawn if None.

    Returns:
        HTML text: one complete document with inline styles and images.

    Raises:
        InvalidInputError: if the report is no plain data.
        MissingExtraError: if plots have to be drawn and matplotlib is not installed.
    """
    content = report.to_dict()
    plots = figures(report) if plots is None else plots
    status = f'<p class="soft">Status: {_text(content["status"])}.</p>' if content["status"] else ""
    body = [
        f"<header><h1>{_text(content['title'])}</h1>{status}</header>",
        _summary(report, content),
        _section("Plots", _plots({name: svg for name, svg in plots.items() if name not in _OWN_SECTIONS}, content)),
        _section("Circuits", _drawings(content.get("drawings", {}))),
        _section("Gates", _gates(content["gates"])),
        _section("Cost", _cost(content["cost"])),
        _section("Layers", _layers(content.get("layers", []))),
        _section("Entanglement", _entanglement(content.get("extra", {}).get("entanglement", {}), plots)),
        _section("Verdict", _verdicts(content.get("extra", {}).get("verdict", []), plots)),
        _section("Notes", "".join(f"<p>{_text(note)}</p>" for note in content.get("notes", []))),
        _section("Time", _table(("step", "wall time"), [(s, duration(t)) for s, t in content["seconds"].items()], {1})),
        _section("More", _pairs({k: v for k, v in content.get("extra", {}).items() if k not in _OWN_SECTIONS})),
        _manifest(content["manifest"]),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f"<title>{_text(content['title'])}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body>\n</html>\n"
    )


def render_summary(report: Report) -> str:
    """The title, the small table and the facts of a report, without styles, for a notebook."""
    content = report.to_dict()
    return f"<h3>{_text(content['title'])}</h3>{_summary(report, content)}"


def _summary(report: Report, content: dict[str, Any]) -> str:
    head, *rows = report.table()
    numeric = {k for k, name in enumerate(head) if name in ("accuracy", "test images", "parameters")}
    facts = "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in report.facts())
    table = _table(head, rows, numeric, wide=len(head) - 1 if head[-1] == "what it is" else None)
    caption = f'<p class="soft">{_text(_provenance(content))}</p>'
    return f"<section>{table}{f'<dl>{facts}</dl>' if facts else ''}{caption}</section>"


def _provenance(content: dict[str, Any]) -> str:
    """What a reader must know to judge the numbers: images, shots, seeds."""
    sentences = []
    samples = content.get("samples", {})
    if content["accuracy"]:
        sentences.append("Accuracy is the share of test images whose largest output is the right class.")
    if samples:
        fewest, most = min(samples.values()), max(samples.values())
        count = number(most) if fewest == most else f"{number(fewest)} to {number(most)}"
        sentences.append(
            f"It was measured on {count} test images{'' if fewest == most else ', depending on the step'}."
        )
    shots = content["cost"].get("shots")
    if isinstance(shots, int) and shots:
        sentences.append(f"The hybrid's cost counts {number(shots)} shots.")
    seeds = content["manifest"].get("seeds")
    if isinstance(seeds, dict) and seeds:
        sentences.append(f"Seeds: {', '.join(f'{name} {seed}' for name, seed in seeds.items())}; one run of each.")
    return " ".join(sentences)


def _plots(plots: Mapping[str, str], content: dict[str, Any]) -> str:
    cards = []
    for name, svg in plots.items():
        caption = _CAPTIONS.get(name, name)
        if name == "accuracy" and content.get("samples"):
            caption = "Accuracy a step. Bars are one standard error (Wilson) from the finite number of test images."
        cards.append(
            f'<figure><div class="card">{_image(svg, caption)}</div><figcaption>{_text(caption)}</figcaption></figure>'
        )
    return f'<div class="plots">{"".join(cards)}</div>' if cards else ""


def _drawings(drawings: Mapping[str, str]) -> str:
    cards = []
    for name, drawing in drawings.items():
        is_svg = drawing.lstrip().startswith(("<svg", "<?xml"))
        inner = _image(drawing, f"Circuit: {name}") if is_svg else f"<pre>{_text(drawing)}</pre>"
        cards.append(
            f'<figure class="drawing"><figcaption>{_text(name)}</figcaption>'
            f'<div class="card scroll" tabindex="0">{inner}</div></figure>'
        )
    return "".join(cards)


def _gates(gates: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    kinds = [kind for kind, parts in gates.items() if parts]
    if not kinds:
        return ""
    names = list(dict.fromkeys(name for kind in kinds for name in gates[kind]))
    head = ["circuit", *(f"{label}, {_GATE_KINDS.get(kind, kind)}" for kind in kinds for label in _COUNTS.values())]
    rows = [
        [name, *(_value(gates[kind].get(name, {}).get(key)) for kind in kinds for key in _COUNTS)] for name in names
    ]
    words = "As built: any two qubits may interact. " if "logical" in kinds else ""
    if "transpiled" in kinds:
        words += "Transpiled: rewritten for the gates and the connections of a device."
    return f'<p class="soft">{words}</p>' + _table(head, rows, set(range(1, len(head))))


def _cost(cost: Mapping[str, Any]) -> str:
    if not cost:
        return ""
    sentence = f"<p>{_text(cost_sentence(cost))}</p>"
    rows = [
        (label, duration(cost[key]) if key == "seconds" else _value(cost[key]))
        for key, label in _COST.items()
        if cost.get(key) is not None
    ]
    known = (*_COST, "stages")
    rows += [(key, _value(value)) for key, value in _flat({k: v for k, v in cost.items() if k not in known})]
    stages = cost.get("stages")
    detail = _records(stages) if isinstance(stages, list) else ""
    return sentence + _table(("what", "amount"), rows, {1}) + (f"<h3>Per circuit</h3>{detail}" if detail else "")


def cost_sentence(cost: Mapping[str, Any]) -> str:
    """The cost in plain English; says only what is known."""

    def known(key: str) -> bool:
        return isinstance(cost.get(key), (int, float)) and not isinstance(cost[key], bool)

    sentences = []
    if known("circuits"):
        whole = (
            f"Running {number(cost['samples'])} test images takes" if known("samples") else "Running the hybrid takes"
        )
        shots = cost.get("shots") if known("shots") else None
        shots_text = (
            "" if shots is None else f" and {number(shots)} shots" if shots else " and no shots: it is simulated"
        )
        sentences.append(f"{whole} {number(cost['circuits'])} circuits{shots_text}.")
    if cost.get("executor"):
        sentences.append(f"Executor: {cost['executor']}.")
    if known("depth"):
        sentences.append(f"The deepest circuit has depth {number(cost['depth'])}.")
    if known("two_qubit_gates"):
        gates = number(cost["two_qubit_gates"])
        if known("one_qubit_gates"):
            gates = f"{number(cost['one_qubit_gates'])} one-qubit and {gates}"
        sentences.append(f"All circuits together hold {gates} two-qubit gates, each counted once whatever its shots.")
    if known("seconds") and cost["seconds"] > 0:
        sentences.append(
            f"A device would be busy for about {duration(cost['seconds'])}, without queueing; this is an estimate, by "
            "the backend's durations where it tells them and a rough model elsewhere, and not a measurement."
        )
        if known("money"):
            sentences.append(f"At the price given that costs {cost['money']:,.2f}.")
    return " ".join(sentences)


def _layers(layers: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for layer in layers:
        row = {key: value for key, value in layer.items() if key not in ("ranks", "verdict")}
        for rank in layer.get("ranks", ()):
            bond = max(rank["bond_dims"], default=1)
            row[f"MPO within {percent(rank['rel_error'], 0)}"] = f"{number(rank['parameters'])} (bond {bond})"
            if rank.get("output_error") is not None:
                row[f"its error on outputs, {percent(rank['rel_error'], 0)}"] = percent(rank["output_error"])
        if isinstance(row.get("cnots"), Mapping):
            row["cnots"] = ", ".join(f"{key} {number(count)}" for key, count in row["cnots"].items())
        for key in ("entropies", "maximum_entropies"):
            if key in row:
                row[f"{key} (nats)"] = row.pop(key)
        if "verdict" in layer:
            row["verdict"] = layer["verdict"]
        rows.append(row)
    return _records(rows)


def _entanglement(found: Mapping[str, Any], plots: Mapping[str, str]) -> str:
    """Profiles of layers, their figure, and entropies of attention."""
    parts = []
    layers = [_profile_row(layer) for layer in found.get("layers", [])]
    if layers:
        words = (
            "Entropies are in nats, at the bond in the middle of the legs. The law is the best of three by the "
            "corrected information criterion: area (a constant), log (with the logarithm of a critical chain), volume "
            "(with the maximum, which is the logarithm of the smaller side's dimension or less for a known rank; slope "
            "1 is the most). Valleys are left out of it where no rank is known. "
            "Undecided: too few bonds, or two laws fit alike. Valley: how far the deepest dip lies below its lower "
            "shoulder."
        )
        parts.append(f'<p class="soft">{_text(words)}</p>{_records(layers)}')
    if "entanglement" in plots:
        parts.append(_plots({"entanglement": plots["entanglement"]}, {}))
    rows = [row for length in found.get("attention", []) for row in _attention_rows(length)]
    if rows:
        words = (
            "Entropies are in nats, means over heads with the smallest and the largest. Rows: Shannon entropy of what "
            "a token looks at. Matrix: of the squared singular values."
        )
        parts.append(f'<h3>Attention</h3><p class="soft">{_text(words)}</p>{_records(rows)}')
    return "".join(parts)


def _verdicts(verdicts: Sequence[Mapping[str, Any]], plots: Mapping[str, str]) -> str:
    """For each layer the verdict in words, and the smallest ways to write it."""
    parts = [_plots({"verdict": plots["verdict"]}, {})] if verdicts and "verdict" in plots else []
    for verdict in verdicts:
        rows = [each for each in verdict["candidates"] if not each["ruled_out"]]
        circuits = sorted((each for each in rows if each["kind"] == "circuits"), key=_total)[:_MOST_CANDIDATES]
        rows = [*(each for each in rows if each["kind"] != "circuits"), *circuits]
        table = _records([_candidate_row(each) for each in rows])
        parts.append(f"<h3>{_text(verdict['name'] or 'weight')}</h3><p>{_text(verdict['paragraph'])}</p>{table}")
    return "".join(parts)


def _total(candidate: Mapping[str, Any]) -> int:
    return int(candidate["classical"]) + int(candidate["circuit"])


def _candidate_row(candidate: Mapping[str, Any]) -> dict[str, Any]:
    legs = zip(candidate["out_dims"], candidate["in_dims"], strict=True)
    row = {
        "way": candidate["kind"],
        "sites": " ".join(f"{o}x{i}" for o, i in legs),
        "bonds": candidate["bond_dims"],
        "entries": candidate["classical"],
        "weight error": percent(candidate["error"]),
    }
    if candidate["kind"] == "circuits":
        row |= {key: candidate[key] for key in ("body", "depth", "circuit", "cnots")} | {"total": _total(candidate)}
    return row


def _profile_row(layer: Mapping[str, Any]) -> dict[str, Any]:
    row = {"layer": layer["name"], "of": layer["kind"], "shape": layer["shape"]}
    profile = layer["profile"]
    if profile is None:
        return {**row, "law": "unchanged"}
    middle = profile["middle"] - 1
    law = profile["law"]
    fitted = law["laws"][0] if law["law"] != "undecided" else None
    slope = f", slope {fitted['slope']:.2f}" if fitted and fitted["name"] != "area" else ""
    return {
        **row,
        "order": profile["order"],
        "bonds": len(profile["entropies"]),
        **{name: round(profile[key][middle], 2) for name, key in _HEIGHTS.items()},
        "law": law["law"] + slope,
        "valley": percent(profile["valley"]["relative"], 0),
    }


def _attention_rows(found: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    for number_of_layer, (rows, matrix) in enumerate(zip(found["rows"], found["matrix"], strict=True), start=1):
        yield {
            "layer": f"layer {number_of_layer}",
            "tokens": found["length"],
            **{name: _range(values) for name, values in (("rows", rows), ("matrix", matrix))},
            "maximum": round(math.log(found["length"]), 2),
        }


def _range(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _records(records: Sequence[Mapping[str, Any]]) -> str:
    """A table of dictionaries, whose keys become columns in the order in which they first occur."""
    head = list(dict.fromkeys(key for record in records for key in record))
    rows = [[_value(record.get(key), key) for key in head] for record in records]
    numeric = {
        k for k, key in enumerate(head) if all(isinstance(r.get(key), (int, float, type(None))) for r in records)
    }
    wide = head.index("verdict") if "verdict" in head else None
    table = _table([key.replace("_", " ") for key in head], rows, numeric, wide=wide)
    return f'<div class="records">{table}</div>' if table else ""


def _manifest(manifest: Mapping[str, Any]) -> str:
    if not manifest:
        return ""
    return _section("Manifest", '<p class="soft">What is needed to remake these numbers.</p>' + _pairs(manifest))


def _pairs(tree: Mapping[str, Any]) -> str:
    """Nested dictionaries as a table of dotted names and values."""
    rows = [
        (name, _value(value) if isinstance(value, (float, list)) else "–" if value is None else str(value))
        for name, value in _flat(tree)
    ]
    return _table(("what", "value"), rows, set())


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _value(value: Any, key: str = "") -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        return duration(value) if key == "seconds" else number(value)
    if isinstance(value, (list, tuple)):
        separator = " × " if key == "shape" else ", "
        return separator.join(f"{v:.2f}" if isinstance(v, float) else _value(v) for v in value)
    return str(value)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], numeric: set[int], *, wide: int | None = None) -> str:
    """A table in a box of its own that scrolls; the first column names its row."""
    lines = list(rows)
    if not lines:
        return ""

    def classes(column: int) -> str:
        return ' class="n"' if column in numeric else ' class="wide"' if column == wide else ""

    top = "".join(f'<th scope="col"{classes(k)}>{_text(name)}</th>' for k, name in enumerate(head))
    body = "".join(
        f'<tr><th scope="row">{_text(first)}</th>'
        + "".join(f"<td{classes(k)}>{_text(cell)}</td>" for k, cell in enumerate(rest, start=1))
        + "</tr>\n"
        for first, *rest in lines
    )
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{top}</tr></thead>\n<tbody>\n{body}</tbody></table></div>'
    )


def _section(title: str, inner: str) -> str:
    return f"<section><h2>{title}</h2>{inner}</section>" if inner else ""


def _image(svg: str, alt: str) -> str:
    return f'<img alt="{_text(alt)}" src="data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}">'


def _text(text: str) -> str:
    return escape(text, quote=True)
