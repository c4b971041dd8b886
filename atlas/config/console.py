"""Output of a command: its result on stdout, its progress on stderr."""

from __future__ import annotations

import errno
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

PROGRESS_SECONDS = 5.0
log = logging.getLogger("atlas.progress")

GONE = (errno.EPIPE, errno.EIO)  # the reader of a pipe has ended, a terminal was closed


class OutputError(OSError):
    """stdout cannot be written: it is closed, or its disk is full."""


def print_result(text: str) -> None:
    """Write `text` to stdout. A closed pipe is not an error. Raises `OutputError`."""
    with writing(sys.stdout) as stream:
        print(text, file=stream, flush=True)


@contextmanager
def writing(stream: TextIO | None) -> Iterator[TextIO]:
    """Raise `OutputError` where `stream` cannot be written; a closed pipe ends the block silently."""
    if stream is None:  # how Python shows a closed stdout
        raise OutputError(errno.EBADF, "it is closed")
    try:
        yield stream
    except OSError as error:
        discard_output(stream)
        if not isinstance(error, BrokenPipeError):
            raise OutputError(error.errno, error.strerror) from error


def duration(seconds: float) -> str:
    """Roughly, with its unit: an estimate has no more digits."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def discard_output(stream: TextIO) -> None:
    """Send the rest to the null device: Python flushes a closed pipe or terminal at exit, and would fail again."""
    with suppress(OSError, ValueError):
        null_device = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null_device, stream.fileno())
        os.close(null_device)


def drop_unwritten() -> None:
    """Before an exit: what a closed terminal did not take would change the exit status."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            discard_output(stream)


@contextmanager
def progress(quiet_seconds: float = 0.0) -> Iterator[None]:
    """Show the progress of long work on stderr, a line every few seconds, the first after `quiet_seconds`."""
    handler = _Every(PROGRESS_SECONDS, quiet_seconds)
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(logging.WARNING)


class _Every(logging.Handler):
    def __init__(self, seconds: float, quiet_seconds: float) -> None:
        super().__init__()
        self.seconds, self.next = seconds, time.monotonic() + quiet_seconds

    def emit(self, record: logging.LogRecord) -> None:
        if time.monotonic() >= self.next and sys.stderr is not None:
            self.next = time.monotonic() + self.seconds
            print(f"atlas: {record.getMessage()}", file=sys.stderr, flush=True)


# Progress does not belong into train.log, which gets the events of its run.
log.propagate = False
log.setLevel(logging.WARNING)
