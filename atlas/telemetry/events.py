"""Events: what happened in a run, each with its kind, step and time, in events.jsonl."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atlas.telemetry.jsonl import JsonlWriter

KINDS = (
    "start",
    "self_test",
    "notice",
    "settings",
    "calibration",
    "reset_shock",
    "probe",
    "sample",
    "profile",
    "spike",
    "rollback",
    "watch",
    "checkpoint",
    "warning",
    "error",
    "end",
)


def make_event(kind: str, step: int, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The event as it is written. `time` is in seconds since 1970. Raises ValueError for a kind not in `KINDS`."""
    if kind not in KINDS:
        raise ValueError(f"event kind {kind!r}: must be one of {', '.join(KINDS)}")
    return {"kind": kind, "step": step, "time": round(time.time(), 3), **fields}


class EventLog:
    """events.jsonl: every event is on file when `record` returns, unless the disk is full."""

    def __init__(self, path: Path) -> None:
        self._writer = JsonlWriter(path)

    @property
    def path(self) -> Path:
        return self._writer.path

    def record(self, kind: str, step: int, **fields: Any) -> None:
        """Make an event and write it."""
        self.write(make_event(kind, step, fields))

    def write(self, event: Mapping[str, Any]) -> None:
        """Write an event made by `make_event`."""
        self._writer.append(event)

    def retry(self) -> None:
        self._writer.retry()

    def notices(self) -> list[str]:
        return self._writer.notices()

    def close(self) -> None:
        self._writer.close()
