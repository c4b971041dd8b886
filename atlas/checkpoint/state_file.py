"""state.pt: the payload of a checkpoint on disk, written with its SHA-256, read as plain data only."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import IO, Any, cast

import torch

from atlas.checkpoint.contents import check_payload, check_sizes
from atlas.checkpoint.manifest import STATE_FILE, TENSORS, Manifest, UnsoundError, verify
from atlas.checkpoint.tensor_files import put_together, read_tensors
from atlas.config.atomic import sync_file


def write_state(path: Path, state: dict[str, Any]) -> tuple[int, str]:
    """Write `state` to the disk; returns size and SHA-256 of what was meant to be written."""
    outer = sys.exception()  # an exception that the caller is handling
    with path.open("wb") as file:
        stream = _HashingStream(file)
        try:
            torch.save(state, cast(IO[bytes], stream))
        except RuntimeError as error:  # torch hides the reason, such as a full disk or Ctrl-C
            reason = stream.error or error.__context__
            stream.error = None  # torch never frees a stream that failed, and a traceback holds the whole run
            if reason is not outer and isinstance(reason, OSError | KeyboardInterrupt):
                raise reason from None
            raise
        sync_file(file)
    return stream.size, stream.sha256.hexdigest()


def read_state(manifest: Manifest, parts: tuple[str, ...] = ()) -> dict[str, Any]:
    """The payload, its tensors on the CPU.

    Raises `UnsoundError` for a damaged file, and for one that holds code, no finite weights or not all `parts`.
    """
    verify(manifest)
    check_sizes(manifest.path / STATE_FILE)
    try:
        payload = torch.load(manifest.path / STATE_FILE, map_location="cpu", weights_only=True)
    except Exception as error:  # the bytes are verified, so they hold something else than plain data
        reason = type(error).__name__  # torch's own message shows how to load the file anyway, which would execute it
        raise UnsoundError(f"{STATE_FILE} is refused: it does not hold plain data only ({reason})") from error
    size = manifest.bytes
    if manifest.files:
        if not isinstance(payload, dict):
            raise UnsoundError(f"{STATE_FILE} holds a {type(payload).__name__} instead of a dict")
        payload = put_together(payload, read_tensors(manifest.path / TENSORS, manifest.files))
        size += sum(bytes for bytes, _ in manifest.files.values())
    return check_payload(payload, size, parts)


class _HashingStream:
    """Passes bytes on to a file and keeps their size, their SHA-256 and the first error."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.size = 0
        self.sha256 = hashlib.sha256()
        self.error: OSError | KeyboardInterrupt | None = None

    def write(self, data: bytes) -> int:
        try:
            self._file.write(data)
            self.sha256.update(data)
        except (OSError, KeyboardInterrupt) as error:
            self.error = self.error or error
            raise
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        self._file.flush()
