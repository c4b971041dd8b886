"""The interface of a telemetry sink, and the sink that writes metrics.jsonl and events.jsonl."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atlas.telemetry.events import EventLog
from atlas.telemetry.jsonl import JsonlWriter
from atlas.telemetry.rows import keep_rows_until
from atlas.telemetry.run_files import EVENTS_FILE, METRICS_FILE


class TelemetryError(RuntimeError):
    """The run's own files cannot be written. The message names the file and the reason."""


@dataclass(frozen=True)
class SweepJob:
    """Which job of a sweep a run is."""

    sweep: str  # name of the sweep's folder
    launcher: str  # basic: one job after the other
    swept: Mapping[str, str] = field(default_factory=dict)  # the overrides in which its jobs differ

    @property
    def name(self) -> str:
        return " ".join(f"{key}={value}" for key, value in self.swept.items())


@dataclass(frozen=True)
class RunInfo:
    """What a sink needs to know about the run."""

    folder: Path
    steps: int  # the run's last step
    config: Mapping[str, Any] = field(default_factory=dict)  # resolved, plain containers only
    versions: Mapping[str, str] = field(default_factory=dict)
    start_step: int = 0  # step of the checkpoint that the run continues from; 0 = a new run
    segment: int = 0  # of that checkpoint
    job: SweepJob | None = None  # None = a single run


class Sink:
    """Receives the run's telemetry. This base ignores everything; a sink overrides what it needs.

    `essential`: an error stops the run. Any other sink is a mirror, dropped at its first error.
    """

    essential = False
    takes_pictures = False

    def open(self, info: RunInfo) -> str | None:
        """Get ready. Returns a line for the user, if the sink has something to say."""
        return None

    def progress(self, step: int, values: Mapping[str, Any]) -> None:
        """The values of a step, at every step; must be fast."""

    def row(self, row: Mapping[str, Any]) -> None:
        """A row of metrics.jsonl."""

    def event(self, event: Mapping[str, Any]) -> None:
        """An event, at once."""

    def picture(self, name: str, file: Path, step: int) -> None:
        """A PNG, if `takes_pictures`."""

    def notices(self) -> list[str]:
        """What the user should know, each once."""
        return []

    def places(self) -> list[Path]:
        """Files and folders that must be there while the sink is open."""
        return []

    def close(self, status: str, summary: Mapping[str, Any], table: Sequence[tuple[str, str]]) -> None:
        """The run ended as `status` (completed, failed or aborted); `table` holds the lines of the closing table."""


class JsonlSink(Sink):
    """Writes metrics.jsonl and events.jsonl in the run folder. Every other sink is a mirror of them."""

    essential = True

    def __init__(self) -> None:
        self._rows: JsonlWriter | None = None
        self._events: EventLog | None = None

    def open(self, info: RunInfo) -> str | None:
        """Open both files; rows that the continued run will write again are dropped."""
        metrics, events = info.folder / METRICS_FILE, info.folder / EVENTS_FILE
        try:
            keep_rows_until(metrics, info.segment, info.start_step)
            self._rows, self._events = JsonlWriter(metrics), EventLog(events)
        except OSError as error:
            self._release()
            raise TelemetryError(f"the run's files cannot be opened: {error}") from error
        return None

    def row(self, row: Mapping[str, Any]) -> None:
        rows = self._rows
        if rows is None:
            raise TelemetryError("metrics.jsonl is not open")
        _write(rows.path, lambda: rows.append(row))
        if self._events is not None:
            self._events.retry()

    def event(self, event: Mapping[str, Any]) -> None:
        events = self._events
        if events is None:
            raise TelemetryError("events.jsonl is not open")
        _write(events.path, lambda: events.write(event))

    def notices(self) -> list[str]:
        return [text for file in (self._rows, self._events) if file is not None for text in file.notices()]

    def places(self) -> list[Path]:
        return [file.path for file in (self._rows, self._events) if file is not None]

    def close(self, status: str, summary: Mapping[str, Any], table: Sequence[tuple[str, str]]) -> None:
        self._release()

    def _release(self) -> None:
        refused = []
        for file in (self._rows, self._events):
            if file is not None:
                try:
                    _write(file.path, file.close)
                except TelemetryError as error:
                    refused.append(str(error))
        self._rows = self._events = None
        if refused:
            raise TelemetryError("; ".join(refused))


def _write(path: Path, action: Callable[[], None]) -> None:
    try:
        action()
    except OSError as error:
        raise TelemetryError(f"{path} cannot be written: {error.strerror}") from error
