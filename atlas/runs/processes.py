"""`device.processes=N`: the ranks of one machine, started by the run itself.

torch.multiprocessing starts them, and they find each other by the variables that torchrun would set. Each leaves in a
file how it ended; the process that has started them raises what one process alone would.
"""

from __future__ import annotations

import os
import pickle
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.multiprocessing.spawn import ProcessContext, ProcessException, start_processes

from atlas.config import RunConfig
from atlas.parallel.launch import launched
from atlas.parallel.ranks import RankError, log_name, portable
from atlas.runs.signals import SIGNALS, handled_by, interrupt, listening
from atlas.runs.summary import RunSummary, read_summary
from atlas.telemetry.sinks import SweepJob
from atlas.training.stop import StopRequest

HOST = "127.0.0.1"
ENDING_SECONDS = 30.0  # for the ranks that are left after one of them was killed, besides the time of a step


@dataclass(frozen=True)
class Start:
    """What a rank is started with. `port`: of the store where they meet; `ends`: the folder of the files of `End`."""

    config: RunConfig
    folder: Path
    job: SweepJob | None
    port: int
    ends: Path


@dataclass(frozen=True)
class End:
    """How a rank ended. `tells`: whether its error is the one that the user is to see."""

    error: BaseException | None
    tells: bool


def run_in_processes(config: RunConfig, folder: Path, job: SweepJob | None) -> RunSummary:
    """The run in `folder`, trained by `config.device.processes` ranks. Raises what `run` raises.

    A signal to this process is passed on to the ranks, which agree on the step after which they stop.
    """
    store = TCPStore(HOST, 0, is_master=True, wait_for_workers=False)
    with tempfile.TemporaryDirectory() as ends:
        killed_by = _run(Start(config, folder, job, store.port, Path(ends)))
        found = [_read(Path(ends), rank, killed_by) for rank in range(config.device.processes)]
    errors = [end.error for end in sorted(found, key=lambda end: not end.tells) if end.error is not None]
    if errors:
        raise errors[0]
    summary = read_summary(folder)
    assert summary is not None, "every rank has ended well"
    return summary


class _PassedOn(StopRequest):
    """The request to end this run, which the ranks carry out; made before they are there, it waits for them."""

    def __init__(self) -> None:
        super().__init__()
        self._processes: list[BaseProcess] = []
        self._asked: list[signal.Signals] = []

    def make(self, by: str) -> None:
        super().make(by)
        self.send(signal.SIGINT if by == "Ctrl-C" else signal.Signals[by])

    def send(self, number: signal.Signals) -> None:
        if not self._processes:
            self._asked.append(number)
        for process in self._processes:
            if process.pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, number)

    def to(self, ranks: ProcessContext) -> None:
        self._processes = ranks.processes
        for number in self._asked:
            self.send(number)


def _run(start: Start) -> dict[int, str]:
    """Start the ranks and wait for all of them; returns the signal that killed a rank, by rank."""
    config, request = start.config, _PassedOn()
    resource_tracker.ensure_running()  # else it unblocks signals when the first rank is started
    with listening(request):
        with _blocked_signals():  # a rank inherits that, until it handles them
            ranks = start_processes(_rank, (start,), nprocs=config.device.processes, join=False, start_method="spawn")
            request.to(ranks)
        try:
            with suppress(ProcessException):  # of a rank that was killed: the others name it
                while not ranks.join(grace_period=config.parallel.step_timeout_s + ENDING_SECONDS):
                    pass
        except KeyboardInterrupt:  # a second signal
            request.send(signal.SIGINT)
            for process in ranks.processes:
                process.join(ENDING_SECONDS)
                process.kill()
            raise
    codes = {rank: process.exitcode for rank, process in enumerate(ranks.processes)}
    return {rank: signal.Signals(-code).name for rank, code in codes.items() if code < 0}


@contextmanager
def _blocked_signals() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _rank(rank: int, start: Start) -> None:
    """One rank of the run, in a process of its own."""
    os.setpgid(0, 0)  # the terminal's Ctrl-C reaches it once, by the process that has started it
    world = start.config.device.processes
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": HOST, "MASTER_PORT": str(start.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    if "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // world))
    from atlas.runs.run import run

    end = End(None, False)
    try:
        with handled_by(interrupt):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            with launched(start.config.parallel.start_timeout_s) as ranks:
                try:
                    with ranks.starting():
                        run(start.config, start.folder, start.job, ranks)
                except BaseException as error:
                    end = End(portable(error), ranks.tells(error))
                    raise
    except BaseException as error:
        end = end if end.error else End(portable(error), False)
    (start.ends / str(rank)).write_bytes(pickle.dumps(end))


def _read(ends: Path, rank: int, killed_by: dict[int, str]) -> End:
    try:
        end: End = pickle.loads((ends / str(rank)).read_bytes())
    except OSError:
        how = f"was killed by {killed_by[rank]}" if rank in killed_by else "ended without a word"
        end = End(RankError(f"rank {rank} {how} (its log: {log_name(rank)})"), False)
    return end
