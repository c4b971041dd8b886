"""The C library's memory allocator, where it is glibc's; others are left as they are."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # parameters of mallopt, see malloc.h
NEVER = -1
# Bytes; what glibc itself goes up to. Larger aligned blocks would leave gaps in the heap that are not used again.
LARGEST_IN_HEAP = 2**25


def keep_freed_memory() -> None:
    """Keep the memory that a training step frees for the next step.

    By default it goes back to the system, and the next step's tensors cost page faults.
    """
    mallopt = _function("mallopt")
    if mallopt is not None:
        mallopt(TRIM_THRESHOLD, NEVER)
        mallopt(MMAP_THRESHOLD, LARGEST_IN_HEAP)


def return_freed_memory() -> None:
    """Return all freed memory to the system, so that it does not count as used."""
    trim = _function("malloc_trim")
    if trim is not None:
        trim(0)


def _function(name: str) -> Callable[..., int] | None:
    found: Callable[..., int] | None = getattr(ctypes.CDLL(None), name, None)
    return found
