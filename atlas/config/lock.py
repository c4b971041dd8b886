"""A lock that lets one process write a folder. The system releases it when the process dies, however it dies."""

from __future__ import annotations

import errno
import os
import socket
import warnings
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


class LockedError(RuntimeError):
    """Another process writes this folder. The message names folder and process."""


class RunLock:
    """Held from construction until `release`. Raises `LockedError`, or OSError if the folder cannot be written.

    `name`: of the lock's file in the folder, which holds the process and its host.
    """

    def __init__(self, folder: Path, name: str = ".lock") -> None:
        self._path = folder / name
        # filelock falls back to a soft lock here, which would stay when its process dies.
        self._lock = FileLock(self._path, blocking=False, thread_local=False, fallback_to_soft=False)
        try:
            self._lock.acquire()
        except Timeout as error:
            raise LockedError(f"{folder} is being written by another run ({holder(self._path)})") from error
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            warnings.warn(f"{folder} is on a file system without locks: start only one run on it", stacklevel=2)
        with suppress(OSError):  # on a full disk the lock holds, but does not name its process
            self._path.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        self._file = self._path.stat()

    @property
    def holds(self) -> bool:
        """Whether the file is still the one that was locked: the folder may have been removed."""
        try:
            return os.path.samestat(self._path.stat(), self._file)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def release(self) -> None:
        """Release the lock. Releasing twice is allowed."""
        self._lock.release()


def is_held(folder: Path, name: str = ".lock") -> bool:
    """Whether a process holds the lock now."""
    if not (folder / name).is_file():
        return False
    lock = FileLock(folder / name, blocking=False, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except (Timeout, OSError) as error:
        return isinstance(error, Timeout)
    lock.release()
    return False


def is_abandoned(folder: Path, name: str = ".lock") -> bool:
    """Whether the process that locked the folder last is surely gone: it ran on this host, and the lock is free."""
    path = folder / name
    if not path.is_file() or not holder(path).endswith(f" on {socket.gethostname()}"):
        return False
    lock = FileLock(path, blocking=False, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except (Timeout, OSError):  # held; or a file system without locks, where nothing is known
        return False
    lock.release()
    return True


def holder(path: Path) -> str:
    """The process that holds the lock, as it wrote into the file."""
    with suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace") or "an unknown process"
    return "an unknown process"
