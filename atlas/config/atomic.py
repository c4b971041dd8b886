"""Writing files as a whole, so that a reader finds the old content or the new, also after a kill; syncing them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO


def write_atomically(path: Path, content: str | bytes, *, durable: bool = False) -> None:
    """Replace the file; `durable`: its content is on the disk first, so that a power cut cannot leave it empty.

    Raises OSError; the old file is then unchanged.
    """
    temporary = path.with_name(f".{path.name}.new")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            if durable:
                sync_file(file)
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_together(files: Mapping[Path, str]) -> None:
    """Replace all of the files, or none where one has no room. Raises OSError; the old files are then unchanged."""
    temporary = {path: path.with_name(f".{path.name}.new") for path in files}
    try:
        for path, text in files.items():
            temporary[path].write_text(text, encoding="utf-8")
        for path, new in temporary.items():
            new.replace(path)
    except OSError:
        for new in temporary.values():
            with suppress(OSError):
                new.unlink(missing_ok=True)
        raise


def sync_file(file: IO[bytes]) -> None:
    """Sync the content of an open file to the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Sync the names in `folder` to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
