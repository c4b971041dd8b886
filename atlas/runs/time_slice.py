"""A short time slice: a thread that is woken runs sooner where other processes use the cores.

A parallel region ends when its last thread has ended, and that thread waits for a core behind other processes. Linux
lets a woken thread with a short slice go before one with a long slice, as long as it has had no more than its share
(experiments/busy_machine). The share itself stays the same. Kernels before 6.12 take the request and ignore it.
"""

from __future__ import annotations

import ctypes
import platform
import struct
from pathlib import Path

SLICE = 100_000  # nanoseconds; the shortest that Linux takes
SCHED_OTHER = 0  # the usual policy: the only one that has slices
SYSTEM_CALLS = {"x86_64": {"set": 314, "get": 315}, "aarch64": {"set": 274, "get": 275}}  # sched_setattr, sched_getattr
ATTRIBUTES = struct.Struct("IIQiIQQQ")  # size, policy, flags, nice, priority, slice, deadline, period


def ask_for_short_slices() -> None:
    """For every thread of this process, and so for those that they start."""
    for task in Path("/proc/self/task").iterdir() if platform.machine() in SYSTEM_CALLS else ():
        found = scheduling(int(task.name))
        if found is not None and found[0] == SCHED_OTHER:
            policy, nice, _ = found
            _call("set", int(task.name), ATTRIBUTES.pack(ATTRIBUTES.size, policy, 0, nice, 0, SLICE, 0, 0), 0)


def scheduling(thread: int) -> tuple[int, int, int] | None:
    """Policy, nice value and slice in nanoseconds of a thread of this process; None if the thread has ended."""
    found = ctypes.create_string_buffer(ATTRIBUTES.size)
    if _call("get", thread, found, ATTRIBUTES.size, 0) != 0:
        return None
    _, policy, _, nice, _, slice_, _, _ = ATTRIBUTES.unpack(found.raw)
    return policy, nice, slice_


def _call(what: str, *arguments: object) -> int:
    number = SYSTEM_CALLS[platform.machine()][what]
    return int(ctypes.CDLL(None).syscall(number, *arguments))
