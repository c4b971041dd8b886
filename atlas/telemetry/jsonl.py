"""Append-only JSON lines: what was written stays readable after a crash, a kill or a full disk."""

from __future__ import annotations

import json
import math
import os
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from atlas.config.atomic import write_atomically
from atlas.config.untrusted import open_regular, parse_json
from atlas.telemetry.room import when_there_is_room

MOST_WAITING_BYTES = 16 * 2**20  # of rows that a full disk refused: about 10,000 rows
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK  # a pipe in its place fails at once


class JsonlError(ValueError):
    """A line other than the last is no JSON object. The message names file and line."""


def plain(value: Any) -> Any:
    """`value` as JSON can hold it: a non-finite number becomes null, a path a string.

    Raises TypeError for anything else that JSON lacks, such as a tensor.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON: {value!r}")


def parse_row(line: bytes) -> dict[str, Any] | None:
    """The object in `line`, or None if there is none."""
    try:
        value = parse_json(line, numbers=True)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _sound_size(data: bytes) -> int:
    """Bytes of `data` up to the end of its last complete line; a last line that is torn does not count."""
    end = data.rfind(b"\n") + 1
    if end == 0:
        return 0
    start = data.rfind(b"\n", 0, end - 1) + 1
    return end if parse_row(data[start:end]) is not None else start


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All rows of `path`. A torn last line is left out; a damaged line before it raises `JsonlError`."""
    with open_regular(Path(path)) as file:
        data = file.read()
    rows = []
    for number, line in enumerate(data[: _sound_size(data)].splitlines(), start=1):
        row = parse_row(line)
        if row is None:
            raise JsonlError(f"{path}, line {number}: not a JSON object: {line[:80]!r}")
        rows.append(row)
    return rows


def is_torn(path: Path) -> bool:
    """Whether `read_jsonl` leaves a last line out."""
    with open_regular(Path(path)) as file:
        data = file.read()
    return _sound_size(data) < len(data)


class JsonlWriter:
    """Appends one line per row, each by a single write. A torn last line found at opening is cut off.

    If the disk is full, rows wait in memory until there is room. If the file is removed or truncated by another
    process, the next row notices it, and a removed file is written again. `notices` reports both.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._descriptor: int | None = os.open(self.path, _FLAGS, 0o644)
        self._waiting: deque[bytes] = deque()
        self._refused = False
        self._notices: list[str] = []
        self._adopt()

    def append(self, row: Mapping[str, Any]) -> None:
        """Write `row`, or keep it in memory while the disk is full.

        Raises OSError if too many rows wait, TypeError if JSON cannot hold a value.
        """
        self._open_descriptor()
        line = json.dumps(plain(row), allow_nan=False, separators=(",", ":")).encode() + b"\n"
        self._waiting.append(line)
        try:
            self._write_waiting()
        except OSError as error:
            if not self._refused:
                reason = f"{self.path.name} cannot be written ({error.strerror})"
                self._notices.append(f"{reason}: its rows wait in memory until there is room")
            self._refused = True
            if sum(map(len, self._waiting)) > MOST_WAITING_BYTES:
                self._waiting.pop()
                raise OSError(error.errno, f"{error.strerror}; {len(self._waiting)} rows wait in memory") from error

    def retry(self) -> None:
        """Write the waiting rows if there is room; notice a file that was removed."""
        with suppress(OSError):
            self._write_waiting()

    def notices(self) -> list[str]:
        """What the user should know, each once."""
        notices, self._notices = self._notices, []
        return notices

    def close(self) -> None:
        """Write and sync everything, then close. Closing twice is allowed.

        Raises OSError where rows are lost: the disk is full and stays so for `ROOM_SECONDS`.
        """
        if self._descriptor is None:
            return
        try:
            when_there_is_room(self._write_waiting)
            os.fsync(self._descriptor)
        except OSError as error:
            lost = f"; {len(self._waiting)} rows are lost" if self._waiting else ""
            raise OSError(error.errno, f"{error.strerror}{lost}") from error
        finally:
            descriptor, self._descriptor = self._descriptor, None
            os.close(descriptor)

    def _write_waiting(self) -> None:
        self._find_file()
        while self._waiting:
            self._write(self._waiting[0])
            self._waiting.popleft()
        if self._refused:
            self._refused = False
            self._notices.append(f"{self.path.name} can be written again: no row is lost")

    def _write(self, line: bytes) -> None:
        """Write the whole line or nothing."""
        descriptor = self._open_descriptor()
        try:
            written = os.write(descriptor, line)
            while written < len(line):  # a nearly full disk takes a part; the next call raises the reason
                written += os.write(descriptor, line[written:])
        except BaseException:
            os.ftruncate(descriptor, self._size)
            raise
        self._size += len(line)

    def _find_file(self) -> None:
        """Make sure that the open file is the one at `path` and still holds every row."""
        open_one = os.fstat(self._open_descriptor())
        try:
            there = self.path.stat()
        except FileNotFoundError:
            there = None
        if there is None or (there.st_dev, there.st_ino) != (open_one.st_dev, open_one.st_ino):
            self._write_anew()
        elif there.st_size < self._size:
            self._notices.append(f"{self.path.name} was cut by somebody else: rows before this one are missing")
            self._adopt()

    def _write_anew(self) -> None:
        """Copy the removed file back: the system keeps its content while it is open."""
        before = self._open_descriptor()
        content = os.pread(before, self._size, 0)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, content)
        self._descriptor = os.open(self.path, _FLAGS, 0o644)
        os.close(before)
        self._adopt()
        self._notices.append(f"{self.path} was removed or replaced by somebody else: it is written anew")

    def _adopt(self) -> None:
        """Continue with the content of the open file, a torn last line cut off."""
        with open_regular(self.path) as file:
            data = file.read()
        self._size = _sound_size(data)  # bytes of complete lines
        if self._size < len(data):
            os.ftruncate(self._open_descriptor(), self._size)

    def _open_descriptor(self) -> int:
        if self._descriptor is None:
            raise ValueError(f"{self.path} is closed")
        return self._descriptor

    def __enter__(self) -> JsonlWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
