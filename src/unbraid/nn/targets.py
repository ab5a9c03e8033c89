"""Which layers of a model are meant, and with which options: by name, last parts of a name, or regular expression."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import nn

from unbraid.ground.errors import InvalidInputError
from unbraid.nn.kinds import KINDS, is_linear, is_plain, kind_of
from unbraid.nn.layers import MPOLinear
from unbraid.nn.operator import OperatorModule

Targets = str | Iterable[str]
Sites = str | tuple[Sequence[int], Sequence[int]]


def match_layers(
    model: nn.Module, targets: Targets, kinds: tuple[type[nn.Module], ...] | None = None
) -> dict[str, nn.Module]:
    """The layers of given kinds that ``targets`` names, in the order of ``model.named_modules()``.

    Args:
        model: any module; it may be such a layer itself, whose name is then "".
        targets: "all-linear" for every one (of the default kinds, the linear ones: ``nn.Linear``, and ``Conv1D`` of
            transformers); a string is a regular expression that must match the whole name or its part after a dot; a
            list holds names or their last parts.
        kinds: classes to look for; by default those that :func:`tensorize` can replace: linear layers, ``nn.Conv2d``,
            ``nn.Embedding``.

    Raises:
        InvalidInputError: if nothing matches, listing the candidates, or the expression is none.
    """
    if not isinstance(targets, Iterable):
        raise InvalidInputError(f"targets must be a string or a list of names; got {targets!r}.")
    if not isinstance(model, nn.Module):
        raise InvalidInputError(f"model must be a network, an nn.Module; got {type(model).__name__}.")
    if kinds is not None:
        candidates = {
            name: module for name, module in model.named_modules() if isinstance(module, kinds) and is_plain(module)
        }
        kinds_text = " or ".join(kind.__name__ for kind in kinds)
    else:
        fits = is_linear if targets == "all-linear" else kind_of
        candidates = {name: module for name, module in model.named_modules() if fits(module)}
        kinds_text = "Linear" if targets == "all-linear" else ", ".join(kind.name for kind in KINDS)
    if isinstance(targets, str):
        if targets == "all-linear":
            found = candidates
        else:
            pattern = expression(targets)
            found = {name: module for name, module in candidates.items() if pattern.fullmatch(name)}
    else:
        wanted = list(targets)
        found = {
            name: module for name, module in candidates.items() if any(_ends_with(name, suffix) for suffix in wanted)
        }
        idle = [suffix for suffix in wanted if not any(_ends_with(name, suffix) for name in found)]
        if found and idle:
            raise InvalidInputError(f"The target {idle[0]!r} matches no layer, though others do. Correct or drop it.")
    if not found:
        names = ", ".join(repr(name) for name in list(candidates)[:20]) or "none"
        if kinds == (MPOLinear,) and not candidates:
            raise InvalidInputError(
                "There are no MPO layers here. Write layers as MPOs first: tensorize(model, ..., sites='qubits'), or "
                "`unbraid compress --sites qubits` on the command line."
            )
        raise InvalidInputError(
            f"No {kinds_text} layer matches the target {targets!r}. Layers of that kind here: {names}. "
            f"Give a name, a list of name endings, a regular expression, or 'all-linear'.{_others(model, kinds)}"
        )
    return found


def _others(model: nn.Module, kinds: tuple[type[nn.Module], ...] | None) -> str:
    """What a user may have meant, that is not of these kinds."""
    told = ""
    operators = [name for name, module in model.named_modules() if isinstance(module, OperatorModule)]
    if kinds is None and operators:
        told += f" {operators[0]!r} is an operator already: merge_back makes a plain layer of it."
    own = next(((name, module) for name, module in model.named_modules() if not is_plain(module)), None)
    if own is not None:
        told += f" {own[0]!r} is a {type(own[1]).__name__}, whose forward is its own: it cannot be replaced."
    return told


def _ends_with(name: str, suffix: str) -> bool:
    return name == suffix or name.endswith(f".{suffix}")


def exactly(names: Iterable[str]) -> str:
    """Targets that are the layers of these whole names, and none whose name only ends so."""
    return "|".join(rf"\A{re.escape(name)}" for name in names)


def expression(text: str) -> re.Pattern[str]:
    """A regular expression as targets are written: it matches a whole name or its part after a dot.

    Raises:
        InvalidInputError: if it is no regular expression.
    """
    try:
        re.compile(text)  # by itself first, so that an error's position is the user's
        return re.compile(rf"(?:.*\.)?(?:{text})")
    except re.error as error:
        raise InvalidInputError(f"The target {text!r} is no regular expression: {error}.") from error


def check_budget(budget: float) -> None:
    """Refuse what is no fraction.

    Raises:
        InvalidInputError: saying what came.
    """
    if isinstance(budget, bool) or not isinstance(budget, (int, float)) or not 0 < budget <= 1:
        raise InvalidInputError(f"budget must be a fraction above 0 and at most 1; got {budget!r}.")


@dataclass(frozen=True)
class LayerOptions:
    """How one layer is decomposed; what each field means is told by :func:`tensorize`.

    Raises:
        InvalidInputError: if a budget is no fraction.
    """

    max_bond: int | None = None
    rel_error: float | None = None
    budget: float | None = None
    sites: Sites = "auto"
    method: str = "auto"

    def __post_init__(self) -> None:
        if self.budget is not None:
            check_budget(self.budget)


def options_by_layer(
    names: Iterable[str], default: LayerOptions, given: Mapping[str, Mapping[str, Any]]
) -> dict[str, LayerOptions]:
    """The options of each layer; see ``layer_options`` of :func:`tensorize` for which key counts.

    Raises:
        InvalidInputError: if a key matches no layer, or an option is unknown.
    """
    names = list(names)
    known = [field.name for field in fields(LayerOptions)]
    limits = ("max_bond", "rel_error", "budget")
    if not isinstance(given, Mapping):
        raise InvalidInputError(f"layer_options must map layers to options; got {type(given).__name__}.")
    for key, options in given.items():
        if not isinstance(key, str) or not isinstance(options, Mapping):
            raise InvalidInputError(
                f"layer_options must map names to options such as {{'budget': 0.5}}; got {key!r}: {options!r}."
            )
        unknown = [name for name in options if name not in known]
        if unknown:
            raise InvalidInputError(f"layer_options[{key!r}] may have {', '.join(known)}; got {unknown[0]!r}.")
    ways: tuple[Callable[[str, str], bool], ...] = (
        lambda name, key: name == key,
        _ends_with,
        lambda name, key: bool(expression(key).fullmatch(name)),
    )
    idle = [key for key in given if not any(way(name, key) for way in ways for name in names)]
    if idle:
        raise InvalidInputError(f"layer_options[{idle[0]!r}] matches no layer that is a target. Correct or drop it.")
    found = {}
    for name in names:
        chosen = next((key for way in ways for key in given if way(name, key)), None)
        options = {} if chosen is None else dict(given[chosen])
        if any(limit in options for limit in limits):
            options = dict.fromkeys(limits) | options
        found[name] = replace(default, **options)
    return found
