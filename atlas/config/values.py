"""Which values a key takes: its type, and the range that `Annotated` declares beside it.

Components declare theirs in their signature: `lr: Annotated[float, within("(0, inf)")]`.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Annotated, Any

from atlas.config.errors import ConfigError

_WORDS: dict[Any, str] = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a text",
    type(None): "null",
}
_LISTS: dict[Any, str] = {
    int: "a list of integers, such as [8,16]",
    float: "a list of numbers, such as [0.25,0.5]",
    str: "a list of texts, such as [a,b]",
}


@dataclasses.dataclass(frozen=True)
class Allowed:
    """`text` follows the words for the type: "a number" + "> 0"; `holds` sees values of that type only."""

    text: str
    holds: Callable[[Any], bool]


def within(interval: str) -> Allowed:
    """The numbers of an interval such as `[0, 1)` or `(0, inf)`."""
    low, high = map(float, interval[1:-1].split(","))
    open_low, open_high = interval[0] == "(", interval[-1] == ")"
    return Allowed(
        f"in {interval}",
        lambda value: (low < value if open_low else low <= value) and (value < high if open_high else value <= high),
    )


def of_length(least: int, most: int) -> Allowed:
    return Allowed(f"of {least} to {most} characters", lambda text: least <= len(text) <= most)


Share = Annotated[float, within("[0, 1]")]


def check_value(key: str, value: Any, kind: Any) -> None:
    """Raise `ConfigError` unless `value`, at `key`, is what the annotation `kind` takes."""
    if fits(value, kind):
        return
    scalar = isinstance(value, bool | int | float)
    hint = f"; in quotes it is one: {key}=\"'{value}'\"" if scalar and fits(str(value), kind) else ""
    raise ConfigError(f"{key}={value}: must be {describe(kind)}{hint}")


def fits(value: Any, kind: Any) -> bool:
    """Whether a YAML value fits an annotation; True for annotations of kinds that are not listed here."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        ranges = [note for note in arguments[1:] if isinstance(note, Allowed)]
        return fits(value, arguments[0]) and all(note.holds(value) for note in ranges)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, member) for member in arguments)
    if origin is typing.Literal:
        return value in arguments
    if kind in (list, tuple, Sequence) or origin in (list, Sequence):
        return isinstance(value, list | tuple) and all(fits(item, arguments[0]) for item in value if arguments)
    if kind in (dict, Mapping) or origin in (dict, Mapping):
        pairs = value.items() if isinstance(value, Mapping) and arguments else ()
        known = all(fits(name, arguments[0]) and fits(item, arguments[1]) for name, item in pairs)
        return isinstance(value, Mapping) and "_target_" not in value and known
    if kind is float:
        return type(value) in (int, float)
    if kind in (int, bool, str, type(None)):
        return type(value) is kind
    if isinstance(kind, type) and issubclass(kind, Enum):
        return value in kind or value in [member.value for member in kind]
    return not dataclasses.is_dataclass(kind) or (isinstance(value, Mapping) and "_target_" in value)


def describe(kind: Any) -> str:
    """What a value of this type looks like, in words that follow "must be"."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        ranges = " ".join(note.text for note in arguments[1:] if isinstance(note, Allowed))
        return f"{describe(arguments[0])} {ranges}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(member) for member in arguments)
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return f"one of {', '.join(kind.__members__)}"
    if origin in (list, Sequence):
        (member,) = arguments
        plain = member if typing.get_origin(member) is not Annotated else typing.get_args(member)[0]
        each = "" if member is plain else f", each {describe(member)}"
        return f"{_LISTS.get(plain, 'a list, such as [...]')}{each}"
    if dataclasses.is_dataclass(kind):
        return "an option of the group, or keys as {key: value}"
    return _WORDS.get(kind, "an option of the group, or keys as {key: value}")
