"""Whether the text that a run reads stands in the files that its settings name, as these are now.

The text as a whole is looked at and not the rows of a batch, which a data source of the user's may code anew or add
noise to. It may differ from its files in white space, marks and case: letters and digits alone are compared.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from atlas.config import ConfigError
from atlas.data.files import fault_of_text, find_files
from atlas.data.needles import Tokens

PIECES, PIECE = 32, 256  # of the text that are looked for, and tokens of one
FOUND_FROM = 16  # of these
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


def lettered(text: Tokens) -> list[bytes]:
    """Pieces of a text of bytes, evenly far apart: those that have letters enough."""
    places = np.linspace(0, max(len(text) - PIECE, 0), PIECES).astype(np.int64).tolist()
    found = [letters(text[place : place + PIECE].astype(np.uint8).tobytes()) for place in places]
    return [piece for piece in found if len(piece) >= LENGTH]


def stand_in(texts: Sequence[bytes], pieces: Sequence[bytes]) -> int:
    """How many of the pieces have a part that stands in a text: at their start, middle or end."""
    return sum(any(part in text for part in _parts(piece) for text in texts) for piece in pieces)


def _parts(piece: bytes) -> list[bytes]:
    room = len(piece) - LENGTH
    return [piece[at : at + LENGTH] for at in sorted({0, room // 2, room})]
