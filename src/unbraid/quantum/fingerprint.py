"""What results depend on besides circuits and shots, as text for the keys of a results store.

Of a sampler: its class and options. Of the backend behind it: name, and where it is a simulation its noise. What does
not change results (tags of jobs, logging, time limits) is left out. A real device is known by its name alone: its
calibration changes from day to day, and what was measured before is still worth having.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

_IRRELEVANT = frozenset({"environment", "job_tags", "log_level", "max_execution_time", "seed_simulator", "verbose"})
_RANDOM = re.compile(r"'id': '[0-9a-f]{32}'")  # Aer gives every error of a noise model a new one


def fingerprint(sampler: Any, backend: Any, *, simulated: bool) -> str:
    """Text that differs where results differ.

    Args:
        sampler: of Qiskit's interface.
        backend: that circuits are transpiled to, or None.
        simulated: whether noise is a property of the backend, not of a device.
    """
    kind = type(sampler)
    parts: list[Any] = [f"{kind.__module__}.{kind.__qualname__}", plain(getattr(sampler, "options", None))]
    for behind in (getattr(sampler, "backend", None), getattr(sampler, "_backend", None), backend):
        if behind is None or isinstance(behind, str):
            continue
        parts += [getattr(behind, "name", type(behind).__name__), plain(getattr(behind, "options", None))]
        target = getattr(behind, "target", None)
        if simulated and target is not None:
            parts.append(_noise(target))
    return repr(parts)


def _noise(target: Any) -> list[Any]:
    """Error and duration of every instruction."""
    found = []
    for name in sorted(target.operation_names):
        for qubits, properties in (target[name] or {}).items():
            found.append((name, qubits, getattr(properties, "error", None), getattr(properties, "duration", None)))
    return sorted(found, key=repr)


def plain(value: Any) -> Any:
    """Options as plain data; of objects that do not tell their content, the class."""
    if value is None or isinstance(value, str | int | float | bool | complex):
        return value
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, type):
        return value.__qualname__
    if callable(getattr(value, "model_dump", None)):  # pydantic's, as newer options of IBM's samplers are
        value = value.model_dump()
    elif is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    elif callable(getattr(value, "to_dict", None)):
        return _RANDOM.sub("", repr(_to_dict(value)))
    elif not isinstance(value, Mapping):
        told = getattr(value, "__dict__", None) or getattr(value, "_fields", None)
        if not isinstance(told, Mapping):
            return type(value).__qualname__ if not hasattr(value, "tolist") else value.tolist()
        value = {name: item for name, item in told.items() if not name.startswith("_")}
    return {
        str(name): plain(item)
        for name, item in sorted(value.items(), key=lambda pair: str(pair[0]))
        if name not in _IRRELEVANT
    }


def _to_dict(value: Any) -> Any:
    try:
        return value.to_dict(serializable=True)  # a noise model
    except TypeError:
        return value.to_dict()
