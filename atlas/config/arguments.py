"""`KEY=VALUE` arguments of a command -> the dataclass of its settings; help and refusals of a command line.

For commands whose values are plain text: unlike Hydra's, a value may hold any character and needs no second quoting.
"""

from __future__ import annotations

import os
import sys
import typing
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from difflib import get_close_matches
from enum import Enum, StrEnum
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

from atlas.config import ConfigError, DeviceConfig, ModelConfig, Rule, require
from atlas.config.choices import member
from atlas.config.console import OutputError, print_result
from atlas.config.errors import CheckpointWarning
from atlas.config.exits import ExitError
from atlas.config.latest import is_latest, latest_run
from atlas.config.path_overrides import expanded
from atlas.config.untrusted import printable
from atlas.config.values import describe

Settings = TypeVar("Settings")


class Weights(StrEnum):
    """Which weights of a checkpoint are read."""

    trained = "trained"
    averaged = "averaged"  # of a run with `train.ema`


TRUTHS = {"true": True, "false": False}


def run_command(
    work: Callable[[list[str]], int],
    arguments: Sequence[str] | None,
    help_text: str,
    stopped: str = "stopped by Ctrl-C",
) -> int:
    """Exit status of `work` on the arguments, by default those of the process.

    0 where they ask for help; with one line on stderr, 2 where `work` raises `ConfigError`, 1 where it raises
    `ExitError` or stdout cannot be written, and 130 after Ctrl-C, with the line `stopped`.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if not {"-h", "--help"}.isdisjoint(given):
            print_result(help_text)
            return 0
        with _warnings_as_lines():
            return work(given)
    except ConfigError as error:
        print(printable(f"atlas: {error}"), file=sys.stderr)
        return 2
    except ExitError as error:
        print(printable(f"atlas: {error}"), file=sys.stderr)
        return 1
    except OutputError as error:
        print(f"atlas: stdout: must be open and take what is written ({error.strerror})", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\natlas: {stopped}", file=sys.stderr)  # the terminal shows ^C without an end of line
        return 130


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """What `atlas.load` warns of is a line of a command, without a place in the source."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", CheckpointWarning)
        others = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any, **named: Any) -> None:
            if issubclass(category, CheckpointWarning):
                print(printable(f"atlas: {message}"), file=sys.stderr)
            else:
                others(message, category, *place, **named)

        warnings.showwarning = show
        yield


def require_lasting(rate: float) -> None:
    """Of the key `lasting`, the rate from which a write of the global memory lasts. Raises `ConfigError`."""
    require(0 <= rate <= 1, "lasting", rate, "in [0, 1] (0 = all writes last)")


def require_lasting_of(model: ModelConfig, rate: float) -> None:
    """Raises `ConfigError` where the model has no writes of that rate."""
    has_global, most = model.memory.enabled and model.memory.use_global, model.memory.rate_max
    require(not rate or has_global, "lasting", rate, "0: the model has no global memory")
    require(not rate or rate < most, "lasting", rate, f"< {most:g}, its model.memory.rate_max: no write would last")
    rule = model.memory.rule
    steps = not model.memory.own_rule and rule in (Rule.muon, Rule.atlas)
    require(not (rate and steps), "lasting", rate, f"0: with the rule {rule} every chunk makes a step, however small")


def split_arguments(arguments: Sequence[str], usage: str) -> tuple[str, list[str]]:
    """The one folder among the arguments, and the settings. Raises `ConfigError` unless there is exactly one.

    A folder's name may hold "=", as a sweep's job does; `latest` is as in `latest.py`.
    """
    for argument in arguments:
        if argument.startswith("--"):
            plain = argument.removeprefix("--")
            raise ConfigError(f"{argument}: must be written {plain if '=' in plain else f'{plain}=VALUE'}: {usage}")
    folders = [argument for argument in arguments if _is_folder(argument)]
    require(len(folders) == 1, "RUN", " ".join(folders), f"one run or checkpoint folder: {usage}")
    return str(given_folder(folders[0])), [argument for argument in arguments if not _is_folder(argument)]


def given_folder(name: str) -> Path:
    """The folder that an argument names, `latest` or a path. Raises `ConfigError`."""
    return latest_run("RUN") if is_latest(name) else expanded(name)


def _is_folder(argument: str) -> bool:
    key, _, _ = argument.partition("=")
    return key == argument or "/" in key or os.path.isdir(argument)  # noqa: PTH112 (pathlib raises for a long text)


def names(text: str) -> list[str]:
    """`a,b` or `[a,b]` as a list. `[ab]*.md` is one name: its first bracket is closed before the end."""
    text = text.strip()
    depths = list(accumulate((char == "[") - (char == "]") for char in text))
    if text.startswith("[") and depths[-1] == 0 and 0 not in depths[:-1]:
        text = text[1:-1]
    return [name.strip() for name in text.split(",") if name.strip()]


def read_device(arguments: Sequence[str]) -> DeviceConfig:
    """Where a trained model runs is the caller's choice: `device=OPTION` and `device.KEY=VALUE` arguments."""
    given = [
        argument.replace("device=", "kind=", 1) if argument.startswith("device=") else argument.removeprefix("device.")
        for argument in arguments
    ]
    for text in given:
        if text.startswith("precision="):
            raise ConfigError(f"device.{text}: must be left out: a trained model is read in fp32")
        if text.startswith("compile="):
            raise ConfigError(f"device.{text}: must be left out: blocks are compiled for training alone")
        if text.startswith("processes="):
            raise ConfigError(f"device.{text}: must be left out: one process reads a trained model")
    return read_settings(DeviceConfig, given, "device.")


def read_settings(
    kind: type[Settings], arguments: Sequence[str], prefix: str = "", *, also: Sequence[str] = (), **fixed: Any
) -> Settings:
    """The settings that `KEY=VALUE` arguments give, defaults for the rest; the last of several values of a key counts.

    Fields are str, int, float, bool or an Enum; the key of one is its name, or what its metadata has for "key".
    `prefix` stands before keys in messages, which list `also`, the keys of others, too; `fixed` are fields that no
    argument sets. Raises `ConfigError` naming the argument and what is allowed.
    """
    hints = typing.get_type_hints(kind)
    settable = [field for field in fields(kind) if field.name not in fixed]  # type: ignore[arg-type]
    known = {field.metadata.get("key", field.name): field for field in settable}
    given: dict[str, Any] = {}
    for argument in arguments:
        key, _, text = argument.partition("=")
        if key not in known:
            near = get_close_matches(key, [*known, *also], n=1)
            hint = f"; did you mean {prefix}{near[0]}?" if near else ""
            keys = ", ".join(f"{prefix}{name}" for name in (*known, *also))
            raise ConfigError(f"{prefix}{argument}: must be one of the keys {keys}{hint}")
        field = known[key]
        given[field.name] = _value(hints[field.name], f"{prefix}{key}", text, field.default)
    return kind(**given, **fixed)


def _value(kind: Any, key: str, text: str, default: Any) -> Any:
    if isinstance(kind, type) and issubclass(kind, Enum):
        return member(kind, key, text)
    if kind is bool:
        require(text.lower() in TRUTHS, key, text, "true or false")
        return TRUTHS[text.lower()]
    try:
        return kind(text)
    except ValueError as error:
        raise ConfigError(f"{key}={text}: must be {describe(kind)}, such as {default}") from error
