"""The settings of runs, and in which of them they differ: only those are worth a column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from atlas.config import ConfigError
from atlas.config.files import read_yaml, require_values
from atlas.report.document import MISSING
from atlas.report.folders import SWEEP_FILE
from atlas.report.wording import value_text

# Where something is written, not what was computed.
IGNORED = ("logger", "resume", "sweep.resume", "sweep.round", "trust")
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
        content: Any = read_yaml(path)
    except FileNotFoundError:
        problems.append(f"{path.name} is missing")
        return {}
    except OSError as error:
        problems.append(f"{path.name} cannot be read ({error.strerror})")
        return {}
    except ConfigError as error:
        problems.append(f"{path.name} {str(error).removeprefix(f'{path}: ')}")
        return {}
    try:
        require_values(path, content)
        content = OmegaConf.to_container(OmegaConf.create(content), resolve=True)
    except (ConfigError, OmegaConfBaseException):
        pass  # a reference that leads nowhere is shown as it stands
    return dict(_flat(content))


def swept_names(sweep: Path) -> list[str]:
    """Keys and groups that the command line of a sweep gave; [] where it is not on record."""
    try:
        overrides = read_yaml(sweep / SWEEP_FILE)["hydra"]["overrides"]["task"]
        return [str(override).partition("=")[0].lstrip("+~") for override in overrides]
    except (OSError, ConfigError, LookupError, TypeError):
        return []


def _flat(node: Mapping[Any, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in node.items():
        name = f"{prefix}{key}"
        found += _flat(value, f"{name}.") if isinstance(value, dict) and value else [(name, value)]
    return found
