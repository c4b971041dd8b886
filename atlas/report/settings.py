"""The settings in which runs differ: each becomes a column of the comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atlas.config import ConfigError
from atlas.config.files import read_yaml
from atlas.config.keys import lies_in, override_name
from atlas.report.document import MISSING
from atlas.report.folders import SWEEP_FILE
from atlas.report.wording import value_text

# Where something is written, not what was computed.
IGNORED = ("logger", "telemetry", "resume", "sweep", "trust")
NEVER = ("sweep",)
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

    Settings that change together share one entry, named by the one that was `swept` (a key or its group).
    """
    known = [config for config in configs if config]
    every = dict.fromkeys(key for config in known for key in config)
    keys = [key for key in every if not lies_in(key, IGNORED) or (lies_in(key, swept) and not lies_in(key, NEVER))]
    patterns: dict[tuple[int, ...], list[str]] = {}
    for key in keys:
        texts = [value_text(config[key]) if key in config else ABSENT for config in known]
        if len(set(texts)) > 1:
            patterns.setdefault(tuple(texts.index(text) for text in texts), []).append(key)
    found = []
    for together in patterns.values():
        key = min(together, key=lambda name: (not lies_in(name, swept), name.count("."), len(name)))
        values = [config.get(key, ABSENT) if config else MISSING for config in configs]
        found.append(Difference(key, _short(key, keys), values, tuple(other for other in together if other != key)))
    return found


def _short(key: str, keys: Sequence[str]) -> str:
    last = key.rpartition(".")[2]
    return last if sum(other.rpartition(".")[2] == last for other in keys) == 1 else key


def swept_names(sweep: Path) -> list[str]:
    """Keys and groups that the command line of a sweep gave; [] where it is not on record."""
    try:
        overrides = read_yaml(sweep / SWEEP_FILE)["hydra"]["overrides"]["task"]
        return [override_name(str(override)) for override in overrides]
    except (OSError, ConfigError, LookupError, TypeError):
        return []
