"""The ranks of torchrun end in good order where it is killed: Linux then sends each of them a signal.

Imports no torch where torchrun has not started this process.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from atlas.runs.signals import STARTER_GONE, interrupt

RUN_ID = "TORCHELASTIC_RUN_ID"  # torchrun sets it for the ranks; what a rank starts inherits it


@contextmanager
def ending_with_torchrun() -> Iterator[None]:
    """In this context the end of torchrun is a signal to end the run, as `interrupt` handles it.

    Raises KeyboardInterrupt where torchrun has ended already. Does nothing in a process that torchrun has not started
    itself, such as a task of `srun` in a rank, outside of the main thread, and where the caller uses that signal.
    """
    unclaimed = signal.getsignal(STARTER_GONE) in (signal.SIG_DFL, interrupt)
    if RUN_ID not in os.environ or not unclaimed or threading.current_thread() is not threading.main_thread():
        yield
        return
    parent = os.getppid()
    if not _is_torchrun(parent, os.environ[RUN_ID]):
        if _takes_orphans(parent):
            interrupt(STARTER_GONE)
        yield
        return
    from torch.multiprocessing import _prctl_pr_set_pdeathsig  # type: ignore[attr-defined]

    before = signal.signal(STARTER_GONE, interrupt)
    try:
        _prctl_pr_set_pdeathsig(STARTER_GONE)
        if os.getppid() != parent:  # it ended before that
            interrupt(STARTER_GONE)
        yield
    finally:
        _prctl_pr_set_pdeathsig(0)
        signal.signal(STARTER_GONE, before)


def _is_torchrun(process: int, run_id: str) -> bool:
    """Whether it is a Python process that was not given the variable that its children have."""
    try:
        program = (Path("/proc") / str(process) / "exe").readlink().name
        given = (Path("/proc") / str(process) / "environ").read_bytes().split(b"\0")
    except OSError:  # somebody else's process, or there is no /proc
        return False
    return "python" in program and f"{RUN_ID}={run_id}".encode() not in given


def _takes_orphans(process: int) -> bool:
    try:
        return process == 1 or (Path("/proc") / str(process) / "comm").read_text(encoding="utf-8").strip() == "systemd"
    except OSError:
        return False
