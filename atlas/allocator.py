"""The C library's memory allocator, where it is glibc's; others are left as they are."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # parameters of mallopt, see malloc.h
NEVER = -1
LARGEST_IN_HEAP = (
    2**25
)  # bytes; what glibc itself goes up to. Above, its aligned blocks leave gaps that are not used again


def keep_freed_memory() -> None:
    """What one training step frees stays for the next. By default it goes back to the system, to be taken again a page
    at a time: the same tensors, 10,000 page faults and more in every step.
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
