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
from atlas.report.options import defaults, keys_of
from atlas.report.wording import value_text

# Where something is written, not what was computed.
IGNORED = ("logger", "telemetry", "resume", "sweep", "trust")
NEVER = ("sweep.resume", "sweep.fail_fast", "sweep.seeds")
SEED = "seed"
REPEATS = (SEED, "sweep.round")  # runs that differ in these alone repeat one another
ABSENT = "(absent)"


@dataclass(frozen=True)
class Difference:
    """A setting with its value in each run, and the settings that change exactly where it does."""

    key: str
    name: str  # the key, or its last part where no other setting is called so
    values: Sequence[Any]
    along: Sequence[str] = ()


def differences(
    configs: Sequence[Mapping[str, Any]],
    swept: Sequence[str] = (),
    options: Mapping[str, Sequence[str | None]] | None = None,
) -> list[Difference]:
    """The settings that are not the same in all of `configs`. An empty one, which could not be read, does not count.

    Settings that change together share one entry, named by the one that was `swept` (a key or its group); where none
    was, only those of one group do. Each swept one has an entry of its own: of a part of a sweep's jobs two may change
    together. `options`: group -> the option of each run; the settings that it determines share its entry.
    """
    known = [config for config in configs if config]
    every = dict.fromkeys(key for config in known for key in config)
    keys = [key for key in every if not lies_in(key, IGNORED) or (lies_in(key, swept) and not lies_in(key, NEVER))]
    usual = {key: defaults().get(key, ABSENT) for key in keys}  # an older run lacks what came later
    patterns = {key: _pattern([config.get(key, usual[key]) for config in known]) for key in keys}
    patterns = {key: pattern for key, pattern in patterns.items() if any(pattern)}
    found = []
    for group, texts in (options or {}).items():
        own = _pattern([text for text, config in zip(texts, configs, strict=True) if config])
        along = [key for key, pattern in patterns.items() if key not in swept and _determines(own, pattern)]
        along = along if group in swept else [key for key in along if key in keys_of(group)]
        patterns = {key: pattern for key, pattern in patterns.items() if key not in along}
        values = [MISSING if text is None else text for text in texts]
        found.append(Difference(group, group, values, tuple(along)))
    together: dict[tuple[object, ...], list[str]] = {}
    owners = {key: next((name for name in swept if lies_in(key, (name,))), "") for key in patterns}
    chosen: dict[tuple[int, ...], str] = {}
    for key, pattern in patterns.items():
        if owners[key]:
            chosen.setdefault(pattern, owners[key])
    for key, pattern in patterns.items():
        owner = owners[key] or chosen.get(pattern) or key.partition(".")[0]
        together.setdefault((pattern, owner), []).append(key)
    for names in together.values():
        key = min(names, key=lambda name: (not lies_in(name, swept), name.count("."), len(name)))
        values = [config.get(key, usual[key]) if config else MISSING for config in configs]
        found.append(Difference(key, _short(key, keys), values, tuple(other for other in names if other != key)))
    return found


def _pattern(values: Sequence[Any]) -> tuple[int, ...]:
    """Which of the values are equal: for each the place of the first like it."""
    texts = [value_text(value) for value in values]
    return tuple(texts.index(text) for text in texts)


def _determines(own: Sequence[int], other: Sequence[int]) -> bool:
    """Whether equal values of the one come with equal values of the other."""
    return len(set(zip(own, other, strict=True))) == len(set(own))


def _short(key: str, keys: Sequence[str]) -> str:
    last = key.rpartition(".")[2]
    return last if sum(other.rpartition(".")[2] == last for other in keys) == 1 else key


def swept_names(sweep: Path) -> list[str]:
    """Keys and groups that the command line of a sweep gave; [] where it is not on record."""
    try:
        overrides = read_yaml(sweep / SWEEP_FILE)["hydra"]["overrides"]["task"]
        names = [override_name(str(override)) for override in overrides]
        return [SEED if name == "sweep.seeds" else name for name in names]
    except (OSError, ConfigError, LookupError, TypeError):
        return []
