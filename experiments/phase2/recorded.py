"""What the values of recorded evidence may be, and its check. Imports no torch.

A rule computes with what a file holds. So every value is checked by the type of its field before, whether it comes from
runs or from a decision.json.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from math import isfinite
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from atlas.config import require


@dataclass(frozen=True)
class Allowed:
    """What a value must be besides of its type."""

    text: str
    holds: Callable[[Any], bool]
    finite: bool = True


_POSITIVE, _NOT_NEGATIVE = Allowed("> 0", lambda value: value > 0), Allowed(">= 0", lambda value: value >= 0)
Positive = Annotated[float, _POSITIVE]
NotNegative = Annotated[float, _NOT_NEGATIVE]
PositiveCount = Annotated[int, _POSITIVE]
Count = Annotated[int, _NOT_NEGATIVE]
Share = Annotated[float, Allowed("from 0 to 1", lambda value: 0 <= value <= 1)]
# Measured as NaN where a model is broken, which is a finding and no fault of the file.
Difference = Annotated[float, Allowed(">= 0 or NaN", lambda value: not value < 0, finite=False)]
Kind = TypeVar("Kind")
_NAMES = {float: "a number", int: "a whole number", str: "a text", bool: "true or false"}


def length(count: int) -> Allowed:
    return Allowed(f"{count} values", lambda value: len(value) == count)


def read_one(kind: type[Kind], content: Any, name: str) -> Kind:
    """The dataclass `kind` from a JSON object. Raises `ConfigError` naming the key and the value that cannot be."""
    require(isinstance(content, dict), name, content, "an object with the keys of its kind")
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    for key in sorted(names ^ content.keys()):
        allowed = "there: the file is not whole" if key in names else "left out: this version does not know it"
        require(False, f"{name}.{key}", content.get(key, "nothing"), allowed)
    one = kind(**content)
    require_values(one, f"{name}.")
    return one


def require_values(one: Any, prefix: str) -> None:
    """Raise `ConfigError` where a field of the dataclass `one` holds what its type does not allow."""
    for key, hint in get_type_hints(type(one), include_extras=True).items():
        _require(hint, getattr(one, key), f"{prefix}{key}", ())


def _require(hint: Any, value: Any, key: str, rules: Sequence[Allowed]) -> None:
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _require(parts[0], value, key, parts[1:])
    if origin in (UnionType, Union):
        (other,) = (part for part in parts if part is not type(None))
        return None if value is None else _require(other, value, key, rules)
    if origin is dict:
        texts = isinstance(value, dict) and all(isinstance(text, str) for text in (*value.keys(), *value.values()))
        return require(texts, key, value, "names with a text each")
    if origin is None:
        fits = isinstance(value, int | float if hint is float else hint)
        require(fits and isinstance(value, bool) is (hint is bool), key, value, _NAMES[hint])
        if hint is float and all(rule.finite for rule in rules):
            require(isfinite(value), key, value, "a finite number")
    else:
        require(isinstance(value, list | tuple), key, value, "a list")
        several = parts * len(value) if origin is not tuple else parts
        require(len(several) == len(value), key, value, f"{len(several)} values")
        for index, (part, item) in enumerate(zip(several, value, strict=True)):
            _require(part, item, f"{key}[{index}]", ())
    for rule in rules:
        require(rule.holds(value), key, value, rule.text)
    return None
