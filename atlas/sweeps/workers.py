"""The worker processes of a parallel sweep: their list, their CUDA devices, and how they are stopped.

Each holds a numbered lock in the sweep's folder for as long as it lives. With joblib a job has a process of its own, a
child of joblib's worker: joblib gives up all jobs if one of its workers is killed, and the out-of-memory killer chooses
the process that trains.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar

from atlas.config.lock import LockedError, RunLock, holder, is_held
from atlas.runs.folder import say
from atlas.runs.signals import SIGNALS, claim, handled_by, interrupt
from atlas.sweeps.stop import INTERRUPTED, StopSign

_FOLDER = ".workers"
_WATCH_SECONDS = 0.5


class Worker:
    """This process as a worker of a sweep. The first signal is passed to its job, later ones are ignored."""

    places: ClassVar[dict[Path, tuple[int, RunLock]]] = {}  # of this process
    busy: ClassVar[bool] = False

    @classmethod
    @contextmanager
    def at_work(cls, sweep: Path) -> Iterator[int]:
        """Take a place among the sweep's workers and yield its number, the same for every job of this process."""
        cls.busy = True
        claim(cls._interrupt)  # before it has a place, by which the sweep finds it
        if sweep not in cls.places:
            cls.places[sweep] = _take_place(sweep / _FOLDER)
        try:
            yield cls.places[sweep][0]
        finally:
            cls.busy = False

    @classmethod
    def _interrupt(cls, signal_number: int, frame: FrameType | None) -> None:
        """The terminal and the sweep may both send it: the second one must not disturb the orderly end."""
        if cls.busy:
            cls.busy = False
            interrupt(signal_number)


def _take_place(folder: Path) -> tuple[int, RunLock]:
    folder.mkdir(exist_ok=True)
    for number in count():
        with suppress(LockedError):
            return number, RunLock(folder, str(number))
    raise AssertionError("unreachable: count() has no end")


def living_workers(sweep: Path) -> list[str]:
    """The workers of a sweep that live, on any host: `process 12 on host`."""
    places = sorted((sweep / _FOLDER).glob("*"))
    return [holder(path) for path in places if is_held(path.parent, path.name)]


def worker_processes(sweep: Path) -> list[int]:
    """Ids of the living workers of a sweep on this host."""
    words = [worker.split(maxsplit=3) for worker in living_workers(sweep)]
    return [int(word[1]) for word in words if word[3:] == [socket.gethostname()] and word[1].isdecimal()]


def in_own_process(work: Callable[[], None]) -> int:
    """Do `work` in a child that ends with this process; returns the signal that killed the child, 0 if none.

    A signal to their group reaches both: the child ends its work in good order, and this process waits for it.
    """
    _end_with_parent(os.getppid())
    for number in SIGNALS:
        _own_handlers.setdefault(number, signal.getsignal(number))
        signal.signal(number, signal.SIG_IGN)
    me = os.getpid()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            for number, handler in _own_handlers.items():
                signal.signal(number, handler)
            _watched.clear()  # a fork has no threads
            _end_with_parent(me)
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)  # the parent's exit handlers must not run in the child
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return max(0, -ended)


_own_handlers: dict[signal.Signals, Any] = {}  # of this process, before it waited for a child
_watched: set[int] = set()


def _end_with_parent(parent: int) -> None:
    """End this process soon after its parent, which has no time to end it if it is killed."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH_SECONDS)
        os._exit(1)

    if parent not in _watched:
        _watched.add(parent)
        threading.Thread(target=watch, daemon=True).start()


def use_own_device(place: int) -> None:
    """Let this process see a single CUDA device, chosen by its place. Call it before CUDA is used."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]
    if len(names) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = names[place % len(names)]


@contextmanager
def passing_interrupts_on(sweep: Path, as_sigint: bool) -> Iterator[None]:
    """While jobs run in other processes, pass the first signal to them and start no other job.

    The second signal raises KeyboardInterrupt here. `as_sigint`: for launchers that handle the other signals themselves
    in their processes, as submitit does.
    """

    asked = False

    def pass_on(signal_number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        StopSign(sweep).put_up_instead(INTERRUPTED)
        say("interrupted: running jobs are asked to end, no other is started; a second signal leaves at once")
        for process in worker_processes(sweep):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGINT if as_sigint else signal_number)

    with handled_by(pass_on):
        yield
