"""The one reader of run folders: for resumed runs, reports, decisions and experiments."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from atlas.config import ConfigError
from atlas.config.composition import settings_hashes
from atlas.config.continuing import settings_hash
from atlas.config.files import read_yaml, require_values
from atlas.config.keys import flat
from atlas.config.lock import is_abandoned
from atlas.config.untrusted import open_regular, read_json
from atlas.telemetry.jsonl import JsonlError, is_torn, parse_row, read_jsonl

CONFIG_FILE = "config.yaml"
SUMMARY_FILE = "summary.json"
METRICS_FILE = "metrics.jsonl"
EVENTS_FILE = "events.jsonl"
JOBS_FILE = "sweep.json"  # in the folder of a sweep
NIAH_FILE = "niah.json"
EARLIER = "earlier"  # its key for what was found before, newest first
CHECKPOINTS = "checkpoints"
SETTINGS = "settings"  # the event of a start that changes config.yaml
_NO_SETTINGS = (OSError, AttributeError, TypeError, ValueError)  # of a config.yaml that no run writes

Row = dict[str, Any]


@dataclass
class RunFiles:
    """The files of one run, each read on first use.

    Strict: a missing or damaged file raises OSError, ValueError (`JsonlError`) or `ConfigError`; a torn last line of
    rows or events is left out. Tolerant (`strict=False`): what cannot be read is empty or left out, and `problems` has
    a sentence on it.
    """

    folder: Path
    strict: bool = True
    problems: list[str] = field(default_factory=list)

    @cached_property
    def _config(self) -> dict[str, Any]:
        return read_yaml(self.folder / CONFIG_FILE)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """config.yaml by dotted keys. Tolerant: references, which a job that failed early leaves, are resolved."""
        path = self.folder / CONFIG_FILE
        try:
            content: Any = self._config
        except (OSError, ConfigError) as error:
            if self.strict:
                raise
            self.problems.append(_problem(path, error))
            return {}
        if not self.strict:
            try:
                require_values(path, content)
                content = OmegaConf.to_container(OmegaConf.create(content), resolve=True)
            except (ConfigError, OmegaConfBaseException):
                pass  # a reference that leads nowhere is shown as it stands
        return flat(content)

    @cached_property
    def config_hashes(self) -> frozenset[str]:
        """Of config.yaml, and of what it was before an earlier start changed it; empty where it cannot be read.

        Of config.yaml alone where no start left it as it is: somebody else has changed it since.
        """
        with suppress(*_NO_SETTINGS):
            own = settings_hashes(self.folder / CONFIG_FILE, self._config)
            changes = self.of_kind(SETTINGS)
            former = {str(event.get("former_config_hash")) for event in changes}
            left = {str(event["config_hash"]) for event in changes if "config_hash" in event}
            if not left:  # older events
                left = {str(RunFiles(self.folder, strict=False).summary.get("config_hash") or "")} - {""}
            return own if left and own.isdisjoint(left | former) else own | former
        return frozenset()

    def edited_config(self, step: int, config_hash: str) -> list[str]:
        """A line where config.yaml is not the one that the checkpoint of `step` was saved with, by its hash."""
        with suppress(*_NO_SETTINGS):
            if config_hash in ("", settings_hash(self._config)):  # the usual case, and soon told
                return []
        if not self.config_hashes or config_hash in self.config_hashes:
            return []
        return [
            f"{self.folder / CONFIG_FILE} is not the one that step {step} was saved with (hash {config_hash}):"
            " it was edited since, so the model may differ from the trained one"
        ]

    @cached_property
    def summary(self) -> Mapping[str, Any]:
        """summary.json."""
        return self._json(SUMMARY_FILE)

    @property
    def status(self) -> str:
        """That of summary.json; `killed`: it was `running` and its process is gone; `unknown`: there is no summary."""
        found = str(self.summary.get("status") or "unknown")
        return "killed" if found == "running" and is_abandoned(self.folder / CHECKPOINTS) else found

    @cached_property
    def niah(self) -> Mapping[str, Any]:
        """niah.json, of the newest call of `python -m atlas.niah`; {} where it was not called."""
        return self._json(NIAH_FILE) if (self.folder / NIAH_FILE).exists() else {}

    @cached_property
    def rows(self) -> list[Row]:
        """metrics.jsonl."""
        return self._lines(METRICS_FILE)

    @cached_property
    def events(self) -> list[Row]:
        """events.jsonl."""
        return self._lines(EVENTS_FILE)

    def of_kind(self, *kinds: str) -> list[Row]:
        """Events of these kinds, in their order."""
        return [event for event in self.events if event.get("kind") in kinds]

    def _json(self, name: str) -> Mapping[str, Any]:
        try:
            content = read_json(self.folder / name, numbers=True)
        except (OSError, ValueError) as error:
            if self.strict:
                raise
            missing = isinstance(error, FileNotFoundError)
            self.problems.append(f"{name} {'is missing' if missing else f'cannot be read ({type(error).__name__})'}")
            return {}
        if not isinstance(content, dict):
            if self.strict:
                raise ValueError(f"{self.folder / name}: not a JSON object")
            self.problems.append(f"{name} is no JSON object")
            return {}
        return content

    def _lines(self, name: str) -> list[Row]:
        path = self.folder / name
        try:
            rows = read_jsonl(path)
            if not self.strict and self.status != "running" and is_torn(path):
                self.problems.append(f"{name}: its last line is cut and left out")
            return rows
        except OSError as error:
            if self.strict:
                raise
            # A run that failed early has neither of the two files.
            started = any((self.folder / other).exists() for other in (METRICS_FILE, EVENTS_FILE))
            if started or not isinstance(error, FileNotFoundError):
                self.problems.append(_problem(path, error))
            return []
        except JsonlError:
            if self.strict:
                raise
            with open_regular(path) as file:
                lines = file.read().splitlines()
            rows = [row for line in lines if (row := parse_row(line)) is not None]
            left_out = len(lines) - len(rows)
            self.problems.append(f"{name}: {left_out} of {len(lines)} lines are damaged and left out")
            return rows


def mappings(found: Any) -> list[Mapping[str, Any]]:
    """Those of a list in a file that anyone may have written; [] where it is none."""
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _problem(path: Path, error: OSError | ConfigError) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{path.name} is missing"
    if isinstance(error, OSError):
        return f"{path.name} cannot be read ({error.strerror})"
    return f"{path.name} {str(error).removeprefix(f'{path}: ')}"
