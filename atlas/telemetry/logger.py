"""`TelemetryLogger`: takes the values of every step and passes rows and events to the sinks."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from atlas.config.exits import no_exit
from atlas.telemetry.events import make_event
from atlas.telemetry.rows import make_row
from atlas.telemetry.sinks import RunInfo, Sink

EARLY = 10  # rows within the first `every` steps, where a run changes most and a short one ends
LEAST_APART = 5  # steps between them


class TelemetryLogger:
    """Passes telemetry to the sinks in their order; put the essential one first.

    A row is written every `every` steps, ten times before the first of them unless they are few, for the last step, for
    values that are kept, and at once with any event. Values logged for one step are collected into one row. Values that
    come after their row was written cause a second, complete row of that step.
    A mirror that fails is dropped: one warning, on the console and in events.jsonl, and the run goes on.
    """

    def __init__(self, sinks: Sequence[Sink], *, every: int) -> None:
        self._sinks = list(sinks)
        self._every = every
        self._early = every // EARLY if every >= EARLY * LEAST_APART else every
        self._last_step = 0
        self._step = 0
        self._kept: int | None = None  # a step whose row is written whatever the cadence
        self._values: dict[str, Any] = {}
        self._unwritten = False
        self._closed = False

    def open(self, info: RunInfo) -> None:
        """Open every sink. Raises `TelemetryError` if the run's own files cannot be opened."""
        self._last_step = info.steps
        self._step = info.start_step
        notices: list[str] = []
        self._each(lambda sink: notices.extend(filter(None, [sink.open(info)])))
        for notice in notices:
            self._send_event(make_event("notice", info.start_step, {"message": notice}))

    def due(self, step: int) -> bool:
        """Whether the row of `step` is written, even if no event asks for it."""
        early = step < self._every and step % self._early == 0
        return early or step % self._every == 0 or step in (self._last_step, self._kept)

    def log_step(self, step: int, metrics: Mapping[str, Any], *, keep: bool = False) -> None:
        """Add values of `step`, whose row is due with `keep`. The row of the step before, if due, is written now.

        Values that the row has already, of a step that a signal interrupted, do not write it again.
        """
        if step != self._step:
            self.flush()
            self._step, self._values = step, {}
        self._kept = step if keep else self._kept
        if not metrics.items() <= self._values.items():
            self._values.update(metrics)
            self._unwritten = True
        self._each(lambda sink: sink.progress(step, self._values))

    def event(self, kind: str, step: int, **fields: Any) -> None:
        """Send an event at once, and then the row of the current step."""
        self._send_event(make_event(kind, step, fields))
        self.flush(now=True)
        self._send_notices()

    def flush(self, *, now: bool = False) -> None:
        """Write the current row if it is due, or with `now` in any case. Call it before saving a checkpoint."""
        if not (self._unwritten and (now or self.due(self._step))):
            return
        self._unwritten = False
        row = make_row({"step": self._step, **self._values, "time": round(time.time(), 3)})
        self._each(lambda sink: sink.row(dict(row)))  # one of the user's may change what it gets
        self._send_notices()

    @property
    def takes_pictures(self) -> bool:
        return any(sink.takes_pictures for sink in self._sinks)

    def places(self) -> list[Path]:
        """Files and folders of all sinks that must be there while the run goes on."""
        return [place for sink in self._sinks for place in sink.places()]

    def picture(self, name: str, file: Path, step: int) -> None:
        """Send a PNG to the sinks that take pictures."""
        self._each(lambda sink: sink.picture(name, file, step))

    def hold_row(self) -> dict[str, Any]:
        """The current row, not written if it was not yet: a later start continues it with `take_up_row`."""
        unwritten, self._unwritten = self._unwritten, False
        return {"values": dict(self._values), "unwritten": unwritten}

    def take_up_row(self, step: int, *, values: Mapping[str, Any], unwritten: bool) -> None:
        """Continue the row of `step` that an earlier start returned from `hold_row`."""
        self._step, self._values, self._unwritten = step, dict(values), unwritten

    def close(
        self, status: str, summary: Mapping[str, Any] | None = None, table: Sequence[tuple[str, str]] = ()
    ) -> None:
        """Write the last row and close every sink, whatever happens. Closing twice is allowed."""
        if self._closed:
            return
        self._closed = True
        try:
            self.flush(now=True)
        finally:
            mirrors_first = sorted(self._sinks, key=lambda sink: sink.essential)  # the files record what fails here
            self._each(lambda sink: sink.close(status, summary or {}, table), mirrors_first)
            self._sinks = []

    def _send_event(self, event: Mapping[str, Any]) -> None:
        self._each(lambda sink: sink.event(dict(event)))

    def _send_notices(self) -> None:
        while notices := [text for sink in self._sinks for text in sink.notices()]:  # writing one may cause another
            for text in notices:
                self._send_event(make_event("warning", self._step, {"message": text}))

    def _each(self, action: Callable[[Sink], object], sinks: Sequence[Sink] | None = None) -> None:
        for sink in list(self._sinks if sinks is None else sinks):
            if sink not in self._sinks:  # dropped while another sink's warning was sent
                continue
            try:
                with no_exit():
                    action(sink)
            except Exception as error:
                if sink.essential:
                    raise
                self._drop(sink, error)

    def _drop(self, sink: Sink, error: Exception) -> None:
        self._sinks.remove(sink)
        message = f"{type(sink).__name__} failed and is switched off: {type(error).__name__}: {error}"
        with suppress(OSError, ValueError):  # stderr may be closed too
            print(f"warning: {message}", file=sys.stderr)
        self._send_event(make_event("warning", self._step, {"message": message}))
