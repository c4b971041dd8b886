"""A lock that lets one process write a folder. The system releases it when the process dies, however it dies."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
PATIENCE = 0.05  # seconds, for one that only looks whether the lock is held (`is_held`): it has it for microseconds


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
            self._acquire()
        except Timeout as error:
            raise LockedError(f"{folder} is being written by another run ({holder(self._path)})") from error
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            warnings.warn(f"{folder} is on a file system without locks: start only one run on it", stacklevel=2)
        with suppress(OSError):  # on a full disk the lock holds, but does not name its process
            self._path.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        self._file = self._path.stat()

    def _acquire(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self._lock.acquire()
                return
            except Timeout:
                if time.monotonic() > deadline:
                    raise
            time.sleep(PATIENCE / 10)

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


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """For a file there that is read and replaced: others wait meanwhile. On a file system without locks nobody does."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def is_held(folder: Path, name: str = ".lock") -> bool:
    """Whether a process holds the lock now."""
    return _is_free(folder / name) is False


def is_abandoned(folder: Path, name: str = ".lock") -> bool:
    """Whether the process that locked the folder last is surely gone: it ran on this host, and the lock is free."""
    path = folder / name
    return holder(path).endswith(f" on {socket.gethostname()}") and _is_free(path) is True


def _is_free(path: Path) -> bool | None:
    """None: nothing is known, as where the file is missing or the file system has no locks.

    Those who look share the lock, so that they do not take each other for a holder.
    """
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def holder(path: Path) -> str:
    """The process that holds the lock, as it wrote into the file."""
    with suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace") or "an unknown process"
    return "an unknown process"
