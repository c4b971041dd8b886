"""Reading and printing the files of a folder that somebody else may have made."""

from __future__ import annotations

import errno
import io
import json
import stat
from pathlib import Path
from typing import Any

MOST_JSON_BYTES = 16 * 2**20


def open_regular(path: Path) -> io.BufferedReader:
    """The file, for reading. Raises OSError for a pipe, a device and the like: reading one may hang."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return path.open("rb")


def read_json(path: Path, most_bytes: int = MOST_JSON_BYTES) -> Any:
    """The value in a JSON file. Raises OSError, or ValueError for other content, too much of it or too deep nesting."""
    with open_regular(path) as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise ValueError(f"more than {most_bytes} bytes")
    return parse_json(data)


def parse_json(data: bytes) -> Any:
    """The value in JSON text. Raises ValueError, also for nesting that is too deep."""
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def printable(text: str) -> str:
    """`text` with U+FFFD for characters that control a terminal, reorder a line or cannot be encoded; lines stay."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else "\ufffd" for letter in text)
