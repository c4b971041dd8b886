"""The stop sign of a sweep: a file in its folder. Every process that starts jobs, on any machine, checks it."""

from __future__ import annotations

from pathlib import Path

INTERRUPTED = "the sweep was interrupted"


class StopSign:
    """While it is up, no further job of the sweep is started. The first reason is kept."""

    def __init__(self, sweep: Path) -> None:
        self._file = sweep / ".stop"

    @property
    def reason(self) -> str | None:
        """Why no further job is started; None if the sign is down."""
        try:
            return self._file.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    def put_up(self, reason: str) -> None:
        if self.reason is None:
            self._file.write_text(reason, encoding="utf-8")

    def take_down(self) -> None:
        self._file.unlink(missing_ok=True)
