"""The settings of runs, and in which of them they differ: only those are worth a column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from atlas.config.untrusted import open_regular
from atlas.report.document import MISSING
from atlas.report.folders import SWEEP_FILE
from atlas.report.wording import value_text

# Where something is written, not what was computed.
IGNORED = ("logger", "resume", "sweep.resume", "sweep.round")
MOST_BYTES, MOST_LEVELS = 2**18, 50  # of a configuration
ABSENT = "(absent)"


@dataclass(frozen=True)
class Difference:
    """A setting with its value in each run, and the settings that change exactly where it does."""

    key: str
    name: str  # the key, or its last part where no other setting is called so
    values: Sequence[Any]
    along: Sequence[str] = ()


def differences(configs: Sequence[Mapping[str, Any]], swept: Sequence[str] = ()) -> list[Difference]:
    """The settings that are not the same in all of `configs`. An empty one, which could not be read, does not count.

    Of settings that change together the one stands for all that was `swept`: a key, or a group of them.
    """
    known = [config for config in configs if config]
    keys = [key for key in dict.fromkeys(key for config in known for key in config) if not _ignored(key)]
    patterns: dict[tuple[int, ...], list[str]] = {}
    for key in keys:
        texts = [value_text(config[key]) if key in config else ABSENT for config in known]
        if len(set(texts)) > 1:
            patterns.setdefault(tuple(texts.index(text) for text in texts), []).append(key)
    found = []
    for together in patterns.values():
        key = min(together, key=lambda name: (not _named(name, swept), name.count("."), len(name)))
        values = [config.get(key, ABSENT) if config else MISSING for config in configs]
        found.append(Difference(key, _short(key, keys), values, tuple(other for other in together if other != key)))
    return found


def _ignored(key: str) -> bool:
    return _named(key, IGNORED)


def _named(key: str, names: Sequence[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _short(key: str, keys: Sequence[str]) -> str:
    last = key.rpartition(".")[2]
    return last if sum(other.rpartition(".")[2] == last for other in keys) == 1 else key


def read_settings(path: Path, problems: list[str]) -> dict[str, Any]:
    """A configuration, flat, with dotted keys; {} and a line in `problems` where it cannot be read.

    A job that failed early leaves one with references, which are resolved if they can be.
    """
    try:
        loaded = _load(path)
    except FileNotFoundError:
        problems.append(f"{path.name} is missing")
        return {}
    except (OSError, ValueError) as error:
        problems.append(f"{path.name} cannot be read ({type(error).__name__})")
        return {}
    try:
        content = OmegaConf.to_container(loaded, resolve=True)
    except OmegaConfBaseException:
        content = OmegaConf.to_container(loaded, resolve=False)
    return dict(_flat(content)) if isinstance(content, dict) else {}


def swept_names(sweep: Path) -> list[str]:
    """Keys and groups that the command line of a sweep gave; [] where it is not on record."""
    try:
        overrides = OmegaConf.select(_load(sweep / SWEEP_FILE), "hydra.overrides.task", default=None)
    except (OSError, ValueError, OmegaConfBaseException):
        return []
    return [str(override).partition("=")[0].lstrip("+~") for override in overrides or ()]


def _load(path: Path) -> Any:
    """Raises OSError, and ValueError for what is no YAML, or YAML that takes for ever to read."""
    with open_regular(path) as file:
        text = file.read(MOST_BYTES).decode("utf-8")
    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or depth > MOST_LEVELS:
                raise ValueError("it repeats parts of itself or is nested too deeply")
        return OmegaConf.create(text)
    except (yaml.YAMLError, OmegaConfBaseException, RecursionError) as error:
        raise ValueError(str(error)) from error


def _flat(node: Mapping[Any, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in node.items():
        name = f"{prefix}{key}"
        found += _flat(value, f"{name}.") if isinstance(value, dict) and value else [(name, value)]
    return found
