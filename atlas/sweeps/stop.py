"""The stop sign of a sweep: a link in its folder. Every process that starts jobs, on any machine, checks it."""

from __future__ import annotations

from pathlib import Path
from secrets import token_hex

from atlas.runs.folder import say

INTERRUPTED = "the sweep was interrupted"


class StopSign:
    """While it is up, no further job of the sweep is started. A reader finds a whole reason, or no sign.

    The reason is what a symbolic link points to: that needs no room on a full disk.
    """

    def __init__(self, sweep: Path) -> None:
        self._file = sweep / ".stop"

    @property
    def reason(self) -> str | None:
        """Why no further job is started; None if the sign is down."""
        try:
            return str(self._file.readlink())
        except FileNotFoundError:
            return None

    def put_up(self, reason: str) -> None:
        """The first reason is kept."""
        if self.reason is None:
            self.put_up_instead(reason)

    def put_up_instead(self, reason: str) -> None:
        """Of any other reason, and without a moment in which the sign is down. A sign that cannot be put up is told:
        an error here would take the place of the interrupt."""
        temporary = self._file.with_name(f".stop-{token_hex(8)}")
        try:
            temporary.symlink_to(reason)
            temporary.replace(self._file)
        except OSError as error:
            say(f"warning: {self._file} cannot be written ({error.strerror}): further jobs may be started")

    def take_down(self) -> None:
        self._file.unlink(missing_ok=True)
