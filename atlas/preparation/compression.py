"""The content of a file as it was before it was compressed."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from atlas.data.tokenizer import import_library

PIECE_BYTES = 1 << 20


class SourceError(Exception):
    """A source that cannot be read further. The message follows the source's name."""


@contextmanager
def opened(name: str, compression: str) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """The content of a file, decompressed, and the file itself. Raises `SourceError` for what cannot be read."""
    try:
        with Path(name).open("rb") as file:
            if compression == "gz":
                yield gzip.GzipFile(fileobj=file), file  # type: ignore[misc]
            elif compression == "zst":
                arrow = import_library("pyarrow", "SOURCE", name)
                yield io.BufferedReader(_Stream(arrow.CompressedInputStream(file, "zstd")), PIECE_BYTES), file
            else:
                yield file, file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise SourceError(f"is damaged ({error})") from error
    except OSError as error:
        raise SourceError(f"is damaged or cannot be read ({' '.join(str(error).split())[:200]})") from error


class _Stream(io.RawIOBase):
    """A stream of pyarrow as Python's own: it lacks `readline`."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        read: int = self._stream.readinto(buffer)
        return read
