"""`KEY=VALUE` arguments of a command -> the dataclass of its settings; help and refusals of a command line.

For commands whose values are plain text: unlike Hydra's, a value may hold any character and needs no second quoting.
"""

from __future__ import annotations

import sys
import typing
from collections.abc import Callable, Sequence
from dataclasses import fields
from difflib import get_close_matches
from enum import Enum
from typing import Any, TypeVar

from atlas.config import ConfigError, require
from atlas.config.untrusted import printable

Settings = TypeVar("Settings")
WORDS = {int: "an integer, such as 100", float: "a number, such as 0.5"}


def run_command(work: Callable[[list[str]], int], arguments: Sequence[str] | None, help_text: str) -> int:
    """Exit status of `work` on the arguments, by default those of the process.

    0 where they ask for help; 2, with one line on stderr, where `work` raises `ConfigError`.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not {"-h", "--help"}.isdisjoint(given):
        print(help_text)
        return 0
    try:
        return work(given)
    except ConfigError as error:
        print(printable(f"atlas: {error}"), file=sys.stderr)
        return 2


def split_arguments(arguments: Sequence[str], usage: str) -> tuple[str, list[str]]:
    """The one folder among the arguments, and the settings. Raises `ConfigError` unless there is exactly one."""
    folders = [argument for argument in arguments if "=" not in argument]
    require(len(folders) == 1, "RUN", " ".join(folders), f"one run or checkpoint folder: {usage}")
    return folders[0], [argument for argument in arguments if "=" in argument]


def read_settings(kind: type[Settings], arguments: Sequence[str]) -> Settings:
    """The settings that `KEY=VALUE` arguments give, defaults for the rest; the last of several values of a key counts.

    Fields are str, int, float or an Enum. Raises `ConfigError` naming the argument and what is allowed.
    """
    hints = typing.get_type_hints(kind)
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    given: dict[str, Any] = {}
    for argument in arguments:
        key, _, text = argument.partition("=")
        if key not in names:
            near = get_close_matches(key, names, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"{argument}: must be one of the keys {', '.join(names)}{hint}")
        given[key] = _value(hints[key], key, text)
    return kind(**given)


def _value(kind: Callable[[str], Any], key: str, text: str) -> Any:
    try:
        return kind(text)
    except ValueError as error:
        if isinstance(kind, type) and issubclass(kind, Enum):
            raise ConfigError(f"{key}={text}: must be one of {', '.join(member.value for member in kind)}") from error
        raise ConfigError(f"{key}={text}: must be {WORDS[kind]}") from error  # type: ignore[index]
