"""OpenMP threads that wait: they spin on a quiet machine, and sleep where other processes want the cores.

A thread that waits for another spins before it sleeps. That saves a wake-up on a quiet machine, and takes the core from
the very thread that it waits for on a busy one (experiments/busy_machine). GNU's OpenMP library spins 100 times instead
of 300,000 while its threads outnumber the cores. So `SpinControl` keeps some idle threads of that library while the
machine is busy, and ends them when it is quiet again.

It reads from Linux's schedstat how long a thread was ready to run and had no core. A process starts as if the machine
were busy. Other systems, other OpenMP libraries and a policy set by the user are left as they are.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from pathlib import Path

import torch

PERIOD = 0.2  # seconds between two looks
BUSY_SHARE = 0.05  # of a period that the watched thread waits for a core: from here the machine is busy
QUIET_SHARE = 0.01  # up to here it is quiet
QUIET_PERIODS = 10  # in a row, before threads spin again
SET_BY_USER = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


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
    """Reads every PERIOD, in a thread of its own, the schedstat file of the thread that it watches."""

    def __init__(self, library: ctypes.CDLL, schedstat: Path) -> None:
        self._library, self._schedstat = library, schedstat
        self._team: IdleTeam | None = IdleTeam(library)
        self._quiet_periods = 0
        self._last = self._read()
        self._thread = threading.Thread(target=self._look, name="atlas-spin-control", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        return self._team is not None

    @property
    def ended(self) -> bool:
        return not self._thread.is_alive()

    def _read(self) -> tuple[float, float]:
        """Seconds: the time now, and how long the watched thread has waited for a core so far."""
        waited = int(self._schedstat.read_text(encoding="ascii").split()[1])
        return time.monotonic(), waited / 1e9

    def _look(self) -> None:
        while True:
            time.sleep(PERIOD)
            try:
                now, waited = self._read()
            except OSError:  # the watched thread has ended
                break
            self.observe((waited - self._last[1]) / (now - self._last[0]))
            self._last = now, waited
        self._spin()

    def observe(self, share: float) -> None:
        """`share` of a period that the watched thread waited for a core."""
        self._quiet_periods = self._quiet_periods + 1 if share <= QUIET_SHARE else 0
        if share >= BUSY_SHARE and self._team is None:
            self._team = IdleTeam(self._library)
        elif self._quiet_periods >= QUIET_PERIODS:
            self._spin()

    def _spin(self) -> None:
        if self._team is not None:
            self._team.end()
            self._team = None


_control: SpinControl | None = None  # the process has one OpenMP library


def control_spinning() -> SpinControl | None:
    """Watch this thread from now on. None where that cannot work, is no use, or the user has set a policy."""
    global _control
    if _control is not None and not _control.ended:
        return _control
    schedstat = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat")
    set_by_user = any(name in os.environ for name in SET_BY_USER)
    if set_by_user or torch.get_num_threads() == 1 or not schedstat.is_file():
        return None
    library = _openmp_library()
    _control = None if library is None else SpinControl(library, schedstat)
    return _control


def _openmp_library() -> ctypes.CDLL | None:
    """GNU's OpenMP library as torch has loaded it."""
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
        name = line.split(maxsplit=5)[-1]
        if "/libgomp" in name:
            found = ctypes.CDLL(name)
            return found if hasattr(found, "GOMP_parallel") else None
    return None
