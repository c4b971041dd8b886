"""The cores of the machine."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """How many this process may run on: a container, a batch system or `taskset` may leave it fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share_of_cores(processes: int) -> int:
    """The threads of each of the processes that share them, at least 1."""
    return max(1, usable_cores() // processes)
