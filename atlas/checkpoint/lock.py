"""A lock that lets one process write a folder. The system releases it when the process dies, however it dies."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import warnings
from contextlib import suppress
from pathlib import Path

UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


class LockedError(RuntimeError):
    """Another process writes this folder. The message names folder and process."""


class RunLock:
    """Held from construction until `release`. Raises `LockedError`, or OSError if the folder cannot be written."""

    def __init__(self, folder: Path) -> None:
        file = (folder / ".lock").open("ab+", buffering=0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                file.seek(0)
                holder = file.read().decode(errors="replace") or "an unknown process"
                file.close()
                raise LockedError(f"{folder} is being written by another run ({holder})") from error
            warnings.warn(f"{folder} is on a file system without locks: start only one run on it", stacklevel=2)
        with suppress(OSError):  # on a full disk the lock holds, only without a name
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        self._file = file

    def release(self) -> None:
        """Let others in. Releasing twice is allowed."""
        self._file.close()
