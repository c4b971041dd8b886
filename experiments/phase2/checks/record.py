"""What a training run left in its folder, as the checks read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atlas.config import RunConfig
from atlas.config.composition import load_config
from atlas.runs.resume import CONFIG_FILE
from atlas.runs.summary import RunSummary, read_summary
from atlas.telemetry.jsonl import read_jsonl


@dataclass(frozen=True)
class RunRecord:
    """`exit_status` is that of the process that trained; below 0, the signal that ended it."""

    folder: Path
    exit_status: int
    config: RunConfig
    summary: RunSummary | None
    rows: Sequence[dict[str, Any]] = field(default_factory=list)
    events: Sequence[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path, exit_status: int, config: RunConfig) -> RunRecord:
        """`config` is what the run was started with; the frozen one is preferred, where the run came so far.

        Raises `JsonlError` for a file that is damaged before its last line.
        """
        frozen = folder / CONFIG_FILE
        return cls(
            folder,
            exit_status,
            load_config(frozen) if frozen.is_file() else config,
            read_summary(folder),
            _rows(folder / "metrics.jsonl"),
            _rows(folder / "events.jsonl"),
        )

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """Events of one kind, in their order."""
        return [event for event in self.events if event["kind"] == kind]

    @property
    def trouble(self) -> str:
        """Why the run is not a completed one; "" if it is."""
        if self.exit_status in (-9, 137):
            return "killed by the system, which does so when memory runs out"
        if self.summary is None:
            return f"exit status {self.exit_status}, no summary.json"
        if self.summary.status != "completed":
            return f"{self.summary.status} at step {self.summary.step}: {self.summary.reason or 'no reason was told'}"
        return "" if self.exit_status == 0 else f"exit status {self.exit_status} of a completed run"


def _rows(path: Path) -> list[dict[str, Any]]:
    return read_jsonl(path) if path.is_file() else []
