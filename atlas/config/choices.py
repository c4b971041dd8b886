"""Settings and arguments whose value is a member of an enum, given as the member or as the text that names it.

The rest of the code compares choices with `is`, so every value must be a member.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from enum import Enum
from typing import Any, ClassVar, TypeVar

from atlas.config.errors import ConfigError

Member = TypeVar("Member", bound=Enum)


def member(kind: type[Member], key: str, value: object) -> Member:
    """The member that `value` is or names. Raises `ConfigError`, which calls it `key`."""
    try:
        return kind(value)
    except ValueError as error:
        raise ConfigError(f"{key}={value}: must be one of {', '.join(one.value for one in kind)}") from error


class Choices:
    """Base of settings: a field of an enum's type takes the text as well, when it is made and when it is assigned."""

    _prefix: ClassVar[str]  # of the keys in messages
    _enums: ClassVar[Mapping[str, type[Enum]]]  # by field

    def __init_subclass__(cls, *, prefix: str = "") -> None:
        super().__init_subclass__()
        hints = typing.get_type_hints(cls).items()
        cls._prefix = prefix
        cls._enums = {name: kind for name, kind in hints if isinstance(kind, type) and issubclass(kind, Enum)}

    def __setattr__(self, name: str, value: Any) -> None:
        kind = self._enums.get(name)
        super().__setattr__(name, value if kind is None else member(kind, f"{self._prefix}{name}", value))
