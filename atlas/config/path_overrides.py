"""Paths on the command line: Hydra's grammar takes few characters as they are, a path may hold any."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from atlas.config.latest import is_latest, latest_run

RUN_KEYS = frozenset({"resume", "init_from"})
PATH_KEYS = RUN_KEYS | {"hydra.run.dir", "hydra.sweep.dir"}
_PLAIN = re.compile(r"[\w/.:+%@-]+", re.ASCII)
_SEVERAL = re.compile(r"[^'\"]*,.*|(choice|glob|range)\(.*\)", re.DOTALL)  # values of a sweep


def expanded(path: str | os.PathLike[str]) -> Path:
    """The path with `~` replaced; the name of an unknown user stays as it is."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 (that of pathlib raises)


def readable(arguments: Sequence[str], tell: bool = True) -> list[str]:
    """The arguments as Hydra reads them: a path is quoted where it must be, `~` is the home folder, and a run can be
    called `latest`, of which a line tells with `tell`. Raises `ConfigError` where there is none."""
    sweep = not {"-m", "--multirun"}.isdisjoint(arguments)
    return [_readable(argument, sweep, tell) for argument in arguments]


def _readable(argument: str, sweep: bool, tell: bool) -> str:
    key, _, value = argument.partition("=")
    if key not in PATH_KEYS or not value or value[0] in "'\"":
        return argument
    if key in RUN_KEYS and is_latest(value):
        value = str(latest_run(key, tell))
    path = str(expanded(value)) if value.startswith("~") else value
    if _PLAIN.fullmatch(path) or (sweep and _SEVERAL.fullmatch(path) and not os.path.lexists(path)):
        return f"{key}={path}"
    return f"{key}={quoted(path)}"


def quoted(text: object) -> str:
    """The value of an override, as Hydra reads it back whatever characters it holds."""
    escaped = str(text).replace("\\'", "\\\\'").replace("'", "\\'")
    return f"'{escaped}'"


def shell_example(override: str) -> str:
    """The override as a shell and Hydra take it, whatever it holds."""
    key, _, value = override.partition("=")
    if value.startswith("["):
        items = [item.strip(" '\"") for item in value.strip("[]").split(",")]
        return shlex.quote(f"{key}=[{','.join(_double(item) for item in items)}]")
    return shlex.quote(f"{key}={_double(value)}")


def _double(text: str) -> str:
    escaped = text.replace('"', '\\"')
    return f'"{escaped}"'
