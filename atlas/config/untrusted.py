"""Reading and printing the files of a folder that somebody else may have made."""

from __future__ import annotations

import errno
import io
import json
import stat
from pathlib import Path
from typing import Any

MOST_JSON_BYTES = 16 * 2**20
MOST_DIGITS = 308  # of an integer that any float can hold


def open_regular(path: Path) -> io.BufferedReader:
    """The file, for reading. Raises OSError for a pipe, a device and the like: reading one may hang."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return path.open("rb")


def read_json(path: Path, most_bytes: int = MOST_JSON_BYTES, *, numbers: bool = False) -> Any:
    """The value in a JSON file. Raises OSError, or ValueError for too much content and where `parse_json` does."""
    with open_regular(path) as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise ValueError(f"more than {most_bytes} bytes")
    return parse_json(data, numbers=numbers)


def parse_json(data: bytes, *, numbers: bool = False) -> Any:
    """The value in JSON text. Raises ValueError, also for nesting that is too deep, and with `numbers`, where one
    computes with them, for an integer that is too large for a float."""
    try:
        return json.loads(data, parse_int=_integer if numbers else None)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _integer(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"an integer of more than {MOST_DIGITS} digits")
    return int(text)


def printable(text: str) -> str:
    """`text` with U+FFFD for characters that control a terminal, reorder a line or cannot be encoded; lines stay."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else "\ufffd" for letter in text)
