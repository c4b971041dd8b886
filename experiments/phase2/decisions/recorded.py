"""What the jobs of a sweep left in their folders, as evidence. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from atlas.config import ConfigError, require
from atlas.telemetry.jsonl import read_jsonl

JOBS_FILE = "sweep.json"
CHOICES_FILE = "multirun.yaml"  # written by Hydra


@dataclass(frozen=True)
class RecordedRun:
    """One job: its settings as `group.key`, its summary.json, and its files where they are asked for."""

    job: int
    folder: Path
    settings: Mapping[str, Any]
    summary: Mapping[str, Any]

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        return read_jsonl(self.folder / "metrics.jsonl")

    @cached_property
    def events(self) -> list[dict[str, Any]]:
        return read_jsonl(self.folder / "events.jsonl")

    def times(self, kind: str) -> list[float]:
        """When events of this kind happened, in seconds since 1970."""
        return [event["time"] for event in self.events if event["kind"] == kind]

    @property
    def round(self) -> int:
        return int(self.settings.get("sweep.round", 0))

    @property
    def completed(self) -> bool:
        return bool(self.summary["status"] == "completed")


@dataclass(frozen=True)
class Sweep:
    """A sweep folder: `overrides` and flags as they were typed, the `experiment` it ran, or ""."""

    folder: Path
    experiment: str
    overrides: Sequence[str]
    runs: Sequence[RecordedRun]  # in the order of their jobs

    @property
    def command(self) -> str:
        return " ".join(["python -m atlas.train -m", *map(_quoted, self.overrides)])


def read_sweep(folder: Path) -> Sweep:
    """Raises `ConfigError` for a folder that is no sweep, and for a job that left no settings or no summary."""
    for name in (JOBS_FILE, CHOICES_FILE):
        require((folder / name).is_file(), "SWEEP", folder, f"the folder of a sweep ({name} is not in it)")
    with readable(folder):
        record = json.loads((folder / JOBS_FILE).read_text(encoding="utf-8"))
        choices: Any = OmegaConf.load(folder / CHOICES_FILE).hydra.runtime.choices
        runs = [_read_run(folder, job["folder"], job["number"]) for job in record["jobs"]]
        return Sweep(folder, choices.get("experiment") or "", [*record.get("flags", ()), *record["task"]], runs)


def _read_run(sweep: Path, name: str, number: int) -> RecordedRun:
    config, summary = sweep / name / "config.yaml", sweep / name / "summary.json"
    for path in (config, summary):
        allowed = f"finished: job {number} left no {path.name}; `python -m atlas.train -m sweep.resume={sweep}` runs it"
        require(path.is_file(), "SWEEP", sweep, allowed)
    settings = _flat(OmegaConf.to_container(OmegaConf.load(config)))
    return RecordedRun(number, sweep / name, settings, json.loads(summary.read_text(encoding="utf-8")))


@contextmanager
def readable(folder: Path) -> Iterator[None]:
    """Raise `ConfigError` in place of what a sweep raises whose files are damaged or those of another version."""
    try:
        yield
    except ConfigError:
        raise
    except (OSError, ValueError, LookupError, TypeError, OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(
            f"SWEEP={folder}: must be a sweep whose files can be read ({type(error).__name__}: {one_line(error)})"
        ) from error


def one_line(text: object) -> str:
    return " ".join(str(text).split())


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, dict):
        return {prefix.removesuffix("."): node}
    return {key: value for name, child in node.items() for key, value in _flat(child, f"{prefix}{name}.").items()}


def _quoted(override: str) -> str:
    """`override` as a shell takes it: in quotes where it holds what a shell would read itself."""
    plain = all(character.isalnum() or character in "=.,_/+-:@%~" for character in override)
    return override if plain else f"'{override}'"
