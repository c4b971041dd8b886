"""One run as the report shows it. Missing, torn or damaged files do not stop the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from atlas.checkpoint.manifest import UnsoundError, read_manifest
from atlas.config.lock import is_held
from atlas.report.metric_columns import MetricColumns, is_place, to_columns
from atlas.report.wording import count, finite, utc_time
from atlas.telemetry.rows import last_place
from atlas.telemetry.run_files import CHECKPOINTS, METRICS_FILE, Row, RunFiles

RESULTS = ("probe", "sample")  # events that say what the model was at their step
UNDONE = "undone"  # of such an event: a rollback went back to before it


@dataclass(frozen=True)
class RunRecord:
    """`config` is flat, with dotted keys. `problems` has a sentence on every file that could not be read."""

    folder: Path
    name: str
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    rows: MetricColumns
    events: Sequence[Row]
    niah: Mapping[str, Any]
    last_time: float | None  # of the newest row or event, seconds since 1970
    problems: Sequence[str]
    held: bool = False  # a process writes it now

    @property
    def status(self) -> str:
        return str(self.summary.get("status") or "unknown")

    @property
    def place(self) -> tuple[int, int] | None:
        """Segment and step of the newest known state."""
        places = zip(self.rows.segment.tolist(), self.rows.step.tolist(), strict=True)
        return last_place(places, self.events, int(finite(self.summary.get("segment")) or 0))

    @property
    def step(self) -> int | None:
        """The newest known step."""
        found = finite(self.summary.get("step"))
        if self.status not in ("running", "killed") and found is not None:
            return int(found)
        return self.place[1] if self.place else None

    @property
    def status_in_words(self) -> str:
        """The status in words; of a run that has not ended, with the time of its last row."""
        if self.status in ("running", "killed"):
            word = "running or killed" if self.status == "running" and not self.held else self.status
            return f"{word} (last row at {utc_time(self.last_time)})"
        if self.status == "unknown":
            return "unknown (no summary.json)"
        return self.status

    def result(self, key: str, column: str) -> float | None:
        """A number of the summary; of a run that has not ended that of its newest row, where it has one."""
        last, found = self.rows.last(column), finite(self.summary.get(key))
        if last is not None and self.status in ("running", "killed"):
            return last
        return last if found is None else found

    @property
    def bytes_per_token(self) -> float:
        """Of the validation text; 1 where a token is a byte."""
        return finite(self.summary.get("bytes_per_token")) or 1.0

    @property
    def token(self) -> str:
        """What a logged loss is per."""
        return "byte" if self.bytes_per_token == 1.0 else "token"

    @property
    def train_bytes_per_token(self) -> float | None:
        """Of the training text; None: the run is too old to know."""
        known = finite(self.summary.get("train_bytes_per_token"))
        return 1.0 if known is None and self.bytes_per_token == 1.0 else known

    def per_byte(self, loss: float | None) -> float | None:
        """Nats per token of the validation text as nats per byte, so that runs with different tokenizers compare."""
        return None if loss is None else loss / self.bytes_per_token

    def training_per_byte(self, loss: float | None) -> float | None:
        """The same of the training text."""
        size = self.train_bytes_per_token
        return None if loss is None or size is None else loss / size

    @property
    def baseline_name(self) -> str:
        """Of its `baseline_loss`; older runs had a bigram's only."""
        return str(self.summary.get("baseline_name") or "bigram baseline")

    @property
    def levels(self) -> list[str]:
        """The NIAH levels that were probed."""
        found = [*_mapping(self.summary.get("niah")), *(event.get("level") for event in self.kind("probe"))]
        return list(dict.fromkeys(level for level in found if isinstance(level, str)))

    def probe(self, level: str) -> Mapping[str, Any]:
        """The last result of a NIAH level that no rollback undid, of the summary or the events; {}: there is none."""
        found = _mapping(_mapping(self.summary.get("niah")).get(level))
        if found:
            return found
        events = [event for event in self.kind("probe") if event.get("level") == level and not event.get(UNDONE)]
        return events[-1] if events else {}

    def kind(self, *kinds: str) -> list[Row]:
        return [event for event in self.events if event.get("kind") in kinds]


def read_run(folder: Path, name: str) -> RunRecord:
    """The run as far as it came. What cannot be read is left out, and named in `problems`."""
    files = RunFiles(folder, strict=False)
    summary, rows, events = files.summary, files.rows, files.events
    times = [time for time in (finite(line.get("time")) for line in [*rows[-1:], *events[-1:]]) if time is not None]
    sound = [_sound(event) for event in events if is_place(event.get("step"))]
    rollbacks = [event for event in sound if event.get("kind") == "rollback" and "segment" in event]
    columns = to_columns(rows, rollbacks)
    return RunRecord(
        folder=folder,
        name=name,
        config=files.settings,
        summary={**summary, "status": files.status} if summary else {},
        rows=columns,
        events=_replayed(sound),
        niah=files.niah,
        last_time=max(times, default=None),
        problems=[*files.problems, *_edited(files), *_lost_losses(columns)],
        held=is_held(folder / CHECKPOINTS),
    )


def _edited(files: RunFiles) -> list[str]:
    """A sentence where config.yaml is not the one that the newest checkpoint was saved with."""
    for folder in sorted((files.folder / CHECKPOINTS).glob("step-*"), reverse=True):
        with suppress(UnsoundError):
            manifest = read_manifest(folder)
            return files.edited_config(manifest.step, manifest.config_hash)
    return []


def _lost_losses(rows: MetricColumns) -> list[str]:
    """A sentence where trained steps that no rollback undid have no loss."""
    missing = np.full(len(rows), np.nan)
    trained = np.isfinite(rows.values.get("lr", missing)) & ~rows.undone
    lost = rows.step[trained & ~np.isfinite(rows.values.get("loss", missing))]
    if not len(lost):
        return []
    return [f"{METRICS_FILE}: the loss is no number in {count(len(lost), 'row')}, the first of step {lost[0]:,}"]


def _sound(event: Row) -> Row:
    """The event without `segment` and `from_step` where they are not integers."""
    numbers = ("segment", "from_step")
    return {key: value for key, value in event.items() if key not in numbers or is_place(value)}


def _replayed(events: Sequence[Row]) -> list[Row]:
    """The events without the probes and samples that a resumed run has made again, as its rows are without those steps.
    What a rollback undid has the key `undone`."""
    found: list[Row] = []
    for event in events:
        kind, step = event.get("kind"), event["step"]
        if kind == "start":  # of a resumed run at the step of its checkpoint
            found = [one for one in found if one.get(UNDONE) or not _is_result(one, step)]
        elif kind == "rollback":
            found = [one | {UNDONE: True} if _is_result(one, step) else one for one in found]
        found.append(event)
    return found


def _is_result(event: Row, after: int) -> bool:
    return event.get("kind") in RESULTS and event["step"] > after


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
