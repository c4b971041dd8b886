"""The C library's memory allocator, where it is glibc's; others are left as they are."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # parameters of mallopt, see malloc.h
NEVER = -1
# Bytes; what glibc itself goes up to. Larger aligned blocks would leave gaps in the heap that are not used again.
LARGEST_IN_HEAP = 2**25


def keep_freed_memory() -> None:
    """What one training step frees stays for the next. By default it goes back to the system, to be taken again for the
    same tensors, a page fault at a time.
    """
    mallopt = _function("mallopt")
    if mallopt is not None:
        mallopt(TRIM_THRESHOLD, NEVER)
        mallopt(MMAP_THRESHOLD, LARGEST_IN_HEAP)


def return_freed_memory() -> None:
    """Give all of it back now: it would count as in use."""
    trim = _function("malloc_trim")
    if trim is not None:
        trim(0)


def _function(name: str) -> Callable[..., int] | None:
    found: Callable[..., int] | None = getattr(ctypes.CDLL(None), name, None)
    return found
