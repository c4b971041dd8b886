"""Waiting for room on a full disk, so that a user who frees some does not lose the end of a run."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import TypeVar

ROOM_SECONDS = 6.0
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


Result = TypeVar("Result")


def when_there_is_room(action: Callable[[], Result]) -> Result:
    """The result of `action`, tried again while the disk is full, for at most `ROOM_SECONDS`. Raises its last error."""
    deadline = time.monotonic() + ROOM_SECONDS
    while True:
        try:
            return action()
        except Exception as error:
            cause = error if isinstance(error, OSError) else error.__cause__
            full = isinstance(cause, OSError) and cause.errno in _FULL
            if not full or time.monotonic() > deadline:
                raise
        time.sleep(0.25)
