"""The processes that run a sweep's jobs at the same time: which there are, their CUDA device, and how they are stopped.

Each holds a numbered file in the sweep's folder, locked for as long as it lives, with its process id and host.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from types import FrameType
from typing import BinaryIO, ClassVar

from atlas.runs.folder import say
from atlas.runs.signals import claim, handled_by, interrupt
from atlas.sweeps.stop import INTERRUPTED, StopSign

_FOLDER = ".workers"


class Worker:
    """This process, as one that runs jobs of a sweep beside others. A signal reaches the job it runs, once."""

    places: ClassVar[dict[Path, tuple[int, BinaryIO]]] = {}  # of this process; the open files hold the locks
    busy: ClassVar[bool] = False

    @classmethod
    @contextmanager
    def at_work(cls, sweep: Path) -> Iterator[int]:
        """Take a place among the sweep's workers, the same for every job of this process; gives its number."""
        if sweep not in cls.places:
            cls.places[sweep] = _take_place(sweep / _FOLDER)
        claim(cls._interrupt)
        cls.busy = True
        try:
            yield cls.places[sweep][0]
        finally:
            cls.busy = False

    @classmethod
    def _interrupt(cls, signal_number: int, frame: FrameType | None) -> None:
        """A terminal and the sweep itself may both send it: what the first one ends in good order must not be torn."""
        if cls.busy:
            cls.busy = False
            interrupt(signal_number)


def _take_place(folder: Path) -> tuple[int, BinaryIO]:
    folder.mkdir(exist_ok=True)
    for number in count():
        file = (folder / str(number)).open("ab+", buffering=0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            continue
        file.truncate(0)
        file.write(f"{os.getpid()} {socket.gethostname()}".encode())
        return number, file
    raise AssertionError("unreachable: count() has no end")


def worker_processes(sweep: Path) -> list[int]:
    """Ids of the living workers of a sweep on this host."""
    found = []
    for path in sorted((sweep / _FOLDER).glob("*")):
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # not held: its process is gone
            except BlockingIOError:
                process, _, host = file.read().decode().partition(" ")
                if host == socket.gethostname() and process.isdigit():
                    found.append(int(process))
    return found


def use_own_device(place: int) -> None:
    """Let this process see one CUDA device only, in turn by its place; to be called before CUDA is used."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]
    if len(names) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = names[place % len(names)]


@contextmanager
def passing_interrupts_on(sweep: Path) -> Iterator[None]:
    """While jobs run in other processes, a signal goes to them and no other job is started.

    The second time raises KeyboardInterrupt here.
    """

    def pass_on(signal_number: int, frame: FrameType | None) -> None:
        stop = StopSign(sweep)
        if stop.reason == INTERRUPTED:
            raise KeyboardInterrupt
        stop.take_down()
        stop.put_up(INTERRUPTED)
        say("interrupted: jobs that run are asked to end, no other is started; once more to leave at once")
        for process in worker_processes(sweep):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGINT)

    with handled_by(pass_on):
        yield
