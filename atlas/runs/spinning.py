"""OpenMP threads that wait: they spin on a quiet machine, and sleep where other processes want the cores.

A thread that waits for another spins before it sleeps. That saves a wake-up on a quiet machine, and takes the core from
the very thread that it waits for on a busy one (experiments/busy_machine). GNU's OpenMP library spins 100 times instead
of 300,000 while its threads outnumber the cores. So `SpinControl` keeps some idle threads of that library while the
machine is busy, and ends them when it is quiet again. A short time slice lets a thread that was woken run at once.

It reads from Linux how much of these cores other processes use. A process starts as if the machine were busy. Other
systems, other OpenMP libraries and a policy set by the user are left as they are.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from pathlib import Path

import torch

from atlas.runs.time_slice import ask_for_short_slices

PERIOD = 0.5  # seconds between two looks
BUSY = 0.25  # cores that this process lacks: from here the machine is busy
QUIET = 0.12  # up to here it is quiet
QUIET_PERIODS = 4  # in a row, before threads spin again
SET_BY_USER = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
PROC_STAT = Path("/proc/stat")


class IdleTeam:
    """Threads of the OpenMP library that sleep until `end`: so many that all its threads outnumber the cores."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._ended = threading.Event()
        started = threading.Event()

        def hold() -> None:
            # What the team runs has no effect. Its threads stay while the thread that started them lives.
            nothing = ctypes.cast(library.omp_get_num_threads, ctypes.c_void_p)
            library.GOMP_parallel(nothing, None, ctypes.c_uint(library.omp_get_num_procs() + 1), ctypes.c_uint(0))
            started.set()
            self._ended.wait()

        self._thread = threading.Thread(target=hold, name="atlas-idle-team", daemon=True)
        self._thread.start()
        started.wait()

    def end(self) -> None:
        self._ended.set()
        self._thread.join()


class SpinControl:
    """Looks every PERIOD, in a thread of its own, how many cores the others leave for `threads` threads."""

    def __init__(self, library: ctypes.CDLL, threads: int) -> None:
        self._library, self._threads = library, threads
        self._team: IdleTeam | None = IdleTeam(library)
        self._quiet_periods = 0
        threading.Thread(target=self._look, name="atlas-spin-control", daemon=True).start()

    @property
    def busy(self) -> bool:
        return self._team is not None

    def _look(self) -> None:
        cores = os.sched_getaffinity(0)
        last = time.monotonic(), used_by_others(cores)
        while True:
            time.sleep(PERIOD)
            now = time.monotonic(), used_by_others(cores)
            used = (now[1] - last[1]) / (now[0] - last[0])
            self.observe(self._threads + used - len(cores))
            last = now

    def observe(self, lacking: float) -> None:
        """`lacking`: how many cores more were wanted in a period than there are."""
        self._quiet_periods = self._quiet_periods + 1 if lacking <= QUIET else 0
        if lacking >= BUSY and self._team is None:
            self._team = IdleTeam(self._library)
        elif self._quiet_periods >= QUIET_PERIODS and self._team is not None:
            self._team.end()
            self._team = None


def used_by_others(cores: set[int]) -> float:
    """Seconds of these cores that other processes have used so far."""
    used = 0
    for line in PROC_STAT.read_text(encoding="ascii").splitlines():
        name, *ticks = line.split()
        if name[:3] == "cpu" and name[3:] and int(name[3:]) in cores:
            user, nice, system, _idle, _waiting, irq, soft_irq = map(int, ticks[:7])
            used += user + nice + system + irq + soft_irq
    return used / os.sysconf("SC_CLK_TCK") - time.process_time()


_control: SpinControl | None = None  # the process has one OpenMP library


def control_spinning() -> SpinControl | None:
    """Start the control, once in a process. None where it cannot work, is no use, or the user has set a policy."""
    global _control
    set_by_user = any(name in os.environ for name in SET_BY_USER)
    if _control is None and PROC_STAT.is_file() and not set_by_user and torch.get_num_threads() > 1:
        ask_for_short_slices()
        library = _openmp_library()
        _control = None if library is None else SpinControl(library, torch.get_num_threads())
    return _control


def _openmp_library() -> ctypes.CDLL | None:
    """GNU's OpenMP library as torch has loaded it."""
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
        name = line.split(maxsplit=5)[-1]
        if "/libgomp" in name:
            found = ctypes.CDLL(name)
            return found if hasattr(found, "GOMP_parallel") else None
    return None
