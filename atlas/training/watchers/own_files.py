"""Whether the text that a run reads stands in the files that its settings name, as these are now.

What a data source of the user's makes of them may differ in white space, marks and case: letters and digits alone are
compared.
"""

from __future__ import annotations

from collections.abc import Sequence

from atlas.config import ConfigError
from atlas.data.batch import Batch
from atlas.data.files import fault_of_text, find_files

FOUND_FROM = 16  # rows
LARGEST = 2**27  # bytes of all files: a search takes some tenths of a second
LENGTH = 24  # letters in a row: as many stand in two texts where both quote a third, and not by chance
SIZES = 8.0  # times: a list of files is much smaller than the text, packed files may be
ASCII = bytes(range(128))
DROPPED = bytes(one for one in ASCII if not chr(one).isalnum())
LOWER = ASCII.lower() + bytes(range(128, 256))


def texts_of(patterns: Sequence[str], tokens: int) -> list[bytes]:
    """What the files hold, letters and digits alone; [] where one of them is not text in UTF-8 as it is read.

    `tokens`: of the text that the run reads, of one byte each.
    """
    try:
        files = sorted(find_files(patterns, "data.paths")[0])
        total = sum(file.stat().st_size for file in files)
        escaped = any(".json" in file.name for file in files)
        if escaped or total > LARGEST or not tokens / SIZES <= total <= tokens * SIZES:
            return []
        contents = [file.read_bytes() for file in files if file.is_file()]
        for content in contents:
            content.decode("utf-8")
    except (ConfigError, OSError, UnicodeDecodeError):
        return []
    return [] if any(map(fault_of_text, filter(None, contents))) else [letters(content) for content in contents]


def letters(text: bytes) -> bytes:
    return text.translate(LOWER, DROPPED)


def lettered(batch: Batch) -> list[bytes]:
    """The text rows of a batch of bytes that have letters enough."""
    rows = batch.inputs[~batch.recall].tolist()
    found = [letters(bytes(one for one in row if one < 256)) for row in rows]
    return [row for row in found if len(row) >= LENGTH]


def stand_in(texts: Sequence[bytes], rows: Sequence[bytes]) -> int:
    """How many of the rows have a part that stands in a text: at their start, middle or end."""
    return sum(any(part in text for part in _parts(row) for text in texts) for row in rows)


def _parts(row: bytes) -> list[bytes]:
    room = len(row) - LENGTH
    return [row[at : at + LENGTH] for at in sorted({0, room // 2, room})]
