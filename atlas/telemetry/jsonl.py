"""Append-only JSON lines: what was written stays readable after a crash, a kill or a full disk."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from atlas.config.untrusted import open_regular, parse_json


class JsonlError(ValueError):
    """A line other than the last is no JSON object. The message names file and line."""


def plain(value: Any) -> Any:
    """`value` as JSON can hold it: a non-finite number becomes null, a path a string.

    Raises TypeError for anything else that JSON lacks, such as a tensor: text is no number.
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


def _parse(line: bytes) -> dict[str, Any] | None:
    """The object in `line`, or None if there is none."""
    try:
        value = parse_json(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _sound_size(data: bytes) -> int:
    """Bytes of `data` up to the end of its last complete line; a last line that is torn does not count."""
    end = data.rfind(b"\n") + 1
    if end == 0:
        return 0
    start = data.rfind(b"\n", 0, end - 1) + 1
    return end if _parse(data[start:end]) is not None else start


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All rows of `path`. A torn last line is left out; a damaged line before it raises `JsonlError`."""
    with open_regular(Path(path)) as file:
        data = file.read()
    rows = []
    for number, line in enumerate(data[: _sound_size(data)].splitlines(), start=1):
        row = _parse(line)
        if row is None:
            raise JsonlError(f"{path}, line {number}: not a JSON object: {line[:80]!r}")
        rows.append(row)
    return rows


class JsonlWriter:
    """Appends one line per row, each by a single write. A torn last line found at opening is cut off.

    A row that could not be written whole is taken back before the OSError is raised: the next row starts a line.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._descriptor: int | None = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        data = self.path.read_bytes()
        self._size = _sound_size(data)  # bytes of complete lines
        self._torn = self._size < len(data)

    def append(self, row: Mapping[str, Any]) -> None:
        """Write `row`. Raises OSError if the disk refuses, TypeError if JSON cannot hold a value."""
        descriptor = self._open_descriptor()
        line = json.dumps(plain(row), allow_nan=False, separators=(",", ":")).encode() + b"\n"
        if self._torn:
            os.ftruncate(descriptor, self._size)
        self._torn = True
        try:
            written = os.write(descriptor, line)
            while written < len(line):  # a nearly full disk takes a part; asking again tells why
                written += os.write(descriptor, line[written:])
        except OSError:
            os.ftruncate(descriptor, self._size)
            self._torn = False
            raise
        self._size += len(line)
        self._torn = False

    def _open_descriptor(self) -> int:
        if self._descriptor is None:
            raise ValueError(f"{self.path} is closed")
        return self._descriptor

    def close(self) -> None:
        """Bring everything to the disk and close. Closing twice is allowed."""
        if self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        try:
            if self._torn:
                os.ftruncate(descriptor, self._size)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def __enter__(self) -> JsonlWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
