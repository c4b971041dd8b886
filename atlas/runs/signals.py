"""Signals that end a run: Ctrl-C, SIGTERM, SIGHUP (its terminal was closed), SIGUSR1 (a cluster's warning).

The first one asks the run to end in good order; before a run it raises a KeyboardInterrupt that names it, after a run
and the second time one without a message.
Imports no torch.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from atlas.training.stop import StopRequest

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
REPEAT_SECONDS = 0.2
# Linux sends it to a rank when the process that has started it ends (runs/processes.py); clusters use SIGUSR2.
STARTER_GONE = getattr(signal, "SIGRTMIN", signal.SIGUSR2)
Handler = Callable[[int, FrameType | None], Any]
_listening: list[StopRequest] = []  # of the run of this process's main thread, if there is one
_begun = threading.Event()  # a run has: it may be over when a signal comes


def interrupt(number: int, frame: FrameType | None = None) -> None:
    """The handler. It only records the request: the signal may have interrupted a write."""
    names = {signal.SIGINT: "Ctrl-C", STARTER_GONE: "the end of the process that started the ranks"}
    by = names.get(signal.Signals(number)) or signal.Signals(number).name
    request = _listening[-1] if _listening else None
    if request is not None and not request.by:
        request.make(by)
    elif request is None and not _begun.is_set():
        raise KeyboardInterrupt(f"stopped by {by}")
    elif request is None or (number != STARTER_GONE and not _repeats(request, by)):
        raise KeyboardInterrupt


def _repeats(request: StopRequest, by: str) -> bool:
    """Whether the signal that made the request arrives a second time without a second wish: a closing terminal sends
    SIGHUP itself and through its shell, `timeout` signals its command and then the command's group."""
    return by == "SIGHUP" or (by == request.by and time.monotonic() - request.since < REPEAT_SECONDS)


@contextmanager
def listening(request: StopRequest) -> Iterator[None]:
    """Signals make this request. Only in the main thread: no other one can handle signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _begun.set()
    _listening.append(request)
    try:
        with handled_by(interrupt):
            yield
    finally:
        _listening.remove(request)


@contextmanager
def handled_by(handler: Handler) -> Iterator[None]:
    """`handler` for the signals that nobody handles or ignores; what was there before is put back."""
    before = claim(handler)
    try:
        yield
    finally:
        for number, one in before.items():
            signal.signal(number, one)


def claim(handler: Handler) -> dict[signal.Signals, Any]:
    """Set the handler of the signals that have none but ours; returns what was there.

    A signal that is ignored (`nohup`) stays so, and one that the caller or submitit handles stays theirs.
    """
    unclaimed = (signal.SIG_DFL, signal.default_int_handler, interrupt)
    found = {number: signal.getsignal(number) for number in SIGNALS}
    return {number: signal.signal(number, handler) for number, one in found.items() if one in unclaimed}
