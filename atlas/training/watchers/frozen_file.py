"""A file of the run that nobody is to change while it goes on: its settings."""

from __future__ import annotations

from pathlib import Path


class FrozenFile:
    """What stands in the file now."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stamp, self._content = self._look(), self._read()

    def edited(self) -> bool:
        """Whether it holds something else, once. A file that is gone is not edited: the run writes it again."""
        stamp = self._look()
        if stamp in (None, self._stamp):
            return False
        self._stamp, before = stamp, self._content
        self._content = self._read()
        return None not in (before, self._content) and self._content != before

    def _look(self) -> tuple[int, int, int] | None:
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _read(self) -> bytes | None:
        try:
            return self.path.read_bytes()
        except OSError:
            return None
