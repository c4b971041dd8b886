"""The stop sign of a sweep: a file in its folder. Every process that starts jobs, on any machine, checks it."""

from __future__ import annotations

from pathlib import Path
from tempfile import NamedTemporaryFile

INTERRUPTED = "the sweep was interrupted"


class StopSign:
    """While it is up, no further job of the sweep is started. A reader finds a whole reason, or no sign."""

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
        """The first reason is kept."""
        if self.reason is None:
            self.put_up_instead(reason)

    def put_up_instead(self, reason: str) -> None:
        """Of any other reason, and without a moment in which the sign is down."""
        with NamedTemporaryFile("w", encoding="utf-8", dir=self._file.parent, prefix=".stop-", delete=False) as file:
            file.write(reason)
        Path(file.name).replace(self._file)

    def take_down(self) -> None:
        self._file.unlink(missing_ok=True)
